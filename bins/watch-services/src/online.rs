//! The cluster as the API server has it, once or for ever.

use std::{
    fmt::Debug,
    io::{self, Write},
    mem,
    net::SocketAddr,
    time::Duration,
};

use cluster_api::{
    Event, Health, Name, Reach, Selection, explain, follow,
    k8s_openapi::api::{core::v1 as core, discovery::v1 as discovery},
    kube::{Api, Client},
    list, reach,
};
use common::memory;
use futures_util::StreamExt;
use serde::de::DeserializeOwned;
use service_table::{Change, Line, ServiceAddress};
use tokio::{
    signal::unix::{SignalKind, signal},
    time::{Instant, MissedTickBehavior, interval},
};

use crate::{
    batch::Batch,
    cluster::Cluster,
    events::Events,
    report::{Report, Watch},
    slice, unfit,
    why::{self, Why},
};

/// What is not this proxy's is not even fetched, as with kube-proxy.
const SERVED: &str = "!service.kubernetes.io/headless,!service.kubernetes.io/service-proxy-name";
/// API servers before Kubernetes 1.31 do not know this selector: they send headless Services too.
const WITH_ADDRESS: &str = "spec.clusterIP!=None";
/// The metrics are written so often.
const TICK: Duration = Duration::from_secs(2);
/// An API server that has not answered for so long is looked for by the host path.
const PATIENCE: Duration = Duration::from_secs(10);

fn services() -> Selection {
    Selection::of::<core::Service>().labels(SERVED).fields(WITH_ADDRESS).or_without_fields()
}

fn slices() -> Selection {
    Selection::of::<discovery::EndpointSlice>().labels(SERVED)
}

fn nodes(cluster: &Cluster) -> Selection {
    let clients = cluster.clients();
    let all = Selection::of::<core::Node>();
    if clients.all_node_ports { all } else { all.named(&clients.locality.node) }
}

/// Reads everything once.
///
/// # Errors
/// The first refusal, for a person.
pub async fn survey(client: &Client, cluster: &mut Cluster) -> anyhow::Result<()> {
    read(Api::all(client.clone()), &nodes(cluster), |node| cluster.node(&node)).await?;
    // What is kept of an object is little: each is taken as its page arrives.
    read(Api::all(client.clone()), &services(), |service| cluster.service(&service)).await?;
    read(Api::all(client.clone()), &slices(), |slice| cluster.slice(&slice)).await?;
    Ok(())
}

/// Lists objects, or says what is refused and what to do.
async fn read<K, T>(api: Api<K>, selection: &Selection, keep: impl FnMut(K) -> T) -> anyhow::Result<Vec<T>>
where
    K: Clone + DeserializeOwned + Debug,
{
    list(&api, selection, keep).await.map_err(|error| anyhow::anyhow!(explain(selection, "list", &error)))
}

/// What is to be said of one Service: only its own objects are read.
///
/// # Errors
/// The first refusal, for a person.
pub async fn why(client: &Client, name: &Name, cluster: &mut Cluster) -> anyhow::Result<Why> {
    read(Api::all(client.clone()), &nodes(cluster), |node| cluster.node(&node)).await?;
    let selection = Selection::of::<core::Service>().within(&name.namespace).named(&name.name);
    let service = read(Api::namespaced(client.clone(), &name.namespace), &selection, |service| service).await?.pop();
    let of_service = format!("{}={}", slice::SERVICE, name.name);
    let selection = Selection::of::<discovery::EndpointSlice>().within(&name.namespace).labels(&of_service);
    let slices = read(Api::namespaced(client.clone(), &name.namespace), &selection, |slice| slice).await?;
    Ok(why::why(name, service.as_ref(), &slices, cluster.clients()))
}

/// The way to the API server, where that is an address which the table itself may translate: who asks by a Service's ClusterIP
/// for a table that leads to none of its endpoints any more would never hear of the others.
struct Way {
    server: SocketAddr,
    /// Of each watch.
    reach: [Reach; 3],
    /// When it was last left to the host path.
    left: Option<Instant>,
}

impl Way {
    /// Whether any watch has asked in vain for too long, so that the address is to be left to the host path (again: what changed
    /// meanwhile may have set it).
    fn is_lost(&self) -> bool {
        let too_long = |reach: &Reach| reach.silence().is_some_and(|silence| silence >= PATIENCE);
        self.left.is_none_or(|left| left.elapsed() >= PATIENCE) && self.reach.iter().any(too_long)
    }

    /// Whether the host path has it, and each watch had its answer by that.
    fn is_found(&self) -> bool {
        self.left.is_some() && self.reach.iter().all(|reach| reach.silence().is_none())
    }
}

/// What is being followed.
struct Follower {
    /// None where the table translates nothing that another one would translate in its place: without kube-proxy.
    way: Option<Way>,
    cluster: Cluster,
    health: Health<Watch>,
    report: Report,
    /// Whether the whole table has been printed.
    begun: bool,
    /// Whether the last that was said of the lease is that it is renewed. Until something is, it is not.
    renews: bool,
    /// Whether the API server has denied us something when that was last looked at.
    denied: bool,
    /// The changes that were not printed.
    batch: Batch,
}

/// Follows the cluster until SIGTERM or SIGINT: prints the whole table once all of it is known, then a line for each change.
///
/// # Errors
/// When nobody reads standard output any more.
pub async fn watch(client: Client, server: Option<SocketAddr>, cluster: Cluster) -> anyhow::Result<()> {
    let mut report = Report::new();
    let mut health = report.health();
    let nodes = nodes(&cluster);
    health.begin(Watch::Services, &services());
    health.begin(Watch::Slices, &slices());
    health.begin(Watch::Nodes, &nodes);
    let [(for_services, one), (for_slices, two), (for_nodes, three)] = [reach(&client), reach(&client), reach(&client)];
    let server = server.filter(|_| !cluster.clients().all_node_ports);
    let way = server.map(|server| Way { server, reach: [one, two, three], left: None });
    let mut services = follow(&for_services, services(), |service: core::Service| service).boxed();
    let mut slices = follow(&for_slices, slices(), |slice: discovery::EndpointSlice| slice).boxed();
    let mut nodes = follow(&for_nodes, nodes, |node: core::Node| node).boxed();
    let events = Events::new(&client, &cluster.clients().locality.node);
    let mut follower =
        Follower { way, cluster, health, report, begun: false, renews: false, denied: false, batch: Batch::default() };
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    loop {
        tokio::select! {
            Some(event) = services.next() => {
                follower.note(Watch::Services, event, Cluster::service, Cluster::service_gone);
            }
            Some(event) = slices.next() => follower.note(Watch::Slices, event, Cluster::slice, Cluster::slice_gone),
            Some(event) = nodes.next() => {
                follower.note(Watch::Nodes, event, Cluster::node, |cluster, name| cluster.node_gone(&name.name));
            }
            () = follower.batch.due() => follower.print()?,
            _ = tick.tick() => {
                follower.report.write(&follower.cluster, &mut follower.health);
                follower.mind_way()?;
                follower.mind_lease()?;
                events.tell(follower.cluster.problems(), &unfit::problems());
            }
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
        }
    }
}

impl Follower {
    fn note<T>(
        &mut self,
        watch: Watch,
        event: Event<T>,
        applied: impl FnOnce(&mut Cluster, &T),
        gone: impl FnOnce(&mut Cluster, &Name),
    ) {
        self.health.note(&watch, &event);
        match event {
            Event::Applied(_, object) => applied(&mut self.cluster, &object),
            Event::Deleted(name) => gone(&mut self.cluster, &name),
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

    /// Leaves the API server's address to the host path, which kube-proxy keeps right, while it does not answer.
    fn mind_way(&mut self) -> anyhow::Result<()> {
        let Some(way) = &mut self.way else { return Ok(()) };
        let server = way.server;
        if way.is_lost() {
            if way.left.replace(Instant::now()).is_none() {
                log::warn!("the API server does not answer: until it does, connections to {server} take the host path");
            }
            let address = ServiceAddress { address: server.ip(), port: server.port() };
            return print(&[Line { change: Change::Leave(address), triggered: None }]);
        }
        if way.is_found() {
            way.left = None;
            log::info!("the API server answers: connections to {server} take the socket path again");
            self.cluster.forget(&server.ip());
            self.noted();
        }
        Ok(())
    }

    /// Lets the table expire while the API server denies us what it takes to follow, where the host path has a table that somebody
    /// else follows. While it fails otherwise that one is taken to be as old as ours, which stands, also if it is another's before us.
    fn mind_lease(&mut self) -> anyhow::Result<()> {
        let denied = self.health.is_denied();
        if denied && !mem::replace(&mut self.denied, denied) {
            log::warn!(
                "until that is allowed again, the table is not renewed: it expires where pods have the host path too"
            );
        }
        self.denied = denied;
        let renews = !denied && (self.begun || self.health.is_failing());
        if mem::replace(&mut self.renews, renews) == renews {
            return Ok(());
        }
        if renews && self.begun {
            // What has expired is to come back as it is now.
            self.print()?;
        }
        print(&[Line { change: Change::Renew(renews), triggered: None }])
    }

    fn print(&mut self) -> anyhow::Result<()> {
        self.batch = Batch::default();
        if self.begun {
            let lines = self.cluster.changes();
            self.report.changed(lines.len());
            return print(&lines);
        }
        // Whoever reads a whole table renews it.
        (self.begun, self.renews) = (true, true);
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
