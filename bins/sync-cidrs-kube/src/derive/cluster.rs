//! What the control plane was told: kubeadm's configuration, else its pods' flags, else what k3s and rke2 note on their
//! nodes, else what OpenShift, k0s and RKE1 keep of it; for pods then Flannel's or Canal's configuration, kube-proxy's, and
//! what nodes were given.

use serde_json::Value;

use crate::{
    kind::Kind,
    survey::{Asked, Finding, Survey, name},
    world::Known,
};

/// What k3s and rke2 take when they are told nothing (k3s' and rke2's documentation of their server's flags): for each
/// flag, the IPv4 CIDR, and the IPv6 CIDR for nodes that have only that.
const RANCHER_DEFAULTS: [(&str, &str, &str); 2] =
    [("--service-cidr", "10.43.0.0/16", "fd00:43::/112"), ("--cluster-cidr", "10.42.0.0/16", "fd00:42::/56")];

impl Survey<'_> {
    pub(super) fn cluster_services(&self) -> Asked<Vec<Finding>> {
        Self::first(&[
            &|| self.kubeadm("serviceSubnet"),
            &|| self.flags(&[Kind::ControlPlanePods, Kind::ControlPlanePodsByApp], "--service-cluster-ip-range"),
            &|| self.rancher("--service-cidr"),
            &|| self.openshift("serviceNetwork"),
            &|| self.k0s("serviceCIDR", "IPv6serviceCIDR"),
            &|| Ok(self.rke1(&["kube-api", "kubeApi"], "serviceClusterIpRange")),
        ])
    }

    pub(super) fn cluster_pods(&self) -> Asked<Vec<Finding>> {
        Self::first(&[
            &|| self.kubeadm("podSubnet"),
            &|| self.flags(&[Kind::ControlPlanePods, Kind::ControlPlanePodsByApp], "--cluster-cidr"),
            &|| self.rancher("--cluster-cidr"),
            &|| self.openshift("clusterNetwork"),
            &|| self.k0s("podCIDR", "IPv6podCIDR"),
            &|| Ok(self.rke1(&["kube-controller", "kubeController"], "clusterCidr")),
            &|| self.flannel(),
            &|| self.proxy(),
            &|| self.flags(&[Kind::ProxyPods], "--cluster-cidr"),
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

    /// The values of a flag in the first of these kinds of pods that has it.
    fn flags(&self, kinds: &[Kind], flag: &str) -> Asked<Vec<Finding>> {
        let mut found = vec![];
        for kind in kinds {
            for pod in self.objects(*kind)? {
                let containers = pod["spec"]["containers"].as_array().into_iter().flatten();
                // As pflag does it: of several, the last one counts.
                let values = containers.filter_map(|container| flag_values(&words(container), flag).pop());
                found.extend(values.flat_map(|value| self.accept(&value, &format!("pod {}, {flag}", name(pod)))));
            }
            if !found.is_empty() {
                break;
            }
        }
        Ok(found)
    }

    fn rancher(&self, flag: &str) -> Asked<Vec<Finding>> {
        let mut found = vec![];
        let which = if self.options.node.is_some() { Kind::ControlPlaneNodes } else { Kind::Nodes };
        for node in self.objects(which)? {
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

    /// OpenShift's Network: its status says what is the case, its spec what was asked for.
    fn openshift(&self, field: &str) -> Asked<Vec<Finding>> {
        let Some(network) = self.object(Kind::OpenShiftNetwork)? else { return Ok(vec![]) };
        let of = |section: &str| network[section][field].as_array().filter(|entries| !entries.is_empty());
        let entries = of("status").or_else(|| of("spec")).into_iter().flatten();
        let texts = entries.filter_map(|entry| entry["cidr"].as_str().or(entry.as_str()));
        Ok(texts.flat_map(|text| self.accept(text, &format!("Network cluster, {field}"))).collect())
    }

    fn k0s(&self, ipv4: &str, ipv6: &str) -> Asked<Vec<Finding>> {
        let Some(config) = self.object(Kind::K0sConfig)? else { return Ok(vec![]) };
        let network = &config["spec"]["network"];
        let dual = Some(&network["dualStack"]).filter(|dual| dual["enabled"] == true);
        let of = |section: &Value, field: &str| {
            self.accept(section[field].as_str().unwrap_or_default(), &format!("ClusterConfig k0s, {field}"))
        };
        Ok([of(network, ipv4), dual.map(|dual| of(dual, ipv6)).unwrap_or_default()].concat())
    }

    /// RKE1's state, of which only a person may show something. Its keys are spelled in two ways.
    fn rke1(&self, sections: &[&str], field: &str) -> Vec<Finding> {
        let Some(Known::Objects(objects)) = self.world.get(Kind::Rke1State) else { return vec![] };
        let texts = objects.values().filter_map(|config| config["data"]["full-cluster-state"].as_str());
        let states = texts.filter_map(|text| serde_json::from_str::<Value>(text).ok());
        let of_state = |state: Value| {
            let services = &state["desiredState"]["rkeConfig"]["services"];
            let texts = sections.iter().filter_map(|section| services[section][field].as_str());
            texts.flat_map(|text| self.accept(text, &format!("full-cluster-state, {field}"))).collect::<Vec<_>>()
        };
        states.flat_map(of_state).collect()
    }

    /// Canal's configuration.
    pub(super) fn canal(&self) -> Asked<Option<&Value>> {
        match self.object(Kind::CanalConfig)? {
            Some(config) => Ok(Some(config)),
            None => self.object(Kind::CanalConfigRke2),
        }
    }

    /// Flannel's configuration, or Canal's, which has the same.
    fn flannel(&self) -> Asked<Vec<Finding>> {
        let own = self.object(Kind::FlannelConfig)?;
        let old = if own.is_none() { self.object(Kind::FlannelConfigOld)? } else { own };
        let Some(config) = (if old.is_none() { self.canal()? } else { old }) else { return Ok(vec![]) };
        let name = name(config);
        let text = config["data"]["net-conf.json"].as_str().unwrap_or_default();
        let Ok(net) = serde_json::from_str::<Value>(text) else {
            self.problem(format!("{name}: net-conf.json is not JSON"));
            return Ok(vec![]);
        };
        let of = |key: &str, enabled: bool| {
            let text = net[key].as_str().filter(|_| enabled).unwrap_or_default();
            self.accept(text, &format!("{name}, {key}"))
        };
        Ok([of("Network", net["EnableIPv4"] != false), of("IPv6Network", net["EnableIPv6"] == true)].concat())
    }

    /// kube-proxy's configuration, under whichever key.
    fn proxy(&self) -> Asked<Vec<Finding>> {
        let Some(config) = self.object(Kind::ProxyConfig)? else { return Ok(vec![]) };
        let texts = config["data"].as_object().into_iter().flatten().filter_map(|(_, text)| text.as_str());
        let documents = texts.filter_map(|text| serde_yaml_ng::from_str::<Value>(text).ok());
        let proxy = documents.filter(|document| document["kind"] == "KubeProxyConfiguration");
        let cidrs = proxy.filter_map(|proxy| proxy["clusterCIDR"].as_str().map(str::to_owned));
        Ok(cidrs.flat_map(|cidrs| self.accept(&cidrs, "kube-proxy, clusterCIDR")).collect())
    }

    /// What nodes were given: the own one, or all where none is said to be the own.
    fn nodes(&self) -> Asked<Vec<Finding>> {
        if self.options.node.is_some() {
            return self.own_node();
        }
        Ok(self.objects(Kind::Nodes)?.iter().flat_map(|node| self.given_to(node)).collect())
    }

    /// The pods' CIDRs of the own node's Node.
    pub(super) fn own_node(&self) -> Asked<Vec<Finding>> {
        let found: Vec<Finding> = self.objects(Kind::OwnNode)?.iter().flat_map(|node| self.given_to(node)).collect();
        self.only_here(&found);
        Ok(found)
    }

    /// The pods' CIDRs that a Node was given.
    fn given_to(&self, node: &Value) -> Vec<Finding> {
        let source = format!("node {}, podCIDRs", name(node));
        let both = node["spec"]["podCIDRs"].as_array().filter(|cidrs| !cidrs.is_empty());
        let cidrs = both.map_or_else(|| vec![&node["spec"]["podCIDR"]], |cidrs| cidrs.iter().collect());
        cidrs.iter().flat_map(|cidr| self.accept(cidr.as_str().unwrap_or_default(), &source)).collect()
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

/// A container's words, those that a shell gets as one string taken apart, with the variables that the kubelet fills in.
fn words(container: &Value) -> Vec<String> {
    let list = |key: &str| container[key].as_array().into_iter().flatten();
    let texts = list("command").chain(list("args")).filter_map(Value::as_str);
    let variables =
        || list("env").filter_map(|variable| Some((variable["name"].as_str()?, variable["value"].as_str()?)));
    let filled = texts.map(|text| {
        variables().fold(text.to_owned(), |text, (name, value)| text.replace(&format!("$({name})"), value))
    });
    filled.flat_map(|text| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>()).collect()
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
