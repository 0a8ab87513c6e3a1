//! What sockets were translated to, as the programs remember it: for those who care about the sockets of a backend that went.

use std::{io, net::SocketAddr, path::Path};

use bpf_lb_abi::{Config, Entry, Long, Name, Translation};
use service_table::ServiceName;

use crate::{
    family::{Family, Run, canonical, protocol},
    lookup::Lookup,
    maps::{MapsError, mapped, pinned_data, values},
    name,
    node::Addresses,
    spec::Frontend,
    sys::{Mapped, Values},
};

/// A translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Flow {
    /// What the process asked for.
    pub service: Frontend,
    /// What it got.
    pub backend: SocketAddr,
}

impl Flow {
    /// The inverse of what the programs write. Nothing if there is none, or one of another version.
    pub fn of<A: Family>(translation: &Translation<A>) -> Option<Self> {
        let service = Frontend::new(canonical(&translation.service), protocol(translation.service.protocol));
        // One that is hidden has been asked since by its own name.
        let counts = translation.service.port != 0 && translation.id & Translation::<A>::HIDDEN == 0;
        counts.then(|| Self { service, backend: canonical(&translation.backend) })
    }
}

/// The maps that say what sockets were translated to, and what Services there are.
pub struct Peers {
    four: Places<u32>,
    six: Places<[u32; 4]>,
    lookup4: Lookup<u32>,
    lookup6: Lookup<[u32; 4]>,
    nodes: Addresses,
    names: Values<Name>,
    config: Mapped<Config>,
    /// The map of those sockets that found their place taken.
    pub overflow: aya::maps::MapData,
}

impl Peers {
    /// Opens the maps that are pinned in `folder`.
    ///
    /// # Errors
    /// When they are not there, or of another form.
    pub fn open(folder: &Path) -> Result<Self, MapsError> {
        Ok(Self {
            four: Places::open(folder)?,
            six: Places::open(folder)?,
            lookup4: Lookup::open(folder)?,
            lookup6: Lookup::open(folder)?,
            nodes: Addresses::open(folder)?,
            names: values(folder, "names")?,
            config: mapped(folder, "config")?,
            overflow: pinned_data(folder, "overflow")?,
        })
    }

    /// Shows the sockets that have a place, by cookie, and the translation of each.
    ///
    /// # Errors
    /// When there is no memory to look at them, and what `see` says.
    pub fn each(&self, mut see: impl FnMut(u64, Flow) -> io::Result<()>) -> io::Result<()> {
        self.four.each(&mut see)?;
        self.six.each(&mut see)
    }

    /// Whether some sockets have no place, and remember in their own storage.
    pub fn has_overflowed(&self) -> bool {
        self.config.get(0).is_some_and(|config| config.overflowed.load() != 0)
    }

    /// Which service answers now where a socket asked, and whether a new connection there may get the socket's backend.
    ///
    /// # Errors
    /// When there is no memory to look.
    pub fn now(&self, flow: &Flow) -> io::Result<(Option<ServiceName>, bool)> {
        let Some(run) = self.find(&flow.service)?.map(Run::of) else { return Ok((None, false)) };
        let (service, leads_to) = match flow.service.address {
            SocketAddr::V4(_) => self.lookup4.look_at(run, &flow.backend),
            SocketAddr::V6(_) => self.lookup6.look_at(run, &flow.backend),
        }?;
        let Some(service) = service.filter(|service| *service < self.names.capacity()) else {
            return Ok((None, leads_to));
        };
        let record = self.names.window(service..service + 1)?.copy(service);
        Ok((record.as_ref().and_then(name::decode).map(|(key, _)| key), leads_to))
    }

    /// Where an address leads, found as the programs find it.
    fn find(&self, frontend: &Frontend) -> io::Result<Option<Entry>> {
        let find = |frontend: &Frontend| match frontend.address {
            SocketAddr::V4(_) => self.lookup4.find(frontend),
            SocketAddr::V6(_) => self.lookup6.find(frontend),
        };
        if let Some(entry) = find(frontend)? {
            return Ok(Some(entry));
        }
        let own = find(&frontend.of_node(0))?;
        let on_node = self.nodes.frontend(frontend, |_| own.map(Entry::is_per_node));
        on_node.map_or(Ok(None), |on_node| find(&on_node))
    }
}

/// The first translation of each socket, in a family: see [`Translation`].
struct Places<A> {
    owners: Values<Long>,
    translations: Values<Translation<A>>,
}

/// How many places are mapped at a time.
const WINDOW: u32 = 4096;

impl<A: Family> Places<A> {
    fn open(folder: &Path) -> Result<Self, MapsError> {
        let map = |name| format!("{name}{}", A::SUFFIX);
        Ok(Self { owners: values(folder, &map("owners"))?, translations: values(folder, &map("peers"))? })
    }

    fn each(&self, see: &mut impl FnMut(u64, Flow) -> io::Result<()>) -> io::Result<()> {
        let places = self.owners.capacity();
        for first in (0..places).step_by(WINDOW as usize) {
            let window = first..places.min(first + WINDOW);
            let (owners, translations) =
                (self.owners.window(window.clone())?, self.translations.window(window.clone())?);
            for index in window {
                let Some(owner) = owners.get(index) else { continue };
                let cookie = owner.load();
                let Some(flow) = (cookie != 0).then(|| Flow::of(&translations.copy(index)?)).flatten() else {
                    continue;
                };
                // Another socket may have got the place meanwhile.
                if owner.load() == cookie {
                    see(cookie, flow)?;
                }
            }
        }
        Ok(())
    }
}
