//! What the control plane was told: kubeadm's configuration, else its pods' flags, else what k3s and rke2 note on their
//! nodes, else Flannel's configuration, else what the nodes were given.

use serde_json::Value;

use super::{Asked, Finding, Survey, service::name};
use crate::kind::Kind;

/// What k3s and rke2 take when they are told nothing (k3s' and rke2's documentation of their server's flags): for each
/// flag, the IPv4 CIDR, and the IPv6 CIDR for nodes that have only that.
const RANCHER_DEFAULTS: [(&str, &str, &str); 2] =
    [("--service-cidr", "10.43.0.0/16", "fd00:43::/112"), ("--cluster-cidr", "10.42.0.0/16", "fd00:42::/56")];

impl Survey<'_> {
    pub(super) fn cluster_services(&self) -> Asked<Vec<Finding>> {
        Self::first(&[&|| self.kubeadm("serviceSubnet"), &|| self.flags("--service-cluster-ip-range"), &|| {
            self.rancher("--service-cidr")
        }])
    }

    pub(super) fn cluster_pods(&self) -> Asked<Vec<Finding>> {
        Self::first(&[
            &|| self.kubeadm("podSubnet"),
            &|| self.flags("--cluster-cidr"),
            &|| self.rancher("--cluster-cidr"),
            &|| self.flannel(),
            &|| self.nodes(),
        ])
    }

    fn kubeadm(&self, field: &str) -> Asked<Vec<Finding>> {
        let Some(config) = self.object(Kind::KubeadmConfig)? else { return Ok(vec![]) };
        let text = config["data"]["ClusterConfiguration"].as_str().unwrap_or_default();
        let Ok(cluster) = serde_yaml_ng::from_str::<Value>(text) else {
            self.problem("kubeadm-config: ClusterConfiguration is not YAML".to_owned());
            return Ok(vec![]);
        };
        let subnet = cluster["networking"][field].as_str().unwrap_or_default();
        Ok(self.accept(subnet, &format!("kubeadm-config, {field}")))
    }

    fn flags(&self, flag: &str) -> Asked<Vec<Finding>> {
        let mut found = vec![];
        for pod in self.objects(Kind::ControlPlanePods)? {
            let containers = pod["spec"]["containers"].as_array().into_iter().flatten();
            // As pflag does it: of several, the last one counts.
            let values = containers.filter_map(|container| flag_values(&words(container), flag).pop());
            found.extend(values.flat_map(|value| self.accept(&value, &format!("pod {}, {flag}", name(pod)))));
        }
        Ok(found)
    }

    fn rancher(&self, flag: &str) -> Asked<Vec<Finding>> {
        let mut found = vec![];
        for node in self.objects(Kind::Nodes)? {
            for annotation in ["k3s.io/node-args", "rke2.io/node-args"] {
                let text = node["metadata"]["annotations"][annotation].as_str().unwrap_or("null");
                let words: Vec<String> = serde_json::from_str(text).unwrap_or_default();
                if words.first().is_none_or(|command| command != "server") {
                    continue;
                }
                let source = format!("node {}, {annotation}, {flag}", name(node));
                let values = flag_values(&words, flag);
                if values.is_empty() {
                    found.extend(self.accept(rancher_default(flag, node), &format!("{source} not given: its default")));
                }
                found.extend(values.iter().flat_map(|value| self.accept(value, &source)));
            }
        }
        Ok(found)
    }

    fn flannel(&self) -> Asked<Vec<Finding>> {
        let own = self.object(Kind::FlannelConfig)?;
        let config = match own {
            Some(config) => Some(config),
            None => self.object(Kind::FlannelConfigOld)?,
        };
        let Some(config) = config else { return Ok(vec![]) };
        let text = config["data"]["net-conf.json"].as_str().unwrap_or_default();
        let Ok(net) = serde_json::from_str::<Value>(text) else {
            self.problem("kube-flannel-cfg: net-conf.json is not JSON".to_owned());
            return Ok(vec![]);
        };
        let of = |key: &str, enabled: bool| {
            let text = net[key].as_str().filter(|_| enabled).unwrap_or_default();
            self.accept(text, &format!("kube-flannel-cfg, {key}"))
        };
        Ok([of("Network", net["EnableIPv4"] != false), of("IPv6Network", net["EnableIPv6"] == true)].concat())
    }

    fn nodes(&self) -> Asked<Vec<Finding>> {
        let mut found = vec![];
        for node in self.objects(Kind::Nodes)? {
            let source = format!("node {}, podCIDRs", name(node));
            let both = node["spec"]["podCIDRs"].as_array().filter(|cidrs| !cidrs.is_empty());
            let cidrs = both.map_or_else(|| vec![&node["spec"]["podCIDR"]], |cidrs| cidrs.iter().collect());
            found.extend(cidrs.iter().flat_map(|cidr| self.accept(cidr.as_str().unwrap_or_default(), &source)));
        }
        Ok(found)
    }
}

fn rancher_default(flag: &str, node: &Value) -> &'static str {
    let addresses = node["status"]["addresses"].as_array().into_iter().flatten();
    let mut internal = addresses.filter(|address| address["type"] == "InternalIP").peekable();
    let only_ipv6 = internal.peek().is_some()
        && internal.all(|address| address["address"].as_str().is_some_and(|address| address.contains(':')));
    let default = RANCHER_DEFAULTS.iter().find(|(name, ..)| *name == flag);
    default.map_or("", |(_, ipv4, ipv6)| if only_ipv6 { ipv6 } else { ipv4 })
}

/// A container's words, those that a shell gets as one string taken apart.
fn words(container: &Value) -> Vec<String> {
    let list = |key: &str| container[key].as_array().into_iter().flatten().filter_map(Value::as_str);
    list("command").chain(list("args")).flat_map(str::split_whitespace).map(str::to_owned).collect()
}

/// The values of a flag, as `--flag=value` and as two words.
fn flag_values(words: &[String], flag: &str) -> Vec<String> {
    let unquoted = |value: &str| value.trim_matches(['"', '\'']).to_owned();
    let value = |(index, word): (usize, &String)| match word.strip_prefix(flag) {
        Some("") => words.get(index + 1).map(|next| unquoted(next)),
        Some(rest) => rest.strip_prefix('=').map(unquoted),
        None => None,
    };
    words.iter().enumerate().filter_map(value).collect()
}
