//! The cluster as the API server has it, once or for ever.

use std::{
    io::{self, Write},
    time::Duration,
};

use cluster_api::{
    Event, Health, Name, Selection, explain, follow,
    k8s_openapi::api::{core::v1 as core, discovery::v1 as discovery},
    kube::{Api, Client},
    list,
};
use common::memory;
use futures_util::StreamExt;
use service_table::{Change, Line};
use tokio::{
    signal::unix::{SignalKind, signal},
    time::{MissedTickBehavior, interval},
};

use crate::{
    batch::Batch,
    cluster::Cluster,
    events::Events,
    report::Report,
    slice, unfit,
    why::{self, Why},
};

/// What is not this proxy's is not even fetched, as with kube-proxy.
const SERVED: &str = "!service.kubernetes.io/headless,!service.kubernetes.io/service-proxy-name";
/// API servers before Kubernetes 1.31 do not know this selector: they send headless Services too.
const WITH_ADDRESS: &str = "spec.clusterIP!=None";
/// The metrics are written so often.
const TICK: Duration = Duration::from_secs(2);

/// The three watches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Watch {
    /// Of Services.
    Services,
    /// Of EndpointSlices.
    Slices,
    /// Of the own Node, or of all.
    Nodes,
}

fn services() -> Selection {
    Selection::of::<core::Service>().labels(SERVED).fields(WITH_ADDRESS).or_without_fields()
}

fn slices() -> Selection {
    Selection::of::<discovery::EndpointSlice>().labels(SERVED)
}

fn nodes(cluster: &Cluster) -> Selection {
    let clients = cluster.clients();
    let all = Selection::of::<core::Node>();
    if clients.all_node_ports { all } else { all.named(&clients.place.node) }
}

/// Reads everything once.
///
/// # Errors
/// The first refusal, for a person.
pub async fn survey(client: &Client, cluster: &mut Cluster) -> anyhow::Result<()> {
    let refused = |selection: &Selection, error| anyhow::anyhow!(explain(selection, "list", &error));
    let selection = nodes(cluster);
    let found = list(&Api::all(client.clone()), &selection, |node: core::Node| node).await;
    found.map_err(|error| refused(&selection, error))?.iter().for_each(|node| cluster.node(node));
    // What is kept of an object is little: each is taken as its page arrives.
    let taken = std::cell::RefCell::new(cluster);
    let take = |service: core::Service| taken.borrow_mut().service(&service);
    list(&Api::all(client.clone()), &services(), take).await.map_err(|error| refused(&services(), error))?;
    let take = |slice: discovery::EndpointSlice| taken.borrow_mut().slice(&slice);
    list(&Api::all(client.clone()), &slices(), take).await.map_err(|error| refused(&slices(), error))?;
    Ok(())
}

/// What is to be said of one Service: only its own objects are read.
///
/// # Errors
/// The first refusal, for a person.
pub async fn why(client: &Client, name: &Name, cluster: &mut Cluster) -> anyhow::Result<Why> {
    let refused = |selection: &Selection, error| anyhow::anyhow!(explain(selection, "list", &error));
    let selection = nodes(cluster);
    let found = list(&Api::all(client.clone()), &selection, |node: core::Node| node).await;
    found.map_err(|error| refused(&selection, error))?.iter().for_each(|node| cluster.node(node));
    let selection = Selection::of::<core::Service>().within(&name.namespace).named(&name.name);
    let of_namespace = Api::namespaced(client.clone(), &name.namespace);
    let found = list(&of_namespace, &selection, |service: core::Service| service).await;
    let service = found.map_err(|error| refused(&selection, error))?.pop();
    let of_service = format!("{}={}", slice::SERVICE, name.name);
    let selection = Selection::of::<discovery::EndpointSlice>().within(&name.namespace).labels(&of_service);
    let of_namespace = Api::namespaced(client.clone(), &name.namespace);
    let found = list(&of_namespace, &selection, |slice: discovery::EndpointSlice| slice).await;
    let slices = found.map_err(|error| refused(&selection, error))?;
    Ok(why::why(name, service.as_ref(), &slices, cluster.clients()))
}

/// What is being followed.
struct Follower {
    cluster: Cluster,
    health: Health<Watch>,
    report: Report,
    /// Whether the whole table has been printed.
    begun: bool,
    /// The changes that were not printed.
    batch: Batch,
}

/// Follows the cluster until SIGTERM or SIGINT: prints the whole table once all of it is known, then a line for each change.
///
/// # Errors
/// When nobody reads standard output any more.
pub async fn watch(client: Client, cluster: Cluster) -> anyhow::Result<()> {
    let mut report = Report::new();
    let mut health = report.health();
    let nodes = nodes(&cluster);
    health.begin(Watch::Services, &services());
    health.begin(Watch::Slices, &slices());
    health.begin(Watch::Nodes, &nodes);
    let mut services = follow(&client, services(), |service: core::Service| service).boxed();
    let mut slices = follow(&client, slices(), |slice: discovery::EndpointSlice| slice).boxed();
    let mut nodes = follow(&client, nodes, |node: core::Node| node).boxed();
    let events = Events::new(&client, &cluster.clients().place.node);
    let mut follower = Follower { cluster, health, report, begun: false, batch: Batch::default() };
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    loop {
        tokio::select! {
            Some(event) = services.next() => follower.service(event),
            Some(event) = slices.next() => follower.slice(event),
            Some(event) = nodes.next() => follower.node(event),
            () = follower.batch.due() => follower.print()?,
            _ = tick.tick() => {
                follower.report.write(&follower.cluster, &mut follower.health);
                events.tell(follower.cluster.problems(), &unfit::problems());
            }
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
        }
    }
}

impl Follower {
    fn service(&mut self, event: Event<core::Service>) {
        self.health.note(&Watch::Services, &event);
        match event {
            Event::Applied(_, service) => self.cluster.service(&service),
            Event::Deleted(name) => self.cluster.service_gone(&name),
            _ => {}
        }
        self.noted();
    }

    fn slice(&mut self, event: Event<discovery::EndpointSlice>) {
        self.health.note(&Watch::Slices, &event);
        match event {
            Event::Applied(_, slice) => self.cluster.slice(&slice),
            Event::Deleted(name) => self.cluster.slice_gone(&name),
            _ => {}
        }
        self.noted();
    }

    fn node(&mut self, event: Event<core::Node>) {
        self.health.note(&Watch::Nodes, &event);
        match event {
            Event::Applied(_, node) => self.cluster.node(&node),
            Event::Deleted(name) => self.cluster.node_gone(&name.name),
            _ => {}
        }
        self.noted();
    }

    /// Before everything has been listed nothing is printed: what is not known yet would be taken for gone.
    fn noted(&mut self) {
        let news = if self.begun { self.cluster.has_changed() } else { self.health.is_current() };
        if news {
            self.batch.add();
        }
    }

    fn print(&mut self) -> anyhow::Result<()> {
        self.batch = Batch::default();
        if self.begun {
            let lines = self.cluster.changes();
            self.report.changed(lines.len());
            return print(&lines);
        }
        self.begun = true;
        self.cluster.warn_without_node();
        print(&[Line { change: Change::Table(self.cluster.table()), triggered: None }])?;
        memory::trim();
        Ok(())
    }
}

fn print(lines: &[Line]) -> anyhow::Result<()> {
    let mut out = io::BufWriter::new(io::stdout().lock());
    for line in lines {
        serde_json::to_writer(&mut out, line)?;
        out.write_all(b"\n")?;
    }
    Ok(out.flush()?)
}
