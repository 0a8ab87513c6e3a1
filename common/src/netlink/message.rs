//! Messages of rtnetlink, made of our objects and read into them. Pure: nothing here talks to the kernel.

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressHeaderFlags, AddressMessage, AddressScope},
    link::{
        AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo,
        LinkLayerType, LinkMessage,
    },
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
    nsid::{NsidAttribute, NsidMessage},
    route::{
        RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteMetric, RouteProtocol, RouteScope, RouteType,
    },
    rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage},
};

use super::entry::{AddressEntry, Detection, Link, RuleEntry};
use crate::{
    mac::Mac,
    netns::NetnsFile,
    object::{Address, Family, Neighbour, PROTOCOL, Refusal, Route, Rule, Veth, is_link_local},
};

pub(super) fn address_family(family: Family) -> AddressFamily {
    match family {
        Family::Ipv4 => AddressFamily::Inet,
        Family::Ipv6 => AddressFamily::Inet6,
    }
}

pub(super) fn no_link_local() -> LinkAttribute {
    LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)])])
}

pub(super) fn veth_message(veth: &Veth, pod: &NetnsFile) -> LinkMessage {
    let end = |name: &str, mac: Mac| {
        let mut message = LinkMessage::default();
        message.attributes = vec![
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::Address(mac.0.to_vec()),
            LinkAttribute::Mtu(veth.mtu),
            // As many as are used. If nobody says so the kernel makes one for each CPU, and waits until none uses the others.
            LinkAttribute::NumTxQueues(1),
            LinkAttribute::NumRxQueues(1),
        ];
        message
    };
    let mut peer = end(&veth.peer, veth.peer_mac);
    peer.attributes.push(LinkAttribute::NetNsFd(pod.raw()));
    let mut host = end(&veth.name, veth.mac);
    host.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Veth),
        LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
    ]));
    host
}

pub(super) fn parse_link(message: RouteNetlinkMessage) -> Option<Link> {
    let RouteNetlinkMessage::NewLink(message) = message else { return None };
    let header = &message.header;
    let mut link = Link {
        index: header.index,
        up: header.flags.contains(LinkFlags::Up),
        arp: header.link_layer_type == LinkLayerType::Ether && !header.flags.contains(LinkFlags::Noarp),
        ..Link::default()
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Address(bytes) => link.mac = bytes.try_into().ok().map(Mac),
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            LinkAttribute::TxQueueLen(packets) => link.queue_length = packets,
            LinkAttribute::IfAlias(alias) => link.alias = alias,
            LinkAttribute::Group(group) => link.group = group,
            LinkAttribute::Link(index) => link.peer = Some(index),
            LinkAttribute::LinkNetNsId(nsid) => link.peer_nsid = Some(nsid),
            LinkAttribute::Controller(index) => link.controller = Some(index),
            LinkAttribute::LinkInfo(info) => {
                let kind = info.into_iter().find_map(|info| match info {
                    LinkInfo::Kind(kind) => Some(kind.to_string()),
                    _ => None,
                });
                link.kind = kind.unwrap_or_default();
            }
            _ => {}
        }
    }
    Some(link)
}

/// `NETNSA_NSID_NOT_ASSIGNED`: in an answer, that there is none; in a request, that any will do.
pub(super) const UNASSIGNED_NSID: i32 = -1;

pub(super) fn nsid_message(netns: &NetnsFile) -> NsidMessage {
    let mut message = NsidMessage::default();
    message.attributes = vec![NsidAttribute::Id(UNASSIGNED_NSID), NsidAttribute::Fd(netns.raw().cast_unsigned())];
    message
}

pub(super) fn parse_nsid(message: RouteNetlinkMessage) -> Option<i32> {
    let RouteNetlinkMessage::NewNsId(message) = message else { return None };
    message.attributes.iter().find_map(|attribute| match attribute {
        NsidAttribute::Id(nsid) => Some(*nsid),
        _ => None,
    })
}

pub(super) fn address_message(address: &Address, index: u32) -> AddressMessage {
    let ip = address.address.addr();
    let mut message = AddressMessage::default();
    message.header.family = address_family(Family::of(ip));
    message.header.prefix_len = address.address.prefix_len();
    message.header.index = index;
    message.header.scope = if is_link_local(ip) { AddressScope::Link } else { AddressScope::Universe };
    message.header.flags = AddressHeaderFlags::Nodad;
    message.attributes = vec![AddressAttribute::Local(ip), AddressAttribute::Address(ip)];
    message
}

/// The link's own address, where the other end has one too.
pub(super) fn local_address(message: &AddressMessage) -> Option<IpNet> {
    let local = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    });
    let address = local.or_else(|| {
        message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Address(address) => Some(*address),
            _ => None,
        })
    })?;
    IpNet::new(address, message.header.prefix_len).ok()
}

/// An address, and whether others are better as a source.
pub(super) fn parse_address(message: RouteNetlinkMessage) -> Option<(bool, AddressEntry)> {
    let RouteNetlinkMessage::NewAddress(message) = message else { return None };
    let net = local_address(&message)?;
    let address = net.addr();
    let counts = match message.header.scope {
        AddressScope::Universe => true,
        AddressScope::Link => address.is_ipv4(),
        _ => false,
    };
    let flags = message.header.flags;
    // An IPv6 address that is temporary (RFC 8981) has the same bit as an IPv4 one that is secondary.
    let second_choice = flags.intersects(AddressHeaderFlags::Secondary | AddressHeaderFlags::Deprecated);
    // One that has failed is tentative too (`addrconf_dad_stop`), and an optimistic one can be used (RFC 4429).
    let detection = match flags {
        flags if flags.contains(AddressHeaderFlags::Dadfailed) => Detection::Failed,
        flags if flags.contains(AddressHeaderFlags::Optimistic) => Detection::Over,
        flags if flags.contains(AddressHeaderFlags::Tentative) => Detection::Underway,
        _ => Detection::Over,
    };
    counts.then_some((second_choice, AddressEntry { link: message.header.index, net, detection }))
}

pub(super) fn neighbour_message(neighbour: &Neighbour, index: u32) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = address_family(Family::of(neighbour.address));
    message.header.ifindex = index;
    message.header.state = NeighbourState::Permanent;
    message.header.kind = RouteType::Unicast;
    message.attributes = vec![
        NeighbourAttribute::Destination(match neighbour.address {
            IpAddr::V4(ip) => NeighbourAddress::Inet(ip),
            IpAddr::V6(ip) => NeighbourAddress::Inet6(ip),
        }),
        NeighbourAttribute::LinkLayerAddress(neighbour.mac.0.to_vec()),
    ];
    message
}

pub(super) fn parse_neighbour(message: RouteNetlinkMessage, dev: &str) -> Option<Neighbour> {
    let RouteNetlinkMessage::NewNeighbour(message) = message else { return None };
    if message.header.state != NeighbourState::Permanent {
        return None;
    }
    let (mut address, mut mac) = (None, None);
    for attribute in message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => address = Some(IpAddr::V4(ip)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => address = Some(IpAddr::V6(ip)),
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = bytes.try_into().ok().map(Mac),
            _ => {}
        }
    }
    Some(Neighbour { dev: dev.to_owned(), address: address?, mac: mac? })
}

/// Which routes to dump.
#[derive(Clone, Copy, Debug, Default)]
pub struct RouteFilter {
    /// Only this table; all tables otherwise.
    pub table: Option<u32>,
    /// Only routes out of the link with this index.
    pub oif: Option<u32>,
    /// Only [`PROTOCOL`].
    pub ours: bool,
    /// Also those that refuse packets.
    pub refusing: bool,
    /// Only those to what contains this address.
    pub towards: Option<IpAddr>,
}

pub(super) fn route_query(family: Family, filter: RouteFilter) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = address_family(family);
    if filter.ours {
        message.header.protocol = RouteProtocol::Other(PROTOCOL);
    }
    if let Some(table) = filter.table {
        message.attributes.push(RouteAttribute::Table(table));
    }
    if let Some(oif) = filter.oif {
        message.attributes.push(RouteAttribute::Oif(oif));
    }
    message
}

fn kind(refusal: Option<Refusal>) -> RouteType {
    match refusal {
        None => RouteType::Unicast,
        Some(Refusal::Blackhole) => RouteType::BlackHole,
        Some(Refusal::Unreachable) => RouteType::Unreachable,
        Some(Refusal::Prohibit) => RouteType::Prohibit,
    }
}

/// `oif` is the output link's index, none for a route that refuses.
pub(super) fn route_message(route: &Route, oif: Option<u32>) -> RouteMessage {
    let family = Family::of(route.destination.addr());
    let mut message = RouteMessage::default();
    message.header.address_family = address_family(family);
    message.header.destination_prefix_length = route.destination.prefix_len();
    message.header.table = u8::try_from(route.table).unwrap_or(0);
    message.header.protocol = RouteProtocol::from(route.protocol);
    message.header.kind = kind(route.refusal);
    message.header.scope = match (family, route.gateway) {
        (Family::Ipv4, None) if route.refusal.is_none() => RouteScope::Link,
        _ => RouteScope::Universe,
    };
    if route.onlink {
        message.header.flags = RouteFlags::Onlink;
    }
    message.attributes = vec![RouteAttribute::Table(route.table)];
    message.attributes.extend(oif.map(RouteAttribute::Oif));
    if route.destination.prefix_len() > 0 {
        message.attributes.push(RouteAttribute::Destination(route.destination.addr().into()));
    }
    message.attributes.extend(route.gateway.map(|gateway| RouteAttribute::Gateway(gateway.into())));
    message.attributes.extend(route.source.map(|source| RouteAttribute::PrefSource(source.into())));
    message.attributes.extend(route.metric.map(RouteAttribute::Priority));
    message.attributes.extend(route.mtu.map(|mtu| RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)])));
    message
}

/// Whether it is a route of a family.
pub(super) fn is_route_of(message: &RouteNetlinkMessage, family: Family) -> bool {
    matches!(message, RouteNetlinkMessage::NewRoute(route) if route.header.address_family == address_family(family))
}

/// The table of a route that is not ours.
pub(super) fn foreign_table(message: RouteNetlinkMessage) -> Option<u32> {
    let RouteNetlinkMessage::NewRoute(message) = message else { return None };
    let table = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Table(table) => Some(*table),
        _ => None,
    });
    let ours = u8::from(message.header.protocol) == PROTOCOL;
    (!ours).then(|| table.unwrap_or(message.header.table.into()))
}

pub(super) struct Hop {
    pub(super) oif: u32,
    pub(super) route: Route,
}

/// A route, as one for each next hop.
pub(super) fn route_hops(message: RouteNetlinkMessage) -> Vec<Hop> {
    match message {
        RouteNetlinkMessage::NewRoute(message) => parse_route(&message),
        _ => vec![],
    }
}

fn parse_route(message: &RouteMessage) -> Vec<Hop> {
    let family = match message.header.address_family {
        AddressFamily::Inet => Family::Ipv4,
        AddressFamily::Inet6 => Family::Ipv6,
        _ => return vec![],
    };
    let refusal = Refusal::ALL.into_iter().find(|refusal| kind(Some(*refusal)) == message.header.kind);
    if message.header.kind != kind(refusal) {
        return vec![];
    }
    let mut route = Route {
        refusal,
        onlink: message.header.flags.contains(RouteFlags::Onlink),
        protocol: message.header.protocol.into(),
        ..Route::new(family.default_route(), "", message.header.table.into())
    };
    let (mut oif, mut hops) = (0, vec![]);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => {
                let destination =
                    ip(address).and_then(|address| IpNet::new(address, message.header.destination_prefix_length).ok());
                route.destination = destination.unwrap_or(route.destination);
            }
            RouteAttribute::Gateway(gateway) => route.gateway = ip(gateway),
            RouteAttribute::PrefSource(source) => route.source = ip(source),
            RouteAttribute::Table(table) => route.table = *table,
            RouteAttribute::Priority(metric) => route.metric = family.metric(*metric),
            RouteAttribute::Metrics(metrics) => route.mtu = mtu(metrics),
            // IPv6 names the loopback for one that refuses.
            RouteAttribute::Oif(index) if refusal.is_none() => oif = *index,
            RouteAttribute::MultiPath(next_hops) => hops.extend(next_hops),
            _ => {}
        }
    }
    if hops.is_empty() {
        return vec![Hop { oif, route }];
    }
    let hop = |(place, hop): (usize, &&netlink_packet_route::route::RouteNextHop)| {
        let gateway = hop.attributes.iter().find_map(|attribute| match attribute {
            RouteAttribute::Gateway(gateway) => ip(gateway),
            _ => None,
        });
        // For IPv6 each next hop is a route of its own, and the message has the first one's MTU (`rt6_fill_node`).
        let mtu = route.mtu.filter(|_| family == Family::Ipv4 || place == 0);
        Hop { oif: hop.interface_index, route: Route { gateway, mtu, ..route.clone() } }
    };
    hops.iter().enumerate().map(hop).collect()
}

fn mtu(metrics: &[RouteMetric]) -> Option<u32> {
    metrics.iter().find_map(|metric| match metric {
        RouteMetric::Mtu(mtu) => Some(*mtu),
        _ => None,
    })
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some(IpAddr::V4(*ip)),
        RouteAddress::Inet6(ip) => Some(IpAddr::V6(*ip)),
        _ => None,
    }
}

pub(super) fn rule_message(rule: &Rule) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = address_family(rule.family);
    message.header.action = RuleAction::ToTable;
    message.header.table = u8::try_from(rule.table).unwrap_or(0);
    message.attributes = vec![
        RuleAttribute::Priority(rule.priority),
        RuleAttribute::Table(rule.table),
        RuleAttribute::Protocol(RouteProtocol::Other(PROTOCOL)),
    ];
    if let Some(from) = rule.from {
        message.header.src_len = from.prefix_len();
        message.attributes.push(RuleAttribute::Source(from.addr()));
    }
    message.attributes.extend(rule.fwmark.map(RuleAttribute::FwMark));
    message.attributes.extend(rule.fwmask.map(RuleAttribute::FwMask));
    message
}

pub(super) fn parse_rule(message: RouteNetlinkMessage, family: Family) -> Option<RuleEntry> {
    let RouteNetlinkMessage::NewRule(message) = message else { return None };
    let action = match message.header.action {
        RuleAction::ToTable => None,
        RuleAction::Goto => Some("goto"),
        RuleAction::Blackhole => Some("blackhole"),
        RuleAction::Unreachable => Some("unreachable"),
        RuleAction::Prohibit => Some("prohibit"),
        _ => return None,
    };
    let mut action = action.map(str::to_owned);
    let table = message.header.table.into();
    let mut rule = Rule { priority: 0, family, from: None, fwmark: None, fwmask: None, table };
    let inverted = message.header.flags.contains(RuleFlags::Invert);
    let (mut ours, mut plain, mut to) = (false, message.header.dst_len == 0 && !inverted && action.is_none(), None);
    for attribute in message.attributes {
        match attribute {
            RuleAttribute::Priority(priority) => rule.priority = priority,
            RuleAttribute::Table(table) => rule.table = table,
            RuleAttribute::FwMark(mark) => rule.fwmark = Some(mark),
            RuleAttribute::FwMask(u32::MAX) | RuleAttribute::SuppressPrefixLen(u32::MAX) => {}
            RuleAttribute::FwMask(mask) => rule.fwmask = Some(mask),
            RuleAttribute::Destination(address) => to = IpNet::new(address, message.header.dst_len).ok(),
            RuleAttribute::Source(address) => rule.from = IpNet::new(address, message.header.src_len).ok(),
            RuleAttribute::Goto(target) => action = action.map(|action| format!("{action} {target}")),
            RuleAttribute::Protocol(protocol) => ours = u8::from(protocol) == PROTOCOL,
            _ => plain = false,
        }
    }
    Some(RuleEntry { rule, ours: ours && plain, plain, action, inverted, to })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_reads_as_it_was_written() {
        let route = Route {
            destination: "10.96.0.0/12".parse().unwrap(),
            gateway: Some("10.233.1.1".parse().unwrap()),
            dev: String::new(),
            refusal: None,
            source: Some("10.233.1.5".parse().unwrap()),
            table: 8500,
            metric: Some(7),
            onlink: true,
            mtu: Some(1450),
            protocol: PROTOCOL,
        };
        let default = Route::new(Family::Ipv6.default_route(), "", 8500);
        for route in [route, default] {
            let read: Vec<_> =
                parse_route(&route_message(&route, Some(2))).into_iter().map(|hop| (hop.oif, hop.route)).collect();
            assert_eq!(read, [(2, route)]);
        }
        for refusal in Refusal::ALL {
            let route = Route { refusal: Some(refusal), ..Route::new("10.96.0.0/12".parse().unwrap(), "", 8500) };
            let read: Vec<_> = parse_route(&route_message(&route, None)).into_iter().map(|hop| hop.route).collect();
            assert_eq!(read, [route]);
        }
    }

    #[test]
    fn a_route_is_of_one_family() {
        let message =
            RouteNetlinkMessage::NewRoute(route_message(&Route::new(Family::Ipv4.default_route(), "", 254), None));
        assert!(is_route_of(&message, Family::Ipv4) && !is_route_of(&message, Family::Ipv6));
    }
}
