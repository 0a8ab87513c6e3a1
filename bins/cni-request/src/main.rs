//! CNI environment and configuration in, pod document out.

mod request;

use std::{env, io, mem, os::fd::RawFd, process::ExitCode};

use clap::{Arg, ArgAction, value_parser};
use common::{
    cidrs,
    document::{Command, PodDocument, Request, VERSION},
    failure::{Code, Context, Failure},
    harness::{self, About},
    lock::Lock,
    settings::{LogOptions, ModeSetting},
    state,
};
use serde_json::{Value, json};

const ABOUT: About = About {
    name: "cni-request",
    does: "Reads a CNI request (the CNI_* environment variables and the network configuration on standard input), \
           checks it, resolves every setting, and prints the pod document that the other tools work on.",
    example: "  CNI_COMMAND=ADD CNI_CONTAINERID=pod1 CNI_NETNS=/run/netns/pod1 CNI_IFNAME=eth0 cni-request < conf.json",
};

fn main() -> ExitCode {
    let cli = harness::cli(ABOUT)
        .arg(Arg::new("schema").long("schema").action(ArgAction::SetTrue).help("Print the document's JSON Schema"))
        .arg(
            Arg::new("lock-fd")
                .long("lock-fd")
                .value_parser(value_parser!(RawFd))
                .help("Work for real: wait for the container's lock, on this open file descriptor of the caller, and keep the node \
                       agent from what a DEL or GC is about to remove"),
        )
        .arg(
            Arg::new("wait-for-settings")
                .long("wait-for-settings")
                .action(ArgAction::SetTrue)
                .help("Refuse ADD (code 11) and STATUS (50) until the node agent has said what the cluster's settings are"),
        );
    let flags = harness::matches(cli);
    harness::init_log(ABOUT.name, &LogOptions::default(), "");
    if flags.get_flag("schema") {
        return harness::print_json(&schemars::schema_for!(PodDocument), ExitCode::SUCCESS);
    }
    let stdin = match env::var("CNI_COMMAND").as_deref() {
        Ok("VERSION") => Ok(vec![]),
        _ => harness::read_input(),
    };
    let (lock, waits) = (flags.get_one("lock-fd").copied(), flags.get_flag("wait-for-settings"));
    match stdin.as_deref().map_err(Clone::clone).and_then(|stdin| document(stdin, lock, waits)) {
        Ok(document) => harness::print_json(&document, ExitCode::SUCCESS),
        Err(failure) => harness::fail(ABOUT.name, stub(&stdin.unwrap_or_default()), failure),
    }
}

fn document(stdin: &[u8], lock: Option<RawFd>, waits: bool) -> Result<PodDocument, Failure> {
    let cluster = state::cluster().unwrap_or_else(|error| json!({ "unreadable": error.to_string() }));
    let mut document = request::parse(|name| env::var(name).ok(), stdin, &cluster["settings"])?;
    let request = &document.request;
    let takes_settings = matches!(request.command, Command::Add | Command::Status);
    if waits && cluster.is_null() && takes_settings && document.settings.mode != ModeSetting::Disable {
        return Err(state::with_reason(cidrs::unknown(request.command, "settings").details(
            "the plugin was installed with a node agent, which says them: let that run on this node, or install the plugin without \
             --with-agent",
        )));
    }
    // GC is about many containers, whatever the environment names, and locks each of them for itself.
    if let Some(lock) = lock.filter(|_| !request.container_id.is_empty() && request.command != Command::Gc) {
        Lock::Container(&request.container_id)
            .acquire_inherited(lock)
            .context(Code::Io, format!("cannot lock container {}", request.container_id))?;
    }
    if matches!(request.command, Command::Del | Command::Check) {
        recall(&mut document);
    }
    if lock.is_some() {
        // What fails here fails again when the document is forgotten, at the end: nothing stops the teardown.
        let _ = leave(&document.request);
    }
    Ok(document)
}

/// Keeps the node agent from what this request is about to remove.
fn leave(request: &Request) -> io::Result<()> {
    match request.command {
        Command::Del => state::leave(request),
        Command::Gc => state::stale(request).iter().try_for_each(|stale| {
            let _lock = Lock::Container(&stale.request.container_id).acquire()?;
            state::leave(&stale.request)
        }),
        _ => Ok(()),
    }
}

/// What ADD left for DEL and CHECK that the kernel cannot keep.
fn recall(document: &mut PodDocument) {
    if let Some(saved) = state::load(&document.request) {
        let now = mem::take(&mut document.settings);
        document.settings = saved.settings.in_running_pod(&document.request.config, now);
        document.netns = saved.netns;
        document.mode = saved.mode;
        if document.request.command == Command::Check {
            // DEL finds the routes in the kernel.
            document.routing = saved.routing;
        }
        document.numbers = saved.numbers;
        document.cidrs = saved.cidrs;
        document.applied = saved.applied;
    }
    if document.request.command == Command::Del {
        document.others = state::others(&document.request);
    }
}

/// What the last tool needs to know to print an error in the form of the caller's CNI version.
fn stub(stdin: &[u8]) -> Value {
    let config: Value = serde_json::from_slice(stdin).unwrap_or_default();
    json!({ "version": VERSION, "request": { "config": { "cniVersion": config["cniVersion"] } } })
}
