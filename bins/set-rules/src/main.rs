//! Makes the policy rules, and the mark that sends replies back the way they came.

use std::{
    collections::{HashMap, HashSet, hash_map::Entry},
    io,
    process::ExitCode,
};

use common::{
    document::{Command, PodDocument},
    failure::{Code, Context, Failure},
    harness::{self, About, Tool},
    kernel::{Kernel, Pod},
    marks,
    names::host_veth,
    netlink::{Netlink, RouteFilter, RuleEntry},
    object::{Netns, Object, Placed},
    plan::Found,
};
use set_rules::plan;

struct SetRules;

fn main() -> ExitCode {
    harness::run::<SetRules>()
}

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
        let mut found = on_the_node(document, &kernel.node).await.context(Code::Io, "cannot read the node's rules")?;
        if let Some(pod) = kernel.pod.as_ref().filter(|_| document.request.command != Command::Gc) {
            found.extend(in_the_pod(document, pod).await.context(Code::Io, "cannot read the pod's rules")?);
            let table = kernel.within(Netns::Pod, marks::find).context(Code::Io, "cannot read the pod's nftables")?;
            let owned = plan::owns_uplink(document, &found);
            found.extend(table.map(|table| Found { placed: Placed::pod(Object::Marks(table)), owned }));
        }
        Ok(found)
    }

    fn wanted(document: &PodDocument) -> Result<Vec<Placed>, Failure> {
        if document.request.command.tears_down() { Ok(vec![]) } else { plan::wanted(document) }
    }
}

/// The node's rules. One of ours whose table has no route to another pod is nobody's any more.
async fn on_the_node(document: &PodDocument, node: &Netlink) -> io::Result<Vec<Found>> {
    let mut goes = None;
    if document.request.command == Command::Del && document.is_first() {
        goes = node.link(&host_veth(&document.request.container_id)).await?.map(|link| link.index);
    }
    let mut found = vec![];
    let mut needed = HashMap::new();
    for RuleEntry { rule, ours, .. } in node.rules().await?.into_iter().filter(|entry| entry.plain) {
        // ADD has just made a route in its own table: no need to look.
        let in_use = !document.request.command.tears_down() && rule.table == document.settings.host_rule_table;
        if ours && let Entry::Vacant(entry) = needed.entry(rule.table) {
            let filter = RouteFilter { table: Some(rule.table), ours: true, ..Default::default() };
            entry.insert(in_use || node.links_of_routes(filter).await?.iter().any(|link| Some(*link) != goes));
        }
        let owned = ours && !needed[&rule.table];
        found.push(Found { placed: Placed::node(Object::Rule(rule)), owned });
    }
    Ok(found)
}

async fn in_the_pod(document: &PodDocument, pod: &Pod) -> io::Result<Vec<Found>> {
    let routes = pod.netlink.routes(RouteFilter { ours: true, ..Default::default() }).await?;
    let tables: HashSet<u32> = routes.iter().map(|route| route.table).collect();
    let rules = pod.netlink.rules().await?;
    let found = rules.into_iter().filter(|entry| entry.plain).map(|RuleEntry { rule, ours, .. }| Found {
        owned: ours && plan::owns(document, &rule, !tables.contains(&rule.table)),
        placed: Placed::pod(Object::Rule(rule)),
    });
    Ok(found.collect())
}
