//! What `bpf-lb-load trace` is told of each call.

use crate::Endpoint;

/// What became of the address that a call gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Verdict {
    /// It was replaced by a backend's.
    Translated = 0,
    /// The call was refused: the Service has no backends.
    NoBackends = 1,
    /// The call was refused: the address is a Service's, and has no such port.
    NoSuchPort = 2,
    /// A Service's, and left as it is: there was no room to remember the translation.
    NoRoom = 3,
    /// A Service's, and left as it is: the network namespace takes no part.
    TakesNoPart = 4,
    /// No Service's.
    NoService = 5,
    /// A Service's IPv4-mapped address, and left as it is: the socket is for IPv6 alone, and the kernel refuses it.
    Ipv6Only = 6,
}

/// Which call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Call {
    /// `connect()`.
    Connect = 0,
    /// `sendto()` and its like, of a datagram to an address.
    Sendmsg = 1,
}

/// A call, in the ring buffer `trace_ring`. IPv4 addresses are IPv4-mapped.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Traced {
    /// By `CLOCK_MONOTONIC`, in ns.
    pub time_ns: u64,
    /// The cookie of the socket's network namespace.
    pub netns: u64,
    /// The number of the process' cgroup.
    pub cgroup: u64,
    /// What the process asked for.
    pub asked: Endpoint<[u32; 4]>,
    /// What it got. The same, if that was not translated.
    pub got: Endpoint<[u32; 4]>,
    /// The process, in the host's PID namespace.
    pub pid: u32,
    /// Index into `names`, or [`crate::NO_SERVICE`].
    pub service: u32,
    /// [`Verdict`].
    pub verdict: u32,
    /// [`Call`].
    pub call: u32,
    /// The error with which the call fails by now, or 0.
    pub errno: u32,
    /// 1 for an IPv6 socket, whichever address it asked for.
    pub is_ipv6_socket: u32,
    /// What the thread is called, filled up with zeros.
    pub comm: [u8; 16],
}

const _: () = assert!(size_of::<Traced>() == 3 * 8 + 2 * 20 + 6 * 4 + 16 && align_of::<Traced>() == 8);
