//! How the programs get at what the kernel itself knows of a socket.

/// What the programs have where they call `bpf_rdonly_cast`, in an instruction `r0 = RDONLY_CAST`: what number the kernel's function
/// has differs from one kernel to the next.
pub const RDONLY_CAST: i32 = 0x6361_7374;

/// Where the kernel's types are in its BTF, and where in them the members are that the programs read, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct SockTypes {
    /// `struct sock_common`, with which the kernel's sockets begin. 0: nothing of it can be read.
    pub sock_common: u32,
    /// Its `skc_cookie`.
    pub cookie: u32,
    /// Its `skc_net`, a pointer.
    pub net: u32,
    /// `net_cookie` in the `struct net` that it points to.
    pub net_cookie: u32,
    /// `struct tcp_sock`. 0: nothing of it can be read.
    pub tcp_sock: u32,
    /// Its `is_mptcp`.
    pub is_mptcp: u32,
}

impl SockTypes {
    /// When nothing can be read.
    pub const UNKNOWN: Self = Self { sock_common: 0, cookie: 0, net: 0, net_cookie: 0, tcp_sock: 0, is_mptcp: 0 };
}
