//! The node's side: its addresses, and its links to a pod.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    io,
    net::IpAddr,
};

use common::{
    document::{HostSide, Uplink},
    kernel::Kernel,
    netlink::{AddressEntry, Link, Netlink, RouteFilter},
    numbers,
    object::{Family, MAIN_TABLE, PROTOCOL, Route, is_link_local},
};
use ipnet::IpNet;

use crate::plan::{self, Purpose};

/// An address of the pod, and the next hop of its subnet if it has one.
pub type PodAddress = (IpNet, Option<IpAddr>);

/// How the node sends something: with this source address, if it is known, by the link of this name.
type Way = (Option<IpAddr>, String);

const LOOPBACK: &str = "lo";

/// The node's addresses for a pod, the best one of each family first. Its ways to the addresses `pod`, and to `beside`, say
/// which links have its own.
///
/// # Errors
/// What the kernel says.
pub async fn addresses(
    node: &Netlink,
    pod: &[PodAddress],
    beside: &[PodAddress],
    overlay: bool,
) -> io::Result<Vec<IpAddr>> {
    let mut ways = vec![];
    for address in pod {
        ways.push((address.0, way(node, *address).await?));
    }
    // The way to an overlay pod is the overlay's link to its containers.
    let mut used: Vec<Way> = ways.iter().filter(|_| !overlay).filter_map(|(_, way)| way.clone()).collect();
    for address in beside {
        used.extend(way(node, *address).await?);
    }
    // An address of the node's own says nothing either.
    used.retain(|(_, dev)| dev != LOOPBACK);
    let is_used = |link: &Link, nets: &[IpNet]| {
        let has = |source: &Option<IpAddr>| nets.iter().any(|net| Some(net.addr()) == *source);
        used.iter().any(|(source, dev)| *dev == link.name || has(source))
    };
    let mut links: BTreeMap<u32, Vec<IpNet>> = BTreeMap::new();
    for AddressEntry { link, net, .. } in node.addresses().await? {
        links.entry(link).or_default().push(net);
    }
    let (mut all, mut defaults) = (vec![], None);
    for (index, nets) in links {
        let (own, nets): (Vec<_>, Vec<_>) = nets.into_iter().partition(|net| is_link_local(net.addr()));
        if nets.is_empty() && !own.iter().any(plan::is_node_local) {
            continue;
        }
        let Some(link) = node.link_by_index(index).await? else { continue };
        if !nets.is_empty() && (is_used(&link, &nets) || leads_out(node, &link, &nets, &mut defaults).await?) {
            all.extend(nets);
        }
        if link.kind == "dummy" || link.name == LOOPBACK {
            all.extend(own.into_iter().filter(plan::is_node_local));
        }
    }
    let mut addresses: Vec<IpAddr> = vec![];
    for (net, way) in ways {
        for address in plan::node_addresses(&all, net, way.and_then(|(source, _)| source)) {
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
    }
    Ok(addresses)
}

/// The node's way to an address, or to the next hop of its subnet. After an earlier ADD a route of ours leads to the address
/// itself, which says nothing: then it is the way by the link that the main table says, as it was before.
async fn way(node: &Netlink, (net, gateway): PodAddress) -> io::Result<Option<Way>> {
    let towards = gateway.unwrap_or(net.addr());
    let is_ours = |route: Route| route.protocol == PROTOCOL;
    let is_led = gateway.is_none() && node.matching_route(towards).await?.is_some_and(is_ours);
    if !is_led && let Some((source, dev)) = node.source_towards(towards).await? {
        return Ok(Some((Some(source), dev)));
    }
    let matching = main_routes(node, towards).await?.into_iter();
    // Of equal ones the kernel names the better first.
    let Some(best) = matching.min_by_key(|route| Reverse(route.destination.prefix_len())) else { return Ok(None) };
    let source = match best.source {
        None => node.source_by(&best.dev, towards).await?,
        source => source,
    };
    Ok(Some((source, best.dev)))
}

/// The routes of the main table to what contains an address.
async fn main_routes(node: &Netlink, towards: IpAddr) -> io::Result<Vec<Route>> {
    node.routes(RouteFilter { table: Some(MAIN_TABLE), towards: Some(towards), ..RouteFilter::default() }).await
}

/// The node's addresses that a pod's interface with the addresses `nets` has on its link: of the other end of its veth pair or,
/// where that is a port of a bridge, of the bridge.
///
/// # Errors
/// What the kernel says.
pub async fn near(kernel: &Kernel, nic: &Link, nets: &[IpNet]) -> io::Result<Vec<IpAddr>> {
    let node = &kernel.node;
    let link = match other_end(kernel, nic).await? {
        Some(Link { controller: Some(bridge), .. }) => node.link_by_index(bridge).await?,
        end => end,
    };
    let Some(link) = link else { return Ok(vec![]) };
    let is_near =
        |address: &IpAddr| address.is_ipv6() && is_link_local(*address) || nets.iter().any(|net| net.contains(address));
    Ok(node.addresses_of(&link).await?.iter().map(IpNet::addr).filter(is_near).collect())
}

/// The other end, on the node, of a pod's veth or netkit pair. None if it is no pair: its link's index may then mean anything,
/// such as the node's own interface below a macvlan.
async fn other_end(kernel: &Kernel, nic: &Link) -> io::Result<Option<Link>> {
    let (Some(index), Some(pod)) = (nic.peer.filter(|_| is_pair(nic)), &kernel.pod) else { return Ok(None) };
    let peer = kernel.node.link_by_index(index).await?;
    match peer.filter(|peer| peer.kind == nic.kind && peer.peer == Some(nic.index)) {
        // A pair between two other namespaces, and one that the node has in a third, may have the same two indices.
        Some(peer) if peer.peer_nsid == Some(kernel.node.nsid(&pod.netns).await?) => Ok(Some(peer)),
        _ => Ok(None),
    }
}

/// The node's link to other hosts by which it reaches all of these addresses, which a pod has on `nic`: the interface is then on
/// the underlay itself, as a virtual function is. Those of an overlay's the node leads into the overlay. None also where the
/// other end of a pair is here.
///
/// # Errors
/// What the kernel says.
pub async fn underlay(kernel: &Kernel, nic: &Link, nets: &[IpNet]) -> io::Result<Option<String>> {
    if other_end(kernel, nic).await?.is_some() {
        return Ok(None);
    }
    let node = &kernel.node;
    let mut underlay = None;
    for net in nets {
        let Some((_, dev)) = way(node, (*net, None)).await? else { continue };
        let Some(link) = node.link(&dev).await?.filter(|link| link.name != LOOPBACK) else { return Ok(None) };
        let mut own = node.addresses_of(&link).await?;
        own.retain(|net| !is_link_local(net.addr()));
        if !leads_out(node, &link, &own, &mut None).await? {
            return Ok(None);
        }
        underlay = Some(dev);
    }
    Ok(underlay)
}

fn is_pair(link: &Link) -> bool {
    matches!(link.kind.as_str(), "veth" | "netkit")
}

/// Whether a link of the node leads to other hosts.
async fn leads_out(node: &Netlink, link: &Link, nets: &[IpNet], defaults: &mut Option<Vec<Route>>) -> io::Result<bool> {
    Ok(match plan::purpose(link, nets) {
        Purpose::Hosts => true,
        // An overlay's has routes to the blocks of other nodes, by way of these.
        Purpose::Containers => {
            let known = match defaults.take() {
                Some(known) => known,
                None => default_routes(node).await?,
            };
            defaults.insert(known).iter().any(|route| route.dev == link.name)
        }
        Purpose::Ports => {
            let filter = RouteFilter { oif: Some(link.index), ..RouteFilter::default() };
            node.ports(link.index).await?.iter().any(plan::is_cable) || node.routes(filter).await?.iter().any(leads_on)
        }
    })
}

/// The node's default routes by way of a router.
async fn default_routes(node: &Netlink) -> io::Result<Vec<Route>> {
    let mut routes = vec![];
    for family in Family::ALL {
        // No other route leads there.
        routes.extend(main_routes(node, family.default_route().addr()).await?);
    }
    routes.retain(|route| leads_on(route) && route.destination.prefix_len() == 0);
    Ok(routes)
}

/// Whether a route leads to a router. Ours lead to pods.
fn leads_on(route: &Route) -> bool {
    route.gateway.is_some() && route.protocol != PROTOCOL
}

/// The node's table for pods: the first from `base` on that a rule of ours looks up, or that nobody uses.
///
/// # Errors
/// What the kernel says.
pub async fn table(node: &Netlink, base: u32) -> io::Result<u32> {
    let rules = node.rules().await?;
    let mut taken = BTreeSet::new();
    loop {
        let table = numbers::free_table(base, |table| taken.contains(&table));
        let mut users = rules.iter().filter(|entry| entry.rule.table == table).peekable();
        let unused = users.peek().is_none();
        if users.any(|entry| entry.ours) || (unused && !node.is_foreign_table(table).await?) || !taken.insert(table) {
            return Ok(table);
        }
    }
}

/// The node's links to a pod's overlay interface `nic`: the other end of its veth pair or, where that is a port of a
/// bridge, whatever the node routes its addresses to. None if it is no veth.
///
/// # Errors
/// What the kernel says.
pub async fn sides(kernel: &Kernel, nic: &Link, uplink: &Uplink) -> io::Result<Vec<HostSide>> {
    let Some(peer) = other_end(kernel, nic).await? else { return Ok(vec![]) };
    let mut sides = vec![];
    for address in &uplink.sources {
        let dev = match peer.controller {
            None => Some(peer.name.clone()),
            Some(_) => kernel.node.source_towards(*address).await?.map(|(_, dev)| dev),
        };
        sides.extend(dev.map(|dev| HostSide { address: *address, dev }));
    }
    Ok(sides)
}

#[cfg(test)]
mod tests {
    use common::object::PROTOCOL_BOOT;

    use super::*;

    #[test]
    fn a_bridge_behind_which_somebody_elses_router_is_leads_on_and_one_with_routes_of_ours_or_to_its_own_subnet_does_not()
     {
        let route = |gateway: Option<&str>, protocol| Route {
            gateway: gateway.map(|gateway| gateway.parse().unwrap()),
            protocol,
            ..Route::new(Family::Ipv4.default_route(), "br-ex", MAIN_TABLE)
        };
        assert!(leads_on(&route(Some("10.6.0.1"), PROTOCOL_BOOT)));
        assert!(!leads_on(&route(Some("10.6.0.1"), PROTOCOL)));
        assert!(!leads_on(&route(None, PROTOCOL_BOOT)));
    }
}
