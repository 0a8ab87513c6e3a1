//! What a service of the table comes to in the kernel: its frontends, and the sets of backends that they lead to.
//!
//! Pure: nothing here looks at the kernel.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use bpf_lb_abi::{Entry, NAME_LEN, Scope};
use service_table::{Algorithm, Backend, BackendScope, Protocol, Service, TrafficPolicy};
use thiserror::Error;

/// Why a service cannot be in the maps, whatever else is.
#[derive(Debug, Error, PartialEq)]
pub enum Unfit {
    /// The name does not fit.
    #[error("the name takes more than {NAME_LEN} bytes")]
    NameTooLong,
    /// More backends than an entry can count.
    #[error("{0} backends; at most {max}", max = Entry::MAX_COUNT)]
    TooManyBackends(usize),
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
    /// When the service was created, in seconds since 1970. Without, it is younger than all others.
    pub created: Option<u32>,
    /// The timeout of session affinity, in seconds.
    pub affinity_seconds: Option<u32>,
    /// With what kind each is, as in [`Entry`].
    pub frontends: BTreeMap<Frontend, u8>,
    /// The sets that some frontend leads to: each backend, and whether it is on this node.
    pub sets: BTreeMap<SetKey, BTreeMap<SocketAddr, bool>>,
}

impl Spec {
    /// What `service` comes to on a node with `node_addresses`.
    pub fn new(service: &Service, node_addresses: &[IpAddr]) -> Result<Self, Unfit> {
        check(service)?;
        let mut spec = Self {
            port: service.port,
            node_port: service.node_port,
            protocol: service.protocol,
            internal_local: service.internal_traffic_policy == TrafficPolicy::Local,
            external_local: service.external_traffic_policy == TrafficPolicy::Local,
            least_connections: service.lb_algorithm == Algorithm::LeastConnections,
            created: service.created.as_deref().and_then(seconds),
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

    /// The same service on a node with other addresses. A set that was not there has the backends of the cluster addresses.
    pub fn on_node(&self, addresses: &[IpAddr]) -> Self {
        let mut spec = self.clone();
        spec.frontends.retain(|_, kind| *kind != Entry::NODE_PORT);
        for (address, port) in addresses.iter().filter_map(|address| Some((address.to_canonical(), self.node_port?))) {
            let frontend = Frontend { address: SocketAddr::new(address, port), protocol: self.protocol };
            spec.frontends.entry(frontend).or_insert(Entry::NODE_PORT);
        }
        let wanted: BTreeSet<_> = spec.frontends.iter().map(|(frontend, kind)| set_of(frontend, *kind)).collect();
        spec.sets.retain(|set, _| wanted.contains(set));
        for set in wanted {
            let like = || self.sets.get(&(Scope::Internal, set.1)).cloned().unwrap_or_default();
            spec.sets.entry(set).or_insert_with(like);
        }
        spec
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
    // A client in the cluster reaches all backends by an external address, whatever the policy.
    let local_only = scope == Scope::Internal && service.internal_traffic_policy == TrafficPolicy::Local;
    let only = match scope {
        Scope::Internal => BackendScope::Internal,
        Scope::External => BackendScope::External,
    };
    let serves = |backend: &&Backend| {
        backend.address.to_canonical().is_ipv6() == v6
            && backend.scope.is_none_or(|scope| scope == only)
            && (backend.local || !local_only)
    };
    let entry = |backend: &Backend| (SocketAddr::new(backend.address.to_canonical(), backend.port), backend.local);
    service.backends.iter().filter(serves).map(entry).collect()
}

fn check(service: &Service) -> Result<(), Unfit> {
    if name_len(service) > NAME_LEN {
        return Err(Unfit::NameTooLong);
    }
    match service.backends.len() {
        count if count > Entry::MAX_COUNT as usize => Err(Unfit::TooManyBackends(count)),
        _ => Ok(()),
    }
}

/// How many bytes the record of a service's name takes: a mark, and the names with zeros between them.
fn name_len(service: &Service) -> usize {
    3 + service.namespace.len() + service.name.len() + service.port_name.len()
}

/// Seconds since 1970, as far as 32 bits go.
fn seconds(time: &str) -> Option<u32> {
    let seconds = service_table::seconds(time)?.clamp(0, i64::from(u32::MAX - 1));
    u32::try_from(seconds).ok()
}
