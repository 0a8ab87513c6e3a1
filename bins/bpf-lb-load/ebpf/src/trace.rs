//! Programs that are there only while `bpf-lb-load trace` runs. They are attached after the others, see what those made of an
//! address, and change nothing.

use aya_ebpf::{
    bindings::{BPF_RB_NO_WAKEUP, bpf_sock_addr},
    btf_maps::{Array, RingBuf},
    helpers::{
        bpf_get_current_comm, bpf_get_current_pid_tgid,
        generated::{bpf_get_current_cgroup_id, bpf_get_retval, bpf_ktime_get_ns},
    },
    macros::btf_map,
};
use bpf_lb_abi::{Call, Endpoint, Long, NO_SERVICE, Traced, UDP, Verdict};

use crate::{
    atomic::add,
    backend::{frontend_called, has_expired, is_frontend, netns},
    maps::{CONFIG, Tables},
    peer::{Socket, wide},
    setting::setting,
    sockaddr::{Inet6, Sockaddr, sockaddr_programs},
};

/// The loader sets its size when somebody traces.
#[btf_map(name = "trace_ring")]
static RING: RingBuf<Traced, 4096> = RingBuf::new();
/// How many did not fit into the ring buffer.
#[btf_map(name = "trace_lost")]
static LOST: Array<Long, 1> = Array::new();

/// Whether the kernel has `bpf_get_retval` (5.18). The loader sets it.
#[unsafe(no_mangle)]
static GET_RETVAL: u32 = 1;

/// Whether addresses that are no Service's are told of too. The loader sets it.
#[unsafe(no_mangle)]
static TRACE_OTHERS: u32 = 0;

/// The system call goes on, or fails as it did before.
const ALLOW: i32 = 1;

/// The error with which the call fails, since a program before this one said so.
#[inline(always)]
fn errno() -> u32 {
    if setting(&GET_RETVAL) == 0 {
        return 0;
    }
    // SAFETY: takes no arguments.
    unsafe { bpf_get_retval() }.unsigned_abs()
}

/// Called, since the hooks of connect() and of sendmsg() tell the same, and so do those of IPv6 of an IPv4-mapped address.
#[inline(never)]
fn trace<A: Tables>(context: *mut bpf_sock_addr, got: Endpoint<A>, call: Call) {
    // Of whatever family the hook is: the address was read before, and the rest is the same.
    let sockaddr = Inet6(context);
    let errno = errno();
    let Some(config) = CONFIG.get(0) else { return };
    let socket = Socket::known(config, sockaddr);
    let asked = socket.as_ref().and_then(|socket| socket.translated(&got));
    // send() runs the hook too where the peer is IPv4-mapped, with the peer's address: it asks for nothing.
    let is_sent_on =
        |socket: &Socket<A>| socket.is_mapped() && socket.is_connected_to(&got) && socket.peer(&got) == asked;
    if matches!(call, Call::Sendmsg) && socket.as_ref().is_some_and(is_sent_on) {
        return;
    }
    if let Some(asked) = asked {
        let service = frontend_called(config, sockaddr, &asked).map_or(NO_SERVICE, |frontend| frontend.service().0);
        let told = Told { verdict: Verdict::Translated, errno, service, asked: wide(&asked), got: wide(&got) };
        return tell(sockaddr, call, &told);
    }
    let (verdict, service) = match frontend_called(config, sockaddr, &got).map(|frontend| frontend.service()) {
        Some((service, _)) if errno == 0 && socket.is_some_and(|socket| socket.is_v6only(got.protocol)) => {
            (Verdict::Ipv6Only, service)
        }
        // Where the error is not known, it is taken for refused.
        Some((service, false)) if got.protocol == UDP && errno == 0 && setting(&GET_RETVAL) != 0 => {
            (Verdict::HostPath, service)
        }
        Some((NO_SERVICE, _)) => (Verdict::NoSuchPort, NO_SERVICE),
        Some((service, true)) if errno == 0 => (Verdict::NoRoom, service),
        Some((service, _)) => (Verdict::NoBackends, service),
        None if is_frontend(config, &got) && has_expired(config) => (Verdict::Expired, NO_SERVICE),
        None if is_frontend(config, &got) => (Verdict::TakesNoPart, NO_SERVICE),
        None if setting(&TRACE_OTHERS) != 0 => (Verdict::NoService, NO_SERVICE),
        None => return,
    };
    tell(sockaddr, call, &Told { verdict, errno, service, asked: wide(&got), got: wide(&got) });
}

/// What there is to tell of a call.
struct Told {
    verdict: Verdict,
    errno: u32,
    /// Or [`NO_SERVICE`].
    service: u32,
    asked: Endpoint<[u32; 4]>,
    got: Endpoint<[u32; 4]>,
}

#[inline(never)]
fn tell(sockaddr: Inet6, call: Call, told: &Told) {
    let Some(mut entry) = RING.reserve(0) else {
        if let Some(lost) = LOST.get(0) {
            add(lost, 1);
        }
        return;
    };
    let traced = entry.as_mut_ptr();
    let endpoint = |place: *mut Endpoint<[u32; 4]>, value: &Endpoint<[u32; 4]>| {
        // SAFETY: the place is a part of the entry, which is this program's until it is submitted.
        unsafe {
            let address = (&raw mut (*place).address).cast::<u32>();
            for index in 0..4 {
                address.add(index).write(value.address[index]);
            }
            (&raw mut (*place).port).write(value.port);
            (&raw mut (*place).protocol).write(value.protocol);
        }
    };
    // SAFETY: as above, and the helpers take no arguments that could be wrong.
    unsafe {
        (&raw mut (*traced).time_ns).write(bpf_ktime_get_ns());
        (&raw mut (*traced).netns).write(netns(sockaddr));
        (&raw mut (*traced).cgroup).write(bpf_get_current_cgroup_id());
        endpoint(&raw mut (*traced).asked, &told.asked);
        endpoint(&raw mut (*traced).got, &told.got);
        (&raw mut (*traced).pid).write((bpf_get_current_pid_tgid() >> 32) as u32);
        (&raw mut (*traced).service).write(told.service);
        (&raw mut (*traced).verdict).write(told.verdict as u32);
        (&raw mut (*traced).call).write(call as u32);
        (&raw mut (*traced).errno).write(told.errno);
        (&raw mut (*traced).is_ipv6_socket).write(u32::from(sockaddr.is_dual()));
        (&raw mut (*traced).comm).write(bpf_get_current_comm().unwrap_or_default());
    }
    // Whoever reads looks from time to time: a wakeup for each costs the process that connects more than all else here.
    entry.submit(u64::from(BPF_RB_NO_WAKEUP));
}

#[inline(always)]
fn connect<S: Sockaddr>(sockaddr: S) -> i32 {
    if sockaddr.is_right() {
        trace(sockaddr.context(), sockaddr.endpoint(), Call::Connect);
    }
    ALLOW
}

#[inline(always)]
fn sendmsg<S: Sockaddr>(sockaddr: S) -> i32 {
    trace(sockaddr.context(), sockaddr.endpoint(), Call::Sendmsg);
    ALLOW
}

sockaddr_programs!(connect, connect4 trace_connect4, connect6 trace_connect6);
sockaddr_programs!(sendmsg, sendmsg4 trace_sendmsg4, sendmsg6 trace_sendmsg6);
