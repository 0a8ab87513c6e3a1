//! What kube-proxy does with the source address of a pod's connection to a Service.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use ipnet::IpNet;
use serde::Deserialize;

/// Whose connections to a ClusterIP get the node's address as source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Masquerade {
    /// Everybody's (`masqueradeAll`).
    All,
    /// Everybody's but those from these CIDRs (`clusterCIDR`).
    AllBut(Vec<IpNet>),
    /// Nobody's.
    Nobody,
}

/// The part of a KubeProxyConfiguration (kubeproxy.config.k8s.io/v1alpha1) that says whom to masquerade.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Configuration {
    #[serde(rename = "clusterCIDR")]
    cluster_cidr: String,
    iptables: Backend,
    nftables: Backend,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Backend {
    masquerade_all: bool,
}

/// What the kube-proxies in the caller's network namespace do, by their command lines and configuration files.
pub fn running() -> Vec<Masquerade> {
    let own = namespace(Path::new("/proc/thread-self"));
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten().map(|entry| entry.path());
    processes
        .filter(|process| own.is_some() && namespace(process) == own)
        .filter_map(|process| Some((arguments(&process)?, process)))
        .filter(|(arguments, _)| is_kube_proxy(arguments))
        .map(|(arguments, process)| masquerade(&arguments, |path| fs::read_to_string(inside(&process, path)).ok()))
        .collect()
}

fn namespace(process: &Path) -> Option<(u64, u64)> {
    let metadata = fs::metadata(process.join("ns/net")).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

fn arguments(process: &Path) -> Option<Vec<String>> {
    let text = fs::read_to_string(process.join("cmdline")).ok()?;
    Some(text.split_terminator('\0').map(str::to_owned).collect())
}

fn is_kube_proxy(arguments: &[String]) -> bool {
    arguments.iter().take(2).any(|argument| argument.rsplit('/').next() == Some("kube-proxy"))
}

/// A file as the process sees it: it is in a container of its own.
fn inside(process: &Path, path: &str) -> PathBuf {
    process.join("root").join(path.trim_start_matches('/'))
}

/// What a command line, and the configuration file that it may name, amount to. As in kube-proxy, a file makes the flags
/// of no account.
fn masquerade(arguments: &[String], read: impl Fn(&str) -> Option<String>) -> Masquerade {
    let file = flag(arguments, "config").and_then(|path| read(&path));
    let configuration = file.and_then(|text| serde_yaml_ng::from_str::<Configuration>(&text).ok());
    let (all, cidrs) = match configuration {
        Some(file) => (file.iptables.masquerade_all || file.nftables.masquerade_all, file.cluster_cidr),
        None => {
            let all = flag(arguments, "masquerade-all").is_some_and(|value| value != "false");
            (all, flag(arguments, "cluster-cidr").unwrap_or_default())
        }
    };
    let cidrs: Vec<IpNet> = cidrs.split(',').filter_map(|cidr| cidr.trim().parse().ok()).collect();
    match (all, cidrs.is_empty()) {
        (true, _) => Masquerade::All,
        (false, false) => Masquerade::AllBut(cidrs),
        (false, true) => Masquerade::Nobody,
    }
}

/// The value of `--name=value`, `--name value` or, for a switch, `--name`.
fn flag(arguments: &[String], name: &str) -> Option<String> {
    let option = format!("--{name}");
    arguments.iter().enumerate().find_map(|(index, argument)| match argument.split_once('=') {
        Some((key, value)) => (key == option).then(|| value.to_owned()),
        None => (*argument == option).then(|| arguments.get(index + 1).cloned().unwrap_or_default()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(line: &str, file: &str) -> Masquerade {
        let arguments: Vec<_> = line.split(' ').map(str::to_owned).collect();
        masquerade(&arguments, |path| (path == "/config.conf").then(|| file.to_owned()))
    }

    fn all_but(cidrs: &[&str]) -> Masquerade {
        Masquerade::AllBut(cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect())
    }

    #[test]
    fn flags_count_when_there_is_no_file() {
        assert_eq!(of("kube-proxy --masquerade-all", ""), Masquerade::All);
        assert_eq!(of("kube-proxy --masquerade-all=false --v=2", ""), Masquerade::Nobody);
        assert_eq!(of("kube-proxy --cluster-cidr 10.0.0.0/8,fd00::/48", ""), all_but(&["10.0.0.0/8", "fd00::/48"]));
    }

    #[test]
    fn a_file_as_kubeadm_writes_it_counts_more_than_flags() {
        let file = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nclusterCIDR: 10.233.0.0/18\n\
                    iptables:\n  masqueradeAll: false\n  masqueradeBit: null\nnftables:\n  masqueradeAll: false\n";
        assert_eq!(of("kube-proxy --config=/config.conf --masquerade-all", file), all_but(&["10.233.0.0/18"]));
        let file = file.replacen("masqueradeAll: false", "masqueradeAll: true", 1);
        assert_eq!(of("kube-proxy --config=/config.conf", &file), Masquerade::All);
    }
}
