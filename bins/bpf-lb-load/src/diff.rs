//! What applying a table would change. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    net::SocketAddr,
};

use ipnet::IpNet;
use schemars::JsonSchema;
use serde::Serialize;
use service_table::{Nodes, ServiceName};

use crate::{kernel::Key, spec::Spec};

/// What would happen to a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Verb {
    /// It is new.
    Add,
    /// It is there, and different.
    Change,
    /// It is to be gone.
    Remove,
}

/// A service that would not be as before. Lists say what is added and removed; with both empty, something else about it changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Difference {
    /// `namespace/name:port name`, or `nodes` for the addresses on which node ports answer, or `refuse` for the CIDRs of that name.
    pub service: String,
    /// In what way.
    pub change: Verb,
    /// Addresses on which it would answer.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub added_addresses: Vec<String>,
    /// Addresses on which it would not answer any more.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub removed_addresses: Vec<String>,
    /// Endpoints that it would have.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub added_backends: Vec<SocketAddr>,
    /// Endpoints that it would not have any more.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub removed_backends: Vec<SocketAddr>,
}

/// What is different between the services that are there and those that are wanted.
pub fn differences(before: &BTreeMap<Key, &Spec>, after: &BTreeMap<Key, Spec>) -> Vec<Difference> {
    let keys: BTreeSet<_> = before.keys().chain(after.keys()).collect();
    keys.into_iter().filter_map(|key| difference(key, before.get(key).copied(), after.get(key))).collect()
}

fn difference(key: &ServiceName, before: Option<&Spec>, after: Option<&Spec>) -> Option<Difference> {
    let change = match (before, after) {
        (None, _) => Verb::Add,
        (_, None) => Verb::Remove,
        (Some(before), Some(after)) if before == after => return None,
        _ => Verb::Change,
    };
    let addresses = |spec: Option<&Spec>| -> BTreeSet<String> {
        // Where other nodes have frontends of their own follows from the backends.
        let frontends = spec.into_iter().flat_map(|spec| spec.frontends.keys());
        frontends.filter(|frontend| frontend.node.unwrap_or_default() == 0).map(ToString::to_string).collect()
    };
    let backends = |spec: Option<&Spec>| -> BTreeSet<SocketAddr> {
        spec.into_iter().flat_map(|spec| spec.sets.values().flat_map(BTreeMap::keys).copied()).collect()
    };
    let (old, new) = (addresses(before), addresses(after));
    let (had, has) = (backends(before), backends(after));
    Some(Difference {
        service: key.to_string(),
        change,
        added_addresses: new.difference(&old).cloned().collect(),
        removed_addresses: old.difference(&new).cloned().collect(),
        added_backends: has.difference(&had).copied().collect(),
        removed_backends: had.difference(&has).copied().collect(),
    })
}

/// What is different about the nodes: a line as of a service, with the addresses on which node ports answer.
pub fn nodes(before: &Nodes, after: &Nodes) -> Option<Difference> {
    let addresses = |nodes: &Nodes| -> BTreeSet<String> {
        let others =
            nodes.nodes.iter().flat_map(|node| node.addresses.iter().map(move |address| (address, &node.name)));
        let others = others.map(|(address, name)| format!("{} of {name}", address.to_canonical()));
        nodes.node_addresses.iter().map(|address| address.to_canonical().to_string()).chain(others).collect()
    };
    lists("nodes", &addresses(before), &addresses(after))
}

/// What is different about the CIDRs in which ports that no service has are refused: a line as of a service.
pub fn refuse(before: &[IpNet], after: &[IpNet]) -> Option<Difference> {
    let texts = |cidrs: &[IpNet]| cidrs.iter().map(ToString::to_string).collect();
    lists("refuse", &texts(before), &texts(after))
}

fn lists(of: &str, before: &BTreeSet<String>, after: &BTreeSet<String>) -> Option<Difference> {
    (before != after).then(|| Difference {
        service: of.into(),
        change: Verb::Change,
        added_addresses: after.difference(before).cloned().collect(),
        removed_addresses: before.difference(after).cloned().collect(),
        added_backends: vec![],
        removed_backends: vec![],
    })
}

/// The same for people.
pub fn text(differences: &[Difference]) -> String {
    let mut text = String::new();
    for Difference { service, change, added_addresses, removed_addresses, added_backends, removed_backends } in
        differences
    {
        let mark = match change {
            Verb::Add => '+',
            Verb::Change => '~',
            Verb::Remove => '-',
        };
        let _infallible = writeln!(text, "{mark} {service}");
        for (mark, addresses) in [('+', added_addresses), ('-', removed_addresses)] {
            for address in addresses {
                let _infallible = writeln!(text, "  {mark} {address}");
            }
        }
        for (mark, backends) in [('+', added_backends), ('-', removed_backends)] {
            for backend in backends {
                let _infallible = writeln!(text, "    {mark} -> {backend}");
            }
        }
    }
    text
}
