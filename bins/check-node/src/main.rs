//! Says whether a node is fit for underlay pods, and what to change.

mod balancers;
mod check;
mod forward;
mod masquerade;
mod networkd;
mod node;
mod processes;
mod proxy;
mod rules;

use std::{path::PathBuf, process::ExitCode};

use clap::{Arg, ArgAction};
use common::{
    harness::{self, About},
    settings::LogOptions,
};
use ipnet::IpNet;
use serde_json::json;

const ABOUT: About = About {
    name: "check-node",
    does: "Looks at the node that it runs on and prints what underlay pods need of it: whether that is so, and what to \
           change; a table at a terminal, else JSON. Changes nothing, but that the state directory and its lock \
           are there. Exits 1 when something is to be changed.",
    example: "  check-node --subnet 10.6.0.0/16 | jq -r '.checks[] | select(.ok | not) | .msg + \": \" + .remedy'",
};

fn main() -> ExitCode {
    let cli = harness::cli(ABOUT)
        .arg(
            Arg::new("subnet")
                .long("subnet")
                .action(ArgAction::Append)
                .value_parser(clap::value_parser!(IpNet))
                .help("A subnet of the underlay from which pods get their addresses; may be repeated [default: those of the pods that \
                       run]"),
        )
        .arg(Arg::new("cgroup").long("cgroup").value_parser(clap::value_parser!(PathBuf)).help(
            "The cgroup v2 at which to look for programs that translate Services (the root of those that are mounted)",
        ));
    let flags = harness::matches(cli);
    harness::init_log(ABOUT.name, &LogOptions::default(), "");
    let subnets: Vec<IpNet> = flags.get_many("subnet").into_iter().flatten().copied().collect();
    let pods = rules::pods();
    let running: Vec<IpNet> = pods.iter().flatten().copied().map(IpNet::from).collect();
    let mut checks = node::check(running.iter().chain(&subnets));
    checks.extend(networkd::check());
    let addresses = if subnets.is_empty() { &running } else { &subnets };
    checks.extend(forward::check(addresses));
    checks.extend(masquerade::check(addresses));
    checks.extend(rules::check(pods));
    checks.extend(balancers::check(flags.get_one::<PathBuf>("cgroup").map(PathBuf::as_path)));
    let code = if checks.iter().all(|check| check.ok) { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    harness::answer(&json!({ "checks": checks }), || check::table(&checks), code)
}
