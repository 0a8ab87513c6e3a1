//! The maps of one address family: its frontends and its runs of backends.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    ops::ControlFlow,
    path::Path,
};

use bpf_lb_abi::{Address, Cell, Config, Endpoint, Entry, Long, ON_NODE, PROBES, Slot, TCP, UDP, any_port, node_port};
use service_table::Protocol;

use crate::{
    buckets::{Buckets, CELLS_PER_BUCKET, cells_of, enough_buckets, look},
    grace::Limbo,
    maps::{MapsError, mapped},
    space::Space,
    spec::Frontend,
    sys::Mapped,
};

/// An address as the maps hold it, and as the table does.
pub trait Family: Address {
    /// What the names of the family's maps end with.
    const SUFFIX: char;
    /// The address that means none.
    const UNSPECIFIED: IpAddr;
    /// Nothing if it is of the other family.
    fn from_ip(address: IpAddr) -> Option<Self>;
    /// The inverse of [`Family::from_ip`].
    fn to_ip(self) -> IpAddr;
}

impl Family for u32 {
    const SUFFIX: char = '4';
    const UNSPECIFIED: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

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
    const UNSPECIFIED: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);

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
fn words(address: Ipv6Addr) -> [u32; 4] {
    let octets = address.octets();
    [0, 4, 8, 12].map(|at| u32::from_ne_bytes([octets[at], octets[at + 1], octets[at + 2], octets[at + 3]]))
}

/// An address of either family as an IPv6 socket sees it, in four words, network byte order.
pub fn mapped_words(address: IpAddr) -> [u32; 4] {
    words(match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    })
}

/// The inverse of [`number`].
pub const fn protocol(number: u16) -> Protocol {
    if number == UDP { Protocol::Udp } else { Protocol::Tcp }
}

/// The number of the protocol.
pub const fn number(protocol: Protocol) -> u16 {
    match protocol {
        Protocol::Tcp => TCP,
        Protocol::Udp => UDP,
    }
}

fn endpoint<A: Family>(address: SocketAddr, protocol: Protocol) -> Option<Endpoint<A>> {
    Some(Endpoint { address: A::from_ip(address.ip())?, port: address.port().to_be(), protocol: number(protocol) })
}

/// An address and port as the table has it.
pub fn address<A: Family>(endpoint: &Endpoint<A>) -> SocketAddr {
    SocketAddr::new(endpoint.address.to_ip(), u16::from_be(endpoint.port))
}

/// The same as people know it: an IPv4-mapped address as IPv4.
pub fn canonical<A: Family>(endpoint: &Endpoint<A>) -> SocketAddr {
    SocketAddr::new(endpoint.address.to_ip().to_canonical(), u16::from_be(endpoint.port))
}

/// The key by which the programs find a frontend. Nothing if it is of the other family.
pub fn key<A: Family>(frontend: &Frontend) -> Option<Endpoint<A>> {
    let endpoint = endpoint(frontend.address, frontend.protocol)?;
    Some(frontend.node.map_or(endpoint, |node| node_port(node, &endpoint)))
}

/// The inverse of [`key`].
fn frontend<A: Family>(key: &Endpoint<A>) -> Frontend {
    let protocol = protocol(key.protocol & !ON_NODE);
    if key.protocol & ON_NODE == 0 {
        return Frontend::new(address(key), protocol);
    }
    Frontend::on_node(key.address.node(), A::UNSPECIFIED.is_ipv6(), u16::from_be(key.port), protocol)
}

/// A run of slots: one that is about the run, and one for each backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Run {
    /// Index of the first slot.
    pub base: u32,
    /// How many backends.
    pub count: u32,
}

impl Run {
    /// The run to which an entry leads.
    pub const fn of(entry: Entry) -> Self {
        Self { base: entry.base(), count: entry.count() }
    }

    /// The slot of the backend at `index`.
    pub const fn slot(self, index: u32) -> u32 {
        self.base + 1 + index
    }
}

/// A place in `backends`, and what it was given for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackendRef {
    /// Index into `backends`.
    pub id: u32,
    /// See [`bpf_lb_abi::Backend::generation`].
    pub generation: u32,
}

/// What a run's first slot says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct About {
    /// Index into `names`.
    pub service: u32,
    /// The timeout of session affinity.
    pub affinity_seconds: u32,
}

/// A counter that has moved: what is counted in the old place after it was copied still has to follow.
#[derive(Debug)]
struct Moved {
    from: u32,
    to: u32,
    copied: u64,
}

/// The maps of a family.
#[derive(Debug)]
pub struct Tables<A: Family> {
    config: Mapped<Config>,
    cells: Mapped<Cell<A>>,
    taken: Vec<bool>,
    /// How many are in use: of those that are taken, some wait to be given back, or to be used.
    in_use: u32,
    /// Cells of frontends that programs find in another one: a writer is spreading them, or was killed while it did.
    left: Vec<u32>,
    /// Programs may have found the frontend that was here, and not yet read where it leads.
    retired_cells: Limbo<u32>,
    slots: Mapped<Slot<A>>,
    slot_space: Space,
    moved: Limbo<Moved>,
}

/// What is in the frontends of a family.
#[derive(Debug, Default)]
pub struct Found {
    /// Each with its cell.
    pub frontends: Vec<(Frontend, u32, Entry)>,
    /// The addresses that have an entry for any port, and its cells.
    pub wildcards: Vec<(IpAddr, u32)>,
}

impl<A: Family> Tables<A> {
    /// Opens the maps that are pinned in `folder`.
    pub fn open(folder: &Path) -> Result<Self, MapsError> {
        let name = |stem: &str| format!("{stem}{}", A::SUFFIX);
        let cells: Mapped<Cell<A>> = mapped(folder, &name("frontends"))?;
        let slots: Mapped<Slot<A>> = mapped(folder, &name("slots"))?;
        Ok(Self {
            config: mapped(folder, "config")?,
            taken: vec![false; cells.capacity() as usize],
            in_use: 0,
            left: Vec::new(),
            retired_cells: Limbo::default(),
            slot_space: Space::new(slots.capacity(), []),
            cells,
            slots,
            moved: Limbo::default(),
        })
    }

    /// What there is, and marks its cells and the slots that they lead to as taken.
    pub fn read(&mut self) -> Found {
        let found = loop {
            let before = Buckets::of::<A>(&self.config);
            let found = self.read_cells();
            // Who holds no lock may have missed what a writer has moved meanwhile.
            if before == Buckets::of::<A>(&self.config) {
                break found;
            }
        };
        let mut runs: Vec<_> = found.frontends.iter().map(|(.., entry)| (entry.base(), entry.count() + 1)).collect();
        runs.sort_unstable();
        runs.dedup();
        self.slot_space = Space::new(self.slots.capacity(), runs);
        found
    }

    fn read_cells(&mut self) -> Found {
        let mut found = Found::default();
        self.in_use = 0;
        self.left.clear();
        for cell in 0..self.cells.capacity() {
            let present = self.present(cell);
            self.set_taken(cell, present.is_some());
            let Some((key, entry)) = present else { continue };
            self.in_use += 1;
            if self.find(&key) != Some(cell) {
                self.left.push(cell);
            } else if key.protocol == 0 {
                found.wildcards.push((key.address.to_ip(), cell));
            } else {
                found.frontends.push((frontend(&key), cell, entry));
            }
        }
        found
    }

    fn present(&self, cell: u32) -> Option<(Endpoint<A>, Entry)> {
        let found = self.cells.get(cell)?;
        let entry = Entry(found.entry.load());
        entry.is_present().then_some((found.key, entry))
    }

    /// The cell in which programs find a frontend.
    fn find(&self, wanted: &Endpoint<A>) -> Option<u32> {
        let mut buckets = Buckets::of::<A>(&self.config).cells(wanted);
        match buckets.try_for_each(|bucket| look(&self.cells, bucket, wanted)) {
            ControlFlow::Break(found) => found.map(|(cell, _)| cell),
            ControlFlow::Continue(()) => None,
        }
    }

    /// The buckets that are to be in use with so many `more` entries, if they are more than now.
    pub fn wanted(&self, more: u32) -> Option<Buckets> {
        let now = Buckets::of::<A>(&self.config);
        let wanted = enough_buckets(self.in_use.saturating_add(more)).checked_next_power_of_two();
        let next = now.with(wanted.unwrap_or(u32::MAX).min(self.cells.capacity() / CELLS_PER_BUCKET));
        (next.mask > now.mask).then_some(next)
    }

    /// Puts the buckets `next` into use, which are more than now. An entry that has another place among them is copied there. Returns the
    /// new cell of each by its old one, which may be removed once all programs that run now have ended.
    pub fn spread(&mut self, next: Buckets) -> HashMap<u32, u32> {
        let Some(moves) = self.copy(Buckets::of::<A>(&self.config), next) else { return HashMap::new() };
        if let Some(config) = self.config.get(0) {
            config.frontend_mask::<A>().store(next.mask);
        }
        moves
    }

    /// Copies the entries that have another place in the buckets `next`. Nothing, and no copy, if there is no room for one.
    fn copy(&mut self, now: Buckets, next: Buckets) -> Option<HashMap<u32, u32>> {
        let cells = 0..(now.mask + 1) * CELLS_PER_BUCKET;
        let present: Vec<_> = cells.filter_map(|cell| Some((cell, self.present(cell)?))).collect();
        let mut moves = HashMap::new();
        for (cell, (key, entry)) in present {
            if next.keep(now, &key, cell / CELLS_PER_BUCKET) {
                continue;
            }
            let Some(place) = self.allocate(&key, next) else {
                moves.into_values().for_each(|cell| self.remove(cell));
                return None;
            };
            self.put(&key, place, entry);
            moves.insert(cell, place);
        }
        Some(moves)
    }

    /// Tidies up what a writer has left that was killed, when no program runs any more that ran then.
    pub fn recover(&mut self) {
        for cell in std::mem::take(&mut self.left) {
            self.remove(cell);
        }
        self.reopen_all();
    }

    /// Gives an address an entry for any port that no frontend has, by which it is refused. Nothing if there is no room.
    pub fn insert_wildcard(&mut self, address: IpAddr) -> Option<u32> {
        let key = any_port(A::from_ip(address)?);
        let cell = self.allocate(&key, Buckets::of::<A>(&self.config))?;
        self.put(&key, cell, Entry::REFUSED);
        Some(cell)
    }

    /// What a run's first slot says, and how many connections it refused.
    pub fn about(&self, run: Run) -> Option<(About, u64)> {
        let slot = self.slots.get(run.base)?;
        Some((About { service: slot.backend, affinity_seconds: slot.generation }, slot.connections.load()))
    }

    /// The backends of a run, and how many connections each got.
    pub fn backends(&self, run: Run) -> impl Iterator<Item = (SocketAddr, BackendRef, u64)> {
        (0..run.count).filter_map(move |index| self.slots.get(run.slot(index))).map(|slot| {
            let backend = BackendRef { id: slot.backend, generation: slot.generation };
            (address(&slot.endpoint), backend, slot.connections.load())
        })
    }

    /// All connections that a run refused or led to its backends.
    pub fn sum(&self, run: Run) -> u64 {
        (run.base..=run.base + run.count)
            .filter_map(|slot| self.slots.get(slot))
            .map(|slot| slot.connections.load())
            .sum()
    }

    /// A cell for a new frontend: one of the first bucket, of those that programs look into, that has any left.
    pub fn allocate_cell(&mut self, frontend: &Frontend) -> Option<u32> {
        self.allocate(&key(frontend)?, Buckets::of::<A>(&self.config))
    }

    fn allocate(&mut self, key: &Endpoint<A>, buckets: Buckets) -> Option<u32> {
        let mut cells = buckets.cells(key).flatten();
        let cell = cells.find(|cell| !self.is_taken(*cell))?;
        self.set_taken(cell, true);
        Some(cell)
    }

    fn is_taken(&self, cell: u32) -> bool {
        self.taken.get(cell as usize) != Some(&false)
    }

    fn set_taken(&mut self, cell: u32, taken: bool) {
        if let Some(place) = self.taken.get_mut(cell as usize) {
            *place = taken;
        }
    }

    /// Gives back a cell that was not used.
    pub fn free_cell(&mut self, cell: u32) {
        self.set_taken(cell, false);
    }

    /// Places for a run of `count` backends.
    pub fn allocate_run(&mut self, count: u32) -> Option<Run> {
        self.slot_space.allocate(count + 1).map(|base| Run { base, count })
    }

    /// Gives back a run that was not used.
    pub fn free_run(&mut self, run: Run) {
        self.slot_space.free(run.base, run.count + 1);
    }

    /// Gives back a run that programs may still be reading.
    pub fn retire_run(&mut self, run: Run) {
        self.slot_space.retire(run.base, run.count + 1);
    }

    /// See [`Limbo::needs_wait`].
    pub const fn needs_wait(&self) -> bool {
        self.slot_space.needs_wait() || self.retired_cells.needs_wait()
    }

    /// See [`Limbo::wait_begins`].
    pub fn wait_begins(&mut self) {
        self.slot_space.wait_begins();
        self.moved.wait_begins();
        self.retired_cells.wait_begins();
    }

    /// Frees what was retired before the wait began.
    pub fn wait_ends(&mut self) {
        for Moved { from, to, copied } in self.moved.wait_ends() {
            let late = self.slots.get(from).map_or(0, |from| from.connections.load() - copied);
            if late > 0
                && let Some(to) = self.slots.get(to)
            {
                to.connections.add(late);
            }
        }
        self.slot_space.wait_ends();
        let mut has_moved = false;
        for cell in self.retired_cells.wait_ends() {
            self.set_taken(cell, false);
            has_moved |= !self.reopen_before(cell);
        }
        if has_moved {
            self.reopen_all();
        }
    }

    /// Writes the first slot of a run that no entry names yet, with the [`bpf_lb_abi::Client::node`] of its clients. The count
    /// goes on from that of `old`.
    pub fn write_about(&mut self, run: Run, about: About, node: u16, old: Option<Run>) {
        let nowhere = SocketAddr::new(A::UNSPECIFIED, node);
        let backend = BackendRef { id: about.service, generation: about.affinity_seconds };
        self.write_slot(run.base, nowhere, Protocol::Tcp, backend, old.map(|old| old.base));
    }

    /// Writes a slot of a run that no entry names yet. The count goes on from that of the slot `old`.
    pub fn write_slot(&mut self, slot: u32, to: SocketAddr, protocol: Protocol, backend: BackendRef, old: Option<u32>) {
        let Some(endpoint) = endpoint(to, protocol) else { return };
        let copied = old.and_then(|old| self.slots.get(old)).map_or(0, |old| old.connections.load());
        self.slots.put(
            slot,
            Slot {
                connections: Long::new(copied),
                endpoint,
                backend: backend.id,
                generation: backend.generation,
                pad: A::PAD,
            },
        );
        if let Some(from) = old {
            self.moved.push(Moved { from, to: slot, copied });
        }
    }

    /// Lets a new frontend appear.
    pub fn insert(&mut self, frontend: &Frontend, cell: u32, entry: Entry) {
        if let Some(key) = key(frontend) {
            self.put(&key, cell, entry);
        }
    }

    fn put(&mut self, key: &Endpoint<A>, cell: u32, entry: Entry) {
        // Whoever sees the key, or half of it, and not yet the entry, goes on as if neither was there.
        self.cells.put(cell, Cell { key: *key, pad: A::PAD, entry: Long::new(Entry::NONE.0) });
        self.lead(cell, entry);
        self.in_use += 1;
    }

    /// Changes where a frontend leads.
    pub fn lead(&self, cell: u32, entry: Entry) {
        if let Some(place) = self.cells.get(cell) {
            place.entry.store(entry.0);
        }
    }

    /// Lets a frontend disappear. The key stays, since others may have gone past it to the next bucket: see [`Self::reopen`].
    pub fn remove(&mut self, cell: u32) {
        self.lead(cell, Entry::NONE);
        self.retired_cells.push(cell);
        self.in_use -= 1;
    }

    /// Reopens the buckets into which programs looked for an entry that is gone. Says whether they did: not for one that was copied from
    /// there when more buckets came into use.
    fn reopen_before(&self, cell: u32) -> bool {
        let buckets = Buckets::of::<A>(&self.config);
        let bucket = cell / CELLS_PER_BUCKET;
        let Some(steps) = self.cells.get(cell).and_then(|gone| buckets.steps(&gone.key, bucket)) else { return false };
        (0..=steps).for_each(|steps| self.reopen(buckets.after(bucket, steps.wrapping_neg()), buckets));
        true
    }

    fn reopen_all(&self) {
        let buckets = Buckets::of::<A>(&self.config);
        (0..=buckets.mask).for_each(|bucket| self.reopen(bucket, buckets));
    }

    /// Lets programs end their search at a bucket again that is full of what is gone, if nothing is past it any more. Else it would stay as
    /// it was when it was full once, and what is no Service's be looked for further and further as Services come and go. No program may run
    /// any more that goes by other `buckets`.
    fn reopen(&self, bucket: u32, buckets: Buckets) {
        if !self.is_full(bucket) || self.is_passed(bucket, buckets) {
            return;
        }
        for cell in cells_of(bucket).filter(|cell| !self.is_taken(*cell)) {
            // Programs may read it meanwhile: it has no entry before and after, and a key of which half is written ends a search at most.
            let key = Endpoint { address: A::of_node(0), port: 0, protocol: 0 };
            self.cells.put(cell, Cell { key, pad: A::PAD, entry: Long::new(Entry::NONE.0) });
        }
    }

    /// Whether programs look on after that bucket for what is not there.
    fn is_full(&self, bucket: u32) -> bool {
        cells_of(bucket).filter_map(|cell| self.cells.get(cell)).all(|cell| cell.key.port != 0)
    }

    /// Whether any frontend is in a bucket after that one, and programs look into that one before.
    fn is_passed(&self, bucket: u32, buckets: Buckets) -> bool {
        (1..PROBES.min(buckets.mask.saturating_add(1))).any(|step| {
            let further = buckets.after(bucket, step);
            let taken = cells_of(further).filter(|cell| self.is_taken(*cell)).filter_map(|cell| self.cells.get(cell));
            taken.map(|cell| buckets.steps(&cell.key, further)).any(|steps| steps.is_some_and(|steps| steps >= step))
        })
    }
}
