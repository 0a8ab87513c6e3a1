//! Which table has the routes of which interface, in a pod with several. Pure.
//!
//! Each interface gets a table with all its routes, for packets from its addresses: also the one that has the default
//! route, for the main table has the others' subnets too, and an answer must not leave by their interfaces. In the main
//! table all default routes give way to one: that of the interface which `podDefaultRouteNic` names, else the one that was
//! there before. Everything else stays there, where connections of the pod's own, which have no source address yet, find
//! their interface. Routes of routing daemons are theirs alone: they are neither copied nor moved.

use std::{collections::BTreeSet, net::IpAddr};

use common::{
    document::{Nic, NicTable, PodDocument, Routing, Share},
    failure::{Code, Failure},
    numbers,
    object::{Family, MAIN_TABLE, PROTOCOL, PROTOCOL_BOOT, PROTOCOL_RA, Route},
    settings::Settings,
};
use ipnet::IpNet;

use crate::observe::Pod;

/// What is known of a pod when the interface `nic` comes into it, or is checked.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// The settings of this interface's network.
    pub settings: &'a Settings,
    /// What the pod's other attachments ask for.
    pub others: &'a [Share],
    /// The interface.
    pub nic: &'a Nic,
    /// The table with the way into the node.
    pub uplink_table: u32,
    /// Whether the pod's first interface is an overlay one, whose table is the uplink's.
    pub overlay: bool,
    /// In overlay mode, the ways out by that interface.
    pub ways: &'a [Route],
    /// The pod's network as it is.
    pub pod: &'a Pod,
    /// The routes that prevResult has for the interface.
    pub promised: &'a [Route],
    /// The gateways that it has for the interface's addresses.
    pub gateways: &'a [IpAddr],
    /// In CHECK, what ADD decided.
    pub decided: &'a Routing,
}

/// Which table has which routes.
pub fn routing(view: View<'_>) -> Routing {
    let owner = owner(view.pod, &view.nic.name, view.settings, view.others);
    let mut routing = Routing::default();
    let first = &view.settings.pod_default_cni_nic;
    if view.overlay {
        routing.tables.push(view.table(first, view.uplink_table));
    }
    if !view.settings.tune_pod_routes {
        return routing;
    }
    for family in Family::ALL {
        let chosen = owner.and_then(|owner| view.named_route(owner, family));
        let chosen = chosen.or_else(|| view.default_route(view.undisputed(family)?, family));
        routing.leaves.extend(view.leaving(chosen.as_ref(), family));
        // Where a routing daemon has put its own in that place, it stays the daemon's.
        let is_taken = |stay: &Route| {
            let same = |route: &Route| {
                (route.destination, route.table, route.metric) == (stay.destination, stay.table, stay.metric)
            };
            view.pod.routes.iter().any(|route| route.is_daemons() && same(route))
        };
        routing.stays.extend(chosen.filter(|route| !is_taken(route)));
    }
    let ifname = view.nic.name.as_str();
    let leaving = routing.leaves.iter().map(|route| route.dev.as_str());
    let mut nics: Vec<&str> = [ifname].into_iter().chain(leaving).chain([first.as_str()]).collect();
    if ifname == first && nics.iter().all(|nic| *nic == first) && view.known_table(first).is_none() {
        // Nothing to tell apart yet.
        nics.clear();
    }
    nics.retain(|nic| view.pod.link(nic).is_some());
    let mut taken = view.used_tables();
    for nic in nics {
        if routing.table_of(nic).is_none() {
            let number = view.known_table(nic).unwrap_or_else(|| view.free_table(&taken));
            taken.insert(number);
            routing.tables.push(view.table(nic, number));
        }
    }
    routing
}

/// The default routes that have come into the main table beside those that stay there, or that left it. That of a router
/// advertisement is no fault: the node agent moves it into its interface's table.
pub fn intruders(pod: &Pod, document: &PodDocument) -> Vec<Route> {
    let intrudes = |route: &&Route| {
        let beside = |stay: &Route| stay.destination == route.destination && stay.dev != route.dev;
        let family = Family::of(route.destination.addr());
        let left = route.destination == family.default_route() && document.default_leaves(&route.dev, family);
        let is_default = left || document.routing.stays.iter().any(beside);
        route.protocol != PROTOCOL_RA && is_default
    };
    pod.main_routes().filter(intrudes).cloned().collect()
}

/// Of the interfaces that are there the one that `podDefaultRouteNic` names. Where the pod's networks name several, that
/// of the last interface counts.
pub fn owner<'a>(pod: &Pod, ifname: &'a str, settings: &'a Settings, others: &'a [Share]) -> Option<&'a str> {
    let present = pod.interfaces();
    let others = others.iter().map(|other| (other.ifname.as_str(), &other.settings));
    let names =
        |(ifname, settings): (&'a str, &'a Settings)| Some((ifname, settings.pod_default_route_nic.as_deref()?));
    let named = [(ifname, settings)].into_iter().chain(others).filter_map(names);
    // net10 comes after net2.
    let place = |(ifname, _): &(&'a str, &'a str)| (*ifname != settings.pod_default_cni_nic, ifname.len(), *ifname);
    let last = named.filter(|(_, owner)| present.contains(owner)).max_by_key(place);
    last.map(|(_, owner)| owner)
}

impl<'a> View<'a> {
    /// Whether `podDefaultRouteNic` can be had, which is ADD's to ask.
    ///
    /// # Errors
    /// When it names an interface that is not there and cannot come any more, or this one, which has no default route to keep
    /// in place of another one's.
    pub fn check(self) -> Result<(), Failure> {
        let Settings { pod_default_route_nic, pod_default_cni_nic: first, tune_pod_routes, .. } = self.settings;
        let Some(owner) = pod_default_route_nic.as_deref() else { return Ok(()) };
        let refuse = |what: String, remedy: &str| {
            let failure = Failure::new(Code::InvalidConfiguration, format!("setting podDefaultRouteNic: {what}"));
            Err(failure.details(remedy))
        };
        let present = self.pod.interfaces();
        if !present.contains(&owner) && !comes_later(owner, &self.nic.name, first) {
            let list = present.join(", ");
            let remedy = format!("allowed: one of the pod's interfaces ({list}), or one that can still be added");
            return refuse(format!("there is no interface {owner}"), &remedy);
        }
        let lacks = |family: &Family| self.named_route(owner, *family).is_none();
        let is_disputed = |family: &Family| self.undisputed(*family).is_none();
        if *tune_pod_routes
            && owner == self.nic.name
            && Family::ALL.iter().all(lacks)
            && Family::ALL.iter().any(is_disputed)
        {
            let remedy = "give its IPAM a gateway or a default route, or name another interface";
            return refuse(format!("{owner} has no default route"), remedy);
        }
        Ok(())
    }

    /// The default route of the interface that is to keep it: also by a gateway that otherwise is for its own table alone.
    fn named_route(self, nic: &str, family: Family) -> Option<Route> {
        let by_gateway = || {
            let gateway = Some(family.first(self.given(nic)?.1.iter().copied())?);
            Some(Route { gateway, protocol: PROTOCOL_BOOT, ..Route::new(family.default_route(), nic, MAIN_TABLE) })
        };
        self.default_route(nic, family).or_else(by_gateway)
    }

    /// An interface's default route, as the main table is to have it. A further interface may never have had it there, for
    /// the CNI library leaves out what another interface has already; and Multus' `default-route` takes away the others'.
    fn default_route(self, nic: &str, family: Family) -> Option<Route> {
        let destination = family.default_route();
        let is_it = |route: &&Route| route.dev == nic && route.destination == destination;
        let promised = self.promised.iter().chain(&self.decided.stays);
        let others = self.others.iter().flat_map(|other| &other.promised).chain(self.ways);
        let elsewhere = self.pod.routes.iter().filter(|route| route.protocol == PROTOCOL);
        let route = self.pod.main_routes().chain(elsewhere).chain(promised).chain(others).find(is_it)?;
        let is_main = route.gateway.is_none() || route.gateway != self.own_gateway(nic, family);
        is_main.then(|| Route { table: MAIN_TABLE, protocol: PROTOCOL_BOOT, ..route.clone() })
    }

    /// The gateway that a further interface has for its own table alone: its IPAM names one and no default route, and nobody
    /// else has given it one. The sbr plugin has it the same way.
    fn own_gateway(self, nic: &str, family: Family) -> Option<IpAddr> {
        let (promised, gateways) = self.given(nic)?;
        let destination = family.default_route();
        let is_default = |route: &&Route| route.dev == nic && route.destination == destination;
        let mut defaults =
            promised.iter().chain(&self.decided.stays).chain(self.main_defaults(family)).filter(is_default);
        let is_further = nic != self.settings.pod_default_cni_nic;
        if !is_further || defaults.next().is_some() {
            return None;
        }
        family.first(gateways.iter().copied())
    }

    /// The default routes that prevResult has for an interface, and the gateways.
    fn given(self, nic: &str) -> Option<(&'a [Route], &'a [IpAddr])> {
        if nic == self.nic.name {
            return Some((self.promised, self.gateways));
        }
        let other = self.others.iter().find(|other| other.ifname == nic)?;
        Some((&other.promised, &other.gateways))
    }

    fn main_defaults(self, family: Family) -> impl Iterator<Item = &'a Route> {
        let destination = family.default_route();
        self.pod.main_routes().filter(move |route| route.destination == destination)
    }

    /// This interface, if no other one has a default route of the family in the main table.
    fn undisputed(self, family: Family) -> Option<&'a str> {
        let nic = self.nic.name.as_str();
        self.main_defaults(family).all(|route| route.dev == nic).then_some(nic)
    }

    /// The default routes of a family that leave the main table: all but the chosen one's; where none was chosen, a
    /// further interface's.
    fn leaving(self, chosen: Option<&Route>, family: Family) -> Vec<Route> {
        let is_further = self.nic.name != self.settings.pod_default_cni_nic;
        let leaves = |route: &&Route| match chosen {
            Some(chosen) => route.dev != chosen.dev,
            None => is_further && route.dev == self.nic.name,
        };
        self.main_defaults(family).filter(leaves).cloned().collect()
    }

    /// The table that an interface has already: by a rule of ours from one of its addresses, or by a route of ours.
    fn known_table(self, nic: &str) -> Option<u32> {
        let addresses = self.addresses(nic);
        let of_a_nic = |table: &u32| *table != self.uplink_table && *table != MAIN_TABLE;
        let rules =
            self.pod.rules.iter().filter(|entry| {
                entry.ours && addresses.iter().any(|net| entry.rule.from == Some(IpNet::from(net.addr())))
            });
        let routes = self.pod.routes.iter().filter(|route| route.protocol == PROTOCOL && route.dev == nic);
        let decided = self.decided.tables.iter().filter(|table| table.nic == nic).map(|table| table.table);
        rules.map(|entry| entry.rule.table).chain(routes.map(|route| route.table)).chain(decided).find(of_a_nic)
    }

    fn used_tables(self) -> BTreeSet<u32> {
        let rules = self.pod.rules.iter().map(|entry| entry.rule.table);
        let routes = self.pod.routes.iter().map(|route| route.table);
        rules.chain(routes).chain(self.decided.tables.iter().map(|table| table.table)).collect()
    }

    /// The first table after the uplink's that nobody has.
    fn free_table(self, taken: &BTreeSet<u32>) -> u32 {
        let is_taken = |table| taken.contains(&table) || self.pod.is_foreign_table(table);
        numbers::free_table(self.uplink_table.saturating_add(1), is_taken)
    }

    fn addresses(self, nic: &str) -> Vec<IpNet> {
        if nic == self.nic.name { self.nic.addresses.clone() } else { self.pod.global_addresses_of(nic) }
    }

    /// All routes of an interface, in a table of its own: those that the main table has, those that prevResult has, its
    /// default routes wherever they are, one by its gateway where it has none, and its subnets. Routes on the link come first, for the others' next hops.
    fn table(self, nic: &str, number: u32) -> NicTable {
        let nets = self.addresses(nic);
        let main = self.pod.main_routes().filter(|route| route.protocol != PROTOCOL);
        let promised = self.promised.iter().filter(|route| matches!(route.table, MAIN_TABLE) || route.table == number);
        let decided = self.decided.tables.iter().filter(|table| table.nic == nic).flat_map(|table| &table.routes);
        let defaults: Vec<Route> =
            Family::ALL.into_iter().filter_map(|family| self.default_route(nic, family)).collect();
        let own = |family: Family| {
            let gateway = Some(self.own_gateway(nic, family)?);
            Some(Route { gateway, ..Route::new(family.default_route(), nic, number) })
        };
        let own: Vec<Route> = Family::ALL.into_iter().filter_map(own).collect();
        let subnets: Vec<Route> = nets.iter().filter_map(|net| subnet(nic, *net)).collect();
        let mut routes: Vec<Route> = vec![];
        for route in main.chain(&defaults).chain(promised).chain(&own).chain(decided).chain(&subnets) {
            let known = |known: &Route| known.destination == route.destination;
            if route.dev == nic && !belongs_to_link(route.destination) && !routes.iter().any(known) {
                routes.push(Route { table: number, protocol: PROTOCOL, ..route.clone() });
            }
        }
        routes.sort_by_key(|route| (route.gateway.is_some(), route.destination));
        NicTable { nic: nic.to_owned(), addresses: nets.iter().map(IpNet::addr).collect(), table: number, routes }
    }
}

/// Whether an interface may still be added after `ifname`: any after the first one, and `net2` after `net1`, for Multus
/// numbers them in the order in which it adds them.
fn comes_later(owner: &str, ifname: &str, first: &str) -> bool {
    let split = |name: &str| {
        let stem = name.trim_end_matches(|c: char| c.is_ascii_digit()).to_owned();
        let number = name[stem.len()..].parse::<u32>().ok();
        (stem, number)
    };
    let ((owner_stem, owner_number), (stem, number)) = (split(owner), split(ifname));
    ifname == first || (owner_stem == stem && owner_number > number)
}

/// Link-local and multicast routes are the link's own: every link has the same.
fn belongs_to_link(destination: IpNet) -> bool {
    match destination {
        IpNet::V4(_) => false,
        IpNet::V6(net) => net.addr().is_unicast_link_local() || net.addr().is_multicast(),
    }
}

fn subnet(nic: &str, net: IpNet) -> Option<Route> {
    let source = Some(net.addr()).filter(IpAddr::is_ipv4);
    (net.prefix_len() < net.max_prefix_len()).then(|| Route { source, ..Route::new(net.trunc(), nic, MAIN_TABLE) })
}
