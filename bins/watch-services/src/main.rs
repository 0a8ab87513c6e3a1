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
mod places;
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
use clap::Parser;
use cluster_api::{Access, Name};
use common::{harness, settings::LogOptions};

use crate::{
    cluster::{Cluster, Settings},
    node::NodePortAddresses,
};

const NAME: &str = "watch-services";

#[derive(Debug, Parser)]
#[command(
    version,
    about = "Prints the cluster's Services with their endpoints, as they are for clients on this node, as the service table \
             that bpf-lb-load reads: from the Kubernetes API or from what kubectl printed. With --watch it goes on, a line for \
             each change.",
    after_help = "Example:\n  \
                  watch-services | bpf-lb-load apply\n  \
                  watch-services --watch --node \"$(hostname)\" | bpf-lb-load follow\n  \
                  kubectl get services,endpointslices,nodes --all-namespaces --output json | watch-services --from -\n  \
                  watch-services --why default/web"
)]
struct Cli {
    /// Follow the API server: print the table, then a line for each change
    #[arg(long)]
    watch: bool,
    /// Ask nobody: read what kubectl get --output json printed; - for standard input
    #[arg(long, value_name = "PATH", conflicts_with_all = ["watch", "kubeconfig", "context"])]
    from: Option<PathBuf>,
    /// Say where each backend of a Service came from, and why an endpoint is none
    #[arg(long, value_name = "NAMESPACE/NAME", value_parser = service_name, conflicts_with = "watch")]
    why: Option<Name>,
    #[arg(
        long,
        value_name = "NAME",
        help = "The node whose clients the table is for [default: $NODE_NAME, or the host's name]"
    )]
    node: Option<String>,
    #[arg(
        long,
        value_name = "CIDR,...|primary",
        help = "On which of a node's addresses node ports answer [default: all]"
    )]
    node_port_addresses: Option<NodePortAddresses>,
    /// For clusters without kube-proxy: node ports answer on other nodes' addresses too, and what no Service has on a ClusterIP
    /// is refused
    #[arg(long)]
    all_node_ports: bool,
    #[command(flatten)]
    access: Access,
}

fn service_name(text: &str) -> Result<Name, &'static str> {
    text.parse().map_err(|_| "expected a Service's namespace and name, as in default/web")
}

fn main() -> ExitCode {
    let cli = harness::parse();
    harness::init_log(NAME, &LogOptions::default(), "");
    match run(cli) {
        Ok(Some(answer)) => harness::print(&answer, ExitCode::SUCCESS),
        done => harness::end(NAME, done.map(drop)),
    }
}

impl Cli {
    fn cluster(&self) -> Cluster {
        let named = self.node.clone().or_else(|| env::var("NODE_NAME").ok());
        // As kube-proxy has it.
        let host = || Some(nix::unistd::gethostname().ok()?.into_string().ok()?.trim().to_lowercase());
        Cluster::new(Settings {
            node: named.filter(|name| !name.is_empty()).or_else(host).unwrap_or_default(),
            node_port_addresses: self.node_port_addresses.clone().unwrap_or_default(),
            all_node_ports: self.all_node_ports,
        })
    }
}

/// What there is to print at the end.
fn run(cli: Cli) -> anyhow::Result<Option<String>> {
    let Some(path) = &cli.from else { return harness::block_on_network(online(cli))? };
    let mut cluster = cli.cluster();
    let objects = from(path).with_context(|| format!("cannot read {}", path.display()))?;
    if let Some(name) = &cli.why {
        return explained(&offline::why(name, objects, &mut cluster)?).map(Some);
    }
    offline::tell(&mut cluster, objects);
    table(&mut cluster).map(Some)
}

async fn online(cli: Cli) -> anyhow::Result<Option<String>> {
    let (client, server) = cli.access.connect(!cli.watch).await?;
    let mut cluster = cli.cluster();
    if cli.watch {
        return online::watch(client, server, cluster).await.map(|()| None);
    }
    if let Some(name) = &cli.why {
        return explained(&online::why(&client, name, &mut cluster).await?).map(Some);
    }
    online::survey(&client, &mut cluster).await?;
    table(&mut cluster).map(Some)
}

fn from(path: &Path) -> anyhow::Result<Vec<serde_json::Value>> {
    match path.to_str() {
        Some("-") => offline::read(io::stdin().lock()),
        _ => offline::read(io::BufReader::new(File::open(path)?)),
    }
}

/// The table: for a person as a table, in a pipe as JSON.
fn table(cluster: &mut Cluster) -> anyhow::Result<String> {
    cluster.warn_without_node();
    let table = cluster.table();
    Ok(if io::stdout().is_terminal() { show::table(&table) } else { serde_json::to_string(&table)? })
}

fn explained(why: &why::Why) -> anyhow::Result<String> {
    Ok(if io::stdout().is_terminal() { why.to_string() } else { serde_json::to_string(why)? })
}
