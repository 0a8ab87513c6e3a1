//! The maps of one address family: its frontends and its runs of backends.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
};

use aya::{
    Pod,
    maps::{HashMap, MapData},
};
use bpf_lb_abi::{Address, Endpoint, Entry, Header, Long, NO_SLOT, Slot, TCP, UDP, Word};

use crate::{
    maps::{MapsError, mapped, pinned},
    space::Space,
    spec::Frontend,
    sys::Mapped,
    table::Protocol,
};

/// An address as the maps hold it, and as the table does.
pub trait Family: Address + Pod {
    /// What the names of the family's maps end with.
    const SUFFIX: char;
    /// Nothing if it is of the other family.
    fn from_ip(address: IpAddr) -> Option<Self>;
    /// The inverse of [`Family::from_ip`].
    fn to_ip(self) -> IpAddr;
}

impl Family for u32 {
    const SUFFIX: char = '4';

    fn from_ip(address: IpAddr) -> Option<Self> {
        match address {
            IpAddr::V4(address) => Some(Self::from_ne_bytes(address.octets())),
            IpAddr::V6(_) => None,
        }
    }

    fn to_ip(self) -> IpAddr {
        Ipv4Addr::from(self.to_ne_bytes()).into()
    }
}

impl Family for [u32; 4] {
    const SUFFIX: char = '6';

    fn from_ip(address: IpAddr) -> Option<Self> {
        match address {
            IpAddr::V4(_) => None,
            IpAddr::V6(address) => Some(words(address)),
        }
    }

    fn to_ip(self) -> IpAddr {
        let mut octets = [0; 16];
        for (bytes, word) in octets.chunks_exact_mut(4).zip(self) {
            bytes.copy_from_slice(&word.to_ne_bytes());
        }
        Ipv6Addr::from(octets).into()
    }
}

/// An IPv6 address in four words, network byte order.
pub fn words(address: Ipv6Addr) -> [u32; 4] {
    let octets = address.octets();
    [0, 4, 8, 12].map(|at| u32::from_ne_bytes([octets[at], octets[at + 1], octets[at + 2], octets[at + 3]]))
}

/// The number of the protocol.
pub const fn number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => TCP,
        Protocol::Udp => UDP,
    }
}

fn endpoint<A: Family>(address: SocketAddr, protocol: Protocol) -> Option<Endpoint<A>> {
    Some(Endpoint::new(A::from_ip(address.ip())?, address.port().to_be(), number(protocol)))
}

fn address<A: Family>(endpoint: &Endpoint<A>) -> SocketAddr {
    SocketAddr::new(endpoint.address.to_ip(), u16::from_be(endpoint.port))
}

/// A run of slots: the first, and how many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Index into the slots.
    pub base: u32,
    /// How many slots; none for a set that is empty.
    pub len: u32,
}

/// A place in `backends`, and what it was given for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackendRef {
    /// Index into `backends`.
    pub id: u32,
    /// See [`bpf_lb_abi::Backend::generation`].
    pub generation: u32,
}

/// What a header says beside the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// See [`Entry`].
    pub entry: Entry,
    /// See [`bpf_lb_abi::Header::service`].
    pub service: u32,
    /// In seconds.
    pub affinity_seconds: u32,
}

/// The maps of a family.
pub struct Tables<A: Family> {
    services: HashMap<MapData, Endpoint<A>, u32>,
    headers: Mapped<Header<A>>,
    slots: Mapped<Slot<A>>,
    header_space: Space,
    slot_space: Space,
}

impl<A: Family> Tables<A>
where
    Endpoint<A>: Pod,
{
    /// Opens the maps that are pinned in `folder`.
    pub fn open(folder: &Path) -> Result<Self, MapsError> {
        let name = |stem: &str| format!("{stem}{}", A::SUFFIX);
        let headers: Mapped<Header<A>> = mapped(folder, &name("headers"))?;
        let slots: Mapped<Slot<A>> = mapped(folder, &name("slots"))?;
        Ok(Self {
            services: HashMap::try_from(pinned(folder, &name("services"))?)
                .map_err(|source| MapsError::new(&name("services"), source))?,
            header_space: Space::new(headers.capacity(), []),
            slot_space: Space::new(slots.capacity(), []),
            headers,
            slots,
        })
    }

    /// All frontends with their headers' places, and marks those and the slots that they lead to as used.
    pub fn read(&mut self) -> Result<Vec<(Frontend, u32, Target)>, MapsError> {
        let mut frontends = Vec::new();
        for element in self.services.iter() {
            let (key, header) = element.map_err(|source| MapsError::new("services", source))?;
            let Some(target) = self.target(header) else { continue };
            let protocol = if key.protocol == UDP { Protocol::Udp } else { Protocol::Tcp };
            frontends.push((Frontend { address: address(&key), protocol }, header, target));
        }
        self.header_space = Space::new(self.headers.capacity(), frontends.iter().map(|(_, header, _)| (*header, 1)));
        let mut runs: Vec<_> =
            frontends.iter().map(|(.., target)| (target.entry.base(), target.entry.count())).collect();
        runs.sort_unstable();
        runs.dedup();
        self.slot_space = Space::new(self.slots.capacity(), runs);
        Ok(frontends)
    }

    fn target(&self, header: u32) -> Option<Target> {
        let header = self.headers.get(header)?;
        Some(Target {
            entry: Entry(header.entry.load()),
            service: header.service.load(),
            affinity_seconds: header.affinity_seconds.load(),
        })
    }

    /// How many connections to a frontend were refused.
    pub fn refused(&self, header: u32) -> u64 {
        self.headers.get(header).map_or(0, |header| header.refused.load())
    }

    /// The backends of a run.
    pub fn backends(&self, run: Run) -> impl Iterator<Item = (SocketAddr, BackendRef)> {
        (0..run.len)
            .filter_map(move |offset| self.slots.get(run.base.checked_add(offset)?))
            .map(|slot| (address(&slot.endpoint), BackendRef { id: slot.backend, generation: slot.generation }))
    }

    /// A place for a new frontend's header.
    pub fn allocate_header(&mut self) -> Option<u32> {
        self.header_space.allocate(1)
    }

    /// Gives back a header's place that was not used.
    pub fn free_header(&mut self, header: u32) {
        self.header_space.free(header, 1);
    }

    /// Places for a run of backends.
    pub fn allocate_run(&mut self, len: u32) -> Option<Run> {
        self.slot_space.allocate(len).map(|base| Run { base, len })
    }

    /// Gives back a run that was not used.
    pub fn free_run(&mut self, run: Run) {
        self.slot_space.free(run.base, run.len);
    }

    /// Gives back a run that programs may still be reading.
    pub fn retire_run(&mut self, run: Run) {
        self.slot_space.retire(run.base, run.len);
    }

    /// Frees what was retired.
    pub fn settle(&mut self) {
        self.header_space.settle();
        self.slot_space.settle();
    }

    /// Writes a slot of a run that no entry names yet.
    pub fn write_slot(&self, index: u32, backend: SocketAddr, protocol: Protocol, known: BackendRef) {
        if let Some(endpoint) = endpoint(backend, protocol) {
            self.slots.put(index, Slot { endpoint, backend: known.id, generation: known.generation, pad: A::PAD });
        }
    }

    /// Lets a new frontend appear.
    pub fn insert(&mut self, frontend: &Frontend, header: u32, target: Target) -> Result<(), MapsError> {
        let Some(key) = endpoint(frontend.address, frontend.protocol) else { return Ok(()) };
        self.headers.put(
            header,
            Header {
                entry: Long::new(target.entry.0),
                refused: Long::new(0),
                key,
                service: Word::new(target.service),
                affinity_seconds: Word::new(target.affinity_seconds),
                pad: A::PAD,
            },
        );
        self.services.insert(key, header, 0).map_err(|source| MapsError::new("services", source))
    }

    /// Changes where a frontend leads. The entry goes last: with it the new backends are seen.
    pub fn lead(&self, header: u32, target: Target) {
        if let Some(header) = self.headers.get(header) {
            header.service.store(target.service);
            header.affinity_seconds.store(target.affinity_seconds);
            header.entry.store(target.entry.0);
        }
    }

    /// Lets a frontend disappear.
    pub fn remove(&mut self, frontend: &Frontend, header: u32) -> Result<(), MapsError> {
        self.lead(header, Target { entry: Entry::NONE, service: NO_SLOT, affinity_seconds: 0 });
        if let Some(key) = endpoint(frontend.address, frontend.protocol) {
            self.services.remove(&key).map_err(|source| MapsError::new("services", source))?;
        }
        self.header_space.retire(header, 1);
        Ok(())
    }
}
