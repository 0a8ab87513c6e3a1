//! The table as the kernel has it, as JSON or for a terminal.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    net::{IpAddr, SocketAddr},
};

use bpf_lb_abi::{Kind, Scope};
use service_table::{
    Algorithm, Backend, BackendScope, Nodes, Refuse, Service, ServiceName, ServiceTable, SessionAffinity, TrafficPolicy,
};

use crate::{
    kernel::{Installed, Kernel},
    spec::{SetKey, Spec},
};

/// The service table that the maps hold. Applying it changes nothing.
pub fn table(kernel: &Kernel) -> ServiceTable {
    let Nodes { node_addresses, nodes } = kernel.nodes();
    let names = names(kernel);
    ServiceTable {
        node_addresses,
        nodes,
        refuse: Refuse(kernel.refuse()),
        services: kernel.services().iter().map(|(key, installed)| service(key, installed, &names)).collect(),
    }
}

/// Of the other nodes, by number.
fn names(kernel: &Kernel) -> BTreeMap<u32, &str> {
    kernel.node_numbers().iter().map(|(name, number)| (*number, name.as_str())).collect()
}

fn service(key: &ServiceName, installed: &Installed, names: &BTreeMap<u32, &str>) -> Service {
    let spec = &installed.spec;
    let ServiceName { namespace, name, port_name } = key.clone();
    let addresses = |kind: Kind| -> Vec<IpAddr> {
        spec.frontends.iter().filter(|(_, of)| **of == kind).map(|(frontend, _)| frontend.address.ip()).collect()
    };
    let policy = |local: bool| if local { TrafficPolicy::Local } else { TrafficPolicy::Cluster };
    Service {
        namespace,
        name,
        port_name,
        protocol: spec.protocol,
        port: spec.port,
        cluster_ips: addresses(Kind::ClusterIp),
        external_ips: addresses(Kind::ExternalIp),
        load_balancer_ips: addresses(Kind::LoadBalancerIp),
        node_port: spec.node_port,
        internal_traffic_policy: policy(spec.internal_local),
        external_traffic_policy: policy(spec.external_local),
        session_affinity: spec.affinity_seconds.map(|timeout_seconds| SessionAffinity { timeout_seconds }),
        lb_algorithm: if spec.least_connections { Algorithm::LeastConnections } else { Algorithm::Random },
        backends: backends(spec, names),
        draining: vec![],
        created: spec.created.map(|seconds| service_table::rfc3339(seconds.into())),
    }
}

fn backends(spec: &Spec, names: &BTreeMap<u32, &str>) -> Vec<Backend> {
    let mut members: Vec<_> = spec.sets.values().flatten().collect();
    members.sort_unstable();
    members.dedup();
    let backend = |(address, local): (&SocketAddr, &bool)| {
        let in_set = |scope, node| {
            let set = spec.sets.get(&SetKey { scope, v6: address.is_ipv6(), node });
            set.map(|set| set.contains_key(address))
        };
        let node = names.iter().find(|(number, _)| in_set(Scope::External, **number) == Some(true));
        let scope = match (in_set(Scope::Internal, 0), in_set(Scope::External, 0)) {
            (Some(false), Some(true)) if *local || !spec.internal_local => Some(BackendScope::External),
            (Some(true), Some(false)) => Some(BackendScope::Internal),
            (_, Some(false)) if node.is_some() => Some(BackendScope::Node),
            _ => None,
        };
        let node = node.map(|(_, name)| (*name).to_owned());
        Backend { address: address.ip(), port: address.port(), local: *local, node, scope }
    };
    members.into_iter().map(backend).collect()
}

/// The table for people: a line for each address, and under it its backends.
pub fn text(kernel: &Kernel) -> String {
    let (mut text, names) = (String::new(), names(kernel));
    for (key, installed) in kernel.services() {
        let spec = &installed.spec;
        let mut notes = String::new();
        if spec.least_connections {
            notes.push_str("  least-connections");
        }
        if let Some(seconds) = spec.affinity_seconds {
            let _infallible = write!(notes, "  affinity {seconds}s");
        }
        let _infallible = writeln!(text, "{}{notes}", key);
        for (frontend, kind) in &spec.frontends {
            let kind = match *kind {
                Kind::ClusterIp => "ClusterIP",
                Kind::ExternalIp => "ExternalIP",
                Kind::LoadBalancerIp => "LoadBalancer",
                Kind::NodePort => "NodePort",
            };
            let count = spec.set_of(frontend).and_then(|set| spec.sets.get(&set)).map_or(0, |set| set.len());
            let node = frontend.node.and_then(|number| names.get(&number));
            let node = node.map(|name| format!(" on {name}")).unwrap_or_default();
            let _infallible = writeln!(text, "  {kind:<13} {frontend:<48} {count} backends{node}");
        }
        let (_, connections) = kernel.counts(installed);
        for (address, backend) in &installed.backends {
            let total = connections.get(address).copied().unwrap_or_default();
            let open = if spec.least_connections {
                format!("  {} open", kernel.open_sockets(*backend))
            } else {
                String::new()
            };
            let _infallible = writeln!(text, "    -> {address:<50} {total} connections{open}");
        }
    }
    text
}
