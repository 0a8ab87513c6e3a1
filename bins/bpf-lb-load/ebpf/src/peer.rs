//! What a socket was translated from: remembered for as long as the socket lives.
//!
//! A new socket's cookie is the one after that of the socket before it on the same CPU, so the places in `peers` are
//! taken in order, which costs far less than an insertion into a hash or an allocation of socket-local storage.

use aya_ebpf::{
    bindings::{BPF_SK_STORAGE_GET_F_CREATE, bpf_sock},
    helpers::generated::{bpf_get_socket_cookie, bpf_sk_storage_get},
};
use bpf_lb_abi::{Endpoint, FLOWS, Overflow, Peer, Translation};

use crate::{
    atomic::set_if_zero,
    backend::uncount,
    maps::{CONFIG, OVERFLOW, Tables},
    sockaddr::Sockaddr,
};

/// One less than the number of places in `peers4` and in `peers6`, a power of two. The loader sets it.
#[unsafe(no_mangle)]
static PEER_MASK: u32 = 1023;

/// Does something with each flow, without a loop: the verifier lets programs without CAP_PERFMON add to a pointer only what
/// is the same each time.
macro_rules! each_flow {
    ($overflow:ident, $flow:ident => $body:block) => {
        each_flow!($overflow, $flow, $body, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15)
    };
    ($overflow:ident, $flow:ident, $body:block, $($index:literal)*) => {
        const { assert!(FLOWS == [$($index),*].len()) };
        $({
            let $flow = &mut $overflow.flows[$index];
            $body
        })*
    };
}

/// Where a socket's translations are.
pub(crate) struct Socket<A: Tables> {
    cookie: u64,
    place: &'static Peer<A>,
    dual: bool,
    socket: *mut bpf_sock,
}

impl<A: Tables> Socket<A> {
    #[inline(always)]
    pub(crate) fn of<S: Sockaddr<Address = A>>(sockaddr: S) -> Option<Self> {
        // SAFETY: the context is valid while the program runs.
        let cookie = unsafe { bpf_get_socket_cookie(sockaddr.context().cast()) };
        Some(Self { cookie, place: place(cookie)?, dual: S::DUAL, socket: sockaddr.socket() })
    }

    /// What the connection, or the flow that was begun first, was translated to.
    #[inline(always)]
    fn first(&self) -> Option<&'static Translation<A>> {
        (self.place.cookie.load() == self.cookie).then_some(&self.place.translation)
    }

    /// Makes the socket the owner of its place, and says whether it is.
    #[inline(always)]
    fn claim(&self) -> bool {
        let owner = self.place.cookie.load();
        if owner == self.cookie {
            uncount(&self.place.translation);
            return true;
        }
        owner == 0 && set_if_zero(&self.place.cookie, self.cookie)
    }

    #[inline(always)]
    fn write(&self, translation: Translation<A>) {
        // SAFETY: the place is this socket's, and the socket's lock keeps its other calls out.
        unsafe { (&raw const self.place.translation).cast_mut().write(translation) }
    }

    /// Remembers the translation of a connection, in place of the one before it. Says whether it could.
    #[inline(always)]
    pub(crate) fn connect(&self, translation: Translation<A>) -> bool {
        self.leave_other_family();
        if self.claim() {
            if overflowed() {
                self.forget_overflow();
            }
            self.write(translation);
            return true;
        }
        self.overflow(true).is_some_and(|overflow| {
            uncount(&overflow.connection);
            overflow.connection = widen(&translation);
            true
        })
    }

    /// Forgets the connection's translation, since the socket now goes to what is no Service.
    #[inline(always)]
    pub(crate) fn disconnect(&self) {
        self.leave_other_family();
        release(self.cookie, self.place);
        if overflowed() {
            self.forget_overflow();
        }
    }

    /// Gives up the place of a connection that an IPv6 socket had in the other family.
    #[inline(always)]
    fn leave_other_family(&self) {
        if self.dual
            && let Some(other) = place::<A::Other>(self.cookie)
        {
            release(self.cookie, other);
        }
    }

    #[inline(always)]
    fn forget_overflow(&self) {
        if let Some(overflow) = self.overflow(false) {
            uncount(&overflow.connection);
            // Word by word: to write all of it would be a call of `memset`.
            overflow.connection.service.port = 0;
            overflow.connection.backend.port = 0;
            overflow.connection.id = 0;
        }
    }

    /// The translation of a flow to `service` that this socket began before.
    #[inline(always)]
    pub(crate) fn sent_to(&self, service: &Endpoint<A>) -> Option<Translation<A>> {
        match self.first() {
            Some(first) if first.service == *service => Some(*first),
            _ => self.search(|translation| translation.service == wide(service)),
        }
    }

    /// Remembers the translation of a flow beside the others, in place of one to the same service. Says whether it could.
    #[inline(always)]
    pub(crate) fn send(&self, translation: Translation<A>) -> bool {
        let replaces = self.first().is_none_or(|first| first.service == translation.service);
        if replaces && self.claim() {
            self.write(translation);
            return true;
        }
        let Some(overflow) = self.overflow(true) else { return false };
        let translation = widen(&translation);
        each_flow!(overflow, flow => {
            if flow.service.port == 0 || flow.service == translation.service {
                uncount(flow);
                *flow = translation;
                return true;
            }
        });
        false
    }

    /// The Service behind a connection to `backend`.
    #[inline(always)]
    pub(crate) fn peer(&self, backend: &Endpoint<A>) -> Option<Endpoint<A>> {
        if let Some(first) = self.first() {
            return (first.backend == *backend).then_some(first.service);
        }
        let connection = overflowed().then(|| self.overflow(false))??.connection;
        (connection.backend == wide(backend)).then(|| narrow(&connection.service))
    }

    /// The Service that was sent to and that `backend` answers for.
    #[inline(always)]
    pub(crate) fn sender(&self, backend: &Endpoint<A>) -> Option<Endpoint<A>> {
        match self.first() {
            Some(first) if first.backend == *backend => Some(first.service),
            _ => Some(self.search(|translation| translation.backend == wide(backend))?.service),
        }
    }

    #[inline(always)]
    fn search(&self, is_it: impl Fn(&Translation<[u32; 4]>) -> bool) -> Option<Translation<A>> {
        let overflow = overflowed().then(|| self.overflow(false))??;
        if is_it(&overflow.connection) {
            return Some(translation(&overflow.connection));
        }
        each_flow!(overflow, flow => {
            if is_it(flow) {
                return Some(translation(flow));
            }
        });
        None
    }

    #[inline(always)]
    fn overflow(&self, create: bool) -> Option<&'static mut Overflow> {
        if create && let Some(config) = CONFIG.get(0) {
            config.overflowed.store(1);
        }
        storage(self.socket, create)
    }
}

/// Gives back what a socket that is closed held.
#[inline(always)]
pub(crate) fn forget(socket: *mut bpf_sock) {
    // SAFETY: the context, which is the socket here, is valid while the program runs.
    let (cookie, family) =
        unsafe { (bpf_get_socket_cookie(socket.cast()), (&raw const (*socket).family).read_volatile()) };
    if let Some(place) = place::<u32>(cookie) {
        release(cookie, place);
    }
    if family == <[u32; 4] as bpf_lb_abi::Address>::FAMILY
        && let Some(place) = place::<[u32; 4]>(cookie)
    {
        release(cookie, place);
    }
    if overflowed()
        && let Some(overflow) = storage(socket, false)
    {
        uncount(&overflow.connection);
        each_flow!(overflow, flow => { uncount(flow); });
    }
}

#[inline(always)]
fn place<A: Tables>(cookie: u64) -> Option<&'static Peer<A>> {
    // SAFETY: a static that the loader sets before the program is there, and that nobody writes after.
    let mask = unsafe { (&raw const PEER_MASK).read_volatile() };
    A::peers().get(cookie as u32 & mask)
}

#[inline(always)]
fn release<A: Tables>(cookie: u64, place: &Peer<A>) {
    if place.cookie.load() == cookie {
        uncount(&place.translation);
        place.cookie.store(0);
    }
}

#[inline(always)]
fn overflowed() -> bool {
    CONFIG.get(0).is_some_and(|config| config.overflowed.load() != 0)
}

#[inline(always)]
fn storage(socket: *mut bpf_sock, create: bool) -> Option<&'static mut Overflow> {
    let flags = if create { u64::from(BPF_SK_STORAGE_GET_F_CREATE) } else { 0 };
    if socket.is_null() {
        return None;
    }
    // SAFETY: the map is one of socket-local storage whose values are `Overflow`; they live as long as the socket, which
    // is held while the program runs, and the socket's lock keeps its other calls out.
    unsafe {
        bpf_sk_storage_get((&raw const OVERFLOW).cast_mut().cast(), socket.cast(), core::ptr::null_mut(), flags)
            .cast::<Overflow>()
            .as_mut()
    }
}

#[inline(always)]
fn wide<A: Tables>(endpoint: &Endpoint<A>) -> Endpoint<[u32; 4]> {
    Endpoint { address: endpoint.address.to_ipv6(), port: endpoint.port, protocol: endpoint.protocol }
}

#[inline(always)]
fn narrow<A: Tables>(endpoint: &Endpoint<[u32; 4]>) -> Endpoint<A> {
    Endpoint { address: A::from_ipv6(endpoint.address), port: endpoint.port, protocol: endpoint.protocol }
}

#[inline(always)]
fn translation<A: Tables>(wide: &Translation<[u32; 4]>) -> Translation<A> {
    Translation {
        service: narrow(&wide.service),
        backend: narrow(&wide.backend),
        id: wide.id,
        generation: wide.generation,
    }
}

#[inline(always)]
fn widen<A: Tables>(translation: &Translation<A>) -> Translation<[u32; 4]> {
    Translation {
        service: wide(&translation.service),
        backend: wide(&translation.backend),
        id: translation.id,
        generation: translation.generation,
    }
}
