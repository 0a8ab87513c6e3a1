//! What a service of the table comes to in the kernel: its frontends, and the sets of backends that they lead to.
//!
//! Pure: nothing here looks at the kernel.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, SocketAddr},
};

use bpf_lb_abi::{Entry, NAME_LEN, Scope};
use service_table::{Algorithm, Backend, BackendScope, Protocol, Service, ServiceTable, TrafficPolicy};
use thiserror::Error;

/// What is wrong with a service, or with a table.
#[derive(Debug, Error, PartialEq)]
pub enum Invalid {
    /// The name does not fit.
    #[error("the service name {0} is longer than {NAME_LEN} bytes")]
    NameTooLong(String),
    /// A port is 0.
    #[error("{0}: port 0")]
    PortZero(String),
    /// An address that cannot be connected to.
    #[error("{0}: {1} is not an address of a host")]
    NotAHost(String, IpAddr),
    /// The timeout is out of the range of the Kubernetes API.
    #[error("{0}: a session affinity timeout of {1} s; it must be between 1 and 86400")]
    Timeout(String, u32),
    /// More backends than an entry can count.
    #[error("{0}: more than {max} backends", max = Entry::MAX_COUNT)]
    TooManyBackends(String),
    /// Two services claim the same address.
    #[error("{0} belongs to {1} and to {2}")]
    Claimed(Frontend, String, String),
    /// The same service twice.
    #[error("{0} is in the table twice")]
    Twice(String),
    /// The node has more addresses than fit.
    #[error("{0} node addresses; at most {max}", max = bpf_lb_abi::NODE_ADDRESSES)]
    TooManyNodeAddresses(usize),
}

/// An address and port on which a service answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Frontend {
    /// Never IPv4-mapped.
    pub address: SocketAddr,
    /// The same port may lead to different services by protocol.
    pub protocol: Protocol,
}

impl std::fmt::Display for Frontend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let protocol = match self.protocol {
            Protocol::Tcp => "TCP",
            Protocol::Udp => "UDP",
        };
        f.pad(&format!("{}/{protocol}", self.address))
    }
}

/// Which of a service's sets of backends: by scope, and by whether it is for IPv6.
pub type SetKey = (Scope, bool);

/// A service as the maps hold it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    /// Host byte order.
    pub port: u16,
    /// Host byte order.
    pub node_port: Option<u16>,
    /// Of all frontends and backends.
    pub protocol: Protocol,
    /// The internal traffic policy is `Local`.
    pub internal_local: bool,
    /// The external traffic policy is `Local`.
    pub external_local: bool,
    /// The algorithm is least connections.
    pub least_connections: bool,
    /// The timeout of session affinity, in seconds.
    pub affinity_seconds: Option<u32>,
    /// With what kind each is, as in [`Entry`].
    pub frontends: BTreeMap<Frontend, u8>,
    /// The sets that some frontend leads to: each backend, and whether it is on this node.
    pub sets: BTreeMap<SetKey, BTreeMap<SocketAddr, bool>>,
}

impl Spec {
    /// What `service` comes to on a node with `node_addresses`.
    pub fn new(service: &Service, node_addresses: &[IpAddr]) -> Result<Self, Invalid> {
        check(service)?;
        let mut spec = Self {
            port: service.port,
            node_port: service.node_port,
            protocol: service.protocol,
            internal_local: service.internal_traffic_policy == TrafficPolicy::Local,
            external_local: service.external_traffic_policy == TrafficPolicy::Local,
            least_connections: service.lb_algorithm == Algorithm::LeastConnections,
            affinity_seconds: service.session_affinity.map(|affinity| affinity.timeout_seconds),
            frontends: BTreeMap::new(),
            sets: BTreeMap::new(),
        };
        let no_addresses: &[IpAddr] = &[];
        let (node_port, node_addresses) = match service.node_port {
            Some(port) => (port, node_addresses),
            None => (0, no_addresses),
        };
        // The first kind of an address that is listed twice counts.
        for (addresses, port, kind) in [
            (&service.cluster_ips[..], service.port, Entry::CLUSTER_IP),
            (&service.external_ips, service.port, Entry::EXTERNAL_IP),
            (&service.load_balancer_ips, service.port, Entry::LOAD_BALANCER_IP),
            (node_addresses, node_port, Entry::NODE_PORT),
        ] {
            for address in addresses {
                let address = SocketAddr::new(address.to_canonical(), port);
                spec.frontends.entry(Frontend { address, protocol: service.protocol }).or_insert(kind);
            }
        }
        for (frontend, kind) in &spec.frontends {
            let set = set_of(frontend, *kind);
            spec.sets.entry(set).or_insert_with(|| backends(service, set));
        }
        Ok(spec)
    }

    /// The name of the set to which a frontend of this service leads.
    pub fn set_of(&self, frontend: &Frontend) -> Option<SetKey> {
        self.frontends.get(frontend).map(|kind| set_of(frontend, *kind))
    }
}

fn set_of(frontend: &Frontend, kind: u8) -> SetKey {
    (Entry::new(0, 0, false, false, kind).scope(), frontend.address.is_ipv6())
}

fn backends(service: &Service, (scope, v6): SetKey) -> BTreeMap<SocketAddr, bool> {
    let (policy, excluded) = match scope {
        Scope::Internal => (service.internal_traffic_policy, BackendScope::External),
        Scope::External => (service.external_traffic_policy, BackendScope::Internal),
    };
    let serves = |backend: &&Backend| {
        backend.address.to_canonical().is_ipv6() == v6
            && backend.scope != Some(excluded)
            && (backend.local || policy == TrafficPolicy::Cluster)
    };
    let entry = |backend: &Backend| (SocketAddr::new(backend.address.to_canonical(), backend.port), backend.local);
    service.backends.iter().filter(serves).map(entry).collect()
}

fn check(service: &Service) -> Result<(), Invalid> {
    let key = service.key();
    if key.len() > NAME_LEN {
        return Err(Invalid::NameTooLong(key));
    }
    let ports = service.backends.iter().map(|backend| backend.port).chain(service.node_port).chain([service.port]);
    if ports.into_iter().any(|port| port == 0) {
        return Err(Invalid::PortZero(key));
    }
    let frontends = service.cluster_ips.iter().chain(&service.external_ips).chain(&service.load_balancer_ips);
    let backends = service.backends.iter().map(|backend| &backend.address);
    if let Some(address) = frontends.chain(backends).find(|address| !is_host(**address)) {
        return Err(Invalid::NotAHost(key, *address));
    }
    if let Some(affinity) = service.session_affinity
        && !(1..=86_400).contains(&affinity.timeout_seconds)
    {
        return Err(Invalid::Timeout(key, affinity.timeout_seconds));
    }
    if service.backends.len() > Entry::MAX_COUNT as usize {
        return Err(Invalid::TooManyBackends(key));
    }
    Ok(())
}

fn is_host(address: IpAddr) -> bool {
    !(address.is_unspecified() || address.is_multicast())
}

/// The whole table, by service name. Refuses one in which two services claim the same address.
pub fn specs(table: &ServiceTable) -> Result<BTreeMap<String, Spec>, Invalid> {
    check_node_addresses(&table.node_addresses)?;
    let mut owners: HashMap<Frontend, &Service> = HashMap::new();
    let mut specs = BTreeMap::new();
    for service in &table.services {
        let (key, spec) = (service.key(), Spec::new(service, &table.node_addresses)?);
        for frontend in spec.frontends.keys() {
            if let Some(owner) = owners.insert(*frontend, service) {
                return Err(Invalid::Claimed(*frontend, owner.key(), key));
            }
        }
        if specs.insert(key, spec).is_some() {
            return Err(Invalid::Twice(service.key()));
        }
    }
    Ok(specs)
}

fn check_node_addresses(addresses: &[IpAddr]) -> Result<(), Invalid> {
    if addresses.len() > bpf_lb_abi::NODE_ADDRESSES {
        return Err(Invalid::TooManyNodeAddresses(addresses.len()));
    }
    match addresses.iter().find(|address| !is_host(**address)) {
        Some(address) => Err(Invalid::NotAHost("nodeAddresses".into(), *address)),
        None => Ok(()),
    }
}
