//! What sockets were translated to, as the programs remember it: for those who care about the sockets of a backend that went.

use std::{net::SocketAddr, path::Path};

use bpf_lb_abi::{Config, Entry, Long, Name, Translation, UDP};
use service_table::{Protocol, ServiceName};

use crate::{
    family::{Family, Run, Tables, canonical},
    maps::{MapsError, mapped, pinned_data},
    name,
    node::Addresses,
    spec::Frontend,
    sys::Mapped,
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
        let protocol = if translation.service.protocol == UDP { Protocol::Udp } else { Protocol::Tcp };
        let service = Frontend::new(canonical(&translation.service), protocol);
        // One that is hidden has been asked since by its own name.
        let counts = translation.service.port != 0 && translation.id & Translation::<A>::HIDDEN == 0;
        counts.then(|| Self { service, backend: canonical(&translation.backend) })
    }
}

/// The maps that say what sockets were translated to, and what Services there are.
pub struct Peers {
    four: Places<u32>,
    six: Places<[u32; 4]>,
    tables4: Tables<u32>,
    tables6: Tables<[u32; 4]>,
    nodes: Addresses,
    names: Mapped<Name>,
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
            tables4: Tables::open(folder)?,
            tables6: Tables::open(folder)?,
            nodes: Addresses::open(folder)?,
            names: mapped(folder, "names")?,
            config: mapped(folder, "config")?,
            overflow: pinned_data(folder, "overflow")?,
        })
    }

    /// The sockets that have a place, by cookie, and the translation of each.
    pub fn all(&self) -> impl Iterator<Item = (u64, Flow)> {
        self.four.all().chain(self.six.all())
    }

    /// Whether some sockets have no place, and remember in their own storage.
    pub fn has_overflowed(&self) -> bool {
        self.config.get(0).is_some_and(|config| config.overflowed.load() != 0)
    }

    /// Which service answers there now.
    pub fn owner(&self, frontend: &Frontend) -> Option<ServiceName> {
        let run = Run::of(self.find(frontend)?);
        let about = if frontend.address.is_ipv6() { self.tables6.about(run) } else { self.tables4.about(run) };
        let record = self.names.copy(about?.0.service)?;
        name::decode(&record).map(|(key, _)| key)
    }

    /// Whether a new connection there may get that backend.
    pub fn leads_to(&self, flow: &Flow) -> bool {
        let Some(run) = self.find(&flow.service).map(Run::of) else { return false };
        let is_it = |(backend, ..): (SocketAddr, _, _)| backend == flow.backend;
        match flow.service.address {
            SocketAddr::V4(_) => self.tables4.backends(run).any(is_it),
            SocketAddr::V6(_) => self.tables6.backends(run).any(is_it),
        }
    }

    /// Where an address leads, found as the programs find it.
    fn find(&self, frontend: &Frontend) -> Option<Entry> {
        let find = |frontend: &Frontend| match frontend.address {
            SocketAddr::V4(_) => self.tables4.find(frontend),
            SocketAddr::V6(_) => self.tables6.find(frontend),
        };
        let on_node = || self.nodes.frontend(frontend, |own| find(own).map(Entry::is_per_node));
        find(frontend).or_else(|| find(&on_node()?))
    }
}

/// The first translation of each socket, in a family: see [`Translation`].
struct Places<A> {
    owners: Mapped<Long>,
    translations: Mapped<Translation<A>>,
}

impl<A: Family> Places<A> {
    fn open(folder: &Path) -> Result<Self, MapsError> {
        let map = |name| format!("{name}{}", A::SUFFIX);
        Ok(Self { owners: mapped(folder, &map("owners"))?, translations: mapped(folder, &map("peers"))? })
    }

    fn all(&self) -> impl Iterator<Item = (u64, Flow)> {
        (0..self.owners.capacity()).filter_map(|index| {
            let owner = self.owners.get(index)?;
            let cookie = owner.load();
            if cookie == 0 {
                return None;
            }
            let translation = self.translations.copy(index)?;
            // Another socket may have got the place meanwhile.
            (owner.load() == cookie).then(|| Flow::of(&translation).map(|flow| (cookie, flow)))?
        })
    }
}
