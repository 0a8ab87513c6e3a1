//! The table of cases, `tests/fixtures/services.json`, and what cannot be said in it. The suites put the same cases through
//! a real kube-proxy.

use std::collections::{BTreeMap, BTreeSet};

use cluster_api::Name;
use cluster_api::k8s_openapi::api::{core::v1 as core, discovery::v1 as discovery};
use serde::Deserialize;
use serde_json::{Value, json};
use service_table::{Algorithm, BackendScope, Change, Protocol, Refuse, Service, ServiceTable, TrafficPolicy};

use crate::{
    cluster::{Cluster, Settings},
    offline,
};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Case {
    name: String,
    objects: Vec<Value>,
    expect: BTreeMap<String, Option<BTreeSet<String>>>,
    problem: Option<String>,
}

fn cases() -> Vec<Case> {
    serde_json::from_str(include_str!("../../../tests/fixtures/services.json")).unwrap()
}

fn node(name: &str, zone: &str, addresses: &[&str]) -> Value {
    let addresses: Vec<_> = addresses.iter().map(|address| json!({"type": "InternalIP", "address": address})).collect();
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": name, "labels": {"topology.kubernetes.io/zone": zone}},
        "status": {"addresses": addresses}
    })
}

fn node1() -> Value {
    node("node1", "a", &["10.6.212.101", "fd00:6::101"])
}

fn cluster(objects: impl IntoIterator<Item = Value>) -> Cluster {
    let mut cluster = Cluster::new(Settings { node: "node1".into(), ..Settings::default() });
    offline::tell(&mut cluster, objects.into_iter().collect());
    cluster
}

/// The same where there is no kube-proxy.
fn cluster_without_proxy(objects: impl IntoIterator<Item = Value>) -> Cluster {
    let mut cluster = Cluster::new(Settings { node: "node1".into(), all_node_ports: true, ..Settings::default() });
    offline::tell(&mut cluster, objects.into_iter().collect());
    cluster
}

/// Where each address and port of the table leads.
fn reach(table: &ServiceTable) -> BTreeMap<String, BTreeSet<String>> {
    let mut reach = BTreeMap::new();
    for service in &table.services {
        let protocol = if service.protocol == Protocol::Tcp { "tcp" } else { "udp" };
        let node_port = service.node_port.unwrap_or_default();
        let node_addresses = table.node_addresses.iter().filter(|_| node_port > 0);
        let external = service.external_ips.iter().chain(&service.load_balancer_ips);
        let frontends = (service.cluster_ips.iter().map(|address| (address, service.port, true)))
            .chain(external.map(|address| (address, service.port, false)))
            .chain(node_addresses.map(|address| (address, node_port, false)));
        for (address, port, internal) in frontends {
            let serves = |backend: &&service_table::Backend| {
                let local = !internal || service.internal_traffic_policy == TrafficPolicy::Cluster || backend.local;
                let excluded = if internal { BackendScope::External } else { BackendScope::Internal };
                backend.address.is_ipv4() == address.is_ipv4()
                    && local
                    && backend.scope != Some(excluded)
                    && backend.scope != Some(BackendScope::Node)
            };
            let backends = service.backends.iter().filter(serves);
            let name = |address, port| std::net::SocketAddr::new(address, port).to_string();
            let set = backends.map(|backend| name(backend.address, backend.port)).collect();
            reach.insert(format!("{protocol} {}", name(*address, port)), set);
        }
    }
    reach
}

#[test]
fn every_case_leads_where_kube_proxy_leads() {
    for case in cases() {
        let mut cluster = cluster([node1()].into_iter().chain(case.objects));
        let reach = reach(&cluster.table());
        for (frontend, expected) in &case.expect {
            assert_eq!(reach.get(frontend), expected.as_ref(), "{}: {frontend}", case.name);
        }
        let problems = format!("{:?}", cluster.problems());
        match &case.problem {
            Some(problem) => assert!(problems.contains(problem), "{}: {problems}", case.name),
            None => assert_eq!(problems, "{}", "{}", case.name),
        }
    }
}

#[test]
fn all_cases_together_are_each_as_alone() {
    let cases = cases();
    let objects = cases.iter().flat_map(|case| case.objects.clone());
    let reach = reach(&cluster([node1()].into_iter().chain(objects)).table());
    for case in &cases {
        for (frontend, expected) in &case.expect {
            assert_eq!(reach.get(frontend), expected.as_ref(), "{}: {frontend}", case.name);
        }
    }
}

#[test]
fn the_annotation_gives_the_algorithm_and_an_unknown_one_the_default() {
    let table = cluster([node1()].into_iter().chain(cases().into_iter().flat_map(|case| case.objects))).table();
    let of = |name| table.services.iter().find(|service| service.name == name).map(|service| service.lb_algorithm);
    assert_eq!(
        ["c1", "c84", "c85"].map(of),
        [Some(Algorithm::Random), Some(Algorithm::LeastConnections), Some(Algorithm::Random)]
    );
}

fn service(spec: &Value) -> Value {
    let mut object = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "web", "namespace": "default", "creationTimestamp": "2026-01-02T03:04:05Z"},
        "spec": {"clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1"], "ipFamilies": ["IPv4"], "ports": [{"port": 80}]}
    });
    for (key, value) in spec.as_object().into_iter().flatten() {
        object["spec"][key] = value.clone();
    }
    object
}

/// `ADDRESS[@NODE][!CONDITION]`, where a condition is `term`, `gone` or `unready`.
fn slice(name: &str, endpoints: &[&str]) -> Value {
    let endpoint = |text: &&str| {
        let (rest, condition) = text.split_once('!').unwrap_or((text, ""));
        let (address, node) = rest.split_once('@').unwrap_or((rest, "node2"));
        let conditions = match condition {
            "term" => json!({"ready": false, "serving": true, "terminating": true}),
            "gone" => json!({"ready": false, "serving": false, "terminating": true}),
            "unready" => json!({"ready": false, "serving": false, "terminating": false}),
            _ => json!({"ready": true}),
        };
        json!({"addresses": [address], "nodeName": node, "conditions": conditions})
    };
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": name, "namespace": "default", "labels": {"kubernetes.io/service-name": "web"}},
        "ports": [{"name": "", "port": 8080}], "endpoints": endpoints.iter().map(endpoint).collect::<Vec<_>>()
    })
}

fn web(cluster: &mut Cluster) -> Service {
    let services = cluster.table().services;
    let [only] = services.as_slice() else { panic!("{services:?}") };
    only.clone()
}

#[test]
fn a_service_of_the_table_is_what_the_loader_reads() {
    let spec = json!({"type": "NodePort", "ports": [{"name": "http", "port": 80, "nodePort": 30080}],
        "sessionAffinity": "ClientIP", "externalTrafficPolicy": "Local", "internalTrafficPolicy": "Local"});
    let mut named = slice("web-1", &["10.0.0.2", "10.0.0.1@node1"]);
    named["ports"] = json!([{"name": "http", "port": 8080}]);
    let table = cluster([node1(), service(&spec), named]).table();
    insta::assert_json_snapshot!(table, @r#"
    {
      "nodeAddresses": [
        "10.6.212.101",
        "fd00:6::101"
      ],
      "services": [
        {
          "namespace": "default",
          "name": "web",
          "portName": "http",
          "protocol": "TCP",
          "port": 80,
          "clusterIps": [
            "10.96.0.1"
          ],
          "nodePort": 30080,
          "internalTrafficPolicy": "Local",
          "externalTrafficPolicy": "Local",
          "sessionAffinity": {
            "timeoutSeconds": 10800
          },
          "backends": [
            {
              "address": "10.0.0.1",
              "port": 8080,
              "local": true
            },
            {
              "address": "10.0.0.2",
              "port": 8080,
              "scope": "external"
            }
          ],
          "created": "2026-01-02T03:04:05Z"
        }
      ]
    }
    "#);
}

#[test]
fn session_affinity_has_the_services_timeout_or_kubernetes_default() {
    let timeout = |seconds: Value| {
        let config = json!({"clientIP": {"timeoutSeconds": seconds}});
        let spec = json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": config});
        let mut cluster = cluster([service(&spec)]);
        (web(&mut cluster).session_affinity.unwrap().timeout_seconds, cluster.problems().len())
    };
    assert_eq!(timeout(json!(600)), (600, 0));
    assert_eq!(timeout(Value::Null), (10_800, 0));
    assert_eq!(timeout(json!(0)), (10_800, 1), "what the API would not take is named");
    assert_eq!(web(&mut cluster([service(&json!({}))])).session_affinity, None);
}

#[test]
fn what_gets_nothing_and_still_exists_drains() {
    let endpoints = ["10.0.0.1", "10.0.0.2!term", "10.0.0.3!gone", "10.0.0.4!unready"];
    let draining = |objects: Vec<Value>| {
        let service = web(&mut cluster(objects));
        service.draining.iter().map(|one| format!("{}:{} {}", one.address, one.port, one.serving)).collect::<Vec<_>>()
    };
    assert_eq!(
        draining(vec![service(&json!({})), slice("web-1", &endpoints)]),
        ["10.0.0.2:8080 true", "10.0.0.3:8080 false", "10.0.0.4:8080 false"]
    );
    // Connection tracking knows neither hints nor policies: who is connected stays.
    let mut hinted = slice("web-1", &["10.0.0.1", "10.0.0.2"]);
    for (endpoint, zone) in [(0, "a"), (1, "b")] {
        hinted["endpoints"][endpoint]["hints"] = json!({"forZones": [{"name": zone}]});
    }
    assert_eq!(draining(vec![node1(), service(&json!({})), hinted]), ["10.0.0.2:8080 true"]);
    let local = json!({"internalTrafficPolicy": "Local"});
    assert_eq!(
        draining(vec![service(&local), slice("web-1", &["10.0.0.1@node1", "10.0.0.2"])]),
        ["10.0.0.2:8080 true"]
    );
}

#[test]
fn why_says_of_each_endpoint_for_whom_it_is() {
    let spec =
        json!({"type": "NodePort", "internalTrafficPolicy": "Local", "ports": [{"port": 80, "nodePort": 30080}]});
    let whys = |spec: &Value, endpoints: &[&str]| {
        let objects = vec![node1(), service(spec), slice("web-1", endpoints)];
        let why = offline::why(&name("web"), objects, &mut cluster([])).unwrap();
        let why = serde_json::to_value(why).unwrap();
        let endpoints = why["ports"][0]["endpoints"].as_array().unwrap().iter();
        endpoints.map(|one| format!("{} {}", one["backend"], one["why"].as_str().unwrap())).collect::<Vec<_>>()
    };
    // The ClusterIP refuses.
    assert_eq!(whys(&spec, &["10.0.0.1"]), ["true ready, not for the ClusterIPs"]);
    assert_eq!(whys(&spec, &["10.0.0.1!term"]), ["true terminating, and nothing is ready, not for the ClusterIPs"]);
    assert_eq!(whys(&spec, &["10.0.0.1", "10.0.0.2@node1"]), ["true ready, not for the ClusterIPs", "true ready"]);
    // The node's own is not ready, and only for those who come by the ClusterIP is it the one to take.
    assert_eq!(
        whys(&spec, &["10.0.0.1", "10.0.0.2@node1!term"]),
        ["true ready, not for the ClusterIPs", "true terminating, and nothing is ready, for the ClusterIPs only"]
    );
    let inside = json!({"internalTrafficPolicy": "Local"});
    assert_eq!(whys(&inside, &["10.0.0.1"]), ["false on another node, and internalTrafficPolicy is Local"]);
}

/// What each node's own set is with node ports on all nodes' addresses: the backends with their scopes.
fn by_node(spec: &Value, endpoints: &Value) -> Vec<String> {
    let mut spec = spec.clone();
    spec["type"] = json!("NodePort");
    spec["ports"] = json!([{"port": 80, "nodePort": 30080}]);
    let mut cluster = cluster_without_proxy([node1(), service(&spec), endpoints.clone()]);
    let scope = |scope: Option<BackendScope>| scope.map(|scope| format!(" {scope:?}")).unwrap_or_default();
    let backends = web(&mut cluster).backends.into_iter();
    backends.map(|one| format!("{}@{}{}", one.address, one.node.unwrap_or_default(), scope(one.scope))).collect()
}

#[test]
fn with_node_ports_on_all_nodes_each_node_has_its_own_endpoints() {
    let local = json!({"externalTrafficPolicy": "Local"});
    // One that terminates is its node's only; where another is ready it gets nothing.
    let endpoints =
        ["10.0.0.1@node1", "10.0.0.2@node2", "10.0.0.3@node2!term", "10.0.0.4@node3!term", "10.0.0.5@node3!gone"];
    assert_eq!(by_node(&local, &slice("web-1", &endpoints)), ["10.0.0.1@", "10.0.0.2@node2", "10.0.0.4@node3 Node"]);
    // Hints are for whom comes here, not for whom comes there.
    let mut hinted = slice("web-1", &["10.0.0.1@node1", "10.0.0.2@node2"]);
    for (endpoint, zone) in [(0, "a"), (1, "b")] {
        hinted["endpoints"][endpoint]["hints"] = json!({"forZones": [{"name": zone}]});
    }
    assert_eq!(by_node(&local, &hinted), ["10.0.0.1@", "10.0.0.2@node2 Node"]);
    // externalTrafficPolicy Cluster: all nodes lead to the same.
    assert_eq!(by_node(&json!({}), &slice("web-1", &["10.0.0.1@node1", "10.0.0.3@node2!term"])), ["10.0.0.1@"]);
}

#[test]
fn other_nodes_count_only_where_their_node_ports_are_served() {
    let other = || node("node2", "b", &["10.6.212.102"]);
    let table = cluster([node1(), other()]).table();
    assert_eq!((table.node_addresses.len(), table.nodes.len()), (2, 0));
    let mut cluster = cluster_without_proxy([node1(), other()]);
    offline::tell(&mut cluster, vec![service(&json!({}))]);
    let table = cluster.table();
    assert_eq!((table.node_addresses.len(), table.nodes[0].name.as_str()), (2, "node2"));
    // A change of a node is one line, whatever the number of Services.
    offline::tell(&mut cluster, vec![node("node2", "b", &["10.6.212.202"])]);
    let lines = cluster.changes();
    assert!(matches!(lines[0].change, Change::Nodes(_)) && lines.len() == 1, "{lines:?}");
    cluster.node_gone("node2");
    assert_eq!(cluster.changes().len(), 1);
}

#[test]
fn where_there_is_no_kube_proxy_ports_that_no_service_has_are_refused_on_all_cluster_ips() {
    assert!(cluster([service(&json!({}))]).table().refuse.0.is_empty());
    let mut cluster = cluster_without_proxy([service(&json!({}))]);
    let cidrs = |refuse: Refuse| refuse.0.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(cidrs(cluster.table().refuse), ["10.96.0.1/32"]);
    let ips = json!(["fd00::1", "10.96.0.77"]);
    let mut other = service(&json!({"clusterIP": "fd00::1", "clusterIPs": ips, "ipFamilies": ["IPv6", "IPv4"]}));
    other["metadata"]["name"] = json!("other");
    let said = tell(&mut cluster, other.clone());
    assert_eq!(said[0], "refuse [10.96.0.0/25, fd00::1/128]");
    assert_eq!(said.len(), 2);
    assert!(tell(&mut cluster, other).is_empty());
    cluster.service_gone(&name("other"));
    assert_eq!(lines(&mut cluster), ["refuse [10.96.0.1/32]", "remove default/other"]);
}

#[test]
fn whatever_the_objects_say_the_loader_takes_the_table_and_what_is_wrong_is_named() {
    // The API server takes most of these.
    let wrong = ["0.1.2.3", "239.1.1.1", "240.0.0.1", "255.255.255.255", "fe80::1", "ff05::1", "::ffff:0.0.0.1", "::"];
    for address in wrong {
        let spec = json!({"type": "LoadBalancer", "externalIPs": [address, "203.0.113.1"], "ports": [{"port": 80}, {"port": 81}]});
        let mut object = service(&spec);
        object["status"] = json!({"loadBalancer": {"ingress": [{"ip": address}, {"ip": "203.0.113.2"}]}});
        let mut there = slice("web-1", &[address, "10.0.0.1"]);
        there["addressType"] = json!("IPv4");
        let mut cluster = cluster([object, there, node("node1", "a", &[address, "10.6.212.101"])]);
        let problems = format!("{:?}", cluster.problems());
        for field in ["externalIPs", "status.loadBalancer", "InternalIP", "EndpointSlice default/web-1", "twice"] {
            assert!(problems.contains(field), "{address}: {field}: {problems}");
        }
        let table = cluster.table();
        let read = serde_json::from_value::<ServiceTable>(serde_json::to_value(&table).unwrap());
        assert_eq!(read.unwrap(), table, "{address}");
        let web = web(&mut cluster);
        assert_eq!((web.external_ips.len(), web.load_balancer_ips.len(), web.backends.len()), (1, 1, 1), "{address}");
    }
}

#[test]
fn an_object_without_a_kind_is_refused_and_not_passed_over() {
    let read = |document: Value| offline::read(document.to_string().as_bytes()).map(|objects| objects.len());
    assert_eq!(read(json!({"kind": "List", "items": [service(&json!({})), node1()]})).unwrap(), 2);
    let mut nameless = service(&json!({}));
    nameless.as_object_mut().unwrap().remove("kind");
    // What the API itself says of a list.
    for wrong in [json!({"kind": "ServiceList", "items": [node1(), nameless]}), nameless, json!([]), json!("Service")] {
        assert!(read(wrong.clone()).unwrap_err().to_string().contains("has no kind"), "{wrong}");
    }
}

fn lines(cluster: &mut Cluster) -> Vec<String> {
    let line = |line: service_table::Line| match line.change {
        Change::Set(service) => format!(
            "set {} {:?} {}",
            service.key(),
            service.cluster_ips,
            service.backends.iter().map(|one| format!("{}:{}", one.address, one.port)).collect::<Vec<_>>().join(" ")
        ),
        Change::Remove(name) => format!("remove {name}"),
        Change::Nodes(nodes) => format!("nodes {:?}", nodes.node_addresses),
        Change::Refuse(cidrs) => format!("refuse {:?}", cidrs.0),
        Change::Leave(place) => format!("leave {place:?}"),
        Change::Renew(renew) => format!("renew {renew}"),
        Change::Table(_) => "table".into(),
    };
    cluster.changes().into_iter().map(line).collect()
}

fn tell(cluster: &mut Cluster, object: Value) -> Vec<String> {
    offline::tell(cluster, vec![object]);
    lines(cluster)
}

#[test]
fn only_what_has_changed_is_said() {
    let mut cluster = cluster([node1(), service(&json!({})), slice("web-1", &["10.0.0.1"])]);
    cluster.table();
    assert!(!cluster.has_changed());
    // The same again, and what makes no difference to a client.
    assert!(tell(&mut cluster, service(&json!({}))).is_empty());
    assert!(tell(&mut cluster, slice("web-1", &["10.0.0.1"])).is_empty());
    assert!(tell(&mut cluster, node1()).is_empty());
    assert!(tell(&mut cluster, slice("web-2", &["10.0.0.1"])).is_empty());
    let added = tell(&mut cluster, slice("web-2", &["10.0.0.2"]));
    assert_eq!(added, ["set default/web [10.96.0.1] 10.0.0.1:8080 10.0.0.2:8080"]);
    let mut renamed = slice("web-1", &["10.0.0.1"]);
    renamed["ports"][0]["port"] = json!(8081);
    assert_eq!(tell(&mut cluster, renamed), ["set default/web [10.96.0.1] 10.0.0.1:8081 10.0.0.2:8080"]);
    cluster.slice_gone(&name("web-1"));
    assert_eq!(lines(&mut cluster), ["set default/web [10.96.0.1] 10.0.0.2:8080"]);
    cluster.service_gone(&name("web"));
    assert_eq!(lines(&mut cluster), ["remove default/web"]);
    // Slices that are left over lead nowhere, until there is a Service of that name again.
    assert!(tell(&mut cluster, slice("web-3", &["10.0.0.3"])).is_empty());
    assert_eq!(tell(&mut cluster, service(&json!({}))), ["set default/web [10.96.0.1] 10.0.0.2:8080 10.0.0.3:8080"]);
}

#[test]
fn what_was_left_to_the_host_path_is_said_again_though_nothing_has_changed() {
    let mut other = service(&json!({"clusterIP": "10.96.0.2", "clusterIPs": ["10.96.0.2"]}));
    other["metadata"]["name"] = json!("other");
    let mut cluster = cluster([service(&json!({"externalIPs": ["192.0.2.7"]})), other, slice("web-1", &["10.0.0.1"])]);
    cluster.table();
    cluster.forget(&"10.96.0.1".parse().unwrap());
    assert!(cluster.has_changed());
    assert_eq!(lines(&mut cluster), ["set default/web [10.96.0.1] 10.0.0.1:8080"]);
    assert!(!cluster.has_changed());
    // An external address is one of its own too.
    cluster.forget(&"192.0.2.7".parse().unwrap());
    assert_eq!(lines(&mut cluster).len(), 1);
    // And a port that goes meanwhile is not forgotten.
    cluster.forget(&"10.96.0.1".parse().unwrap());
    let renamed = json!({"ports": [{"name": "http", "port": 80}]});
    assert_eq!(tell(&mut cluster, service(&renamed)), ["set default/web:http [10.96.0.1] ", "remove default/web"]);
}

fn name(name: &str) -> Name {
    Name { namespace: "default".into(), name: name.into() }
}

#[test]
fn ports_that_are_renamed_and_families_and_types_that_change() {
    let mut cluster = cluster([service(&json!({})), slice("web-1", &["10.0.0.1"])]);
    cluster.table();
    let renamed = json!({"ports": [{"name": "http", "port": 80}]});
    assert_eq!(tell(&mut cluster, service(&renamed)), ["set default/web:http [10.96.0.1] ", "remove default/web"]);
    let dual = json!({"clusterIPs": ["10.96.0.1", "fd00::1"], "ipFamilies": ["IPv4", "IPv6"]});
    let lines = tell(&mut cluster, service(&dual));
    assert_eq!(lines, ["set default/web [10.96.0.1, fd00::1] 10.0.0.1:8080", "remove default/web:http"]);
    assert_eq!(tell(&mut cluster, service(&json!({}))), ["set default/web [10.96.0.1] 10.0.0.1:8080"]);
    assert_eq!(
        tell(&mut cluster, service(&json!({"clusterIP": "None", "clusterIPs": ["None"]}))),
        ["remove default/web"]
    );
    assert_eq!(tell(&mut cluster, service(&json!({}))), ["set default/web [10.96.0.1] 10.0.0.1:8080"]);
    assert_eq!(tell(&mut cluster, service(&json!({"type": "ExternalName"}))), ["remove default/web"]);
}

#[test]
fn a_slice_that_names_another_service_leaves_the_first() {
    let mut other = service(&json!({"clusterIP": "10.96.0.2", "clusterIPs": ["10.96.0.2"]}));
    other["metadata"]["name"] = json!("other");
    let mut cluster = cluster([service(&json!({})), other, slice("web-1", &["10.0.0.1"])]);
    cluster.table();
    let mut moved = slice("web-1", &["10.0.0.1"]);
    moved["metadata"]["labels"]["kubernetes.io/service-name"] = json!("other");
    let lines = tell(&mut cluster, moved.clone());
    assert_eq!(lines, ["set default/other [10.96.0.2] 10.0.0.1:8080", "set default/web [10.96.0.1] "]);
    moved["metadata"]["labels"] = json!({});
    assert_eq!(tell(&mut cluster, moved), ["set default/other [10.96.0.2] "]);
    assert_eq!(cluster.problems().len(), 1);
    cluster.slice_gone(&name("web-1"));
    assert!(cluster.problems().is_empty());
}

#[test]
fn a_slice_that_is_imported_from_another_cluster_is_of_no_account_and_nothing_is_wrong_with_it() {
    let mut imported = slice("web-1", &["10.0.0.1"]);
    imported["metadata"]["labels"] = json!({"multicluster.kubernetes.io/service-name": "web"});
    let mut cluster = cluster([service(&json!({})), imported.clone()]);
    assert!(web(&mut cluster).backends.is_empty());
    assert_eq!(format!("{:?}", cluster.problems()), "{}");
    // The Service that an import is derived to, in the clusters where it is one.
    imported["metadata"]["labels"]["kubernetes.io/service-name"] = json!("web");
    assert_eq!(tell(&mut cluster, imported), ["set default/web [10.96.0.1] 10.0.0.1:8080"]);
}

#[test]
fn the_nodes_zone_changes_who_is_reached() {
    let mut hinted = slice("web-1", &["10.0.0.1", "10.0.0.2"]);
    for (endpoint, zone) in [(0, "a"), (1, "b")] {
        hinted["endpoints"][endpoint]["hints"] = json!({"forZones": [{"name": zone}]});
    }
    let mut cluster = cluster([service(&json!({})), hinted]);
    assert_eq!(web(&mut cluster).backends.len(), 2, "a node without a zone goes by no hint");
    assert_eq!(tell(&mut cluster, node1()).last().unwrap(), "set default/web [10.96.0.1] 10.0.0.1:8080");
    let moved = node("node1", "b", &["10.6.212.101", "fd00:6::101"]);
    assert_eq!(tell(&mut cluster, moved), ["set default/web [10.96.0.1] 10.0.0.2:8080"]);
    cluster.node_gone("node1");
    assert_eq!(lines(&mut cluster), ["nodes []", "set default/web [10.96.0.1] 10.0.0.1:8080 10.0.0.2:8080"]);
}

#[test]
fn a_line_has_the_oldest_trigger_of_what_it_says() {
    let at = |name, time: &str, endpoints: &[&str]| {
        let mut slice = slice(name, endpoints);
        slice["metadata"]["annotations"] = json!({"endpoints.kubernetes.io/last-change-trigger-time": time});
        slice
    };
    let mut cluster = cluster([service(&json!({}))]);
    cluster.table();
    offline::tell(&mut cluster, vec![at("web-1", "2126-01-02T03:04:06Z", &["10.0.0.1"])]);
    offline::tell(&mut cluster, vec![at("web-2", "2126-01-02T03:04:05.5Z", &["10.0.0.2"]), service(&json!({}))]);
    assert_eq!(cluster.changes()[0].triggered.as_deref(), Some("2126-01-02T03:04:05.5Z"));
    offline::tell(&mut cluster, vec![slice("web-1", &[])]);
    assert_eq!(cluster.changes()[0].triggered, None);
    // What happened before anybody watched says nothing of how long it took.
    offline::tell(&mut cluster, vec![at("web-1", "2020-01-02T03:04:06Z", &["10.0.0.1"])]);
    assert_eq!(cluster.changes()[0].triggered, None);
}

#[test]
fn of_a_service_with_several_ports_the_last_line_has_the_trigger() {
    let ports = json!([{"name": "a", "port": 80}, {"name": "b", "port": 81}]);
    let mut cluster = cluster([service(&json!({"ports": ports}))]);
    cluster.table();
    let time = "2126-01-02T03:04:06Z";
    let mut slice = slice("web-1", &["10.0.0.1"]);
    slice["ports"] = json!([{"name": "a", "port": 8080}, {"name": "b", "port": 8081}]);
    slice["metadata"]["annotations"] = json!({"endpoints.kubernetes.io/last-change-trigger-time": time});
    offline::tell(&mut cluster, vec![slice]);
    let triggers: Vec<_> = cluster.changes().into_iter().map(|line| line.triggered).collect();
    assert_eq!(triggers, [None, Some(time.to_owned())]);
}

#[test]
fn of_an_object_that_is_there_twice_the_newer_counts() {
    let of = |version: &str, address| {
        let mut slice = slice("web-1", &[address]);
        slice["metadata"]["resourceVersion"] = json!(version);
        slice
    };
    let backends = |documents: &[Value]| {
        let text: String = documents.iter().map(ToString::to_string).collect();
        web(&mut cluster(offline::read(text.as_bytes()).unwrap()))
            .backends
            .iter()
            .map(|one| one.address.to_string())
            .collect::<Vec<_>>()
    };
    let list = json!({"kind": "List", "items": [service(&json!({})), of("100", "10.0.0.100")]});
    assert_eq!(backends(&[list.clone(), of("99", "10.0.0.99")]), ["10.0.0.100"]);
    assert_eq!(backends(&[list, of("101", "10.0.0.101")]), ["10.0.0.101"]);
}

#[test]
fn an_object_that_cannot_be_read_is_named_and_the_rest_is_taken() {
    let mut wrong = slice("web-2", &["10.0.0.2"]);
    wrong["endpoints"] = json!("none");
    let mut cluster = cluster([service(&json!({})), slice("web-1", &["10.0.0.1"]), wrong]);
    assert_eq!(web(&mut cluster).backends.len(), 1);
    assert!(cluster.problems().contains_key("EndpointSlice default/web-2"), "{:?}", cluster.problems());
    for wrong in ["[]", "{", "3", "{\"services\": []}", "{\"kind\": \"List\", \"items\": {}}"] {
        assert!(offline::read(wrong.as_bytes()).is_err(), "{wrong}");
    }
}

#[test]
fn a_service_of_a_hundred_thousand_endpoints_is_mapped_in_no_time() {
    let addresses: Vec<String> = (0..100_000).map(|n| format!("10.{}.{}.{}", n >> 16, n >> 8 & 255, n & 255)).collect();
    let slices = addresses
        .chunks(1000)
        .enumerate()
        .map(|(n, chunk)| slice(&format!("web-{n}"), &chunk.iter().map(String::as_str).collect::<Vec<_>>()));
    let mut cluster = cluster(slices.chain([service(&json!({}))]));
    assert_eq!(web(&mut cluster).backends.len(), 100_000);
    let before = std::time::Instant::now();
    assert_eq!(tell(&mut cluster, slice("web-0", &[])).len(), 1);
    // Minutes, if the whole Service were looked at for each slice.
    assert!(before.elapsed().as_secs() < 60, "{:?}", before.elapsed());
}

/// One event: an object, or its end.
#[derive(Clone, Debug)]
enum Event {
    Service(u8, u8),
    ServiceGone(u8),
    Slice(u8, u8, Vec<(u8, u8)>),
    SliceGone(u8),
    Zone(u8),
}

impl Event {
    fn service(n: u8, shape: u8) -> core::Service {
        let spec = match shape % 7 {
            0 => json!({}),
            1 => json!({"internalTrafficPolicy": "Local"}),
            2 => json!({"ports": [{"name": "a", "port": 80}, {"name": "b", "port": 81}]}),
            3 => json!({"clusterIP": "None", "clusterIPs": ["None"]}),
            4 => json!({"externalIPs": ["203.0.113.1"], "internalTrafficPolicy": "Local"}),
            5 => {
                json!({"externalIPs": ["203.0.113.1", "10.96.0.1"], "ports": [{"port": 80}, {"name": "b", "port": 81}]})
            }
            _ => json!({"type": "LoadBalancer", "loadBalancerSourceRanges": ["10.0.0.0/8"]}),
        };
        let mut object = service(&spec);
        object["metadata"]["creationTimestamp"] = json!(format!("2026-01-02T03:04:0{}Z", shape / 7 % 3));
        object["metadata"]["annotations"] =
            json!({"underpass.io/socket-path": (!(shape / 21).is_multiple_of(4)).to_string()});
        object["status"] = json!({"loadBalancer": {"ingress": [{"ip": "203.0.113.1"}]}});
        object["metadata"]["name"] = json!(format!("web{n}"));
        serde_json::from_value(object).unwrap()
    }

    fn slice(n: u8, owner: u8, endpoints: &[(u8, u8)]) -> discovery::EndpointSlice {
        let condition = |shape: u8| ["", "!term", "!gone", "!unready"][usize::from(shape % 4)];
        let text = |(address, shape): &(u8, u8)| format!("10.0.0.{address}@node{}{}", shape % 3, condition(shape / 3));
        let texts: Vec<String> = endpoints.iter().map(text).collect();
        let mut object = slice(&format!("slice{n}"), &texts.iter().map(String::as_str).collect::<Vec<_>>());
        object["metadata"]["labels"]["kubernetes.io/service-name"] = json!(format!("web{owner}"));
        serde_json::from_value(object).unwrap()
    }

    fn tell(&self, cluster: &mut Cluster) {
        match self {
            Self::Service(n, shape) => cluster.service(&Self::service(*n, *shape)),
            Self::ServiceGone(n) => cluster.service_gone(&name(&format!("web{n}"))),
            Self::Slice(n, owner, endpoints) => cluster.slice(&Self::slice(*n, *owner, endpoints)),
            Self::SliceGone(n) => cluster.slice_gone(&name(&format!("slice{n}"))),
            Self::Zone(zone) => {
                let zone = ["", "a", "b"][usize::from(zone % 3)];
                cluster.node(&serde_json::from_value(node("node1", zone, &["10.6.212.101"])).unwrap());
            }
        }
    }
}

fn events() -> impl proptest::strategy::Strategy<Value = Vec<Event>> {
    use proptest::prelude::*;
    let event = prop_oneof![
        (0..3u8, any::<u8>()).prop_map(|(n, shape)| Event::Service(n, shape)),
        (0..3u8).prop_map(Event::ServiceGone),
        (0..4u8, 0..3u8, proptest::collection::vec((1..6u8, any::<u8>()), 0..4))
            .prop_map(|(n, owner, endpoints)| Event::Slice(n, owner, endpoints)),
        (0..4u8).prop_map(Event::SliceGone),
        any::<u8>().prop_map(Event::Zone),
    ];
    proptest::collection::vec(event, 0..40)
}

proptest::proptest! {
    #[test]
    fn the_table_with_its_changes_is_the_table_of_all_objects(
        before in events(), after in events(), batch in 1..5usize, proxy: bool,
    ) {
        let cluster = || if proxy { cluster([]) } else { cluster_without_proxy([]) };
        let mut followed = cluster();
        before.iter().for_each(|event| event.tell(&mut followed));
        let mut table = followed.table();
        for events in after.chunks(batch) {
            events.iter().for_each(|event| event.tell(&mut followed));
            for line in followed.changes() {
                take(&mut table, line.change);
            }
            proptest::prop_assert!(!followed.has_changed());
        }
        let mut anew = cluster();
        before.iter().chain(&after).for_each(|event| event.tell(&mut anew));
        table.services.sort_by_key(Service::key);
        let mut expected = anew.table();
        expected.services.sort_by_key(Service::key);
        proptest::prop_assert_eq!(table, expected);
        proptest::prop_assert_eq!(followed.problems(), anew.problems());
    }
}

/// What the loader does with a line. A name that is not there is not removed, and nothing is set in vain.
fn take(table: &mut ServiceTable, change: Change) {
    match change {
        Change::Refuse(cidrs) => table.refuse = cidrs,
        Change::Leave(_) | Change::Renew(_) => panic!("not of the table: {change:?}"),
        Change::Nodes(nodes) => (table.node_addresses, table.nodes) = (nodes.node_addresses, nodes.nodes),
        Change::Set(service) => {
            assert!(!table.services.contains(&service), "said before: {service:?}");
            table.services.retain(|one| one.key() != service.key());
            table.services.push(*service);
        }
        Change::Remove(name) => {
            let before = table.services.len();
            table.services.retain(|one| one.key() != name);
            assert_eq!(table.services.len() + 1, before, "{name:?}");
        }
        Change::Table(all) => *table = all,
    }
}

/// The addresses of the Service `thief` that are no ClusterIPs, and what is said of it.
fn of_thief(cluster: &mut Cluster) -> (Vec<String>, String) {
    let table = cluster.table();
    let thief = table.services.iter().find(|service| service.name == "thief").unwrap();
    let addresses = thief.external_ips.iter().chain(&thief.load_balancer_ips).map(ToString::to_string).collect();
    (addresses, format!("{:?}", cluster.problems().values().flat_map(|problem| &problem.texts).collect::<Vec<_>>()))
}

#[test]
fn what_a_service_leaves_to_the_host_path_is_nobody_elses_by_an_external_address() {
    let spec =
        json!({"clusterIP": "10.96.0.66", "clusterIPs": ["10.96.0.66"], "externalIPs": ["10.96.0.1", "192.0.2.7"]});
    let mut thief = service(&spec);
    thief["metadata"]["name"] = "thief".into();
    thief["metadata"]["creationTimestamp"] = "2026-05-06T07:08:09Z".into();
    let mut left = service(&json!({}));
    left["metadata"]["annotations"] = json!({"underpass.io/socket-path": "false"});
    let mut cluster = cluster([thief, left.clone()]);
    let (addresses, said) = of_thief(&mut cluster);
    assert_eq!(addresses, ["192.0.2.7"]);
    assert!(
        said.contains("10.96.0.1 port 80 belongs to Service default/web, which leaves it to the host path"),
        "{said}"
    );
    // An address that only some clients may use is left too.
    let mut balanced = service(&json!({"type": "LoadBalancer", "loadBalancerSourceRanges": ["10.0.0.0/8"]}));
    balanced["status"] = json!({"loadBalancer": {"ingress": [{"ip": "192.0.2.7"}]}});
    // Who gets an address comes after the Service that had left it, so that nobody has it for a moment who is to lose it again.
    assert_eq!(
        tell(&mut cluster, balanced.clone()),
        ["set default/web [10.96.0.1] ", "set default/thief [10.96.0.66] "]
    );
    assert_eq!(of_thief(&mut cluster).0, ["10.96.0.1"]);
    // And who loses one comes before.
    let mut both = balanced.clone();
    both["metadata"]["annotations"] = left["metadata"]["annotations"].clone();
    assert_eq!(tell(&mut cluster, both), ["set default/thief [10.96.0.66] ", "remove default/web"]);
    // Of other addresses the older Service's count, as everywhere.
    balanced["metadata"]["creationTimestamp"] = "2026-06-07T08:09:10Z".into();
    assert_eq!(tell(&mut cluster, balanced).len(), 2);
    assert_eq!(of_thief(&mut cluster).0, ["10.96.0.1", "192.0.2.7"]);
    // With the Service its claim is gone.
    cluster.service_gone(&name("web"));
    let (addresses, said) = of_thief(&mut cluster);
    assert_eq!((addresses.len(), said.as_str()), (2, "[]"));
}

#[test]
fn a_loopback_address_is_each_pods_own_and_no_services() {
    let mut balanced = service(&json!({"type": "LoadBalancer", "externalIPs": ["127.0.0.1"]}));
    balanced["status"] = json!({"loadBalancer": {"ingress": [{"ip": "127.0.0.1"}, {"ip": "192.0.2.7"}]}});
    let mut cluster = cluster([node("node1", "a", &["127.0.0.1", "10.6.212.101"]), balanced]);
    let table = cluster.table();
    assert_eq!(table.node_addresses.len(), 1);
    let [web] = table.services.as_slice() else { panic!("{table:?}") };
    assert_eq!((web.external_ips.len(), web.load_balancer_ips.len()), (0, 1));
    assert!(format!("{:?}", cluster.problems()).contains("127.0.0.1"));
}
