//! Links, addresses and rules as the kernel has them: what its messages are read into.

use std::fmt;

use ipnet::IpNet;

use crate::{mac::Mac, object::Rule};

/// What Underpass wants to know of a link.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Interface index.
    pub index: u32,
    /// Interface name.
    pub name: String,
    /// MAC address, where the link has one of six bytes.
    pub mac: Option<Mac>,
    /// MTU in bytes.
    pub mtu: u32,
    /// Transmit queue length in packets.
    pub queue_length: u32,
    /// `IFLA_IFALIAS`.
    pub alias: String,
    /// `IFLA_GROUP`.
    pub group: u32,
    /// Whether it is administratively up.
    pub up: bool,
    /// Whether hosts on it ask for each other's MAC addresses in Ethernet frames: it is Ethernet, and not `IFF_NOARP`.
    pub arp: bool,
    /// Index of the peer (veth) or parent (macvlan).
    pub peer: Option<u32>,
    /// Which namespace `peer` is an index in, if another: its number here (`IFLA_LINK_NETNSID`).
    pub peer_nsid: Option<i32>,
    /// Index of the bridge or other link that it is a port of.
    pub controller: Option<u32>,
    /// What drives it, as `ip link` names it: `veth`, `bridge`; empty for hardware.
    pub kind: String,
}

impl Link {
    /// Whether it shares its parent's MAC address.
    pub fn is_ipvlan(&self) -> bool {
        matches!(self.kind.as_str(), "ipvlan" | "ipvtap")
    }
}

/// What duplicate address detection (RFC 4862) says of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detection {
    /// The address can be used.
    Over,
    /// Nothing yet: the kernel lets no route have it as its preferred source (`ip6_route_info_create`).
    Underway,
    /// Another host has it.
    Failed,
}

/// An address that the kernel has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressEntry {
    /// Index of the link that it is on.
    pub link: u32,
    /// Address and prefix length.
    pub net: IpNet,
    /// Whether it can be used.
    pub detection: Detection,
}

/// A policy rule that the kernel has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleEntry {
    /// As much of it as Underpass's own rules have.
    pub rule: Rule,
    /// Whether it is ours.
    pub ours: bool,
    /// Whether it selects by nothing but source and mark and looks a table up, so that `rule` is all of it.
    pub plain: bool,
    /// What it does in place of looking a table up, as `ip rule` says it: `goto 32766`, `blackhole`.
    pub action: Option<String>,
    /// Whether it is for all packets but those that it describes (`FIB_RULE_INVERT`).
    pub inverted: bool,
    /// Only packets to here.
    pub to: Option<IpNet>,
}

impl fmt::Display for RuleEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.action {
            Some(action) => write!(f, "{} {action}", self.rule.selector()),
            None => write!(f, "{}", self.rule),
        }
    }
}
