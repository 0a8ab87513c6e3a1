//! The programs, one for each hook.

use core::hint::cold_path;

use aya_ebpf::{bindings::bpf_sock, helpers::generated::bpf_set_retval, macros::cgroup_sock, programs::SockContext};
use bpf_lb_abi::{MAPPED_PREFIX, TCP, Translation, UDP};

use crate::{
    backend::{frontend, has_expired, has_node_port, node_of},
    maps::{CONFIG, Tables},
    peer::{Socket, forget, leave},
    setting::setting,
    sock,
    sockaddr::{Sockaddr, sockaddr_programs},
};

/// The system call goes on.
const ALLOW: i32 = 1;
/// The system call fails.
const REFUSE: i32 = 0;

/// `IPPROTO_MPTCP`.
const MPTCP: u16 = 262;

const ECONNREFUSED: i32 = 111;
const EADDRINUSE: i32 = 98;

/// Whether the kernel has `bpf_set_retval` (5.18); without it a refused call fails with EPERM. The loader sets it.
#[unsafe(no_mangle)]
static SET_RETVAL: u32 = 1;

/// Whether another path leads to Services too. The loader sets it.
#[unsafe(no_mangle)]
static HOST_PATH: u32 = 0;

/// Whether the host path is asked for a Service without backends: it refuses each datagram by itself, and serves the same socket as soon as
/// there is a backend. To many who connect once and then send, a connect() that fails is final.
#[inline(always)]
fn is_for_host_path(protocol: u16) -> bool {
    protocol == UDP && setting(&HOST_PATH) != 0
}

#[inline(always)]
fn fail(errno: i32) -> i32 {
    cold_path();
    if setting(&SET_RETVAL) != 0 {
        // SAFETY: takes a number only.
        unsafe { bpf_set_retval(-errno) };
    }
    REFUSE
}

#[inline(always)]
fn connect<S: Sockaddr>(sockaddr: S) -> i32 {
    if !sockaddr.is_right() {
        return ALLOW;
    }
    let wanted = sockaddr.endpoint();
    let Some(config) = CONFIG.get(0) else { return ALLOW };
    let Some(frontend) = frontend(config, sockaddr, &wanted) else {
        leave(config, sockaddr, &wanted);
        return ALLOW;
    };
    let Some(socket) = Socket::of(config, sockaddr) else { return ALLOW };
    // As with a connection tracker, datagrams that were sent to the service before keep their backend.
    if wanted.protocol == UDP
        && let Some(mut flow) = socket.flow_to(&wanted)
        && frontend.still_leads_to(&flow)
    {
        if socket.connect_flow(&mut flow) {
            sockaddr.rewrite(&flow.backend);
        }
        return ALLOW;
    }
    let multipath = socket.multipath(wanted.protocol);
    let Some(slot) = frontend.choose(sockaddr, socket.random(multipath)) else {
        if is_for_host_path(wanted.protocol) {
            leave(config, sockaddr, &wanted);
            return ALLOW;
        }
        return if socket.is_v6only(wanted.protocol) { ALLOW } else { fail(ECONNREFUSED) };
    };
    if socket.connect(|| frontend.translate(&wanted, slot), || frontend.count(slot), multipath) {
        sockaddr.rewrite(&slot.endpoint);
    }
    ALLOW
}

/// A datagram that is sent to an address. As with a connection tracker, a socket's flow to a service keeps its backend.
#[inline(always)]
fn send<S: Sockaddr>(sockaddr: S) -> i32 {
    let wanted = sockaddr.endpoint();
    let Some(config) = CONFIG.get(0) else { return ALLOW };
    let Some(frontend) = frontend(config, sockaddr, &wanted) else {
        if let Some(socket) = Socket::known(config, sockaddr) {
            socket.ask(&wanted);
        }
        return ALLOW;
    };
    let Some(socket) = Socket::of(config, sockaddr) else { return ALLOW };
    if socket.is_mapped() && socket.is_connected_to(&wanted) {
        // It may be send(), and from any other peer the kernel drops what it answers. The address is a backend's that is some Service's too,
        // or became a Service's, or was left to the host path.
        return ALLOW;
    }
    if let Some(known) = socket.sent_to(&wanted) {
        if frontend.still_leads_to(&known) {
            return send_again(sockaddr, &socket, &known);
        }
        cold_path();
        // A connection's backend may have gone, and flows are remembered beside it.
        if let Some(flow) = socket.flow_to(&wanted)
            && frontend.still_leads_to(&flow)
        {
            return send_again(sockaddr, &socket, &flow);
        }
    }
    let random = socket.random(None);
    let Some(mut slot) = frontend.choose(sockaddr, random) else {
        if is_for_host_path(wanted.protocol) {
            socket.ask(&wanted);
            return ALLOW;
        }
        return fail(ECONNREFUSED);
    };
    // Answers tell no name: of a backend that the socket asks by two, they are taken for those of the name asked last.
    if socket.asks(&slot.endpoint)
        && let Some(other) = frontend.another(&socket, random)
    {
        slot = other;
    }
    if socket.send(&wanted, || frontend.translate(&wanted, slot), || frontend.count(slot)) {
        sockaddr.rewrite(&slot.endpoint);
    }
    ALLOW
}

#[inline(always)]
fn send_again<S: Sockaddr>(sockaddr: S, socket: &Socket<S::Address>, known: &Translation<S::Address>) -> i32 {
    if known.id & Translation::<S::Address>::HIDDEN != 0 {
        socket.ask_again(known);
    }
    sockaddr.rewrite(&known.backend);
    ALLOW
}

#[inline(always)]
fn receive<S: Sockaddr>(sockaddr: S) -> i32 {
    let Some(config) = CONFIG.get(0) else { return ALLOW };
    if let Some(service) = Socket::known(config, sockaddr).and_then(|socket| socket.sender(&sockaddr.endpoint())) {
        sockaddr.rewrite(&service);
    }
    ALLOW
}

#[inline(always)]
fn peer_name<S: Sockaddr>(sockaddr: S) -> i32 {
    let mut backend = sockaddr.endpoint();
    if backend.protocol == MPTCP {
        // Its subflows were connected.
        backend.protocol = TCP;
    }
    let Some(config) = CONFIG.get(0) else { return ALLOW };
    if let Some(service) = Socket::known(config, sockaddr).and_then(|socket| socket.peer(&backend)) {
        sockaddr.rewrite(&service);
    }
    ALLOW
}

/// The ports on which node ports are protected, first and last, in host byte order. The loader sets them.
#[unsafe(no_mangle)]
static PROTECTED: [u16; 2] = [0, 0];

/// Keeps the node's own processes off a port that, on the node's addresses, leads to a Service: whoever bound it would
/// never be reached there. What the kernel chooses is not such a port, since the loader reserves them.
#[inline(always)]
fn bind<A: Tables>(socket: *mut bpf_sock, address: A, is_any: bool) -> i32 {
    // SAFETY: the context is valid while the program runs.
    let (port, protocol) = unsafe {
        ((&raw const (*socket).src_port).read_volatile() as u16, (&raw const (*socket).protocol).read_volatile() as u16)
    };
    let [first, last] = setting(&PROTECTED);
    let Some(config) = CONFIG.get(0) else { return ALLOW };
    if config.node_netns.load() != sock::netns_cookie(socket, socket)
        || port < first
        || port > last
        || protocol != TCP && protocol != UDP
    {
        return ALLOW;
    }
    let is_taken = has_node_port(port, protocol)
        && !has_expired(config)
        && if is_any { config.has_nodes.load() != 0 } else { node_of(&address) == Some(0) };
    if is_taken { fail(EADDRINUSE) } else { ALLOW }
}

sockaddr_programs!(connect, connect4 connect4, connect6 connect6);
sockaddr_programs!(send, sendmsg4 sendmsg4, sendmsg6 sendmsg6);
sockaddr_programs!(receive, recvmsg4 recvmsg4, recvmsg6 recvmsg6);
sockaddr_programs!(peer_name, getpeername4 getpeername4, getpeername6 getpeername6);

#[cgroup_sock(sock_release)]
pub fn sock_release(context: SockContext) -> i32 {
    forget(context.sock);
    ALLOW
}

#[cgroup_sock(post_bind4)]
pub fn post_bind4(context: SockContext) -> i32 {
    // SAFETY: the context is valid while the program runs.
    let address = unsafe { (&raw const (*context.sock).src_ip4).read_volatile() };
    bind(context.sock, address, address == 0)
}

#[cgroup_sock(post_bind6)]
pub fn post_bind6(context: SockContext) -> i32 {
    // SAFETY: the context is valid while the program runs, and the field has four words.
    let address = [0, 1, 2, 3]
        .map(|index| unsafe { (&raw const (*context.sock).src_ip6).cast::<u32>().add(index).read_volatile() });
    match address {
        [0, 0, MAPPED_PREFIX, address] => bind(context.sock, address, address == 0),
        // Of IPv4 too, unless the socket is for IPv6 only, which a program cannot know.
        _ => bind(context.sock, address, address == [0; 4]),
    }
}
