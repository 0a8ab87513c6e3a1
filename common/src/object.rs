//! Kernel objects as data, and the operations that make, change and remove them.

mod commands;

use std::{fmt, net::IpAddr, str::FromStr};

use ipnet::IpNet;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::mac::Mac;

/// The routing protocol number of every route and rule that Underpass makes (`rt_protos`: `underpass`).
pub const PROTOCOL: u8 = 85;
/// `RTPROT_KERNEL`: the routing protocol number of the routes to the subnets of a link's addresses.
pub const PROTOCOL_KERNEL: u8 = 2;
/// `RTPROT_BOOT`: the routing protocol number that CNI plugins give their routes, and default routes that we give back.
pub const PROTOCOL_BOOT: u8 = 3;
/// `RTPROT_STATIC`: the last of the routing protocol numbers that are no routing daemon's, but for the next two.
const PROTOCOL_STATIC: u8 = 4;
/// `RTPROT_RA`: the routing protocol number of what the kernel takes from router advertisements.
pub const PROTOCOL_RA: u8 = 9;
/// `RTPROT_DHCP`: that of what a DHCP client was given.
const PROTOCOL_DHCP: u8 = 16;
/// The kernel's main routing table (`RT_TABLE_MAIN`).
pub const MAIN_TABLE: u32 = 254;

/// Name of the nftables tables, in the family `inet`: a pod's, and the node's.
pub const NFT_TABLE: &str = "underpass";

/// Which of the two network namespaces an object is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Netns {
    /// The namespace of the node, in which the CNI plugin runs.
    Node,
    /// The namespace of the pod's sandbox, `CNI_NETNS`.
    Pod,
}

/// An address family, for what has no address to tell it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// `AF_INET`.
    Ipv4,
    /// `AF_INET6`.
    Ipv6,
}

impl Family {
    /// Both families, in the order in which plans name them.
    pub const ALL: [Self; 2] = [Self::Ipv4, Self::Ipv6];

    /// As Kubernetes spells it.
    const fn name(self) -> &'static str {
        match self {
            Self::Ipv4 => "IPv4",
            Self::Ipv6 => "IPv6",
        }
    }

    /// The family of an address.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::Ipv4 } else { Self::Ipv6 }
    }

    /// Whether two addresses are of one family.
    pub fn same(a: IpAddr, b: IpAddr) -> bool {
        Self::of(a) == Self::of(b)
    }

    /// The first address that is of this family.
    pub fn first(self, addresses: impl IntoIterator<Item = IpAddr>) -> Option<IpAddr> {
        addresses.into_iter().find(|address| Self::of(*address) == self)
    }

    /// The first address of each family, IPv4 before IPv6.
    pub fn first_of_each(addresses: impl Iterator<Item = IpAddr> + Clone) -> Vec<IpAddr> {
        Self::ALL.into_iter().filter_map(|family| family.first(addresses.clone())).collect()
    }

    /// The destination of a default route.
    pub fn default_route(self) -> IpNet {
        match self {
            Self::Ipv4 => IpNet::V4(ipnet::Ipv4Net::default()),
            Self::Ipv6 => IpNet::V6(ipnet::Ipv6Net::default()),
        }
    }

    /// A route's metric, where it is another than the one that a route gets of which nobody says any.
    pub fn metric(self, metric: u32) -> Option<u32> {
        let default = match self {
            Self::Ipv4 => 0,
            Self::Ipv6 => 1024,
        };
        Some(metric).filter(|metric| ![0, default].contains(metric))
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Family {
    type Err = ();

    /// As Kubernetes spells it.
    fn from_str(text: &str) -> Result<Self, ()> {
        Self::ALL.into_iter().find(|family| family.name() == text).ok_or(())
    }
}

/// Whether an address is only valid on its link (RFC 3927, RFC 4291).
pub fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

/// A pair of virtual Ethernet devices: `name` on the node, `peer` in the pod, both up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Veth {
    /// Name of the node's end.
    pub name: String,
    /// MAC address of the node's end.
    #[schemars(with = "String")]
    pub mac: Mac,
    /// Name of the pod's end.
    pub peer: String,
    /// MAC address of the pod's end.
    #[schemars(with = "String")]
    pub peer_mac: Mac,
    /// MTU of both ends, in bytes.
    pub mtu: u32,
    /// The node's end's alias (`IFLA_IFALIAS`), which says whose it is.
    pub alias: String,
    /// The node's end's link group (`IFLA_GROUP`), by which the node's nftables rules know what comes from pods.
    #[serde(default)]
    pub group: u32,
    /// Whether both ends are up.
    pub up: bool,
}

/// An address on a link.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Address {
    /// The link's name.
    pub dev: String,
    /// Address and prefix length.
    #[schemars(with = "String")]
    pub address: IpNet,
}

/// A permanent neighbour entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Neighbour {
    /// The link's name.
    pub dev: String,
    /// The neighbour's address.
    pub address: IpAddr,
    /// The neighbour's MAC address.
    #[schemars(with = "String")]
    pub mac: Mac,
}

/// What a route does with packets that it does not send anywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Refusal {
    /// `RTN_BLACKHOLE`: drops them.
    Blackhole,
    /// `RTN_UNREACHABLE`: answers that the host is unreachable.
    Unreachable,
    /// `RTN_PROHIBIT`: answers that it is prohibited.
    Prohibit,
}

impl Refusal {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Blackhole, Self::Unreachable, Self::Prohibit];
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Blackhole => "blackhole",
            Self::Unreachable => "unreachable",
            Self::Prohibit => "prohibit",
        })
    }
}

/// A route: a unicast one, or one that refuses packets. Without a gateway the destination is on the link (IPv4 scope `link`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Route {
    /// The destination; `0.0.0.0/0` or `::/0` for a default route.
    #[schemars(with = "String")]
    pub destination: IpNet,
    /// The next hop.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
    /// Name of the output link; empty for a route that refuses.
    pub dev: String,
    /// Whether, and how, it refuses packets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refusal: Option<Refusal>,
    /// Preferred source address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<IpAddr>,
    /// Routing table number.
    pub table: u32,
    /// Metric, where it is not the family's default (0 for IPv4, 1024 for IPv6).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metric: Option<u32>,
    /// Take the gateway for reachable on the link, whatever the table says (`RTNH_F_ONLINK`).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub onlink: bool,
    /// MTU of the path, in bytes, where it is less than the link's (`RTAX_MTU`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// The routing protocol number, [`PROTOCOL`] for ours.
    pub protocol: u8,
}

impl Route {
    /// A route of ours on the link.
    pub fn new(destination: IpNet, dev: &str, table: u32) -> Self {
        Self {
            destination,
            gateway: None,
            dev: dev.to_owned(),
            refusal: None,
            source: None,
            table,
            metric: None,
            onlink: false,
            mtu: None,
            protocol: PROTOCOL,
        }
    }

    /// Whether a routing daemon made it: [`is_daemons`].
    pub fn is_daemons(&self) -> bool {
        is_daemons(self.protocol)
    }
}

/// Whether a routing daemon (BIRD, FRR) makes routes of this protocol number (`linux/rtnetlink.h`, `RTPROT_*`). They come and go as
/// the daemon says, and there may be a great many.
pub fn is_daemons(protocol: u8) -> bool {
    protocol > PROTOCOL_STATIC && ![PROTOCOL_RA, PROTOCOL_DHCP, PROTOCOL].contains(&protocol)
}

/// A policy routing rule: `from` and `fwmark` select, `table` is looked up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Rule {
    /// Rules are tried in the order of this number.
    pub priority: u32,
    /// Which family's packets it is for.
    pub family: Family,
    /// Only packets from here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub from: Option<IpNet>,
    /// Only packets with this mark.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fwmark: Option<u32>,
    /// The bits of the mark that are compared; all 32 otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fwmask: Option<u32>,
    /// Routing table number.
    pub table: u32,
}

/// The nftables table `inet underpass` of a pod, which marks replies to what came in through `dev`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Marks {
    /// Name of the link through which the node reaches the pod.
    pub dev: String,
    /// The mark.
    #[serde(default)]
    pub mark: Mark,
    /// The chains as found, where they are not as we write them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub altered: Vec<String>,
}

/// The mark of a connection that came in through the node, and of its replies. Only the bits of the mask are ours to read and to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Mark {
    /// Its value.
    pub value: u32,
    /// The bits that count.
    pub mask: u32,
}

/// That of the first version: a pod that it served keeps it.
impl Default for Mark {
    fn default() -> Self {
        Self { value: 1, mask: u32::MAX }
    }
}

/// A rule of the node's nftables table `inet underpass`: how packets from underlay pods pass to a CIDR behind the node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Transit {
    /// Link group of the node's ends of the pods' veth pairs.
    pub group: u32,
    /// Where the packets go.
    #[schemars(with = "String")]
    pub destination: IpNet,
    /// Whether they get the node's address as source. Otherwise they keep the pod's, and those of a connection of which
    /// the node sees one half are let off connection tracking.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub masquerade: bool,
}

/// A sysctl, by its path below `/proc/sys`, of which `net/` belongs to the network namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Sysctl {
    /// For example `net/ipv4/conf/all/rp_filter`.
    pub path: String,
    /// The value without a newline.
    pub value: String,
}

/// Length of a link's transmit queue, in packets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct QueueLength {
    /// The link's name.
    pub dev: String,
    /// In packets.
    pub packets: u32,
}

/// MAC address of a link that is not ours.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LinkAddress {
    /// The link's name.
    pub dev: String,
    /// The address.
    #[schemars(with = "String")]
    pub mac: Mac,
}

/// Anything in the kernel that Underpass makes or changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Object {
    /// A veth pair, created from the node's side.
    Veth(Veth),
    /// An address on a link.
    Address(Address),
    /// A permanent neighbour.
    Neighbour(Neighbour),
    /// A route.
    Route(Route),
    /// A policy rule.
    Rule(Rule),
    /// The nftables table of a pod.
    Marks(Marks),
    /// A rule of the nftables table of the node.
    Transit(Transit),
    /// A sysctl.
    Sysctl(Sysctl),
    /// A transmit queue length.
    QueueLength(QueueLength),
    /// A MAC address.
    LinkAddress(LinkAddress),
}

impl Object {
    /// Whether two objects cannot both be: they have the same identity, whatever else they say.
    pub fn collides(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Veth(a), Self::Veth(b)) => a.name == b.name || a.peer == b.peer,
            (Self::Address(a), Self::Address(b)) => a.dev == b.dev && a.address.addr() == b.address.addr(),
            (Self::Neighbour(a), Self::Neighbour(b)) => a.dev == b.dev && a.address == b.address,
            (Self::Route(a), Self::Route(b)) => {
                a.destination == b.destination && a.table == b.table && a.metric == b.metric
            }
            (Self::Marks(_), Self::Marks(_)) => true,
            (Self::Sysctl(a), Self::Sysctl(b)) => a.path == b.path,
            (Self::QueueLength(a), Self::QueueLength(b)) => a.dev == b.dev,
            (Self::LinkAddress(a), Self::LinkAddress(b)) => a.dev == b.dev,
            (a, b) => a == b,
        }
    }

    /// Whether `found` does what this object is to do, whoever made it.
    pub fn satisfied_by(&self, found: &Self) -> bool {
        match (self, found) {
            (Self::Route(wanted), Self::Route(found)) => {
                // Documents that were saved before routes had an MTU ask for none: they are content with any.
                let mtu = wanted.mtu.and(found.mtu);
                *wanted == Route { protocol: wanted.protocol, mtu, ..found.clone() }
            }
            (wanted, found) => wanted == found,
        }
    }
}

/// An object and the namespace that it is in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Placed {
    /// Where it is.
    pub netns: Netns,
    /// What it is.
    #[serde(flatten)]
    pub object: Object,
}

impl Placed {
    /// An object on the node.
    pub fn node(object: Object) -> Self {
        Self { netns: Netns::Node, object }
    }

    /// An object in the pod.
    pub fn pod(object: Object) -> Self {
        Self { netns: Netns::Pod, object }
    }

    /// Whether the kernel cannot have both.
    pub fn collides(&self, other: &Self) -> bool {
        self.netns == other.netns && self.object.collides(&other.object)
    }
}

impl fmt::Display for Placed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = match self.netns {
            Netns::Node => "on the node",
            Netns::Pod => "in the pod",
        };
        write!(f, "{} {place}", self.object)
    }
}

/// One change to the kernel. It serialises, has an inverse, and renders as the commands that a person would type.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Operation {
    /// Make an object that is not there.
    Add(Placed),
    /// Remove an object.
    Delete(Placed),
    /// Put one object in another's place, or give it another value.
    Replace {
        /// What is there now.
        from: Placed,
        /// What is to be there.
        to: Placed,
    },
}

impl Operation {
    /// The operation that undoes this one.
    pub fn inverse(&self) -> Self {
        match self {
            Self::Add(placed) => Self::Delete(placed.clone()),
            Self::Delete(placed) => Self::Add(placed.clone()),
            Self::Replace { from, to } => Self::Replace { from: to.clone(), to: from.clone() },
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Add(placed) => write!(f, "missing: {placed}"),
            Self::Delete(placed) => write!(f, "not wanted: {placed}"),
            Self::Replace { from, to } => write!(f, "different: {from}, wanted: {}", to.object),
        }
    }
}

impl Object {
    /// Whether it always has some value, so that it is set and never added or deleted.
    pub fn is_value(&self) -> bool {
        matches!(self, Self::Sysctl(_) | Self::QueueLength(_) | Self::LinkAddress(_))
    }

    /// Whether two objects are the same veth pair, whatever its properties.
    pub(crate) fn is_same_pair(&self, other: &Self) -> bool {
        matches!((self, other), (Self::Veth(a), Self::Veth(b)) if a.name == b.name && a.peer == b.peer)
    }
}

impl Rule {
    fn option(&self) -> &'static str {
        if self.family == Family::Ipv6 { "-6 " } else { "" }
    }

    /// Its place, and which packets it is for.
    pub(crate) fn selector(&self) -> String {
        let mut selector = format!("pref {}", self.priority);
        if let Some(from) = self.from {
            selector += &format!(" from {from}");
        }
        if let Some(mark) = self.fwmark {
            selector += &format!(" fwmark {mark:#x}");
        }
        if let Some(mask) = self.fwmask {
            selector += &format!("/{mask:#x}");
        }
        selector
    }
}

impl fmt::Display for Neighbour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} lladdr {} dev {} nud permanent", self.address, self.mac, self.dev)
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(refusal) = self.refusal {
            write!(f, "{refusal} ")?;
        }
        write!(f, "{}", self.destination)?;
        if let Some(gateway) = self.gateway {
            write!(f, " via {gateway}")?;
        }
        if self.refusal.is_none() {
            write!(f, " dev {}", self.dev)?;
        }
        if let Some(source) = self.source {
            write!(f, " src {source}")?;
        }
        if let Some(metric) = self.metric {
            write!(f, " metric {metric}")?;
        }
        if self.table != MAIN_TABLE {
            write!(f, " table {}", self.table)?;
        }
        if self.onlink {
            write!(f, " onlink")?;
        }
        if let Some(mtu) = self.mtu {
            write!(f, " mtu {mtu}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} lookup {}", self.selector(), self.table)
    }
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Veth(veth) => write!(
                f,
                "veth {} address {} peer {} address {} mtu {} alias '{}' group {} {}",
                veth.name,
                veth.mac,
                veth.peer,
                veth.peer_mac,
                veth.mtu,
                veth.alias,
                veth.group,
                if veth.up { "up" } else { "down" }
            ),
            Self::Address(Address { dev, address }) => write!(f, "address {address} dev {dev}"),
            Self::Neighbour(neighbour) => write!(f, "neighbour {neighbour}"),
            Self::Route(route) => write!(f, "route {route}"),
            Self::Rule(rule) => write!(f, "{}rule {rule}", rule.option()),
            Self::Marks(Marks { dev, mark, altered }) if altered.is_empty() => {
                write!(f, "nftables table inet {NFT_TABLE} for {dev} with the mark {:#x}/{:#x}", mark.value, mark.mask)
            }
            Self::Marks(_) => write!(f, "nftables table inet {NFT_TABLE} with other rules than ours"),
            Self::Transit(Transit { group, destination, masquerade }) => {
                let what = if *masquerade { "masquerade" } else { "notrack" };
                write!(f, "nftables table inet {NFT_TABLE} {what} from group {group} to {destination}")
            }
            Self::Sysctl(Sysctl { path, value }) => write!(f, "sysctl {path}={value}"),
            Self::QueueLength(QueueLength { dev, packets }) => write!(f, "link {dev} txqueuelen {packets}"),
            Self::LinkAddress(LinkAddress { dev, mac }) => write!(f, "link {dev} address {mac}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_of_another_mtu_is_another_unless_none_is_asked_for() {
        let route = |mtu| Route {
            destination: Family::Ipv4.default_route(),
            gateway: Some(IpAddr::from([10, 233, 1, 1])),
            dev: "eth0".to_owned(),
            refusal: None,
            source: None,
            table: MAIN_TABLE,
            metric: None,
            onlink: true,
            mtu,
            protocol: PROTOCOL,
        };
        let satisfied = |wanted, found| Object::Route(route(wanted)).satisfied_by(&Object::Route(route(found)));
        assert!(satisfied(Some(1450), Some(1450)) && satisfied(None, None) && satisfied(None, Some(1450)));
        assert!(!satisfied(Some(1450), None) && !satisfied(Some(1450), Some(1500)));
        let add = Operation::Add(Placed::node(Object::Route(route(Some(1450)))));
        assert_eq!(add.commands(None), ["ip route add 0.0.0.0/0 via 10.233.1.1 dev eth0 onlink mtu 1450 proto 85"]);
    }
}
