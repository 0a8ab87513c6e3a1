//! Where an address leads, for who looks a few up: of the maps, which are large, only what is looked at is mapped.

use std::{io, net::SocketAddr, path::Path};

use bpf_lb_abi::{Cell, Entry, Slot};

use crate::{
    family::{Family, Run, address, buckets, key},
    maps::{MapsError, hash_key, values},
    spec::Frontend,
    sys::Values,
};

/// The maps of a family.
pub struct Lookup<A: Family> {
    key: u64,
    cells: Values<Cell<A>>,
    slots: Values<Slot<A>>,
}

impl<A: Family> Lookup<A> {
    /// Opens the maps that are pinned in `folder`.
    pub fn open(folder: &Path) -> Result<Self, MapsError> {
        let map = |stem: &str| format!("{stem}{}", A::SUFFIX);
        Ok(Self {
            key: hash_key(folder)?,
            cells: values(folder, &map("frontends"))?,
            slots: values(folder, &map("slots"))?,
        })
    }

    /// Where a frontend leads, found as the programs find it.
    pub fn find(&self, frontend: &Frontend) -> io::Result<Option<Entry>> {
        let Some(wanted) = key::<A>(frontend) else { return Ok(None) };
        for bucket in buckets(&wanted, self.key, self.cells.capacity()) {
            let cells = self.cells.window(bucket.clone())?;
            let mut cells = bucket.filter_map(|cell| cells.get(cell));
            let mut found = cells.clone().filter(|cell| cell.key == wanted).map(|cell| Entry(cell.entry.load()));
            let entry = found.find(|entry| entry.is_present());
            // The key would be here if there was room.
            if entry.is_some() || cells.any(|cell| cell.key.port == 0) {
                return Ok(entry);
            }
        }
        Ok(None)
    }

    /// Whose a run is, as an index into `names`, and whether it has that backend.
    pub fn look_at(&self, run: Run, backend: &SocketAddr) -> io::Result<(Option<u32>, bool)> {
        let slots = self.slots.window(run.base..run.slot(run.count))?;
        let mut backends = (0..run.count).filter_map(|index| slots.get(run.slot(index)));
        let service = slots.get(run.base).map(|about| about.backend);
        Ok((service, backends.any(|slot| address(&slot.endpoint) == *backend)))
    }
}
