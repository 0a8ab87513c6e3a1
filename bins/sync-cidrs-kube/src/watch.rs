//! Follows the cluster: one watch for each kind that the answer depends on, and what becomes of their news.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use cluster_api::{Event, Health, follow_objects, kube::Client};
use futures_util::{
    StreamExt,
    stream::{AbortHandle, BoxStream, ReadyChunks, SelectAll, abortable},
};
use serde_json::Value;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
    time::{MissedTickBehavior, interval},
};

use crate::{
    api,
    cni::{self, File},
    derive::{Cluster, derive},
    kind::Kind,
    publish::Publisher,
    survey::Options,
    world::World,
};

/// The CNI configuration is read again, and the metrics are written, so often.
const TICK: Duration = Duration::from_secs(2);
/// No more news than this are taken together.
const BATCH: usize = 256;

type News = (Kind, Event<Value>);

/// What is being followed.
struct Follower {
    client: Client,
    options: Options,
    cni_directory: PathBuf,
    /// The CNI configuration at the last look.
    cni: Vec<File>,
    world: World,
    health: Health<Kind>,
    /// Why what follows from all that is known is not taken; empty where it is.
    unchecked: String,
    watches: BTreeMap<Kind, AbortHandle>,
    news: ReadyChunks<SelectAll<BoxStream<'static, News>>>,
}

/// Follows the cluster until SIGTERM or SIGINT. Each change goes to the publisher, and for the status's keeper to `latest`.
///
/// # Errors
/// When nobody reads standard output any more.
pub async fn follow(
    client: Client,
    options: Options,
    cni_directory: PathBuf,
    mut publisher: Publisher,
    latest: watch::Sender<Option<Cluster>>,
) -> anyhow::Result<()> {
    let mut follower = Follower {
        client,
        cni: options.cni.clone(),
        options,
        cni_directory,
        world: World::default(),
        health: publisher.health(),
        unchecked: String::new(),
        watches: BTreeMap::new(),
        news: SelectAll::new().ready_chunks(BATCH),
    };
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    publisher.begin()?;
    follower.conclude();
    loop {
        tokio::select! {
            Some(news) = follower.news.next() => news.into_iter().for_each(|(kind, event)| follower.note(kind, event)),
            _ = tick.tick() => follower.look(),
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
        }
        let cluster = follower.conclude();
        if let Some(cluster) = &cluster {
            publisher.publish(cluster)?;
            latest.send_if_modified(|last| {
                let changed = last.as_ref() != Some(cluster);
                *last = Some(cluster.clone());
                changed
            });
        }
        publisher.report(&mut follower.health, &follower.unchecked);
    }
}

impl Follower {
    /// Reads the CNI configuration again. What is not as it was at the last look may be half written.
    fn look(&mut self) {
        let cni = cni::read(&self.cni_directory);
        if cni == self.cni { self.options.cni = cni } else { self.cni = cni }
    }

    fn note(&mut self, kind: Kind, event: Event<Value>) {
        // News of a watch that has just been ended may still be among those that came together.
        if self.watches.contains_key(&kind) {
            self.health.note(&kind, &event);
            self.world.note(kind, event);
        }
    }

    /// What follows from all that is known; starts and ends watches as it takes.
    fn conclude(&mut self) -> Option<Cluster> {
        let derived = derive(&self.world, &self.options);
        let ended: Vec<Kind> = self.watches.keys().copied().filter(|kind| !derived.needs.contains(kind)).collect();
        for kind in ended {
            if let Some(watch) = self.watches.remove(&kind) {
                watch.abort();
            }
            self.health.end(&kind);
            self.world.forget(kind);
        }
        for kind in derived.needs {
            if !self.watches.contains_key(&kind) {
                self.begin(kind);
            }
        }
        let unchecked = derived.cluster.as_ref().and_then(|cluster| cluster.unchecked.clone()).unwrap_or_default();
        if !unchecked.is_empty() && unchecked != self.unchecked {
            log::error!("{unchecked}; what was known stands");
        }
        self.unchecked = unchecked;
        derived.cluster.filter(|cluster| cluster.unchecked.is_none())
    }

    fn begin(&mut self, kind: Kind) {
        let selection = kind.selection(self.options.node.as_deref());
        self.health.begin(kind, &selection);
        let events = follow_objects(&self.client, selection, move |object| api::plain(kind, &object));
        let (news, handle) = abortable(events.map(move |event| (kind, event)));
        self.watches.insert(kind, handle);
        self.news.get_mut().push(news.boxed());
    }
}
