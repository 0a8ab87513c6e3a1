//! What is kept of a Service.

use std::net::IpAddr;

use cluster_api::{Name, SOCKET_PATH, k8s_openapi::api::core::v1 as core, socket_path};
use common::object::Family;
use ipnet::IpNet;
use serde::de::{IntoDeserializer, value::Error};
use service_table::{Algorithm, Claim, Protocol, SessionAffinity};

use crate::address;

/// A Service that is some other proxy's.
pub const OTHER_PROXY: &str = "service.kubernetes.io/service-proxy-name";
/// A Service that has no ClusterIP, and its EndpointSlices.
pub const HEADLESS: &str = "service.kubernetes.io/headless";
/// How a backend of the Service is chosen, as the service table names it.
const ALGORITHM: &str = "underpass.io/lb-algorithm";

/// What is of use of a Service.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Service {
    /// One of each family at most, the primary first.
    pub cluster_ips: Vec<IpAddr>,
    /// Of the families that it has a ClusterIP of.
    pub external_ips: Vec<IpAddr>,
    /// Those that the nodes themselves are to answer, of the same families.
    pub load_balancer_ips: Vec<IpAddr>,
    /// What is proxied by sockets.
    pub ports: Vec<Port>,
    /// internalTrafficPolicy: Local.
    pub internal_local: bool,
    /// externalTrafficPolicy: Local.
    pub external_local: bool,
    /// Session affinity's timeout in seconds.
    pub affinity: Option<u32>,
    /// How a backend is chosen.
    pub algorithm: Algorithm,
    /// Its age, in RFC 3339.
    pub created: Option<String>,
    /// Of the load balancer's, those that only some clients may use.
    pub restricted_ips: Vec<IpAddr>,
    /// What of it is left to the host path, for a person.
    pub left: Vec<String>,
    /// What is wrong with it, for a person.
    pub problems: Vec<String>,
}

/// A port of a Service.
#[derive(Clone, Debug, PartialEq)]
pub struct Port {
    /// Empty if it has none.
    pub name: Box<str>,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// On its addresses.
    pub port: u16,
    /// On the nodes' addresses.
    pub node_port: Option<u16>,
}

/// Why a Service is not in the table at all (`ShouldSkipService` in kube-proxy, and its selectors).
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum NotServed {
    /// clusterIP: None.
    #[error("it is headless: its name stands for the endpoints' own addresses")]
    Headless,
    /// A name in the DNS.
    #[error("it is of type ExternalName: a name in the DNS")]
    ExternalName,
    /// Not given yet.
    #[error("it has no ClusterIP")]
    NoClusterIp,
    /// Another proxy has it.
    #[error("its label {OTHER_PROXY} gives it to the proxy {0:?}")]
    OtherProxy(String),
    /// Its owner wants it so: something of the node answers on its addresses.
    #[error("its annotation {SOCKET_PATH} leaves it to the host path")]
    HostPath(Reserved),
}

/// Where a Service answers: address, port and protocol.
pub type Place = (IpAddr, u16, Protocol);

/// What a Service leaves to the host path, and others do not get by naming it as an external address.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reserved {
    /// By its ClusterIPs.
    pub cluster: Vec<Place>,
    /// By other addresses.
    pub external: Vec<Place>,
    /// See [`service_table::created`].
    pub created: Option<u32>,
}

/// How an Event names a Service, but for its UID.
pub fn reference(name: &Name) -> core::ObjectReference {
    core::ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Service".into()),
        namespace: Some(name.namespace.clone()),
        name: Some(name.name.clone()),
        ..Default::default()
    }
}

impl Reserved {
    /// All of it.
    pub fn places(&self) -> impl Iterator<Item = &Place> {
        self.cluster.iter().chain(&self.external)
    }

    /// The claim to a place, if the Service, which is `owner`, has one.
    pub fn claim<'a>(&self, owner: &'a Name, place: &Place) -> Option<Claim<&'a Name>> {
        let is_external = !self.cluster.contains(place);
        let is_claimed = !is_external || self.external.contains(place);
        is_claimed.then(|| Claim::new(is_external, self.created, owner))
    }
}

impl Service {
    /// What is of use of an object.
    ///
    /// # Errors
    /// Why it has no place in the table.
    pub fn of(object: &core::Service) -> Result<Self, NotServed> {
        let labels = object.metadata.labels.as_ref();
        if let Some(proxy) = labels.and_then(|labels| labels.get(OTHER_PROXY)) {
            return Err(NotServed::OtherProxy(proxy.clone()));
        }
        let default = core::ServiceSpec::default();
        let spec = object.spec.as_ref().unwrap_or(&default);
        let cluster_ip = spec.cluster_ip.as_deref().unwrap_or_default();
        if cluster_ip == "None" || labels.is_some_and(|labels| labels.contains_key(HEADLESS)) {
            return Err(NotServed::Headless);
        }
        if spec.type_.as_deref() == Some("ExternalName") {
            return Err(NotServed::ExternalName);
        }
        if cluster_ip.is_empty() {
            return Err(NotServed::NoClusterIp);
        }
        let annotations = object.metadata.annotations.as_ref();
        let mut service = Self {
            internal_local: spec.internal_traffic_policy.as_deref() == Some("Local"),
            external_local: spec.external_traffic_policy.as_deref() == Some("Local"),
            created: object.metadata.creation_timestamp.as_ref().map(|time| time.0.to_string()),
            ..Self::default()
        };
        service.cluster_ips(spec);
        service.affinity(spec);
        service.algorithm(annotations.and_then(|annotations| annotations.get(ALGORITHM)));
        let takes_part = annotations.map_or(Ok(None), socket_path).unwrap_or_else(|wrong| {
            service.problems.push(format!("annotation {SOCKET_PATH}: {wrong:?} is neither \"true\" nor \"false\""));
            None
        });
        service.external_ips = service.of_its_families(spec.external_ips.iter().flatten(), "externalIPs");
        service.load_balancer_ips(spec, object.status.as_ref());
        for port in spec.ports.iter().flatten() {
            service.port(port);
        }
        if takes_part == Some(false) {
            let external = service.external_addresses().chain(&service.restricted_ips);
            let (cluster, external) = (service.places(service.cluster_ips.iter()), service.places(external));
            return Err(NotServed::HostPath(Reserved { cluster, external, created: service.age() }));
        }
        Ok(service)
    }

    /// What of it is left to the host path.
    pub fn reserved(&self) -> Reserved {
        let external = self.places(self.restricted_ips.iter());
        Reserved { external, created: self.age(), ..Reserved::default() }
    }

    fn age(&self) -> Option<u32> {
        self.created.as_deref().and_then(service_table::created)
    }

    fn places<'a>(&self, addresses: impl Iterator<Item = &'a IpAddr>) -> Vec<Place> {
        let at =
            |address: &IpAddr| self.ports.iter().map(|port| (*address, port.port, port.protocol)).collect::<Vec<_>>();
        addresses.flat_map(at).collect()
    }

    /// As `GetClusterIPByFamily`: the families say which ClusterIPs count.
    fn cluster_ips(&mut self, spec: &core::ServiceSpec) {
        let families: Vec<&str> = spec.ip_families.iter().flatten().map(String::as_str).collect();
        let all: Vec<(Option<&str>, &str)> = match (families.as_slice(), &spec.cluster_ip) {
            ([], Some(only)) => vec![(None, only)],
            _ => families.into_iter().map(Some).zip(spec.cluster_ips.iter().flatten().map(String::as_str)).collect(),
        };
        for (family, text) in all {
            match address::parse(text) {
                Some(address) if family.is_none_or(|family| family.parse() == Ok(Family::of(address))) => {
                    if !self.has(Family::of(address)) {
                        self.cluster_ips.push(address);
                    }
                }
                Some(_) => self.problems.push(format!("clusterIPs: {text} is not {}", family.unwrap_or_default())),
                None => self.problems.push(format!("clusterIPs: {text:?} is not an address of a host")),
            }
        }
    }

    fn affinity(&mut self, spec: &core::ServiceSpec) {
        if spec.session_affinity.as_deref() != Some("ClientIP") {
            return;
        }
        let client_ip = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
        let seconds = match client_ip.and_then(|client_ip| client_ip.timeout_seconds) {
            None => SessionAffinity::DEFAULT_TIMEOUT,
            Some(seconds) => match u32::try_from(seconds) {
                Ok(seconds @ 1..=SessionAffinity::MAX_TIMEOUT) => seconds,
                _ => {
                    let most = SessionAffinity::MAX_TIMEOUT;
                    self.problems.push(format!("sessionAffinityConfig: timeoutSeconds {seconds} is not 1 to {most}"));
                    SessionAffinity::DEFAULT_TIMEOUT
                }
            },
        };
        self.affinity = Some(seconds);
    }

    fn algorithm(&mut self, name: Option<&String>) {
        let Some(name) = name else { return };
        match Algorithm::deserialize(name.as_str().into_deserializer()) {
            Ok(algorithm) => self.algorithm = algorithm,
            Err::<_, Error>(error) => self.problems.push(format!("annotation {ALGORITHM}: {error}")),
        }
    }

    /// What the nodes are to answer, and no load balancer of its own. Where only some clients may come, the host path says
    /// which: a socket does not know from which address its packets will leave.
    fn load_balancer_ips(&mut self, spec: &core::ServiceSpec, status: Option<&core::ServiceStatus>) {
        let ingress = status.and_then(|status| status.load_balancer.as_ref()?.ingress.as_ref());
        let mut vips = vec![];
        for ingress in ingress.into_iter().flatten() {
            let Some(ip) = ingress.ip.as_ref().filter(|ip| !ip.is_empty()) else { continue };
            match ingress.ip_mode.as_deref() {
                None | Some("VIP") => vips.push(ip),
                Some(mode) => self.left.push(format!("{ip}: its ipMode is {mode}: the load balancer itself answers")),
            }
        }
        let (mut ranges, mut are_known) = (Vec::<IpNet>::new(), true);
        let texts = spec.load_balancer_source_ranges.iter().flatten().map(|text| text.trim());
        for text in texts.filter(|text| !text.is_empty()) {
            match text.parse() {
                Ok(range) => ranges.push(range),
                Err(_) => {
                    are_known = false;
                    self.problems.push(format!("loadBalancerSourceRanges: {text:?} is not a CIDR"));
                }
            }
        }
        for address in self.of_its_families(vips, "status.loadBalancer") {
            let family = Family::of(address);
            let of_family = || ranges.iter().filter(|range| Family::of(range.addr()) == family);
            let restricts = of_family().next().is_some() && of_family().all(|range| range.prefix_len() > 0);
            // A range that cannot be read may be all that keeps others out.
            if restricts || !are_known {
                self.restricted_ips.push(address);
                self.left.push(format!(
                    "{address}: loadBalancerSourceRanges says who may come, which the host path enforces"
                ));
            } else {
                self.load_balancer_ips.push(address);
            }
        }
    }

    fn port(&mut self, port: &core::ServicePort) {
        let name = port.name.as_deref().unwrap_or_default();
        let number = |number: i32| u16::try_from(number).ok().filter(|number| *number > 0);
        let protocol = match port.protocol.as_deref() {
            None | Some("TCP") => Protocol::Tcp,
            Some("UDP") => Protocol::Udp,
            Some(other) => {
                self.left.push(format!("port {} of {other}", port.port));
                return;
            }
        };
        let Some(on_addresses) = number(port.port) else {
            self.problems.push(format!("ports: {} is not a port", port.port));
            return;
        };
        if self.ports.iter().any(|port| *port.name == *name) {
            self.problems.push(format!("ports: the name {name:?} is there twice"));
            return;
        }
        let node_port = port.node_port.filter(|port| *port != 0);
        if let Some(wrong) = node_port.filter(|port| number(*port).is_none()) {
            self.problems.push(format!("ports: {wrong} is not a port"));
        }
        self.ports.push(Port {
            name: name.into(),
            protocol,
            port: on_addresses,
            node_port: node_port.and_then(number),
        });
    }

    /// kube-proxy has a proxy for each family, and a Service without a ClusterIP of a family is not there for that one.
    fn of_its_families<'a>(&mut self, texts: impl IntoIterator<Item = &'a String>, field: &str) -> Vec<IpAddr> {
        let mut addresses = vec![];
        for text in texts {
            match address::parse_reachable(text) {
                Some(address) if !self.has(Family::of(address)) => {
                    let family = Family::of(address);
                    self.left.push(format!("{address} of {field}: the Service has no {family} ClusterIP"));
                }
                Some(address) if !addresses.contains(&address) => addresses.push(address),
                Some(_) => {}
                None if text.trim().is_empty() => {}
                None => self.problems.push(format!("{field}: {text:?} is not an address by which others reach a host")),
            }
        }
        addresses
    }

    /// All addresses of its own.
    pub fn addresses(&self) -> impl Iterator<Item = &IpAddr> {
        self.cluster_ips.iter().chain(self.external_addresses())
    }

    /// Those that anybody can name.
    pub fn external_addresses(&self) -> impl Iterator<Item = &IpAddr> {
        self.external_ips.iter().chain(&self.load_balancer_ips)
    }

    /// Where it answers on them.
    pub fn external_places(&self) -> Vec<Place> {
        self.places(self.external_addresses())
    }

    /// Whether it is there in this family.
    pub fn has(&self, family: Family) -> bool {
        self.cluster_ips.iter().any(|address| Family::of(*address) == family)
    }

    /// Whether there is any other way to it than its ClusterIPs.
    pub fn is_accessible(&self, port: &Port) -> bool {
        port.node_port.is_some() || !self.external_ips.is_empty() || !self.load_balancer_ips.is_empty()
    }
}
