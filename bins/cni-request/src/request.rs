//! The container runtime's request, checked: CNI specification 1.1.0, section 2 "Execution Protocol".

use std::path::PathBuf;

use common::{
    document::{Command, PodDocument, Request},
    failure::{Code, Failure},
    keys,
    result::{CniResult, CniVersion},
    settings::{Settings, is_interface_name},
};
use serde_json::Value;

/// No configuration is longer than this, in bytes.
const MAX_CONFIG: usize = 1 << 19;
/// With the interface's name and a suffix it must fit into a file name (`NAME_MAX`) and an alias (`IFALIASZ`).
const MAX_CONTAINER_ID: usize = 200;

/// The document of a request: `env` gives the `CNI_*` variables, `stdin` the configuration.
///
/// # Errors
/// The first thing that is wrong with the request. A teardown goes on with settings that are not allowed.
pub fn parse(env: impl Fn(&str) -> Option<String>, stdin: &[u8], cluster: &Value) -> Result<PodDocument, Failure> {
    let command = command(&env("CNI_COMMAND").unwrap_or_default())?;
    if command == Command::Version {
        return Ok(PodDocument::new(request(command, &env, Value::Null), Settings::default()));
    }
    let config = config(stdin)?;
    check_version(command, &config)?;
    let request = request(command, &env, config);
    check_attachment(&request)?;
    match command {
        Command::Add | Command::Check => {
            request.netns()?;
            CniResult::previous(&request.config)?;
        }
        Command::Gc => check_valid_attachments(&request.config)?,
        _ => {}
    }
    let (settings, failures) = Settings::resolve(&request.config, cluster);
    match failures.split_first() {
        Some((first, rest)) if !command.tears_down() => Err(rest.iter().fold(first.clone(), Failure::and)),
        _ => Ok(PodDocument::new(request, settings)),
    }
}

/// That a variable has a value.
fn check_set(name: &str, value: &str) -> Result<(), Failure> {
    if !value.is_empty() {
        return Ok(());
    }
    Err(Failure::new(Code::InvalidEnvironment, format!("{name} is not set"))
        .details("a container runtime sets CNI_COMMAND, CNI_CONTAINERID, CNI_NETNS, CNI_IFNAME and CNI_PATH"))
}

fn command(name: &str) -> Result<Command, Failure> {
    check_set("CNI_COMMAND", name)?;
    serde_json::from_value(Value::from(name)).map_err(|_| {
        Failure::new(Code::InvalidEnvironment, format!("CNI_COMMAND {name:?} is not known"))
            .details("known: ADD, DEL, CHECK, GC, STATUS and VERSION")
    })
}

fn request(command: Command, env: impl Fn(&str) -> Option<String>, config: Value) -> Request {
    let set = |name| env(name).filter(|value| !value.is_empty());
    Request {
        command,
        container_id: set("CNI_CONTAINERID").unwrap_or_default(),
        netns: set("CNI_NETNS").map(PathBuf::from),
        ifname: set("CNI_IFNAME").unwrap_or_default(),
        args: set("CNI_ARGS"),
        config,
    }
}

fn config(stdin: &[u8]) -> Result<Value, Failure> {
    let undecodable = |msg: String| Failure::new(Code::Decoding, msg);
    if stdin.trim_ascii().is_empty() {
        return Err(undecodable("there is no network configuration on standard input".to_owned()));
    }
    if stdin.len() > MAX_CONFIG {
        return Err(undecodable(format!("the network configuration is longer than {MAX_CONFIG} bytes")));
    }
    let config: Value = serde_json::from_slice(stdin)
        .map_err(|error| undecodable("the network configuration is not JSON".to_owned()).details(error))?;
    if config.is_object() {
        Ok(keys::spelled(config, keys::CONFIGURATION))
    } else {
        Err(undecodable("the network configuration is not an object".to_owned()))
    }
}

fn check_version(command: Command, config: &Value) -> Result<(), Failure> {
    let since = command.since();
    match CniVersion::of(config) {
        Some(version) if version >= since => Ok(()),
        Some(version) => {
            Err(Failure::new(Code::IncompatibleVersion, format!("cniVersion {version} has no such command"))
                .details(format!("the command came with cniVersion {since}")))
        }
        None => {
            // A configuration without one is of this version (the CNI library's `ConfigDecoder`).
            let version = config.get("cniVersion").and_then(Value::as_str).unwrap_or("0.1.0");
            Err(Failure::new(Code::IncompatibleVersion, format!("cniVersion {version:?} is not supported"))
                .details(format!("supported: {}", CniVersion::ALL.map(CniVersion::as_str).join(", "))))
        }
    }
}

fn check_attachment(request: &Request) -> Result<(), Failure> {
    if matches!(request.command, Command::Gc | Command::Status) {
        return Ok(());
    }
    let Request { container_id, ifname, .. } = request;
    check_set("CNI_CONTAINERID", container_id)?;
    check_set("CNI_IFNAME", ifname)?;
    if !is_container_id(container_id) {
        return Err(Failure::new(Code::InvalidEnvironment, format!("CNI_CONTAINERID {container_id:?} is not allowed"))
            .details(format!(
                "allowed: a letter or digit, then letters, digits, '_', '.' and '-', at most {MAX_CONTAINER_ID} in all"
            )));
    }
    if !is_interface_name(ifname) {
        return Err(Failure::new(Code::InvalidEnvironment, format!("CNI_IFNAME {ifname:?} is not allowed"))
            .details("allowed: 1 to 15 characters without '/', ':' or white space, and neither '.' nor '..'"));
    }
    Ok(())
}

fn is_container_id(id: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    id.len() <= MAX_CONTAINER_ID && id.starts_with(|c: char| c.is_ascii_alphanumeric()) && id.chars().all(allowed)
}

/// A GC without the list is not a GC with an empty list: it would remove every attachment of the network. `null` is how Go writes an empty one.
fn check_valid_attachments(config: &Value) -> Result<(), Failure> {
    const KEY: &str = "cni.dev/valid-attachments";
    let attachment = |entry: &Value| entry["containerID"].is_string() && entry["ifname"].is_string();
    let wrong = match config.get(KEY) {
        None => format!("the configuration has no {KEY}"),
        Some(Value::Null) => return Ok(()),
        Some(Value::Array(list)) => match list.iter().find(|entry| !attachment(entry)) {
            None => return Ok(()),
            Some(entry) => format!("{KEY} has an entry that is no attachment: {entry}"),
        },
        Some(other) => format!("{KEY} is not a list: {other}"),
    };
    Err(Failure::new(Code::InvalidConfiguration, wrong)
        .details("GC needs the list of attachments to keep: [{\"containerID\": ..., \"ifname\": ...}, ...]"))
}

#[cfg(test)]
mod tests {
    use common::{envelope::merge, settings::ModeSetting};
    use serde_json::json;

    use super::*;

    const ENVIRONMENT: [(&str, &str); 4] =
        [("CNI_COMMAND", "ADD"), ("CNI_CONTAINERID", "pod1"), ("CNI_NETNS", "/run/netns/pod1"), ("CNI_IFNAME", "eth0")];

    /// What becomes of a request with these variables in place of [`ENVIRONMENT`]'s.
    fn parsed(variables: &[(&str, &str)], stdin: &str) -> Result<PodDocument, Failure> {
        let variables: Vec<_> = variables.iter().chain(&ENVIRONMENT).collect();
        let value =
            |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
        parse(value, stdin.as_bytes(), &Value::Null)
    }

    /// A configuration that is accepted, with these keys on top.
    fn with(keys: Value) -> String {
        let config = json!({
            "cniVersion": "1.1.0", "name": "underlay", "type": "coordinator",
            "prevResult": {"ips": [{"address": "10.6.0.2/16"}]},
        });
        merge(config, keys).to_string()
    }

    /// The request is refused with this code, and the text stands in the error.
    fn refused(variables: &[(&str, &str)], stdin: &str, code: Code, text: &str) {
        let failure = parsed(variables, stdin).unwrap_err();
        assert_eq!(failure.code, code as u32, "{variables:?} {stdin}: {failure}");
        assert!(failure.to_string().contains(text), "{variables:?} {stdin}: {failure}");
    }

    #[test]
    fn a_request_that_is_right_is_the_documents() {
        let document = parsed(&[("CNI_ARGS", "K8S_POD_NAME=web")], &with(json!({"mode": "underlay"}))).unwrap();
        let request = &document.request;
        assert_eq!(request.attachment(), "pod1/eth0");
        assert_eq!(request.netns().unwrap().to_str(), Some("/run/netns/pod1"));
        assert_eq!(request.args.as_deref(), Some("K8S_POD_NAME=web"));
        assert_eq!(document.settings, Settings { mode: ModeSetting::Underlay, ..Settings::default() });
    }

    #[test]
    fn a_configuration_that_is_not_json_is_empty_or_is_no_object_is_refused() {
        refused(&[], "{\"cniVersion\": ", Code::Decoding, "not JSON");
        refused(&[], " \n", Code::Decoding, "no network configuration");
        refused(&[], "[]", Code::Decoding, "not an object");
    }

    #[test]
    fn a_command_that_is_missing_or_unknown_is_refused() {
        for (command, text) in [("", "CNI_COMMAND"), ("EXPLODE", "EXPLODE"), ("add", "add")] {
            refused(&[("CNI_COMMAND", command)], &with(json!({})), Code::InvalidEnvironment, text);
        }
    }

    #[test]
    fn version_needs_no_configuration() {
        assert_eq!(parsed(&[("CNI_COMMAND", "VERSION")], "").unwrap().request.command, Command::Version);
    }

    #[test]
    fn a_container_id_with_characters_that_are_not_allowed_is_refused_also_in_del() {
        for id in ["", "../../etc", "a b", "a;reboot", "-a", &"a".repeat(300)] {
            for command in ["ADD", "DEL"] {
                let variables = [("CNI_COMMAND", command), ("CNI_CONTAINERID", id)];
                refused(&variables, &with(json!({})), Code::InvalidEnvironment, "CNI_CONTAINERID");
            }
        }
    }

    #[test]
    fn an_interface_whose_name_is_none_is_refused() {
        for name in ["", "a-name-that-is-far-too-long", "../eth0"] {
            refused(&[("CNI_IFNAME", name)], &with(json!({})), Code::InvalidEnvironment, "CNI_IFNAME");
        }
    }

    #[test]
    fn add_and_check_need_a_network_namespace_and_del_does_not() {
        let none = |command| [("CNI_COMMAND", command), ("CNI_NETNS", "")];
        for command in ["ADD", "CHECK"] {
            refused(&none(command), &with(json!({})), Code::InvalidEnvironment, "CNI_NETNS");
        }
        assert_eq!(parsed(&none("DEL"), &with(json!({}))).unwrap().request.netns, None);
    }

    #[test]
    fn add_and_check_without_prev_result_or_with_one_that_is_none_are_refused() {
        for command in ["ADD", "CHECK"] {
            let refused = |config: &str, code| refused(&[("CNI_COMMAND", command)], config, code, "prevResult");
            refused(r#"{"cniVersion": "1.0.0"}"#, Code::InvalidConfiguration);
            refused(&with(json!({"prevResult": null})), Code::InvalidConfiguration);
            refused(&with(json!({"prevResult": {"ips": [{"address": "nonsense"}]}})), Code::Decoding);
        }
    }

    #[test]
    fn a_cni_version_that_is_not_supported_or_has_no_such_command_is_refused() {
        for (command, version, text) in [
            ("ADD", json!("0.2.0"), "0.2.0"),
            ("ADD", json!("2.0.0"), "2.0.0"),
            ("ADD", Value::Null, "0.1.0"),
            ("CHECK", json!("0.3.1"), "0.4.0"),
            ("GC", json!("1.0.0"), "1.1.0"),
            ("STATUS", json!("1.0.0"), "1.1.0"),
        ] {
            let config = with(json!({"cniVersion": version, "cni.dev/valid-attachments": []}));
            refused(&[("CNI_COMMAND", command)], &config, Code::IncompatibleVersion, text);
        }
        for (command, version) in [("ADD", "0.3.0"), ("DEL", "0.3.0"), ("CHECK", "0.4.0"), ("STATUS", "1.1.0")] {
            assert!(parsed(&[("CNI_COMMAND", command)], &with(json!({"cniVersion": version}))).is_ok(), "{command}");
        }
    }

    #[test]
    fn gc_without_its_list_of_attachments_or_with_one_that_is_no_list_of_attachments_is_refused() {
        let gc = [("CNI_COMMAND", "GC")];
        let refused = |config: String| refused(&gc, &config, Code::InvalidConfiguration, "cni.dev/valid-attachments");
        refused(with(json!({})));
        refused(with(json!({"cni.dev/attachments": null})));
        for wrong in [
            json!([{}]),
            json!([null]),
            json!(["pod1"]),
            json!([{"containerID": 1, "ifname": "eth0"}]),
            json!([{"containerID": "pod1"}]),
            json!({"containerID": "pod1", "ifname": "eth0"}),
            json!(""),
            json!(false),
        ] {
            refused(with(json!({"cni.dev/valid-attachments": wrong})));
        }
        for right in [Value::Null, json!([]), json!([{"containerID": "pod1", "ifname": "eth0"}])] {
            assert!(parsed(&gc, &with(json!({"cni.dev/valid-attachments": right}))).is_ok(), "{right}");
        }
    }

    #[test]
    fn every_setting_that_is_wrong_is_named_and_a_teardown_goes_on_with_the_default() {
        let wrong = with(json!({"mode": "sideways", "podRPFilter": 3, "vethMTU": 1400}));
        for command in ["ADD", "CHECK", "STATUS"] {
            for text in ["setting mode: \"sideways\"", "setting podRPFilter: 3"] {
                refused(&[("CNI_COMMAND", command)], &wrong, Code::InvalidConfiguration, text);
            }
        }
        let document = parsed(&[("CNI_COMMAND", "DEL")], &wrong).unwrap();
        assert_eq!(document.settings, Settings { veth_mtu: Some(1400), ..Settings::default() });
    }
}
