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
    /// Its addresses, none for a pod in the node's network namespace, which is the node's, and for one that has ended.
    pub addresses: Vec<IpAddr>,
    /// It was told to end, and may have no network namespace any more.
    pub is_leaving: bool,
}

/// A pod's network namespace, by where it is found.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Sandbox {
    /// At this path.
    Path(PathBuf),
    /// Where this pod, of which our plugin knows nothing, has one of these addresses.
    Addresses(Name, Vec<IpAddr>),
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
        (differs && !pod.addresses.is_empty() && !known.contains(&name))
            .then(|| Sandbox::Addresses(name.clone(), pod.addresses.clone()))
    });
    of_ours.chain(of_others).collect()
}

/// The cookies of these sandboxes, and the pods of which none is found. Those of the node are looked into once for all pods, and not
/// at all if nobody is found by addresses.
pub fn cookies(
    sandboxes: &[Sandbox],
    cookie_at: impl Fn(&Path) -> Option<u64>,
    look: impl FnOnce() -> Vec<(u64, Vec<IpAddr>)>,
) -> (BTreeSet<u64>, BTreeSet<Name>) {
    let (mut cookies, mut sought) = (BTreeSet::new(), Vec::new());
    for sandbox in sandboxes {
        match sandbox {
            Sandbox::Path(path) => cookies.extend(cookie_at(path)),
            Sandbox::Addresses(name, addresses) => sought.push((name, addresses)),
        }
    }
    let mut unfound: BTreeSet<Name> = sought.iter().map(|(name, _)| (*name).clone()).collect();
    for (cookie, here) in if sought.is_empty() { vec![] } else { look() } {
        for (name, addresses) in &sought {
            if addresses.iter().any(|address| here.contains(address)) {
                cookies.insert(cookie);
                unfound.remove(*name);
            }
        }
    }
    (cookies, unfound)
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

    #[test]
    fn who_is_found_by_an_address_is_found_in_one_look_at_all_namespaces_and_who_is_not_is_named() {
        let address = |n: u8| IpAddr::from([10, 233, 1, n]);
        let sandbox = |n: u8| Sandbox::Addresses(name(&n.to_string()), vec![address(n), address(n + 100)]);
        let sandboxes = [sandbox(2), sandbox(9), sandbox(77), Sandbox::Path("/a".into())];
        let look = || (1..=9).map(|n| (n.into(), vec![IpAddr::from([127, 0, 0, 1]), address(n)])).collect();
        let found = cookies(&sandboxes, |_| Some(4711), look);
        assert_eq!(found, ([2, 9, 4711].into(), [name("77")].into()));
        let found = cookies(&[Sandbox::Path("/a".into())], |_| None, || panic!("nobody is looked for"));
        assert_eq!(found, ([].into(), [].into()));
    }

    #[test]
    fn a_pod_of_another_plugin_is_found_by_its_addresses_and_one_on_the_host_network_is_the_nodes() {
        let addresses = vec!["10.233.1.2".parse().unwrap()];
        let pod =
            |addresses: &[IpAddr]| Pod { takes_part: Some(false), addresses: addresses.to_vec(), ..Pod::default() };
        let pods = BTreeMap::from([(name("a"), pod(&addresses)), (name("host"), pod(&[]))]);
        assert_eq!(exceptions(true, &[], &pods), [Sandbox::Addresses(name("a"), addresses)]);
        assert_eq!(exceptions(true, &[attachment("a", true)], &pods), [path("a")]);
    }
}
