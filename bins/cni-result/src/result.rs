//! The answer to the container runtime: CNI specification 1.1.0, section 5 "Result Types".

use common::{
    document::{Command, ModeKind, PodDocument},
    failure::Failure,
    mac::Mac,
    object::MAIN_TABLE,
    result::CniVersion,
};
use ipnet::IpNet;
use serde_json::{Value, json};

/// What a successful operation prints, if anything.
pub fn success(document: &PodDocument) -> Option<Value> {
    match document.request.command {
        Command::Add => Some(extended(document)),
        Command::Version => {
            let supported = CniVersion::ALL.map(CniVersion::as_str);
            Some(json!({ "cniVersion": CniVersion::NEWEST.as_str(), "supportedVersions": supported }))
        }
        Command::Del | Command::Check | Command::Gc | Command::Status => None,
    }
}

/// An error, in the caller's version.
pub fn error(config: &Value, failure: &Failure) -> Value {
    let version = CniVersion::of(config).unwrap_or(CniVersion::NEWEST);
    let details = if failure.details.is_empty() {
        failure.tool.clone()
    } else {
        format!("{}: {}", failure.tool, failure.details)
    };
    json!({ "cniVersion": version.as_str(), "code": failure.code, "msg": failure.msg, "details": details })
}

/// prevResult with the veth pair appended. Everything in it stays as and where it is: addresses point at interfaces by
/// their position.
fn extended(document: &PodDocument) -> Value {
    let config = &document.request.config;
    let mut result = Value::Object(config["prevResult"].as_object().cloned().unwrap_or_default());
    result["cniVersion"] = config["cniVersion"].clone();
    let version = CniVersion::of(config);
    let served = document.mode.as_ref().is_some_and(|mode| mode.kind != ModeKind::Disable);
    let first = document.mode.as_ref().is_some_and(|mode| mode.first);
    if let Some(pair) = document.veth.as_ref().filter(|_| first) {
        let sandbox = document.request.netns.as_deref().map(|path| path.display().to_string());
        let mut ends = vec![
            json!({ "name": pair.host, "mac": pair.host_mac }),
            json!({ "name": pair.pod, "mac": pair.pod_mac, "sandbox": sandbox }),
        ];
        if version >= Some(CniVersion::V1_1_0) {
            ends.iter_mut().for_each(|end| end["mtu"] = json!(pair.mtu));
        }
        match result["interfaces"].as_array_mut() {
            Some(interfaces) => interfaces.extend(ends),
            None => result["interfaces"] = json!(ends),
        }
    }
    if let Some(mac) = document.nic_mac().filter(|_| served) {
        name_mac(&mut result, &document.request.ifname, mac);
    }
    // Before CNI 1.1.0 a route could not say in which table it is.
    if version >= Some(CniVersion::V1_1_0) {
        name_tables(&mut result, document);
    }
    result
}

/// The interface's MAC address, which `podMACPrefix` has changed.
fn name_mac(result: &mut Value, nic: &str, mac: Mac) {
    let interfaces = result["interfaces"].as_array_mut().into_iter().flatten();
    let ours = |interface: &&mut Value| {
        interface["name"] == nic && interface["sandbox"].as_str().is_some_and(|sandbox| !sandbox.is_empty())
    };
    interfaces.filter(ours).for_each(|interface| interface["mac"] = json!(mac));
}

/// Names the table of each default route that is in the interface's own table and not in the main one.
fn name_tables(result: &mut Value, document: &PodDocument) {
    let nic = &document.request.ifname;
    let Some(own) = document.routing.table_of(nic) else { return };
    let moved = |route: &Value| {
        let Some(destination) = route["dst"].as_str().and_then(|dst| dst.parse::<IpNet>().ok()) else { return false };
        let stays = document.routing.stays.iter().any(|stay| stay.dev == *nic && stay.destination == destination);
        let in_main = route["table"].as_u64().is_none_or(|table| table == u64::from(MAIN_TABLE));
        destination.prefix_len() == 0 && in_main && !stays
    };
    let routes = result["routes"].as_array_mut().into_iter().flatten();
    routes.filter(|route| moved(route)).for_each(|route| route["table"] = json!(own.table));
}
