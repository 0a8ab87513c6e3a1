//! What kube-proxy does with the source address of a pod's connection to a Service. Pure.

use ipnet::IpNet;
use serde::Deserialize;
use serde_json::Value;

/// Whose connections to a ClusterIP get the node's address as source.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Masquerade {
    /// Everybody's (`masqueradeAll`).
    All,
    /// Everybody's but those from these CIDRs (`clusterCIDR`). A family that none is of has nobody's (kube-proxy's `getLocalDetectors`).
    AllBut(Vec<IpNet>),
    /// Everybody's but those that this describes, of which a pod with a veth pair of ours is none.
    AllButOthers(String),
    /// Nobody's, or not those of a pod with a veth pair of ours; with the reason.
    Nobody(String),
    /// What cannot be found out, and why.
    Unknown(String),
}

/// How kube-proxy was configured.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Options {
    masquerade_all: bool,
    cluster_cidr: String,
    detect_local_mode: String,
    bridge: String,
    interface_prefix: String,
}

/// The part of a KubeProxyConfiguration (kubeproxy.config.k8s.io/v1alpha1) that says whom to masquerade.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Configuration {
    mode: Option<String>,
    #[serde(rename = "clusterCIDR")]
    cluster_cidr: Option<String>,
    detect_local_mode: Option<String>,
    detect_local: Option<DetectLocal>,
    iptables: Option<Backend>,
    nftables: Option<Backend>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct DetectLocal {
    bridge_interface: Option<String>,
    interface_name_prefix: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Backend {
    masquerade_all: Value,
}

/// The k3s configuration file: its flags without dashes.
const K3S_FILE: &str = "/etc/rancher/k3s/config.yaml";
/// `--cluster-cidr` of a k3s server that says nothing.
const K3S_CLUSTER_CIDR: &str = "10.42.0.0/16";

/// What a process does, by its command line; `None` if no kube-proxy is in it. `read` gives a file as the process sees it.
pub fn of_process(arguments: &[String], read: impl Fn(&str) -> Option<String>) -> Option<Masquerade> {
    let options = match embedding(arguments)? {
        Embedding::Itself => standalone(&Flags::new(arguments), &read),
        Embedding::Kubelite => kubelite(&Flags::new(arguments), &read),
        Embedding::K3s => k3s(arguments, &read)?,
    };
    Some(options.map_or_else(Masquerade::Unknown, |options| options.masquerade()))
}

#[derive(Clone, Copy)]
enum Embedding {
    Itself,
    Kubelite,
    K3s,
}

/// Which kind of process it is. k3s hides its flags from the command line, which is then one word with a blank.
fn embedding(arguments: &[String]) -> Option<Embedding> {
    let mut words = arguments.iter().flat_map(|argument| argument.split_whitespace());
    let program = |word: Option<&str>| word.and_then(|word| word.rsplit('/').next()).unwrap_or_default().to_owned();
    let (first, second) = (program(words.next()), program(words.next()));
    match (first.as_str(), second.as_str()) {
        ("kube-proxy", _) | (_, "kube-proxy") | ("hyperkube", "proxy") => Some(Embedding::Itself),
        ("kubelite", _) => Some(Embedding::Kubelite),
        ("k3s" | "k3s-server" | "k3s-agent", _) if first != "k3s" || ["server", "agent"].contains(&second.as_str()) => {
            Some(Embedding::K3s)
        }
        _ => None,
    }
}

/// Flags as kube-proxy takes them (spf13/pflag, `WordSepNormalizeFunc`): the last counts, `_` is `-`, and a switch takes its value with `=` only.
struct Flags(Vec<String>);

impl Flags {
    fn new(arguments: &[String]) -> Self {
        Self(arguments.iter().take_while(|argument| *argument != "--").cloned().collect())
    }

    fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = (Option<&'a str>, Option<&'a str>)> {
        self.0.iter().enumerate().filter_map(move |(index, argument)| {
            let flag = argument.strip_prefix("--")?;
            let (key, value) = flag.split_once('=').map_or((flag, None), |(key, value)| (key, Some(value)));
            (key.replace('_', "-") == name).then(|| (value, self.0.get(index + 1).map(String::as_str)))
        })
    }

    fn text(&self, name: &str) -> Option<String> {
        self.all(name).last().and_then(|(value, next)| value.or(next)).map(str::to_owned)
    }

    fn switch(&self, name: &str) -> bool {
        self.all(name).last().is_some_and(|(value, _)| value.is_none_or(is_true))
    }
}

/// Go's `strconv.ParseBool`.
fn is_true(text: &str) -> bool {
    ["1", "t", "T", "TRUE", "true", "True"].contains(&text)
}

/// As in kube-proxy, a file makes the flags of no account.
fn standalone(flags: &Flags, read: impl Fn(&str) -> Option<String>) -> Result<Options, String> {
    let Some(path) = flags.text("config").filter(|path| !path.is_empty()) else {
        let text = |name| flags.text(name).unwrap_or_default();
        return Ok(Options {
            masquerade_all: flags.switch("masquerade-all"),
            cluster_cidr: text("cluster-cidr"),
            detect_local_mode: text("detect-local-mode"),
            bridge: text("pod-bridge-interface"),
            interface_prefix: text("pod-interface-name-prefix"),
        });
    };
    let text = read(&path).ok_or_else(|| format!("its configuration {path} cannot be read"))?;
    let file: Configuration =
        serde_yaml_ng::from_str(&text).map_err(|error| format!("its configuration {path} is not one: {error}"))?;
    let backend = if file.mode.as_deref() == Some("nftables") { file.nftables } else { file.iptables };
    // YAML 1.1, which Kubernetes reads, has more words for true.
    let all = match backend.unwrap_or_default().masquerade_all {
        Value::Bool(all) => all,
        Value::String(word) => ["y", "yes", "on"].contains(&word.to_ascii_lowercase().as_str()),
        _ => false,
    };
    let local = file.detect_local.unwrap_or_default();
    Ok(Options {
        masquerade_all: all,
        cluster_cidr: file.cluster_cidr.unwrap_or_default(),
        detect_local_mode: file.detect_local_mode.unwrap_or_default(),
        bridge: local.bridge_interface.unwrap_or_default(),
        interface_prefix: local.interface_name_prefix.unwrap_or_default(),
    })
}

/// MicroK8s: the flags of each component stand in a file, one a line.
fn kubelite(flags: &Flags, read: impl Fn(&str) -> Option<String>) -> Result<Options, String> {
    let path = flags.text("kube-proxy-args-file").ok_or("kubelite has no --kube-proxy-args-file")?;
    let text = read(&path).ok_or_else(|| format!("its flags in {path} cannot be read"))?;
    let lines = text.lines().map(str::trim).filter(|line| !line.starts_with('#'));
    let arguments: Vec<String> = lines.flat_map(str::split_whitespace).map(|word| word.replace('"', "")).collect();
    standalone(&Flags::new(&arguments), read)
}

/// k3s: kube-proxy's flags are values of `--kube-proxy-arg`, on the command line or in its file. It always has a cluster CIDR.
fn k3s(arguments: &[String], read: impl Fn(&str) -> Option<String>) -> Option<Result<Options, String>> {
    let flags = Flags::new(arguments);
    let file = read(&flags.text("config").unwrap_or_else(|| K3S_FILE.to_owned()));
    let file: Value = match file.as_deref().map(serde_yaml_ng::from_str) {
        None => Value::Null,
        Some(Ok(file)) => file,
        Some(Err(error)) => return Some(Err(format!("the configuration of k3s is not YAML: {error}"))),
    };
    if flags.switch("disable-kube-proxy") || file["disable-kube-proxy"] == true {
        return None;
    }
    let given: Vec<String> =
        flags.all("kube-proxy-arg").filter_map(|(value, next)| value.or(next)).map(str::to_owned).collect();
    let given = if given.is_empty() {
        [&file["kube-proxy-arg"], &file["kube-proxy-arg+"]].into_iter().flat_map(words).collect()
    } else {
        given
    };
    let cidr = flags
        .text("cluster-cidr")
        .or_else(|| Some(words(&file["cluster-cidr"]).join(",")).filter(|cidr| !cidr.is_empty()));
    let cidr = cidr.unwrap_or_else(|| K3S_CLUSTER_CIDR.to_owned());
    let given = given.iter().map(|flag| format!("--{}", flag.trim_start_matches('-')));
    let arguments: Vec<String> = [format!("--cluster-cidr={cidr}")].into_iter().chain(given).collect();
    Some(standalone(&Flags::new(&arguments), read))
}

/// A string, or a list of them.
fn words(value: &Value) -> Vec<String> {
    match value {
        Value::Array(list) => list.iter().flat_map(words).collect(),
        Value::String(word) => vec![word.clone()],
        _ => vec![],
    }
}

impl Options {
    /// kube-proxy's local traffic detectors: what is not local is masqueraded. By a link they see where a packet comes in, and a pod's comes in by
    /// a veth link that is no bridge's port.
    fn masquerade(&self) -> Masquerade {
        if self.masquerade_all {
            return Masquerade::All;
        }
        let but = |others: String| Masquerade::AllButOthers(others);
        match self.detect_local_mode.as_str() {
            "NodeCIDR" => but("the node's podCIDR".to_owned()),
            "BridgeInterface" => but(format!("the bridge {}", self.bridge)),
            "InterfaceNamePrefix" if is_ours(&self.interface_prefix) => Masquerade::Nobody(format!(
                "it takes links whose names begin with {} for the cluster's own, and the underlay pods' are such",
                self.interface_prefix
            )),
            "InterfaceNamePrefix" => but(format!("links whose names begin with {}", self.interface_prefix)),
            _ => match self.cluster_cidr.split(',').filter_map(|cidr| cidr.trim().parse().ok()).collect::<Vec<_>>() {
                cidrs if cidrs.is_empty() => {
                    Masquerade::Nobody("neither masqueradeAll nor a clusterCIDR is set".to_owned())
                }
                cidrs => Masquerade::AllBut(cidrs),
            },
        }
    }
}

/// Whether names of the node's ends of our veth pairs (`veth` and hexadecimal digits) may begin so.
fn is_ours(prefix: &str) -> bool {
    let digits = prefix.strip_prefix("veth").map(|rest| rest.chars().all(|c| c.is_ascii_hexdigit()));
    digits.unwrap_or_else(|| "veth".starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(line: &str, files: &[(&str, &str)]) -> Option<Masquerade> {
        let arguments: Vec<_> = line.split(' ').map(str::to_owned).collect();
        of_process(&arguments, |path| files.iter().find(|(name, _)| *name == path).map(|(_, text)| (*text).to_owned()))
    }

    fn flags(line: &str) -> Masquerade {
        of(&format!("/usr/local/bin/kube-proxy {line}"), &[]).unwrap()
    }

    fn all_but(cidrs: &[&str]) -> Masquerade {
        Masquerade::AllBut(cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect())
    }

    fn is_nobody(masquerade: &Masquerade) -> bool {
        matches!(masquerade, Masquerade::Nobody(_))
    }

    #[test]
    fn a_switch_has_all_the_words_of_go_and_its_last_value_counts() {
        for line in [
            "--masquerade-all",
            "--masquerade-all --v=2",
            "--masquerade_all=T",
            "--masquerade-all=1",
            "--masquerade-all=f --masquerade-all",
        ] {
            assert_eq!(flags(line), Masquerade::All, "{line}");
        }
        for word in ["false", "False", "FALSE", "f", "F", "0"] {
            assert!(is_nobody(&flags(&format!("--masquerade-all={word} --v=2"))), "{word}");
        }
        assert!(is_nobody(&flags("-- --masquerade-all")));
    }

    #[test]
    fn cidrs_come_with_the_flag_or_after_it() {
        assert_eq!(flags("--cluster-cidr 10.0.0.0/8,fd00::/48"), all_but(&["10.0.0.0/8", "fd00::/48"]));
        assert_eq!(flags("--cluster_cidr=10.0.0.0/8 --detect-local-mode=ClusterCIDR"), all_but(&["10.0.0.0/8"]));
    }

    #[test]
    fn whoever_is_told_by_something_else_than_a_cidr_is_not_the_pod_with_a_veth_pair_of_ours() {
        for line in [
            "NodeCIDR",
            "BridgeInterface --pod-bridge-interface=cbr0",
            "InterfaceNamePrefix --pod-interface-name-prefix=cali",
        ] {
            let masquerade = flags(&format!("--detect-local-mode={line}"));
            assert!(matches!(masquerade, Masquerade::AllButOthers(_)), "{line}: {masquerade:?}");
        }
        for prefix in ["veth", "ve", "veth0", "vetha"] {
            assert!(is_nobody(&flags(&format!(
                "--detect-local-mode InterfaceNamePrefix --pod-interface-name-prefix {prefix}"
            ))));
        }
        assert!(!is_nobody(&flags("--detect-local-mode InterfaceNamePrefix --pod-interface-name-prefix vethwe")));
    }

    const FILE: &str = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nclusterCIDR: 10.233.0.0/18\n\
                        detectLocal:\n  bridgeInterface: \"\"\n  interfaceNamePrefix: \"\"\ndetectLocalMode: \"\"\n\
                        iptables:\n  masqueradeAll: false\n  masqueradeBit: null\nmode: \"\"\nnftables:\n  masqueradeAll: false\n";

    fn file(change: impl Fn(&str) -> String) -> Masquerade {
        of("kube-proxy --config=/config.conf --masquerade-all", &[("/config.conf", &change(FILE))]).unwrap()
    }

    #[test]
    fn a_file_as_kubeadm_writes_it_counts_more_than_flags() {
        assert_eq!(file(str::to_owned), all_but(&["10.233.0.0/18"]));
        assert_eq!(file(|text| text.replacen("masqueradeAll: false", "masqueradeAll: yes", 1)), Masquerade::All);
        assert_eq!(
            file(|text| text.replace("detectLocal:", "other:").replace("Mode: \"\"", "Mode: NodeCIDR")),
            flags("--detect-local-mode=NodeCIDR")
        );
        // The other backend's setting is of no account.
        assert_eq!(
            file(|text| text
                .replacen("masqueradeAll: false", "masqueradeAll: true", 1)
                .replace("mode: \"\"", "mode: nftables")),
            all_but(&["10.233.0.0/18"])
        );
    }

    #[test]
    fn a_file_that_cannot_be_read_is_said() {
        assert!(matches!(of("kube-proxy --config /gone", &[]), Some(Masquerade::Unknown(_))));
        assert!(matches!(file(|_| "[".to_owned()), Masquerade::Unknown(_)));
    }

    #[test]
    fn kube_proxy_is_found_in_k3s_kubelite_and_hyperkube() {
        let args = "# kube-proxy\n--cluster-cidr=10.1.0.0/16\n--masquerade-all=\"true\"\n";
        assert_eq!(
            of("/snap/microk8s/1/kubelite --kube-proxy-args-file=/args --start-control-plane=true", &[("/args", args)]),
            Some(Masquerade::All)
        );
        assert_eq!(of("/hyperkube proxy --masquerade-all", &[]), Some(Masquerade::All));
        assert_eq!(of("k3s agent --kube-proxy-arg=masquerade-all=true", &[]), Some(Masquerade::All));
        assert_eq!(
            of("k3s server --kube-proxy-arg detect-local-mode=NodeCIDR", &[]),
            Some(flags("--detect-local-mode=NodeCIDR"))
        );
        assert_eq!(of("k3s kubectl get pods", &[]), None);
        assert_eq!(of("k3s server --disable-kube-proxy", &[]), None);
    }

    #[test]
    fn k3s_hides_its_flags_and_has_them_in_its_file() {
        let hidden = ["/usr/local/bin/k3s server".to_owned()];
        let with =
            |file: &str| of_process(&hidden, |path| (path == K3S_FILE && !file.is_empty()).then(|| file.to_owned()));
        assert_eq!(with(""), Some(all_but(&[K3S_CLUSTER_CIDR])));
        assert_eq!(with("kube-proxy-arg:\n- masquerade-all=true\n"), Some(Masquerade::All));
        assert_eq!(with("cluster-cidr: 10.9.0.0/16,fd00::/56\n"), Some(all_but(&["10.9.0.0/16", "fd00::/56"])));
        assert_eq!(with("disable-kube-proxy: true\n"), None);
    }
}
