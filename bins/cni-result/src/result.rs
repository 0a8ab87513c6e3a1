//! The answer to the container runtime: CNI specification 1.1.0, section 5 "Result Types".

use common::{
    document::{Command, PodDocument},
    failure::Failure,
    result::VERSIONS,
};
use serde_json::{Value, json};

/// What a successful operation prints, if anything.
pub fn success(document: &PodDocument) -> Option<Value> {
    match document.request.command {
        Command::Add => Some(extended(document)),
        Command::Version => Some(json!({ "cniVersion": VERSIONS[4], "supportedVersions": VERSIONS })),
        Command::Del | Command::Check | Command::Gc | Command::Status => None,
    }
}

/// An error, in the caller's version.
pub fn error(document: &Value, failure: &Failure) -> Value {
    let asked = document["request"]["config"]["cniVersion"].as_str();
    let version = asked.filter(|version| VERSIONS.contains(version)).unwrap_or(VERSIONS[4]);
    let details = if failure.details.is_empty() {
        failure.tool.clone()
    } else {
        format!("{}: {}", failure.tool, failure.details)
    };
    json!({ "cniVersion": version, "code": failure.code, "msg": failure.msg, "details": details })
}

/// prevResult with the veth pair appended. Everything in it stays as and where it is: addresses point at interfaces by
/// their position.
fn extended(document: &PodDocument) -> Value {
    let config = &document.request.config;
    let mut result = config["prevResult"].clone();
    result["cniVersion"] = config["cniVersion"].clone();
    let first = document.mode.as_ref().is_some_and(|mode| mode.first);
    if let Some(pair) = document.veth.as_ref().filter(|_| first) {
        let sandbox = document.request.netns.as_deref().map(|path| path.display().to_string());
        let mut ends = vec![
            json!({ "name": pair.host, "mac": pair.host_mac }),
            json!({ "name": pair.pod, "mac": pair.pod_mac, "sandbox": sandbox }),
        ];
        if config["cniVersion"] == VERSIONS[4] {
            ends.iter_mut().for_each(|end| end["mtu"] = json!(pair.mtu));
        }
        match result["interfaces"].as_array_mut() {
            Some(interfaces) => interfaces.extend(ends),
            None => result["interfaces"] = json!(ends),
        }
    }
    result
}
