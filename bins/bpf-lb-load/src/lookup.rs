//! Where an address leads, for who looks a few up: of the maps, which are large, only what is looked at is mapped.

use std::{io, net::SocketAddr, ops::ControlFlow, path::Path};

use bpf_lb_abi::{Cell, Config, Endpoint, Entry, Slot};

use crate::{
    buckets::{Buckets, look},
    family::{Family, Run, address, key},
    maps::{MapsError, mapped, values},
    spec::Frontend,
    sys::{Mapped, Values},
};

/// The maps of a family.
pub struct Lookup<A: Family> {
    config: Mapped<Config>,
    cells: Values<Cell<A>>,
    slots: Values<Slot<A>>,
}

impl<A: Family> Lookup<A> {
    /// Opens the maps that are pinned in `folder`.
    pub fn open(folder: &Path) -> Result<Self, MapsError> {
        let map = |stem: &str| format!("{stem}{}", A::SUFFIX);
        Ok(Self {
            config: mapped(folder, "config")?,
            cells: values(folder, &map("frontends"))?,
            slots: values(folder, &map("slots"))?,
        })
    }

    /// Where a frontend leads, found as the programs find it.
    pub fn find(&self, frontend: &Frontend) -> io::Result<Option<Entry>> {
        let Some(wanted) = key::<A>(frontend) else { return Ok(None) };
        loop {
            let buckets = Buckets::of::<A>(&self.config);
            let entry = self.find_in(buckets, &wanted)?;
            // While nobody looked, it may have moved.
            if entry.is_some() || buckets == Buckets::of::<A>(&self.config) {
                return Ok(entry);
            }
        }
    }

    fn find_in(&self, buckets: Buckets, wanted: &Endpoint<A>) -> io::Result<Option<Entry>> {
        for bucket in buckets.cells(wanted) {
            let cells = self.cells.window(bucket.clone())?;
            if let ControlFlow::Break(found) = look(&cells, bucket, wanted) {
                return Ok(found.map(|(_, entry)| entry));
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
