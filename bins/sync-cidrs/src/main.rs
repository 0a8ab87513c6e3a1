//! Says which CIDRs are reached through the node.

mod plan;

use std::{path::PathBuf, process::ExitCode};

use clap::{Arg, value_parser};
use common::{
    document::{Command, PodDocument},
    failure::{Code, Context, Failure},
    harness::{self, About},
    state,
};
use serde_json::{Value, json};

const ABOUT: About = About {
    name: "sync-cidrs",
    does: "Notes in the pod document which CIDRs are reached through the node: those of the plugin configuration, \
           else the cluster's, as a file has them. With --from it needs no document and prints the merged CIDRs of \
           a file or of standard input.",
    example: "  cni-request < conf.json | sync-cidrs | jq .cidrs\n  \
              echo '{\"service\": [\"10.233.64.0/18\"]}' | sync-cidrs --from -",
};

fn main() -> ExitCode {
    let cli = harness::cli(ABOUT)
        .arg(
            Arg::new("file")
                .long("file")
                .value_parser(value_parser!(PathBuf))
                .help("Read the cluster's CIDRs here rather than in the state directory's cluster.json"),
        )
        .arg(
            Arg::new("from")
                .long("from")
                .value_parser(value_parser!(PathBuf))
                .conflicts_with("file")
                .help("Print the CIDRs of this file, or of standard input for -, checked and merged"),
        );
    let flags = cli.clone().get_matches();
    match flags.get_one::<PathBuf>("from") {
        Some(path) => print_from(path),
        None => {
            harness::run_filter_with(cli, ABOUT, |document, flags| sync(document, flags.get_one::<PathBuf>("file")))
        }
    }
}

fn print_from(path: &PathBuf) -> ExitCode {
    harness::init_log(ABOUT.name, &Default::default(), "");
    let text = match path.to_str() {
        Some("-") => harness::read_input(),
        _ => std::fs::read(path).context(Code::Io, format!("cannot read {}", path.display())),
    };
    match text.and_then(|text| plan::parse(&text)) {
        Ok(cidrs) => harness::print(&json!(plan::merged(&cidrs)).to_string(), ExitCode::SUCCESS),
        Err(failure) => harness::fail(ABOUT.name, json!({}), failure),
    }
}

fn sync(document: &mut PodDocument, file: Option<&PathBuf>) -> Result<(), Failure> {
    let command = document.request.command;
    if command.tears_down() || command == Command::Version {
        return Ok(());
    }
    let cluster = match file {
        Some(path) => std::fs::read(path).and_then(|text| Ok(serde_json::from_slice(&text)?)),
        None => state::cluster().map(|mut cluster| cluster["cidrs"].take()),
    };
    let cluster: Value = cluster.context(Code::Io, "cannot read the cluster's CIDRs")?;
    document.cidrs = Some(plan::cidrs(&document.settings, &cluster, command)?);
    Ok(())
}
