//! The policy rules and the marks. Pure.

use common::{
    document::{Command, Mode, ModeKind, NicTable, PodDocument},
    failure::Failure,
    marks::{MARK, Marks},
    object::{Family, Netns, Object, Placed, Rule, UPLINK_TABLE},
    plan::Found,
    transit::Transit,
};
use ipnet::IpNet;

/// Priority of the rules that send a packet back the way its connection came: the node's, and the pod's by mark.
const PRIORITY: u32 = 1000;
/// Priority of the rules by source address. They come after the mark: a connection that came in through the node is
/// answered through the node, whichever of the pod's addresses it was for.
const SOURCE_PRIORITY: u32 = 1001;

/// The rules and the marks that this interface needs.
pub fn wanted(document: &PodDocument) -> Result<Vec<Placed>, Failure> {
    let mode = document.mode()?;
    if mode.mode == ModeKind::Disable {
        return Ok(vec![]);
    }
    let mut pod = vec![];
    if mode.opens_uplink() {
        let families = Family::ALL.into_iter().filter(|family| has_uplink(mode, *family));
        pod.extend(
            families.map(|family| rule(PRIORITY, family, UPLINK_TABLE)).map(|rule| Rule { fwmark: Some(MARK), ..rule }),
        );
    }
    pod.extend(document.routing.tables.iter().flat_map(by_source));
    let node = Family::ALL
        .into_iter()
        .filter(|family| mode.nic.addresses.iter().any(|net| Family::of(net.addr()) == *family))
        .map(|family| rule(PRIORITY, family, document.settings.host_rule_table));
    let mut wanted: Vec<_> = pod.into_iter().map(|rule| Placed::pod(Object::Rule(rule))).collect();
    if mode.opens_uplink() {
        wanted.push(Placed::pod(Object::Marks(Marks { dev: mode.uplink.dev.clone(), altered: vec![] })));
    }
    wanted.extend(node.map(|rule| Placed::node(Object::Rule(rule))));
    if mode.mode == ModeKind::Underlay && mode.opens_uplink() {
        wanted.extend(transits(document, mode)?);
    }
    Ok(wanted)
}

/// For each CIDR behind the node but the Services', how packets from the pod pass to it. (What goes to a Service is
/// translated, and comes back through the node.)
fn transits(document: &PodDocument, mode: &Mode) -> Result<Vec<Placed>, Failure> {
    let cidrs = document.cidrs()?;
    let (group, masquerade) = (document.settings.veth_group(), document.settings.overlay_masquerade);
    let transit = |destination: &IpNet| Transit { group, destination: *destination, masquerade };
    let behind = cidrs.pod.iter().chain(&cidrs.hijack);
    let reached = behind.filter(|cidr| has_uplink(mode, Family::of(cidr.addr())));
    Ok(reached.map(|cidr| Placed::node(Object::Transit(transit(cidr)))).collect())
}

fn has_uplink(mode: &Mode, family: Family) -> bool {
    let source = mode.uplink.source(family).is_some();
    source && (mode.mode == ModeKind::Overlay || mode.uplink.gateway(family).is_some())
}

fn rule(priority: u32, family: Family, table: u32) -> Rule {
    Rule { priority, family, from: None, fwmark: None, table }
}

/// The rules for an interface's addresses, of those families that its table has routes of.
fn by_source(table: &NicTable) -> impl Iterator<Item = Rule> + '_ {
    let has_routes = |family: Family| table.routes.iter().any(|route| Family::of(route.destination.addr()) == family);
    let addresses = table.addresses.iter().filter(move |address| has_routes(Family::of(**address)));
    addresses.map(|address| Rule {
        from: Some(IpNet::from(*address)),
        ..rule(SOURCE_PRIORITY, Family::of(*address), table.table)
    })
}

/// Whether a rule of ours in the pod is this attachment's to remove if it is not wanted. `idle` says that its table has
/// no route of ours: in DEL, after the routes have gone, that makes it nobody's.
pub fn owns(document: &PodDocument, rule: &Rule, idle: bool) -> bool {
    let from_nic = || document.nic_addresses().iter().any(|net| rule.from == Some(IpNet::from(net.addr())));
    if document.request.command == Command::Del {
        return idle || from_nic() || (document.is_first() && rule.table == UPLINK_TABLE);
    }
    let Some(mode) = &document.mode else { return false };
    let in_table = document.routing.tables.iter().any(|table| {
        table.table == rule.table || table.addresses.iter().any(|address| rule.from == Some(IpNet::from(*address)))
    });
    in_table || (mode.opens_uplink() && rule.table == UPLINK_TABLE)
}

/// Whether the marks are this attachment's to replace, or in DEL to remove: the way into the node goes with the first
/// interface, or in overlay mode with the last of the others.
pub fn owns_uplink(document: &PodDocument, found: &[Found]) -> bool {
    if document.request.command != Command::Del {
        return document.mode.as_ref().is_some_and(Mode::opens_uplink);
    }
    let needed = |found: &Found| match &found.placed.object {
        Object::Rule(rule) => found.placed.netns == Netns::Pod && !found.owned && rule.table == UPLINK_TABLE,
        _ => false,
    };
    document.is_first() || !found.iter().any(needed)
}
