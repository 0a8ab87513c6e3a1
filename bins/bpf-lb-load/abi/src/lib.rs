//! The layout of the socket load balancer's maps, shared by the programs and by the loader.
//!
//! All addresses and ports are in network byte order, as the kernel hands them to the programs; all else is in the
//! machine's. No type has implicit padding, so every byte of a key is one that was written: see the assertions at the end.
//!
//! How a connection finds its backend:
//!
//! ```text
//! frontends[hash of address, port, protocol] -> Entry -> slots[base + 1 + n] -> the backend's Endpoint
//! ```
//!
//! That is two cache lines, and cache lines are what a connect() costs here: by the time of the next one the rest of the
//! network stack has used the cache up. So the hash table is one of ours, in an array: a bucket is a cache line, and has
//! keys and values side by side. (The kernel's has a line for the bucket, one for the element, and replaces elements
//! instead of changing them.) Maps in arrays can be mapped into memory, so an update takes no system call.
//!
//! A frontend keeps its [`Cell`] until more buckets come into use. What changes is the cell's `entry`, one 64-bit word that names a run of slots.
//! An update writes a run that nobody reads yet and then stores that word, so a program sees all of the old backends or
//! all of the new ones. Cells, slots and backends that were given up are used again only when no program runs any more
//! that could have seen them.

#![no_std]

mod endpoint;
mod sock;
mod trace;
mod word;

pub use endpoint::{
    Address, Endpoint, MAPPED_PREFIX, ON_NODE, TCP, UDP, any_port, is_mapped, mapped, node_port, scramble,
};
pub use sock::{RDONLY_CAST, SockTypes};
pub use trace::{Call, Traced, Verdict};
pub use word::{Byte, Long, Word};

/// Raised whenever a type or the meaning of a field changes: maps with another number are not touched.
pub const LAYOUT: u32 = 9;

/// Which of a service's sets of backends a frontend leads to: an index into [`Backend::slots`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Scope {
    /// ClusterIPs.
    Internal = 0,
    /// External and load balancer addresses, and node ports.
    External = 1,
}

/// What kind of frontend one is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// A ClusterIP.
    ClusterIp = 0,
    /// An external address.
    ExternalIp = 1,
    /// A load balancer's address.
    LoadBalancerIp = 2,
    /// A node port.
    NodePort = 3,
}

impl Kind {
    /// Which set of backends such a frontend leads to.
    pub const fn scope(self) -> Scope {
        match self {
            Self::ClusterIp => Scope::Internal,
            Self::ExternalIp | Self::LoadBalancerIp | Self::NodePort => Scope::External,
        }
    }
}

/// A decoded [`Cell::entry`]: which slots a frontend's connections are spread over, and how.
///
/// All of it in one word, because a program must read it in one load:
/// bits 0 to 31 the slot before the first, 32 to 55 how many there are, 56 the frontend is there, 57 affinity, 58 least connections,
/// 59 and 60 its [`Kind`], 61 a node port is not the same on each node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry(pub u64);

impl Entry {
    /// No frontend.
    pub const NONE: Self = Self(0);
    /// The most backends that a set can have.
    pub const MAX_COUNT: u32 = (1 << 24) - 1;
    const PRESENT: u64 = 1 << 56;
    const AFFINITY: u64 = 1 << 57;
    const LEAST: u64 = 1 << 58;
    const KIND: u32 = 59;
    const PER_NODE: u64 = 1 << 61;
    /// A frontend without backends and without a run that could count what it refuses.
    pub const REFUSED: Self = Self::new(u32::MAX, 0, false, false, Kind::ClusterIp);

    /// An entry for the `count` slots after `base`.
    pub const fn new(base: u32, count: u32, affinity: bool, least_connections: bool, kind: Kind) -> Self {
        let flags = Self::PRESENT | (Self::AFFINITY * affinity as u64) | (Self::LEAST * least_connections as u64);
        Self(base as u64 | (count as u64) << 32 | flags | (kind as u64) << Self::KIND)
    }

    /// Whether the frontend is there at all.
    pub const fn is_present(self) -> bool {
        self.0 & Self::PRESENT != 0
    }

    /// The slot before the first: it is about the whole run, see [`Slot`].
    pub const fn base(self) -> u32 {
        self.0 as u32
    }

    /// How many backends.
    pub const fn count(self) -> u32 {
        (self.0 >> 32) as u32 & Self::MAX_COUNT
    }

    /// Whether a client keeps its backend.
    pub const fn has_affinity(self) -> bool {
        self.0 & Self::AFFINITY != 0
    }

    /// Whether the backend with fewer open connections is taken.
    pub const fn least_connections(self) -> bool {
        self.0 & Self::LEAST != 0
    }

    /// What kind of frontend this is.
    pub const fn kind(self) -> Kind {
        match (self.0 >> Self::KIND) & 3 {
            0 => Kind::ClusterIp,
            1 => Kind::ExternalIp,
            2 => Kind::LoadBalancerIp,
            _ => Kind::NodePort,
        }
    }

    /// The same entry, of a node port that leads on each other node's addresses to that node's backends only.
    pub const fn per_node(self) -> Self {
        Self(self.0 | Self::PER_NODE)
    }

    /// See [`Entry::per_node`].
    pub const fn is_per_node(self) -> bool {
        self.0 & Self::PER_NODE != 0
    }

    /// Which set of backends the frontend leads to.
    pub const fn scope(self) -> Scope {
        self.kind().scope()
    }
}

/// A frontend.
#[derive(Debug)]
#[repr(C)]
pub struct Cell<A: Address> {
    /// The address on which a Service answers. With port 0: a search for what is not in this
    /// bucket ends here.
    pub key: Endpoint<A>,
    /// Zero.
    pub pad: A::Pad,
    /// See [`Entry`]. Not present: the frontend is gone, and the key stays until the cell is used again, or until
    /// nothing is past its bucket any more.
    pub entry: Long,
}

/// How many frontends fit into a bucket.
pub const CELLS: usize = 4;

/// How many buckets, from the one that the hash names, a key can be in. All before that with the key are full.
pub const PROBES: u32 = 8;

/// A place of the hash table, in `frontends4` and `frontends6`. There are as many as frontends are allowed, and in use, as
/// far as there are so many, one and a half for each entry or more: see [`Config::frontend_mask`].
#[derive(Debug)]
#[repr(C)]
pub struct Bucket<A: Address> {
    /// In no order.
    pub cells: [Cell<A>; CELLS],
}

/// A place in a run of backends, in `slots4` and `slots6`. Not changed while an entry names it, but for the count.
///
/// The first place of a run is about the run: there `connections` are those that were refused because there was no
/// backend, `backend` is the service, `generation` the timeout of session affinity in seconds, and `endpoint.port` what
/// [`Client::node`] is.
#[derive(Debug)]
#[repr(C)]
pub struct Slot<A: Address> {
    /// Connections and flows begun. Here, since the programs have this cache line already.
    pub connections: Long,
    /// Where the backend listens.
    pub endpoint: Endpoint<A>,
    /// Index into `backends`.
    pub backend: u32,
    /// That of the backend when the slot was written.
    pub generation: u32,
    /// Zero.
    pub pad: A::Pad,
}

/// In [`Backend::slots`]: the backend is in no such set.
pub const NO_SLOT: u32 = u32::MAX;
/// In [`Backend::slots`], beside the slot: the backend is in another node's set alone. No map has so many slots.
pub const OTHER_NODE: u32 = 1 << 31;

/// A backend of one service, in `backends`.
#[derive(Debug)]
#[repr(C)]
pub struct Backend {
    /// Sockets of this node that are translated to it. Counted for services with least connections only.
    pub open: Word,
    /// By [`Scope`]: the slot in which the backend is found now, or [`NO_SLOT`].
    pub slots: [Word; 2],
    /// Another one when the place is given to another backend, so that what remembers the old one can tell. Contains
    /// [`Backend::LOCAL`], since nothing else about a backend is not in its slot.
    pub generation: Word,
    /// Index into `names`, or [`NO_SERVICE`].
    pub service: Word,
    /// For the loader alone: where it listens. IPv4 addresses are IPv4-mapped.
    pub endpoint: Endpoint<[u32; 4]>,
}

/// In [`Backend::service`]: it is no service's any more.
pub const NO_SERVICE: u32 = u32::MAX;

impl Backend {
    /// In [`Backend::generation`]: the backend is on this node.
    pub const LOCAL: u32 = 1;
}

/// What a socket was translated from, and to. Its first one is in `peers4` or `peers6`, at the place that the low bits of its
/// cookie name; and at the same place in `owners4` or `owners6` is the cookie of the socket that has the place, or 0.
///
/// A place belongs to a socket from its first translation until it is released; who finds it taken uses [`Overflow`].
/// Cookies are unique as long as the kernel runs, so no socket is taken for another, and nothing is evicted. The owners are
/// by themselves, since each new socket has to look: so eight of them share a cache line.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Translation<A> {
    /// What the process asked for.
    pub service: Endpoint<A>,
    /// What it got.
    pub backend: Endpoint<A>,
    /// Index into `backends`, and the flags below.
    pub id: u32,
    /// That of the backend at that time.
    pub generation: u32,
}

impl<A> Translation<A> {
    /// In [`Translation::id`]: the socket is counted in [`Backend::open`].
    pub const COUNTED: u32 = 1 << 31;
    /// In [`Translation::id`]: datagrams were sent to the Service; without, the socket was connected to it.
    pub const FLOW: u32 = 1 << 30;
    /// In [`Translation::id`]: since then the socket has asked the same backend by another name, and that one answers.
    pub const HIDDEN: u32 = 1 << 29;
    /// In [`Translation::id`]: the index.
    pub const ID: u32 = Self::HIDDEN - 1;
}

/// How many flows [`Overflow`] holds, a power of two.
pub const FLOWS: usize = 16;

/// A socket's further translations, in socket-local storage; IPv4 addresses are IPv4-mapped here. Those with a zero
/// `service.port` are free.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Overflow {
    /// The connection's, if the socket's place in `peers4` or `peers6` is another socket's.
    pub connection: Translation<[u32; 4]>,
    /// That of the connection before it in the other family: the kernel may have refused the last one.
    pub before: Translation<[u32; 4]>,
    /// Those of an unconnected socket.
    pub flows: [Translation<[u32; 4]>; FLOWS],
    /// Of a Multipath TCP socket, the cookie of the subflow that was connected by `connection`.
    pub subflow: u64,
}

/// Who keeps to a backend, in `affinity`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Client {
    /// The cookie of the client's network namespace: the pod.
    pub netns: u64,
    /// Index into `names`.
    pub service: u32,
    /// [`Address::FAMILY`]: the backends of the two families are different ones.
    pub family: u16,
    /// Of a node port that leads to one other node's backends, the low bits of that node's number; else 0.
    pub node: u16,
}

/// The backend it keeps to.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Affinity {
    /// Index into `backends`.
    pub backend: u32,
    /// That of the backend at that time.
    pub generation: u32,
    /// When it last connected, by `CLOCK_MONOTONIC_COARSE`, in ns.
    pub last_ns: u64,
}

/// Which network namespaces take part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Participation {
    /// All of them.
    All = 0,
    /// All but those in `namespaces`.
    AllBut = 1,
    /// Only those in `namespaces`.
    Only = 2,
}

/// The addresses of a Service CIDR.
#[derive(Debug)]
#[repr(C)]
pub struct Prefix {
    /// IPv4 addresses are IPv4-mapped, network byte order.
    pub address: [Word; 4],
    /// Ones where an address of the CIDR has the bits of `address`.
    pub mask: [Word; 4],
}

/// How many Service CIDRs [`Config::refuse`] holds.
pub const REFUSE: usize = 8;

/// How long a node's name can be.
pub const NODE_NAME_LEN: usize = 256;

/// Whose an address is, in `nodes`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Node {
    /// 0 is this node. See [`node_port`].
    pub number: u32,
    /// For the loader alone: the name of another node, filled up with zeros.
    pub name: [u8; NODE_NAME_LEN],
}

/// The one element of `config`.
#[derive(Debug)]
#[repr(C)]
pub struct Config {
    /// [`LAYOUT`] of whoever made the maps.
    pub layout: Word,
    /// [`Participation`].
    pub participation: Word,
    /// 1 as soon as any socket uses [`Overflow`]: until then nobody has to look there.
    pub overflowed: Byte,
    /// 1 as soon as any IPv6 socket that has a place of the one family was connected to an address of the other: it may be an IPv4
    /// socket at its end (IPV6_ADDRFORM in ipv6(7)), and hold a place of each.
    pub changed_family: Byte,
    /// Zero.
    pub pad: [u8; 2],
    /// 1 if `nodes` holds anything: until then nobody has to look there.
    pub has_nodes: Word,
    /// How many of `refuse` are in use.
    pub refuse_count: Word,
    /// See [`Config::has_expired`]: in seconds of `CLOCK_MONOTONIC`, or 0 for never.
    pub expires: Word,
    /// See [`Config::frontend_mask`].
    pub frontend_masks: [Word; 2],
    /// In these CIDRs, what no frontend has is refused on an address that has a frontend [`any_port`].
    pub refuse: [Prefix; REFUSE],
    /// The cookie of the node's own network namespace: nobody may bind a node port there.
    pub node_netns: Long,
    /// The key of [`Endpoint::hash`], a random number. The programs have it from the loader.
    pub hash_key: Long,
}

impl Config {
    /// Whether the table is too old to go by: nobody has renewed it for as long as it was good for. It is as one without frontends
    /// then, and what was translated before is known as before. `now_ns` is the time of `CLOCK_MONOTONIC`.
    #[inline(always)]
    pub fn has_expired(&self, now_ns: u64) -> bool {
        let expires = self.expires.load();
        expires != 0 && now_ns >= u64::from(expires) * 1_000_000_000
    }

    /// One less than the number of buckets in use of the family's frontends, a power of two. It grows with the frontends: spread over
    /// all that there is room for, each connect() would find its own in a page that is in no cache of translations (TLB).
    #[inline(always)]
    pub fn frontend_mask<A: Address>(&self) -> &Word {
        let [four, six] = &self.frontend_masks;
        if A::FAMILY == <u32 as Address>::FAMILY { four } else { six }
    }
}

/// How many words `node_ports` has: a bit for each port of TCP, then one for each port of UDP.
pub const NODE_PORT_WORDS: u32 = 2 * 65536 / 64;

/// The word and the bit of a node port in `node_ports`. `port` is in host byte order.
pub const fn node_port_bit(port: u16, protocol: u16) -> (u32, u64) {
    let bit = port as u32 + if protocol == UDP { 65536 } else { 0 };
    (bit / 64, 1 << (bit % 64))
}

/// How long a service's name can be: namespace, name and port name (63 each, but 141 together) and what stands between.
pub const NAME_LEN: usize = 144;

/// What the programs do not need, but `show` does, in `names`, by service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Name {
    /// 1, namespace, 0, name, 0 and port name, filled up with zeros. All zero: there is no such service.
    pub name: [u8; NAME_LEN],
    /// The service's port, host byte order.
    pub port: u16,
    /// The node port, host byte order, or 0.
    pub node_port: u16,
    /// `IPPROTO_TCP` or `IPPROTO_UDP`.
    pub protocol: u16,
    /// [`Name::INTERNAL_LOCAL`] and its like.
    pub flags: u16,
    /// Seconds, or 0.
    pub affinity_seconds: u32,
    /// When the service was created, in seconds since 1970; the greatest number if nobody knows.
    pub created: u32,
}

impl Name {
    /// The internal traffic policy is `Local`.
    pub const INTERNAL_LOCAL: u16 = 1;
    /// The external traffic policy is `Local`.
    pub const EXTERNAL_LOCAL: u16 = 2;
    /// The algorithm is least connections.
    pub const LEAST: u16 = 4;
}

const _: () = {
    assert!(size_of::<Endpoint<u32>>() == 8 && size_of::<Endpoint<[u32; 4]>>() == 20);
    assert!(size_of::<Bucket<u32>>() == 64 && size_of::<Bucket<[u32; 4]>>() == 128);
    assert!(size_of::<Slot<u32>>() == 24 && size_of::<Slot<[u32; 4]>>() == 40);
    assert!(size_of::<Backend>() == 40);
    assert!(size_of::<Translation<u32>>() == 24 && size_of::<Translation<[u32; 4]>>() == 48);
    assert!(size_of::<Overflow>() == 48 * (2 + FLOWS) + 8 && FLOWS.is_power_of_two());
    assert!(size_of::<Node>() == 4 + NODE_NAME_LEN);
    assert!(size_of::<Client>() == 16 && size_of::<Affinity>() == 16);
    assert!(size_of::<Config>() == 32 + 32 * REFUSE + 16);
    assert!(size_of::<Name>() == NAME_LEN + 16);
    assert!(size_of::<SockTypes>() == 24);
};

#[cfg(test)]
mod tests {
    use core::array::from_fn;

    use super::{Address, Byte, Config, Endpoint, Long, Prefix, TCP, Word, scramble};

    #[test]
    fn a_table_expires_when_its_second_begins_or_never() {
        let expires = |second| Config {
            layout: Word::new(0),
            participation: Word::new(0),
            overflowed: Byte::new(0),
            changed_family: Byte::new(0),
            pad: [0; 2],
            has_nodes: Word::new(0),
            refuse_count: Word::new(0),
            expires: Word::new(second),
            frontend_masks: from_fn(|_| Word::new(0)),
            refuse: from_fn(|_| Prefix { address: from_fn(|_| Word::new(0)), mask: from_fn(|_| Word::new(0)) }),
            node_netns: Long::new(0),
            hash_key: Long::new(0),
        };
        assert!(!expires(7).has_expired(6_999_999_999));
        assert!(expires(7).has_expired(7_000_000_000));
        assert!(!expires(u32::MAX).has_expired(4_000_000_000_000_000_000));
        assert!(!expires(0).has_expired(u64::MAX));
    }

    /// How far the numbers of times that each of `N` was drawn are from what chance makes of them, in its standard deviations
    /// (Pearson's chi-squared test).
    fn deviation<const N: usize>(draws: u32, draw: impl Fn(u64) -> u32) -> f64 {
        let mut counts = [0_u32; N];
        for word in 0..u64::from(draws) {
            counts[((u64::from(draw(word)) * N as u64) >> 32) as usize] += 1;
        }
        let expected = f64::from(draws) / N as f64;
        let chi_squared: f64 = counts.iter().map(|count| (f64::from(*count) - expected).powi(2) / expected).sum();
        let freedom = (N - 1) as f64;
        (chi_squared - freedom).abs() / (2.0 * freedom).sqrt()
    }

    /// Of what has one bucket by one key, no more than chance makes have one by another.
    fn are_spread_by_another_key<A: Address>(endpoints: impl Fn(u64) -> Endpoint<A>) {
        for key in [0, 1, 0x1234_5678_9abc_def0, u64::MAX] {
            let bucket = |number, key| endpoints(number).hash(key) as usize % 1024;
            let chosen = || (1..65_536).filter(|number| bucket(*number, key) == 7);
            assert!(chosen().count() > 32, "not enough to fill what can be looked into");
            for other in [key ^ 1, key ^ 1 << 32, key ^ 1 << 63, scramble(key ^ 5)] {
                let mut counts = [0_u32; 1024];
                chosen().for_each(|number| counts[bucket(number, other)] += 1);
                assert!(counts.iter().all(|count| *count <= 5), "{key:x}, {other:x}");
            }
        }
    }

    #[test]
    fn ports_that_share_a_bucket_by_one_key_are_spread_by_another() {
        let port = |number: u64| (number as u16).to_be();
        let address = u32::from_ne_bytes([10, 96, 0, 1]);
        are_spread_by_another_key(|number| Endpoint { address, port: port(number), protocol: TCP });
        are_spread_by_another_key(|number| Endpoint { address: [0xfd, 0, 0, 1], port: port(number), protocol: TCP });
    }

    #[test]
    fn addresses_of_several_prefixes_that_share_a_bucket_by_one_key_are_spread_by_another() {
        let address =
            |number: u64| [0xb80d_0120, number as u32, scramble(number) as u32, (scramble(number) >> 32) as u32];
        are_spread_by_another_key(|number| Endpoint { address: address(number), port: 80, protocol: TCP });
        // The second half makes up for the first by one key.
        let made_up = |number: u64| {
            let high = 0xb80d_0120 << 32 | number;
            let low = scramble(high);
            Endpoint { address: [high >> 32, number, low >> 32, low].map(|word| word as u32), port: 80, protocol: TCP }
        };
        assert!((0..1024).all(|number| made_up(number).hash(0) == made_up(0).hash(0)));
        let mut counts = [0_u32; 1024];
        (0..1024).for_each(|number| counts[made_up(number).hash(1) as usize % 1024] += 1);
        assert!(counts.iter().all(|count| *count <= 8), "{counts:?}");
    }

    #[test]
    fn numbers_of_sockets_that_follow_each_other_are_spread_as_chance_would() {
        // All sockets, each second one, those of one CPU after those of another; on nodes of several seeds.
        for step in [1, 2, 3, 10, 256, 4096] {
            for seed in [0, 1, 0x8000_0000, 0xdead_beef] {
                let number = |word| scramble((word * step) ^ (seed << 32));
                for (half, of) in [("lower", 0), ("upper", 32)] {
                    let draw = |word| (number(word) >> of) as u32;
                    let deviations = [
                        deviation::<2>(20_000, draw),
                        deviation::<3>(20_000, draw),
                        deviation::<10>(20_000, draw),
                        deviation::<1000>(100_000, draw),
                    ];
                    assert!(deviations.iter().all(|it| *it < 5.0), "step {step}, seed {seed}, {half}: {deviations:?}");
                }
                // The second of two draws does not depend on the first, nor the next socket's on this one's.
                let both = |word| number(word) as u32 >> 31 << 31 | (number(word) >> 33) as u32;
                let next = |word| number(word) as u32 >> 31 << 31 | number(word + 1) as u32 >> 1;
                let deviations = [deviation::<16>(20_000, both), deviation::<16>(20_000, next)];
                assert!(deviations.iter().all(|it| *it < 5.0), "step {step}, seed {seed}: {deviations:?}");
            }
        }
    }
}

#[cfg(feature = "user")]
mod pod {
    #![expect(unsafe_code, reason = "aya takes only types that are marked as plain data")]

    use aya::Pod;

    use super::{Affinity, Client, Node, SockTypes};

    // SAFETY: `repr(C)`, `Copy`, valid for any bytes, and without padding by the assertions above.
    unsafe impl Pod for Client {}
    // SAFETY: as above.
    unsafe impl Pod for Affinity {}
    // SAFETY: as above.
    unsafe impl Pod for Node {}
    // SAFETY: as above.
    unsafe impl Pod for SockTypes {}
}
