//! The policy rules and the marks. Pure.

use common::{
    document::{Command, Mode, ModeKind, NicTable, PodDocument, RulePlace},
    failure::Failure,
    netlink::RuleEntry,
    numbers,
    object::{Family, Marks, Netns, Object, Placed, Rule, Transit},
    plan::Found,
};
use ipnet::IpNet;

/// The rules and the marks that this interface needs.
pub fn wanted(document: &PodDocument) -> Result<Vec<Placed>, Failure> {
    let mode = document.mode()?;
    let families = Family::ALL.into_iter().filter(|family| has_uplink(mode, *family));
    let mut pod: Vec<_> = families.map(|family| by_mark(document, family)).collect();
    pod.extend(document.routing.tables.iter().flat_map(|table| by_source(document, table)));
    let node = Family::ALL
        .into_iter()
        .filter(|family| mode.led_addresses().any(|address| Family::of(address) == *family))
        .map(|family| rule(document.priority(Netns::Node, family), family, document.numbers().node_table));
    let mut wanted: Vec<_> = pod.into_iter().map(|rule| Placed::pod(Object::Rule(rule))).collect();
    if mode.opens_uplink() {
        wanted.push(Placed::pod(Object::Marks(Marks {
            dev: mode.uplink.dev.clone(),
            mark: document.numbers().mark,
            altered: vec![],
        })));
    }
    wanted.extend(node.map(|rule| Placed::node(Object::Rule(rule))));
    if mode.kind == ModeKind::Underlay && mode.opens_uplink() {
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
    source && (mode.kind == ModeKind::Overlay || mode.uplink.gateway(family).is_some())
}

fn rule(priority: u32, family: Family, table: u32) -> Rule {
    Rule { priority, family, from: None, fwmark: None, fwmask: None, table }
}

/// The rule that sends a reply back into the node.
fn by_mark(document: &PodDocument, family: Family) -> Rule {
    let numbers = document.numbers();
    let fwmask = Some(numbers.mark.mask).filter(|mask| *mask != u32::MAX);
    let rule = rule(document.priority(Netns::Pod, family), family, numbers.pod_table);
    Rule { fwmark: Some(numbers.mark.value), fwmask, ..rule }
}

/// The rules for an interface's addresses, of those families that its table has routes of. They come after the mark: a
/// connection that came in through the node is answered through the node, whichever of the pod's addresses it was for.
fn by_source<'a>(document: &'a PodDocument, table: &'a NicTable) -> impl Iterator<Item = Rule> + 'a {
    let has_routes = |family: Family| table.routes.iter().any(|route| Family::of(route.destination.addr()) == family);
    let addresses = table.addresses.iter().filter(move |address| has_routes(Family::of(**address)));
    addresses.map(|address| Rule {
        from: Some(IpNet::from(*address)),
        ..rule(document.priority(Netns::Pod, Family::of(*address)) + 1, Family::of(*address), table.table)
    })
}

/// Where our rules are to stand in a namespace that has `rules`, in each family: before whatever else could take their
/// packets; in CHECK, where they are. Whoever comes next moves them, for a rule that somebody adds without a priority
/// gets the place before all others (`fib_default_rule_pref`).
pub fn places(document: &PodDocument, netns: Netns, rules: &[RuleEntry]) -> Vec<RulePlace> {
    let numbers = document.numbers();
    let (towards, count): (Vec<_>, _) = match netns {
        Netns::Node => (document.nic_addresses().iter().map(IpNet::addr).collect(), 1),
        Netns::Pod => (vec![], 2),
    };
    let stays = document.request.command == Command::Check;
    let is_it = |rule: &Rule| match netns {
        Netns::Node => rule.from.is_none() && rule.table == numbers.node_table,
        Netns::Pod => rule.fwmark.is_some(),
    };
    let place = |family| {
        let rules: Vec<_> = rules.iter().filter(|entry| entry.rule.family == family).cloned().collect();
        let current = rules.iter().find(|entry| entry.ours && is_it(&entry.rule)).map(|entry| entry.rule.priority);
        let placed = || numbers::place(&rules, current, &towards, document.settings.rule_priority, count);
        RulePlace { netns, family, priority: current.filter(|_| stays).unwrap_or_else(placed) }
    };
    Family::ALL.map(place).to_vec()
}

/// Whether a rule of ours on the node is one that has had to move to another place: the one there does the same.
pub fn has_moved(document: &PodDocument, rule: &Rule) -> bool {
    let is_led = |mode: &Mode| mode.led_addresses().any(|address| Family::of(address) == rule.family);
    document.request.command == Command::Add
        && rule.table == document.numbers().node_table
        && rule.priority != document.priority(Netns::Node, rule.family)
        && document.mode.as_ref().is_some_and(is_led)
}

/// Whether a rule of ours in the pod is this attachment's to remove if it is not wanted. `idle` says that its table has
/// no route of ours: in DEL, after the routes have gone, that makes it nobody's.
pub fn owns(document: &PodDocument, rule: &Rule, idle: bool) -> bool {
    let from_nic = || document.nic_addresses().iter().any(|net| rule.from == Some(IpNet::from(net.addr())));
    if document.request.command == Command::Del {
        return idle || from_nic() || (document.is_first() && rule.table == document.numbers().pod_table);
    }
    if document.mode.is_none() {
        return false;
    }
    let in_table = document.routing.tables.iter().any(|table| {
        table.table == rule.table || table.addresses.iter().any(|address| rule.from == Some(IpNet::from(*address)))
    });
    in_table || rule.fwmark.is_some()
}

/// Whether the marks are this attachment's to replace, or in DEL to remove: the way into the node goes with the first
/// interface, or in overlay mode with the last of the others.
pub fn owns_uplink(document: &PodDocument, found: &[Found]) -> bool {
    if document.request.command != Command::Del {
        return document.mode.as_ref().is_some_and(Mode::opens_uplink);
    }
    document.is_first() || !keeps_rule(found, Netns::Pod, document.numbers().pod_table)
}

/// Whether a namespace keeps a rule that looks `table` up: one that is not this attachment's.
pub fn keeps_rule(found: &[Found], netns: Netns, table: u32) -> bool {
    let looks_up = |object: &Object| matches!(object, Object::Rule(rule) if rule.table == table);
    found.iter().any(|found| found.placed.netns == netns && !found.is_ours() && looks_up(&found.placed.object))
}
