//! Makes the policy rules, and the mark that sends replies back the way they came.

pub mod plan;

use std::{
    collections::{HashMap, HashSet, hash_map::Entry},
    io,
};

use common::{
    document::{Command, PodDocument},
    failure::{Code, Context, Failure},
    harness::{About, Tool},
    kernel::{Kernel, Pod},
    marks,
    names::host_veth,
    netlink::{Netlink, RouteFilter, RuleEntry},
    object::{Netns, Object, Placed},
    plan::Found,
    transit,
};

/// The tool.
#[derive(Debug)]
pub struct SetRules;

impl Tool for SetRules {
    const ABOUT: About = About {
        name: "set-rules",
        does: "Makes the policy rules on the node and in the pod, and the nftables table by which replies leave by the \
               way on which the question came; in DEL removes them, and with the node's last pod the node's rule.",
        example: "  cni-request < conf.json | detect-mode | sync-cidrs | mk-veth | set-routes | set-rules --explain",
    };
    /// The node's rule is for all pods: between looking whether one still needs it and removing it, none may come.
    const SHARED: bool = true;

    async fn observe(document: &mut PodDocument, kernel: &Kernel) -> Result<Vec<Found>, Failure> {
        document.places.clear();
        let mut found = on_the_node(document, &kernel.node).await.context(Code::Io, "cannot read the node's rules")?;
        if let Some(pod) = kernel.pod.as_ref().filter(|_| document.request.command != Command::Gc) {
            found.extend(in_the_pod(document, pod).await.context(Code::Io, "cannot read the pod's rules")?);
            let table = kernel.within(Netns::Pod, marks::find).context(Code::Io, "cannot read the pod's nftables")?;
            let owned = plan::owns_uplink(document, &found);
            found.extend(table.map(|table| Found::new(Placed::pod(Object::Marks(table)), owned)));
        }
        found.extend(transits(document, kernel, &found).await.context(Code::Io, "cannot read the node's nftables")?);
        Ok(found)
    }

    fn wanted(document: &PodDocument) -> Result<Vec<Placed>, Failure> {
        if document.request.command.tears_down() { Ok(vec![]) } else { plan::wanted(document) }
    }
}

/// The index of the pod's link, if it goes with this attachment and has not gone yet.
async fn goes(document: &PodDocument, node: &Netlink) -> io::Result<Option<u32>> {
    if document.request.command != Command::Del || !document.is_first() {
        return Ok(None);
    }
    Ok(node.link(&host_veth(&document.request.container_id)).await?.map(|link| link.index))
}

/// The node's rules. One of ours whose table has no route to another pod is nobody's any more.
async fn on_the_node(document: &mut PodDocument, node: &Netlink) -> io::Result<Vec<Found>> {
    let goes = goes(document, node).await?;
    let mut found = vec![];
    let mut needed = HashMap::new();
    let rules = node.rules().await?;
    document.places.extend(plan::places(document, Netns::Node, &rules));
    for RuleEntry { rule, ours, .. } in rules.into_iter().filter(|entry| entry.plain) {
        // What ADD makes in its own table needs it, and what is left of another goes with the next DEL: no need to look.
        let in_use = !document.request.command.tears_down() && rule.table == document.numbers().node_table;
        if ours && let Entry::Vacant(entry) = needed.entry(rule.table) {
            let filter = RouteFilter { table: Some(rule.table), ours: true, ..Default::default() };
            entry.insert(in_use || node.links_of_routes(filter).await?.iter().any(|link| Some(*link) != goes));
        }
        let owned = ours && (!needed[&rule.table] || plan::has_moved(document, &rule));
        found.push(Found::new(Placed::node(Object::Rule(rule)), owned));
    }
    Ok(found)
}

/// The rules of the node's nftables table. Like the node's rule for packets to pods they go with its last pod.
async fn transits(document: &PodDocument, kernel: &Kernel, found: &[Found]) -> io::Result<Vec<Found>> {
    let tears_down = document.request.command.tears_down();
    if tears_down && serves_others(document, &kernel.node, found).await? {
        return Ok(vec![]);
    }
    let (rules, altered) = kernel.within(Netns::Node, transit::find)?;
    // The table is ours: where it holds more than our rules, these are written anew.
    if altered && !tears_down {
        return Ok(vec![]);
    }
    let found = |rule| Found::new(Placed::node(Object::Transit(rule)), tears_down);
    Ok(rules.into_iter().map(found).collect())
}

/// Whether the node has a route to another pod than the one that goes. Somebody may have taken its rule away.
async fn serves_others(document: &PodDocument, node: &Netlink, found: &[Found]) -> io::Result<bool> {
    if plan::keeps_rule(found, Netns::Node, document.numbers().node_table) {
        return Ok(true);
    }
    let goes = goes(document, node).await?;
    let routes = RouteFilter { ours: true, ..Default::default() };
    Ok(node.links_of_routes(routes).await?.into_iter().any(|link| Some(link) != goes))
}

async fn in_the_pod(document: &mut PodDocument, pod: &Pod) -> io::Result<Vec<Found>> {
    let routes = pod.netlink.routes(RouteFilter { ours: true, ..Default::default() }).await?;
    let tables: HashSet<u32> = routes.iter().map(|route| route.table).collect();
    let rules = pod.netlink.rules().await?;
    document.places.extend(plan::places(document, Netns::Pod, &rules));
    let found = rules.into_iter().filter(|entry| entry.plain).map(|RuleEntry { rule, ours, .. }| {
        let owned = ours && plan::owns(document, &rule, !tables.contains(&rule.table));
        Found::new(Placed::pod(Object::Rule(rule)), owned)
    });
    Ok(found.collect())
}
