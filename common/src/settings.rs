//! The settings of the plugin configuration, named as in Spiderpool's coordinator: resolved from the configuration,
//! then the cluster's defaults, then built-in defaults.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use ipnet::IpNet;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    failure::{Code, Failure},
    mac::Mac,
};

/// Every setting with the value that applies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Settings {
    /// Which way into the node.
    pub mode: ModeSetting,
    /// Name of the pod's first interface.
    pub pod_default_cni_nic: String,
    /// Name of the interface that keeps the default route.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod_default_route_nic: Option<String>,
    /// Whether routes move to tables of their own in pods with several interfaces.
    pub tune_pod_routes: bool,
    /// The Services' CIDRs; `null` when they are the cluster's business.
    #[serde(rename = "serviceCIDR", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Vec<String>>")]
    pub service_cidr: Option<Vec<IpNet>>,
    /// The overlay pods' CIDRs; `null` when they are the cluster's business.
    #[serde(rename = "overlayPodCIDR", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Vec<String>>")]
    pub overlay_pod_cidr: Option<Vec<IpNet>>,
    /// Whatever else goes through the node.
    #[serde(rename = "hijackCIDR")]
    #[schemars(with = "Vec<String>")]
    pub hijack_cidr: Vec<IpNet>,
    /// Further routes for the interface.
    pub policy_routes: Vec<PolicyRoute>,
    /// The node's routing table for pods, or the first one after it that is free.
    pub host_rule_table: u32,
    /// Link group of the node's ends of the veth pairs.
    pub link_group: u32,
    /// Whether overlay pods see the node's address for what pods send them.
    pub overlay_masquerade: bool,
    /// Whether the pod takes part in the socket path.
    pub socket_path: bool,
    /// The first of the pod's routing tables, or the first one after it that is free.
    pub pod_rule_table: u32,
    /// The place of our rules, if nobody else's are before.
    pub rule_priority: u32,
    /// The bit that marks connections and replies in the pod, if nobody else uses it.
    pub pod_mark: u32,
    /// `rp_filter` in the pod; `null` leaves it.
    #[serde(rename = "podRPFilter")]
    pub pod_rp_filter: Option<u8>,
    /// Transmit queue length of the interface; `null` leaves it.
    pub tx_queue_len: Option<u32>,
    /// First two bytes of the interface's MAC address.
    #[serde(rename = "podMACPrefix", skip_serializing_if = "Option::is_none")]
    pub pod_mac_prefix: Option<[u8; 2]>,
    /// An IPv4 link-local address for the pod's end of the veth pair; `null` for none.
    pub veth_link_address: Option<IpAddr>,
    /// MTU of the veth pair in bytes; the interface's own otherwise.
    #[serde(rename = "vethMTU", skip_serializing_if = "Option::is_none")]
    pub veth_mtu: Option<u32>,
    /// Whether ADD asks if another host has the pod's addresses.
    #[serde(rename = "detectIPConflict")]
    pub detect_ip_conflict: bool,
    /// Whether ADD asks if the gateway is there.
    pub detect_gateway: bool,
    /// How long these two ask.
    pub detect_options: DetectOptions,
    /// Where messages go.
    pub log_options: LogOptions,
}

/// The setting `mode`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ModeSetting {
    /// Find out.
    #[default]
    Auto,
    /// Always a veth pair.
    Underlay,
    /// Always the overlay interface.
    Overlay,
    /// Leave the pod alone.
    Disable,
}

/// One entry of `policyRoutes`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PolicyRoute {
    /// The destination.
    #[schemars(with = "String")]
    pub dst: IpNet,
    /// The next hop.
    pub gw: IpAddr,
}

/// `detectOptions`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DetectOptions {
    /// How many probes.
    pub retries: u32,
    /// Between two probes.
    pub interval: Duration,
    /// From the last probe to giving up.
    pub timeout: Duration,
}

/// `logOptions`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LogOptions {
    /// The least severe messages to write.
    pub log_level: String,
    /// A file to append to, besides standard error.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_file: Option<String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            mode: ModeSetting::Auto,
            pod_default_cni_nic: "eth0".to_owned(),
            pod_default_route_nic: None,
            tune_pod_routes: true,
            service_cidr: None,
            overlay_pod_cidr: None,
            hijack_cidr: vec![],
            policy_routes: vec![],
            host_rule_table: 500,
            link_group: 85,
            overlay_masquerade: false,
            socket_path: true,
            pod_rule_table: 8500,
            rule_priority: 85,
            pod_mark: 4096,
            pod_rp_filter: Some(0),
            tx_queue_len: None,
            pod_mac_prefix: None,
            veth_link_address: Some(IpAddr::V4(Ipv4Addr::new(169, 254, 200, 1))),
            veth_mtu: None,
            detect_ip_conflict: false,
            detect_gateway: false,
            detect_options: DetectOptions::default(),
            log_options: LogOptions::default(),
        }
    }
}

impl Default for DetectOptions {
    fn default() -> Self {
        Self { retries: 3, interval: Duration::from_millis(10), timeout: Duration::from_millis(100) }
    }
}

impl Default for LogOptions {
    fn default() -> Self {
        Self { log_level: "info".to_owned(), log_file: None }
    }
}

/// A setting for people: its name, its default, what is allowed and what it does.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// The key in the plugin configuration.
    pub key: &'static str,
    /// The built-in default.
    pub default: &'static str,
    /// What is allowed, as an error says it.
    pub allowed: &'static str,
    /// What it does.
    pub effect: &'static str,
}

/// All settings, in the order of the documentation.
pub const SETTINGS: &[Setting] = &[
    Setting {
        key: "mode",
        default: "auto",
        allowed: "auto, underlay, overlay or disable (also written disabled)",
        effect: "the way into the node: a veth pair, the pod's overlay interface, none, or whichever fits",
    },
    Setting {
        key: "podDefaultCniNic",
        default: "eth0",
        allowed: "an interface name",
        effect: "the pod's first interface",
    },
    Setting {
        key: "podDefaultRouteNic",
        default: "(the first interface)",
        allowed: "an interface name",
        effect: "the interface that keeps the default route in the main table",
    },
    Setting {
        key: "tunePodRoutes",
        default: "true",
        allowed: "true or false",
        effect: "whether each interface of a pod with several gets a routing table for packets from its addresses",
    },
    Setting {
        key: "serviceCIDR",
        default: "(from the cluster)",
        allowed: "a list of CIDRs",
        effect: "the Services that are reached through the node",
    },
    Setting {
        key: "overlayPodCIDR",
        default: "(from the cluster)",
        allowed: "a list of CIDRs",
        effect: "the overlay pods that are reached through the node",
    },
    Setting {
        key: "hijackCIDR",
        default: "[]",
        allowed: "a list of CIDRs or addresses",
        effect: "whatever else is reached through the node",
    },
    Setting {
        key: "policyRoutes",
        default: "[]",
        allowed: "a list of {\"dst\": CIDR or address, \"gw\": address} of one family each",
        effect: "further routes for the interface, in its own table and in the main one; none of a family of which it has no address",
    },
    Setting {
        key: "hostRuleTable",
        default: "500",
        allowed: "a routing table number from 1 to 4294967295 other than 253, 254 and 255",
        effect: "the node's routing table for pods, or the first one after it that nobody else uses",
    },
    Setting {
        key: "podRuleTable",
        default: "8500",
        allowed: "a routing table number from 1 to 4294967295 other than 253, 254 and 255",
        effect: "the first of the pod's routing tables, or the first one after it that nobody else uses",
    },
    Setting {
        key: "rulePriority",
        default: "85",
        allowed: "a number from 1 to 32765",
        effect: "the priority of the policy rules on the node and in the pod (there also the next number), or less, so that no rule of others gets ahead",
    },
    Setting {
        key: "podMark",
        default: "4096",
        allowed: "one bit of a mark: 1, 2, 4 and so on to 2147483648, as a number or as text such as 0x1000",
        effect: "the bit that marks connections from the node and their replies in the pod, or the first one that no rule of others compares",
    },
    Setting {
        key: "podRPFilter",
        default: "0",
        allowed: "a negative number (leave it), 0, 1 or 2",
        effect: "rp_filter in the pod",
    },
    Setting {
        key: "linkGroup",
        default: "85",
        allowed: "a link group number from 1 to 4294967294",
        effect: "the link group of the node's ends of the veth pairs; with overlayMasquerade the one after it",
    },
    Setting {
        key: "overlayMasquerade",
        default: "false",
        allowed: "true or false",
        effect: "whether what a pod sends through the node to overlay pods and hijackCIDR gets the node's address as source",
    },
    Setting {
        key: "socketPath",
        default: "true",
        allowed: "true or false",
        effect: "whether the pod's connections to Services are translated in the kernel's sockets, where the node does that; a pod's annotation underpass.io/socket-path comes first, and without it pods of a service mesh are left out",
    },
    Setting {
        key: "txQueueLen",
        default: "0",
        allowed: "a number of packets up to 4294967295; 0 or less leaves it",
        effect: "transmit queue length of the pod's interface",
    },
    Setting {
        key: "podMACPrefix",
        default: "\"\"",
        allowed: "two bytes of a unicast MAC address such as 0a:1b",
        effect: "MAC address of the pod's interface: this prefix, then the last four bytes of its address",
    },
    Setting {
        key: "vethLinkAddress",
        default: "169.254.200.1",
        allowed: "an IPv4 link-local address such as 169.254.200.1, or none",
        effect: "an address for the pod's end of the veth pair, to which a sidecar's REDIRECT leads what comes in by it (for IPv6 it has fe80::a9fe:c801)",
    },
    Setting {
        key: "vethMTU",
        default: "0",
        allowed: "a number of bytes from 68 to 65535, or 0 (the interface's own)",
        effect: "MTU of the veth pair",
    },
    Setting {
        key: "detectIPConflict",
        default: "false",
        allowed: "true or false",
        effect: "whether ADD fails when another host has one of the pod's addresses",
    },
    Setting {
        key: "detectGateway",
        default: "false",
        allowed: "true or false",
        effect: "whether ADD fails when the gateway does not answer",
    },
    Setting {
        key: "detectOptions",
        default: "{\"retries\": 3, \"interval\": \"10ms\", \"timeout\": \"100ms\"}",
        allowed: "retries (also written retry) from 1 to 100, or 0 (the default); interval and timeout as durations such as 100ms or 1.5s, up to 1m",
        effect: "how many probes these two send, the time between two, and the time after the last",
    },
    Setting {
        key: "logOptions",
        default: "{\"logLevel\": \"info\", \"logFile\": \"\"}",
        allowed: "logLevel error, warn, info or debug (panic and fatal mean error); logFile an absolute path; logMaxSize, logMaxAge and logMaxCount (not used) numbers",
        effect: "which messages are written, and to which file besides standard error",
    },
];

impl Settings {
    /// The link group of the node's end of a pod's veth pair, which says whether the pod is masqueraded.
    pub fn veth_group(&self) -> u32 {
        self.link_group + u32::from(self.overlay_masquerade)
    }

    /// Resolves every setting. A value that is not allowed leaves the default in place and adds a failure, so that a
    /// teardown can go on with what is left.
    pub fn resolve(config: &Value, cluster: &Value) -> (Self, Vec<Failure>) {
        let mut reader = Reader { sources: [config, cluster], failures: vec![] };
        let mut settings = Self::default();
        reader.read("mode", &mut settings.mode, parse_mode);
        reader.read("podDefaultCniNic", &mut settings.pod_default_cni_nic, interface_name);
        reader.read("podDefaultRouteNic", &mut settings.pod_default_route_nic, |v| interface_name(v).map(Some));
        reader.read("tunePodRoutes", &mut settings.tune_pod_routes, Value::as_bool);
        reader.read("serviceCIDR", &mut settings.service_cidr, |v| list(v, cidr).map(Some));
        reader.read("overlayPodCIDR", &mut settings.overlay_pod_cidr, |v| list(v, cidr).map(Some));
        reader.read("hijackCIDR", &mut settings.hijack_cidr, |v| list(v, cidr_or_address));
        reader.read("policyRoutes", &mut settings.policy_routes, |v| list(v, policy_route));
        reader.read("hostRuleTable", &mut settings.host_rule_table, routing_table);
        reader.read("linkGroup", &mut settings.link_group, |v| unsigned(v).filter(|n| !matches!(n, 0 | &u32::MAX)));
        reader.read("overlayMasquerade", &mut settings.overlay_masquerade, Value::as_bool);
        reader.read("socketPath", &mut settings.socket_path, Value::as_bool);
        reader.read("podRuleTable", &mut settings.pod_rule_table, routing_table);
        reader.read("rulePriority", &mut settings.rule_priority, |v| unsigned(v).filter(|n| (1..=32765).contains(n)));
        reader.read("podMark", &mut settings.pod_mark, mark_bit);
        reader.read("podRPFilter", &mut settings.pod_rp_filter, rp_filter);
        reader.read("txQueueLen", &mut settings.tx_queue_len, queue_length);
        reader.read("podMACPrefix", &mut settings.pod_mac_prefix, |v| mac_prefix(v).map(Some));
        reader.read("vethLinkAddress", &mut settings.veth_link_address, link_local);
        reader.read("vethMTU", &mut settings.veth_mtu, mtu);
        reader.read("detectIPConflict", &mut settings.detect_ip_conflict, Value::as_bool);
        reader.read("detectGateway", &mut settings.detect_gateway, Value::as_bool);
        reader.read("detectOptions", &mut settings.detect_options, detect_options);
        reader.read("logOptions", &mut settings.log_options, log_options);
        (settings, reader.failures)
    }
}

struct Reader<'a> {
    sources: [&'a Value; 2],
    failures: Vec<Failure>,
}

impl Reader<'_> {
    fn read<T>(&mut self, key: &str, target: &mut T, parse: impl Fn(&Value) -> Option<T>) {
        let set = |source: &&Value| source.get(key).filter(|value| !is_unset(value)).cloned();
        let Some(value) = self.sources.iter().find_map(set) else { return };
        match parse(&value) {
            Some(parsed) => *target = parsed,
            None => self.failures.push(refusal(key, &value)),
        }
    }
}

fn refusal(key: &str, value: &Value) -> Failure {
    let allowed = SETTINGS.iter().find(|setting| setting.key == key).map(|setting| setting.allowed);
    Failure::new(Code::InvalidConfiguration, format!("setting {key}: {value} is not allowed"))
        .details(format!("allowed: {}", allowed.unwrap_or_default()))
}

/// Spiderpool's configurations write what is not set as null, as an empty string or as an empty list.
fn is_unset(value: &Value) -> bool {
    value.is_null() || value.as_str() == Some("") || value.as_array().is_some_and(Vec::is_empty)
}

fn list<T>(value: &Value, parse: impl Fn(&Value) -> Option<T>) -> Option<Vec<T>> {
    value.as_array()?.iter().map(parse).collect()
}

fn parse_mode(value: &Value) -> Option<ModeSetting> {
    match value.as_str()? {
        "auto" => Some(ModeSetting::Auto),
        "underlay" => Some(ModeSetting::Underlay),
        "overlay" => Some(ModeSetting::Overlay),
        "disable" | "disabled" => Some(ModeSetting::Disable),
        _ => None,
    }
}

/// Whether the kernel and CNI take a name for an interface (`dev_valid_name`; CNI's `ValidateInterfaceName`).
pub fn is_interface_name(name: &str) -> bool {
    let forbidden = |c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control();
    (1..=15).contains(&name.len()) && name != "." && name != ".." && !name.contains(forbidden)
}

fn interface_name(value: &Value) -> Option<String> {
    value.as_str().filter(|name| is_interface_name(name)).map(str::to_owned)
}

/// Host bits are masked, as in Kubernetes and in Spiderpool's plugin.
fn network(text: &str) -> Option<IpNet> {
    let net: IpNet = text.trim().parse().ok()?;
    if net.trunc() != net {
        log::warn!("{net} has host bits, and is taken for {}", net.trunc());
    }
    Some(net.trunc())
}

fn cidr(value: &Value) -> Option<IpNet> {
    network(value.as_str()?).filter(|net| net.prefix_len() > 0)
}

fn network_or_address(value: &Value) -> Option<IpNet> {
    let text = value.as_str()?;
    text.trim().parse::<IpAddr>().ok().map(IpNet::from).or_else(|| network(text))
}

fn cidr_or_address(value: &Value) -> Option<IpNet> {
    network_or_address(value).filter(|net| net.prefix_len() > 0)
}

fn policy_route(value: &Value) -> Option<PolicyRoute> {
    let dst = network_or_address(value.get("dst")?)?;
    let gw: IpAddr = value.get("gw")?.as_str()?.trim().parse().ok()?;
    (dst.addr().is_ipv4() == gw.is_ipv4()).then_some(PolicyRoute { dst, gw })
}

fn unsigned(value: &Value) -> Option<u32> {
    value.as_u64()?.try_into().ok()
}

fn routing_table(value: &Value) -> Option<u32> {
    unsigned(value).filter(|table| !matches!(table, 0 | 253..=255))
}

fn rp_filter(value: &Value) -> Option<Option<u8>> {
    match value.as_i64()? {
        ..0 => Some(None),
        value @ 0..=2 => Some(u8::try_from(value).ok()),
        _ => None,
    }
}

fn queue_length(value: &Value) -> Option<Option<u32>> {
    match value.as_i64()? {
        ..=0 => Some(None),
        packets => u32::try_from(packets).ok().map(Some),
    }
}

fn mark_bit(value: &Value) -> Option<u32> {
    let hexadecimal = || u32::from_str_radix(value.as_str()?.strip_prefix("0x")?, 16).ok();
    unsigned(value).or_else(hexadecimal).filter(|mark| mark.is_power_of_two())
}

fn mac_prefix(value: &Value) -> Option<[u8; 2]> {
    let text = value.as_str()?.replace('-', ":");
    let Mac([first, second, ..]) = format!("{text}:00:00:00:00").parse().ok()?;
    (first & 1 == 0).then_some([first, second])
}

fn link_local(value: &Value) -> Option<Option<IpAddr>> {
    match value.as_str()? {
        "none" => Some(None),
        text => text.parse().ok().filter(Ipv4Addr::is_link_local).map(|address| Some(IpAddr::V4(address))),
    }
}

fn mtu(value: &Value) -> Option<Option<u32>> {
    match unsigned(value)? {
        0 => Some(None),
        mtu @ 68..=65535 => Some(Some(mtu)),
        _ => None,
    }
}

/// A duration as Go's `time.ParseDuration` takes it: numbers with units, one after another.
fn duration(value: &Value) -> Option<Duration> {
    let text = value.as_str()?.trim_start_matches('+');
    let (mut rest, mut seconds) = (text, 0.0);
    while !rest.is_empty() && text != "0" {
        let (number, after) = rest.split_at(rest.find(|c: char| !c.is_ascii_digit() && c != '.')?);
        let (unit, after) = after.split_at(after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len()));
        let unit = match unit {
            "ns" => 1e-9,
            "us" | "\u{b5}s" | "\u{3bc}s" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        seconds += number.parse::<f64>().ok()? * unit;
        rest = after;
    }
    let duration = Duration::try_from_secs_f64(seconds).ok().filter(|_| !text.is_empty())?;
    (duration <= Duration::from_secs(60)).then_some(duration)
}

fn detect_options(value: &Value) -> Option<DetectOptions> {
    let mut options = DetectOptions::default();
    for (key, value) in value.as_object()?.iter().filter(|(_, value)| !is_unset(value)) {
        match key.as_str() {
            // Spiderpool's configurations write 0 for what is not set.
            "retries" | "retry" if value.as_u64() == Some(0) => {}
            "retries" | "retry" => options.retries = unsigned(value).filter(|n| *n <= 100)?,
            "interval" => options.interval = duration(value)?,
            "timeout" => options.timeout = duration(value)?,
            _ => {}
        }
    }
    Some(options)
}

fn log_options(value: &Value) -> Option<LogOptions> {
    let mut options = LogOptions::default();
    let fields: BTreeMap<_, _> = value.as_object()?.iter().filter(|(_, value)| !is_unset(value)).collect();
    for (key, value) in fields {
        match key.as_str() {
            "logLevel" => {
                let level = value.as_str()?.to_ascii_lowercase();
                options.log_level = match level.as_str() {
                    "warning" => "warn".to_owned(),
                    "fatal" | "panic" => "error".to_owned(),
                    "error" | "warn" | "info" | "debug" => level,
                    _ => return None,
                };
            }
            "logFile" => options.log_file = Some(value.as_str().filter(|path| path.starts_with('/'))?.to_owned()),
            // Spiderpool's rotation settings: who reads the file rotates it.
            "logMaxSize" | "logMaxAge" | "logMaxCount" => {
                unsigned(value)?;
            }
            _ => {}
        }
    }
    Some(options)
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, env, fs, path::Path};

    use serde_json::json;

    use super::*;

    const INTRODUCTION: &str = "\
# Settings

Keys of the plugin configuration, named as in Spiderpool's coordinator. What a configuration leaves out, sets to null, or
sets to an empty string or list, the cluster's defaults decide, else the default below. Keys that are not listed are ignored.

| Setting | Default | Allowed | Effect |
| --- | --- | --- | --- |
";
    const ADDRESSES: &str = "
## Which address an overlay pod sees

Through a Service on the host path, the node's, for kube-proxy masquerades. Otherwise the pod's own, on its node and on others,
over every protocol: a network policy's `ipBlock` is about the pod. From another node its answer goes straight over the network;
the pod's node lets off connection tracking what it therefore cannot follow, and what it can follow it tracks. That costs the
node two nftables rules, one for each family's CIDR, and a packet the time of a comparison.

With `overlayMasquerade` it is the node's address everywhere, and a policy takes the pod for its node (many a CNI always lets a
node in). It is for overlays whose tunnels drop IPv4 packets that come from no overlay pod (`rp_filter` 1 on the tunnel), and for
`podRPFilter` 1. It needs overlay pods that are masqueraded towards the underlay in turn (natOutgoing and its like): an answer to
one that is not would be masqueraded as well. It needs Linux 5.7.
";
    const NETWORKS: &str = "
A CIDR of length 0 is not allowed, for the pod keeps its own default route. To lead all through the node, name both halves:
`hijackCIDR: [\"0.0.0.0/1\", \"128.0.0.0/1\", \"::/1\", \"8000::/1\"]`.

## Where the networks of a pod differ

Each interface has what its own network's configuration says, and so has its routing table: `serviceCIDR`, `overlayPodCIDR`,
`hijackCIDR` and `policyRoutes`. What the interfaces of a pod share goes by all of its networks, whichever comes last:

* The CIDRs in the main table, for connections of the pod's own, are those of the first interface's network; in overlay mode those
  of all further interfaces' networks together.
* `rp_filter` of `all`, of `default` and of the way into the node is the least `podRPFilter`, for of `all` and an interface's own
  the kernel takes the greater.
* Of several interfaces that `podDefaultRouteNic` names and that are there, that of the last interface's network counts.

In overlay mode the node and a further interface's address reach each other by the overlay interface. An overlay that checks the addresses
from which a pod sends drops that: [a packet's way](concepts.md#overlay-mode-the-first-interface-is-an-overlays-a-further-one-is-on-the-underlay).
";
    const CLUSTER: &str = "
## podCIDRType

This one is not the plugin's: the ConfigMap `underpass` or a SpiderCoordinator has it, and the node agent finds the cluster's CIDRs
by it. `auto` decides by the node's CNI configuration; `cluster`, `calico` and `cilium` say where the overlay pods' CIDRs are.

With `none` neither these nor the Services' CIDRs are looked for, and no route to them is put into a pod; those of pods that run
are taken away. The veth pair and the routes between a pod and its node stay: probes work. It is for nodes on which Services are
translated in the sockets. What the sockets do not translate, as in a pod with `socketPath` false, leaves by the pod's own
gateway. Where that has to go through the node all the same, set `serviceCIDR` and `overlayPodCIDR`: what is set there, or in
`hijackCIDR`, counts also with `none`.
";
    // By what scope-pods' `is_of_mesh` goes.
    const MESHES: &str = "
## Pods of a service mesh

A mesh leads a pod's connections through a proxy, which knows a Service by the address that the application asks for. So the socket path leaves
a pod out that bears what the mesh notes when it redirects: `sidecar.istio.io/status` (Istio's sidecar), `ambient.istio.io/redirection: enabled`
or `pending` (ambient mode), `linkerd.io/proxy-version`, `kuma.io/sidecar-injected: \"true\"`, `consul.hashicorp.com/transparent-proxy-status`.
Such a pod takes the host path; a change of its annotations takes effect while it runs. `underpass.io/socket-path: \"true\"` on the pod lets it in all
the same: then the proxy sees backends in place of Services, and routes, retries and policies for the Service do not hold.

Without kube-proxy there is no host path, and the chart's `paths=socket` lets these pods in (`scope-pods --with-meshes`, by the agent's variable
`UNDERPASS_PATHS=socket`). The flag is to be set too, in `UNDERPASS_SCOPE_FLAGS`, where `podCIDRType` is `none` and underlay pods are in a mesh, or `serviceCIDR`, which gives them a host path.
";
    const ROOM: &str = "
## How much the socket path holds

Values of the chart (`helm upgrade --reset-then-reuse-values --set maps.backends=262144`); without Helm, the variable `UNDERPASS_LOAD_FLAGS` of the node
agent has them as flags of `bpf-lb-load load`. A Service that finds no room keeps those endpoints that it had and still
has, or is left to the host path; an Event `NotServed` on it names the flag.

| Value | Flag | Default | Holds | Changed while the maps are in use |
| --- | --- | --- | --- | --- |
| maps.services | `--max-services` | 32768 | service addresses of each family, with their ports | grows when the agent starts: Services and sockets stay translated; a smaller number is not taken |
| maps.backends | `--max-backends` | 131072 | backends of all Services together | as above |
| maps.sockets | `--max-sockets` | 65536 | translated sockets of each family in the fast way; more work as well, and slower | only after `node-agent --uninstall` on the node; until then the agent's log says so |
| maps.clients | `--max-clients` | 61440 | pairs of a pod and a Service with session affinity; more push out the oldest | as above |

The kernel counts the maps as memory of the agent's container: 48 MiB with these sizes, from the beginning. The agent's processes take 87 MiB with
10,000 Services of 10 endpoints, and 105 MiB at their most ([figures](figures/report.md)). So `node.resources` requests 128Mi, which is enough for some
thousand Services; for 10,000 request 160Mi, and set no limit below 256Mi. Larger maps are there twice while they grow.

The other tools of the agent have their flags by variables too, with the chart by `node.env`: `UNDERPASS_SERVICES_FLAGS` (`watch-services`),
`UNDERPASS_SCOPE_FLAGS` (`scope-pods`), and `UNDERPASS_END_FLAGS` (`end-sockets`: of which backends that go connections end, as `--tcp never`).
";
    // By watch-services' `NotServed::HostPath`.
    const LEFT: &str = "
## Services that are left to the host path

`kubectl annotate service NAME underpass.io/socket-path=false` takes a Service out of the socket path on every node: its clients
reach it by the host path alone, as long as the annotation is there. Connections that the socket path made to it end once, as if it were
deleted; connected UDP sockets go on by the host path. A value that is neither `\"true\"` nor `\"false\"` is of no account, and an Event on the Service says so. Where there is no host path (no
kube-proxy, or `podCIDRType` none) such a Service leads nowhere. It is for

* NodeLocal DNSCache that listens on kube-dns' ClusterIP, as Kubernetes' own manifest has it beside kube-proxy in iptables mode:
  `kubectl -n kube-system annotate service kube-dns underpass.io/socket-path=false`. By the host path the address is the node's own and the
  cache answers; the socket path leads to the DNS server's pods, past the cache. A cache on an address of its own, as 169.254.20.10, needs
  nothing.
* Backends that the pods' underlay is not routed to and nodes reach, as the API servers': `kubectl annotate service kubernetes
  underpass.io/socket-path=false`. With the nodes' network in `hijackCIDR`, and `overlayMasquerade`, no Service needs it: what pods send there goes
  through their node.
* NFS and SMB servers behind a Service, on kernels whose clients keep the backend's address in place of the Service's: when the server moves,
  the mount hangs.
";
    const ERRORS: &str = "
## Errors

A value that is not allowed is CNI error 7 in ADD and CHECK: its message names the setting and the value, its details say what
is allowed, of every setting that is wrong. DEL and GC go on with the default instead. Further errors that settings lead to:

| Setting | Code | When |
| --- | --- | --- |
| mode | 7 | the mode cannot be had for this interface; the details say what to change |
| podDefaultCniNic | 7 | overlay mode, and the pod has no such interface with an address |
| podDefaultRouteNic | 7 | the pod has no such interface and none can still be added by this name |
| serviceCIDR | 11 (STATUS: 50) | it is not set, and the cluster's CIDRs are not known yet |
| policyRoutes, vethLinkAddress, vethMTU, txQueueLen, podMACPrefix | 100 | the kernel refuses the value for this interface |
| detectIPConflict | 103 | another host has one of the addresses; the message names its MAC address |
| detectGateway | 104 | the gateway does not answer; the message names it |
";

    /// The text of deploy/settings.md. `UNDERPASS_WRITE_SETTINGS=1 cargo test -p common settings` writes it.
    fn page() -> String {
        let cell = |text: &str| text.replace('|', "\\|");
        let row = |setting: &Setting| {
            format!(
                "| {} | `{}` | {} | {} |\n",
                setting.key,
                cell(setting.default),
                cell(setting.allowed),
                cell(setting.effect)
            )
        };
        let rows: String = SETTINGS.iter().map(row).collect();
        format!("{INTRODUCTION}{rows}{NETWORKS}{CLUSTER}{MESHES}{ROOM}{LEFT}{ADDRESSES}{ERRORS}")
    }

    #[test]
    fn the_page_of_settings_is_what_the_code_says() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/settings.md");
        if env::var_os("UNDERPASS_WRITE_SETTINGS").is_some() {
            fs::write(&path, page()).unwrap();
        }
        assert_eq!(fs::read_to_string(&path).unwrap(), page(), "run with UNDERPASS_WRITE_SETTINGS=1 to write it");
    }

    #[test]
    fn each_default_that_is_a_value_is_the_one_that_applies() {
        for setting in SETTINGS.iter().filter(|setting| !setting.default.starts_with('(')) {
            let value: Value = serde_json::from_str(setting.default).unwrap_or_else(|_| json!(setting.default));
            let (settings, failures) = Settings::resolve(&json!({ setting.key: value }), &Value::Null);
            assert_eq!((settings, failures), (Settings::default(), vec![]), "{}", setting.key);
        }
    }

    #[test]
    fn each_setting_is_read_and_a_value_of_another_kind_is_refused_with_what_is_allowed() {
        for setting in SETTINGS {
            let (settings, failures) = Settings::resolve(&json!({ setting.key: [["no", "such"]] }), &Value::Null);
            let [failure] = &failures[..] else { panic!("{}: {failures:?}", setting.key) };
            assert!(failure.msg.starts_with(&format!("setting {}: ", setting.key)), "{failure}");
            assert_eq!(failure.details, format!("allowed: {}", setting.allowed));
            assert_eq!(settings, Settings::default());
        }
    }

    #[test]
    fn keys_that_are_not_known_are_ignored_in_options_too_and_no_retries_are_as_many_as_by_default() {
        let config = json!({
            "detectOptions": {"retries": 0, "patience": "1s"}, "logOptions": {"logLevel": "info", "colour": true}
        });
        assert_eq!(Settings::resolve(&config, &Value::Null), (Settings::default(), vec![]));
    }

    #[test]
    fn the_list_has_every_setting_of_the_document() {
        let schema = schemars::schema_for!(Settings);
        let fields = schema.get("properties").and_then(Value::as_object).unwrap();
        let fields: BTreeSet<&str> = fields.keys().map(String::as_str).collect();
        assert_eq!(fields, SETTINGS.iter().map(|setting| setting.key).collect());
    }

    #[test]
    fn the_configuration_wins_over_the_cluster_and_what_is_unset_does_not_count() {
        let cluster =
            json!({"mode": "underlay", "hostRuleTable": 600, "serviceCIDR": ["10.96.0.0/12"], "podRPFilter": -1});
        let config = json!({"mode": "", "hostRuleTable": 700, "serviceCIDR": [], "podRPFilter": null});
        let (settings, failures) = Settings::resolve(&config, &cluster);
        assert_eq!(failures, []);
        let expected = Settings {
            mode: ModeSetting::Underlay,
            host_rule_table: 700,
            service_cidr: Some(vec!["10.96.0.0/12".parse().unwrap()]),
            pod_rp_filter: None,
            ..Settings::default()
        };
        assert_eq!(settings, expected);
    }
}
