//! The routes in the pod and on the node. Pure.

use std::{
    collections::{BTreeSet, HashSet},
    net::IpAddr,
};

use common::{
    document::{Cidrs, Mode, ModeKind, NicTable, PodDocument},
    failure::Failure,
    names::POD_VETH,
    object::{Family, MAIN_TABLE, Object, PROTOCOL, PROTOCOL_BOOT, PROTOCOL_KERNEL, Placed, Route},
    settings::PolicyRoute,
};
use ipnet::IpNet;

/// What the pod's and the node's routing tables are to have for this interface.
pub fn wanted(document: &PodDocument) -> Result<Vec<Placed>, Failure> {
    let mode = document.mode()?;
    let mut pod = vec![];
    if mode.opens_uplink() {
        for family in Family::ALL {
            for cidrs in [document.cidrs()?].into_iter().chain(others_cidrs(document)) {
                let routes = into_the_node(document, mode, cidrs, family, MAIN_TABLE).into_iter();
                pod.extend(routes.filter(|route| !pod.contains(route)).collect::<Vec<_>>());
            }
        }
        pod.extend(replies(mode, document.numbers().pod_table));
    }
    for table in &document.routing.tables {
        pod.extend(own_table(document, mode, table)?);
    }
    pod.extend(policy_routes(document, mode));
    pod.extend(document.routing.stays.clone());
    let pod = pod.into_iter().map(|route| Placed::pod(Object::Route(route)));
    let node = to_the_pod(document).into_iter().map(|route| Placed::node(Object::Route(route)));
    Ok(pod.chain(node).collect())
}

/// Where the pod's routes of ours lead, of all its attachments, and where its default routes do: what somebody else has to another destination
/// is in nobody's way.
pub fn destinations(document: &PodDocument) -> HashSet<IpNet> {
    let cidrs = document.cidrs.iter().chain(document.others.iter().map(|other| &other.cidrs));
    let settings = document.others.iter().map(|other| &other.settings).chain([&document.settings]);
    let policies = settings.flat_map(|settings| &settings.policy_routes).map(|policy| policy.dst);
    let nodes = document.mode.iter().flat_map(|mode| &mode.node_addresses).copied().map(IpNet::from);
    let routing = document.routing.tables.iter().flat_map(|table| &table.routes).chain(&document.routing.stays);
    let defaults = Family::ALL.into_iter().map(Family::default_route);
    let all = cidrs.flat_map(Cidrs::all).chain(policies).chain(nodes);
    all.chain(routing.map(|route| route.destination)).chain(defaults).collect()
}

/// In ADD and CHECK: whether a route of the pod is this attachment's to replace, or to remove if it is not wanted.
/// Those are the routes that it makes, and the default routes that leave the main table.
pub fn is_replaced(document: &PodDocument, route: &Route) -> bool {
    let Some(mode) = &document.mode else { return false };
    let in_uplink = mode.opens_uplink() && is_uplink(document, route, &mode.uplink.dev);
    let in_table = document.routing.tables.iter().any(|table| table.table == route.table);
    let own = route.dev == mode.nic.name && route.table == MAIN_TABLE;
    let made = route.protocol == PROTOCOL && (in_uplink || in_table || own);
    // What refuses packets in the place of one of ours does so by no link. A table of ours is nobody else's.
    let uplink_table = mode.opens_uplink() && route.table == document.numbers().pod_table;
    let in_place = uplink_table || in_table || (route.table == MAIN_TABLE && route.protocol == PROTOCOL);
    made || (route.refusal.is_some() && in_place) || document.routing.leaves.contains(route)
}

/// In ADD and CHECK: whether a route that somebody else has put into the pod's main table leads where ours to the same
/// destination would: in overlay mode by the overlay's own interface, as OVN-Kubernetes has one to each of the cluster's CIDRs.
/// What is a subnet of the pod's own is reached directly, unless it is a Service CIDR.
pub fn serves(document: &PodDocument, route: &Route) -> bool {
    let Some(mode) = &document.mode else { return false };
    let is_policy = |policy: &PolicyRoute| policy.dst == route.destination;
    let refuses = route.refusal.is_some();
    if refuses || route.protocol == PROTOCOL || route.table != MAIN_TABLE || is_default_of_main(route) {
        return false;
    }
    let next_hop = mode.uplink.gateway(Family::of(route.destination.addr()));
    let by_overlay = mode.kind == ModeKind::Overlay && route.dev == mode.uplink.dev && route.gateway == next_hop;
    let is_service = |cidrs: &Cidrs| cidrs.service.contains(&route.destination);
    let mut all = document.cidrs.iter().chain(others_cidrs(document));
    let is_subnet = route.protocol == PROTOCOL_KERNEL && route.gateway.is_none() && !all.any(is_service);
    (by_overlay || is_subnet) && !document.settings.policy_routes.iter().any(is_policy)
}

/// The CIDRs of the pod's other attachments that lead into the node by the same link as this one's.
fn others_cidrs(document: &PodDocument) -> impl Iterator<Item = &Cidrs> {
    document.others.iter().filter(|other| other.opens_uplink).map(|other| &other.cidrs)
}

fn is_default_of_main(route: &Route) -> bool {
    route.table == MAIN_TABLE && route.destination.prefix_len() == 0
}

fn is_uplink(document: &PodDocument, route: &Route, dev: &str) -> bool {
    route.dev == dev && [MAIN_TABLE, document.numbers().pod_table].contains(&route.table)
}

/// What DEL takes of the pod's routes, and gives back. It follows from what the kernel says, for the document may have been lost.
#[derive(Clone, Debug)]
pub struct Teardown<'a> {
    document: &'a PodDocument,
    /// Whether another attachment needs the pod's overlay interface as its way into the node.
    uplink_needed: bool,
    /// The default routes that the main table gets back: the first interface's, where it had given way to this one.
    pub returning: Vec<Route>,
    /// The tables that go with a further interface: its own, and with the last one the first interface's.
    tables: BTreeSet<u32>,
}

impl<'a> Teardown<'a> {
    /// `routes` are the unicast routes of the pod, of routing daemons' the default ones at least; `uplink_needed` says whether
    /// another attachment needs the pod's overlay interface as its way into the node.
    pub fn new(document: &'a PodDocument, routes: &[Route], uplink_needed: bool) -> Self {
        let first = &document.settings.pod_default_cni_nic;
        let of_first = tables_of(routes, first);
        let returning = if document.is_first() { vec![] } else { returning(document, routes, &of_first) };
        let mut tables = tables_of(routes, &document.request.ifname);
        if is_last(document, routes, &of_first, &returning) {
            tables.extend(of_first);
        }
        tables.remove(&document.numbers().pod_table);
        Self { document, uplink_needed, returning, tables }
    }

    /// Whether a route of the pod goes. The way into the node goes with the interface that opened it: the first, or in
    /// overlay mode the last of the others.
    pub fn removes(&self, route: &Route) -> bool {
        let ifname = &self.document.request.ifname;
        let first = &self.document.settings.pod_default_cni_nic;
        if ifname == POD_VETH {
            // No attachment has this name: a plugin before this one failed on it, and its routes are the first one's.
            return false;
        }
        if route.protocol != PROTOCOL {
            let displaced = |back: &Route| back.destination == route.destination;
            return is_default_of_main(route) && route.dev == *ifname && self.returning.iter().any(displaced);
        }
        if self.document.is_first() {
            return route.dev == *first || route.dev == POD_VETH;
        }
        route.dev == *ifname
            || self.tables.contains(&route.table)
            || (is_uplink(self.document, route, first) && (!self.uplink_needed || self.is_of_this_alone(route)))
    }

    /// Whether this attachment alone asked for a route into the node that others use too.
    fn is_of_this_alone(&self, route: &Route) -> bool {
        let asks = |cidrs: &Cidrs| cidrs.all().any(|cidr| cidr == route.destination);
        let mut others = others_cidrs(self.document).peekable();
        let nodes = self.document.mode.iter().flat_map(|mode| &mode.node_addresses);
        let is_node = nodes.copied().any(|node| IpNet::from(node) == route.destination);
        let asked = route.table == MAIN_TABLE && !is_node && self.document.cidrs.as_ref().is_some_and(asks);
        asked && others.peek().is_some() && !others.any(asks)
    }
}

/// The tables of our own that have routes of an interface.
fn tables_of(routes: &[Route], nic: &str) -> BTreeSet<u32> {
    let own = |route: &&Route| route.protocol == PROTOCOL && route.table != MAIN_TABLE && route.dev == nic;
    routes.iter().filter(own).map(|route| route.table).collect()
}

/// See [`Teardown::returning`]; `of_first` are the first interface's tables.
fn returning(document: &PodDocument, routes: &[Route], of_first: &BTreeSet<u32>) -> Vec<Route> {
    let first = &document.settings.pod_default_cni_nic;
    let back = |family: Family| {
        let default = |route: &&Route| route.destination == family.default_route();
        let others = |route: &Route| route.table == MAIN_TABLE && route.dev != document.request.ifname;
        if routes.iter().filter(default).any(others) {
            return None;
        }
        let moved = |route: &&Route| route.dev == *first && of_first.contains(&route.table);
        let moved = routes.iter().filter(default).find(moved)?;
        Some(Route { table: MAIN_TABLE, protocol: PROTOCOL_BOOT, ..moved.clone() })
    };
    Family::ALL.into_iter().filter_map(back).collect()
}

/// Whether the first interface needs its tables, `of_first`, no more: this is the last further one that has a table, and the main
/// table has, or gets back, each of the first one's default routes.
fn is_last(document: &PodDocument, routes: &[Route], of_first: &BTreeSet<u32>, returning: &[Route]) -> bool {
    let first = &document.settings.pod_default_cni_nic;
    let default = |route: &&Route| route.dev == *first && route.destination.prefix_len() == 0;
    let main = routes.iter().filter(default).filter(|route| route.table == MAIN_TABLE).chain(returning);
    let main: Vec<_> = main.map(|route| route.destination).collect();
    let mut moved = routes.iter().filter(default).filter(|route| of_first.contains(&route.table));
    if moved.any(|route| !main.contains(&route.destination)) {
        return false;
    }
    let known = [document.request.ifname.as_str(), first, POD_VETH];
    let uplink = [MAIN_TABLE, document.numbers().pod_table];
    let further = |route: &&Route| route.protocol == PROTOCOL && !uplink.contains(&route.table);
    routes.iter().filter(further).all(|route| known.contains(&route.dev.as_str()))
}

/// Whether a route of the node's leads to this pod by its overlay interface, which has the addresses `pod`.
pub fn leads_by_overlay(document: &PodDocument, route: &Route, pod: &[IpAddr]) -> bool {
    let through_overlay = |address: &IpAddr| route.gateway == Some(*address);
    let sides = document.mode.iter().flat_map(|mode| &mode.host_side).map(|side| side.address);
    pod.iter().any(through_overlay) || sides.into_iter().any(|address| through_overlay(&address))
}

/// The way into the node: its addresses, and the CIDRs behind it.
fn into_the_node(document: &PodDocument, mode: &Mode, cidrs: &Cidrs, family: Family, table: u32) -> Vec<Route> {
    let uplink = &mode.uplink;
    let Some(source) = uplink.source(family) else { return vec![] };
    let gateway = uplink.gateway(family);
    if gateway.is_none() && mode.kind == ModeKind::Underlay {
        log::warn!("the node has no {family} address: its Services cannot be reached over {family}");
        return vec![];
    }
    let source = (table == MAIN_TABLE).then_some(source);
    // Where the overlay's own route says alone that the next hop is on the link, so do ours, and its MTU is theirs.
    let (onlink, mtu) = document.routing.way(&uplink.dev, gateway).map_or((false, None), |way| (way.onlink, way.mtu));
    let through =
        |destination, gateway| Route { gateway, source, onlink, mtu, ..Route::new(destination, &uplink.dev, table) };
    // In underlay mode the node's addresses are on the link; in overlay mode they are behind its next hop too.
    let node_gateway = gateway.filter(|_| mode.kind == ModeKind::Overlay);
    // The gateway is on the link, and with a route by itself nothing could be led by it (`ip6_route_check_nh`).
    let nodes = mode.node_addresses(family).filter(|node| Some(*node) != node_gateway);
    let nodes = nodes.map(|node| through(IpNet::from(node), node_gateway));
    let is_node = |cidr: &IpNet| mode.node_addresses(family).any(|node| IpNet::from(node) == *cidr);
    let cidrs = cidrs.all().filter(|cidr| Family::of(cidr.addr()) == family && !is_node(cidr));
    nodes.chain(cidrs.map(|cidr| through(cidr, gateway))).collect()
}

/// A default route for replies to what came in through the veth pair. (An overlay interface's own table has one.)
fn replies(mode: &Mode, table: u32) -> impl Iterator<Item = Route> + '_ {
    let gateways =
        Family::ALL.into_iter().filter(|family| mode.uplink.source(*family).is_some()).filter_map(move |family| {
            let gateway = mode.uplink.gateway(family)?;
            Some(Route { gateway: Some(gateway), ..Route::new(family.default_route(), &mode.uplink.dev, table) })
        });
    gateways.filter(|_| mode.kind == ModeKind::Underlay)
}

/// The table of one interface: its routes, the user's and, where it is not the way into the node itself, that way. In a
/// further interface's table it does not lead to overlay pods: a question from there to its address may have come in by it,
/// and has to be answered by it. An interface of which nothing is known has what this attachment asks for.
fn own_table(document: &PodDocument, mode: &Mode, table: &NicTable) -> Result<Vec<Route>, Failure> {
    let share = document.shares().find(|share| share.ifname == table.nic);
    let mut policies = share.as_ref().map(|share| share.settings.policy_routes.clone()).unwrap_or_default();
    policies.retain(|policy| is_served(policy, table.addresses.iter().copied()));
    let overridden = |route: &&Route| policies.iter().any(|policy| policy.dst == route.destination);
    let mut routes: Vec<_> = table.routes.iter().filter(|route| !overridden(route)).cloned().collect();
    routes.extend(policies.iter().map(|policy| policy_route(policy, &table.nic, table.table)));
    if table.table != document.numbers().pod_table {
        let mut cidrs = share.map_or_else(|| document.cidrs().cloned(), |share| Ok(share.cidrs))?;
        if table.nic != document.settings.pod_default_cni_nic {
            cidrs.pod.clear();
        }
        let way = |family| into_the_node(document, mode, &cidrs, family, table.table);
        let ways: Vec<_> = Family::ALL.into_iter().flat_map(way).collect();
        // Its subnet it reaches directly.
        let is_there = |way: &Route| routes.iter().any(|route: &Route| route.destination == way.destination);
        let ways: Vec<_> = ways.into_iter().filter(|way| !is_there(way)).collect();
        routes.extend(ways);
    }
    Ok(routes)
}

/// On the node, each of the interface's addresses to which it leads through the container's link, in a table that is looked up before
/// the main one.
fn to_the_pod(document: &PodDocument) -> Vec<Route> {
    let Some(mode) = &document.mode else { return vec![] };
    let table = document.numbers().node_table;
    let towards = |address: IpAddr| match &document.veth {
        Some(pair) => Some(Route::new(IpNet::from(address), &pair.host, table)),
        None => {
            let side = mode.host_side.iter().find(|side| Family::same(side.address, address))?;
            let gateway = Some(side.address);
            Some(Route { gateway, onlink: true, ..Route::new(IpNet::from(address), &side.dev, table) })
        }
    };
    mode.led_addresses().filter_map(towards).collect()
}

/// The user's own routes for the interface in the main table: all but default routes, if it has a table of its own.
fn policy_routes(document: &PodDocument, mode: &Mode) -> impl Iterator<Item = Route> {
    let nic = &mode.nic.name;
    let has_table = document.routing.table_of(nic).is_some();
    let addresses = move || mode.nic.addresses.iter().map(IpNet::addr);
    let policies = document.settings.policy_routes.iter().filter(move |policy| is_served(policy, addresses()));
    let main = policies.filter(move |policy| !has_table || policy.dst.prefix_len() > 0);
    main.map(|policy| policy_route(policy, nic, MAIN_TABLE))
}

/// Whether an interface with these addresses has the family of a route: one network may be for pods with one and with two.
fn is_served(policy: &PolicyRoute, mut addresses: impl Iterator<Item = IpAddr>) -> bool {
    addresses.any(|address| Family::same(address, policy.gw))
}

fn policy_route(policy: &PolicyRoute, nic: &str, table: u32) -> Route {
    Route { gateway: Some(policy.gw), ..Route::new(policy.dst, nic, table) }
}
