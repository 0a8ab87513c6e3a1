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
mod watch;
mod world;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context;
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use cluster_api::causes;
use common::{
    cidrs::merged,
    document::Cidrs,
    failure::{Code, Failure},
    harness::{self, About},
    settings::LogOptions,
};
use serde_json::{Value, json};

use crate::{
    derive::{Derived, Options, derive},
    publish::Publisher,
    settings::{PodCidrType, TYPES},
    world::World,
};

const ABOUT: About = About {
    name: "sync-cidrs",
    does: "Finds the cluster's Service and Pod CIDRs in Kubernetes and prints them with where each one came from and \
           what was refused, as a table at a terminal and as JSON in a pipe. With --watch it goes on doing so, a line of \
           JSON for each change, and keeps the file that a CNI ADD reads.",
    example: "  sync-cidrs --kube\n  \
              sync-cidrs --watch --node \"$(hostname)\" | set-routes --follow\n  \
              kubectl get --all-namespaces configmaps,pods,nodes,servicecidrs --output json | sync-cidrs --from -",
};

fn main() -> ExitCode {
    let flags = harness::matches(cli());
    harness::init_log(ABOUT.name, &LogOptions::default(), "");
    let result = match flags.get_one::<PathBuf>("from") {
        Some(path) => from(path, &flags),
        None => harness::block_on(online(&flags)).map_err(anyhow::Error::from).and_then(|result| result),
    };
    match result {
        Ok(Some(output)) => harness::answer(&output, || show::tables(&output), ExitCode::SUCCESS),
        Ok(None) => ExitCode::SUCCESS,
        Err(error) => {
            let code = if error.is::<serde_json::Error>() { Code::Decoding } else { Code::Io };
            harness::fail(ABOUT.name, json!({}), Failure::new(code, causes(error.as_ref())))
        }
    }
}

fn cli() -> Command {
    let path = |name: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_parser(value_parser!(PathBuf)).value_name("PATH").help(help)
    };
    let flag = |name: &'static str, help: &'static str| Arg::new(name).long(name).action(ArgAction::SetTrue).help(help);
    harness::cli(ABOUT)
        .arg(flag("kube", "Ask the API server (implied without --from)"))
        .arg(flag("watch", "Follow the API server: keep the state directory's cluster.json, print a line for each change"))
        .arg(
            path("from", "Ask nobody: read what kubectl get --output json printed, or a plain cidrs section; - for standard input")
                .conflicts_with_all(["watch", "kubeconfig", "context"]),
        )
        .arg(flag("cidrs", "Print the plain cidrs section only").conflicts_with("watch"))
        .arg(path("kubeconfig", "A kubeconfig other than kubectl's, or the pod's ServiceAccount"))
        .arg(Arg::new("context").long("context").value_name("NAME").help("A context of the kubeconfig other than the current one"))
        .arg(
            Arg::new("pod-cidr-type")
                .long("pod-cidr-type")
                .value_name("TYPE")
                .value_parser(TYPES.map(|(name, _)| name))
                .help("How to find the pods' CIDRs (none: nor the Services'), whatever the cluster's settings say"),
        )
        .arg(
            Arg::new("node")
                .long("node")
                .value_name("NAME")
                .help("The node's name [default: $NODE_NAME]: no CIDR may contain one of its addresses, for which --watch waits"),
        )
        .arg(path("cni-directory", "The node's CNI configuration").default_value("/etc/cni/net.d"))
        .arg(path("file", "With --watch, keep this file instead"))
        .arg(flag("write-status", "With --watch, keep the SpiderCoordinator's status, if elected by the Lease underpass"))
}

fn options(flags: &ArgMatches) -> Options {
    let text = |name: &str| flags.get_one::<String>(name).cloned();
    Options {
        pod_cidr_type: text("pod-cidr-type").as_deref().and_then(PodCidrType::parse),
        node: text("node").or_else(|| env::var("NODE_NAME").ok()).filter(|node| !node.is_empty()),
        cni: flags.get_one::<PathBuf>("cni-directory").map(|path| cni::read(path)).unwrap_or_default(),
    }
}

async fn online(flags: &ArgMatches) -> anyhow::Result<Option<Value>> {
    let options = options(flags);
    let kubeconfig = flags.get_one::<PathBuf>("kubeconfig").map(PathBuf::as_path);
    let context = flags.get_one::<String>("context").map(String::as_str);
    let client = cluster_api::client(kubeconfig, context, !flags.get_flag("watch")).await?;
    if !flags.get_flag("watch") {
        return output(&api::survey(&client, &options).await?, flags).map(Some);
    }
    let publisher = Publisher::new(flags.get_one("file").cloned());
    let directory = flags.get_one::<PathBuf>("cni-directory").cloned().unwrap_or_default();
    let (latest, changes) = tokio::sync::watch::channel(None);
    let keeper = flags.get_flag("write-status").then(|| tokio::spawn(status::keep(client.clone(), changes)));
    let result = watch::follow(client, options, directory, publisher, latest).await;
    if let Some(keeper) = keeper {
        keeper.abort();
    }
    result.map(|()| None)
}

/// One or more JSON documents: objects as kubectl prints them, or a cidrs section.
fn from(path: &Path, flags: &ArgMatches) -> anyhow::Result<Option<Value>> {
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
    let options = options(flags);
    let world = World::from_objects(&documents, options.node.as_deref());
    output(&derive(&world, &options), flags).map(Some)
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

fn output(derived: &Derived, flags: &ArgMatches) -> anyhow::Result<Value> {
    let cluster = derived.cluster.as_ref().context("the cluster's objects say nothing of CIDRs")?;
    let mut document = cluster.document();
    for problem in &cluster.problems {
        log::warn!("{problem}");
    }
    Ok(if flags.get_flag("cidrs") { document["cidrs"].take() } else { document })
}
