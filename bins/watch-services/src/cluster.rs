//! What is known of the cluster, and which parts of the service table follow from what has changed.

use std::{
    collections::{BTreeMap, HashMap},
    hash::{BuildHasher, BuildHasherDefault, DefaultHasher},
    mem,
    net::IpAddr,
};

use cluster_api::{
    Name,
    k8s_openapi::api::{core::v1 as core, discovery::v1 as discovery},
};
use common::object::Family;
use ipnet::IpNet;
use jiff::Timestamp;
use service_table as table;
use service_table::{Change, Claim, Line, Nodes, Refuse, ServiceTable};

use crate::{
    choose,
    map::{self, For},
    node::{Node, NodePortAddresses},
    places::{ByPlace, Reservations},
    problem::{Problem, Problems},
    service::{self, NotServed, Place, Reserved, Service},
    slice::{Ignored, Names, Slice},
};

/// What the table is to be like, apart from what the cluster says.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// The name of the node whose clients the table is for.
    pub node: String,
    /// On which of a node's addresses node ports answer.
    pub node_port_addresses: NodePortAddresses,
    /// Whether node ports answer on other nodes' addresses too.
    pub all_node_ports: bool,
}

/// Everything that is known, and what of it has been said.
#[derive(Debug)]
pub struct Cluster {
    clients: For,
    node_port_addresses: NodePortAddresses,
    names: Names,
    services: BTreeMap<Name, Known>,
    reserved: Reservations,
    /// The Services that name a place as an external address.
    external: ByPlace,
    /// The Service that each slice names.
    slices: HashMap<Name, Name>,
    nodes: BTreeMap<String, Node>,
    /// Services whose part of the table may not be as it was said.
    changed: BTreeMap<Name, Option<Timestamp>>,
    /// Whether what is known of nodes may not be as it was said.
    nodes_changed: bool,
    nodes_said: Nodes,
    /// Whether there may be other ClusterIPs than when [`Cluster::refuse_said`] was said.
    cluster_ips_changed: bool,
    refuse_said: Refuse,
    /// Triggers from before are of no account.
    since: Timestamp,
    problems: Problems,
}

/// What is known of a Service. There may be slices without it, and it without slices.
#[derive(Debug, Default)]
struct Known {
    service: Option<Service>,
    /// By name. Most Services have one or two.
    slices: Vec<(Box<str>, Slice)>,
    /// What was said of each of its ports: its name, and a hash.
    said: Vec<(Box<str>, u64)>,
    /// Which addresses it was said without, since other Services leave them to the host path; for a person.
    lacks: Vec<String>,
}

/// What is to be said of a Service now, after what was said of it before.
struct Said {
    services: Vec<table::Service>,
    before: Vec<(Box<str>, u64)>,
    /// See [`Known::lacks`].
    lacked: Vec<String>,
}

impl Known {
    fn services(&self, name: &Name, clients: &For) -> Vec<table::Service> {
        let slices = self.slices.iter().map(|(name, slice)| (&**name, slice));
        self.service.as_ref().map(|service| map::services(name, service, slices, clients)).unwrap_or_default()
    }

    fn set_slice(&mut self, name: &str, slice: Slice) {
        match self.slices.binary_search_by_key(&name, |(name, _)| name) {
            Ok(index) => self.slices[index].1 = slice,
            Err(index) => {
                self.slices.reserve_exact(1);
                self.slices.insert(index, (name.into(), slice));
            }
        }
    }

    /// What is to be said of it now, noted as said.
    fn say(&mut self, name: &Name, clients: &For, reserved: &Reservations, problems: &mut Problems) -> Said {
        let mut services = self.services(name, clients);
        let lacked = mem::replace(&mut self.lacks, withhold(reserved, name, &mut services));
        if lacked != self.lacks {
            let object = format!("{}, its addresses", title("Service", name));
            problems.note(object, Problem::of_addresses(name, self.lacks.clone()));
        }
        let said = services.iter().map(|service| (service.port_name.as_str().into(), hash(service))).collect();
        Said { before: mem::replace(&mut self.said, said), lacked, services }
    }

    /// What of that was not said before, one line for each port.
    fn changes(&self, name: &Name, said: Said, triggered: Option<Timestamp>) -> Vec<Line> {
        let now = said.services.into_iter().zip(&self.said).filter(|(_, own)| !said.before.contains(own));
        let set = now.map(|(service, _)| Change::Set(Box::new(service)));
        let is_gone = |port: &str| self.said.iter().all(|(own, _)| **own != *port);
        let gone = said.before.iter().filter(|(port, _)| is_gone(port)).map(|(port, _)| {
            let (namespace, service) = (name.namespace.clone(), name.name.clone());
            Change::Remove(table::ServiceName { namespace, name: service, port_name: port.to_string() })
        });
        // What is to be gone comes last: another port may take its address over, and that is to have no gap.
        let mut lines: Vec<_> = set.chain(gone).map(|change| Line { change, triggered: None }).collect();
        // With it the Service is as it is to be: kube-proxy counts each change once too, when all of it was applied.
        if let Some(last) = lines.last_mut() {
            last.triggered = triggered.map(|time| time.to_string());
        }
        lines
    }
}

/// Takes out of a Service's ports the addresses that another Service leaves to the host path. Returns what was taken, for a person.
fn withhold(reserved: &Reservations, name: &Name, services: &mut [table::Service]) -> Vec<String> {
    let external = services.iter().flat_map(|service| {
        let addresses = service.external_ips.iter().chain(&service.load_balancer_ips);
        addresses.map(move |address| (*address, service.port, service.protocol))
    });
    let external: Vec<Place> = external.collect();
    let mut taken = vec![];
    for (owner, reserved) in reserved.of_others(name, &external) {
        for service in &mut *services {
            let (port, protocol) = (service.port, service.protocol);
            let own = Claim::new(true, service.created.as_deref().and_then(table::created), name);
            let is_owners = |address: &mut IpAddr| {
                reserved.claim(owner, &(*address, port, protocol)).is_some_and(|claim| claim < own)
            };
            for addresses in [&mut service.external_ips, &mut service.load_balancer_ips] {
                taken.extend(addresses.extract_if(.., is_owners).map(|address| {
                    format!("{address} port {port} belongs to Service {owner}, which leaves it to the host path")
                }));
            }
        }
    }
    taken
}

/// An object's name for a person.
fn title(kind: &str, name: &Name) -> String {
    format!("{kind} {name}")
}

fn hash(service: &table::Service) -> u64 {
    BuildHasherDefault::<DefaultHasher>::default().hash_one(service)
}

/// How many there are of what is known.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Counts {
    /// Services that have a place in the table.
    pub services: usize,
    /// EndpointSlices.
    pub slices: usize,
    /// Endpoints, each once a slice.
    pub endpoints: usize,
}

impl Cluster {
    /// Nothing is known yet.
    pub fn new(settings: Settings) -> Self {
        let locality = choose::Locality { node: settings.node, zone: None };
        Self {
            clients: For { locality, all_node_ports: settings.all_node_ports },
            node_port_addresses: settings.node_port_addresses,
            names: Names::default(),
            services: BTreeMap::new(),
            reserved: Reservations::default(),
            external: ByPlace::default(),
            slices: HashMap::new(),
            nodes: BTreeMap::new(),
            changed: BTreeMap::new(),
            nodes_changed: false,
            since: Timestamp::now(),
            nodes_said: Nodes::default(),
            cluster_ips_changed: false,
            refuse_said: Refuse::default(),
            problems: Problems::default(),
        }
    }

    /// A Service is new or has changed.
    pub fn service(&mut self, object: &core::Service) {
        let name = Name::of(object);
        match Service::of(object) {
            Ok(service) => {
                self.reserve(&name, service.reserved());
                self.problems.note(title("Service", &name), Problem::of(object, service.problems.clone()));
                let known = &mut self.services.entry(name.clone()).or_default().service;
                let before = known.as_ref().map_or(&[][..], |before| &before.cluster_ips);
                self.cluster_ips_changed |= before != service.cluster_ips;
                let before = known.as_ref().map(Service::external_places).unwrap_or_default();
                self.external.replace(&name, &before, &service.external_places());
                *known = Some(service);
                self.touch(name, None);
            }
            Err(NotServed::HostPath(reserved)) => {
                self.service_gone(&name);
                self.reserve(&name, reserved);
            }
            Err(_) => self.service_gone(&name),
        }
    }

    /// Notes what a Service leaves to the host path. Others that name any of it are to be said again.
    fn reserve(&mut self, name: &Name, reserved: Reserved) {
        for claimant in self.external.at(&self.reserved.replace(name, reserved)) {
            self.changed.entry(claimant.clone()).or_default();
        }
    }

    /// A Service is gone.
    pub fn service_gone(&mut self, name: &Name) {
        self.reserve(name, Reserved::default());
        self.problems.note(title("Service", name), None);
        if let Some(known) = self.services.get_mut(name) {
            if let Some(service) = known.service.take() {
                self.cluster_ips_changed = true;
                self.external.replace(name, &service.external_places(), &[]);
            }
            self.touch(name.clone(), None);
        }
    }

    /// An EndpointSlice is new or has changed.
    pub fn slice(&mut self, object: &discovery::EndpointSlice) {
        let name = Name::of(object);
        let (service, mut slice) = match Slice::of(object, &mut self.names) {
            Ok(slice) => slice,
            Err(ignored) => {
                self.take_out(&name);
                let texts = (ignored == Ignored::NoService).then(|| ignored.to_string()).into_iter().collect();
                return self.problems.note(title("EndpointSlice", &name), Problem::of(object, texts));
            }
        };
        let owner = Name { namespace: name.namespace.clone(), name: service };
        // It may have been another Service's.
        if self.slices.get(&name).is_some_and(|before| *before != owner) {
            self.take_out(&name);
        }
        let problem = Problem::of(object, mem::take(&mut slice.problems));
        let problem = problem.map(|problem| Problem { service: Some(service::reference(&owner)), ..problem });
        self.problems.note(title("EndpointSlice", &name), problem);
        let triggered = slice.triggered.take().filter(|triggered| *triggered > self.since);
        self.slices.insert(name.clone(), owner.clone());
        self.services.entry(owner.clone()).or_default().set_slice(&name.name, slice);
        self.touch(owner, triggered);
    }

    /// An EndpointSlice is gone.
    pub fn slice_gone(&mut self, name: &Name) {
        self.problems.note(title("EndpointSlice", name), None);
        self.take_out(name);
    }

    /// A slice is no Service's any more. What is wrong with it is as it was.
    fn take_out(&mut self, name: &Name) {
        let Some(owner) = self.slices.remove(name) else { return };
        if let Some(known) = self.services.get_mut(&owner) {
            known.slices.retain(|(slice, _)| **slice != *name.name);
            self.touch(owner, None);
        }
    }

    /// A Node is new or has changed. Nodes other than the own one count only where their node ports are served.
    pub fn node(&mut self, object: &core::Node) {
        let name = object.metadata.name.clone().unwrap_or_default();
        let own = name == self.clients.locality.node;
        if !own && !self.clients.all_node_ports {
            return;
        }
        let mut node = Node::of(object);
        self.problems.note(format!("Node {name}"), Problem::of(object, mem::take(&mut node.problems)));
        if own {
            self.zone(node.zone.take());
        }
        node.zone = None;
        self.nodes_changed = true;
        self.nodes.insert(name, node);
    }

    /// A Node is gone.
    pub fn node_gone(&mut self, name: &str) {
        self.problems.note(format!("Node {name}"), None);
        if self.nodes.remove(name).is_none() {
            return;
        }
        self.nodes_changed = true;
        if name == self.clients.locality.node {
            self.zone(None);
        }
    }

    /// Where hints count, who is reached depends on it.
    fn zone(&mut self, zone: Option<String>) {
        if self.clients.locality.zone != zone {
            self.clients.locality.zone = zone;
            for name in self.services.keys() {
                self.changed.entry(name.clone()).or_default();
            }
        }
    }

    /// Of several triggers the first counts: it has waited longest.
    fn touch(&mut self, name: Name, triggered: Option<Timestamp>) {
        let known = self.changed.entry(name).or_default();
        *known = [*known, triggered].into_iter().flatten().min();
    }

    /// An object cannot be read at all.
    pub fn refuse(&mut self, object: &str, why: &str) {
        let unread = core::ObjectReference::default();
        let problem = Problem { reason: "Invalid".into(), texts: vec![why.to_owned()], object: unread, service: None };
        self.problems.note(object.to_owned(), Some(problem));
    }

    /// What is wrong, by object.
    pub const fn problems(&self) -> &BTreeMap<String, Problem> {
        self.problems.all()
    }

    /// How many there are.
    pub fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for known in self.services.values() {
            counts.services += usize::from(known.service.is_some());
            counts.slices += known.slices.len();
            counts.endpoints += known.slices.iter().map(|(_, slice)| slice.endpoints.len()).sum::<usize>();
        }
        counts
    }

    /// Says so if the Node is not known for whose clients the table is.
    pub fn warn_without_node(&self) {
        let node = &self.clients.locality.node;
        if !self.nodes.contains_key(node) {
            log::warn!(
                "there is no Node {node:?} (--node): no node ports and no zone; local endpoints are those that name it"
            );
        }
    }

    /// For whom the table is.
    pub const fn clients(&self) -> &For {
        &self.clients
    }

    /// Whether anything has to be said.
    pub fn has_changed(&self) -> bool {
        !self.changed.is_empty() || self.nodes_changed
    }

    fn nodes(&self) -> Nodes {
        let addresses = |node| self.node_port_addresses.of(node);
        let own = &self.clients.locality.node;
        let others = self.nodes.iter().filter(|(name, _)| *name != own);
        Nodes {
            node_addresses: self.nodes.get(own).map(addresses).unwrap_or_default(),
            nodes: others.map(|(name, node)| table::Node { name: name.clone(), addresses: addresses(node) }).collect(),
        }
    }

    /// Where no kube-proxy refuses ports that no Service has: the narrowest CIDR of each family that has all ClusterIPs.
    fn cluster_cidrs(&self) -> Refuse {
        if !self.clients.all_node_ports {
            return Refuse::default();
        }
        let mut cidrs: Vec<IpNet> = vec![];
        let services = self.services.values().filter_map(|known| known.service.as_ref());
        for address in services.flat_map(|service| &service.cluster_ips) {
            let is_of_family = |cidr: &&mut IpNet| Family::same(cidr.addr(), *address);
            match cidrs.iter_mut().find(is_of_family) {
                Some(cidr) => {
                    while let Some(wider) = cidr.supernet().filter(|_| !cidr.contains(address)) {
                        *cidr = wider;
                    }
                }
                None => cidrs.push(IpNet::from(*address)),
            }
        }
        cidrs.sort_unstable();
        Refuse(cidrs)
    }

    /// The whole table. From then on [`Cluster::changes`] says what is not as it was here.
    pub fn table(&mut self) -> ServiceTable {
        self.changed.clear();
        self.nodes_changed = false;
        self.nodes_said = self.nodes();
        let Nodes { node_addresses, nodes } = self.nodes_said.clone();
        self.cluster_ips_changed = false;
        self.refuse_said = self.cluster_cidrs();
        let refuse = self.refuse_said.clone();
        let mut table = ServiceTable { node_addresses, nodes, refuse, services: vec![] };
        for (name, known) in &mut self.services {
            let said = known.say(name, &self.clients, &self.reserved, &mut self.problems);
            table.services.extend(said.services);
        }
        table
    }

    /// The Services with this address are to be said again, whether they have changed or not.
    pub fn forget(&mut self, address: &IpAddr) {
        for (name, known) in &mut self.services {
            if known.service.as_ref().is_some_and(|service| service.addresses().any(|own| own == address)) {
                known.said.iter_mut().for_each(|(_, hash)| *hash = !*hash);
                self.changed.entry(name.clone()).or_default();
            }
        }
    }

    /// What is not as it was said, one line for each port of a Service, by name. From then on it has been said.
    pub fn changes(&mut self) -> Vec<Line> {
        let mut lines = vec![];
        if mem::take(&mut self.nodes_changed) {
            let nodes = self.nodes();
            if nodes != self.nodes_said {
                self.nodes_said = nodes.clone();
                lines.push(Line { change: Change::Nodes(nodes), triggered: None });
            }
        }
        if mem::take(&mut self.cluster_ips_changed) {
            let refuse = self.cluster_cidrs();
            if refuse != self.refuse_said {
                self.refuse_said = refuse.clone();
                lines.push(Line { change: Change::Refuse(refuse), triggered: None });
            }
        }
        // Who does not get an address any more is said before the Service that leaves it to the host path, and who gets one after it.
        let (mut usual, mut last) = (vec![], vec![]);
        for (name, triggered) in mem::take(&mut self.changed) {
            let Some(known) = self.services.get_mut(&name) else { continue };
            let said = known.say(&name, &self.clients, &self.reserved, &mut self.problems);
            let turn = if said.lacked.iter().any(|address| !known.lacks.contains(address)) {
                &mut last
            } else if known.lacks.is_empty() {
                &mut usual
            } else {
                &mut lines
            };
            turn.extend(known.changes(&name, said, triggered));
            if known.service.is_none() && known.slices.is_empty() {
                self.services.remove(&name);
            }
        }
        lines.into_iter().chain(usual).chain(last).collect()
    }
}
