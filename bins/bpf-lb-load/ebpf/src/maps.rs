//! The maps, and which of them belong to which address family. The loader sets their sizes; those here are for a look.

use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC},
    btf_maps::{Array, ArrayOfMaps, HashMap, LruHashMap, SkStorage},
    macros::btf_map,
};
use bpf_lb_abi::{
    Address, Affinity, Backend, Bucket, Client, Config, Long, NODE_PORT_WORDS, Name, Node, Overflow, Slot, Translation,
};

const MMAPABLE: usize = BPF_F_MMAPABLE as usize;
const NO_PREALLOC: usize = BPF_F_NO_PREALLOC as usize;

type Frontends<A> = Array<Bucket<A>, 1024, MMAPABLE>;
type Slots<A> = Array<Slot<A>, 1024, MMAPABLE>;
type Owners = Array<Long, 1024, MMAPABLE>;
type Peers<A> = Array<Translation<A>, 1024, MMAPABLE>;

#[btf_map(name = "frontends4")]
static FRONTENDS4: Frontends<u32> = Frontends::new();
#[btf_map(name = "frontends6")]
static FRONTENDS6: Frontends<[u32; 4]> = Frontends::new();
#[btf_map(name = "slots4")]
static SLOTS4: Slots<u32> = Slots::new();
#[btf_map(name = "slots6")]
static SLOTS6: Slots<[u32; 4]> = Slots::new();
#[btf_map(name = "owners4")]
static OWNERS4: Owners = Owners::new();
#[btf_map(name = "owners6")]
static OWNERS6: Owners = Owners::new();
#[btf_map(name = "peers4")]
static PEERS4: Peers<u32> = Peers::new();
#[btf_map(name = "peers6")]
static PEERS6: Peers<[u32; 4]> = Peers::new();

#[btf_map(name = "backends")]
pub(crate) static BACKENDS: Array<Backend, 1024, MMAPABLE> = Array::new();
#[btf_map(name = "overflow")]
pub(crate) static OVERFLOW: SkStorage<Overflow> = SkStorage::new();
#[btf_map(name = "affinity")]
pub(crate) static AFFINITY: LruHashMap<Client, Affinity, 1024> = LruHashMap::new();
#[btf_map(name = "namespaces")]
pub(crate) static NAMESPACES: HashMap<u64, u32, 4096, NO_PREALLOC> = HashMap::new();
/// By address, IPv4 ones IPv4-mapped: the node that has it.
#[btf_map(name = "nodes")]
pub(crate) static NODES: HashMap<[u32; 4], Node, 16384, NO_PREALLOC> = HashMap::new();
#[btf_map(name = "node_ports")]
pub(crate) static NODE_PORTS: Array<u64, { NODE_PORT_WORDS as usize }, MMAPABLE> = Array::new();
#[btf_map(name = "config")]
pub(crate) static CONFIG: Array<Config, 1, MMAPABLE> = Array::new();

/// For the loader alone: the ports that it reserved, a bit each.
#[btf_map(name = "reserved")]
static RESERVED: Array<u64, 1024, MMAPABLE> = Array::new();
/// For the loader alone.
#[btf_map(name = "names")]
static NAMES: Array<Name, 1024, MMAPABLE> = Array::new();
/// For the loader alone: an update of a map of maps returns when no program runs any more that ran before it.
#[btf_map(name = "grace")]
static GRACE: ArrayOfMaps<Array<u32, 1>, 1> = ArrayOfMaps::new();

/// The tables of an address family.
pub(crate) trait Tables: Address + 'static {
    /// The other family.
    type Other: Tables;
    fn frontends() -> &'static Frontends<Self>;
    fn slots() -> &'static Slots<Self>;
    fn owners() -> &'static Owners;
    fn peers() -> &'static Peers<Self>;
    /// A copy, word by word: one in whole would be a call of `memmove`.
    fn copy(&self) -> Self;
    /// The address as `overflow` keeps it.
    fn to_ipv6(self) -> [u32; 4];
    /// The inverse of [`Tables::to_ipv6`].
    fn from_ipv6(address: [u32; 4]) -> Self;
}

impl Tables for u32 {
    type Other = [u32; 4];

    #[inline(always)]
    fn frontends() -> &'static Frontends<Self> {
        &FRONTENDS4
    }
    #[inline(always)]
    fn slots() -> &'static Slots<Self> {
        &SLOTS4
    }
    #[inline(always)]
    fn owners() -> &'static Owners {
        &OWNERS4
    }
    #[inline(always)]
    fn peers() -> &'static Peers<Self> {
        &PEERS4
    }
    #[inline(always)]
    fn copy(&self) -> Self {
        *self
    }
    #[inline(always)]
    fn to_ipv6(self) -> [u32; 4] {
        bpf_lb_abi::mapped(self)
    }
    #[inline(always)]
    fn from_ipv6(address: [u32; 4]) -> Self {
        address[3]
    }
}

impl Tables for [u32; 4] {
    type Other = u32;

    #[inline(always)]
    fn frontends() -> &'static Frontends<Self> {
        &FRONTENDS6
    }
    #[inline(always)]
    fn slots() -> &'static Slots<Self> {
        &SLOTS6
    }
    #[inline(always)]
    fn owners() -> &'static Owners {
        &OWNERS6
    }
    #[inline(always)]
    fn peers() -> &'static Peers<Self> {
        &PEERS6
    }
    #[inline(always)]
    fn copy(&self) -> Self {
        // SAFETY: a reference can be read from.
        self.each_ref().map(|word| unsafe { core::ptr::from_ref(word).read_volatile() })
    }
    #[inline(always)]
    fn to_ipv6(self) -> [u32; 4] {
        self
    }
    #[inline(always)]
    fn from_ipv6(address: [u32; 4]) -> Self {
        address
    }
}
