//! The routes in the pod and on the node. Pure.

use std::net::IpAddr;

use common::{
    document::{Cidrs, Command, Mode, ModeKind, Moved, PodDocument},
    failure::Failure,
    names::{POD_VETH, host_veth},
    object::{Family, MAIN_TABLE, Object, PROTOCOL, Placed, Route, UPLINK_TABLE},
    settings::Settings,
};
use ipnet::IpNet;

/// What the pod's and the node's routing tables are to have for this interface.
pub fn wanted(document: &PodDocument) -> Result<Vec<Placed>, Failure> {
    let mode = document.mode()?;
    if mode.mode == ModeKind::Disable {
        return Ok(vec![]);
    }
    let mut pod = vec![];
    if mode.opens_uplink() {
        for family in Family::ALL {
            pod.extend(into_the_node(mode, document.cidrs()?, family));
        }
    }
    pod.extend(mode.moved.iter().flat_map(|moved| moved.routes.clone()));
    pod.extend(policy_routes(mode, &document.settings));
    let pod = pod.into_iter().map(|route| Placed::pod(Object::Route(route)));
    let node = to_the_pod(document).into_iter().map(|route| Placed::node(Object::Route(route)));
    Ok(pod.chain(node).collect())
}

/// In ADD and CHECK: whether a route of the pod is this attachment's to replace, or to remove if it is not wanted.
/// Those are the routes that it makes, and those that give way in the main table.
pub fn is_replaced(document: &PodDocument, route: &Route) -> bool {
    let Some(mode) = &document.mode else { return false };
    let in_uplink = mode.opens_uplink() && is_uplink(route, &mode.uplink.dev);
    let in_moved = mode.moved.as_ref().is_some_and(|moved| moved.nic == route.dev && moved.table == route.table);
    let own = route.dev == mode.nic.name && route.table == MAIN_TABLE;
    let made = route.protocol == PROTOCOL && (in_uplink || in_moved || own);
    made || mode.moved.as_ref().is_some_and(|moved| moved.takes(route))
}

/// In DEL: whether a route of the pod goes, found by what the kernel says, for the document may have been lost. The way
/// into the node goes with the interface that opened it: the first, or in overlay mode the last of the others.
pub fn is_removed(document: &PodDocument, route: &Route, all: &[Route]) -> bool {
    let ifname = &document.request.ifname;
    let first = &document.settings.pod_default_cni_nic;
    let moved = document.mode.as_ref().and_then(|mode| mode.moved.as_ref());
    let in_moved = moved.is_some_and(|moved| moved.nic == route.dev && moved.table == route.table);
    let of_another = |other: &Route| {
        other.protocol == PROTOCOL
            && other.table > UPLINK_TABLE
            && other.table != MAIN_TABLE
            && other.dev != *ifname
            && other.dev != *first
    };
    let removed = if document.is_first() {
        is_uplink(route, POD_VETH)
    } else {
        route.dev == *ifname || in_moved || (is_uplink(route, first) && !all.iter().any(of_another))
    };
    route.protocol == PROTOCOL && removed
}

fn is_uplink(route: &Route, dev: &str) -> bool {
    route.dev == dev && matches!(route.table, MAIN_TABLE | UPLINK_TABLE)
}

/// Whether a route of ours on the node may be replaced or removed: in DEL only if it still leads to this pod.
pub fn is_of_this_pod(document: &PodDocument, route: &Route) -> bool {
    let overlay = document.mode.as_ref().is_some_and(|mode| mode.host_side.iter().any(|side| side.dev == route.dev));
    document.request.command != Command::Del || overlay || route.dev == host_veth(&document.request.container_id)
}

fn route(destination: IpNet, dev: &str, table: u32) -> Route {
    Route {
        destination,
        gateway: None,
        dev: dev.to_owned(),
        source: None,
        table,
        metric: None,
        onlink: false,
        protocol: PROTOCOL,
    }
}

/// The way into the node: its addresses, the CIDRs behind it, and a default route in a table of its own for replies to
/// what came in that way.
fn into_the_node(mode: &Mode, cidrs: &Cidrs, family: Family) -> Vec<Route> {
    let uplink = &mode.uplink;
    let (Some(source), gateway) = (uplink.source(family), uplink.gateway(family)) else { return vec![] };
    if gateway.is_none() && mode.mode == ModeKind::Underlay {
        log::warn!("the node has no {family:?} address: its Services cannot be reached over {family:?}");
        return vec![];
    }
    let through = |destination, table, gateway| Route { gateway, ..route(destination, &uplink.dev, table) };
    let with_source = |route: Route| Route { source: Some(source), ..route };
    // In underlay mode the node's addresses are on the link; in overlay mode they are behind its next hop too.
    let node_gateway = if mode.mode == ModeKind::Overlay { gateway } else { None };
    let nodes = mode.node_addresses(family).map(|node| through(IpNet::from(node), MAIN_TABLE, node_gateway));
    let cidrs = cidrs.all().filter(|cidr| Family::of(cidr.addr()) == family);
    let cidrs = cidrs.map(|cidr| through(cidr, MAIN_TABLE, gateway));
    let replies = through(family.default_route(), UPLINK_TABLE, gateway);
    nodes.chain(cidrs).map(with_source).chain([replies]).collect()
}

/// On the node, each of the interface's addresses through the container's link, in a table that is looked up before
/// the main one.
fn to_the_pod(document: &PodDocument) -> Vec<Route> {
    let Some(mode) = &document.mode else { return vec![] };
    let table = document.settings.host_rule_table;
    let towards = |address: IpAddr| match &document.veth {
        Some(pair) => Some(route(IpNet::from(address), &pair.host, table)),
        None => {
            let side = mode.host_side.iter().find(|side| side.address.is_ipv4() == address.is_ipv4())?;
            let gateway = Some(side.address);
            Some(Route { gateway, onlink: true, ..route(IpNet::from(address), &side.dev, table) })
        }
    };
    mode.nic.addresses.iter().filter_map(|net| towards(net.addr())).collect()
}

/// The user's own routes for the interface, in the table that has the interface's other routes.
fn policy_routes(mode: &Mode, settings: &Settings) -> Vec<Route> {
    let nic = &mode.nic.name;
    let table = match &mode.moved {
        Some(Moved { nic: moved, table, .. }) if moved == nic => *table,
        _ => MAIN_TABLE,
    };
    let policy =
        |policy: &common::settings::PolicyRoute| Route { gateway: Some(policy.gw), ..route(policy.dst, nic, table) };
    settings.policy_routes.iter().map(policy).collect()
}
