//! What the kernel says when something changes, on the node and in every pod: one socket hears all namespaces that the
//! node has a number for (`NETLINK_LISTEN_ALL_NSID`), and holds none of them open.

use std::{
    io, mem,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    ptr,
};

use common::object::NFT_TABLE;
use nix::libc;

/// Room for what the kernel says while nobody listens, in bytes; what does not fit is lost, and said to be (`ENOBUFS`).
const ROOM: i32 = 8 << 20;
/// No notification is longer, in bytes.
const LONGEST: usize = 64 << 10;

/// One of the kernel's sources of notifications.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// rtnetlink: links, addresses, neighbours, routes, rules, and the settings of links.
    Network,
    /// nf_tables.
    Ruleset,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Network, Self::Ruleset];

    fn protocol(self) -> i32 {
        match self {
            Self::Network => libc::NETLINK_ROUTE,
            Self::Ruleset => libc::NETLINK_NETFILTER,
        }
    }

    fn groups(self) -> &'static [u32] {
        match self {
            Self::Network => &[
                libc::RTNLGRP_LINK,
                libc::RTNLGRP_NEIGH,
                libc::RTNLGRP_IPV4_IFADDR,
                libc::RTNLGRP_IPV6_IFADDR,
                libc::RTNLGRP_IPV4_ROUTE,
                libc::RTNLGRP_IPV6_ROUTE,
                libc::RTNLGRP_IPV4_RULE,
                libc::RTNLGRP_IPV6_RULE,
                libc::RTNLGRP_IPV4_NETCONF,
                libc::RTNLGRP_IPV6_NETCONF,
            ],
            Self::Ruleset => &[NFNLGRP_NFTABLES],
        }
    }
}

/// `NFNLGRP_NFTABLES`.
const NFNLGRP_NFTABLES: u32 = 7;
/// `NETLINK_LISTEN_ALL_NSID`, a socket option and the kind of control message that names the namespace.
const LISTEN_ALL_NSID: i32 = 8;

/// What has changed somewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// A link.
    Link {
        /// Its index.
        index: u32,
        /// Its name.
        name: String,
    },
    /// An address on a link.
    Address {
        /// The link's index.
        index: u32,
    },
    /// A neighbour on a link.
    Neighbour {
        /// The link's index.
        index: u32,
        /// The neighbour's address.
        address: IpAddr,
    },
    /// A route.
    Route {
        /// The destination, if it is a single address.
        destination: Option<IpAddr>,
        /// The routing protocol number.
        protocol: u8,
    },
    /// A policy rule.
    Rule {
        /// The routing protocol number.
        protocol: u8,
        /// Its place: the smaller comes first.
        priority: u32,
    },
    /// A sysctl of a link, as far as the kernel tells of it.
    Settings {
        /// The link's index.
        index: u32,
    },
    /// The nftables table of ours.
    Marks,
}

/// A notification.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// Of the node's namespace.
    Node(What),
    /// Of the namespace with this number.
    Pod(i32, What),
    /// Some were lost.
    Lost,
}

/// A socket that hears one kind of notification.
#[derive(Debug)]
pub struct Listener {
    kind: Kind,
    socket: OwnedFd,
    buffer: Vec<u8>,
}

#[expect(unsafe_code, reason = "neither std nor nix has netlink's control messages")]
impl Listener {
    /// Begins to listen, from the calling thread's network namespace.
    ///
    /// # Errors
    /// What the kernel says; `PermissionDenied` without `CAP_NET_BROADCAST`.
    pub fn open(kind: Kind) -> io::Result<Self> {
        let raw = unsafe { libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, kind.protocol()) };
        if raw < 0 {
            return Err(io::Error::last_os_error());
        }
        let socket = unsafe { OwnedFd::from_raw_fd(raw) };
        let option = |level: i32, name: i32, value: i32| {
            let length = size_of::<i32>() as u32;
            match unsafe { libc::setsockopt(raw, level, name, ptr::from_ref(&value).cast(), length) } {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            }
        };
        // One without an address of its own is taken for the kernel's, which is told nothing (`do_one_broadcast`).
        let mut address: libc::sockaddr_nl = unsafe { mem::zeroed() };
        address.nl_family = libc::AF_NETLINK as u16;
        let length = size_of_val(&address) as u32;
        if unsafe { libc::bind(raw, ptr::from_ref(&address).cast(), length) } < 0 {
            return Err(io::Error::last_os_error());
        }
        option(libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, ROOM)?;
        option(libc::SOL_NETLINK, LISTEN_ALL_NSID, 1)?;
        for group in kind.groups() {
            option(libc::SOL_NETLINK, libc::NETLINK_ADD_MEMBERSHIP, group.cast_signed())?;
        }
        Ok(Self { kind, socket, buffer: vec![0; LONGEST] })
    }

    /// Waits for the next notifications. Empty for some that are of no concern.
    ///
    /// # Errors
    /// What the kernel says, but for lost ones, which are [`Notice::Lost`].
    pub fn receive(&mut self) -> io::Result<Vec<Notice>> {
        let (length, nsid) = match self.next() {
            Ok(next) => next,
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => return Ok(vec![Notice::Lost]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(vec![]),
            Err(error) => return Err(error),
        };
        let place = |what: What| match nsid {
            Some(nsid) => Notice::Pod(nsid, what),
            None => Notice::Node(what),
        };
        let messages = messages(&self.buffer[..length]);
        Ok(messages.filter_map(|(kind, body)| parse(self.kind, kind, body)).map(place).collect())
    }

    /// The length of the next datagram, and the number of the namespace that it is about if that is not our own.
    fn next(&mut self) -> io::Result<(usize, Option<i32>)> {
        let mut part = libc::iovec { iov_base: self.buffer.as_mut_ptr().cast(), iov_len: self.buffer.len() };
        let mut control = [0u64; 8];
        let mut header: libc::msghdr = unsafe { mem::zeroed() };
        header.msg_iov = &raw mut part;
        header.msg_iovlen = 1;
        header.msg_control = control.as_mut_ptr().cast();
        header.msg_controllen = size_of_val(&control) as _;
        let length = unsafe { libc::recvmsg(self.socket.as_raw_fd(), &raw mut header, 0) };
        let length = usize::try_from(length).map_err(|_| io::Error::last_os_error())?;
        let mut nsid = None;
        let mut next = unsafe { libc::CMSG_FIRSTHDR(&raw const header) };
        while let Some(message) = unsafe { next.as_ref() } {
            if (message.cmsg_level, message.cmsg_type) == (libc::SOL_NETLINK, LISTEN_ALL_NSID) {
                nsid = Some(unsafe { libc::CMSG_DATA(next).cast::<i32>().read_unaligned() });
            }
            next = unsafe { libc::CMSG_NXTHDR(&raw const header, next) };
        }
        Ok((length, nsid))
    }
}

/// The messages of a datagram (`struct nlmsghdr`): kind and body.
fn messages(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = u32_at(rest, 0)? as usize;
        let (kind, body) = (u16_at(rest, 4)?, rest.get(16..length)?);
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, body))
    })
}

/// The attributes after a header of this length (`struct nlattr`): kind and value.
fn attributes(body: &[u8], header: usize) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = body.get(header..).unwrap_or_default();
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(rest, 0)?);
        let (kind, value) = (u16_at(rest, 2)?, rest.get(4..length)?);
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// What a message says, if it is of any concern: the headers are `ifinfomsg`, `ifaddrmsg`, `ndmsg`, `rtmsg`,
/// `fib_rule_hdr`, `netconfmsg` and `nfgenmsg`.
fn parse(source: Kind, kind: u16, body: &[u8]) -> Option<What> {
    if let Kind::Ruleset = source {
        // A generation's end has no table; NFTA_TABLE_NAME, NFTA_CHAIN_TABLE, NFTA_RULE_TABLE, NFTA_SET_TABLE are all 1.
        let table = attributes(body, 4).find(|(kind, _)| *kind == 1)?.1;
        return (table.strip_suffix(&[0])? == NFT_TABLE.as_bytes()).then_some(What::Marks);
    }
    let text = |value: &[u8]| String::from_utf8_lossy(value.strip_suffix(&[0]).unwrap_or(value)).into_owned();
    Some(match kind {
        libc::RTM_NEWLINK | libc::RTM_DELLINK => {
            let name = attributes(body, 16).find(|(kind, _)| *kind == libc::IFLA_IFNAME)?.1;
            What::Link { index: u32_at(body, 4)?, name: text(name) }
        }
        libc::RTM_NEWADDR | libc::RTM_DELADDR => What::Address { index: u32_at(body, 4)? },
        libc::RTM_NEWNEIGH | libc::RTM_DELNEIGH => {
            let value = attributes(body, 12).find(|(kind, _)| *kind == NDA_DST)?.1;
            What::Neighbour { index: u32_at(body, 4)?, address: address(value)? }
        }
        libc::RTM_NEWROUTE | libc::RTM_DELROUTE => {
            let value = attributes(body, 12).find(|(kind, _)| *kind == libc::RTA_DST).map(|(_, value)| value);
            let single = value.filter(|value| value.len() * 8 == usize::from(body[1]));
            What::Route { destination: single.and_then(address), protocol: *body.get(5)? }
        }
        libc::RTM_NEWRULE | libc::RTM_DELRULE => {
            let attribute = |wanted| attributes(body, 12).find(|(kind, _)| *kind == wanted).map(|(_, value)| value);
            // The first place has no attribute.
            let priority = attribute(FRA_PRIORITY).and_then(|value| u32_at(value, 0)).unwrap_or_default();
            What::Rule { protocol: *attribute(FRA_PROTOCOL)?.first()?, priority }
        }
        RTM_NEWNETCONF | RTM_DELNETCONF => {
            let index = attributes(body, 4).find(|(kind, _)| *kind == NETCONFA_IFINDEX)?.1;
            What::Settings { index: u32_at(index, 0)? }
        }
        _ => return None,
    })
}

const NDA_DST: u16 = 1;
const FRA_PRIORITY: u16 = 6;
const FRA_PROTOCOL: u16 = 21;
const RTM_NEWNETCONF: u16 = 80;
const RTM_DELNETCONF: u16 = 81;
const NETCONFA_IFINDEX: u16 = 1;

fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => Some(IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?))),
        16 => Some(IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?))),
        _ => None,
    }
}
