//! What the kernel itself knows of a socket. It is read where the kernel has it if that can be: on a CPU on which the kernel
//! guards its calls and returns, to ask a helper takes as long as a fourth of all that a program does.

use core::{arch::asm, hint::cold_path};

use aya_ebpf::{
    bindings::bpf_sock,
    helpers::generated::{
        bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_skc_to_mptcp_sock, bpf_skc_to_tcp6_sock, bpf_skc_to_udp6_sock,
    },
};
use bpf_lb_abi::{RDONLY_CAST, SockTypes, TCP};

use crate::setting::setting;

/// Whether the kernel lets the programs call `bpf_skc_to_mptcp_sock`, and read its own sockets. The loader sets it.
#[unsafe(no_mangle)]
static KERNEL_SOCKETS: u32 = 1;

/// Where to read. The loader sets it, if the programs can call `bpf_rdonly_cast`.
#[unsafe(no_mangle)]
static SOCK_TYPES: SockTypes = SockTypes::UNKNOWN;

/// The byte and the bit of `skc_ipv6only` in the kernel's `struct sock_common` (include/net/sock.h), with which its sockets begin.
const V6ONLY: (usize, u8) = (19, 1 << 5);

/// Gives the socket of the program's `context` a cookie, if it has none.
#[inline(always)]
pub(crate) fn new_cookie<T>(context: *mut T) -> u64 {
    // SAFETY: the context is valid while the program runs.
    unsafe { bpf_get_socket_cookie(context.cast()) }
}

/// The cookie of `socket`, which is that of the program's `context`; but nothing if it can be seen to have none.
#[inline(always)]
pub(crate) fn known_cookie<T>(context: *mut T, socket: *mut bpf_sock) -> Option<u64> {
    if setting(&SOCK_TYPES.sock_common) == 0 {
        return Some(new_cookie(context));
    }
    // SAFETY: the field is there, by the kernel's own word.
    let cookie = unsafe { member(socket, &SOCK_TYPES.sock_common, &SOCK_TYPES.cookie).cast::<u64>().read_volatile() };
    (cookie != 0).then_some(cookie)
}

/// The cookie of the network namespace of `socket`, which is that of the program's `context`.
#[inline(always)]
pub(crate) fn netns_cookie<T>(context: *mut T, socket: *mut bpf_sock) -> u64 {
    if setting(&SOCK_TYPES.sock_common) == 0 {
        // SAFETY: the context is valid while the program runs.
        return unsafe { bpf_get_netns_cookie(context.cast()) };
    }
    // SAFETY: the fields are there, by the kernel's own word.
    unsafe {
        let net = member(socket, &SOCK_TYPES.sock_common, &SOCK_TYPES.net).cast::<*const u8>().read_volatile();
        net.add(setting(&SOCK_TYPES.net_cookie) as usize).cast::<u64>().read_volatile()
    }
}

/// The socket that the process has, of which this is a subflow, if that is one of Multipath TCP. Subflows are the kernel's own
/// sockets, of whose end no hook is told.
#[inline(always)]
pub(crate) fn multipath(socket: *mut bpf_sock, protocol: u16) -> Option<*mut bpf_sock> {
    if protocol != TCP || !knows_kernel_sockets() || !may_be_subflow(socket) || socket.is_null() {
        return None;
    }
    // SAFETY: the socket is valid while the program runs.
    let found = unsafe { bpf_skc_to_mptcp_sock(socket.cast()) };
    (!found.is_null()).then_some(found.cast())
}

#[inline(always)]
fn may_be_subflow(socket: *mut bpf_sock) -> bool {
    if setting(&SOCK_TYPES.tcp_sock) == 0 {
        return true;
    }
    // SAFETY: the field is there, by the kernel's own word.
    let is_mptcp = unsafe { member(socket, &SOCK_TYPES.tcp_sock, &SOCK_TYPES.is_mptcp).read_volatile() } != 0;
    if is_mptcp {
        cold_path();
    }
    is_mptcp
}

/// Whether the kernel refuses an IPv4-mapped address, since the socket is for IPv6 alone. For where few get: it takes long.
#[inline(never)]
pub(crate) fn is_v6only(socket: *mut bpf_sock, protocol: u16) -> bool {
    if socket.is_null() || !knows_kernel_sockets() {
        return false;
    }
    let (byte, bit) = V6ONLY;
    // SAFETY: the socket is valid while the program runs.
    unsafe {
        let found: *const u8 = if protocol == TCP {
            bpf_skc_to_tcp6_sock(socket.cast()).cast()
        } else {
            bpf_skc_to_udp6_sock(socket.cast()).cast()
        };
        !found.is_null() && found.add(byte).read_volatile() & bit != 0
    }
}

#[inline(always)]
fn knows_kernel_sockets() -> bool {
    setting(&KERNEL_SOCKETS) != 0
}

/// Where the socket has a member of one of the kernel's types. The verifier makes one instruction of the call of `bpf_rdonly_cast`
/// (kernel/bpf/helpers.c), and where nothing is mapped 0 is read.
#[inline(always)]
fn member(socket: *mut bpf_sock, of: &'static u32, offset: &'static u32) -> *const u8 {
    let cast: *const u8;
    // SAFETY: the loader puts the call in the place of the instruction before it says that there are any types.
    unsafe {
        asm!(
            "r0 = {call}",
            call = const RDONLY_CAST,
            lateout("r0") cast,
            inlateout("r1") socket => _,
            inlateout("r2") u64::from(setting(of)) => _,
            lateout("r3") _,
            lateout("r4") _,
            lateout("r5") _,
        );
    }
    cast.wrapping_add(setting(offset) as usize)
}
