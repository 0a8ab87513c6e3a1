//! What the table is made of, and what changes in it.

use std::{fmt, net::IpAddr};

use ipnet::IpNet;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    host::{self, Cidr, Host},
    name, number,
    object::object,
    time::{self, Time},
};

object!(ServiceTable, Node, Service, SessionAffinity, Backend, Draining, Nodes, ServiceName, ServiceAddress);
object!(Protocol, TrafficPolicy, Algorithm, BackendScope);

/// All Services that a node's pods can reach through their sockets.
///
/// Whoever writes it has done the work of choosing: a backend in it is ready to be used by clients on this node, with
/// readiness, topology hints and the fallback to terminating endpoints already taken into account.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, remote = "Self")]
pub struct ServiceTable {
    /// The addresses of the node on which node ports answer.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "host::list")]
    #[schemars(with = "Vec<Host>")]
    pub node_addresses: Vec<IpAddr>,
    /// The other nodes, where node ports are to answer on their addresses too: in clusters without kube-proxy.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nodes: Vec<Node>,
    /// CIDRs in which a port that no Service has, on an address that is some Service's ClusterIP, is refused.
    #[serde(default, skip_serializing_if = "Refuse::is_empty")]
    pub refuse: Refuse,
    /// One for each port of each Kubernetes Service.
    #[serde(default)]
    pub services: Vec<Service>,
}

/// See [`ServiceTable::refuse`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Refuse(
    #[serde(deserialize_with = "host::cidrs")]
    #[schemars(with = "Vec<Cidr>", length(max = 8))]
    pub Vec<IpNet>,
);

impl Refuse {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Another node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, remote = "Self")]
pub struct Node {
    /// Its name, as backends have it.
    #[serde(deserialize_with = "name::node")]
    #[schemars(length(max = 253), regex(pattern = "^[^\\x00]*$"))]
    pub name: String,
    /// The addresses on which node ports answer.
    #[serde(deserialize_with = "host::list")]
    #[schemars(with = "Vec<Host>")]
    pub addresses: Vec<IpAddr>,
}

/// One port of a Kubernetes Service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, remote = "Self")]
pub struct Service {
    /// The Kubernetes namespace.
    #[serde(deserialize_with = "name::label")]
    #[schemars(length(max = 63), regex(pattern = "^[^\\x00]*$"))]
    pub namespace: String,
    /// The Service's name.
    #[serde(deserialize_with = "name::label")]
    #[schemars(length(max = 63), regex(pattern = "^[^\\x00]*$"))]
    pub name: String,
    /// The port's name, empty if it has none.
    #[serde(default, skip_serializing_if = "String::is_empty", deserialize_with = "name::label")]
    #[schemars(length(max = 63), regex(pattern = "^[^\\x00]*$"))]
    pub port_name: String,
    /// The port's protocol.
    #[serde(default)]
    pub protocol: Protocol,
    /// The port on which the addresses below answer.
    #[serde(deserialize_with = "number::port")]
    #[schemars(range(min = 1))]
    pub port: u16,
    /// The cluster addresses, of one or of both families.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "host::list")]
    #[schemars(with = "Vec<Host>")]
    pub cluster_ips: Vec<IpAddr>,
    /// The external addresses.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "host::list")]
    #[schemars(with = "Vec<Host>")]
    pub external_ips: Vec<IpAddr>,
    /// The addresses that a load balancer gave it.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "host::list")]
    #[schemars(with = "Vec<Host>")]
    pub load_balancer_ips: Vec<IpAddr>,
    /// The port on which the node's own addresses answer.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "number::some_port")]
    #[schemars(range(min = 1))]
    pub node_port: Option<u16>,
    /// Whether the cluster addresses lead to backends on this node only.
    #[serde(default, skip_serializing_if = "is_default")]
    pub internal_traffic_policy: TrafficPolicy,
    /// Whether the node port on another node's address leads to that node's backends only. On this node's own addresses, and
    /// on external and load balancer addresses, a client in the cluster reaches all of them, as with kube-proxy.
    #[serde(default, skip_serializing_if = "is_default")]
    pub external_traffic_policy: TrafficPolicy,
    /// Whether a pod keeps its backend.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_affinity: Option<SessionAffinity>,
    /// How a backend is chosen.
    #[serde(default, skip_serializing_if = "is_default")]
    pub lb_algorithm: Algorithm,
    /// The endpoints. With none, connections are refused.
    #[serde(default)]
    pub backends: Vec<Backend>,
    /// Endpoints that get nothing new and still exist: they terminate, are not ready, or are for other zones, other nodes or, by
    /// a traffic policy, for whom is on their own node.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub draining: Vec<Draining>,
    /// When the Service was created, in RFC 3339. Of two that claim an address, the older has it.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "time::option")]
    #[schemars(with = "Option<Time>")]
    pub created: Option<String>,
}

/// The protocol of a Service's port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE", remote = "Self")]
pub enum Protocol {
    /// The default.
    #[default]
    Tcp,
    /// Connected or not.
    Udp,
}

/// As in the Kubernetes API.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(remote = "Self")]
pub enum TrafficPolicy {
    /// All backends.
    #[default]
    Cluster,
    /// Those on this node.
    Local,
}

/// `sessionAffinity: ClientIP`. The client is the pod, known by its network namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, remote = "Self")]
pub struct SessionAffinity {
    /// Seconds after its last connection for which a client keeps its backend.
    #[serde(default = "default_timeout", deserialize_with = "number::timeout")]
    #[schemars(range(min = 1, max = SessionAffinity::MAX_TIMEOUT))]
    pub timeout_seconds: u32,
}

impl SessionAffinity {
    /// Kubernetes' own default for the timeout, in seconds.
    pub const DEFAULT_TIMEOUT: u32 = 10_800;
    /// Its own limit, in seconds.
    pub const MAX_TIMEOUT: u32 = number::MAX_TIMEOUT;
}

const fn default_timeout() -> u32 {
    SessionAffinity::DEFAULT_TIMEOUT
}

/// How a backend is chosen among those of a service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", remote = "Self")]
pub enum Algorithm {
    /// Each with the same probability.
    #[default]
    Random,
    /// Of two drawn at random, the one to which fewer sockets of this node are connected.
    LeastConnections,
}

/// An endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, remote = "Self")]
pub struct Backend {
    /// The pod's address.
    #[serde(deserialize_with = "host::one")]
    #[schemars(with = "Host")]
    pub address: IpAddr,
    /// The pod's port.
    #[serde(deserialize_with = "number::port")]
    #[schemars(range(min = 1))]
    pub port: u16,
    /// Whether it is on this node.
    #[serde(default, skip_serializing_if = "is_default")]
    pub local: bool,
    /// Its node's name, for node ports on the addresses of other nodes.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "name::option")]
    #[schemars(length(max = 253), regex(pattern = "^[^\\x00]*$"))]
    pub node: Option<String>,
    /// Whom it serves, if not everybody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<BackendScope>,
}

/// For which of a service's addresses a backend is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase", remote = "Self")]
pub enum BackendScope {
    /// The cluster addresses.
    Internal,
    /// External and load balancer addresses, and node ports.
    External,
    /// Node ports on its own node's addresses, where these lead to that node's backends only.
    Node,
}

/// An endpoint that gets nothing new. TCP connections to it stay until it leaves the list, UDP sockets while it serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, remote = "Self")]
pub struct Draining {
    /// The pod's address.
    #[serde(deserialize_with = "host::one")]
    #[schemars(with = "Host")]
    pub address: IpAddr,
    /// The pod's port.
    #[serde(deserialize_with = "number::port")]
    #[schemars(range(min = 1))]
    pub port: u16,
    /// Whether it still answers.
    #[serde(default)]
    pub serving: bool,
}

/// One change of the table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Change {
    /// The nodes are these.
    Nodes(Nodes),
    /// Ports that no Service has are refused in these CIDRs.
    Refuse(Refuse),
    /// The service is to be like this, whether it was there or not.
    Set(Box<Service>),
    /// The service is to be gone.
    Remove(ServiceName),
    /// What is asked of this address over TCP is left to the host path, until the service that answers there is set again. The
    /// service stays, and so do the connections to its backends.
    Leave(ServiceAddress),
    /// Whether the lease of the table is renewed from now on. It is until this says otherwise.
    Renew(bool),
    /// The table is to be like this, and contain nothing else.
    Table(ServiceTable),
}

/// On whose addresses node ports answer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, remote = "Self")]
pub struct Nodes {
    /// See [`ServiceTable::node_addresses`].
    #[serde(default, deserialize_with = "host::list")]
    #[schemars(with = "Vec<Host>")]
    pub node_addresses: Vec<IpAddr>,
    /// See [`ServiceTable::nodes`].
    #[serde(default)]
    pub nodes: Vec<Node>,
}

/// Where a service answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, remote = "Self")]
pub struct ServiceAddress {
    /// One of its addresses.
    #[serde(deserialize_with = "host::one")]
    #[schemars(with = "Host")]
    pub address: IpAddr,
    /// Its port there.
    #[serde(deserialize_with = "number::port")]
    #[schemars(range(min = 1))]
    pub port: u16,
}

/// What tells a service from others.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, remote = "Self")]
pub struct ServiceName {
    /// The Kubernetes namespace.
    #[serde(deserialize_with = "name::label")]
    #[schemars(length(max = 63), regex(pattern = "^[^\\x00]*$"))]
    pub namespace: String,
    /// The Service's name.
    #[serde(deserialize_with = "name::label")]
    #[schemars(length(max = 63), regex(pattern = "^[^\\x00]*$"))]
    pub name: String,
    /// The port's name, empty if it has none.
    #[serde(default, skip_serializing_if = "String::is_empty", deserialize_with = "name::label")]
    #[schemars(length(max = 63), regex(pattern = "^[^\\x00]*$"))]
    pub port_name: String,
}

impl ServiceTable {
    /// On whose addresses node ports answer.
    pub fn all_nodes(&self) -> Nodes {
        Nodes { node_addresses: self.node_addresses.clone(), nodes: self.nodes.clone() }
    }
}

impl Service {
    /// What tells it from others.
    pub fn key(&self) -> ServiceName {
        let Self { namespace, name, port_name, .. } = self;
        ServiceName { namespace: namespace.clone(), name: name.clone(), port_name: port_name.clone() }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        })
    }
}

impl fmt::Display for ServiceName {
    /// `namespace/name:port name`, or without the last part if the port has no name.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)?;
        if self.port_name.is_empty() { Ok(()) } else { write!(f, ":{}", self.port_name) }
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}
