//! What the kernel says when something changes, on the node and in every pod: one socket hears all namespaces that the
//! node has a number for (`NETLINK_LISTEN_ALL_NSID`), and holds none of them open.

use std::{
    io::{self, IoSliceMut},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::AsRawFd as _,
};

use common::{
    object::{Family, NFT_TABLE},
    wire::{self, u32_at},
};
use ipnet::IpNet;
use netlink_sys::{
    Socket,
    protocols::{NETLINK_NETFILTER, NETLINK_ROUTE},
};
use nix::{
    libc,
    sys::socket::{ControlMessageOwned, MsgFlags, UnknownCmsg, recvmsg, setsockopt, sockopt::RcvBufForce},
};

/// Room for what the kernel says while nobody listens, in bytes; what does not fit is lost, and said to be (`ENOBUFS`).
const ROOM: usize = 8 << 20;
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

    fn protocol(self) -> isize {
        match self {
            Self::Network => NETLINK_ROUTE,
            Self::Ruleset => NETLINK_NETFILTER,
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
            Self::Ruleset => &[libc::NFNLGRP_NFTABLES as u32],
        }
    }
}

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
        /// The destination.
        destination: IpNet,
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
    socket: Socket,
    buffer: Vec<u8>,
}

impl Listener {
    /// Begins to listen, from the calling thread's network namespace.
    ///
    /// # Errors
    /// What the kernel says; `PermissionDenied` without `CAP_NET_BROADCAST`.
    pub fn open(kind: Kind) -> io::Result<Self> {
        let mut socket = Socket::new(kind.protocol())?;
        // One without an address of its own is taken for the kernel's, which is told nothing (`do_one_broadcast`).
        socket.bind_auto()?;
        setsockopt(&socket, RcvBufForce, &ROOM)?;
        socket.set_listen_all_namespaces(true)?;
        for group in kind.groups() {
            socket.add_membership(*group)?;
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
        let messages = wire::messages(&self.buffer[..length]);
        Ok(messages.filter_map(|(kind, body)| parse(self.kind, kind, body)).map(place).collect())
    }

    /// The length of the next datagram, and the number of the namespace that it is about if that is not our own.
    fn next(&mut self) -> io::Result<(usize, Option<i32>)> {
        let (mut parts, mut control) = ([IoSliceMut::new(&mut self.buffer)], nix::cmsg_space!(i32));
        let socket = self.socket.as_raw_fd();
        let datagram = recvmsg::<()>(socket, &mut parts, Some(&mut control), MsgFlags::empty())?;
        let nsid = datagram.cmsgs()?.find_map(|message| match message {
            ControlMessageOwned::Unknown(UnknownCmsg { cmsg_header, data_bytes }) => {
                let kind = (cmsg_header.cmsg_level, cmsg_header.cmsg_type);
                let is_nsid = kind == (libc::SOL_NETLINK, libc::NETLINK_LISTEN_ALL_NSID);
                is_nsid.then(|| wire::u32_at(&data_bytes, 0).map(u32::cast_signed)).flatten()
            }
            _ => None,
        });
        Ok((datagram.bytes, nsid))
    }
}

/// What a message says, if it is of any concern: the headers are `ifinfomsg`, `ifaddrmsg`, `ndmsg`, `rtmsg`,
/// `fib_rule_hdr`, `netconfmsg` and `nfgenmsg`.
fn parse(source: Kind, kind: u16, body: &[u8]) -> Option<What> {
    if let Kind::Ruleset = source {
        // A generation's end has no table; NFTA_TABLE_NAME, NFTA_CHAIN_TABLE, NFTA_RULE_TABLE, NFTA_SET_TABLE are all 1.
        let table = wire::attribute(body.get(4..)?, 1)?;
        return (table.strip_suffix(&[0])? == NFT_TABLE.as_bytes()).then_some(What::Marks);
    }
    let text = |value: &[u8]| String::from_utf8_lossy(value.strip_suffix(&[0]).unwrap_or(value)).into_owned();
    Some(match kind {
        libc::RTM_NEWLINK | libc::RTM_DELLINK => {
            What::Link { index: u32_at(body, 4)?, name: text(wire::attribute(body.get(16..)?, libc::IFLA_IFNAME)?) }
        }
        libc::RTM_NEWADDR | libc::RTM_DELADDR => What::Address { index: u32_at(body, 4)? },
        libc::RTM_NEWNEIGH | libc::RTM_DELNEIGH => {
            let value = wire::attribute(body.get(12..)?, libc::NDA_DST)?;
            What::Neighbour { index: u32_at(body, 4)?, address: address(value)? }
        }
        libc::RTM_NEWROUTE | libc::RTM_DELROUTE => {
            let destination = match (wire::attribute(body.get(12..)?, libc::RTA_DST), i32::from(body[0])) {
                (Some(value), _) => IpNet::new(address(value)?, body[1]).ok()?,
                (None, libc::AF_INET) => Family::Ipv4.default_route(),
                (None, libc::AF_INET6) => Family::Ipv6.default_route(),
                _ => return None,
            };
            What::Route { destination, protocol: body[5] }
        }
        libc::RTM_NEWRULE | libc::RTM_DELRULE => {
            let attributes = body.get(12..)?;
            // The first place has no attribute.
            let priority = wire::attribute(attributes, FRA_PRIORITY).and_then(|value| u32_at(value, 0));
            let protocol = *wire::attribute(attributes, FRA_PROTOCOL)?.first()?;
            What::Rule { protocol, priority: priority.unwrap_or_default() }
        }
        libc::RTM_NEWNETCONF | RTM_DELNETCONF => {
            What::Settings { index: u32_at(wire::attribute(body.get(4..)?, NETCONFA_IFINDEX)?, 0)? }
        }
        _ => return None,
    })
}

const FRA_PRIORITY: u16 = 6;
const FRA_PROTOCOL: u16 = 21;
const RTM_DELNETCONF: u16 = 81;
const NETCONFA_IFINDEX: u16 = 1;

fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => Some(IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?))),
        16 => Some(IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?))),
        _ => None,
    }
}
