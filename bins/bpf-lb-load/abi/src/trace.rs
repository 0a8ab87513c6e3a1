//! What `bpf-lb-load trace` is told of each call.

use crate::endpoint::Endpoint;

/// What became of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(serde::Serialize, schemars::JsonSchema), serde(rename_all = "kebab-case"))]
#[repr(u32)]
pub enum Verdict {
    /// The Service's address was replaced by a backend's.
    Translated = 0,
    /// Refused: the Service has no backends.
    NoBackends = 1,
    /// Refused: the address is a Service's, and has no such port.
    NoSuchPort = 2,
    /// Left as it is: there is no room to remember one more Service of this socket.
    NoRoom = 3,
    /// Left as it is: the network namespace takes no part in the socket path.
    TakesNoPart = 4,
    /// Left as it is: the address and port are no Service's.
    NoService = 5,
    /// Left as it is: the socket is for IPv6 alone (IPV6_V6ONLY), to which the kernel refuses an IPv4-mapped address.
    Ipv6Only = 6,
    /// Left as it is: nobody has renewed the table for longer than it was good for.
    Expired = 7,
    /// Left as it is: there is no backend, and the host path refuses each datagram by itself, or serves it.
    HostPath = 8,
}

#[cfg(feature = "user")]
impl Verdict {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Translated,
        Self::NoBackends,
        Self::NoSuchPort,
        Self::NoRoom,
        Self::TakesNoPart,
        Self::NoService,
        Self::Ipv6Only,
        Self::Expired,
        Self::HostPath,
    ];

    /// The one with that number.
    pub fn of(number: u32) -> Self {
        Self::ALL.into_iter().find(|verdict| *verdict as u32 == number).unwrap_or(Self::NoService)
    }
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
