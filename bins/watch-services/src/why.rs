//! For a person: where each backend of a Service came from, and why an endpoint is not among them.

use std::fmt;

use cluster_api::Name;
use cluster_api::k8s_openapi::api::{core::v1 as core, discovery::v1 as discovery};
use serde::Serialize;
use service_table::BackendScope;

use crate::{
    choose::Verdict,
    map::{Candidate, For, candidates},
    service::{Port, Service},
    slice::{Endpoint, Names, Slice},
};

/// All that is to be said of one Service.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Why {
    service: String,
    /// Why it has no place in the table.
    #[serde(skip_serializing_if = "Option::is_none")]
    not_served: Option<String>,
    ports: Vec<OfPort>,
    /// Slices that name it, and are of no account.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ignored: Vec<String>,
    /// What is left to the host path.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    left: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    problems: Vec<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct OfPort {
    /// The addresses and ports that lead here.
    frontends: Vec<String>,
    name: String,
    protocol: service_table::Protocol,
    endpoints: Vec<OfEndpoint>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct OfEndpoint {
    address: String,
    node: String,
    slice: String,
    /// A pod, mostly.
    target: String,
    backend: bool,
    why: String,
}

/// Explains a Service.
pub fn why(name: &Name, service: Option<&core::Service>, slices: &[discovery::EndpointSlice], clients: &For) -> Why {
    let mut why = Why {
        service: name.to_string(),
        not_served: None,
        ports: vec![],
        ignored: vec![],
        left: vec![],
        problems: vec![],
    };
    let service = match service.map(Service::of) {
        Some(Ok(service)) => service,
        other => {
            let reason = other.and_then(Result::err).map(|reason| reason.to_string());
            why.not_served = Some(reason.unwrap_or_else(|| "there is no Service of this name".into()));
            return why;
        }
    };
    let mut names = Names::with_targets();
    let mut known = vec![];
    for object in slices {
        let of = Name::of(object).name;
        match Slice::of(object, &mut names) {
            Ok((_, slice)) => {
                why.problems.extend(slice.problems.iter().map(|problem| format!("EndpointSlice {of}: {problem}")));
                why.ignored.extend(unused(&service, &slice).map(|reason| format!("EndpointSlice {of}: {reason}")));
                known.push((of, slice));
            }
            Err(ignored) => why.ignored.push(format!("EndpointSlice {of}: {ignored}")),
        }
    }
    let slices = known.iter().map(|(name, slice)| (name.as_str(), slice));
    why.ports = service.ports.iter().map(|port| of_port(&service, port, slices.clone(), clients)).collect();
    why.problems.extend(service.problems);
    why.left = service.left;
    why
}

/// Why none of the Service's ports has anything of a slice.
fn unused(service: &Service, slice: &Slice) -> Option<String> {
    if !service.has(slice.family) {
        return Some(format!("it has {} endpoints, and the Service no such ClusterIP", slice.family));
    }
    let fits = |port: &Port| slice.ports.iter().any(|of| *of.name == *port.name && of.protocol == port.protocol);
    let has: Vec<String> = slice.ports.iter().map(|port| format!("{:?} over {:?}", port.name, port.protocol)).collect();
    let reason = || format!("none of its ports is one of the Service's by name and protocol: {}", has.join(", "));
    (!service.ports.iter().any(fits)).then(reason)
}

fn of_port<'a>(
    service: &Service,
    port: &Port,
    slices: impl Iterator<Item = (&'a str, &'a Slice)> + Clone,
    clients: &For,
) -> OfPort {
    let frontend = |address: &std::net::IpAddr| std::net::SocketAddr::new(*address, port.port).to_string();
    let node_port = port.node_port.map(|port| format!("node port {port}"));
    let endpoints = candidates(service, port, slices, clients);
    OfPort {
        frontends: service.addresses().map(frontend).chain(node_port).collect(),
        name: port.name.to_string(),
        protocol: port.protocol,
        endpoints: endpoints.iter().map(|candidate| of_endpoint(candidate, clients)).collect(),
    }
}

fn of_endpoint(candidate: &Candidate<'_>, clients: &For) -> OfEndpoint {
    let Candidate { slice, endpoint, port, verdict } = candidate;
    OfEndpoint {
        address: std::net::SocketAddr::new(endpoint.address, *port).to_string(),
        node: endpoint.node.as_deref().unwrap_or_default().to_owned(),
        slice: (*slice).to_owned(),
        target: endpoint.target.as_deref().unwrap_or_default().to_owned(),
        backend: matches!(verdict, Verdict::Chosen(_)),
        why: reason(*verdict, endpoint, clients),
    }
}

fn reason(verdict: Verdict, endpoint: &Endpoint, clients: &For) -> String {
    let hints = endpoint.hints.as_deref().cloned().unwrap_or_default();
    let zone = clients.locality.zone.as_deref().unwrap_or("none");
    match verdict {
        Verdict::Chosen(scope) => {
            let for_whom = match scope {
                Some(BackendScope::Internal) => ", for the ClusterIPs only",
                Some(BackendScope::Node) => ", for the node port on its own node's addresses only",
                Some(BackendScope::External) => ", not for the ClusterIPs",
                None => "",
            };
            let state = if endpoint.ready { "ready" } else { "terminating, and nothing is ready" };
            format!("{state}{for_whom}")
        }
        Verdict::NotReady => "not ready".into(),
        Verdict::NotServing => "terminating, and not serving any more".into(),
        Verdict::Terminating => "terminating, and others are ready".into(),
        Verdict::OtherZone => format!("its hints are for zone {}; this node's is {zone}", hints.zones.join(", ")),
        Verdict::OtherNode => {
            format!("its hints are for node {}; this one is {}", hints.nodes.join(", "), clients.locality.node)
        }
        Verdict::Remote => "on another node, and internalTrafficPolicy is Local".into(),
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Service {}", self.service)?;
        if let Some(reason) = &self.not_served {
            write!(f, "\n  not in the table: {reason}")?;
        }
        for port in &self.ports {
            let name = if port.name.is_empty() { String::new() } else { format!("{} ", port.name) };
            write!(f, "\n\n{name}{} {}", port.protocol, port.frontends.join(", "))?;
            if port.endpoints.is_empty() {
                write!(f, "\n  no endpoints: connections are refused")?;
            } else {
                f.write_str(&table(&port.endpoints))?;
            }
        }
        for (title, lines) in
            [("Of no account", &self.ignored), ("Left to the host path", &self.left), ("Wrong", &self.problems)]
        {
            if !lines.is_empty() {
                write!(f, "\n\n{title}:\n  {}", lines.join("\n  "))?;
            }
        }
        Ok(())
    }
}

fn table(endpoints: &[OfEndpoint]) -> String {
    let head = ["ENDPOINT", "BACKEND", "NODE", "SLICE", "TARGET", "WHY"];
    let row = |of: &OfEndpoint| {
        let backend = if of.backend { "yes" } else { "no" };
        let dash = |text: &str| if text.is_empty() { "-".to_owned() } else { text.to_owned() };
        vec![of.address.clone(), backend.to_owned(), dash(&of.node), of.slice.clone(), dash(&of.target), of.why.clone()]
    };
    let rows: Vec<_> = endpoints.iter().map(row).collect();
    common::table::table(&head, &rows).lines().map(|line| format!("\n  {line}")).collect()
}
