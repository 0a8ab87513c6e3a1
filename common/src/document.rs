//! The pod document: the one JSON envelope that every tool reads and writes.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
};

use ipnet::IpNet;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    failure::{Code, Failure},
    mac::Mac,
    netns::NetnsId,
    numbers::Numbers,
    object::{Family, Netns, Object, Operation, Placed, Route, is_link_local},
    result::{self, CniResult, CniVersion},
    settings::Settings,
};

/// Version of the document's form.
pub const VERSION: u32 = 1;

/// What the tools know about one attachment (a container and one of its interfaces).
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PodDocument {
    /// [`VERSION`].
    pub version: u32,
    /// What the container runtime asked for.
    pub request: Request,
    /// Every setting, resolved.
    #[serde(default)]
    pub settings: Settings,
    /// From `detect-mode` in ADD: which network namespace `CNI_NETNS` names. The path may name another one later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub netns: Option<NetnsId>,
    /// From `detect-mode`: how this interface is served.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
    /// From `detect-mode`, in DEL from `cni-request`: what the pod's other attachments ask for of what all of them share.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub others: Vec<Share>,
    /// From `detect-mode`: which table has the routes of which interface, where the pod has several.
    #[serde(default)]
    pub routing: Routing,
    /// From `detect-mode`: the numbers that others might use too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub numbers: Option<Numbers>,
    /// From `set-rules`: where its rules stand among those of others.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub places: Vec<RulePlace>,
    /// From `sync-cidrs`: what must be routed through the node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cidrs: Option<Cidrs>,
    /// From `mk-veth`: the link to the node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub veth: Option<VethPair>,
    /// The operations done so far, in order.
    #[serde(default)]
    pub applied: Vec<Operation>,
    /// What went wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Failure>,
}

/// A CNI operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum Command {
    /// Add container to network.
    Add,
    /// Remove container from network.
    Del,
    /// Check that the container's networking is as expected.
    Check,
    /// Clean up what belongs to attachments that are gone.
    Gc,
    /// Can ADD be served?
    Status,
    /// Which CNI versions are supported?
    Version,
}

impl Command {
    /// Whether the command takes things away, so that nothing may stop it.
    pub fn tears_down(self) -> bool {
        matches!(self, Self::Del | Self::Gc)
    }

    /// The first CNI version that has it.
    pub const fn since(self) -> CniVersion {
        match self {
            Self::Add | Self::Del | Self::Version => CniVersion::V0_3_0,
            Self::Check => CniVersion::V0_4_0,
            Self::Gc | Self::Status => CniVersion::V1_1_0,
        }
    }
}

/// What the container runtime asked for (CNI specification 1.1.0, section 2).
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Request {
    /// `CNI_COMMAND`.
    pub command: Command,
    /// `CNI_CONTAINERID`; empty where the command has none.
    #[serde(default)]
    pub container_id: String,
    /// `CNI_NETNS`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub netns: Option<PathBuf>,
    /// `CNI_IFNAME`; empty where the command has none.
    #[serde(default)]
    pub ifname: String,
    /// `CNI_ARGS`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub args: Option<String>,
    /// The plugin configuration as received, prevResult included.
    pub config: Value,
}

/// How an interface is served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Mode {
    /// The mode that applies.
    #[serde(rename = "mode")]
    pub kind: ModeKind,
    /// Whether this is the pod's first interface, `podDefaultCniNic`.
    pub first: bool,
    /// The interface.
    pub nic: Nic,
    /// The node's addresses, the one that it would use towards the pod first.
    pub node_addresses: Vec<IpAddr>,
    /// The link that leads from the pod into the node.
    pub uplink: Uplink,
    /// Overlay mode: where the node has the pod's overlay interface, one entry of each family at most.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub host_side: Vec<HostSide>,
}

/// What an attachment asks for of what it shares with the pod's others. Each plan is made for the shares of all, so that it
/// is the same whichever attachment it is made for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Share {
    /// The interface's name.
    pub ifname: String,
    /// As [`Mode::opens_uplink`] says it.
    pub opens_uplink: bool,
    /// What must be routed through the node.
    pub cidrs: Cidrs,
    /// The settings of its network.
    pub settings: Settings,
    /// The default routes that prevResult has for it: somebody may have taken them away since.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub promised: Vec<Route>,
    /// The gateways that prevResult has for its addresses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gateways: Vec<IpAddr>,
    /// As [`Nic::refused`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<String>")]
    pub refused: Vec<IpNet>,
    /// How its ADD changed `rp_filter` of what is not its interface's alone.
    pub applied: Vec<Operation>,
}

/// The link that leads from the pod into the node: the veth pair or the overlay interface.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Uplink {
    /// Its name in the pod.
    pub dev: String,
    /// The pod's address to use on it, one of each family at most.
    pub sources: Vec<IpAddr>,
    /// The next hop on it, one of each family at most; none where the link itself is the way.
    pub gateways: Vec<IpAddr>,
}

/// The node's link to the pod's overlay interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HostSide {
    /// The overlay interface's address.
    pub address: IpAddr,
    /// Name of the node's link to it.
    pub dev: String,
}

/// Which table has the routes of which interface, where a pod has several. The main table keeps every route but the default routes of interfaces
/// that give way, so that the pod's own connections find every neighbour.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Routing {
    /// The tables of single interfaces, used for packets from their addresses.
    pub tables: Vec<NicTable>,
    /// The default routes that the main table is to have, as far as this attachment decides it. In DEL: gets back.
    pub stays: Vec<Route>,
    /// The default routes that have to leave the main table.
    pub leaves: Vec<Route>,
}

/// A table with all routes of one interface, used for packets from its addresses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NicTable {
    /// The interface's name.
    pub nic: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// The table's number.
    pub table: u32,
    /// The routes.
    pub routes: Vec<Route>,
}

/// The place of our rules in a namespace. Where there are several, they have this priority and the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RulePlace {
    /// Where.
    pub netns: Netns,
    /// For which packets.
    pub family: Family,
    /// The first one's priority.
    pub priority: u32,
}

/// The mode that applies to an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ModeKind {
    /// The pod reaches the node through a veth pair.
    Underlay,
    /// The pod reaches the node through its overlay interface.
    Overlay,
    /// Underpass leaves the pod alone.
    Disable,
}

/// The interface that the CNI call is for, as it is in the pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Nic {
    /// Its name.
    pub name: String,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// The MAC address that the plugins before this one gave to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub mac: Option<Mac>,
    /// Its addresses, each once: those that a packet can have as its source.
    #[schemars(with = "Vec<String>")]
    pub addresses: Vec<IpNet>,
    /// Those that it had at ADD, where the plugins before this one gave it none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub found: Vec<IpAddr>,
    /// Those on it that are not the pod's, and that the node therefore does not lead to it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<String>")]
    pub refused: Vec<IpNet>,
}

/// What must be routed through the node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Cidrs {
    /// The cluster's Services.
    #[serde(default)]
    #[schemars(with = "Vec<String>")]
    pub service: Vec<IpNet>,
    /// The cluster's overlay pods.
    #[serde(default)]
    #[schemars(with = "Vec<String>")]
    pub pod: Vec<IpNet>,
    /// Whatever else the user wants to lead through the node.
    #[serde(default)]
    #[schemars(with = "Vec<String>")]
    pub hijack: Vec<IpNet>,
}

/// The veth pair of a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VethPair {
    /// Name of the node's end.
    pub host: String,
    /// MAC address of the node's end.
    #[schemars(with = "String")]
    pub host_mac: Mac,
    /// Name of the pod's end.
    pub pod: String,
    /// MAC address of the pod's end.
    #[schemars(with = "String")]
    pub pod_mac: Mac,
    /// MTU of both ends in bytes.
    pub mtu: u32,
}

impl PodDocument {
    /// A document with a request and settings, as `cni-request` starts it.
    pub fn new(request: Request, settings: Settings) -> Self {
        let (netns, mode, others, routing, numbers, places, cidrs, veth, applied, error) = Default::default();
        Self {
            version: VERSION,
            request,
            settings,
            netns,
            mode,
            others,
            routing,
            numbers,
            places,
            cidrs,
            veth,
            applied,
            error,
        }
    }

    /// Whether the path of the network namespace names another one than at ADD, as far as the document says which one that was.
    pub fn is_of_another(&self, netns: NetnsId) -> bool {
        self.netns.is_some_and(|of_add| of_add != netns)
    }

    /// The same, of what the path names now.
    pub fn has_lost_netns(&self) -> bool {
        let now = self.request.netns.as_deref().and_then(|path| NetnsId::at(path).ok());
        now.is_some_and(|now| self.is_of_another(now))
    }

    /// Whether Underpass leaves this interface alone, so that no tool looks at anything for it. In a teardown they look all the same.
    pub fn is_left_alone(&self) -> bool {
        let is_disabled = self.mode.as_ref().is_some_and(|mode| mode.kind == ModeKind::Disable);
        is_disabled && !self.request.command.tears_down()
    }

    /// What ADD removed or replaced and DEL puts back, last change first; of several changes of one thing, what was there
    /// before the first.
    pub fn put_back(&self, which: impl Fn(&Placed) -> bool) -> Vec<Placed> {
        let previous = |operation: &Operation| match operation {
            Operation::Add(_) => None,
            Operation::Delete(placed) | Operation::Replace { from: placed, .. } => Some(placed.clone()),
        };
        let all: Vec<_> = self.applied.iter().rev().filter_map(previous).filter(|placed| which(placed)).collect();
        let is_first = |(n, placed): &(usize, &Placed)| !all[n + 1..].iter().any(|earlier| placed.collides(earlier));
        all.iter().enumerate().filter(is_first).map(|(_, placed)| placed.clone()).collect()
    }

    /// What the pod's attachments ask for, this one first. In a teardown this one asks for nothing any more.
    pub fn shares(&self) -> impl Iterator<Item = Share> + '_ {
        let own = Some(self).filter(|document| !document.request.command.tears_down()).and_then(Share::of);
        own.into_iter().chain(self.others.iter().cloned())
    }

    /// The interface's addresses: as `detect-mode` noted them, else as prevResult has them; none when both are lost.
    pub fn nic_addresses(&self) -> Vec<IpNet> {
        if let Some(mode) = &self.mode {
            return mode.nic.addresses.clone();
        }
        let previous = CniResult::previous(&self.request.config).unwrap_or_default();
        previous.ips_of(&self.request.ifname).map(|ip| ip.address).collect()
    }

    /// The MAC address that the interface is to get: `podMACPrefix` and the last four bytes of the first address that it was
    /// given, else of the first that it has; `None` to leave it.
    pub fn nic_mac(&self) -> Option<Mac> {
        let [a, b] = self.settings.pod_mac_prefix?;
        let previous = CniResult::previous(&self.request.config).unwrap_or_default();
        let given = previous.ips_of(&self.request.ifname).map(|ip| ip.address.addr());
        let mut addresses = given.chain(self.nic_addresses().iter().map(IpNet::addr).collect::<Vec<_>>());
        let (c, d, e, f) = match addresses.find(|address| !is_link_local(*address))? {
            IpAddr::V4(address) => address.octets().into(),
            IpAddr::V6(address) => {
                let [.., c, d, e, f] = address.octets();
                (c, d, e, f)
            }
        };
        Some(Mac([a, b, c, d, e, f]))
    }

    /// Whether an interface's default route of a family has left the main table for the interface's own: because another
    /// one's stays there or, where this attachment did not choose, because the interface is this further one.
    pub fn default_leaves(&self, nic: &str, family: Family) -> bool {
        let default = family.default_route();
        let own = self.routing.table_of(nic).is_some_and(|table| table.routes.iter().any(|r| r.destination == default));
        let mut stays = self.routing.stays.iter().filter(|route| route.destination == default).peekable();
        own && match stays.peek() {
            Some(_) => stays.all(|route| route.dev != nic),
            None => !self.is_first() && nic == self.request.ifname,
        }
    }

    /// Whether the interface is the pod's first.
    pub fn is_first(&self) -> bool {
        self.request.ifname == self.settings.pod_default_cni_nic
    }

    /// The numbers that apply.
    pub fn numbers(&self) -> Numbers {
        self.numbers.unwrap_or_else(|| Numbers::first_version(&self.settings))
    }

    /// The priority of our rules in a namespace; before `set-rules` has run, that of the first version.
    pub fn priority(&self, netns: Netns, family: Family) -> u32 {
        let place = self.places.iter().find(|place| (place.netns, place.family) == (netns, family));
        place.map_or(1000, |place| place.priority)
    }

    /// The mode section.
    ///
    /// # Errors
    /// When `detect-mode` did not run before.
    pub fn mode(&self) -> Result<&Mode, Failure> {
        self.mode.as_ref().ok_or_else(|| missing_section("mode", "detect-mode"))
    }

    /// The subnets that the interface is in: what is there is reached directly.
    pub fn subnets(&self) -> &[IpNet] {
        self.mode.as_ref().map(|mode| mode.nic.addresses.as_slice()).unwrap_or_default()
    }

    /// The cidrs section.
    ///
    /// # Errors
    /// When `sync-cidrs` did not run before.
    pub fn cidrs(&self) -> Result<&Cidrs, Failure> {
        self.cidrs.as_ref().ok_or_else(|| missing_section("cidrs", "sync-cidrs"))
    }

    /// The veth section.
    ///
    /// # Errors
    /// When `mk-veth` did not run before.
    pub fn veth(&self) -> Result<&VethPair, Failure> {
        self.veth.as_ref().ok_or_else(|| missing_section("veth", "mk-veth"))
    }
}

fn missing_section(section: &str, tool: &str) -> Failure {
    Failure::new(Code::Decoding, format!("the document has no section {section:?}"))
        .details(format!("run {tool} before this tool"))
}

impl Request {
    /// The sandbox's path, or an error that says that CNI_NETNS is missing.
    ///
    /// # Errors
    /// When there is none.
    pub fn netns(&self) -> Result<&Path, Failure> {
        let missing = || Failure::new(Code::InvalidEnvironment, "CNI_NETNS is not set");
        self.netns.as_deref().ok_or_else(missing)
    }

    /// The pod, namespace and name, that the runtime names in `CNI_ARGS`: `K8S_POD_NAMESPACE=default;K8S_POD_NAME=web`.
    pub fn pod(&self) -> Option<(&str, &str)> {
        let pairs = || self.args.as_deref().unwrap_or_default().split(';').filter_map(|pair| pair.split_once('='));
        let value = |key: &str| pairs().find(|(name, value)| *name == key && !value.is_empty()).map(|(_, value)| value);
        Some((value("K8S_POD_NAMESPACE")?, value("K8S_POD_NAME")?))
    }

    /// `containerID/ifname`: what tells one attachment from another.
    pub fn attachment(&self) -> String {
        format!("{}/{}", self.container_id, self.ifname)
    }

    /// Whether a GC is to keep an attachment, `containerID/ifname`.
    pub fn is_valid_attachment(&self, attachment: &str) -> bool {
        let list = self.config.get("cni.dev/valid-attachments").and_then(Value::as_array).into_iter().flatten();
        let part = |entry: &Value, key| entry.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        list.map(|entry| format!("{}/{}", part(entry, "containerID"), part(entry, "ifname")))
            .any(|valid| valid == attachment)
    }

    /// The network's name, empty where the configuration has none.
    pub fn network(&self) -> &str {
        self.config.get("name").and_then(Value::as_str).unwrap_or_default()
    }
}

impl Share {
    /// What an attachment with this document asks for; none where it is not served.
    pub fn of(document: &PodDocument) -> Option<Self> {
        let mode = document.mode.as_ref().filter(|mode| mode.kind != ModeKind::Disable)?;
        let ifname = document.request.ifname.clone();
        let of_nic = format!("/{ifname}/");
        let is_shared = |operation: &&Operation| match operation {
            Operation::Replace { from: Placed { netns: Netns::Pod, object: Object::Sysctl(sysctl) }, .. } => {
                sysctl.path.ends_with("/rp_filter") && !sysctl.path.contains(&of_nic)
            }
            _ => false,
        };
        let applied = document.applied.iter().filter(is_shared).cloned().collect();
        let (settings, cidrs) = (document.settings.clone(), document.cidrs.clone().unwrap_or_default());
        let result = CniResult::previous(&document.request.config).unwrap_or_default();
        let (mut promised, gateways) = (result.routes_of(&ifname), result.gateways_of(&ifname));
        promised.retain(|route| route.destination.prefix_len() == 0);
        let (opens_uplink, refused) = (mode.opens_uplink(), mode.nic.refused.clone());
        Some(Self { ifname, opens_uplink, cidrs, settings, promised, gateways, refused, applied })
    }

    /// Its interface's routers, as [`CniResult::routers_of`] has them.
    pub fn routers(&self) -> Vec<IpAddr> {
        result::routers(&self.gateways, &self.promised)
    }
}

impl Mode {
    /// Whether this attachment makes the pod's way into the node, rather than using one that is there.
    pub fn opens_uplink(&self) -> bool {
        match self.kind {
            ModeKind::Underlay => self.first,
            ModeKind::Overlay => true,
            ModeKind::Disable => false,
        }
    }

    /// The node's addresses that the pod can use, which needs an address of the same family.
    pub fn reachable_node_addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.node_addresses.iter().copied().filter(|address| self.uplink.source(Family::of(*address)).is_some())
    }

    /// The interface's addresses to which the node leads by a route of ours: in underlay mode, of the families that the pod's first
    /// interface has; in overlay mode, of those of which the node has a link to that.
    pub fn led_addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        let is_led = |address: &IpAddr| match self.kind {
            ModeKind::Underlay => self.uplink.source(Family::of(*address)).is_some(),
            ModeKind::Overlay => self.host_side.iter().any(|side| Family::same(side.address, *address)),
            ModeKind::Disable => false,
        };
        self.nic.addresses.iter().map(IpNet::addr).filter(is_led)
    }

    /// The node's addresses of a family.
    pub fn node_addresses(&self, family: Family) -> impl Iterator<Item = IpAddr> + '_ {
        self.node_addresses.iter().copied().filter(move |address| Family::of(*address) == family)
    }
}

impl Routing {
    /// The table that an interface has to itself.
    pub fn table_of(&self, nic: &str) -> Option<&NicTable> {
        self.tables.iter().find(|table| table.nic == nic)
    }

    /// The route by which an interface uses a next hop: its default route, where that is one of several.
    pub fn way(&self, nic: &str, gateway: Option<IpAddr>) -> Option<&Route> {
        let through = |route: &&Route| gateway.is_some() && route.gateway == gateway;
        let table = self.table_of(nic)?;
        table.routes.iter().filter(through).min_by_key(|route| route.destination.prefix_len())
    }
}

impl Uplink {
    /// The pod's address of a family.
    pub fn source(&self, family: Family) -> Option<IpAddr> {
        family.first(self.sources.iter().copied())
    }

    /// The next hop of a family.
    pub fn gateway(&self, family: Family) -> Option<IpAddr> {
        family.first(self.gateways.iter().copied())
    }
}

impl Cidrs {
    /// All of them, Services first.
    pub fn all(&self) -> impl Iterator<Item = IpNet> + '_ {
        self.service.iter().chain(&self.pod).chain(&self.hijack).copied()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_runtime_says_which_pod_it_is() {
        let request = |args: &str| -> Request {
            serde_json::from_value(json!({"command": "ADD", "args": args, "config": {}})).unwrap()
        };
        let named = request("IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0;K8S_POD_UID=1");
        assert_eq!(named.pod(), Some(("default", "web-0")));
        assert_eq!(request("IgnoreUnknown=1").pod(), None);
    }

    /// A pod's document for the interface `nic`; `own` has a default route in its table, those of `stays` are in the main one.
    fn routed(nic: &str, own: &[&str], stays: &[&str]) -> PodDocument {
        let default = |dev: &str| json!({"destination": "0.0.0.0/0", "gateway": "10.6.0.1", "dev": dev, "table": 254, "protocol": 3});
        let tables =
            own.iter().map(|nic| json!({"nic": nic, "addresses": [], "table": 8501, "routes": [default(nic)]}));
        let request = Request {
            command: Command::Add,
            container_id: "c".to_owned(),
            netns: None,
            ifname: nic.to_owned(),
            args: None,
            config: json!({}),
        };
        let mut document = PodDocument::new(request, Settings::default());
        let stays: Vec<_> = stays.iter().map(|dev| default(dev)).collect();
        let routing = json!({"tables": tables.collect::<Vec<_>>(), "stays": stays, "leaves": []});
        document.routing = serde_json::from_value(routing).unwrap();
        document
    }

    #[test]
    fn a_default_route_leaves_the_main_table_where_anothers_stays_or_nobody_chose_and_the_interface_is_this_further_one()
     {
        let leaves = |document: &PodDocument, nic: &str| document.default_leaves(nic, Family::Ipv4);
        let chosen = routed("net1", &["eth0", "net1"], &["eth0"]);
        assert!(leaves(&chosen, "net1"));
        assert!(!leaves(&chosen, "eth0"));
        let unchosen = routed("net1", &["eth0", "net1"], &[]);
        assert!(leaves(&unchosen, "net1"));
        assert!(!leaves(&unchosen, "eth0"));
        // The first interface moves nothing of its own; and what has no default route has none that leaves.
        assert!(!leaves(&routed("eth0", &["eth0"], &[]), "eth0"));
        assert!(!leaves(&routed("net1", &[], &["eth0"]), "net1"));
        assert!(!chosen.default_leaves("net1", Family::Ipv6));
    }

    #[test]
    fn a_path_that_names_another_network_namespace_than_at_add_is_known_by_its_inode() {
        let mut document = routed("eth0", &[], &[]);
        document.request.netns = Some(PathBuf::from("/proc/self/ns/net"));
        assert!(!document.has_lost_netns());
        let own = NetnsId::at(Path::new("/proc/self/ns/net")).unwrap();
        document.netns = Some(own);
        assert!(!document.has_lost_netns());
        document.netns = Some(NetnsId { inode: own.inode + 1, ..own });
        assert!(document.has_lost_netns());
        for none in ["/run/netns/no-such", "/proc/version"] {
            document.request.netns = Some(PathBuf::from(none));
            assert!(!document.has_lost_netns());
        }
    }

    #[test]
    fn the_mac_address_is_by_the_first_address_that_was_given_also_while_the_interface_has_lost_it() {
        let mac = |config: Value, addresses: &[&str]| {
            let nic = json!({"name": "eth0", "mtu": 1500, "addresses": addresses});
            let uplink = json!({"dev": "veth0", "sources": [], "gateways": []});
            let mode = json!({"mode": "underlay", "first": true, "nic": nic, "nodeAddresses": [], "uplink": uplink});
            let mut document = routed("eth0", &[], &[]);
            document.request.config = config;
            document.settings.pod_mac_prefix = Some([0x0a, 0x1b]);
            document.mode = serde_json::from_value(mode).unwrap();
            document.nic_mac().unwrap().to_string()
        };
        let given = json!({"prevResult": {"ips": [{"address": "fe80::7/64"}, {"address": "10.6.10.1/16"}, {"address": "fd00:6::1/64"}]}});
        assert_eq!(mac(given.clone(), &["10.6.10.1/16", "fd00:6::1/64"]), "0a:1b:0a:06:0a:01");
        assert_eq!(mac(given, &["fd00:6::1/64"]), "0a:1b:0a:06:0a:01");
        assert_eq!(mac(json!({"prevResult": {}}), &["10.6.10.2/16"]), "0a:1b:0a:06:0a:02");
    }
}
