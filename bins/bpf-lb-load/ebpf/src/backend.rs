//! From the address that a process asked for to the backend that it gets.

use core::{hint::cold_path, marker::PhantomData};

use aya_ebpf::{
    bindings::bpf_sock,
    helpers::generated::{bpf_jiffies64, bpf_ktime_get_coarse_ns},
};
use bpf_lb_abi::{
    Affinity, Backend, Client, Config, Endpoint, Entry, Long, NO_SERVICE, NO_SLOT, OTHER_NODE, PROBES, Participation,
    Prefix, REFUSE, Scope, Slot, TCP, Translation, UDP, Word, any_port, node_port, node_port_bit,
};

use crate::{
    atomic::{add, count},
    maps::{AFFINITY, BACKENDS, NAMESPACES, NODE_PORTS, NODES, Tables},
    peer::Socket,
    random::Random,
    setting::setting,
    sock,
    sockaddr::{Inet6, Sockaddr},
};

/// By which frontends are hashed. The loader sets it.
#[unsafe(no_mangle)]
static FRONTEND_KEY: u64 = 0;

/// A Service's address, as it was at one moment.
#[derive(Clone, Copy)]
pub(crate) struct Frontend<A> {
    entry: Entry,
    family: PhantomData<A>,
}

/// The frontend that the hook's address names, if there is one and the socket's network namespace takes part.
#[inline(always)]
pub(crate) fn frontend<A: Tables>(
    config: &'static Config,
    sockaddr: impl Sockaddr,
    wanted: &Endpoint<A>,
) -> Option<Frontend<A>> {
    let entry = match find(config, wanted) {
        Some(entry) => entry,
        None if config.has_nodes.load() == 0 && config.refuse_count.load() == 0 => return None,
        None => {
            cold_path();
            by_address(config, wanted)?
        }
    };
    (!has_expired(config) && takes_part(config, sockaddr)).then_some(Frontend { entry, family: PhantomData })
}

/// The same, called: for programs that few connections run.
#[inline(always)]
pub(crate) fn frontend_called<A: Tables>(
    config: &'static Config,
    sockaddr: Inet6,
    wanted: &Endpoint<A>,
) -> Option<Frontend<A>> {
    let entry = entry(config, sockaddr, wanted);
    entry.is_present().then_some(Frontend { entry, family: PhantomData })
}

#[inline(never)]
fn entry<A: Tables>(config: &'static Config, sockaddr: Inet6, wanted: &Endpoint<A>) -> Entry {
    frontend(config, sockaddr, wanted).map_or(Entry::NONE, |frontend| frontend.entry)
}

/// What is asked by an address alone: a node port, or a port that no Service has on a Service's address.
#[inline(always)]
fn by_address<A: Tables>(config: &'static Config, wanted: &Endpoint<A>) -> Option<Entry> {
    if config.has_nodes.load() != 0 && has_node_port(u16::from_be(wanted.port), wanted.protocol) {
        let entry = on_node(config, wanted);
        if entry.is_present() {
            return Some(entry);
        }
    }
    let is_known = wanted.protocol == TCP || wanted.protocol == UDP;
    let refuses =
        is_known && config.refuse_count.load() != 0 && is_in_cidr(config, wanted) && has_cluster_ip(config, wanted);
    refuses.then_some(Entry::REFUSED)
}

/// Whether some Service has that node port, in host byte order.
#[inline(always)]
pub(crate) fn has_node_port(port: u16, protocol: u16) -> bool {
    let (word, bit) = node_port_bit(port, protocol);
    NODE_PORTS.get(word).is_some_and(|word| word & bit != 0)
}

/// The number of the node that has the address.
#[inline(always)]
pub(crate) fn node_of<A: Tables>(address: &A) -> Option<u32> {
    let node = NODES.get_ptr(A::copy(address).to_ipv6())?;
    // SAFETY: the element stays mapped while the program runs; should it be given to another address meanwhile, then this one
    // has just gone.
    Some(unsafe { (&raw const (*node).number).read_volatile() })
}

/// A node port on the address of any node, or [`Entry::NONE`]. Called, since few addresses get this far.
#[inline(never)]
fn on_node<A: Tables>(config: &Config, wanted: &Endpoint<A>) -> Entry {
    let Some(number) = node_of(&wanted.address) else { return Entry::NONE };
    let entry = entry_on(config, 0, wanted);
    if number == 0 || !entry.is_per_node() {
        return entry;
    }
    let entry = entry_on(config, number, wanted);
    if entry.is_present() { entry } else { Entry::REFUSED }
}

/// A node port on the addresses of the node with that number.
#[inline(never)]
fn entry_on<A: Tables>(config: &Config, number: u32, wanted: &Endpoint<A>) -> Entry {
    entry_of(config, &node_port(number, wanted))
}

/// Whether the address is some Service's.
#[inline(always)]
fn has_cluster_ip<A: Tables>(config: &Config, wanted: &Endpoint<A>) -> bool {
    is_frontend(config, &any_port(A::copy(&wanted.address)))
}

/// Whether some Service has just that address and port.
#[inline(always)]
pub(crate) fn is_frontend<A: Tables>(config: &Config, wanted: &Endpoint<A>) -> bool {
    entry_of(config, wanted).is_present()
}

/// As [`find`], called, for where few get.
#[inline(never)]
fn entry_of<A: Tables>(config: &Config, wanted: &Endpoint<A>) -> Entry {
    find(config, wanted).unwrap_or(Entry::NONE)
}

/// Whether the address is in one of the Service CIDRs.
#[inline(always)]
fn is_in_cidr<A: Tables>(config: &Config, wanted: &Endpoint<A>) -> bool {
    let address = wanted.address.to_ipv6();
    is_in(&config.refuse[0], &address) || config.refuse_count.load() > 1 && is_in_further(config, &address)
}

/// Called, since few clusters have more than one.
#[inline(never)]
fn is_in_further(config: &Config, address: &[u32; 4]) -> bool {
    let [_, second, third, fourth, fifth, sixth, seventh, eighth] = &config.refuse;
    const { assert!(REFUSE == 8) };
    // One after the other, since the verifier lets only programs with CAP_PERFMON add to a pointer what it knows.
    let count = config.refuse_count.load();
    is_in(second, address)
        || count > 2 && is_in_called(third, address)
        || count > 3 && is_in_called(fourth, address)
        || count > 4 && is_in_called(fifth, address)
        || count > 5 && is_in_called(sixth, address)
        || count > 6 && is_in_called(seventh, address)
        || count > 7 && is_in_called(eighth, address)
}

#[inline(never)]
fn is_in_called(prefix: &Prefix, address: &[u32; 4]) -> bool {
    is_in(prefix, address)
}

#[inline(always)]
fn is_in(prefix: &Prefix, address: &[u32; 4]) -> bool {
    let fits = |word: usize| address[word] & prefix.mask[word].load() == prefix.address[word].load();
    fits(3) && fits(2) && fits(1) && fits(0)
}

#[inline(always)]
fn find<A: Tables>(config: &Config, wanted: &Endpoint<A>) -> Option<Entry> {
    let mask = config.frontend_mask::<A>().load();
    let hash = wanted.hash(setting(&FRONTEND_KEY));
    for probe in 0..PROBES {
        let bucket = A::frontends().get((hash + probe) & mask)?;
        for cell in &bucket.cells {
            if cell.key == *wanted {
                let entry = Entry(cell.entry.load());
                if entry.is_present() {
                    return Some(entry);
                }
            }
        }
        // The key would be here if there was room.
        if bucket.cells.iter().any(|cell| cell.key.port == 0) {
            return None;
        }
        cold_path();
    }
    None
}

/// The kernel's tick at which the table was last found not to have expired. The clock moves on with the ticks, if an instant later
/// (`tick_do_update_jiffies64`), and is looked at once in each: so a table is gone by for a tick too long at most.
#[unsafe(no_mangle)]
static GOOD_AT: Long = Long::new(0);

/// Whether the table is too old to go by. To read the tick is a load, where programs are compiled for 64 bits (`do_misc_fixups`,
/// kernel/bpf/verifier.c), and to read the clock a call.
#[inline(always)]
pub(crate) fn has_expired(config: &Config) -> bool {
    // SAFETY: takes no arguments.
    config.expires.load() != 0 && GOOD_AT.load() != unsafe { bpf_jiffies64() } && has_expired_now(config)
}

#[inline(never)]
fn has_expired_now(config: &Config) -> bool {
    // SAFETY: both take no arguments.
    let (tick, now_ns) = unsafe { (bpf_jiffies64(), bpf_ktime_get_coarse_ns()) };
    let has_expired = config.has_expired(now_ns);
    if !has_expired {
        GOOD_AT.store(tick);
    }
    has_expired
}

#[inline(always)]
fn takes_part(config: &Config, sockaddr: impl Sockaddr) -> bool {
    let participation = config.participation.load();
    if participation == Participation::All as u32 {
        return true;
    }
    cold_path();
    let registered = NAMESPACES.get_ptr(netns(sockaddr)).is_some();
    registered == (participation == Participation::Only as u32)
}

#[inline(always)]
pub(crate) fn netns(sockaddr: impl Sockaddr) -> u64 {
    sock::netns_cookie(sockaddr.context(), sockaddr.socket())
}

impl<A: Tables> Frontend<A> {
    /// The backend for a new connection or flow, or nothing if the service has none.
    #[inline(always)]
    pub(crate) fn choose(&self, sockaddr: impl Sockaddr, random: Random) -> Option<&'static Slot<A>> {
        if self.entry.count() == 0 {
            cold_path();
            add(&self.run()?.connections, 1);
            return None;
        }
        if self.entry.has_affinity() {
            cold_path();
            return choose_for_client(*self, netns(sockaddr), random);
        }
        self.choose_anew(random)
    }

    #[inline(always)]
    fn choose_anew(&self, random: Random) -> Option<&'static Slot<A>> {
        let count = self.entry.count();
        if count == 1 {
            return self.slot(0);
        }
        if self.entry.least_connections() {
            cold_path();
            return choose_of_two(*self, random);
        }
        self.slot(below(count, random.number() as u32))
    }

    /// Index into `names`, or [`NO_SERVICE`] if none has the port; and whether there is any backend.
    #[inline(always)]
    pub(crate) fn service(&self) -> (u32, bool) {
        (self.run().map_or(NO_SERVICE, |run| run.backend), self.entry.count() != 0)
    }

    /// The slot that is about all of them.
    #[inline(always)]
    fn run(&self) -> Option<&'static Slot<A>> {
        A::slots().get(self.entry.base())
    }

    #[inline(always)]
    fn slot(&self, index: u32) -> Option<&'static Slot<A>> {
        A::slots().get(self.entry.base() + 1 + index)
    }

    /// Where a remembered backend is now, if it still is one of this frontend's; `node` is that of its clients.
    #[inline(always)]
    fn current(&self, backend: u32, generation: u32, service: u32, node: u16) -> Option<&'static Slot<A>> {
        let known = BACKENDS.get(backend)?;
        if known.generation.load() != generation || known.service.load() != service {
            return None;
        }
        let slot = self.slot_of(known);
        let slot = A::slots().get(if node != 0 { slot & !OTHER_NODE } else { slot })?;
        (slot.backend == backend).then_some(slot)
    }

    #[inline(always)]
    fn slot_of(&self, backend: &Backend) -> u32 {
        // Both are read, since the verifier lets only programs with CAP_PERFMON add to a pointer what it knows.
        let [internal, external] = backend.slots.each_ref().map(Word::load);
        if self.entry.scope() == Scope::External { external } else { internal }
    }

    /// Whether a flow that was translated before may go on to the same backend.
    #[inline(always)]
    pub(crate) fn still_leads_to(&self, translation: &Translation<A>) -> bool {
        let Some(backend) = BACKENDS.get(translation.id & Translation::<A>::ID) else { return false };
        let slot = self.slot_of(backend);
        if backend.generation.load() != translation.generation || slot == NO_SLOT {
            return false;
        }
        // The address may have moved to another service. In this run, the backend is one of this one's; elsewhere it is when
        // the run is being replaced.
        slot.wrapping_sub(self.entry.base() + 1) < self.entry.count()
            || self.run().is_some_and(|run| {
                run.backend == backend.service.load() && (slot & OTHER_NODE == 0 || run.endpoint.port != 0)
            })
    }

    /// Another backend than those that the socket asks already, if the few that are looked at are not all such.
    #[inline(always)]
    pub(crate) fn another(&self, socket: &Socket<A>, random: Random) -> Option<&'static Slot<A>> {
        if self.entry.count() < 2 || self.entry.has_affinity() {
            return None;
        }
        choose_another(*self, socket.cookie, socket.socket, random)
    }

    /// Counts a connection to `slot`, of which its socket remembers what `translate` says.
    #[inline(always)]
    pub(crate) fn count(&self, slot: &Slot<A>) {
        add(&slot.connections, 1);
        if self.entry.least_connections()
            && let Some(backend) = BACKENDS.get(slot.backend)
        {
            count(&backend.open, 1);
        }
    }

    /// What there is to remember of a connection to `slot`.
    #[inline(always)]
    pub(crate) fn translate(&self, wanted: &Endpoint<A>, slot: &Slot<A>) -> Translation<A> {
        let counted = if self.entry.least_connections() { Translation::<A>::COUNTED } else { 0 };
        let id = slot.backend | counted;
        let copy = |of: &Endpoint<A>| Endpoint { address: A::copy(&of.address), port: of.port, protocol: of.protocol };
        Translation { service: copy(wanted), backend: copy(&slot.endpoint), id, generation: slot.generation }
    }
}

// Called, since few connections get there: a program has none of it then but the call.

/// Of two backends the one with fewer connections.
#[inline(never)]
fn choose_of_two<A: Tables>(frontend: Frontend<A>, random: Random) -> Option<&'static Slot<A>> {
    let (count, random) = (frontend.entry.count(), random.number());
    let first = below(count, random as u32);
    // Another one than the first: as many places after it as there are others.
    let second = first + 1 + below(count - 1, (random >> 32) as u32);
    let slot = frontend.slot(first)?;
    let other = frontend.slot(if second < count { second } else { second - count })?;
    let (Some(one), Some(two)) = (BACKENDS.get(slot.backend), BACKENDS.get(other.backend)) else {
        return Some(slot);
    };
    Some(if two.open.load() < one.open.load() { other } else { slot })
}

/// The backend that the client's network namespace used last, if that was not too long ago and it is still there.
#[inline(never)]
fn choose_for_client<A: Tables>(frontend: Frontend<A>, netns: u64, random: Random) -> Option<&'static Slot<A>> {
    let &Slot { backend: service, generation: timeout_seconds, ref endpoint, .. } = frontend.run()?;
    let client = Client { netns, service, family: A::FAMILY as u16, node: endpoint.port };
    // SAFETY: takes no arguments.
    let now = unsafe { bpf_ktime_get_coarse_ns() };
    if let Some(known) = AFFINITY.get_ptr_mut(&client) {
        // SAFETY: the element stays mapped while the program runs. Should it be given to another client meanwhile,
        // then `current` finds a backend of this service all the same, or none.
        let Affinity { backend, generation, last_ns } = unsafe { known.read_volatile() };
        let timeout = u64::from(timeout_seconds) * 1_000_000_000;
        if now.saturating_sub(last_ns) <= timeout
            && let Some(slot) = frontend.current(backend, generation, service, endpoint.port)
        {
            // SAFETY: as above.
            unsafe { (&raw mut (*known).last_ns).write_volatile(now) };
            return Some(slot);
        }
    }
    let slot = frontend.choose_anew(random)?;
    let value = Affinity { backend: slot.backend, generation: slot.generation, last_ns: now };
    // An LRU map makes room by itself; without an entry the next connection chooses anew.
    let _full = AFFINITY.insert(&client, &value, 0);
    Some(slot)
}

/// See [`Frontend::another`].
#[inline(never)]
fn choose_another<A: Tables>(
    frontend: Frontend<A>,
    cookie: u64,
    socket: *mut bpf_sock,
    random: Random,
) -> Option<&'static Slot<A>> {
    let count = frontend.entry.count();
    let first = below(count, random.number() as u32);
    let at = |step: u32| {
        let index = first + step;
        if step >= count {
            return None;
        }
        unasked(frontend, cookie, socket, if index < count { index } else { index - count })
    };
    // Not in a loop: the verifier follows one, for programs without CAP_PERFMON, also where it would have ended.
    at(0)
        .or_else(|| at(1))
        .or_else(|| at(2))
        .or_else(|| at(3))
        .or_else(|| at(4))
        .or_else(|| at(5))
        .or_else(|| at(6))
        .or_else(|| at(7))
}

/// The slot, unless the socket asks its backend.
#[inline(never)]
fn unasked<A: Tables>(
    frontend: Frontend<A>,
    cookie: u64,
    socket: *mut bpf_sock,
    index: u32,
) -> Option<&'static Slot<A>> {
    let socket = Socket::again(cookie, false, socket)?;
    frontend.slot(index).filter(|slot| !socket.asks(&slot.endpoint))
}

/// A number below `count`, from a random one: Lemire's multiplication (arXiv 1805.10941). It favours none by more than one in
/// 2³² / `count`.
#[inline(always)]
fn below(count: u32, random: u32) -> u32 {
    (u64::from(random) * u64::from(count) >> 32) as u32
}
