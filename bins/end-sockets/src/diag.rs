//! Sockets by netlink (`NETLINK_SOCK_DIAG`): a list of them, and how one is destroyed. Of the calling thread's namespace.

use std::{
    io,
    mem::offset_of,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    os::fd::{AsRawFd as _, BorrowedFd},
};

use bpf_lb_abi::Overflow;
use common::wire;
use netlink_sys::{Socket, SocketAddr as Peer, protocols::NETLINK_SOCK_DIAG};
use service_table::Protocol;

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const INET_DIAG_REQ_SK_BPF_STORAGES: u16 = 2;
const INET_DIAG_REQ_PROTOCOL: u16 = 3;
const SK_DIAG_BPF_STORAGE_REQ_MAP_FD: u16 = 1;
const INET_DIAG_SK_BPF_STORAGES: u16 = 20;
const SK_DIAG_BPF_STORAGE: u16 = 1;
const SK_DIAG_BPF_STORAGE_MAP_VALUE: u16 = 3;

const TCP_LISTEN: u32 = 10;
const TCP_TIME_WAIT: u32 = 6;
const TCP_CLOSE: u32 = 7;
/// `enum` of `net/tcp_states.h`: those in which a socket has somebody at the other end.
const CONNECTED: u32 = 0xfff & !(1 << TCP_LISTEN) & !(1 << TCP_TIME_WAIT) & !(1 << TCP_CLOSE);

/// `struct inet_diag_req_v2`, `struct inet_diag_sockid` and `struct inet_diag_msg`, in bytes.
const REQUEST: usize = 56;
const ID: usize = 48;
const MESSAGE: usize = 72;

/// A socket.
#[derive(Clone, Debug)]
pub struct Found {
    /// Its cookie.
    pub cookie: u64,
    /// Where it is connected to; port 0 if it is not.
    pub remote: SocketAddr,
    /// What the balancer keeps with it, if it was asked for and there is any: an [`Overflow`].
    pub overflow: Option<Vec<u8>>,
    /// That of its file, or 0 if it has none.
    pub inode: u32,
    /// The index of the interface that it is bound to, or 0.
    pub interface: u32,
    family: u8,
    id: [u8; ID],
}

/// What to list.
#[derive(Clone, Copy, Debug)]
pub struct Query<'a> {
    /// Of which protocol.
    pub protocol: Protocol,
    /// The Multipath TCP sockets that have TCP's as subflows, in place of these.
    pub multipath: bool,
    /// Only those that are connected to this port.
    pub port: Option<u16>,
    /// Also those that are not connected. Without a port only.
    pub unconnected: bool,
    /// The map of socket-local storage whose values are wanted too. The kernel has them for TCP only (`inet_sk_diag_fill`).
    pub storage: Option<BorrowedFd<'a>>,
}

/// A netlink socket of the calling thread's network namespace.
pub struct Diag {
    socket: Socket,
    sequence: u32,
}

impl Diag {
    /// Opens one.
    pub fn open() -> io::Result<Self> {
        let socket = Socket::new(NETLINK_SOCK_DIAG)?;
        socket.connect(&Peer::new(0, 0))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// The sockets of both families that `query` is about; IPv4 ones of IPv6 sockets among them.
    pub fn list(&mut self, query: Query<'_>) -> io::Result<Vec<Found>> {
        let mut found = Vec::new();
        for family in [libc::AF_INET, libc::AF_INET6] {
            self.dump(family as u8, query, &mut found)?;
        }
        Ok(found)
    }

    fn dump(&mut self, family: u8, query: Query<'_>, found: &mut Vec<Found>) -> io::Result<()> {
        let mut id = [0; ID];
        id[2..4].copy_from_slice(&query.port.unwrap_or_default().to_be_bytes());
        let states = CONNECTED | if query.unconnected { 1 << TCP_CLOSE } else { 0 };
        let mut body = request(family, query.protocol, states, &id);
        if query.multipath {
            attribute(&mut body, INET_DIAG_REQ_PROTOCOL, &(libc::IPPROTO_MPTCP as u32).to_ne_bytes());
        }
        if let Some(map) = query.storage {
            let mut inner = Vec::new();
            attribute(&mut inner, SK_DIAG_BPF_STORAGE_REQ_MAP_FD, &map.as_raw_fd().to_ne_bytes());
            attribute(&mut body, INET_DIAG_REQ_SK_BPF_STORAGES | libc::NLA_F_NESTED as u16, &inner);
        }
        self.send(SOCK_DIAG_BY_FAMILY, libc::NLM_F_DUMP as u16, &body)?;
        loop {
            let (buffer, _) = self.socket.recv_from_full()?;
            for (kind, body) in wire::messages(&buffer) {
                match i32::from(kind) {
                    libc::NLMSG_DONE => return Ok(()),
                    libc::NLMSG_ERROR => return error(body),
                    _ => found.extend(parse(body)),
                }
            }
        }
    }

    /// Ends a socket: whoever waits on it gets ECONNABORTED.
    ///
    /// # Errors
    /// `EOPNOTSUPP` if the kernel cannot, see [`Diag::can_destroy`]; `ENOENT` if it is gone already.
    pub fn destroy(&mut self, protocol: Protocol, found: &Found) -> io::Result<()> {
        self.end(found.family, protocol, &found.id)
    }

    /// Whether the kernel can end sockets (`CONFIG_INET_DIAG_DESTROY`): it looks for one that nobody has then.
    pub fn can_destroy(&mut self) -> io::Result<bool> {
        match self.end(libc::AF_INET as u8, Protocol::Tcp, &[0; ID]) {
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(false),
            Err(error) if error.raw_os_error() != Some(libc::ENOENT) => Err(error),
            _ => Ok(true),
        }
    }

    fn end(&mut self, family: u8, protocol: Protocol, id: &[u8; ID]) -> io::Result<()> {
        self.send(SOCK_DESTROY, libc::NLM_F_ACK as u16, &request(family, protocol, u32::MAX, id))?;
        let (buffer, _) = self.socket.recv_from_full()?;
        wire::messages(&buffer)
            .find(|(kind, _)| i32::from(*kind) == libc::NLMSG_ERROR)
            .map_or(Ok(()), |(_, body)| error(body))
    }

    fn send(&mut self, kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
        self.sequence += 1;
        let len = u32::try_from(wire::HEADER + body.len()).map_err(io::Error::other)?;
        let mut message = Vec::with_capacity(wire::HEADER + body.len());
        message.extend(len.to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend((libc::NLM_F_REQUEST as u16 | flags).to_ne_bytes());
        message.extend(self.sequence.to_ne_bytes());
        message.extend(0_u32.to_ne_bytes());
        message.extend(body);
        self.socket.send(&message, 0).map(drop)
    }
}

fn request(family: u8, protocol: Protocol, states: u32, id: &[u8; ID]) -> Vec<u8> {
    let protocol = match protocol {
        Protocol::Tcp => libc::IPPROTO_TCP,
        Protocol::Udp => libc::IPPROTO_UDP,
    };
    let mut body = Vec::with_capacity(REQUEST);
    body.extend([family, protocol as u8, 0, 0]);
    body.extend(states.to_ne_bytes());
    body.extend(id);
    body
}

fn attribute(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    body.extend(u16::try_from(4 + value.len()).unwrap_or_default().to_ne_bytes());
    body.extend(kind.to_ne_bytes());
    body.extend(value);
    body.resize(body.len().next_multiple_of(4), 0);
}

fn error(body: &[u8]) -> io::Result<()> {
    match wire::u32_at(body, 0).map(u32::cast_signed) {
        Some(0) => Ok(()),
        Some(code) => Err(io::Error::from_raw_os_error(-code)),
        None => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// A message of the kernel's about a socket: `struct inet_diag_msg`, and attributes.
pub fn parse(body: &[u8]) -> Option<Found> {
    let family = *body.first()?;
    let id: [u8; ID] = body.get(4..4 + ID)?.try_into().ok()?;
    let port = u16::from_be_bytes([id[2], id[3]]);
    let remote: [u8; 16] = id.get(20..36)?.try_into().ok()?;
    let [a, b, c, d, ..] = remote;
    let address = if i32::from(family) == libc::AF_INET {
        IpAddr::from([a, b, c, d])
    } else {
        IpAddr::from(Ipv6Addr::from(remote)).to_canonical()
    };
    let cookie = id.get(40..48)?.as_chunks::<4>().0;
    let [low, high] = [cookie.first()?, cookie.get(1)?].map(|word| u64::from(u32::from_ne_bytes(*word)));
    let (interface, inode) = (wire::u32_at(&id, 36)?, wire::u32_at(body, MESSAGE - 4)?);
    let overflow = wire::attribute(body.get(MESSAGE..)?, INET_DIAG_SK_BPF_STORAGES)
        .and_then(|storages| wire::attribute(storages, SK_DIAG_BPF_STORAGE))
        .and_then(|storage| wire::attribute(storage, SK_DIAG_BPF_STORAGE_MAP_VALUE))
        .filter(|value| value.len() >= size_of::<Overflow>())
        .map(<[u8]>::to_vec);
    let (cookie, remote) = (high << 32 | low, SocketAddr::new(address, port));
    Some(Found { cookie, remote, overflow, inode, interface, family, id })
}

/// Whether the connection's translation is what the storage begins with.
const _: () = assert!(offset_of!(Overflow, connection) == 0);

impl Found {
    /// Whether it is one for IPv6, also if it is connected to an IPv4-mapped address.
    pub fn is_ipv6(&self) -> bool {
        i32::from(self.family) == libc::AF_INET6
    }

    /// The endpoints of the connection that the storage remembers: what was asked for, and what it became.
    pub fn remembered(&self) -> Option<(SocketAddr, SocketAddr)> {
        let storage = self.overflow.as_ref()?;
        let endpoint = |at: usize| {
            let address: [u8; 16] = storage.get(at..at + 16)?.try_into().ok()?;
            let port = u16::from_be_bytes(storage.get(at + 16..at + 18)?.try_into().ok()?);
            Some(SocketAddr::new(IpAddr::from(Ipv6Addr::from(address)).to_canonical(), port))
        };
        let (service, backend) = (endpoint(0)?, endpoint(20)?);
        (service.port() != 0).then_some((service, backend))
    }

    /// The cookie of the subflow that was connected so, if it is a Multipath TCP socket.
    pub fn subflow(&self) -> Option<u64> {
        let at = offset_of!(Overflow, subflow);
        Some(u64::from_ne_bytes(self.overflow.as_ref()?.get(at..at + 8)?.try_into().ok()?))
    }
}
