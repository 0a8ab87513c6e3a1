//! The settings of the plugin configuration, named as in Spiderpool's coordinator: resolved from the configuration,
//! then the cluster's defaults, then built-in defaults.

mod value;

use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use self::value::is_unset;
pub use self::value::{DetectOptions, LogOptions, ModeSetting, PolicyRoute, is_interface_name};
use crate::failure::{Code, Failure};

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

/// A setting: for people its name, its default, what is allowed and what it does; and how it is read.
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
    /// Takes a value over; false if it is not allowed.
    read: fn(&mut Settings, &Value) -> bool,
}

/// All settings, in the order of the documentation.
pub const SETTINGS: &[Setting] = &[
    Setting {
        key: "mode",
        default: "auto",
        allowed: "auto, underlay, overlay or disable (also written disabled)",
        effect: "the way into the node: a veth pair, the pod's overlay interface, none, or whichever fits",
        read: |settings, value| put(&mut settings.mode, value::mode(value)),
    },
    Setting {
        key: "podDefaultCniNic",
        default: "eth0",
        allowed: "an interface name",
        effect: "the pod's first interface",
        read: |settings, value| put(&mut settings.pod_default_cni_nic, value::interface_name(value)),
    },
    Setting {
        key: "podDefaultRouteNic",
        default: "(the first interface)",
        allowed: "an interface name",
        effect: "the interface that keeps the default route in the main table",
        read: |settings, value| put(&mut settings.pod_default_route_nic, value::interface_name(value).map(Some)),
    },
    Setting {
        key: "tunePodRoutes",
        default: "true",
        allowed: "true or false",
        effect: "whether each interface of a pod with several gets a routing table for packets from its addresses",
        read: |settings, value| put(&mut settings.tune_pod_routes, value.as_bool()),
    },
    Setting {
        key: "serviceCIDR",
        default: "(from the cluster)",
        allowed: "a list of CIDRs",
        effect: "the Services that are reached through the node",
        read: |settings, value| put(&mut settings.service_cidr, value::list(value, value::cidr).map(Some)),
    },
    Setting {
        key: "overlayPodCIDR",
        default: "(from the cluster)",
        allowed: "a list of CIDRs",
        effect: "the overlay pods that are reached through the node",
        read: |settings, value| put(&mut settings.overlay_pod_cidr, value::list(value, value::cidr).map(Some)),
    },
    Setting {
        key: "hijackCIDR",
        default: "[]",
        allowed: "a list of CIDRs or addresses",
        effect: "whatever else is reached through the node",
        read: |settings, value| put(&mut settings.hijack_cidr, value::list(value, value::cidr_or_address)),
    },
    Setting {
        key: "policyRoutes",
        default: "[]",
        allowed: "a list of {\"dst\": CIDR or address, \"gw\": address} of one family each",
        effect: "further routes for the interface, in its own table and in the main one; none of a family of which it has no address",
        read: |settings, value| put(&mut settings.policy_routes, value::list(value, value::policy_route)),
    },
    Setting {
        key: "hostRuleTable",
        default: "500",
        allowed: "a routing table number from 1 to 4294967295 other than 253, 254 and 255",
        effect: "the node's routing table for pods, or the first one after it that nobody else uses",
        read: |settings, value| put(&mut settings.host_rule_table, value::routing_table(value)),
    },
    Setting {
        key: "podRuleTable",
        default: "8500",
        allowed: "a routing table number from 1 to 4294967295 other than 253, 254 and 255",
        effect: "the first of the pod's routing tables, or the first one after it that nobody else uses",
        read: |settings, value| put(&mut settings.pod_rule_table, value::routing_table(value)),
    },
    Setting {
        key: "rulePriority",
        default: "85",
        allowed: "a number from 1 to 32765",
        effect: "the priority of the policy rules on the node and in the pod (there also the next number), or less, so that no rule of others gets ahead",
        read: |settings, value| put(&mut settings.rule_priority, value::rule_priority(value)),
    },
    Setting {
        key: "podMark",
        default: "4096",
        allowed: "one bit of a mark: 1, 2, 4 and so on to 2147483648, as a number or as text such as 0x1000",
        effect: "the bit that marks connections from the node and their replies in the pod, or the first one that no rule of others compares",
        read: |settings, value| put(&mut settings.pod_mark, value::mark_bit(value)),
    },
    Setting {
        key: "podRPFilter",
        default: "0",
        allowed: "a negative number (leave it), 0, 1 or 2",
        effect: "rp_filter in the pod",
        read: |settings, value| put(&mut settings.pod_rp_filter, value::rp_filter(value)),
    },
    Setting {
        key: "linkGroup",
        default: "85",
        allowed: "a link group number from 1 to 4294967294",
        effect: "the link group of the node's ends of the veth pairs; with overlayMasquerade the one after it",
        read: |settings, value| put(&mut settings.link_group, value::link_group(value)),
    },
    Setting {
        key: "overlayMasquerade",
        default: "false",
        allowed: "true or false",
        effect: "whether what a pod sends through the node to overlay pods and hijackCIDR gets the node's address as source",
        read: |settings, value| put(&mut settings.overlay_masquerade, value.as_bool()),
    },
    Setting {
        key: "socketPath",
        default: "true",
        allowed: "true or false",
        effect: "whether the pod's connections to Services are translated in the kernel's sockets, where the node does that; a pod's annotation underpass.io/socket-path comes first, and without it pods of a service mesh are left out",
        read: |settings, value| put(&mut settings.socket_path, value.as_bool()),
    },
    Setting {
        key: "txQueueLen",
        default: "0",
        allowed: "a number of packets up to 4294967295; 0 or less leaves it",
        effect: "transmit queue length of the pod's interface",
        read: |settings, value| put(&mut settings.tx_queue_len, value::queue_length(value)),
    },
    Setting {
        key: "podMACPrefix",
        default: "\"\"",
        allowed: "two bytes of a unicast MAC address such as 0a:1b",
        effect: "MAC address of the pod's interface: this prefix, then the last four bytes of its address",
        read: |settings, value| put(&mut settings.pod_mac_prefix, value::mac_prefix(value).map(Some)),
    },
    Setting {
        key: "vethLinkAddress",
        default: "169.254.200.1",
        allowed: "an IPv4 link-local address such as 169.254.200.1, or none",
        effect: "an address for the pod's end of the veth pair, to which a sidecar's REDIRECT leads what comes in by it (for IPv6 it has fe80::a9fe:c801)",
        read: |settings, value| put(&mut settings.veth_link_address, value::link_local(value)),
    },
    Setting {
        key: "vethMTU",
        default: "0",
        allowed: "a number of bytes from 68 to 65535, or 0 (the interface's own)",
        effect: "MTU of the veth pair",
        read: |settings, value| put(&mut settings.veth_mtu, value::mtu(value)),
    },
    Setting {
        key: "detectIPConflict",
        default: "false",
        allowed: "true or false",
        effect: "whether ADD fails when another host has one of the pod's addresses",
        read: |settings, value| put(&mut settings.detect_ip_conflict, value.as_bool()),
    },
    Setting {
        key: "detectGateway",
        default: "false",
        allowed: "true or false",
        effect: "whether ADD fails when the gateway does not answer",
        read: |settings, value| put(&mut settings.detect_gateway, value.as_bool()),
    },
    Setting {
        key: "detectOptions",
        default: "{\"retries\": 3, \"interval\": \"10ms\", \"timeout\": \"100ms\"}",
        allowed: "retries (also written retry) from 1 to 100, or 0 (the default); interval and timeout as durations such as 100ms or 1.5s, up to 1m",
        effect: "how many probes these two send, the time between two, and the time after the last",
        read: |settings, value| put(&mut settings.detect_options, value::detect_options(value)),
    },
    Setting {
        key: "logOptions",
        default: "{\"logLevel\": \"info\", \"logFile\": \"\"}",
        allowed: "logLevel error, warn, info or debug (panic and fatal mean error); logFile an absolute path; logMaxSize, logMaxAge and logMaxCount (not used) numbers",
        effect: "which messages are written, and to which file besides standard error",
        read: |settings, value| put(&mut settings.log_options, value::log_options(value)),
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
        Self::default().overridden(&[config, cluster])
    }

    /// What a configuration of today makes of these settings of a running pod: what it leaves open stays, whatever the cluster's
    /// defaults are now. The CIDRs are those of `now`, for they can change in a running pod.
    pub fn in_running_pod(self, config: &Value, now: Self) -> Self {
        let Self { service_cidr, overlay_pod_cidr, hijack_cidr, .. } = now;
        Self { service_cidr, overlay_pod_cidr, hijack_cidr, ..self.overridden(&[config]).0 }
    }

    /// These settings, and in place of each that one of the sources sets, what the first of them does.
    fn overridden(mut self, sources: &[&Value]) -> (Self, Vec<Failure>) {
        let mut failures = vec![];
        for setting in SETTINGS {
            let mut set = sources.iter().filter_map(|source| source.get(setting.key));
            if let Some(value) = set.find(|value| !is_unset(value))
                && !(setting.read)(&mut self, value)
            {
                failures.push(setting.refusal(value));
            }
        }
        (self, failures)
    }
}

impl Setting {
    fn refusal(&self, value: &Value) -> Failure {
        Failure::new(Code::InvalidConfiguration, format!("setting {}: {value} is not allowed", self.key))
            .details(format!("allowed: {}", self.allowed))
    }
}

/// Puts a value where there is one, and says whether there is.
fn put<T>(place: &mut T, value: Option<T>) -> bool {
    value.map(|value| *place = value).is_some()
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, env, fs, path::Path, time::Duration};

    use serde_json::json;

    use super::*;

    const BEGIN: &str = "<!-- Written by UNDERPASS_WRITE_SETTINGS=1 cargo test -p common settings -->\n\n";
    const END: &str = "\n<!-- The end of what is written. -->\n";

    /// The table of deploy/settings.md.
    fn rows() -> String {
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
        let head = "| Setting | Default | Allowed | Effect |\n| --- | --- | --- | --- |\n";
        [head.to_owned()].into_iter().chain(SETTINGS.iter().map(row)).collect()
    }

    #[test]
    fn the_page_of_settings_is_what_the_code_says() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/settings.md");
        let page = fs::read_to_string(&path).unwrap();
        let (before, rest) = page.split_once(BEGIN).unwrap();
        let (_, after) = rest.split_once(END).unwrap();
        let wanted = format!("{before}{BEGIN}{}{END}{after}", rows());
        if env::var_os("UNDERPASS_WRITE_SETTINGS").is_some() {
            fs::write(&path, &wanted).unwrap();
        }
        assert_eq!(fs::read_to_string(&path).unwrap(), wanted, "run with UNDERPASS_WRITE_SETTINGS=1 to write it");
    }

    #[test]
    fn each_default_is_the_one_that_applies_and_in_brackets_there_is_none() {
        for setting in SETTINGS.iter().filter(|setting| !setting.default.starts_with('(')) {
            let value: Value = serde_json::from_str(setting.default).unwrap_or_else(|_| json!(setting.default));
            let (settings, failures) = Settings::resolve(&json!({ setting.key: value }), &Value::Null);
            assert_eq!((settings, failures), (Settings::default(), vec![]), "{}", setting.key);
        }
        let settings = Settings::default();
        assert_eq!(
            (settings.pod_default_route_nic, settings.service_cidr, settings.overlay_pod_cidr),
            (None, None, None)
        );
    }

    #[test]
    fn each_setting_is_read_and_a_value_that_is_not_allowed_is_refused_with_what_is() {
        let mut wrong = json!({
            "mode": ["overlaid", 1],
            "podDefaultCniNic": ["a name that is too long", 7],
            "podDefaultRouteNic": ["eth/0"],
            "tunePodRoutes": ["yes"],
            "serviceCIDR": ["10.233.64.0/18", ["10.233.64.0"], ["10.233.64.0/33"], ["0.0.0.0/0"]],
            "overlayPodCIDR": ["10.233.0.0/18", ["10.233.0.1/33"], ["fd00:233::/148"]],
            "hijackCIDR": [["169.254.20.256"], ["0.0.0.0/0"]],
            "policyRoutes": [
                [{"dst": "10.9.0.0/16"}],
                [{"dst": "10.9.0.0/16", "gw": "fd00:6::1"}],
                {"dst": "10.9.0.0/16", "gw": "10.6.0.1"},
            ],
            "hostRuleTable": [0, 254, "500"],
            "podRuleTable": [255],
            "rulePriority": [0, 32766],
            "podMark": [3, "0x1000000000"],
            "podRPFilter": [3],
            "linkGroup": [0, 4_294_967_295_u32],
            "overlayMasquerade": ["yes"],
            "socketPath": ["yes"],
            "txQueueLen": [4_294_967_296_u64],
            "podMACPrefix": ["0a", "0b:1", "01:00"],
            "vethLinkAddress": ["garbage", "10.6.0.9", "fe80::1"],
            "vethMTU": [67, 65536],
            "detectIPConflict": ["true"],
            "detectGateway": [1],
            "detectOptions": [{"retries": 101}, {"interval": "soon"}, {"timeout": "61s"}, {"timeout": 1}],
            "logOptions": [{"logLevel": "loud"}, {"logFile": "relative.log"}, {"logMaxSize": "big"}],
        });
        for Setting { key, allowed, .. } in SETTINGS {
            let values = wrong[key].as_array_mut().unwrap_or_else(|| panic!("no wrong value of {key}"));
            values.push(json!([["of", "another", "kind"]]));
            for value in values {
                let (settings, failures) = Settings::resolve(&json!({ *key: value }), &Value::Null);
                let [failure] = &failures[..] else { panic!("{key} {value}: {failures:?}") };
                assert_eq!(failure.msg, format!("setting {key}: {value} is not allowed"));
                assert_eq!(failure.details, format!("allowed: {allowed}"));
                assert_eq!(settings, Settings::default());
            }
        }
    }

    #[test]
    fn what_spiderpools_coordinator_takes_is_taken() {
        let options = |retries: u32, interval: u64, timeout: u64| {
            let (interval, timeout) = (Duration::from_micros(interval), Duration::from_micros(timeout));
            json!({"retries": retries, "interval": interval, "timeout": timeout})
        };
        for (key, value, taken) in [
            // Host bits, blanks, and addresses for CIDRs.
            ("serviceCIDR", json!(["10.233.64.1/18"]), json!(["10.233.64.0/18"])),
            ("serviceCIDR", json!([" 10.233.64.0/18 "]), json!(["10.233.64.0/18"])),
            (
                "hijackCIDR",
                json!(["169.254.20.10/16", "169.254.20.10", " 192.0.2.7/24 "]),
                json!(["169.254.0.0/16", "169.254.20.10/32", "192.0.2.0/24"]),
            ),
            (
                "policyRoutes",
                json!([{"dst": "10.9.9.9", "gw": "10.6.0.1"}, {"dst": "10.9.9.9/16", "gw": " 10.6.0.1 "}]),
                json!([{"dst": "10.9.9.9/32", "gw": "10.6.0.1"}, {"dst": "10.9.0.0/16", "gw": "10.6.0.1"}]),
            ),
            // Any negative number.
            ("podRPFilter", json!(-2), Value::Null),
            ("podRPFilter", json!(i32::MIN), Value::Null),
            ("txQueueLen", json!(-1), Value::Null),
            ("detectOptions", json!({"retry": 2, "interval": "0h0m0.01s", "timeout": "0"}), options(2, 10_000, 0)),
            (
                "detectOptions",
                json!({"retries": null, "interval": "1ms500us", "timeout": "+.1s"}),
                options(3, 1500, 100_000),
            ),
            ("logOptions", json!({"logLevel": "Fatal", "logMaxSize": null}), json!({"logLevel": "error"})),
            // No retries are as many as by default, and keys that nobody knows are ignored.
            ("detectOptions", json!({"retries": 0, "patience": "1s"}), options(3, 10_000, 100_000)),
            ("logOptions", json!({"logLevel": "warn", "colour": true}), json!({"logLevel": "warn"})),
            ("podCIDRType", json!("auto"), Value::Null),
            ("hostRPFilter", json!(0), Value::Null),
            ("multusNicPrefix", json!("net"), Value::Null),
            ("detectGateway", Value::Null, json!(false)),
        ] {
            let (settings, failures) = Settings::resolve(&json!({ key: value }), &Value::Null);
            assert_eq!(failures, [], "{key} {value}");
            assert_eq!(json!(settings)[key], taken, "{key} {value}");
        }
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
