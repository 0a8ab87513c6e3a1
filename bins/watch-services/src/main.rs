//! Services and EndpointSlices of a cluster as the service table of `bpf-lb-load`.

mod address;
mod batch;
mod choose;
mod cluster;
mod events;
mod map;
mod node;
mod offline;
mod online;
mod problem;
mod report;
mod service;
mod show;
mod slice;
#[cfg(test)]
mod tests;
mod unfit;
mod why;

use std::{
    env,
    fs::File,
    io::{self, IsTerminal},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context;
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use cluster_api::Name;
use common::{
    failure::{Code, Failure},
    harness::{self, About},
    settings::LogOptions,
};
use serde_json::json;

use crate::{
    cluster::{Cluster, Settings},
    node::NodePortAddresses,
};

const ABOUT: About = About {
    name: "watch-services",
    does: "Prints the cluster's Services with their endpoints, as they are for clients on this node, as the service table \
           that bpf-lb-load reads: from the Kubernetes API or from what kubectl printed. With --watch it goes on, a line for \
           each change.",
    example: "  watch-services | bpf-lb-load apply\n  \
              watch-services --watch --node \"$(hostname)\" | bpf-lb-load follow\n  \
              kubectl get services,endpointslices,nodes --all-namespaces --output json | watch-services --from -\n  \
              watch-services --why default/web",
};

fn main() -> ExitCode {
    let flags = harness::matches(cli());
    harness::init_log(ABOUT.name, &LogOptions::default(), "");
    match run(&flags) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => harness::fail(ABOUT.name, json!({}), Failure::new(Code::Io, format!("{error:#}"))),
    }
}

fn cli() -> Command {
    let flag = |name: &'static str, help: &'static str| Arg::new(name).long(name).action(ArgAction::SetTrue).help(help);
    let text = |name: &'static str, value: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name(value).help(help)
    };
    harness::cli(ABOUT)
        .arg(flag("watch", "Follow the API server: print the table, then a line for each change"))
        .arg(
            text("from", "PATH", "Ask nobody: read what kubectl get --output json printed; - for standard input")
                .value_parser(value_parser!(PathBuf))
                .conflicts_with_all(["watch", "kubeconfig", "context"]),
        )
        .arg(
            text("why", "NAMESPACE/NAME", "Say where each backend of a Service came from, and why an endpoint is none")
                .value_parser(service_name)
                .conflicts_with("watch"),
        )
        .arg(text("node", "NAME", "The node whose clients the table is for [default: $NODE_NAME, or the host's name]"))
        .arg(
            text(
                "node-port-addresses",
                "CIDR,...|primary",
                "On which of a node's addresses node ports answer [default: all]",
            )
            .value_parser(value_parser!(NodePortAddresses)),
        )
        .arg(flag("all-node-ports", "For clusters without kube-proxy: node ports answer on other nodes' addresses too, and what no Service has on \
             a ClusterIP is refused"))
        .arg(
            text("kubeconfig", "PATH", "A kubeconfig other than kubectl's, or the pod's ServiceAccount")
                .value_parser(value_parser!(PathBuf)),
        )
        .arg(text("context", "NAME", "A context of the kubeconfig other than the current one"))
}

fn service_name(text: &str) -> Result<Name, &'static str> {
    text.parse().map_err(|_| "expected a Service's namespace and name, as in default/web")
}

fn settings(flags: &ArgMatches) -> Settings {
    let named = flags.get_one::<String>("node").cloned().or_else(|| env::var("NODE_NAME").ok());
    // As kube-proxy has it.
    let host = || {
        nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).map(|name| name.trim().to_lowercase())
    };
    Settings {
        node: named.filter(|name| !name.is_empty()).or_else(host).unwrap_or_default(),
        node_port_addresses: flags.get_one::<NodePortAddresses>("node-port-addresses").cloned().unwrap_or_default(),
        all_node_ports: flags.get_flag("all-node-ports"),
    }
}

fn run(flags: &ArgMatches) -> anyhow::Result<()> {
    let Some(path) = flags.get_one::<PathBuf>("from") else {
        return harness::block_on(online(flags)).map_err(anyhow::Error::from).and_then(|result| result);
    };
    let mut cluster = Cluster::new(settings(flags));
    let objects = from(path).with_context(|| format!("cannot read {}", path.display()))?;
    if let Some(name) = flags.get_one::<Name>("why") {
        return explain(&offline::why(name, objects, &mut cluster)?);
    }
    offline::tell(&mut cluster, objects);
    print(&mut cluster)
}

async fn online(flags: &ArgMatches) -> anyhow::Result<()> {
    let kubeconfig = flags.get_one::<PathBuf>("kubeconfig").map(PathBuf::as_path);
    let context = flags.get_one::<String>("context").map(String::as_str);
    let watching = flags.get_flag("watch");
    let (client, server) = cluster_api::connect(kubeconfig, context, !watching).await?;
    let mut cluster = Cluster::new(settings(flags));
    if watching {
        return online::watch(client, server, cluster).await;
    }
    if let Some(name) = flags.get_one::<Name>("why") {
        return explain(&online::why(&client, name, &mut cluster).await?);
    }
    online::survey(&client, &mut cluster).await?;
    print(&mut cluster)
}

fn from(path: &Path) -> anyhow::Result<Vec<serde_json::Value>> {
    match path.to_str() {
        Some("-") => offline::read(io::stdin().lock()),
        _ => offline::read(io::BufReader::new(File::open(path)?)),
    }
}

/// The table: for a person as a table, in a pipe as JSON.
fn print(cluster: &mut Cluster) -> anyhow::Result<()> {
    cluster.warn_without_node();
    let table = cluster.table();
    let text = if io::stdout().is_terminal() { show::table(&table) } else { serde_json::to_string(&table)? };
    written(&text)
}

fn explain(why: &why::Why) -> anyhow::Result<()> {
    written(&if io::stdout().is_terminal() { why.to_string() } else { serde_json::to_string(why)? })
}

fn written(text: &str) -> anyhow::Result<()> {
    match harness::print(text, ExitCode::SUCCESS) {
        ExitCode::SUCCESS => Ok(()),
        _ => anyhow::bail!("cannot write to standard output"),
    }
}
