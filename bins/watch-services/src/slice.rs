//! What is kept of an EndpointSlice.

use std::{collections::HashSet, net::IpAddr, sync::Arc};

use cluster_api::k8s_openapi::api::discovery::v1 as discovery;
use common::object::Family;
use jiff::Timestamp;
use service_table::Protocol;

use crate::{
    address,
    service::{HEADLESS, OTHER_PROXY},
};

/// The label that names the Service.
pub const SERVICE: &str = "kubernetes.io/service-name";
/// The label that names a ServiceImport instead, in the Multi-Cluster Services API (KEP-1645).
const IMPORT: &str = "multicluster.kubernetes.io/service-name";
/// When what a slice follows from happened.
const TRIGGERED: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// What is of use of an EndpointSlice.
#[derive(Clone, Debug, PartialEq)]
pub struct Slice {
    /// All its endpoints' addresses are of this family.
    pub family: Family,
    /// Each endpoint has all of these.
    pub ports: Vec<Port>,
    /// Pods, mostly.
    pub endpoints: Vec<Endpoint>,
    /// When what it follows from happened, if it says.
    pub triggered: Option<Timestamp>,
    /// What is wrong with it, for a person.
    pub problems: Vec<String>,
}

/// A port of every endpoint.
#[derive(Clone, Debug, PartialEq)]
pub struct Port {
    /// That of the Service's port.
    pub name: Arc<str>,
    /// That of the Service's port.
    pub protocol: Protocol,
    /// The endpoint's own.
    pub port: u16,
}

/// An endpoint.
#[derive(Clone, Debug, PartialEq)]
pub struct Endpoint {
    /// Its first address: the others mean nothing to a proxy.
    pub address: IpAddr,
    /// The name of its node.
    pub node: Option<Arc<str>>,
    /// For whom it is meant, if not for all.
    pub hints: Option<Arc<Hints>>,
    /// What it is, for a person: kept only where somebody asks.
    pub target: Option<Box<str>>,
    /// Whether it is to get something new; always so with publishNotReadyAddresses.
    pub ready: bool,
    /// Whether it answers, also while it terminates.
    pub serving: bool,
    /// Whether it is on its way out.
    pub terminating: bool,
}

/// For whom an endpoint is meant.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Hints {
    /// Names of nodes.
    pub nodes: Vec<String>,
    /// Names of zones.
    pub zones: Vec<String>,
}

/// Why a slice is of no account.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Ignored {
    /// It is nobody's.
    #[error("its label {SERVICE} names no Service")]
    NoService,
    /// It is an import's.
    #[error("its label {IMPORT} gives it to a ServiceImport")]
    Import,
    /// It is a headless Service's.
    #[error("its label {HEADLESS} says that it is a headless Service's")]
    Headless,
    /// It is another proxy's.
    #[error("its label {OTHER_PROXY} gives it to another proxy")]
    OtherProxy,
    /// It has names in the DNS.
    #[error("its addressType is {0}")]
    AddressType(String),
}

/// What many endpoints have in common, once in memory.
#[derive(Debug, Default)]
pub struct Names {
    texts: HashSet<Arc<str>>,
    hints: HashSet<Arc<Hints>>,
    /// Whether endpoints say what they are.
    targets: bool,
}

impl Names {
    /// With these, endpoints say what they are.
    pub fn with_targets() -> Self {
        Self { targets: true, ..Self::default() }
    }

    fn text(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.texts.get(text) {
            return Arc::clone(known);
        }
        if self.texts.len() == self.texts.capacity() {
            self.texts.retain(|text| Arc::strong_count(text) > 1);
        }
        let new: Arc<str> = text.into();
        self.texts.insert(Arc::clone(&new));
        new
    }

    fn hints(&mut self, hints: &discovery::EndpointHints) -> Option<Arc<Hints>> {
        let hints = Hints {
            nodes: hints.for_nodes.iter().flatten().map(|node| node.name.clone()).collect(),
            zones: hints.for_zones.iter().flatten().map(|zone| zone.name.clone()).collect(),
        };
        if hints == Hints::default() {
            return None;
        }
        if let Some(known) = self.hints.get(&hints) {
            return Some(Arc::clone(known));
        }
        if self.hints.len() == self.hints.capacity() {
            self.hints.retain(|hints| Arc::strong_count(hints) > 1);
        }
        let new = Arc::new(hints);
        self.hints.insert(Arc::clone(&new));
        Some(new)
    }
}

impl Slice {
    /// What is of use of an object, and the Service that it names.
    ///
    /// # Errors
    /// Why it is of no account.
    pub fn of(object: &discovery::EndpointSlice, names: &mut Names) -> Result<(String, Self), Ignored> {
        let label = |label| object.metadata.labels.as_ref().and_then(|labels| labels.get(label));
        if label(HEADLESS).is_some() {
            return Err(Ignored::Headless);
        }
        if label(OTHER_PROXY).is_some() {
            return Err(Ignored::OtherProxy);
        }
        let nobodys = || if label(IMPORT).is_some() { Ignored::Import } else { Ignored::NoService };
        let service = label(SERVICE).filter(|service| !service.is_empty()).ok_or_else(nobodys)?;
        let other = |_| Ignored::AddressType(object.address_type.clone());
        let annotations = object.metadata.annotations.as_ref();
        let mut slice = Self {
            family: object.address_type.parse().map_err(other)?,
            ports: vec![],
            endpoints: Vec::with_capacity(object.endpoints.len()),
            triggered: annotations.and_then(|annotations| annotations.get(TRIGGERED)?.parse().ok()),
            problems: vec![],
        };
        for port in object.ports.iter().flatten() {
            slice.port(port, names);
        }
        if object.ports.iter().flatten().next().is_none() && !object.endpoints.is_empty() {
            slice.problems.push("it has endpoints, but no ports".into());
        }
        for endpoint in &object.endpoints {
            slice.endpoint(endpoint, names);
        }
        slice.endpoints.shrink_to_fit();
        Ok((service.clone(), slice))
    }

    fn port(&mut self, port: &discovery::EndpointPort, names: &mut Names) {
        let name = port.name.as_deref().unwrap_or_default();
        let protocol = match port.protocol.as_deref() {
            None | Some("TCP") => Protocol::Tcp,
            Some("UDP") => Protocol::Udp,
            // Left to the host path, as the Service's port is.
            Some(_) => return,
        };
        match port.port.map(u16::try_from) {
            // For a proxy it means nothing, not all ports.
            None => self.problems.push(format!("port {name:?} has no number")),
            Some(Ok(number @ 1..)) => self.ports.push(Port { name: names.text(name), protocol, port: number }),
            Some(_) => {
                let number = port.port.unwrap_or_default();
                self.problems.push(format!("port {name:?}: {number} is not a port"));
            }
        }
    }

    fn endpoint(&mut self, endpoint: &discovery::Endpoint, names: &mut Names) {
        let Some(text) = endpoint.addresses.first() else {
            self.problem("an endpoint has no address".into());
            return;
        };
        let address = match address::parse(text) {
            Some(address) if Family::of(address) == self.family => address,
            Some(_) => return self.problem(format!("{text} is not {}", self.family)),
            None => return self.problem(format!("{text:?} is not an address of a host")),
        };
        let target = endpoint.target_ref.as_ref().filter(|_| names.targets).map(|target| {
            let part = |part: &Option<String>| part.clone().unwrap_or_default();
            format!("{} {}", part(&target.kind), part(&target.name)).into()
        });
        let conditions = endpoint.conditions.as_ref();
        self.endpoints.push(Endpoint {
            address,
            node: endpoint.node_name.as_deref().map(|node| names.text(node)),
            hints: endpoint.hints.as_ref().and_then(|hints| names.hints(hints)),
            target,
            ready: conditions.and_then(|conditions| conditions.ready).unwrap_or(true),
            serving: conditions.and_then(|conditions| conditions.serving).unwrap_or(true),
            terminating: conditions.and_then(|conditions| conditions.terminating).unwrap_or(false),
        });
    }

    /// A slice of a thousand wrong addresses is one problem.
    fn problem(&mut self, text: String) {
        const MOST: usize = 3;
        match self.problems.len() {
            0..MOST => self.problems.push(text),
            MOST => self.problems.push("and more".into()),
            _ => {}
        }
    }
}
