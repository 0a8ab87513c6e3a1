//! The container runtime's request, checked: CNI specification 1.1.0, section 2 "Execution Protocol".

use std::path::PathBuf;

use common::{
    document::{Command, PodDocument, Request},
    failure::{Code, Failure},
    harness::MAX_DOCUMENT,
    keys,
    result::{CniResult, VERSIONS},
    settings::{Settings, is_interface_name},
};
use serde_json::Value;

/// A configuration may be half as long as a document, which has to hold it and more.
const MAX_CONFIG: usize = MAX_DOCUMENT / 2;
/// With the interface's name and a suffix it must fit into a file name (`NAME_MAX`) and an alias (`IFALIASZ`).
const MAX_CONTAINER_ID: usize = 200;

/// The document of a request: `env` gives the `CNI_*` variables, `stdin` the configuration.
///
/// # Errors
/// The first thing that is wrong with the request. A teardown goes on with settings that are not allowed.
pub fn parse(env: impl Fn(&str) -> Option<String>, stdin: &[u8], cluster: &Value) -> Result<PodDocument, Failure> {
    let command = command(&required(&env, "CNI_COMMAND")?)?;
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

fn required(env: impl Fn(&str) -> Option<String>, name: &str) -> Result<String, Failure> {
    env(name).filter(|value| !value.is_empty()).ok_or_else(|| {
        Failure::new(Code::InvalidEnvironment, format!("{name} is not set"))
            .details("a container runtime sets CNI_COMMAND, CNI_CONTAINERID, CNI_NETNS, CNI_IFNAME and CNI_PATH")
    })
}

fn command(name: &str) -> Result<Command, Failure> {
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
    let version = config.get("cniVersion").and_then(Value::as_str).unwrap_or("0.1.0");
    let since = match command {
        Command::Add | Command::Del | Command::Version => 0,
        Command::Check => 2,
        Command::Gc | Command::Status => 4,
    };
    match VERSIONS.iter().position(|known| *known == version) {
        Some(position) if position >= since => Ok(()),
        Some(_) => Err(Failure::new(Code::IncompatibleVersion, format!("cniVersion {version} has no such command"))
            .details(format!("the command came with cniVersion {}", VERSIONS[since]))),
        None => Err(Failure::new(Code::IncompatibleVersion, format!("cniVersion {version:?} is not supported"))
            .details(format!("supported: {}", VERSIONS.join(", ")))),
    }
}

fn check_attachment(request: &Request) -> Result<(), Failure> {
    if matches!(request.command, Command::Gc | Command::Status) {
        return Ok(());
    }
    let Request { container_id, ifname, .. } = request;
    let known = |name: &str| match name {
        "CNI_CONTAINERID" => Some(container_id.clone()),
        _ => Some(ifname.clone()),
    };
    required(known, "CNI_CONTAINERID")?;
    required(known, "CNI_IFNAME")?;
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
