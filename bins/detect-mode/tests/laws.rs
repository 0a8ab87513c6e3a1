//! Laws of the pure plans, on pods with random interfaces, addresses, routes, rules and settings, against a small model of
//! the kernel. What detect-mode decides, set-routes and set-rules plan; the model refuses what a kernel would refuse.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use common::{
    document::{Cidrs, Command, Mode, ModeKind, Nic, PodDocument, Request, Routing, Share, Uplink, VethPair},
    names,
    netlink::{AddressEntry, Detection, Link, RuleEntry},
    object::{Family, MAIN_TABLE, Netns, Object, Operation, PROTOCOL, PROTOCOL_BOOT, Placed, Route, Rule},
    plan::{Found, plan},
    settings::{PolicyRoute, Settings},
};
use detect_mode::{
    observe::Pod,
    routing::{View, routing},
};
use ipnet::IpNet;
use proptest::prelude::*;
use serde_json::json;
use set_routes::plan::Teardown;

/// One interface of a pod, before our plugin sees it.
#[derive(Clone, Debug)]
struct Card {
    name: String,
    addresses: Vec<IpNet>,
    /// `podDefaultRouteNic` of its network.
    owner: Option<String>,
    tune: bool,
    /// Destinations of further routes by way of its gateway, and of policy routes.
    static_routes: Vec<u8>,
    policy_routes: Vec<u8>,
    /// `hijackCIDR` of its network.
    hijack: Vec<u8>,
    metric: Option<u32>,
    /// Its IPAM names gateways and no routes.
    bare: bool,
}

#[derive(Clone, Debug)]
struct Scenario {
    overlay: bool,
    cards: Vec<Card>,
    /// Tables that somebody else uses.
    taken: BTreeSet<u32>,
    /// The order of the DELs, as keys to sort by.
    order: Vec<u8>,
}

fn address(network: u8, host: u8, family: Family) -> IpNet {
    let text = match family {
        Family::Ipv4 => format!("10.{network}.0.{host}/16"),
        Family::Ipv6 => format!("fd00:{network}::{host}/64"),
    };
    text.parse().unwrap()
}

fn gateway(net: IpNet) -> IpAddr {
    match net.network() {
        IpAddr::V4(network) => IpAddr::from((u32::from(network) + 1).to_be_bytes()),
        IpAddr::V6(network) => IpAddr::from((u128::from(network) + 1).to_be_bytes()),
    }
}

fn destination(number: u8, family: Family) -> IpNet {
    let text = match family {
        Family::Ipv4 => format!("172.{}.0.0/16", 16 + number),
        Family::Ipv6 => format!("2001:db8:{number}::/48"),
    };
    text.parse().unwrap()
}

fn hijacked(number: u8) -> IpNet {
    format!("198.51.{}.0/24", 100 + number).parse().unwrap()
}

fn card(number: u8) -> impl Strategy<Value = Card> {
    let name = if number == 0 { "eth0".to_owned() } else { format!("net{number}") };
    let families = prop::sample::subsequence(Family::ALL.to_vec(), 1..=2);
    let owner = prop::option::of(prop::sample::select(vec!["eth0", "net1", "net2", "net3"]));
    let numbers = || prop::collection::btree_set(0..4u8, 0..2).prop_map(|set| set.into_iter().collect());
    // Two interfaces may be on one network, and one may have two addresses of a family.
    let network = (6..9u8, prop::bool::weighted(0.2));
    let metric = prop::option::weighted(0.2, 50..60u32);
    let hijack = prop::collection::btree_set(0..3u8, 0..3);
    let bare = prop::bool::weighted(0.2);
    (families, network, owner, prop::bool::weighted(0.9), numbers(), numbers(), hijack, metric, bare).prop_map(
        move |(families, (network, two), owner, tune, static_routes, policies, hijack, metric, bare): (
            Vec<Family>,
            _,
            _,
            _,
            Vec<u8>,
            Vec<u8>,
            _,
            _,
            _,
        )| {
            let bare = bare && number > 0;
            let addresses = |family| {
                let further = two.then(|| address(network, 100 + number, family));
                [Some(address(network, 10 + number, family)), further].into_iter().flatten()
            };
            Card {
                name: name.clone(),
                addresses: families.iter().copied().flat_map(addresses).collect(),
                owner: owner.map(str::to_owned),
                tune,
                static_routes: if bare { vec![] } else { static_routes },
                // Each interface has its own, as people would have it.
                policy_routes: policies.into_iter().map(|_| 4 + number).collect(),
                hijack: hijack.into_iter().collect(),
                metric,
                bare,
            }
        },
    )
}

fn scenario() -> impl Strategy<Value = Scenario> {
    let further = (1..4u8).prop_flat_map(|count| (1..=count).map(card).collect::<Vec<_>>());
    let taken = prop::collection::btree_set(8500..8506u32, 0..4);
    (any::<bool>(), card(0), further, taken, prop::collection::vec(any::<u8>(), 4)).prop_map(
        |(overlay, first, further, taken, order)| {
            let cards = [first].into_iter().chain(further).collect();
            Scenario { overlay, cards, taken, order }
        },
    )
}

fn route(destination: IpNet, gateway: Option<IpAddr>, dev: &str) -> Route {
    Route { gateway, protocol: PROTOCOL_BOOT, ..Route::new(destination, dev, MAIN_TABLE) }
}

/// The pod's part of the kernel.
#[derive(Clone, Debug, Default)]
struct Model {
    cards: BTreeMap<String, (u32, Vec<IpNet>)>,
    routes: Vec<Route>,
    rules: Vec<(Rule, bool)>,
    /// Addresses that the node routes through the pod's overlay interface.
    node: BTreeSet<IpAddr>,
    /// The saved documents.
    saved: BTreeMap<String, PodDocument>,
}

impl Model {
    /// What the plugin before ours does: link, addresses, their subnets, routes. Routes that exist are appended.
    fn plug(&mut self, card: &Card) {
        let index = 10 + self.cards.len() as u32;
        self.cards.insert(card.name.clone(), (index, card.addresses.clone()));
        for net in &card.addresses {
            let family = Family::of(net.addr());
            let via = Some(gateway(*net));
            let subnet = Route { protocol: 2, ..route(net.trunc(), None, &card.name) };
            let default = Route { metric: card.metric, ..route(family.default_route(), via, &card.name) };
            let further = card.static_routes.iter().map(|n| route(destination(*n, family), via, &card.name));
            for new in [Some(subnet), (!card.bare).then_some(default)].into_iter().flatten().chain(further) {
                if !self.routes.contains(&new) {
                    self.routes.push(new);
                }
            }
        }
    }

    fn unplug(&mut self, card: &Card) {
        self.cards.remove(&card.name);
        self.routes.retain(|route| route.dev != card.name);
    }

    fn pod(&self) -> Pod {
        let link = |(name, (index, _)): (&String, &(u32, Vec<IpNet>))| Link {
            index: *index,
            name: name.clone(),
            ..Link::default()
        };
        let entry = |(rule, ours): &(Rule, bool)| RuleEntry {
            rule: rule.clone(),
            ours: *ours,
            plain: true,
            action: None,
            inverted: false,
            to: None,
        };
        let addresses = |(link, nets): &(u32, Vec<IpNet>)| {
            let entry = |net: &IpNet| AddressEntry { link: *link, net: *net, detection: Detection::Over };
            nets.iter().map(entry).collect::<Vec<_>>()
        };
        Pod {
            links: self.cards.iter().map(link).collect(),
            addresses: self.cards.values().flat_map(addresses).collect(),
            routes: self.routes.clone(),
            rules: self.rules.iter().map(entry).collect(),
            ..Pod::default()
        }
    }

    fn apply(&mut self, operation: &Operation) {
        match operation {
            Operation::Add(placed) => self.add(placed),
            Operation::Delete(placed) => self.delete(placed),
            Operation::Replace { from, to } => {
                self.delete(from);
                self.add(to);
            }
        }
    }

    fn add(&mut self, placed: &Placed) {
        match &placed.object {
            Object::Route(new) => {
                let collides = |route: &&Route| placed.object.collides(&Object::Route((*route).clone()));
                // Only what was appended may stand beside another one, and come back there.
                let there = self.routes.iter().find(collides).filter(|_| new.protocol == PROTOCOL);
                assert!(there.is_none(), "EEXIST: {new} beside {there:?}");
                assert!(new.dev == names::POD_VETH || self.cards.contains_key(&new.dev), "ENODEV: {new}");
                self.routes.push(new.clone());
            }
            Object::Rule(new) => {
                assert!(self.rules.iter().all(|(rule, _)| rule != new), "EEXIST: {new}");
                self.rules.push((new.clone(), true));
            }
            other => panic!("{other}"),
        }
    }

    fn delete(&mut self, placed: &Placed) {
        match &placed.object {
            Object::Route(old) => {
                let at = self.routes.iter().position(|route| route == old);
                self.routes.remove(at.unwrap_or_else(|| panic!("ESRCH: {old}")));
            }
            Object::Rule(old) => {
                let at = self.rules.iter().position(|(rule, ours)| rule == old && *ours);
                self.rules.remove(at.unwrap_or_else(|| panic!("ENOENT: {old}")));
            }
            other => panic!("{other}"),
        }
    }

    /// The same whatever the order.
    fn state(&self) -> (BTreeSet<String>, BTreeSet<String>) {
        let routes = self.routes.iter().map(|route| format!("{route} proto {}", route.protocol)).collect();
        (routes, self.rules.iter().map(|(rule, _)| format!("{:?} {rule}", rule.family)).collect())
    }

    fn ours(&self) -> usize {
        self.routes.iter().filter(|route| route.protocol == PROTOCOL).count()
            + self.rules.iter().filter(|(_, ours)| *ours).count()
    }

    /// The interfaces that have a default route of a family in the main table.
    fn default_nics(&self, family: Family) -> BTreeSet<&str> {
        let destination = family.default_route();
        let is_default = |route: &&Route| route.table == MAIN_TABLE && route.destination == destination;
        self.routes.iter().filter(is_default).map(|route| route.dev.as_str()).collect()
    }
}

fn has(card: &Card, family: Family) -> bool {
    card.addresses.iter().any(|net| Family::of(net.addr()) == family)
}

fn has_default(card: &Card, family: Family) -> bool {
    has(card, family) && !card.bare
}

fn found_rules(model: &Model, document: &PodDocument) -> Vec<Found> {
    let ours = model.routes.iter().filter(|route| route.protocol == PROTOCOL);
    let tables: BTreeSet<u32> = ours.map(|route| route.table).collect();
    let found = |(rule, ours): &(Rule, bool)| {
        let owned = *ours && set_rules::plan::owns(document, rule, !tables.contains(&rule.table));
        Found::new(Placed::pod(Object::Rule(rule.clone())), owned)
    };
    model.rules.iter().map(found).collect()
}

fn found_routes(model: &Model, owned: impl Fn(&Route) -> bool) -> Vec<Found> {
    let found = |route: &Route| Found::new(Placed::pod(Object::Route(route.clone())), owned(route));
    model.routes.iter().map(found).collect()
}

fn in_the_pod(wanted: Vec<Placed>) -> Vec<Placed> {
    let known = |placed: &Placed| placed.netns == Netns::Pod && !matches!(placed.object, Object::Marks(_));
    wanted.into_iter().filter(known).collect()
}

fn settings(card: &Card) -> Settings {
    let policy = |net: &IpNet| {
        let (family, gw) = (Family::of(net.addr()), gateway(*net));
        card.policy_routes.iter().map(move |n| PolicyRoute { dst: destination(*n, family), gw })
    };
    let mut policy_routes: Vec<_> = card.addresses.iter().flat_map(policy).collect();
    policy_routes.dedup();
    Settings {
        pod_default_route_nic: card.owner.clone(),
        tune_pod_routes: card.tune,
        policy_routes,
        ..Settings::default()
    }
}

/// The document as detect-mode, sync-cidrs and mk-veth leave it. `decided` is what ADD decided, where this is a later look.
fn document(model: &Model, scenario: &Scenario, card: &Card, command: Command, decided: &Routing) -> PodDocument {
    let (container_id, ifname) = ("a".to_owned(), card.name.clone());
    let ip = |net: &IpNet| json!({ "address": net, "gateway": gateway(*net) });
    let ips: Vec<_> = card.addresses.iter().filter(|_| card.bare).map(ip).collect();
    let config = json!({ "prevResult": { "ips": ips } });
    let request = Request { command, container_id, netns: None, ifname, args: None, config };
    let first = &scenario.cards[0];
    let own: Vec<IpAddr> = first.addresses.iter().map(IpNet::addr).collect();
    let next_hops: Vec<IpAddr> = first.addresses.iter().map(|net| gateway(*net)).collect();
    let node_addresses: Vec<IpAddr> = ["10.99.0.1", "fd00:99::1"].map(|text| text.parse().unwrap()).to_vec();
    let uplink = Uplink {
        dev: if scenario.overlay { first.name.clone() } else { names::POD_VETH.to_owned() },
        sources: Family::first_of_each(own.iter().copied()),
        gateways: if scenario.overlay {
            Family::first_of_each(next_hops.iter().copied())
        } else {
            node_addresses.clone()
        },
    };
    let nic = Nic { name: card.name.clone(), mtu: 1500, addresses: card.addresses.clone(), ..Nic::default() };
    let default = |net: &IpNet| route(Family::of(net.addr()).default_route(), Some(gateway(*net)), &card.name);
    let promised: Vec<Route> = card.addresses.iter().filter(|_| !card.bare).map(default).collect();
    let gateways: Vec<IpAddr> = card.addresses.iter().filter(|_| card.bare).map(|net| gateway(*net)).collect();
    let mut document = PodDocument::new(request, settings(card));
    // DEL has lost its document.
    document.numbers = document.numbers().as_in(&model.pod().rules);
    let others = model.saved.values().filter(|saved| saved.request.ifname != card.name);
    document.others = others.filter_map(Share::of).collect();
    if command == Command::Add {
        document.numbers = Some(detect_mode::plan::numbers(&document.settings, &model.pod(), 500));
        let uplink_table = document.numbers().pod_table;
        let (pod, overlay) = (model.pod(), scenario.overlay);
        let (settings, others, nic) = (&document.settings, &document.others[..], &nic);
        let (promised, gateways) = (&promised[..], &gateways[..]);
        let ways: Vec<Route> =
            Family::ALL.into_iter().filter_map(|family| pod.default_route(&first.name, family).cloned()).collect();
        let (ways, pod) = (&ways[..], &pod);
        let view = View { settings, others, nic, uplink_table, overlay, ways, pod, promised, gateways, decided };
        let alone = card.name == first.name && card.owner.is_none() && others.is_empty();
        document.routing = if alone { Routing::default() } else { routing(view) };
    }
    let kind = if scenario.overlay { ModeKind::Overlay } else { ModeKind::Underlay };
    document.mode = Some(Mode { kind, first: card.name == first.name, nic, node_addresses, uplink, host_side: vec![] });
    document.cidrs = Some(Cidrs {
        service: vec!["10.233.64.0/18".parse().unwrap(), "fd00:233:64::/108".parse().unwrap()],
        pod: vec!["10.233.0.0/18".parse().unwrap()],
        hijack: card.hijack.iter().map(|n| hijacked(*n)).collect(),
    });
    let (host_mac, pod_mac) = names::veth_macs("a");
    let pair = VethPair { host: names::host_veth("a"), host_mac, pod: names::POD_VETH.to_owned(), pod_mac, mtu: 1500 };
    document.veth = (!scenario.overlay).then_some(pair);
    document
}

/// What set-routes and then set-rules do in ADD.
fn add(model: &mut Model, scenario: &Scenario, card: &Card) -> Vec<Operation> {
    carry_out(model, scenario, document(model, scenario, card, Command::Add, &Routing::default()))
}

/// What they do when the node agent looks at the pod.
fn look(model: &mut Model, scenario: &Scenario, card: &Card) -> Vec<Operation> {
    let decided = model.saved[&card.name].routing.clone();
    carry_out(model, scenario, document(model, scenario, card, Command::Add, &decided))
}

/// Nothing is ever in the way.
fn planned(wanted: &[Placed], found: &[Found]) -> Vec<Operation> {
    let (operations, conflicts) = plan(wanted, found);
    assert_eq!(conflicts, []);
    operations
}

fn carry_out(model: &mut Model, scenario: &Scenario, mut document: PodDocument) -> Vec<Operation> {
    let found = found_routes(model, |route| set_routes::plan::is_replaced(&document, route));
    let routes = planned(&in_the_pod(set_routes::plan::wanted(&document).unwrap()), &found);
    routes.iter().for_each(|operation| model.apply(operation));
    document.places = set_rules::plan::places(&document, Netns::Pod, &model.pod().rules);
    let wanted = in_the_pod(set_rules::plan::wanted(&document).unwrap());
    let rules = planned(&wanted, &found_rules(model, &document));
    rules.iter().for_each(|operation| model.apply(operation));
    if scenario.overlay {
        model.node.extend(document.subnets().iter().map(IpNet::addr));
    }
    model.saved.insert(document.request.ifname.clone(), document);
    [routes, rules].concat()
}

/// What they do in DEL.
fn del(model: &mut Model, scenario: &Scenario, card: &Card) {
    let mut document = document(model, scenario, card, Command::Del, &Routing::default());
    let own: BTreeSet<IpAddr> = card.addresses.iter().map(IpNet::addr).collect();
    let uplink_needed = !scenario.overlay || model.node.iter().any(|address| !own.contains(address));
    let teardown = Teardown::new(&document, &model.routes, uplink_needed);
    let found = found_routes(model, |route| teardown.removes(route));
    let stays = teardown.returning;
    let back: Vec<_> = stays.iter().map(|route| Placed::pod(Object::Route(route.clone()))).collect();
    document.routing = Routing { stays, ..Routing::default() };
    planned(&back, &found).iter().for_each(|operation| model.apply(operation));
    planned(&[], &found_rules(model, &document)).iter().for_each(|operation| model.apply(operation));
    model.node.retain(|address| !own.contains(address));
    model.saved.remove(&card.name);
}

/// Which networks' hijackCIDRs and policyRoutes a table has.
fn asked_for(model: &Model, table: u32) -> (BTreeSet<u8>, BTreeSet<u8>) {
    let routes = || model.routes.iter().filter(move |route| route.table == table && route.protocol == PROTOCOL);
    let has = |net: IpNet| routes().any(|route| route.destination == net);
    let policy = |n: &u8| Family::ALL.into_iter().any(|family| has(destination(*n, family)));
    ((0..3).filter(|n| has(hijacked(*n))).collect(), (4..8).filter(policy).collect())
}

/// The interfaces that our plugin is called for, in the order of the calls.
fn called(scenario: &Scenario) -> impl Iterator<Item = &Card> {
    scenario.cards.iter().skip(usize::from(scenario.overlay))
}

fn start(scenario: &Scenario) -> Model {
    let mut model = Model::default();
    let (priority, family, fwmark) = (2000, Family::Ipv4, Some(7));
    let foreign = |table: &u32| Rule { priority, family, from: None, fwmark, fwmask: None, table: *table };
    model.rules.extend(scenario.taken.iter().map(|table| (foreign(table), false)));
    if scenario.overlay {
        model.plug(&scenario.cards[0]);
    }
    model
}

/// A pod in which all interfaces have been added.
fn pod(scenario: &Scenario) -> Model {
    let mut model = start(scenario);
    for card in called(scenario) {
        model.plug(card);
        add(&mut model, scenario, card);
    }
    model
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_plan_applied_and_computed_again_is_empty(scenario in scenario()) {
        let mut model = start(&scenario);
        for card in called(&scenario) {
            model.plug(card);
            add(&mut model, &scenario, card);
            prop_assert_eq!(add(&mut model, &scenario, card), vec![]);
        }
    }

    #[test]
    fn the_inverse_of_a_plan_restores_the_model(scenario in scenario()) {
        let mut model = start(&scenario);
        for card in called(&scenario) {
            model.plug(card);
            let mut copy = model.clone();
            for operation in add(&mut copy, &scenario, card).iter().rev() {
                copy.apply(&operation.inverse());
            }
            prop_assert_eq!(copy.state(), model.state());
            add(&mut model, &scenario, card);
        }
    }

    #[test]
    fn every_source_address_has_exactly_one_rule(scenario in scenario()) {
        let model = pod(&scenario);
        let further: Vec<_> = called(&scenario).filter(|card| card.tune && card.name != "eth0").collect();
        let first = scenario.cards.first().filter(|_| !further.is_empty());
        for net in further.into_iter().chain(first).flat_map(|card| &card.addresses) {
            let from = Some(IpNet::from(net.addr()));
            let rules: Vec<_> = model.rules.iter().filter(|(rule, _)| rule.from == from).collect();
            prop_assert_eq!(rules.len(), 1, "{}: {:?}", net, rules);
        }
        let sources: Vec<_> = model.rules.iter().filter_map(|(rule, _)| rule.from).collect();
        prop_assert_eq!(sources.iter().collect::<BTreeSet<_>>().len(), sources.len());
    }

    #[test]
    fn a_further_interface_has_a_default_route_for_its_addresses_also_where_its_network_has_none(scenario in scenario()) {
        let model = pod(&scenario);
        let further = || called(&scenario).filter(|card| card.tune && card.name != "eth0");
        for (card, net) in further().flat_map(|card| card.addresses.iter().map(move |net| (card, net))) {
            let from = Some(IpNet::from(net.addr()));
            let table = model.rules.iter().find(|(rule, _)| rule.from == from).map(|(rule, _)| rule.table);
            let default = Family::of(net.addr()).default_route();
            let leads = |route: &Route| Some(route.table) == table && route.destination == default && route.dev == card.name;
            prop_assert!(model.routes.iter().any(leads), "{}: {:?}", net, model.state());
        }
        // In the main one only if it is named.
        let is_named = |card: &&Card| called(&scenario).any(|other| other.owner.as_ref() == Some(&card.name));
        for card in further().filter(|card| card.bare && !is_named(card)) {
            let is_main = |route: &Route| route.table == MAIN_TABLE && route.destination.prefix_len() == 0;
            prop_assert!(!model.routes.iter().any(|route| is_main(route) && route.dev == card.name), "{:?}", model.state());
        }
    }

    #[test]
    fn no_two_interfaces_share_a_table_and_nobody_elses_is_taken(scenario in scenario()) {
        let model = pod(&scenario);
        let uplink = if scenario.overlay { "eth0" } else { names::POD_VETH };
        let mut users: BTreeMap<u32, BTreeSet<&str>> = BTreeMap::new();
        for route in model.routes.iter().filter(|route| route.table != MAIN_TABLE && route.dev != uplink) {
            users.entry(route.table).or_default().insert(&route.dev);
        }
        for (rule, _) in &model.rules {
            let has = |card: &&Card| card.addresses.iter().any(|net| rule.from == Some(IpNet::from(net.addr())));
            users.entry(rule.table).or_default().extend(scenario.cards.iter().find(has).map(|card| card.name.as_str()));
        }
        for (table, nics) in users {
            prop_assert!(nics.len() <= 1, "table {}: {:?}", table, nics);
            prop_assert!(nics.is_empty() || !scenario.taken.contains(&table), "table {}: {:?}", table, nics);
        }
        let replies = model.rules.iter().filter(|(rule, ours)| *ours && rule.fwmark.is_some());
        let tables: BTreeSet<u32> = replies.map(|(rule, _)| rule.table).collect();
        prop_assert!(tables.len() <= 1 && tables.is_disjoint(&scenario.taken), "{:?}", tables);
    }

    #[test]
    fn the_families_never_mix(scenario in scenario()) {
        let model = pod(&scenario);
        for route in &model.routes {
            let addresses = [Some(route.destination.addr()), route.gateway, route.source];
            let families: BTreeSet<_> = addresses.into_iter().flatten().map(Family::of).collect();
            prop_assert_eq!(families.len(), 1, "{}", route);
        }
        for (rule, _) in &model.rules {
            prop_assert!(rule.from.is_none_or(|from| Family::of(from.addr()) == rule.family), "{}", rule);
        }
    }

    #[test]
    fn the_main_table_has_the_default_route_of_one_interface_and_it_is_the_one_that_is_named(scenario in scenario()) {
        let mut model = start(&scenario);
        for card in called(&scenario).map(|card| Card { tune: true, ..card.clone() }) {
            model.plug(&card);
            add(&mut model, &scenario, &card);
            for family in Family::ALL {
                let present: Vec<_> = scenario.cards.iter().filter(|card| model.cards.contains_key(&card.name)).collect();
                let nics = model.default_nics(family);
                let is_there = present.iter().any(|card| has_default(card, family));
                prop_assert!(nics.len() == 1 || nics.is_empty() && !is_there, "{:?}", nics);
                let named = present.iter().find(|other| Some(&other.name) == card.owner.as_ref());
                if let Some(named) = named.filter(|named| has(named, family)) {
                    prop_assert!(nics.contains(named.name.as_str()), "{:?} instead of {}", nics, named.name);
                }
            }
        }
    }

    #[test]
    fn del_in_any_order_leaves_nothing_of_ours_and_the_first_interface_its_default_routes(scenario in scenario()) {
        let mut model = pod(&scenario);
        let mut cards: Vec<_> = called(&scenario).zip(&scenario.order).collect();
        cards.sort_by_key(|(_, key)| **key);
        for (card, _) in cards {
            del(&mut model, &scenario, card);
            del(&mut model, &scenario, card);
            model.unplug(card);
            if model.cards.contains_key("eth0") {
                for net in &scenario.cards[0].addresses {
                    prop_assert!(!model.default_nics(Family::of(net.addr())).is_empty(), "{:?}", model.state());
                }
            }
        }
        prop_assert_eq!(model.ours(), 0, "{:?}", model.state());
    }

    #[test]
    fn whichever_interface_is_looked_at_there_is_nothing_to_do(mut scenario in scenario()) {
        // Where one network wants tables and another one none, only each ADD decides.
        scenario.cards.iter_mut().for_each(|card| card.tune = true);
        let mut model = pod(&scenario);
        for card in called(&scenario) {
            prop_assert_eq!(look(&mut model, &scenario, card), vec![], "{}", card.name);
        }
    }

    #[test]
    fn each_table_has_what_its_own_interfaces_network_asks_for_and_the_main_table_what_those_do_that_open_the_way(
        scenario in scenario(),
    ) {
        let v4 = |card: &&Card| has(&scenario.cards[0], Family::Ipv4) && has(card, Family::Ipv4);
        let mut model = pod(&scenario);
        for card in called(&scenario).filter(v4) {
            let from = Some(IpNet::from(card.addresses[0].addr()));
            let Some((rule, _)) = model.rules.iter().find(|(rule, _)| rule.from == from) else { continue };
            let expected = (card.hijack.iter().copied().collect(), card.policy_routes.iter().copied().collect());
            prop_assert_eq!(asked_for(&model, rule.table), expected, "{}: {:?}", card.name, model.state());
        }
        let mut cards: Vec<_> = called(&scenario).zip(&scenario.order).collect();
        cards.sort_by_key(|(_, key)| **key);
        for at in 0..cards.len() {
            let opens = |card: &&Card| scenario.overlay || card.name == "eth0";
            let rest = cards[at..].iter().map(|(card, _)| *card).filter(opens);
            let expected: BTreeSet<u8> = rest.flat_map(|card| card.hijack.iter().copied()).collect();
            if has(&scenario.cards[0], Family::Ipv4) {
                prop_assert_eq!(asked_for(&model, MAIN_TABLE).0, expected, "{:?}", model.state());
            }
            del(&mut model, &scenario, cards[at].0);
            model.unplug(cards[at].0);
        }
    }
}
