//! What a socket was translated from: remembered for as long as the socket lives.
//!
//! A new socket's cookie is the one after that of the socket before it on the same CPU, so the places in `peers` are
//! taken in order, which costs far less than an insertion into a hash or an allocation of socket-local storage.
//!
//! A system call may fail after its hook, and none is told of connect(AF_UNSPEC). So what is remembered is never taken for
//! what is: it counts where the address that the kernel knows is the backend's.

use core::hint::cold_path;

use aya_ebpf::bindings::bpf_sock;
use bpf_lb_abi::{Address, Config, Endpoint, Long, Translation};

use crate::{
    atomic::set_if_zero,
    maps::{CONFIG, Tables},
    overflow::{self, Wide, overflowed},
    random::Random,
    setting::setting,
    sock,
    sockaddr::Sockaddr,
    translation::{set_id, uncount},
};

/// One less than the number of places in `peers4` and in `peers6`, a power of two. The loader sets it.
#[unsafe(no_mangle)]
static PEER_MASK: u32 = 1023;

/// `TCP_ESTABLISHED`, the state of a connected socket of whatever protocol.
const ESTABLISHED: u32 = 1;

/// What the low bits of a socket's cookie name.
struct Place<A: Tables> {
    /// See [`Translation`].
    owner: &'static Long,
    /// Read and written by the owner's calls only, which the socket's lock orders.
    translation: &'static Translation<A>,
}

/// Where a socket's translations are. What few get to is done in functions that are called with cookie and socket, and not with one
/// of these: the verifier lets programs without CAP_PERFMON use no stack again that had pointers in it.
pub(crate) struct Socket<A: Tables> {
    config: &'static Config,
    pub(crate) cookie: u64,
    /// The socket was seen to get its cookie just now, so nothing is remembered of it.
    is_new: bool,
    place: Place<A>,
    dual: bool,
    pub(crate) socket: *mut bpf_sock,
}

impl<A: Tables> Socket<A> {
    #[inline(always)]
    pub(crate) fn of(config: &'static Config, sockaddr: impl Sockaddr) -> Option<Self> {
        let known = sock::known_cookie(sockaddr.context(), sockaddr.socket());
        let cookie = known.unwrap_or_else(|| sock::new_cookie(sockaddr.context()));
        Self::with(config, cookie, known.is_none(), sockaddr.is_dual(), sockaddr.socket())
    }

    /// The same, if anything can be remembered of it.
    #[inline(always)]
    pub(crate) fn known(config: &'static Config, sockaddr: impl Sockaddr) -> Option<Self> {
        let cookie = remembered_by(config, sockaddr)?;
        Self::with(config, cookie, false, sockaddr.is_dual(), sockaddr.socket())
    }

    /// The one with that cookie.
    #[inline(always)]
    pub(crate) fn again(cookie: u64, dual: bool, socket: *mut bpf_sock) -> Option<Self> {
        Self::with(CONFIG.get(0)?, cookie, false, dual, socket)
    }

    #[inline(always)]
    fn with(config: &'static Config, cookie: u64, is_new: bool, dual: bool, socket: *mut bpf_sock) -> Option<Self> {
        Some(Self { config, cookie, is_new, place: place(cookie)?, dual, socket })
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

    /// With what a backend is chosen for it. A socket that asks again has to get another number, or it might never get away from
    /// a backend that does not answer.
    #[inline(always)]
    pub(crate) fn random(&self, multipath: Option<*mut bpf_sock>) -> Random {
        let is_first = multipath.is_none() && self.place.owner.load() == 0;
        if is_first { Random::of_new_socket(self.cookie) } else { Random::of_kernel() }
    }

    /// See [`sock::multipath`].
    #[inline(always)]
    pub(crate) fn multipath(&self, protocol: u16) -> Option<*mut bpf_sock> {
        sock::multipath(self.socket, protocol)
    }

    /// Whether the kernel refuses an IPv4-mapped address, since the socket is for IPv6 alone. For where few get: it takes long.
    #[inline(always)]
    pub(crate) fn is_v6only(&self, protocol: u16) -> bool {
        self.is_mapped() && sock::is_v6only(self.socket, protocol)
    }

    /// Whether an IPv6 socket was given an IPv4-mapped address.
    #[inline(always)]
    pub(crate) fn is_mapped(&self) -> bool {
        A::FAMILY == <u32 as Address>::FAMILY && self.dual
    }

    /// Remembers the translation of a connection, in place of the one before it. Says whether it could, and has it counted then.
    #[inline(always)]
    pub(crate) fn connect(
        &self,
        translation: impl Fn() -> Translation<A>,
        count: impl Fn(),
        multipath: Option<*mut bpf_sock>,
    ) -> bool {
        self.leave_other_family();
        if multipath.is_none() && self.connect_in_place(&translation, &count) {
            return true;
        }
        cold_path();
        let is_remembered = match multipath {
            Some(socket) => connect_beside(self.cookie, socket, self.cookie, &translation()),
            None => {
                make_way::<A>(self.cookie, self.socket);
                connect_by(self.cookie, self.socket, &translation())
            }
        };
        if is_remembered {
            count();
        }
        is_remembered
    }

    /// In the socket's place, if it has got that, and no flow is there.
    #[inline(always)]
    fn connect_in_place(&self, translation: &impl Fn() -> Translation<A>, count: &impl Fn()) -> bool {
        if !(self.first().is_none_or(|first| !is_flow(first)) && self.claim()) {
            return false;
        }
        // First: an atomic instruction waits for what was written before it, and the place is seldom in the cache.
        count();
        if overflowed(self.config) {
            let Translation { service, backend, .. } = translation();
            disconnect(self.socket, service, backend);
        }
        self.write(translation());
        true
    }

    /// Connects by a flow that there is already: to its backend. Says whether it could.
    #[inline(always)]
    pub(crate) fn connect_flow(&self, flow: &mut Translation<A>) -> bool {
        connect_flow(self.cookie, self.dual, self.socket, flow)
    }

    /// Takes the connection that an IPv6 socket had in the other family off the count.
    #[inline(always)]
    fn leave_other_family(&self) {
        if self.dual
            && !self.is_new
            && let Some(other) = place::<A::Other>(self.cookie)
            && let Some(other) = owned(self.cookie, &other)
        {
            self.config.changed_family.store(1);
            if !is_flow(other) {
                uncount(other);
            }
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

    /// Remembers the translation of a flow beside the others, in place of one to the same service. Says whether it could, and has
    /// it counted then.
    #[inline(always)]
    pub(crate) fn send(
        &self,
        wanted: &Endpoint<A>,
        translation: impl Fn() -> Translation<A>,
        count: impl Fn(),
    ) -> bool {
        let flow = || {
            let translation = translation();
            Translation { id: translation.id | Translation::<A>::FLOW, ..translation }
        };
        let replaces = self.first().is_none_or(|first| is_flow(first) && first.service == *wanted);
        if replaces && self.claim() {
            count();
            self.write(flow());
        } else {
            cold_path();
            if !send_beside(self.socket, flow()) {
                return false;
            }
            count();
        }
        if overflowed(self.config) {
            let Translation { service, backend, .. } = flow();
            name(self.cookie, self.socket, service, backend);
        }
        true
    }

    /// A datagram to what is no Service. Should it be a backend, then it answers by its own name; unless it may be sent on a
    /// connection.
    #[inline(always)]
    pub(crate) fn ask(&self, wanted: &Endpoint<A>) {
        let first = self.first().filter(|first| first.backend == *wanted);
        if first.is_none() && !overflowed(self.config) || self.is_sent_on(wanted) {
            return;
        }
        name(self.cookie, self.socket, *wanted, *wanted);
    }

    /// Whether this may be send() on a connection to `backend` by a Service: for an IPv4-mapped peer that runs the hook, with
    /// its address.
    #[inline(always)]
    fn is_sent_on(&self, backend: &Endpoint<A>) -> bool {
        self.is_connected() && self.peer(backend).is_some()
    }

    /// Whether the kernel has the socket connected to this IPv4 address.
    #[inline(always)]
    pub(crate) fn is_connected_to(&self, wanted: &Endpoint<A>) -> bool {
        let [.., address] = wanted.address.to_ipv6();
        // SAFETY: the socket is valid while the program runs, and there if it is connected.
        self.is_connected()
            && unsafe {
                (&raw const (*self.socket).dst_ip4).read_volatile() == address
                    && (&raw const (*self.socket).dst_port).read_volatile() == wanted.port
            }
    }

    #[inline(always)]
    fn is_connected(&self) -> bool {
        // SAFETY: the socket is valid while the program runs.
        !self.socket.is_null() && unsafe { (&raw const (*self.socket).state).read_volatile() } == ESTABLISHED
    }

    /// A datagram to a Service whose backend went by another name meanwhile.
    #[inline(always)]
    pub(crate) fn ask_again(&self, known: &Translation<A>) {
        name(self.cookie, self.socket, known.service, known.backend);
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

/// The cookie by which something may be remembered of the socket; in `overflow`, where one of Multipath TCP goes by that of its
/// subflow, it may be without.
#[inline(always)]
fn remembered_by(config: &Config, sockaddr: impl Sockaddr) -> Option<u64> {
    match sock::known_cookie(sockaddr.context(), sockaddr.socket()) {
        None if overflowed(config) => Some(sock::new_cookie(sockaddr.context())),
        known => known,
    }
}

/// The socket is connected to what is no Service. Should it be a backend, then it goes by its own name from now on.
#[inline(always)]
pub(crate) fn leave<A: Tables>(config: &Config, sockaddr: impl Sockaddr, wanted: &Endpoint<A>) {
    if let Some(cookie) = remembered_by(config, sockaddr) {
        leave_with(cookie, sockaddr.is_dual(), sockaddr.socket(), *wanted);
    }
}

#[inline(never)]
fn leave_with<A: Tables>(cookie: u64, dual: bool, socket: *mut bpf_sock, wanted: Endpoint<A>) {
    let Some(of) = Socket::again(cookie, dual, socket) else { return };
    of.leave_other_family();
    match of.first() {
        Some(first) if is_flow(first) => rename(first, &wanted, &wanted),
        Some(first) if first.backend == wanted => release(cookie, &of.place),
        Some(first) => uncount(first),
        None => {}
    }
    if overflowed(of.config) {
        overflow::disconnect(socket, &wide(&wanted), &wide(&wanted));
        if let Some(socket) = of.multipath(wanted.protocol) {
            overflow::leave(socket, cookie, &wide(&wanted));
        }
    }
}

#[inline(never)]
fn connect_flow<A: Tables>(cookie: u64, dual: bool, socket: *mut bpf_sock, flow: &mut Translation<A>) -> bool {
    let Some(of) = Socket::again(cookie, dual, socket) else { return false };
    of.leave_other_family();
    if of.first().is_some_and(|first| is_flow(first) && first.service != flow.service) {
        make_way::<A>(cookie, socket);
    }
    flow.id &= Translation::<A>::ID;
    connect_by(cookie, socket, flow)
}

/// As [`Socket::connect`], for a socket that has left the other family and is counted already, or is to be.
#[inline(never)]
fn connect_by<A: Tables>(cookie: u64, socket: *mut bpf_sock, translation: &Translation<A>) -> bool {
    let Some(of) = Socket::again(cookie, false, socket) else { return false };
    of.connect_in_place(&|| *translation, &|| ()) || connect_beside(cookie, socket, 0, translation)
}

/// Moves a flow that is in the socket's place to the others, for a connection to be there: of UDP sockets, the kernel lists to
/// nobody what they keep themselves.
#[inline(never)]
fn make_way<A: Tables>(cookie: u64, socket: *mut bpf_sock) {
    if let Some(place) = place::<A>(cookie)
        && let Some(first) = owned(cookie, &place)
        && is_flow(first)
        && overflow::send(socket, &widen(first))
    {
        set_id(first, first.id & !(Translation::<A>::COUNTED | Translation::<A>::FLOW));
    }
}

/// The socket's connection goes by what is in its place.
#[inline(never)]
fn disconnect<A: Tables>(socket: *mut bpf_sock, service: Endpoint<A>, backend: Endpoint<A>) {
    overflow::disconnect(socket, &wide(&service), &wide(&backend));
}

/// Remembers the translation of a connection of a socket that has no place for it. Says whether it could. Of a subflow with a
/// cookie, `socket` is the one of Multipath TCP.
#[inline(never)]
fn connect_beside<A: Tables>(cookie: u64, socket: *mut bpf_sock, subflow: u64, translation: &Translation<A>) -> bool {
    if subflow == 0 {
        name_first(cookie, &translation.service, &translation.backend);
    }
    overflow::connect(socket, subflow, &widen(translation))
}

/// Remembers the translation of a flow of a socket that has no place for it. Says whether it could.
#[inline(never)]
fn send_beside<A: Tables>(socket: *mut bpf_sock, flow: Translation<A>) -> bool {
    overflow::send(socket, &widen(&flow))
}

/// What is sent to `backend` is from now on sent to it by the name `service`, which answers will have.
#[inline(never)]
fn name<A: Tables>(cookie: u64, socket: *mut bpf_sock, service: Endpoint<A>, backend: Endpoint<A>) {
    name_first(cookie, &service, &backend);
    if CONFIG.get(0).is_some_and(overflowed) {
        overflow::name(socket, &wide(&service), &wide(&backend));
    }
}

/// The same of what is in the socket's place.
#[inline(always)]
fn name_first<A: Tables>(cookie: u64, service: &Endpoint<A>, backend: &Endpoint<A>) {
    if let Some(place) = place::<A>(cookie)
        && let Some(first) = owned(cookie, &place)
    {
        rename(first, service, backend);
    }
}

#[inline(always)]
fn rename<A: Tables>(first: &Translation<A>, service: &Endpoint<A>, backend: &Endpoint<A>) {
    if first.backend == *backend {
        let hidden = if first.service == *service { 0 } else { Translation::<A>::HIDDEN };
        set_id(first, first.id & !Translation::<A>::HIDDEN | hidden);
    }
}

/// Gives back what a socket that is closed held.
#[inline(always)]
pub(crate) fn forget(socket: *mut bpf_sock) {
    // SAFETY: the context, which is the socket here, is valid while the program runs.
    let family = unsafe { (&raw const (*socket).family).read_volatile() };
    let Some(config) = CONFIG.get(0) else { return };
    if let Some(cookie) = sock::known_cookie(socket, socket) {
        if let Some(place) = place::<u32>(cookie) {
            release(cookie, &place);
        }
        if (family == <[u32; 4] as Address>::FAMILY || config.changed_family.load() != 0)
            && let Some(place) = place::<[u32; 4]>(cookie)
        {
            release(cookie, &place);
        }
    }
    if overflowed(config) {
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
