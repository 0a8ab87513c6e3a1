//! Which endpoints a client on this node reaches, as kube-proxy has it (`CategorizeEndpoints` in its topology.go).
//!
//! Pure. All is for one port and one family, since for kube-proxy each family is a proxy of its own.

use std::collections::HashSet;

use service_table::BackendScope;

use crate::slice::Endpoint;

/// Where the clients are.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Locality {
    /// The name of their node.
    pub node: String,
    /// Its label topology.kubernetes.io/zone.
    pub zone: Option<String>,
}

impl Locality {
    /// Whether an endpoint is on the clients' own node.
    pub fn has(&self, endpoint: &Endpoint) -> bool {
        !self.node.is_empty() && endpoint.node.as_deref() == Some(&*self.node)
    }
}

/// What the Service says of who is reached.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Policy {
    /// Its ClusterIPs lead to this node's endpoints only.
    pub internal_local: bool,
    /// There are other ways to it than its ClusterIPs.
    pub accessible: bool,
    /// Its node port on another node's address is served, and leads to that node's endpoints only.
    pub by_node: bool,
}

/// What becomes of an endpoint.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Verdict {
    /// It is a backend.
    Chosen(Option<BackendScope>),
    /// It is not ready.
    NotReady,
    /// It terminates, and does not answer any more.
    NotServing,
    /// It terminates, and others are ready.
    Terminating,
    /// Its hints are for other zones.
    OtherZone,
    /// Its hints are for other nodes.
    OtherNode,
    /// It is on another node, and the Service is for local clients.
    Remote,
}

/// By which hints endpoints are chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Topology {
    None,
    Zone,
    Node,
}

/// What becomes of each endpoint.
pub fn choose(endpoints: &[&Endpoint], policy: Policy, locality: &Locality) -> Vec<Verdict> {
    let any_ready = endpoints.iter().any(|endpoint| endpoint.ready);
    let topology = topology(endpoints, locality);
    let local_ready = endpoints.iter().any(|endpoint| endpoint.ready && locality.has(endpoint));
    let ready = endpoints.iter().filter(|endpoint| policy.by_node && endpoint.ready);
    let ready_nodes: HashSet<&str> = ready.filter_map(|endpoint| endpoint.node.as_deref()).collect();
    let judge = |endpoint: &&Endpoint| {
        let cluster = usable(endpoint, any_ready) && hinted(endpoint, topology, locality);
        let internal =
            if policy.internal_local { locality.has(endpoint) && usable(endpoint, local_ready) } else { cluster };
        let external = cluster && (policy.accessible || !policy.internal_local);
        match (internal, external) {
            (true, false) if policy.accessible => Verdict::Chosen(Some(BackendScope::Internal)),
            (false, true) if policy.internal_local => Verdict::Chosen(Some(BackendScope::External)),
            (true, _) | (_, true) => Verdict::Chosen(None),
            _ if policy.by_node && serves_its_node(endpoint, &ready_nodes) => Verdict::Chosen(Some(BackendScope::Node)),
            _ => reason(endpoint, topology, locality),
        }
    };
    endpoints.iter().map(judge).collect()
}

/// Those that are ready; where none is, those that still answer while they terminate.
const fn usable(endpoint: &Endpoint, any_ready: bool) -> bool {
    endpoint.ready || (!any_ready && endpoint.serving && endpoint.terminating)
}

/// Whether clients from outside that come to the endpoint's own node reach it there.
fn serves_its_node(endpoint: &Endpoint, ready_nodes: &HashSet<&str>) -> bool {
    endpoint.node.as_deref().is_some_and(|node| usable(endpoint, ready_nodes.contains(node)))
}

/// Hints count only where every ready endpoint has some, and one has one for here (`topologyModeFromHints`).
fn topology(endpoints: &[&Endpoint], locality: &Locality) -> Topology {
    let ready = || endpoints.iter().filter(|endpoint| endpoint.ready);
    let have = |kind| ready().all(|endpoint| !names(endpoint, kind).is_empty());
    let for_here = |kind| ready().any(|endpoint| is_for(endpoint, kind, locality));
    let counts = |kind: &Topology| have(*kind) && for_here(*kind);
    [Topology::Node, Topology::Zone].into_iter().find(counts).unwrap_or(Topology::None)
}

fn names(endpoint: &Endpoint, kind: Topology) -> &[String] {
    match (&endpoint.hints, kind) {
        (Some(hints), Topology::Node) => &hints.nodes,
        (Some(hints), Topology::Zone) => &hints.zones,
        _ => &[],
    }
}

fn is_for(endpoint: &Endpoint, kind: Topology, locality: &Locality) -> bool {
    let here = if kind == Topology::Node { Some(&locality.node) } else { locality.zone.as_ref() };
    here.is_some_and(|here| names(endpoint, kind).contains(here))
}

fn hinted(endpoint: &Endpoint, topology: Topology, locality: &Locality) -> bool {
    // Terminating ones are taken whatever their hints say: nobody is ready then, and no hint counts.
    topology == Topology::None || is_for(endpoint, topology, locality)
}

fn reason(endpoint: &Endpoint, topology: Topology, locality: &Locality) -> Verdict {
    match (endpoint.ready, endpoint.terminating, endpoint.serving) {
        (false, true, true) => Verdict::Terminating,
        (false, true, false) => Verdict::NotServing,
        (false, false, _) => Verdict::NotReady,
        _ if hinted(endpoint, topology, locality) => Verdict::Remote,
        _ if topology == Topology::Node => Verdict::OtherNode,
        _ => Verdict::OtherZone,
    }
}
