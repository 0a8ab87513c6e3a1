//! Addresses and ports as the programs have them, and the keys that are made of them.

/// An address family: `u32` is IPv4, `[u32; 4]` is IPv6, both in network byte order.
pub trait Address: Copy + Eq {
    /// What fills a structure up to a multiple of eight bytes.
    type Pad: Copy + core::fmt::Debug;
    /// `AF_INET` or `AF_INET6`.
    const FAMILY: u32;
    /// The address in 64 bits. Which addresses have the same ones depends on `key`.
    fn fold(self, key: u64) -> u64;
    /// Whether the two are the same. (For an array, `==` is a call of `memcmp`.)
    fn is(self, other: Self) -> bool;
    /// The value of [`Address::Pad`].
    const PAD: Self::Pad;
    /// A node's number in the place of an address: see [`node_port`].
    fn of_node(number: u32) -> Self;
    /// The inverse of [`Address::of_node`].
    fn node(self) -> u32;
}

impl Address for u32 {
    type Pad = [u32; 0];
    const FAMILY: u32 = 2;
    const PAD: Self::Pad = [];

    #[inline(always)]
    fn of_node(number: u32) -> Self {
        number
    }

    #[inline(always)]
    fn node(self) -> u32 {
        self
    }

    #[inline(always)]
    fn fold(self, _: u64) -> u64 {
        self as u64
    }

    #[inline(always)]
    fn is(self, other: Self) -> bool {
        self == other
    }
}

impl Address for [u32; 4] {
    type Pad = [u32; 1];
    const FAMILY: u32 = 10;
    const PAD: Self::Pad = [0];

    #[inline(always)]
    fn of_node(number: u32) -> Self {
        [0, 0, 0, number]
    }

    #[inline(always)]
    fn node(self) -> u32 {
        self[3]
    }

    #[inline(always)]
    fn fold(self, key: u64) -> u64 {
        let [first, second, third, fourth] = self.map(u64::from);
        scramble((first << 32 | second) ^ key) ^ (third << 32 | fourth)
    }

    #[inline(always)]
    fn is(self, other: Self) -> bool {
        self[3] == other[3] && self[2] == other[2] && self[1] == other[1] && self[0] == other[0]
    }
}

/// One end of a flow: the key of a frontend, or the address of a backend.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Endpoint<A> {
    /// Network byte order.
    pub address: A,
    /// Network byte order.
    pub port: u16,
    /// `IPPROTO_TCP` or `IPPROTO_UDP`; of a key that is no address, see [`node_port`] and [`any_port`].
    pub protocol: u16,
}

impl<A: Address> PartialEq for Endpoint<A> {
    #[inline(always)]
    fn eq(&self, other: &Self) -> bool {
        self.address.is(other.address) && self.transport() == other.transport()
    }
}

impl<A: Address> Endpoint<A> {
    /// Port and protocol in one word, so that they are compared at once.
    #[inline(always)]
    const fn transport(&self) -> u32 {
        self.port as u32 | (self.protocol as u32) << 16
    }

    /// The hash by which a frontend is found. Its low bits are the number of the bucket. Who makes Services must not be able to
    /// choose addresses and ports that have one bucket, for they would keep others out of it: so there is a secret `key`.
    #[inline(always)]
    pub fn hash(&self, key: u64) -> u32 {
        scramble(self.address.fold(key) ^ (self.transport() as u64) << 32 ^ key) as u32
    }
}

/// In the protocol of a key: not an address is meant but a node. No protocol has such a number, so nobody can ask for one.
pub const ON_NODE: u16 = 1 << 15;

/// The key of a node port on the addresses of the node with that number in `nodes`. Number 0 is this node, and its frontend
/// serves for all nodes, unless [`crate::Entry::is_per_node`]: then each other node that has backends has one of its own.
#[inline(always)]
pub fn node_port<A: Address>(number: u32, wanted: &Endpoint<A>) -> Endpoint<A> {
    Endpoint { address: A::of_node(number), port: wanted.port, protocol: wanted.protocol | ON_NODE }
}

/// The key by which an address is found that is some Service's ClusterIP, whatever the port: no protocol has number 0.
#[inline(always)]
pub const fn any_port<A: Address>(address: A) -> Endpoint<A> {
    Endpoint { address, port: u16::MAX, protocol: 0 }
}

/// A number that looks like a random one, another for each word: the finalizer of SplitMix64 (Steele, Lea, Flood, "Fast
/// splittable pseudorandom number generators", OOPSLA 2014).
#[inline(always)]
pub const fn scramble(word: u64) -> u64 {
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// `IPPROTO_TCP`.
pub const TCP: u16 = 6;
/// `IPPROTO_UDP`.
pub const UDP: u16 = 17;

/// An IPv4 address as IPv6 sockets see it, `::ffff:a.b.c.d`. Network byte order.
pub const fn mapped(address: u32) -> [u32; 4] {
    [0, 0, MAPPED_PREFIX, address]
}

/// Whether an address is IPv4-mapped.
#[inline(always)]
pub const fn is_mapped(&[first, second, third, _]: &[u32; 4]) -> bool {
    third == MAPPED_PREFIX && first == 0 && second == 0
}

/// The third word of an IPv4-mapped address.
pub const MAPPED_PREFIX: u32 = 0xffff_u32.to_be();
