//! What a socket was translated from: remembered for as long as the socket lives.
//!
//! A new socket's cookie is the one after that of the socket before it on the same CPU, so the places in `peers` are
//! taken in order, which costs far less than an insertion into a hash or an allocation of socket-local storage.
//!
//! A system call may fail after its hook, and none is told of connect(AF_UNSPEC). So what is remembered is never taken for
//! what is: it counts where the address that the kernel knows is the backend's.

use core::hint::cold_path;

use aya_ebpf::{bindings::bpf_sock, helpers::generated::bpf_get_prandom_u32};
use bpf_lb_abi::{Address, Config, Endpoint, Long, TCP, Translation, scramble};

use crate::{
    atomic::set_if_zero,
    backend::{set_id, uncount},
    maps::{CONFIG, Tables},
    overflow::{self, Wide, overflowed},
    setting::setting,
    sock,
    sockaddr::Sockaddr,
};

/// One less than the number of places in `peers4` and in `peers6`, a power of two. The loader sets it.
#[unsafe(no_mangle)]
static PEER_MASK: u32 = 1023;

/// So that not each node's sockets choose alike. The loader sets it.
#[unsafe(no_mangle)]
static SEED: u32 = 0;

/// `TCP_ESTABLISHED`, the state of a connected socket of whatever protocol.
const ESTABLISHED: u32 = 1;

/// What the low bits of a socket's cookie name.
struct Place<A: Tables> {
    /// See [`Translation`].
    owner: &'static Long,
    /// Read and written by the owner's calls only, which the socket's lock orders.
    translation: &'static Translation<A>,
}

/// Where a socket's translations are.
pub(crate) struct Socket<A: Tables> {
    config: &'static Config,
    cookie: u64,
    place: Place<A>,
    dual: bool,
    socket: *mut bpf_sock,
}

impl<A: Tables> Socket<A> {
    #[inline(always)]
    pub(crate) fn of<S: Sockaddr<Address = A>>(config: &'static Config, sockaddr: S) -> Option<Self> {
        Self::with(config, sock::cookie(sockaddr.context(), sockaddr.socket()), sockaddr)
    }

    /// The same, if anything can be remembered of it: by its cookie, or in `overflow`, where a socket of Multipath TCP goes by that
    /// of its subflow.
    #[inline(always)]
    pub(crate) fn known<S: Sockaddr<Address = A>>(config: &'static Config, sockaddr: S) -> Option<Self> {
        match sock::known_cookie(sockaddr.context(), sockaddr.socket()) {
            Some(cookie) => Self::with(config, cookie, sockaddr),
            None if overflowed(config) => Self::of(config, sockaddr),
            None => None,
        }
    }

    #[inline(always)]
    fn with<S: Sockaddr<Address = A>>(config: &'static Config, cookie: u64, sockaddr: S) -> Option<Self> {
        Some(Self { config, cookie, place: place(cookie)?, dual: sockaddr.is_dual(), socket: sockaddr.socket() })
    }

    /// The translation in the socket's own place, if it has got that.
    #[inline(always)]
    fn first(&self) -> Option<&'static Translation<A>> {
        owned(self.cookie, &self.place)
    }

    /// Makes the socket the owner of its place, and says whether it is.
    #[inline(always)]
    fn claim(&self) -> bool {
        let owner = self.place.owner.load();
        if owner == self.cookie {
            uncount(self.place.translation);
            return true;
        }
        owner == 0 && set_if_zero(self.place.owner, self.cookie)
    }

    #[inline(always)]
    fn write(&self, translation: Translation<A>) {
        // SAFETY: the place is this socket's, and the socket's lock keeps its other calls out.
        unsafe { core::ptr::from_ref(self.place.translation).cast_mut().write(translation) }
    }

    /// A random number, with which a backend is chosen. A new socket's comes from its cookie, which no other socket has, and which
    /// is known: to ask the kernel for one takes as long as a third of all that connect() does here. A socket that asks again has
    /// to get another number, or it might never get away from a backend that does not answer.
    #[inline(always)]
    pub(crate) fn random(&self, multipath: Option<*mut bpf_sock>) -> u64 {
        let is_new = multipath.is_none() && self.place.owner.load() == 0;
        // SAFETY: takes no arguments.
        let word = if is_new { self.cookie } else { unsafe { bpf_get_prandom_u32() }.into() };
        scramble(word ^ u64::from(setting(&SEED)) << 32)
    }

    /// See [`sock::multipath`].
    #[inline(always)]
    pub(crate) fn multipath(&self, protocol: u16) -> Option<*mut bpf_sock> {
        sock::multipath(self.socket, protocol)
    }

    /// Whether the kernel refuses an IPv4-mapped address, since the socket is for IPv6 alone. For where few get: it takes long.
    #[inline(always)]
    pub(crate) fn is_v6only(&self, protocol: u16) -> bool {
        A::FAMILY == <u32 as Address>::FAMILY && self.dual && sock::is_v6only(self.socket, protocol)
    }

    /// Remembers the translation of a connection, in place of the one before it. Says whether it could.
    #[inline(always)]
    pub(crate) fn connect(&self, translation: impl Fn() -> Translation<A>, multipath: Option<*mut bpf_sock>) -> bool {
        self.leave_other_family();
        if let Some(socket) = multipath {
            cold_path();
            return overflow::connect(socket, self.cookie, &widen(&translation()));
        }
        if self.first().is_none_or(|first| !is_flow(first)) && self.claim() {
            if overflowed(self.config) {
                let Translation { service, backend, .. } = translation();
                overflow::disconnect(self.socket, &wide(&service), &wide(&backend));
            }
            self.write(translation());
            return true;
        }
        cold_path();
        let translation = translation();
        self.name_first(&translation.service, &translation.backend);
        overflow::connect(self.socket, 0, &widen(&translation))
    }

    /// The socket is connected to what is no Service. Should it be a backend, then it goes by its own name from now on.
    #[inline(always)]
    pub(crate) fn leave(&self, wanted: &Endpoint<A>) {
        self.leave_other_family();
        match self.first() {
            Some(first) if is_flow(first) => self.name_first(wanted, wanted),
            Some(first) if first.backend == *wanted => release(self.cookie, &self.place),
            Some(first) => uncount(first),
            None => {}
        }
        if overflowed(self.config) {
            overflow::disconnect(self.socket, &wide(wanted), &wide(wanted));
            if let Some(socket) = self.multipath(wanted.protocol) {
                overflow::leave(socket, self.cookie, &wide(wanted));
            }
        }
    }

    /// Takes the connection that an IPv6 socket had in the other family off the count.
    #[inline(always)]
    fn leave_other_family(&self) {
        if self.dual
            && let Some(other) = place::<A::Other>(self.cookie)
            && let Some(other) = owned(self.cookie, &other)
            && !is_flow(other)
        {
            uncount(other);
        }
    }

    /// The translation of a flow or connection to `service` that this socket began before.
    #[inline(always)]
    pub(crate) fn sent_to(&self, service: &Endpoint<A>) -> Option<Translation<A>> {
        match self.first() {
            Some(first) if first.service == *service => Some(*first),
            _ => self.overflow(|socket| overflow::to(socket, &wide(service), false)),
        }
    }

    /// The translation of a flow to `service`.
    #[inline(always)]
    pub(crate) fn flow_to(&self, service: &Endpoint<A>) -> Option<Translation<A>> {
        match self.first() {
            Some(first) if is_flow(first) && first.service == *service => Some(*first),
            _ => self.overflow(|socket| overflow::to(socket, &wide(service), true)),
        }
    }

    /// Remembers the translation of a flow beside the others, in place of one to the same service. Says whether it could.
    #[inline(always)]
    pub(crate) fn send(&self, wanted: &Endpoint<A>, translation: impl Fn() -> Translation<A>) -> bool {
        let flow = || {
            let translation = translation();
            Translation { id: translation.id | Translation::<A>::FLOW, ..translation }
        };
        let replaces = self.first().is_none_or(|first| is_flow(first) && first.service == *wanted);
        if replaces && self.claim() {
            self.write(flow());
        } else {
            cold_path();
            let flow = flow();
            if !overflow::send(self.socket, &widen(&flow)) {
                return false;
            }
            self.name_first(&flow.service, &flow.backend);
        }
        if overflowed(self.config) {
            let flow = flow();
            overflow::name(self.socket, &wide(&flow.service), &wide(&flow.backend));
        }
        true
    }

    /// What is sent to `backend` is from now on sent to it by the name `service`, which answers will have.
    #[inline(always)]
    fn name(&self, service: &Endpoint<A>, backend: &Endpoint<A>) {
        self.name_first(service, backend);
        if overflowed(self.config) {
            overflow::name(self.socket, &wide(service), &wide(backend));
        }
    }

    #[inline(always)]
    fn name_first(&self, service: &Endpoint<A>, backend: &Endpoint<A>) {
        if let Some(first) = self.first()
            && first.backend == *backend
        {
            let hidden = if first.service == *service { 0 } else { Translation::<A>::HIDDEN };
            set_id(first, first.id & !Translation::<A>::HIDDEN | hidden);
        }
    }

    /// A datagram to what is no Service. Should it be a backend, then it answers by its own name; unless the socket is
    /// connected to it by a Service: then this may be send(), which for an IPv4-mapped peer runs the hook with its address.
    #[inline(always)]
    pub(crate) fn ask(&self, wanted: &Endpoint<A>) {
        let first = self.first().filter(|first| first.backend == *wanted);
        if first.is_none() && !overflowed(self.config) || self.is_connected() && self.peer(wanted).is_some() {
            return;
        }
        self.name(wanted, wanted);
    }

    #[inline(always)]
    fn is_connected(&self) -> bool {
        // SAFETY: the socket is valid while the program runs.
        !self.socket.is_null() && unsafe { (&raw const (*self.socket).state).read_volatile() } == ESTABLISHED
    }

    /// A datagram to a Service whose backend went by another name meanwhile.
    #[inline(always)]
    pub(crate) fn ask_again(&self, known: &Translation<A>) {
        self.name(&known.service, &known.backend);
    }

    /// Whether the socket asks `backend` already, by whatever name.
    #[inline(always)]
    pub(crate) fn asks(&self, backend: &Endpoint<A>) -> bool {
        self.first().is_some_and(|first| first.backend == *backend)
            || self.overflow(|socket| overflow::by(socket, &wide(backend), false)).is_some()
    }

    /// The Service behind a connection to `backend`.
    #[inline(always)]
    pub(crate) fn peer(&self, backend: &Endpoint<A>) -> Option<Endpoint<A>> {
        match self.first() {
            Some(first) if !is_flow(first) && first.backend == *backend => Some(first.service),
            _ => Some(self.overflow(|socket| overflow::connection(socket, &wide(backend)))?.service),
        }
    }

    /// The Service that was sent to and that `backend` answers for.
    #[inline(always)]
    pub(crate) fn sender(&self, backend: &Endpoint<A>) -> Option<Endpoint<A>> {
        match self.first() {
            Some(first) if first.backend == *backend && first.id & Translation::<A>::HIDDEN == 0 => Some(first.service),
            _ => Some(self.overflow(|socket| overflow::by(socket, &wide(backend), true))?.service),
        }
    }

    /// The Service whose address was just replaced by `backend`, if any was.
    #[inline(always)]
    pub(crate) fn translated(&self, backend: &Endpoint<A>) -> Option<Endpoint<A>> {
        if let Some(socket) = self.multipath(backend.protocol) {
            return Some(narrow(&overflow::connection(socket, &wide(backend))?.service));
        }
        self.sender(backend)
    }

    /// Looks among the translations that are not in the socket's place.
    #[inline(always)]
    fn overflow(&self, find: impl Fn(*mut bpf_sock) -> Option<&'static Translation<Wide>>) -> Option<Translation<A>> {
        if !overflowed(self.config) {
            return None;
        }
        find(self.socket).map(narrow_all)
    }
}

/// Gives back what a socket that is closed held.
#[inline(always)]
pub(crate) fn forget(socket: *mut bpf_sock) {
    // SAFETY: the context, which is the socket here, is valid while the program runs.
    let family = unsafe { (&raw const (*socket).family).read_volatile() };
    if let Some(cookie) = sock::known_cookie(socket, socket) {
        if let Some(place) = place::<u32>(cookie) {
            release(cookie, &place);
        }
        if family == <[u32; 4] as Address>::FAMILY
            && let Some(place) = place::<[u32; 4]>(cookie)
        {
            release(cookie, &place);
        }
    }
    if CONFIG.get(0).is_some_and(overflowed) {
        overflow::forget(socket);
    }
}

#[inline(always)]
fn place<A: Tables>(cookie: u64) -> Option<Place<A>> {
    let index = cookie as u32 & setting(&PEER_MASK);
    Some(Place { owner: A::owners().get(index)?, translation: A::peers().get(index)? })
}

#[inline(always)]
fn owned<A: Tables>(cookie: u64, place: &Place<A>) -> Option<&'static Translation<A>> {
    (place.owner.load() == cookie).then_some(place.translation)
}

#[inline(always)]
fn release<A: Tables>(cookie: u64, place: &Place<A>) {
    if let Some(translation) = owned(cookie, place) {
        uncount(translation);
        place.owner.store(0);
    }
}

#[inline(always)]
fn is_flow<A>(translation: &Translation<A>) -> bool {
    translation.id & Translation::<A>::FLOW != 0
}

#[inline(always)]
pub(crate) fn wide<A: Tables>(endpoint: &Endpoint<A>) -> Endpoint<Wide> {
    Endpoint { address: endpoint.address.to_ipv6(), port: endpoint.port, protocol: endpoint.protocol }
}

#[inline(always)]
fn narrow<A: Tables>(endpoint: &Endpoint<Wide>) -> Endpoint<A> {
    Endpoint { address: A::from_ipv6(endpoint.address), port: endpoint.port, protocol: endpoint.protocol }
}

#[inline(always)]
fn narrow_all<A: Tables>(wide: &Translation<Wide>) -> Translation<A> {
    Translation {
        service: narrow(&wide.service),
        backend: narrow(&wide.backend),
        id: wide.id,
        generation: wide.generation,
    }
}

#[inline(always)]
fn widen<A: Tables>(translation: &Translation<A>) -> Translation<Wide> {
    Translation {
        service: wide(&translation.service),
        backend: wide(&translation.backend),
        id: translation.id,
        generation: translation.generation,
    }
}
