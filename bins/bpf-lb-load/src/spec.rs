//! What a service of the table comes to in the kernel: its frontends, and the sets of backends that they lead to.
//!
//! Pure: nothing here looks at the kernel.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use bpf_lb_abi::{Entry, Kind, NAME_LEN, Scope};
use service_table::{Algorithm, Backend, BackendScope, Protocol, Service, ServiceAddress, TrafficPolicy};
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

/// Where a service answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Frontend {
    /// Never IPv4-mapped. Of a node port, the unspecified address of the family.
    pub address: SocketAddr,
    /// The same port may lead to different services by protocol.
    pub protocol: Protocol,
    /// Of a node port, on whose addresses: 0 means this node's, and all others' that have no frontend of their own.
    pub node: Option<u32>,
}

impl Frontend {
    /// An address with a port.
    pub const fn new(address: SocketAddr, protocol: Protocol) -> Self {
        Self { address, protocol, node: None }
    }

    /// What answers there over TCP.
    pub const fn of(asked: &ServiceAddress) -> Self {
        Self::new(SocketAddr::new(asked.address.to_canonical(), asked.port), Protocol::Tcp)
    }

    /// A node port on the addresses of the node with that number.
    pub const fn on_node(node: u32, is_ipv6: bool, port: u16, protocol: Protocol) -> Self {
        let any = if is_ipv6 { IpAddr::V6(Ipv6Addr::UNSPECIFIED) } else { IpAddr::V4(Ipv4Addr::UNSPECIFIED) };
        Self { address: SocketAddr::new(any, port), protocol, node: Some(node) }
    }

    /// The node port of the same number on the addresses of the node with that number.
    pub const fn of_node(&self, node: u32) -> Self {
        Self::on_node(node, self.address.is_ipv6(), self.address.port(), self.protocol)
    }
}

/// Without the node.
impl std::fmt::Display for Frontend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(&format!("{}/{}", self.address, self.protocol))
    }
}

/// Which of a service's sets of backends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SetKey {
    /// Of which addresses.
    pub scope: Scope,
    /// Whether it is for IPv6.
    pub v6: bool,
    /// 0, or the number of the other node whose backends alone these are.
    pub node: u32,
}

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
    /// With what kind each is.
    pub frontends: BTreeMap<Frontend, Kind>,
    /// The sets that some frontend leads to: each backend, and whether it is on this node.
    pub sets: BTreeMap<SetKey, BTreeMap<SocketAddr, bool>>,
}

impl Spec {
    /// What `service` comes to, where the other nodes have these numbers, by name.
    pub fn new(service: &Service, nodes: &BTreeMap<String, u32>) -> Result<Self, Unfit> {
        check(service)?;
        let mut spec = Self {
            port: service.port,
            node_port: service.node_port,
            protocol: service.protocol,
            internal_local: service.internal_traffic_policy == TrafficPolicy::Local,
            external_local: service.external_traffic_policy == TrafficPolicy::Local,
            least_connections: service.lb_algorithm == Algorithm::LeastConnections,
            created: service.created.as_deref().and_then(service_table::created),
            affinity_seconds: service.session_affinity.map(|affinity| affinity.timeout_seconds),
            frontends: BTreeMap::new(),
            sets: BTreeMap::new(),
        };
        // The first kind of an address that is listed twice counts.
        for (addresses, kind) in [
            (&service.cluster_ips, Kind::ClusterIp),
            (&service.external_ips, Kind::ExternalIp),
            (&service.load_balancer_ips, Kind::LoadBalancerIp),
        ] {
            for address in addresses {
                let address = SocketAddr::new(address.to_canonical(), service.port);
                spec.frontends.entry(Frontend::new(address, service.protocol)).or_insert(kind);
            }
        }
        let frontends = node_ports(service, nodes).map(|frontend| (frontend, Kind::NodePort));
        spec.frontends.extend(frontends);
        for (frontend, kind) in &spec.frontends {
            let set = set_of(frontend, *kind);
            spec.sets.entry(set).or_insert_with(|| backends(service, set, nodes));
        }
        Ok(spec)
    }

    /// The same without this frontend.
    pub fn without(&self, frontend: &Frontend) -> Self {
        let mut spec = self.clone();
        spec.frontends.remove(frontend);
        spec.drop_sets();
        spec
    }

    /// The same with those backends alone of which `local` says whether they are on this node, and with those frontends alone that
    /// `has` picks and that do not lose all their backends by that: nobody is refused who is to be served. Node ports of a family
    /// go together, since on other nodes' addresses each that is missing is refused.
    pub fn within(&self, has: impl Fn(&Frontend) -> bool, local: impl Fn(&SocketAddr) -> Option<bool>) -> Self {
        let mut spec = self.clone();
        for members in spec.sets.values_mut() {
            *members = members.keys().filter_map(|backend| Some((*backend, local(backend)?))).collect();
        }
        let is_left = |frontend: &Frontend, kind: Kind| {
            let is_empty = |spec: &Self| spec.sets.get(&set_of(frontend, kind)).is_none_or(BTreeMap::is_empty);
            has(frontend) && (is_empty(self) || !is_empty(&spec))
        };
        let mut frontends = self.frontends.clone();
        frontends.retain(|frontend, kind| is_left(frontend, *kind));
        let missing = self.frontends.keys().filter(|frontend| !frontends.contains_key(frontend));
        let families: BTreeSet<_> =
            missing.filter(|frontend| frontend.node.is_some()).map(|frontend| frontend.address.is_ipv6()).collect();
        frontends.retain(|frontend, _| frontend.node.is_none() || !families.contains(&frontend.address.is_ipv6()));
        spec.frontends = frontends;
        spec.drop_sets();
        spec
    }

    /// Those that no frontend leads to.
    fn drop_sets(&mut self) {
        let led_to: BTreeSet<_> = self.frontends.iter().map(|(frontend, kind)| set_of(frontend, *kind)).collect();
        self.sets.retain(|set, _| led_to.contains(set));
    }

    /// Whether each other node has a frontend of its own beside this one, or refuses.
    pub fn is_per_node(&self, frontend: &Frontend) -> bool {
        self.external_local && frontend.node == Some(0)
    }

    /// Whether a new connection to a frontend may get that backend.
    pub fn leads_to(&self, frontend: &Frontend, backend: &SocketAddr) -> bool {
        let set = self.set_of(frontend).and_then(|set| self.sets.get(&set));
        set.is_some_and(|backends| backends.contains_key(backend))
    }

    /// The name of the set to which a frontend of this service leads.
    pub fn set_of(&self, frontend: &Frontend) -> Option<SetKey> {
        self.frontends.get(frontend).map(|kind| set_of(frontend, *kind))
    }
}

/// Which set of backends a frontend of that kind leads to.
pub fn set_of(frontend: &Frontend, kind: Kind) -> SetKey {
    SetKey { scope: kind.scope(), v6: frontend.address.is_ipv6(), node: frontend.node.unwrap_or_default() }
}

/// The frontends of the node port: in the families of the ClusterIPs, as with kube-proxy.
fn node_ports(service: &Service, nodes: &BTreeMap<String, u32>) -> impl Iterator<Item = Frontend> {
    let is_local = service.external_traffic_policy == TrafficPolicy::Local;
    let others = service.backends.iter().filter(move |_| is_local).filter_map(|backend| {
        let number = nodes.get(backend.node.as_ref()?)?;
        Some((*number, backend.address.to_canonical().is_ipv6()))
    });
    let own = [(0, false), (0, true)];
    let has_family = |v6| service.cluster_ips.iter().any(|address| address.to_canonical().is_ipv6() == v6);
    let families = [false, true].map(|v6| service.cluster_ips.is_empty() || has_family(v6));
    let on_node = |port, node, v6| Frontend::on_node(node, v6, port, service.protocol);
    let places = own.into_iter().chain(others).filter(move |(_, v6)| families[usize::from(*v6)]);
    service.node_port.into_iter().flat_map(move |port| places.clone().map(move |(node, v6)| on_node(port, node, v6)))
}

fn backends(service: &Service, set: SetKey, nodes: &BTreeMap<String, u32>) -> BTreeMap<SocketAddr, bool> {
    // A client in the cluster reaches all backends by an external address, whatever the policy.
    let local_only = set.scope == Scope::Internal && service.internal_traffic_policy == TrafficPolicy::Local;
    let is_wanted = |backend: &Backend| match (backend.scope, set.scope) {
        (None, _) => true,
        (Some(BackendScope::Internal), Scope::Internal) | (Some(BackendScope::External), Scope::External) => true,
        (Some(BackendScope::Node), _) => set.node != 0,
        _ => false,
    };
    let is_there = |backend: &Backend| {
        let number = backend.node.as_ref().and_then(|name| nodes.get(name));
        set.node == 0 || number == Some(&set.node)
    };
    let serves = |backend: &&Backend| {
        backend.address.to_canonical().is_ipv6() == set.v6
            && is_wanted(backend)
            && is_there(backend)
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
