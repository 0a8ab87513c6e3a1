//! The maps, and which of them belong to which address family. The loader sets their sizes; those here are for a look.

use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC},
    btf_maps::{Array, ArrayOfMaps, HashMap, LruHashMap, SkStorage},
    macros::btf_map,
};
use bpf_lb_abi::{
    Address, Affinity, Backend, Client, Config, Endpoint, Header, NODE_PORT_WORDS, Name, Overflow, Peer, Slot,
};

const MMAPABLE: usize = BPF_F_MMAPABLE as usize;
const NO_PREALLOC: usize = BPF_F_NO_PREALLOC as usize;

type Services<A> = HashMap<Endpoint<A>, u32, 1024>;
type Headers<A> = Array<Header<A>, 1024, MMAPABLE>;
type Slots<A> = Array<Slot<A>, 1024, MMAPABLE>;
type Peers<A> = Array<Peer<A>, 1024>;

#[btf_map(name = "services4")]
static SERVICES4: Services<u32> = Services::new();
#[btf_map(name = "services6")]
static SERVICES6: Services<[u32; 4]> = Services::new();
#[btf_map(name = "headers4")]
static HEADERS4: Headers<u32> = Headers::new();
#[btf_map(name = "headers6")]
static HEADERS6: Headers<[u32; 4]> = Headers::new();
#[btf_map(name = "slots4")]
static SLOTS4: Slots<u32> = Slots::new();
#[btf_map(name = "slots6")]
static SLOTS6: Slots<[u32; 4]> = Slots::new();
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
#[btf_map(name = "node_ports")]
pub(crate) static NODE_PORTS: Array<u64, { NODE_PORT_WORDS as usize }, MMAPABLE> = Array::new();
#[btf_map(name = "config")]
pub(crate) static CONFIG: Array<Config, 1, MMAPABLE> = Array::new();

/// For the loader alone.
#[btf_map(name = "names")]
static NAMES: HashMap<u32, Name, 1024, NO_PREALLOC> = HashMap::new();
/// For the loader alone: an update of a map of maps returns when no program runs any more that ran before it.
#[btf_map(name = "grace")]
static GRACE: ArrayOfMaps<Array<u32, 1>, 1> = ArrayOfMaps::new();

/// The tables of an address family.
pub(crate) trait Tables: Address + 'static {
    fn services() -> &'static Services<Self>;
    fn headers() -> &'static Headers<Self>;
    fn slots() -> &'static Slots<Self>;
    fn peers() -> &'static Peers<Self>;
    /// The address as `overflow` keeps it.
    fn to_ipv6(self) -> [u32; 4];
    /// The inverse of [`Tables::to_ipv6`].
    fn from_ipv6(address: [u32; 4]) -> Self;
}

impl Tables for u32 {
    #[inline(always)]
    fn services() -> &'static Services<Self> {
        &SERVICES4
    }
    #[inline(always)]
    fn headers() -> &'static Headers<Self> {
        &HEADERS4
    }
    #[inline(always)]
    fn slots() -> &'static Slots<Self> {
        &SLOTS4
    }
    #[inline(always)]
    fn peers() -> &'static Peers<Self> {
        &PEERS4
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
    #[inline(always)]
    fn services() -> &'static Services<Self> {
        &SERVICES6
    }
    #[inline(always)]
    fn headers() -> &'static Headers<Self> {
        &HEADERS6
    }
    #[inline(always)]
    fn slots() -> &'static Slots<Self> {
        &SLOTS6
    }
    #[inline(always)]
    fn peers() -> &'static Peers<Self> {
        &PEERS6
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
