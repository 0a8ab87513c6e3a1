//! Who takes part in the socket path.

use std::{
    collections::{BTreeMap, HashSet},
    net::IpAddr,
    path::{Path, PathBuf},
};

use cluster_api::Name;

/// The annotation by which a pod says for itself whether it takes part: "true" or "false".
pub const ANNOTATION: &str = "underpass.io/socket-path";

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
#[derive(Clone, Debug, Default)]
pub struct Pod {
    /// What its annotation says.
    pub annotation: Option<bool>,
    /// Its annotation, if that says neither.
    pub wrong: Option<String>,
    /// Its addresses, none for a pod in the node's network namespace, which is the node's, and for one that has ended.
    pub addresses: Vec<IpAddr>,
}

/// Where a network namespace is found.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// At this path.
    Path(PathBuf),
    /// Where one of these addresses is: a pod that our plugin knows nothing of.
    Addresses(Vec<IpAddr>),
}

/// The network namespaces that are not as the rest of the cluster is, which is `default`. What a pod says of itself comes
/// before what its networks say; of several networks, one that leaves the pod out is enough.
pub fn exceptions(default: bool, attachments: &[Attachment], pods: &BTreeMap<Name, Pod>) -> Vec<Place> {
    let annotation = |pod: &Name| pods.get(pod).and_then(|pod| pod.annotation);
    let mut sandboxes: BTreeMap<&PathBuf, (Option<&Name>, bool)> = BTreeMap::new();
    for Attachment { pod, netns, setting } in attachments {
        let (name, takes_part) = sandboxes.entry(netns).or_insert((pod.as_ref(), true));
        *takes_part &= *setting;
        *name = name.or(pod.as_ref());
    }
    let known: Vec<&Name> = sandboxes.values().filter_map(|(name, _)| *name).collect();
    let of_ours = sandboxes.iter().filter_map(|(netns, (name, setting))| {
        let takes_part = name.and_then(annotation).unwrap_or(*setting);
        (takes_part != default).then(|| Place::Path((*netns).clone()))
    });
    let of_others = pods.iter().filter_map(|(name, pod)| {
        let differs = pod.annotation.is_some_and(|takes_part| takes_part != default);
        (differs && !pod.addresses.is_empty() && !known.contains(&name))
            .then(|| Place::Addresses(pod.addresses.clone()))
    });
    of_ours.chain(of_others).collect()
}

/// The paths of these places. Whatever their number, each of the node's network namespaces is looked into once, and none if
/// nobody is found by addresses.
pub fn paths(
    places: &[Place],
    namespaces: impl Fn() -> Vec<PathBuf>,
    addresses_in: impl Fn(&Path) -> Vec<IpAddr>,
) -> Vec<PathBuf> {
    let (mut paths, mut addresses) = (Vec::new(), HashSet::new());
    for place in places {
        match place {
            Place::Path(path) => paths.push(path.clone()),
            Place::Addresses(of_pod) => addresses.extend(of_pod.iter().copied()),
        }
    }
    if !addresses.is_empty() {
        let has_one = |path: &PathBuf| addresses_in(path).iter().any(|address| addresses.contains(address));
        paths.extend(namespaces().into_iter().filter(has_one));
    }
    paths
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    fn name(text: &str) -> Name {
        Name { namespace: "default".to_owned(), name: text.to_owned() }
    }

    fn attachment(pod: &str, setting: bool) -> Attachment {
        Attachment { pod: Some(name(pod)), netns: PathBuf::from(format!("/run/netns/{pod}")), setting }
    }

    fn path(pod: &str) -> Place {
        Place::Path(PathBuf::from(format!("/run/netns/{pod}")))
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
        let says = |annotation| BTreeMap::from([(name("a"), Pod { annotation, ..Pod::default() })]);
        assert_eq!(exceptions(true, &attachments, &says(Some(true))), []);
        assert_eq!(exceptions(true, &[attachment("a", true)], &says(Some(false))), [path("a")]);
    }

    #[test]
    fn each_namespace_is_looked_into_once_for_all_pods_and_none_where_nobody_is_looked_for() {
        let namespaces = || (1..=9).map(|n| PathBuf::from(format!("/run/netns/{n}"))).collect();
        let address = |n: &str| format!("10.233.1.{n}").parse::<IpAddr>().unwrap();
        let looks = Cell::new(0);
        let addresses_in = |path: &Path| {
            looks.set(looks.get() + 1);
            vec![address(path.file_name().unwrap().to_str().unwrap())]
        };
        let places = ["2", "9", "77"].map(|n| Place::Addresses(vec![address(n)]));
        let found = paths(&places, namespaces, addresses_in);
        assert_eq!(found, ["/run/netns/2", "/run/netns/9"].map(PathBuf::from));
        assert_eq!(looks.replace(0), 9);
        assert_eq!(paths(&[Place::Path("/a".into())], namespaces, addresses_in), [PathBuf::from("/a")]);
        assert_eq!(looks.get(), 0);
    }

    #[test]
    fn a_pod_of_another_plugin_is_found_by_its_addresses_and_one_on_the_host_network_is_the_nodes() {
        let addresses = vec!["10.233.1.2".parse().unwrap()];
        let pod = |addresses: &Vec<IpAddr>| Pod { annotation: Some(false), addresses: addresses.clone(), wrong: None };
        let pods = BTreeMap::from([(name("a"), pod(&addresses)), (name("host"), pod(&vec![]))]);
        assert_eq!(exceptions(true, &[], &pods), [Place::Addresses(addresses)]);
        assert_eq!(exceptions(true, &[attachment("a", true)], &pods), [path("a")]);
    }
}
