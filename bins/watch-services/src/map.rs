//! From a Service and its EndpointSlices to its part of the service table. Pure.

use std::cmp::Reverse;

use cluster_api::Name;
use common::object::Family;
use service_table as table;
use service_table::{BackendScope, Draining, SessionAffinity, TrafficPolicy};

use crate::{
    choose::{Locality, Policy, Verdict, choose},
    service::{Port, Service},
    slice::{Endpoint, Slice},
};

/// For whom the table is.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct For {
    /// Where the clients are.
    pub locality: Locality,
    /// Whether node ports answer on other nodes' addresses too.
    pub all_node_ports: bool,
}

/// What becomes of an endpoint as the backend of one port.
#[derive(Debug)]
pub struct Candidate<'a> {
    /// The slice that has it.
    pub slice: &'a str,
    /// The endpoint.
    pub endpoint: &'a Endpoint,
    /// The port on which it is reached.
    pub port: u16,
    /// What becomes of it.
    pub verdict: Verdict,
}

/// The endpoints of one port of a Service, and what becomes of each, by address. `slices` are those that name the Service,
/// each with its own name.
pub fn candidates<'a>(
    service: &Service,
    port: &Port,
    slices: impl Iterator<Item = (&'a str, &'a Slice)> + Clone,
    clients: &For,
) -> Vec<Candidate<'a>> {
    let policy = Policy {
        internal_local: service.internal_local,
        accessible: service.is_accessible(port),
        by_node: clients.all_node_ports && service.external_local && port.node_port.is_some(),
    };
    let families = Family::ALL.into_iter().filter(|family| service.has(*family));
    families
        .flat_map(|family| {
            let found = found(port, family, slices.clone(), &clients.locality);
            let endpoints: Vec<&Endpoint> = found.iter().map(|(.., endpoint)| *endpoint).collect();
            let verdicts = choose(&endpoints, policy, &clients.locality);
            let candidate = |((slice, port, endpoint), verdict)| Candidate { slice, endpoint, port, verdict };
            found.into_iter().zip(verdicts).map(candidate).collect::<Vec<_>>()
        })
        .collect()
}

/// The endpoints of one port and one family. One that is in two slices, as while it moves from one to the other, counts once:
/// preferably where it is local, as for kube-proxy, then where it is ready (kube-proxy takes either).
fn found<'a>(
    port: &Port,
    family: Family,
    slices: impl Iterator<Item = (&'a str, &'a Slice)>,
    locality: &Locality,
) -> Vec<(&'a str, u16, &'a Endpoint)> {
    let of_family = slices.filter(|(_, slice)| slice.family == family);
    let mut found: Vec<_> = of_family
        .flat_map(|(name, slice)| {
            let ports = slice.ports.iter().filter(|of| *of.name == *port.name && of.protocol == port.protocol);
            ports.flat_map(move |port| slice.endpoints.iter().map(move |endpoint| (name, port.port, endpoint)))
        })
        .collect();
    found.sort_by_cached_key(|(_, port, endpoint)| {
        let better = (locality.has(endpoint), endpoint.ready, endpoint.serving);
        (endpoint.address, *port, Reverse(better))
    });
    found.dedup_by_key(|(_, port, endpoint)| (endpoint.address, *port));
    found
}

/// A Service's part of the table: one for each port.
pub fn services<'a>(
    name: &Name,
    service: &Service,
    slices: impl Iterator<Item = (&'a str, &'a Slice)> + Clone,
    clients: &For,
) -> Vec<table::Service> {
    let of_port = |port: &Port| {
        let candidates = candidates(service, port, slices.clone(), clients);
        let chosen = |candidate: &Candidate<'_>| backend(candidate, clients);
        table::Service {
            namespace: name.namespace.clone(),
            name: name.name.clone(),
            port_name: port.name.to_string(),
            protocol: port.protocol,
            port: port.port,
            cluster_ips: service.cluster_ips.clone(),
            external_ips: service.external_ips.clone(),
            load_balancer_ips: service.load_balancer_ips.clone(),
            node_port: port.node_port,
            internal_traffic_policy: policy(service.internal_local),
            external_traffic_policy: policy(service.external_local && service.is_accessible(port)),
            lb_algorithm: service.algorithm,
            session_affinity: service.affinity.map(|timeout_seconds| SessionAffinity { timeout_seconds }),
            backends: candidates.iter().filter_map(chosen).collect(),
            draining: candidates.iter().filter_map(draining).collect(),
            created: service.created.clone(),
        }
    };
    // Without an address there is nothing to reach it by.
    service.ports.iter().filter(|_| !service.cluster_ips.is_empty()).map(of_port).collect()
}

const fn policy(local: bool) -> TrafficPolicy {
    if local { TrafficPolicy::Local } else { TrafficPolicy::Cluster }
}

fn backend(candidate: &Candidate<'_>, clients: &For) -> Option<table::Backend> {
    let Verdict::Chosen(scope) = candidate.verdict else { return None };
    let endpoint = candidate.endpoint;
    let local = clients.locality.has(endpoint);
    // Whose it is matters only where each node's own are looked for.
    let node =
        endpoint.node.as_ref().filter(|_| clients.all_node_ports && !local && scope != Some(BackendScope::Internal));
    Some(table::Backend {
        address: endpoint.address,
        port: candidate.port,
        local,
        node: node.map(ToString::to_string),
        scope,
    })
}

/// What is there and gets nothing new. What is ready and not for these clients is there too: who was connected to it before
/// its hints changed stays.
fn draining(candidate: &Candidate<'_>) -> Option<Draining> {
    let Candidate { endpoint, port, verdict, .. } = candidate;
    let draining = Draining { address: endpoint.address, port: *port, serving: endpoint.serving };
    (!matches!(verdict, Verdict::Chosen(_))).then_some(draining)
}
