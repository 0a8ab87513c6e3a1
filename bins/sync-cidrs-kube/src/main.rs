//! What `sync-cidrs` does with Kubernetes: derives the cluster's CIDRs from its objects, once or watching.

mod api;
mod check;
mod cni;
mod derive;
mod kind;
mod publish;
mod settings;
mod show;
mod status;
mod survey;
mod watch;
mod world;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context;
use clap::Parser;
use cluster_api::{Access, causes};
use common::{
    cidrs::merged,
    document::Cidrs,
    failure::{Code, Failure},
    harness,
    settings::LogOptions,
};
use serde_json::{Value, json};

use crate::{
    derive::{Derived, derive},
    publish::Publisher,
    settings::PodCidrType,
    survey::Options,
    world::World,
};

/// What people run, which runs this.
const NAME: &str = "sync-cidrs";

#[derive(Debug, Parser)]
#[command(
    name = NAME,
    version,
    about = "Finds the cluster's Service and Pod CIDRs in Kubernetes and prints them with where each one came from and \
             what was refused, as a table at a terminal and as JSON in a pipe. With --watch it goes on doing so, a line of \
             JSON for each change, and keeps the file that a CNI ADD reads.",
    after_help = "Example:\n  \
                  sync-cidrs --kube\n  \
                  sync-cidrs --watch --node \"$(hostname)\" | set-routes --follow\n  \
                  kubectl get --all-namespaces configmaps,pods,nodes,servicecidrs --output json | sync-cidrs --from -"
)]
struct Cli {
    /// Ask the API server (implied without --from)
    #[arg(long)]
    kube: bool,
    /// Follow the API server: keep the state directory's cluster.json, print a line for each change
    #[arg(long)]
    watch: bool,
    /// Ask nobody: read what kubectl get --output json printed, or a plain cidrs section; - for standard input
    #[arg(long, value_name = "PATH", conflicts_with_all = ["watch", "kubeconfig", "context"])]
    from: Option<PathBuf>,
    /// Print the plain cidrs section only
    #[arg(long, conflicts_with = "watch")]
    cidrs: bool,
    #[command(flatten)]
    access: Access,
    /// How to find the pods' CIDRs (none: nor the Services'), whatever the cluster's settings say
    #[arg(long, value_name = "TYPE")]
    pod_cidr_type: Option<PodCidrType>,
    #[arg(
        long,
        value_name = "NAME",
        help = "The node's name [default: $NODE_NAME]: no CIDR may contain one of its addresses, for which --watch waits"
    )]
    node: Option<String>,
    /// The node's CNI configuration
    #[arg(long, value_name = "PATH", default_value = "/etc/cni/net.d")]
    cni_directory: PathBuf,
    /// With --watch, keep this file instead
    #[arg(long, value_name = "PATH")]
    file: Option<PathBuf>,
    /// With --watch, keep the SpiderCoordinator's status, if elected by the Lease underpass
    #[arg(long)]
    write_status: bool,
}

fn main() -> ExitCode {
    let cli: Cli = harness::parse();
    harness::init_log(NAME, &LogOptions::default(), "");
    let result = match &cli.from {
        Some(path) => from(path, &cli),
        None => harness::block_on_network(online(cli)).map_err(anyhow::Error::from).flatten(),
    };
    match result {
        Ok(Some(output)) => harness::answer(&output, || show::tables(&output), ExitCode::SUCCESS),
        Ok(None) => ExitCode::SUCCESS,
        Err(error) => {
            let code = if error.is::<serde_json::Error>() { Code::Decoding } else { Code::Io };
            harness::fail(NAME, json!({}), Failure::new(code, causes(error.as_ref())))
        }
    }
}

impl Cli {
    fn options(&self) -> Options {
        Options {
            pod_cidr_type: self.pod_cidr_type,
            node: self.node.clone().or_else(|| env::var("NODE_NAME").ok()).filter(|node| !node.is_empty()),
            cni: cni::read(&self.cni_directory),
        }
    }
}

async fn online(cli: Cli) -> anyhow::Result<Option<Value>> {
    let options = cli.options();
    let client = cli.access.client(!cli.watch).await?;
    if !cli.watch {
        return output(&api::survey(&client, &options).await?, &cli).map(Some);
    }
    let publisher = Publisher::new(cli.file);
    let (latest, changes) = tokio::sync::watch::channel(None);
    let keeper = cli.write_status.then(|| tokio::spawn(status::keep(client.clone(), changes)));
    let result = watch::follow(client, options, cli.cni_directory, publisher, latest).await;
    if let Some(keeper) = keeper {
        keeper.abort();
    }
    result.map(|()| None)
}

/// One or more JSON documents: objects as kubectl prints them, or a cidrs section.
fn from(path: &Path, cli: &Cli) -> anyhow::Result<Option<Value>> {
    let text = match path.to_str() {
        // A cluster's objects are longer than any pod document.
        Some("-") => std::io::read_to_string(std::io::stdin()).context("cannot read standard input")?,
        _ => fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?,
    };
    let documents: Vec<Value> = serde_json::Deserializer::from_str(&text)
        .into_iter()
        .collect::<Result<_, _>>()
        .with_context(|| format!("{} is not JSON", path.display()))?;
    anyhow::ensure!(
        !documents.is_empty(),
        "{} is empty, and no cluster is: whoever was to print its objects failed",
        path.display()
    );
    if let [only] = documents.as_slice()
        && only["kind"].is_null()
    {
        return Ok(Some(json!(merged(&section(only).context(EXPECTED)?))));
    }
    anyhow::ensure!(World::is_of_kubernetes(&documents), "an object has no kind: {EXPECTED}");
    let options = cli.options();
    let world = World::from_objects(&documents, options.node.as_deref());
    output(&derive(&world, &options), cli).map(Some)
}

const EXPECTED: &str =
    "expected what kubectl get --output json prints, or {\"service\": [CIDR, ...], \"pod\": [...], \"hijack\": [...]}";

/// A cidrs section. In the pod document it may have more; here, that is something else.
fn section(value: &Value) -> anyhow::Result<Cidrs> {
    let known = json!(Cidrs::default());
    let section = value.as_object().context("not a JSON object")?;
    if let Some(key) = section.keys().find(|key| known.get(key).is_none()) {
        anyhow::bail!("no cidrs section has the key {key}");
    }
    Ok(serde_json::from_value(value.clone())?)
}

fn output(derived: &Derived, cli: &Cli) -> anyhow::Result<Value> {
    let cluster = derived.cluster.as_ref().context("the cluster's objects say nothing of CIDRs")?;
    let mut document = cluster.document();
    for problem in &cluster.problems {
        log::warn!("{problem}");
    }
    Ok(if cli.cidrs { document["cidrs"].take() } else { document })
}
