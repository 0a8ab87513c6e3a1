//! Keeps the list of network namespaces that the socket path leaves out, or that it is for.

mod kernel;
mod plan;
mod report;

use std::{
    collections::{BTreeMap, BTreeSet},
    env, mem,
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant, SystemTime},
};

use anyhow::Context;
use bpf_lb_load::{maps::are_missing, pins::Pins};
use clap::Parser;
use cluster_api::{
    Access, Event, Name, SOCKET_PATH, Selection, k8s_openapi::api::core::v1::Pod as Object, socket_path,
};
use common::{
    document::{Command as Cni, PodDocument},
    harness,
    settings::{LogOptions, Settings},
    state,
};
use futures_util::StreamExt;
use log::Level;
use serde_json::Value;
use tokio::time::{MissedTickBehavior, interval};

use crate::{
    kernel::Change,
    plan::{Attachment, Pod, exceptions},
    report::Report,
};

const NAME: &str = "scope-pods";

#[derive(Debug, Parser)]
#[command(
    version,
    about = "Decides for each pod of the node whether it takes part in the socket path, and keeps the list in the kernel by \
             which bpf-lb-load's programs go: by the pod's annotation underpass.io/socket-path; else not, if a service mesh has \
             noted on the pod that it redirects its connections; else by the setting socketPath of its network, else by the \
             cluster's. Watches the pods of its own node, and no others. Sees those of other plugins by the node's processes, \
             which takes CAP_SYS_PTRACE.",
    after_help = "Example:\n  scope-pods --node \"$(hostname)\""
)]
struct Cli {
    #[command(flatten)]
    access: Access,
    #[arg(long, value_name = "NAME", help = "The node's name [default: $NODE_NAME]")]
    node: Option<String>,
    /// Let the kernel's list stand until sync-cidrs --watch has the cluster's settings
    #[arg(long)]
    wait_for_settings: bool,
    /// Let pods of service meshes take part like others: where there is no kube-proxy, they have no Services else
    #[arg(long)]
    with_meshes: bool,
    /// Where bpf-lb-load keeps its maps
    #[arg(long, value_name = "PATH", default_value = "/sys/fs/bpf/underpass")]
    pin_dir: PathBuf,
}

/// A pod that has just been added is found so soon.
const LOOK: Duration = Duration::from_millis(100);
/// So long a pod is looked for as often as that; one that has no process by then waits for something else, such as a volume.
const AWAIT: Duration = Duration::from_secs(30);
/// Everything is looked at again after this, whether there is news or not: the kernel's list may have been lost.
const FULL_LOOK: Duration = Duration::from_secs(5);
/// The same where it did not go well.
const RETRY: Duration = Duration::from_secs(1);
/// How often the metrics are written.
const WRITE: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    let cli: Cli = harness::parse();
    harness::init_log(NAME, &LogOptions::default(), "");
    harness::end(NAME, harness::block_on_network(follow(cli)).map_err(anyhow::Error::from).flatten())
}

async fn follow(cli: Cli) -> anyhow::Result<()> {
    let client = cli.access.client(false).await?;
    let pins = Pins::new(&cli.pin_dir);
    let node = cli.node.or_else(|| env::var("NODE_NAME").ok()).unwrap_or_default();
    let selection = Selection::of::<Object>().fields(&format!("spec.nodeName={node}"));
    let mut report = Report::new(&selection);
    let mut events = Box::pin(cluster_api::follow(&client, selection, move |pod| cut_down(pod, cli.with_meshes)));
    let mut known = Known::default();
    let (mut said, mut seen, mut full) = (String::new(), None, Instant::now());
    let (mut look, mut write) = (interval(LOOK), interval(WRITE));
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let news = tokio::select! {
            Some(event) = events.next() => {
                report.note(&event);
                known.take(event)
            }
            _ = look.tick() => false,
            _ = write.tick() => {
                report.write();
                continue;
            }
        };
        // Until the pods are known, the kernel's list stands.
        if !report.is_listed() {
            continue;
        }
        let now = Some((stamps(), pins.is_loaded()));
        let went_well = said.is_empty();
        let pause = if went_well { FULL_LOOK } else { RETRY };
        let has_come = || went_well && kernel::has_process(known.awaited());
        if !news && now == seen && full.elapsed() < pause && !has_come() {
            continue;
        }
        (seen, full) = (now, Instant::now());
        let (level, outcome) = decide(&pins, cli.wait_for_settings, &mut known, &mut report);
        // Said once, not with each look.
        if !outcome.is_empty() && outcome != said {
            log::log!(level, "{outcome}");
        }
        report.decided(outcome.is_empty());
        said = outcome;
    }
}

/// Decides for all pods; why the kernel's list is not as it is to be, and how much that matters.
fn decide(pins: &Pins, wait_for_settings: bool, known: &mut Known, report: &mut Report) -> (Level, String) {
    let settings = match settings() {
        Ok(None) if wait_for_settings => {
            return (Level::Info, format!("the cluster's settings are not known yet: {STANDS}"));
        }
        settings => settings.map(Option::unwrap_or_default),
    };
    match settings.and_then(|settings| converge(pins, &settings, &known.pods)) {
        Ok(Change { added, removed, unfound, awaited }) => {
            if added + removed > 0 {
                log::info!("{added} network namespaces are exceptions now, {removed} no longer");
            }
            report.unfound(known.tell_unfound(unfound));
            known.note_awaited(awaited);
            (Level::Info, String::new())
        }
        // It may come.
        Err(error) if are_missing(&error) => (Level::Info, pins.not_loaded()),
        Err(error) => (Level::Error, format!("{error:#}")),
    }
}

/// The saved documents and their stamps, and the cluster's settings' stamp.
type Stamps = (Vec<(state::Saved, state::Stamp)>, Option<SystemTime>);

/// What changes whenever a pod is added or removed, or the cluster's settings change.
fn stamps() -> Stamps {
    let cluster = state::directory().join(state::CLUSTER);
    let mut saved = state::saved();
    saved.sort();
    (saved, cluster.metadata().and_then(|file| file.modified()).ok())
}

/// Of a pod, what is of use here.
fn cut_down(object: Object, with_meshes: bool) -> Pod {
    let annotations = object.metadata.annotations.unwrap_or_default();
    let wrong = socket_path(&annotations).err().map(str::to_owned);
    let on_host = object.spec.is_some_and(|spec| spec.host_network == Some(true));
    let status = object.status.unwrap_or_default();
    // Its addresses may be another's then.
    let has_ended = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
    let addresses = status.pod_ips.into_iter().flatten().filter_map(|address| address.ip.parse().ok());
    Pod {
        takes_part: plan::takes_part(&annotations, with_meshes),
        wrong,
        uid: plan::uid_of(object.metadata.uid, &annotations),
        has_none: on_host || has_ended,
        addresses: addresses.collect(),
        is_leaving: object.metadata.deletion_timestamp.is_some(),
    }
}

/// What the API has said.
#[derive(Default)]
struct Known {
    /// Those of which annotations say something.
    pods: BTreeMap<Name, Pod>,
    /// Those whose network namespace was not found when it was last looked for, since when, and whether that was said.
    unfound: BTreeMap<Name, (Instant, bool)>,
    /// Those that had neither addresses nor a process when they were last looked for, by UID, and since when.
    awaited: BTreeMap<String, Instant>,
}

impl Known {
    /// Notes what the API says; whether it is of interest.
    fn take(&mut self, event: Event<Pod>) -> bool {
        match event {
            Event::Applied(name, pod) if self.pods.get(&name) == Some(&pod) => return false,
            Event::Applied(name, pod) if pod.takes_part.is_some() || pod.wrong.is_some() => {
                if let Some(wrong) =
                    pod.wrong.as_ref().filter(|_| self.pods.get(&name).is_none_or(|p| p.wrong != pod.wrong))
                {
                    log::warn!(
                        "pod {name}: its annotation {SOCKET_PATH} is {wrong:?}, neither \"true\" nor \"false\": it is of no account"
                    );
                }
                self.pods.insert(name, pod);
                return true;
            }
            // A pod without an opinion.
            Event::Applied(name, _) | Event::Deleted(name) => return self.pods.remove(&name).is_some(),
            Event::Failed(_) | Event::Denied(_) | Event::InContact | Event::Listed | Event::Absent => {}
        }
        false
    }

    fn note_awaited(&mut self, awaited: BTreeMap<Name, String>) {
        let before = mem::take(&mut self.awaited);
        let since = |uid: String| (before.get(&uid).copied().unwrap_or_else(Instant::now), uid);
        self.awaited = awaited.into_values().map(since).map(|(since, uid)| (uid, since)).collect();
    }

    /// The UIDs of those that may have their first process at any moment.
    fn awaited(&self) -> impl Iterator<Item = &str> {
        self.awaited.iter().filter(|(_, since)| since.elapsed() < AWAIT).map(|(uid, _)| &**uid)
    }

    /// Names each pod once that is not found in any network namespace though it is to be there; how many there are. The namespace
    /// of a pod that ends may have gone before the API says so: it is looked for once more.
    fn tell_unfound(&mut self, mut unfound: BTreeSet<Name>) -> usize {
        unfound.retain(|name| self.pods.get(name).is_some_and(|pod| !pod.is_leaving));
        self.unfound.retain(|name, _| unfound.contains(name));
        for pod in unfound {
            let text = format!("pod {pod}");
            let (since, said) = self.unfound.entry(pod).or_insert_with(|| (Instant::now(), false));
            if !*said && since.elapsed() >= FULL_LOOK {
                log::warn!(
                    "{text}: no network namespace of this node has its address: what its annotations say of the socket path has no effect"
                );
                *said = true;
            }
        }
        self.unfound.values().filter(|(_, said)| *said).count()
    }
}

const STANDS: &str = "who took part does so still, and nobody else";

/// The cluster's settings, where they are known.
fn settings() -> anyhow::Result<Option<Value>> {
    let cluster = state::cluster().with_context(|| format!("cannot read the cluster's settings: {STANDS}"))?;
    Ok((!cluster.is_null()).then(|| cluster["settings"].clone()))
}

fn converge(pins: &Pins, settings: &Value, pods: &BTreeMap<Name, Pod>) -> anyhow::Result<Change> {
    let default = takes_part(&Value::Null, settings);
    kernel::converge(pins, default, &exceptions(default, &attachments(settings), pods))
}

/// The setting `socketPath` of a plugin configuration, where null has none of its own: then the cluster's.
fn takes_part(config: &Value, cluster: &Value) -> bool {
    Settings::resolve(config, cluster).0.socket_path
}

/// The attachments whose ADD our plugin has done.
fn attachments(settings: &Value) -> Vec<Attachment> {
    let is_added = |document: &PodDocument| document.error.is_none() && document.request.command == Cni::Add;
    // Who has its path by now is another.
    let added = state::list().filter(|document| is_added(document) && !document.has_lost_netns());
    let attachment = |document: PodDocument| {
        let request = document.request;
        let setting = takes_part(&request.config, settings);
        let pod = request.pod().map(|(namespace, name)| Name { namespace: namespace.into(), name: name.into() });
        Some(Attachment { pod, netns: request.netns?, setting })
    };
    added.filter_map(attachment).collect()
}
