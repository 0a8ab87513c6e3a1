use std::{fs, path::Path};

use serde_json::{Value, json};

use super::*;
use crate::cni::File;

fn objects(name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/cluster").join(name);
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn answer(documents: &[Value], options: &Options) -> Cluster {
    derive(&World::from_objects(documents, options.node.as_deref()), options).cluster.unwrap()
}

fn with(kind: PodCidrType) -> Options {
    Options { pod_cidr_type: Some(kind), ..Options::default() }
}

/// The Services' CIDRs and the pods', each with its sources.
fn sourced(cluster: &Cluster) -> (Value, Value) {
    let document = cluster.document();
    let section = |name: &str| {
        let cidrs = document["cidrs"][name].as_array().unwrap().iter();
        let entry =
            |cidr: &Value| (cidr.as_str().unwrap().to_owned(), document["sources"][cidr.as_str().unwrap()].clone());
        Value::Object(cidrs.map(entry).collect())
    };
    (section("service"), section("pod"))
}

fn pods(documents: &[Value], options: &Options) -> Value {
    json!(answer(documents, options).cidrs().pod)
}

fn node(annotations: Value, spec: Value, address: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": "n", "annotations": annotations}, "spec": spec,
        "status": {"addresses": [{"type": "InternalIP", "address": address}]}
    })
}

fn service_cidr(version: &str, name: &str, cidr: &str) -> Value {
    json!({
        "apiVersion": format!("networking.k8s.io/{version}"), "kind": "ServiceCIDR", "metadata": {"name": name},
        "spec": {"cidrs": [cidr]}, "status": {"conditions": [{"type": "Ready", "status": "True"}]}
    })
}

fn pool(name: &str, cidr: &str) -> Value {
    json!({
        "apiVersion": "crd.projectcalico.org/v1", "kind": "IPPool", "metadata": {"name": name}, "spec": {"cidr": cidr}
    })
}

#[test]
fn kubeadms_cluster_configuration_says_both() {
    let (service, pod) = sourced(&answer(&[objects("kubeadm.json")], &Options::default()));
    let from = "kubeadm-config, serviceSubnet";
    assert_eq!(service, json!({"10.96.0.0/16": [from], "fd00:10:96::/112": [from]}));
    let from = "kubeadm-config, podSubnet";
    assert_eq!(pod, json!({"10.244.0.0/16": [from], "fd00:10:244::/56": [from]}));
}

#[test]
fn the_control_planes_flags_say_both_in_args_and_command_in_one_word_and_in_two() {
    let (service, pod) = sourced(&answer(&[objects("kubeadm-pods.json")], &Options::default()));
    let from = [
        "pod kube-apiserver-node1, --service-cluster-ip-range",
        "pod kube-controller-manager-node1, --service-cluster-ip-range",
    ];
    assert_eq!(service, json!({"10.96.0.0/16": from, "fd00:10:96::/112": from}));
    let from = ["pod kube-controller-manager-node1, --cluster-cidr"];
    assert_eq!(pod, json!({"10.244.0.0/16": from, "fd00:10:244::/56": from}));

    let (service, pod) = sourced(&answer(&[objects("flags.json")], &Options::default()));
    let from = [
        "pod kube-apiserver-m1, --service-cluster-ip-range",
        "pod kube-controller-manager-m1, --service-cluster-ip-range",
    ];
    assert_eq!(service, json!({"10.233.64.0/18": from}));
    let expected = json!({
        "10.232.0.0/18": ["pod kube-controller-manager-m2, --cluster-cidr"],
        "10.233.0.0/18": ["pod kube-controller-manager-m1, --cluster-cidr"],
    });
    assert_eq!(pod, expected);
}

#[test]
fn a_flag_whose_value_is_a_variable_has_what_the_kubelet_fills_in() {
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "m", "namespace": "kube-system", "labels": {"component": "kube-controller-manager"}},
        "spec": {"containers": [{
            "command": ["/bin/sh", "-c", "exec kube-controller-manager --cluster-cidr=$(PODS) --v=2"],
            "env": [{"name": "PODS", "value": "10.9.0.0/16,fd00:9::/56"}, {"name": "OTHER", "valueFrom": {}}]
        }]}
    });
    assert_eq!(pods(&[pod], &Options::default()), json!(["10.9.0.0/16", "fd00:9::/56"]));
}

#[test]
fn k3s_and_rke2_servers_say_both_in_their_nodes_annotations() {
    let (service, pod) = sourced(&answer(&[objects("k3s.json")], &Options::default()));
    let from = "node orbstack, k3s.io/node-args, --service-cidr";
    assert_eq!(service, json!({"192.168.194.128/25": [from], "fd07:b51a:cc66:a:8000::/112": [from]}));
    let from = "node orbstack, k3s.io/node-args, --cluster-cidr";
    assert_eq!(pod, json!({"192.168.194.0/25": [from], "fd07:b51a:cc66:a::/72": [from]}));

    let (service, pod) = sourced(&answer(&[objects("rke2.json")], &Options::default()));
    let from = "node mgmt-cluster-my-bmh-foo, rke2.io/node-args";
    assert_eq!(service, json!({"100.73.0.0/16": [format!("{from}, --service-cidr")]}));
    assert_eq!(pod, json!({"100.72.0.0/16": [format!("{from}, --cluster-cidr")]}));
}

#[test]
fn what_an_agent_of_k3s_was_told_does_not_count_and_a_servers_flag_may_be_one_word() {
    let agent = "[\"agent\",\"--node-label\",\"--cluster-cidr=1.2.3.0/24\"]";
    let server = "[\"server\",\"--cluster-init\",\"true\",\"--cluster-cidr=10.52.0.0/16,fd52::/56\"]";
    let node = |args: &str| node(json!({"k3s.io/node-args": args}), json!({}), "10.0.2.15");
    assert_eq!(pods(&[node(agent), node(server)], &Options::default()), json!(["10.52.0.0/16", "fd52::/56"]));
}

#[test]
fn a_server_of_k3s_or_rke2_that_was_told_nothing_has_their_defaults() {
    for (file, from) in [
        ("k3s-defaults.json", "node lima-rancher-desktop, k3s.io/node-args"),
        ("rke2-defaults.json", "node nori, rke2.io/node-args"),
    ] {
        let (service, pod) = sourced(&answer(&[objects(file)], &Options::default()));
        let not_given = |flag| json!([format!("{from}, {flag} not given: its default")]);
        assert_eq!(service, json!({"10.43.0.0/16": not_given("--service-cidr")}));
        assert_eq!(pod, json!({"10.42.0.0/16": not_given("--cluster-cidr")}));
    }
    let ipv6 = node(json!({"k3s.io/node-args": "[\"server\"]"}), json!({}), "fd00::1");
    assert_eq!(pods(&[ipv6], &Options::default()), json!(["fd00:42::/56"]));
}

#[test]
fn flannels_net_conf_says_the_pods_of_both_families() {
    let (_, pod) = sourced(&answer(&[objects("flannel.json")], &Options::default()));
    let expected = json!({
        "10.244.0.0/16": ["kube-flannel-cfg, Network"], "fd00:244::/56": ["kube-flannel-cfg, IPv6Network"]
    });
    assert_eq!(pod, expected);
    let mut old = objects("flannel.json");
    old["items"][0]["metadata"]["namespace"] = json!("kube-system");
    old["items"][0]["data"]["net-conf.json"] = json!(r#"{"Network": "10.1.0.0/16", "IPv6Network": "fd00::/56"}"#);
    assert_eq!(pods(&[old], &Options::default()), json!(["10.1.0.0/16"]));
}

#[test]
fn at_last_the_nodes_own_blocks_count() {
    let (_, pod) = sourced(&answer(&[objects("nodes.json")], &Options::default()));
    assert_eq!(pod, json!({"10.4.0.0/23": ["node a, podCIDRs", "node b, podCIDRs"]}));
}

#[test]
fn each_source_of_cluster_comes_before_the_next() {
    let mut order = vec![
        (objects("kubeadm.json"), json!(["10.244.0.0/16", "fd00:10:244::/56"])),
        (objects("flags.json"), json!(["10.232.0.0/18", "10.233.0.0/18"])),
        (objects("rke2.json"), json!(["100.72.0.0/16"])),
        (objects("flannel.json"), json!(["10.244.0.0/16", "fd00:244::/56"])),
        (objects("nodes.json"), json!(["10.4.0.0/23"])),
    ];
    while let Some((_, expected)) = order.first() {
        let documents: Vec<Value> = order.iter().map(|(objects, _)| objects.clone()).collect();
        assert_eq!(pods(&documents, &with(PodCidrType::Cluster)), *expected);
        order.remove(0);
    }
}

#[test]
fn service_cidrs_count_that_are_ready_or_held_back_while_they_are_deleted_in_each_version_of_the_api() {
    let service = |name: &str| sourced(&answer(&[objects(name)], &Options::default())).0;
    for version in ["v1", "v1beta1", "v1alpha1"] {
        let from = ["ServiceCIDR kubernetes"];
        let expected = json!({"10.233.64.0/18": from, "fd00:233:64::/108": from});
        assert_eq!(service(&format!("service-cidrs-{version}.json")), expected, "{version}");
    }
    let expected = json!({
        "10.8.0.0/20": ["ServiceCIDR kubernetes"],
        "10.9.0.0/20": ["ServiceCIDR unready (being deleted)"],
        "10.11.0.0/20": ["ServiceCIDR going (being deleted)"],
    });
    assert_eq!(service("nodes.json"), expected, "one is new and not ready yet");
}

#[test]
fn service_cidrs_come_before_the_control_planes_configuration_and_the_newest_version_first() {
    let documents = [
        objects("kubeadm.json"),
        service_cidr("v1", "kubernetes", "10.7.0.0/16"),
        service_cidr("v1beta1", "old", "10.8.0.0/16"),
    ];
    assert_eq!(json!(answer(&documents, &Options::default()).cidrs().service), json!(["10.7.0.0/16"]));
}

#[test]
fn a_disabled_calico_pool_counts_while_a_block_in_it_holds_addresses() {
    let calico = objects("calico.json");
    let (_, pod) = sourced(&answer(std::slice::from_ref(&calico), &Options::default()));
    let expected = json!({
        "10.50.0.0/16": ["IPPool old-in-use (disabled, with addresses in use)"],
        "10.233.0.0/18": ["IPPool default-ipv4-ippool"],
        "fd00:233::/64": ["IPPool default-ipv6-ippool"],
    });
    assert_eq!(pod, expected);
    let mut emptied = calico.clone();
    for block in emptied["items"].as_array_mut().unwrap().iter_mut().filter(|o| o["kind"] == "IPAMBlock") {
        block["spec"]["allocations"] = json!([null]);
    }
    assert_eq!(pods(&[emptied], &Options::default()), json!(["10.233.0.0/18", "fd00:233::/64"]));
    let mut deleted = calico;
    deleted["items"].as_array_mut().unwrap().retain(|object| object["metadata"]["name"] != "old-in-use");
    assert_eq!(pods(&[deleted], &Options::default()), json!(["10.233.0.0/18", "fd00:233::/64"]));
}

#[test]
fn blocks_are_not_read_where_no_pool_is_disabled() {
    let world = World::from_objects(&[pool("a", "10.1.0.0/16"), service_cidr("v1", "k", "10.2.0.0/16")], None);
    let derived = derive(&world, &Options::default());
    assert!(!derived.needs.contains(&Kind::CalicoBlocks), "{:?}", derived.needs);
    assert!(!derived.needs.contains(&Kind::Nodes), "{:?}", derived.needs);
}

#[test]
fn ciliums_ipam_mode_decides() {
    let (_, pod) = sourced(&answer(&[objects("cilium-cluster-pool.json")], &Options::default()));
    let expected = json!({
        "10.20.0.0/15": ["cilium-config, cluster-pool-ipv4-cidr"],
        "fd00:20::/104": ["cilium-config, cluster-pool-ipv6-cidr"],
    });
    assert_eq!(pod, expected);
    let (_, pod) = sourced(&answer(&[objects("cilium-multi-pool.json")], &Options::default()));
    let expected = json!({
        "10.10.0.0/16": ["CiliumPodIPPool default"], "10.30.0.0/15": ["CiliumPodIPPool blue"],
        "fd00:30::/104": ["CiliumPodIPPool blue"]
    });
    assert_eq!(pod, expected);
    let (_, pod) = sourced(&answer(&[objects("cilium-kubernetes.json")], &Options::default()));
    assert_eq!(pod, json!({"10.240.1.0/24": ["node w1, podCIDRs"]}));
    let mut other = objects("cilium-kubernetes.json");
    other["items"][0]["data"]["ipam"] = json!("eni");
    let other = answer(&[other], &Options::default());
    assert!(other.pod.is_empty() && other.problems.iter().any(|problem| problem.contains("ipam eni")));
}

#[test]
fn auto_goes_by_the_nodes_cni_configuration_and_without_one_by_what_the_api_has() {
    let both = [objects("calico.json"), objects("cilium-cluster-pool.json"), objects("kubeadm.json")];
    let chosen = |cni: &[(&str, &str)], documents: &[Value]| {
        let cni = cni.iter().map(|(name, text)| ((*name).to_owned(), Ok((*text).to_owned()))).collect();
        answer(documents, &Options { cni, ..Options::default() }).pod_cidr_type
    };
    let (calico, cilium, flannel) = (r#"{"type": "calico"}"#, r#"{"type": "cilium-cni"}"#, r#"{"type": "flannel"}"#);
    assert_eq!(chosen(&[("10.conf", calico)], &both), PodCidrType::Calico);
    assert_eq!(chosen(&[("10.conf", cilium), ("20.conf", calico)], &both), PodCidrType::Cilium);
    assert_eq!(chosen(&[("10.conf", flannel)], &both), PodCidrType::Cluster);
    assert_eq!(chosen(&[], &both), PodCidrType::Calico);
    assert_eq!(chosen(&[], &both[1..]), PodCidrType::Cilium);
    assert_eq!(chosen(&[], &both[2..]), PodCidrType::Cluster);
    // Calico with a datastore of its own.
    assert_eq!(chosen(&[("10.conf", calico)], &both[2..]), PodCidrType::Cluster);
}

#[test]
fn none_finds_no_pods_and_no_services_complains_of_nothing_and_asks_for_neither() {
    let documents = [objects("calico.json"), objects("service-cidrs-v1.json")];
    let derived = derive(&World::from_objects(&documents, None), &with(PodCidrType::None));
    assert_eq!(derived.needs, BTreeSet::from([Kind::SpiderCoordinator, Kind::Settings]));
    let cluster = derived.cluster.unwrap();
    assert_eq!((cluster.service, cluster.pod, cluster.problems), (vec![], vec![], vec![]));
}

#[test]
fn the_command_line_comes_before_the_clusters_settings_and_a_spider_coordinator_before_our_config_map() {
    let coordinator = json!({
        "apiVersion": "spiderpool.spidernet.io/v2beta1", "kind": "SpiderCoordinator", "metadata": {"name": "default"},
        "spec": {"podCIDRType": "cilium", "txQueueLen": 7}
    });
    let config_map = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "underpass", "namespace": "kube-system"},
        "data": {"settings": "podCIDRType: none\ntxQueueLen: 8"}
    });
    let all = [objects("calico.json"), objects("cilium-multi-pool.json"), coordinator, config_map];
    assert_eq!(answer(&all, &with(PodCidrType::Calico)).pod_cidr_type, PodCidrType::Calico);
    let cluster = answer(&all[..3], &Options::default());
    assert_eq!((cluster.pod_cidr_type, cluster.settings["txQueueLen"].clone()), (PodCidrType::Cilium, json!(7)));
    let cluster = answer(&[all[0].clone(), all[3].clone()], &Options::default());
    assert_eq!((cluster.pod_cidr_type, cluster.settings["txQueueLen"].clone()), (PodCidrType::None, json!(8)));
}

#[test]
fn what_is_wrong_is_refused_and_named_and_the_rest_is_served() {
    let own = node(json!({}), json!({}), "10.6.212.101");
    let wrong = ["10.1.0.0/33", "0.0.0.0/0", "10.6.0.0/16", "127.0.0.0/8", ""];
    let mut documents = vec![own, service_cidr("v1", "k", "10.96.0.0/12"), pool("good", "10.50.0.0/16")];
    documents.extend(wrong.iter().enumerate().map(|(index, cidr)| pool(&format!("wrong-{index}"), cidr)));
    let cluster = answer(&documents, &Options { node: Some("n".to_owned()), ..Options::default() });
    assert_eq!(json!(cluster.cidrs().pod), json!(["10.50.0.0/16"]));
    assert_eq!(cluster.problems.len(), wrong.len(), "{:?}", cluster.problems);
    for (index, problem) in cluster.problems.iter().enumerate() {
        assert!(problem.starts_with(&format!("IPPool wrong-{index}: ")), "{problem}");
    }
}

#[test]
fn where_the_own_node_has_no_address_or_is_not_there_no_cidr_is_checked_and_that_is_a_problem() {
    let options = Options { node: Some("n".to_owned()), ..Options::default() };
    let mut nameless = node(json!({}), json!({}), "");
    nameless["status"]["addresses"] = json!([{"type": "Hostname", "address": "n"}]);
    let around = pool("around", "10.0.0.0/8");
    let unchecked = |documents: &[Value]| {
        let cluster = answer(documents, &options);
        assert!(cluster.unchecked.iter().all(|unchecked| cluster.problems.contains(unchecked)));
        cluster.unchecked
    };
    let says = "no CIDR can be checked against the node's own addresses";
    assert_eq!(unchecked(std::slice::from_ref(&around)), Some(format!("there is no Node n (--node): {says}")));
    assert_eq!(unchecked(&[nameless, around.clone()]), Some(format!("Node n has no address: {says}")));
    assert_eq!(unchecked(&[node(json!({}), json!({}), "10.6.212.101"), around]), None);
    // Nothing is to be checked.
    assert_eq!(unchecked(&[]), None);
}

#[test]
fn a_pool_of_ten_thousand_cidrs_is_refused_and_the_others_are_served() {
    let cidrs: Vec<String> = (0..10_000).map(|n| format!("100.{}.{}.0/25", n / 256, n % 256)).collect();
    let huge = json!({
        "apiVersion": "cilium.io/v2alpha1", "kind": "CiliumPodIPPool", "metadata": {"name": "huge"},
        "spec": {"ipv4": {"cidrs": cidrs}}
    });
    let documents = [huge, objects("cilium-multi-pool.json"), objects("service-cidrs-v1.json")];
    let cluster = answer(&documents, &Options::default());
    assert_eq!(json!(cluster.cidrs().pod), json!(["10.10.0.0/16", "10.30.0.0/15", "fd00:30::/104"]));
    assert_eq!(cluster.problems, ["CiliumPodIPPool huge: 10000 CIDRs are too many: at most 1024 in all"]);
}

#[test]
fn the_order_of_objects_makes_no_difference() {
    let mut turned = objects("calico.json");
    turned["items"].as_array_mut().unwrap().reverse();
    let document = |objects| answer(&[objects], &Options::default()).document();
    assert_eq!(document(turned).to_string(), document(objects("calico.json")).to_string());
}

#[test]
fn while_something_is_not_known_there_is_no_answer_and_it_is_asked_for() {
    let derived = derive(&World::default(), &Options::default());
    assert_eq!(derived.cluster, None);
    let first = BTreeSet::from([Kind::SpiderCoordinator]);
    assert_eq!(derived.needs, first);
}

/// The answer for the node `n`, whose address is 10.6.212.101.
fn answer_for_the_node(documents: &[Value], given: Value) -> Cluster {
    let mut documents = documents.to_vec();
    documents.push(node(json!({}), json!({"podCIDRs": given}), "10.6.212.101"));
    answer(&documents, &Options { node: Some("n".to_owned()), ..Options::default() })
}

#[test]
fn canal_has_its_pods_from_its_nodes_and_not_from_calicos_pool() {
    let canal =
        r#"{"plugins": [{"type": "calico", "ipam": {"type": "host-local", "ranges": [[{"subnet": "usePodCidr"}]]}}]}"#;
    let from = |key| json!([format!("rke2-canal-config, {key}")]);
    let expected = json!({"10.42.0.0/16": from("Network"), "2001:cafe:42::/56": from("IPv6Network")});
    let with = |cni: Vec<File>| answer(&[objects("canal.json")], &Options { cni, ..Options::default() });
    let by_plugin = with(vec![("10-canal.conflist".to_owned(), Ok(canal.to_owned()))]);
    assert_eq!(sourced(&by_plugin).1, expected);
    assert_eq!(by_plugin.chosen_by, "plugin calico with ipam host-local in 10-canal.conflist");
    let by_api = with(vec![]);
    assert_eq!(sourced(&by_api).1, expected);
    assert_eq!(by_api.chosen_by, "the API has rke2-canal-config");
}

#[test]
fn calicos_pools_count_as_its_own_api_has_them_where_its_programs_keep_none() {
    let calico = [("10.conf".to_owned(), Ok(r#"{"type": "calico", "ipam": {"type": "calico-ipam"}}"#.to_owned()))];
    for cni in [vec![], calico.to_vec()] {
        let options = Options { cni, ..Options::default() };
        let both = [objects("calico-v3.json"), objects("kubeadm.json")];
        assert_eq!(pods(&both, &options), json!(["10.244.0.0/16"]));
        let kept = [objects("calico-v3.json"), pool("a", "10.1.0.0/16")];
        assert_eq!(pods(&kept, &options), json!(["10.1.0.0/16"]));
    }
}

#[test]
fn host_bits_are_masked_as_kubernetes_does_it_and_noted() {
    let config = |pods: &str| {
        json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "kubeadm-config", "namespace": "kube-system"},
            "data": {"ClusterConfiguration": format!("networking:\n  serviceSubnet: 10.96.0.1/12\n  podSubnet: {pods}\n")}
        })
    };
    let cluster = answer(&[config("10.244.0.1/16,fd00:244::1/56")], &Options::default());
    let (service, pod) = sourced(&cluster);
    assert_eq!(
        service,
        json!({"10.96.0.0/12": ["kubeadm-config, serviceSubnet (10.96.0.1/12, its host bits masked)"]})
    );
    let from = |said| json!([format!("kubeadm-config, podSubnet ({said}, its host bits masked)")]);
    assert_eq!(pod, json!({"10.244.0.0/16": from("10.244.0.1/16"), "fd00:244::/56": from("fd00:244::1/56")}));
    assert!(cluster.problems.is_empty());
}

#[test]
fn what_the_own_node_was_given_takes_the_place_of_a_cidr_that_contains_the_nodes() {
    let cluster = answer_for_the_node(&[objects("cilium-around.json")], json!(["10.9.9.0/24"]));
    assert_eq!(json!(cluster.cidrs().pod), json!(["10.0.1.0/24", "fd00::/104"]));
    assert!(cluster.problems.iter().any(|problem| problem.contains("10.0.0.0/8 contains the node's own address")));
    assert!(
        cluster.problems.iter().any(|problem| problem.starts_with("CiliumNode n: the pods' CIDRs of this node only"))
    );
    // Before Cilium has written its object, and with other networks, the Node has it.
    let config = objects("cilium-around.json")["items"][0].clone();
    let cluster = answer_for_the_node(&[config], json!(["10.9.9.0/24"]));
    assert_eq!(json!(cluster.cidrs().pod), json!(["10.9.9.0/24", "fd00::/104"]));
    let mut kubeadm = objects("kubeadm.json");
    kubeadm["items"][0]["data"]["ClusterConfiguration"] = json!("networking:\n  podSubnet: 10.0.0.0/8\n");
    let cluster = answer_for_the_node(&[kubeadm], json!(["10.244.3.0/24"]));
    assert_eq!(json!(cluster.cidrs().pod), json!(["10.244.3.0/24"]));
}

#[test]
fn ciliums_pools_that_the_own_node_was_given_are_read_in_both_spellings() {
    let mut documents = objects("cilium-around.json");
    documents["items"][1]["spec"]["ipam"] = json!({
        "pools": {"allocated": [{"pool": "default", "cidrs": ["10.0.7.0/24"]}, {"pool": "b", "cidrs": [{"cidr": "10.0.8.0/24"}]}]}
    });
    let cluster = answer_for_the_node(&[documents], json!([]));
    assert_eq!(json!(cluster.cidrs().pod), json!(["10.0.7.0/24", "10.0.8.0/24", "fd00::/104"]));
}

#[test]
fn kops_and_talos_label_their_control_plane_otherwise() {
    let (service, pod) = sourced(&answer(&[objects("kops.json")], &Options::default()));
    assert_eq!(service, json!({"100.64.0.0/13": ["pod kube-apiserver-i-0a, --service-cluster-ip-range"]}));
    assert_eq!(pod, json!({"100.96.0.0/11": ["pod kube-controller-manager-i-0a, --cluster-cidr"]}));
}

#[test]
fn openshifts_network_says_both_its_status_before_its_spec() {
    let (service, pod) = sourced(&answer(&[objects("openshift.json")], &Options::default()));
    let from = json!(["Network cluster, serviceNetwork"]);
    assert_eq!(service, json!({"172.30.0.0/16": from, "fd02::/112": from}));
    let from = json!(["Network cluster, clusterNetwork"]);
    assert_eq!(pod, json!({"10.128.0.0/14": from, "fd01::/48": from}));
    let mut new = objects("openshift.json");
    new["items"][0]["status"].take();
    assert_eq!(pods(&[new], &Options::default()), json!(["10.128.0.0/14"]));
}

#[test]
fn k0s_says_both_in_its_cluster_config_and_else_the_pods_in_kube_proxys() {
    let (service, pod) = sourced(&answer(&[objects("k0s.json")], &Options::default()));
    let from = |field| json!([format!("ClusterConfig k0s, {field}")]);
    assert_eq!(service, json!({"10.96.0.0/12": from("serviceCIDR"), "fd01::/108": from("IPv6serviceCIDR")}));
    assert_eq!(pod, json!({"10.244.0.0/16": from("podCIDR"), "fd00::/108": from("IPv6podCIDR")}));
    let (_, pod) = sourced(&answer(&[objects("k0s-proxy.json")], &Options::default()));
    assert_eq!(pod, json!({"10.244.0.0/16": ["kube-proxy, clusterCIDR"]}));
    let mut single = objects("k0s.json");
    single["items"][0]["spec"]["network"]["dualStack"]["enabled"] = json!(false);
    assert_eq!(pods(&[single], &Options::default()), json!(["10.244.0.0/16"]));
}

#[test]
fn rke1s_state_says_both_in_each_of_its_spellings_and_no_agent_asks_for_it() {
    let mut old = objects("rke1.json");
    let text = old["items"][0]["data"]["full-cluster-state"].as_str().unwrap().to_owned();
    let text = text.replace("kubeApi", "kube-api").replace("kubeController", "kube-controller");
    old["items"][0]["data"]["full-cluster-state"] = json!(text);
    for documents in [objects("rke1.json"), old] {
        let (service, pod) = sourced(&answer(std::slice::from_ref(&documents), &Options::default()));
        assert_eq!(service, json!({"10.43.0.0/16": ["full-cluster-state, serviceClusterIpRange"]}));
        assert_eq!(pod, json!({"10.42.0.0/16": ["full-cluster-state, clusterCidr"]}));
        let derived = derive(&World::from_objects(&[documents], None), &Options::default());
        assert!(!derived.needs.contains(&Kind::Rke1State));
    }
}

#[test]
fn where_nobody_says_the_services_cidr_it_is_assumed_around_the_api_servers_address_and_the_assumption_said() {
    let of = |addresses: Value| {
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "kubernetes", "namespace": "default"},
            "spec": {"clusterIPs": addresses}
        })
    };
    for (addresses, expected) in [
        (json!(["10.96.0.1"]), json!(["10.96.0.0/16"])),
        (json!(["172.20.0.1", "fd00:9::1"]), json!(["172.20.0.0/16", "fd00:9::/108"])),
        (json!(["10.152.183.1"]), json!(["10.152.183.0/24"])),
        (json!(["34.118.224.1"]), json!(["34.118.224.0/19"])),
        (json!(["10.6.0.1"]), json!(["10.6.0.0/17"])),
        (json!(["not an address"]), json!([])),
    ] {
        let cluster = answer_for_the_node(&[of(addresses.clone())], json!([]));
        assert_eq!(json!(cluster.cidrs().service), expected, "{addresses}");
        let said =
            cluster.problems.iter().filter(|problem| problem.contains("is assumed, since kubernetes.default is"));
        assert_eq!(said.count(), expected.as_array().unwrap().len());
    }
    let said = [of(json!(["10.96.0.1"])), service_cidr("v1", "kubernetes", "10.96.0.0/12")];
    let cluster = answer(&said, &Options::default());
    assert_eq!(json!(cluster.cidrs().service), json!(["10.96.0.0/12"]));
}

#[test]
fn an_agent_reads_the_control_planes_nodes_and_its_own_and_never_all() {
    let options = Options { node: Some("n".to_owned()), ..Options::default() };
    let derived = derive(&World::from_objects(&[service_cidr("v1", "k", "10.2.0.0/16")], Some("n")), &options);
    assert!(derived.needs.contains(&Kind::ControlPlaneNodes) && derived.needs.contains(&Kind::OwnNode));
    assert!(!derived.needs.contains(&Kind::Nodes), "{:?}", derived.needs);
    let cluster = answer_for_the_node(&[], json!(["10.244.3.0/24"]));
    assert_eq!(json!(cluster.cidrs().pod), json!(["10.244.3.0/24"]));
    assert!(cluster.problems.iter().any(|problem| problem.contains("of this node only")), "{:?}", cluster.problems);
}
