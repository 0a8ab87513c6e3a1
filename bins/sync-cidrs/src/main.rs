//! Says which CIDRs are reached through the node.

use std::{
    env,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Arg, value_parser};
use common::{
    cidrs,
    document::{Command, PodDocument},
    failure::{Code, Context, Failure},
    harness::{self, About},
    state,
};
use serde_json::{Value, json};

const ABOUT: About = About {
    name: "sync-cidrs",
    does: "Notes in the pod document which CIDRs are reached through the node: those of the plugin configuration, \
           else the cluster's, as a file has them. With --kube, --watch or --from it needs no document: it finds the \
           cluster's CIDRs out and prints them; see sync-cidrs --kube --help.",
    example: "  cni-request < conf.json | sync-cidrs | jq .cidrs\n  \
              sync-cidrs --kube\n  \
              sync-cidrs --watch\n  \
              kubectl get --all-namespaces configmaps,pods,nodes --output json | sync-cidrs --from -",
};

/// What asks for Kubernetes, with the first argument. That part is a program of its own, so that ADD does not load it.
const KUBE: [&str; 3] = ["--kube", "--watch", "--from"];
const KUBE_PROGRAM: &str = "sync-cidrs-kube";

fn main() -> ExitCode {
    let arguments: Vec<OsString> = env::args_os().skip(1).collect();
    let asks = |argument: &OsString| {
        let name = argument.to_str().unwrap_or_default();
        KUBE.contains(&name.split('=').next().unwrap_or_default())
    };
    if arguments.iter().any(asks) {
        return harness::become_beside(ABOUT.name, KUBE_PROGRAM, arguments);
    }
    let cli = || {
        harness::cli_with_plan(ABOUT).arg(
            Arg::new("file")
                .long("file")
                .value_parser(value_parser!(PathBuf))
                .help("Read the cluster's CIDRs here rather than in the state directory's cluster.json"),
        )
    };
    harness::run_filter(cli, ABOUT, |document, flags| sync(document, flags.and_then(|flags| flags.get_one("file"))))
}

fn sync(document: &mut PodDocument, file: Option<&PathBuf>) -> Result<(), Failure> {
    let command = document.request.command;
    if command.tears_down() || command == Command::Version {
        return Ok(());
    }
    let cluster = match file {
        Some(path) => read(path),
        None => state::cluster().map(|mut cluster| cluster["cidrs"].take()),
    };
    let mut cluster = cluster.context(Code::Io, "cannot read the cluster's CIDRs")?;
    if command == Command::Check && cluster.is_null() {
        // While nothing is known of the cluster a pod keeps what it has of that.
        cluster = json!(document.cidrs);
    }
    let resolved = cidrs::resolve(&document.settings, &cluster, command, document.subnets());
    document.cidrs = Some(resolved.map_err(state::with_reason)?);
    Ok(())
}

/// A file with what `--kube` prints, or with its `cidrs` section alone.
fn read(path: &Path) -> std::io::Result<Value> {
    let mut value: Value = serde_json::from_slice(&fs::read(path)?)?;
    let section = value.get_mut("cidrs").map(Value::take);
    Ok(section.unwrap_or(value))
}
