//! Who takes part in the socket path.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::{Path, PathBuf},
};

use cluster_api::{Name, socket_path};

/// A pod's interface that our plugin made a way for.
#[derive(Clone, Debug)]
pub struct Attachment {
    /// Its pod, where the runtime said which one it is.
    pub pod: Option<Name>,
    /// Its network namespace.
    pub netns: PathBuf,
    /// The setting `socketPath` of its network, or the cluster's.
    pub setting: bool,
}

/// A pod of this node, as the API has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pod {
    /// Whether it takes part, where its annotations decide.
    pub takes_part: Option<bool>,
    /// Our annotation, if that says neither.
    pub wrong: Option<String>,
    /// What tells it from one of its name before it and after it.
    pub uid: String,
    /// It has no network namespace to itself: it is in the node's, or has ended.
    pub has_none: bool,
    /// Its addresses. The API has them only when its first containers may have begun.
    pub addresses: Vec<IpAddr>,
    /// It was told to end, and may have no network namespace any more.
    pub is_leaving: bool,
}

/// A pod's network namespace, by where it is found.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Sandbox {
    /// At this path.
    Path(PathBuf),
    /// Where this pod is, of which our plugin knows nothing.
    Pod {
        /// Which one.
        name: Name,
        /// It has one of these there, if they are known yet.
        addresses: Vec<IpAddr>,
        /// It has a process there whose cgroup has this.
        uid: String,
    },
}

/// What a pod's annotations say of its part: ours, or else none where a service mesh leads its connections through a proxy.
/// That goes by the address which the application asks for, so it has to be the Service's
/// (<https://docs.cilium.io/en/stable/network/servicemesh/istio/>).
pub fn takes_part(annotations: &BTreeMap<String, String>, with_meshes: bool) -> Option<bool> {
    let ours = socket_path(annotations).ok().flatten();
    ours.or_else(|| (!with_meshes && is_of_mesh(annotations)).then_some(false))
}

/// By what a mesh writes on a pod whose connections it redirects, not by what asks it to. The page of settings has the list.
fn is_of_mesh(annotations: &BTreeMap<String, String>) -> bool {
    let has = |key| annotations.contains_key(key);
    let is = |key, values: &[&str]| annotations.get(key).is_some_and(|value| values.contains(&value.as_str()));
    // Istio: a sidecar, and ambient mode (istio/istio, pkg/config/constants: pending is redirected too).
    has("sidecar.istio.io/status")
        || is("ambient.istio.io/redirection", &["enabled", "pending"])
        // linkerd/linkerd2, pkg/inject: injectObjectMeta.
        || has("linkerd.io/proxy-version")
        // kumahq/kuma, pkg/plugins/runtime/k8s/webhooks/injector: NewAnnotations.
        || is("kuma.io/sidecar-injected", &["true"])
        // Consul, where the proxy is transparent (hashicorp/consul-k8s, mesh_webhook.go; its CNI plugin writes other values).
        || has("consul.hashicorp.com/transparent-proxy-status")
}

/// The network namespaces that are not as the rest of the cluster is, which is `default`. What a pod's annotations say comes
/// before what its networks say; of several networks, one that leaves the pod out is enough.
pub fn exceptions(default: bool, attachments: &[Attachment], pods: &BTreeMap<Name, Pod>) -> Vec<Sandbox> {
    let says = |pod: &Name| pods.get(pod).and_then(|pod| pod.takes_part);
    let mut sandboxes: BTreeMap<&PathBuf, (Option<&Name>, bool)> = BTreeMap::new();
    for Attachment { pod, netns, setting } in attachments {
        let (name, takes_part) = sandboxes.entry(netns).or_insert((pod.as_ref(), true));
        *takes_part &= *setting;
        *name = name.or(pod.as_ref());
    }
    let known: Vec<&Name> = sandboxes.values().filter_map(|(name, _)| *name).collect();
    let of_ours = sandboxes.iter().filter_map(|(netns, (name, setting))| {
        let takes_part = name.and_then(says).unwrap_or(*setting);
        (takes_part != default).then(|| Sandbox::Path((*netns).clone()))
    });
    let of_others = pods.iter().filter_map(|(name, pod)| {
        let differs = pod.takes_part.is_some_and(|takes_part| takes_part != default);
        let sandbox = || Sandbox::Pod { name: name.clone(), addresses: pod.addresses.clone(), uid: pod.uid.clone() };
        (differs && !pod.has_none && !known.contains(&name)).then(sandbox)
    });
    of_ours.chain(of_others).collect()
}

/// What is found of sandboxes.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// The cookies of their network namespaces.
    pub cookies: BTreeSet<u64>,
    /// The pods that have addresses, and are nowhere.
    pub unfound: BTreeSet<Name>,
    /// The pods that have neither addresses nor a process yet, and their UIDs.
    pub awaited: BTreeMap<Name, String>,
}

/// How network namespaces are looked for.
pub trait Node {
    /// The cookie of the one at that path, if there is one.
    fn at(&self, path: &Path) -> Option<u64>;
    /// The cookies of all but the node's own, and the addresses in them.
    fn addresses(&self) -> Vec<(u64, Vec<IpAddr>)>;
    /// The cookies of those that processes are in whose cgroup has one of these UIDs, by UID.
    fn processes(&self, uids: &BTreeSet<&str>) -> BTreeMap<String, u64>;
}

/// Where these sandboxes are. All namespaces are looked into once for all pods, and not at all if nobody is found by addresses; then all
/// processes, if anybody is not.
pub fn find(sandboxes: &[Sandbox], node: &impl Node) -> Found {
    let (mut found, mut sought) = (Found::default(), vec![]);
    for sandbox in sandboxes {
        match sandbox {
            Sandbox::Path(path) => found.cookies.extend(node.at(path)),
            Sandbox::Pod { name, addresses, uid } => sought.push((name, addresses, uid)),
        }
    }
    let by_address = sought.iter().any(|(_, addresses, _)| !addresses.is_empty());
    let mut there = BTreeSet::new();
    for (cookie, here) in if by_address { node.addresses() } else { vec![] } {
        // Others may have given themselves a pod's address: it counts wherever it is.
        let is_here = |addresses: &[IpAddr]| addresses.iter().any(|address| here.contains(address));
        for (name, ..) in sought.iter().filter(|(_, addresses, _)| is_here(addresses)) {
            found.cookies.insert(cookie);
            there.insert(*name);
        }
    }
    sought.retain(|(name, ..)| !there.contains(name));
    let uids: BTreeSet<&str> = sought.iter().map(|(.., uid)| &***uid).collect();
    let cookies = if uids.is_empty() { BTreeMap::new() } else { node.processes(&uids) };
    for (name, addresses, uid) in sought {
        match cookies.get(uid) {
            Some(cookie) => _ = found.cookies.insert(*cookie),
            None if addresses.is_empty() => _ = found.awaited.insert(name.clone(), uid.clone()),
            None => _ = found.unfound.insert(name.clone()),
        }
    }
    found
}

/// What names a pod's cgroup: its UID, but of a static pod, of which the API has the mirror, the digest of its file
/// (`ConfigMirrorAnnotationKey` in Kubernetes' pkg/kubelet/types). Kubelet runs no other pod that has the annotation, and what is no
/// digest may be another pod's UID. (Who may make pods on the node can say that of a static pod which it knows.)
pub fn uid_of(uid: Option<String>, annotations: &BTreeMap<String, String>) -> String {
    let is_digest = |text: &&String| text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let mirrored = annotations.get("kubernetes.io/config.mirror").filter(is_digest).cloned();
    mirrored.or(uid).unwrap_or_default()
}

/// Which of these UIDs the cgroups of a process have, as `/proc/PID/cgroup` says them. Kubelet names a pod's cgroup by its UID, in
/// which systemd wants no `-` (`GetPodCgroupNameSuffix` and `cgroupName.ToSystemd` in Kubernetes' pkg/kubelet/cm).
pub fn pod_of<'a>(cgroups: &str, uids: &BTreeSet<&'a str>) -> Option<&'a str> {
    let cgroups = cgroups.replace('_', "-");
    let is_of = |uid: &str| {
        let mut after = cgroups.match_indices("pod").filter_map(|(at, _)| cgroups[at + 3..].strip_prefix(uid));
        after.any(|rest| !rest.starts_with(|next: char| next.is_ascii_alphanumeric() || next == '-'))
    };
    uids.iter().copied().find(|uid| !uid.is_empty() && is_of(uid))
}

#[cfg(test)]
mod tests {
    use cluster_api::SOCKET_PATH;

    use super::*;

    fn name(text: &str) -> Name {
        Name { namespace: "default".to_owned(), name: text.to_owned() }
    }

    fn attachment(pod: &str, setting: bool) -> Attachment {
        Attachment { pod: Some(name(pod)), netns: PathBuf::from(format!("/run/netns/{pod}")), setting }
    }

    fn path(pod: &str) -> Sandbox {
        Sandbox::Path(PathBuf::from(format!("/run/netns/{pod}")))
    }

    #[test]
    fn who_is_as_the_cluster_is_needs_no_entry() {
        let attachments = [attachment("a", true), attachment("b", false)];
        assert_eq!(exceptions(true, &attachments, &BTreeMap::new()), [path("b")]);
        assert_eq!(exceptions(false, &attachments, &BTreeMap::new()), [path("a")]);
    }

    #[test]
    fn one_network_that_leaves_a_pod_out_is_enough_and_its_annotation_comes_first() {
        let attachments = [attachment("a", true), attachment("a", false)];
        assert_eq!(exceptions(true, &attachments, &BTreeMap::new()), [path("a")]);
        let says = |takes_part| BTreeMap::from([(name("a"), Pod { takes_part, ..Pod::default() })]);
        assert_eq!(exceptions(true, &attachments, &says(Some(true))), []);
        assert_eq!(exceptions(true, &[attachment("a", true)], &says(Some(false))), [path("a")]);
    }

    #[test]
    fn a_pod_whose_connections_a_mesh_redirects_is_left_out_unless_our_annotation_says_otherwise() {
        let with = |annotations: &[(&str, &str)]| {
            let owned = annotations.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
            takes_part(&owned.collect(), false)
        };
        let meshes = [
            ("sidecar.istio.io/status", "{}"),
            ("ambient.istio.io/redirection", "enabled"),
            ("ambient.istio.io/redirection", "pending"),
            ("linkerd.io/proxy-version", "edge-25.1.1"),
            ("kuma.io/sidecar-injected", "true"),
            ("consul.hashicorp.com/transparent-proxy-status", "enabled"),
        ];
        for mesh in meshes {
            assert_eq!(with(&[mesh]), Some(false), "{mesh:?}");
            assert_eq!(with(&[mesh, (SOCKET_PATH, "true")]), Some(true), "{mesh:?}");
            assert_eq!(with(&[mesh, (SOCKET_PATH, "neither")]), Some(false), "{mesh:?}");
            assert_eq!(takes_part(&BTreeMap::from([(mesh.0.to_owned(), mesh.1.to_owned())]), true), None, "{mesh:?}");
        }
        // What asks for a sidecar, and may not have been heard; what was taken back; a proxy that redirects nothing.
        let others = [
            ("sidecar.istio.io/inject", "true"),
            ("linkerd.io/inject", "enabled"),
            ("ambient.istio.io/redirection", "disabled"),
            ("kuma.io/sidecar-injected", "false"),
            ("consul.hashicorp.com/connect-inject-status", "injected"),
        ];
        for other in others {
            assert_eq!(with(&[other]), None, "{other:?}");
        }
    }

    /// Ten namespaces: of each number the one with that cookie and address, and with a process of the pod with that UID.
    struct Ten {
        is_asked: bool,
    }

    fn address(n: u8) -> IpAddr {
        IpAddr::from([10, 233, 1, n])
    }

    impl Node for Ten {
        fn at(&self, path: &Path) -> Option<u64> {
            (path == "/a").then_some(4711)
        }

        fn addresses(&self) -> Vec<(u64, Vec<IpAddr>)> {
            assert!(self.is_asked, "nobody is looked for");
            let own = |n: u8| vec![IpAddr::from([127, 0, 0, 1]), address(n)];
            // Somebody has the second one's address too.
            (1..=9).map(|n| (n.into(), own(n))).chain([(12, own(2))]).collect()
        }

        fn processes(&self, uids: &BTreeSet<&str>) -> BTreeMap<String, u64> {
            assert!(self.is_asked, "nobody is looked for");
            (0..=9).map(|n| (n.to_string(), n)).filter(|(uid, _)| uids.contains(&**uid)).collect()
        }
    }

    #[test]
    fn who_is_found_by_an_address_or_a_process_is_found_in_one_look_and_who_is_not_is_named() {
        let pod = |n: u8, addresses: &[IpAddr], uid: &str| Sandbox::Pod {
            name: name(&n.to_string()),
            addresses: addresses.to_vec(),
            uid: uid.to_owned(),
        };
        let by_address = |n: u8| pod(n, &[address(n), address(n + 100)], "none");
        let by_process = |n: u8, addresses: &[IpAddr]| pod(n, addresses, &n.to_string());
        let at = |path: &str| Sandbox::Path(path.into());
        let sandboxes = [
            by_address(2),
            by_address(9),
            by_address(77),
            by_process(5, &[]),
            by_process(6, &[address(66)]),
            by_process(55, &[]),
            at("/a"),
            at("/b"),
        ];
        let found = find(&sandboxes, &Ten { is_asked: true });
        let wanted = Found {
            cookies: [2, 5, 6, 9, 12, 4711].into(),
            unfound: [name("77")].into(),
            awaited: [(name("55"), "55".to_owned())].into(),
        };
        assert_eq!(found, wanted);
        assert_eq!(find(&[at("/b")], &Ten { is_asked: false }), Found::default());
    }

    #[test]
    fn a_static_pods_cgroup_is_named_by_what_its_mirror_says_and_no_pods_by_another_ones_uid() {
        let (uid, other, digest) = (
            "0c9a7d3e-1f6b-4f0e-9f53-6f0a8f2f1d11",
            "7e2f8a1b-0000-4f0e-9f53-6f0a8f2f1d12",
            "5f3c1a0b9d8e7f60123456789abcdef0",
        );
        let of = |key: &str, value: &str| {
            uid_of(Some(uid.to_owned()), &BTreeMap::from([(format!("kubernetes.io/config.{key}"), value.to_owned())]))
        };
        assert_eq!(of("mirror", digest), digest);
        // What a copy of a static pod has too, and kubelet runs.
        assert_eq!(of("hash", digest), uid);
        for forged in [other, "", "1"] {
            assert_eq!(of("mirror", forged), uid, "{forged}");
        }
    }

    #[test]
    fn a_pods_processes_are_known_by_their_cgroup_with_either_driver() {
        let (uid, other) = ("0c9a7d3e-1f6b-4f0e-9f53-6f0a8f2f1d11", "7e2f8a1b-0000-4f0e-9f53-6f0a8f2f1d12");
        let uids = BTreeSet::from([uid, other, ""]);
        let with = |cgroups: &str| pod_of(cgroups, &uids);
        assert_eq!(with(&format!("0::/kubepods/besteffort/pod{uid}/4711\n")), Some(uid));
        let slice = uid.replace('-', "_");
        assert_eq!(
            with(&format!("0::/../kubepods.slice/kubepods-burstable-pod{slice}.slice/cri-1.scope\n")),
            Some(uid)
        );
        assert_eq!(with(&format!("12:pids:/a\n4:memory:/kubepods/pod{other}/1\n0::/\n")), Some(other));
        assert_eq!(with("0::/system.slice/containerd.service\n"), None);
        assert_eq!(with(&format!("0::/kubepods/pod{uid}0/1\n")), None, "another one's begins so");
    }

    #[test]
    fn a_pod_of_another_plugin_is_found_by_its_addresses_or_before_by_its_processes_and_one_on_the_host_network_is_the_nodes()
     {
        let addresses = vec!["10.233.1.2".parse().unwrap()];
        let pod = |addresses: &[IpAddr], has_none| Pod {
            takes_part: Some(false),
            uid: "1".to_owned(),
            addresses: addresses.to_vec(),
            has_none,
            ..Pod::default()
        };
        let pods = BTreeMap::from([
            (name("a"), pod(&addresses, false)),
            (name("host"), pod(&addresses, true)),
            (name("new"), pod(&[], false)),
        ]);
        let of = |pod: &str, addresses: &[IpAddr]| Sandbox::Pod {
            name: name(pod),
            addresses: addresses.to_vec(),
            uid: "1".to_owned(),
        };
        let new = of("new", &[]);
        assert_eq!(exceptions(true, &[], &pods), [of("a", &addresses), new.clone()]);
        assert_eq!(exceptions(true, &[attachment("a", true)], &pods), [path("a"), new]);
    }
}
