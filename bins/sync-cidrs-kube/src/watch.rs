//! Follows the cluster: one watch for each kind that the answer depends on, and what becomes of their news.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    pin::pin,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use futures_util::StreamExt;
use kube::{
    Api, Client,
    api::{DynamicObject, ListParams, WatchEvent, WatchParams},
    core::Status,
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{mpsc, watch},
    task::JoinHandle,
    time::{MissedTickBehavior, interval, sleep},
};

use crate::{
    api::{self, Store},
    cni,
    derive::{Cluster, Options, derive},
    kind::Kind,
    publish::{Publisher, Report},
    world::{Known, World},
};

/// The CNI configuration is read again, and the metrics are written, so often.
const TICK: Duration = Duration::from_secs(2);
/// From one attempt to the next after an error: doubled each time, up to the limit.
const RETRY: Duration = Duration::from_millis(200);
const RETRY_LIMIT: Duration = Duration::from_secs(5);
/// The same for a resource that the API does not have: it may come.
const ABSENT: Duration = Duration::from_secs(2);
const ABSENT_LIMIT: Duration = Duration::from_secs(60);

enum News {
    Known(Kind, Known),
    InContact(Kind),
    Failed(Kind, String),
}

struct Watch {
    task: JoinHandle<()>,
    error: Option<String>,
}

/// What is being followed.
struct Follower {
    client: Client,
    options: Options,
    cni_directory: PathBuf,
    world: World,
    watches: BTreeMap<Kind, Watch>,
    errors: u64,
    in_contact: Instant,
    last_sync: SystemTime,
    news: mpsc::Sender<News>,
}

/// Follows the cluster until SIGTERM or SIGINT. Each change goes to the publisher, and for the status's keeper to `latest`.
///
/// # Errors
/// When nobody reads standard output any more, or the state directory cannot be written.
pub async fn follow(
    client: Client,
    options: Options,
    cni_directory: PathBuf,
    mut publisher: Publisher,
    latest: watch::Sender<Option<Cluster>>,
) -> anyhow::Result<()> {
    let (news, mut inbox) = mpsc::channel(256);
    let mut follower = Follower {
        client,
        options,
        cni_directory,
        world: World::default(),
        watches: BTreeMap::new(),
        errors: 0,
        in_contact: Instant::now(),
        last_sync: UNIX_EPOCH,
        news,
    };
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    publisher.begin()?;
    loop {
        tokio::select! {
            Some(first) = inbox.recv() => {
                follower.note(first);
                while let Ok(more) = inbox.try_recv() {
                    follower.note(more);
                }
            }
            _ = tick.tick() => follower.options.cni = cni::read(&follower.cni_directory),
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
        publisher.report(&follower.report())?;
    }
}

impl Follower {
    fn note(&mut self, news: News) {
        let (News::Known(kind, _) | News::InContact(kind) | News::Failed(kind, _)) = &news;
        let kind = *kind;
        // News of a watch that has just been ended may still be in the queue.
        let Some(watch) = self.watches.get_mut(&kind) else { return };
        match news {
            News::Known(_, known) => self.world.set(kind, known),
            News::InContact(_) => {
                if watch.error.take().is_some() {
                    log::info!("{}: in contact again", kind.place().describe());
                }
            }
            News::Failed(_, error) => {
                self.errors += 1;
                if watch.error.as_ref() != Some(&error) {
                    log::error!("{error}{}", self.what_stands());
                }
                if let Some(watch) = self.watches.get_mut(&kind) {
                    watch.error = Some(error);
                }
            }
        }
    }

    fn what_stands(&self) -> String {
        if self.last_sync == UNIX_EPOCH {
            return String::new();
        }
        format!("; what was known {} s ago stands", self.in_contact.elapsed().as_secs())
    }

    /// What follows from all that is known; starts and ends watches as it takes.
    fn conclude(&mut self) -> Option<Cluster> {
        let derived = derive(&self.world, &self.options);
        let ended: Vec<Kind> = self.watches.keys().copied().filter(|kind| !derived.needs.contains(kind)).collect();
        for kind in ended {
            if let Some(watch) = self.watches.remove(&kind) {
                watch.task.abort();
            }
            self.world.forget(kind);
        }
        for kind in derived.needs {
            if !self.watches.contains_key(&kind) {
                let task = tokio::spawn(run(self.client.clone(), kind, self.options.clone(), self.news.clone()));
                self.watches.insert(kind, Watch { task, error: None });
            }
        }
        if derived.cluster.is_some() && self.watches.values().all(|watch| watch.error.is_none()) {
            self.in_contact = Instant::now();
            self.last_sync = SystemTime::now();
        }
        derived.cluster
    }

    fn report(&self) -> Report {
        Report {
            last_sync: self.last_sync,
            errors: self.errors,
            failing: self.watches.values().filter_map(|watch| watch.error.clone()).collect(),
            waiting_for: self.watches.keys().filter(|kind| self.world.get(**kind).is_none()).copied().collect(),
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Why a list or a watch came to its end.
struct End {
    verb: &'static str,
    error: kube::Error,
}

impl End {
    fn code(&self) -> Option<u16> {
        api::status(&self.error).map(|status| status.code)
    }
}

/// What one watch knows.
struct Cursor {
    client: Client,
    kind: Kind,
    fields: Option<String>,
    news: mpsc::Sender<News>,
    store: Store,
    /// The resource version up to which the store is right; none when all must be listed anew.
    version: Option<String>,
    retry: Duration,
    absent: Duration,
}

/// Follows one kind for ever. An expired resource version, a lost connection and a restarted API server end in another
/// watch from where the last one was, or in another list.
async fn run(client: Client, kind: Kind, options: Options, news: mpsc::Sender<News>) {
    let fields = api::field_selector(kind, &options);
    let mut cursor =
        Cursor { client, kind, fields, news, store: Store::new(), version: None, retry: RETRY, absent: ABSENT };
    loop {
        let wait = match cursor.round().await {
            Ok(()) => RETRY,
            Err(end) => cursor.recover(&end).await,
        };
        sleep(wait).await;
    }
}

impl Cursor {
    fn objects(&self) -> Api<DynamicObject> {
        api::objects(&self.client, &self.kind.place())
    }

    async fn tell(&self, news: News) {
        // Nobody listens: this task is about to be ended.
        let _ = self.news.send(news).await;
    }

    async fn tell_all(&self) {
        self.tell(News::Known(self.kind, Known::Objects(self.store.values().cloned().collect()))).await;
    }

    /// One watch to its end, after a list where it takes one.
    async fn round(&mut self) -> Result<(), End> {
        let labels = self.kind.place().labels.map(str::to_owned);
        let version = match self.version.clone() {
            Some(version) => version,
            None => {
                let parameters = ListParams {
                    field_selector: self.fields.clone(),
                    label_selector: labels.clone(),
                    ..ListParams::default()
                };
                let list = self.objects().list(&parameters).await.map_err(|error| End { verb: "list", error })?;
                self.store = list.items.iter().map(|o| (api::key(o), api::plain(self.kind, o))).collect();
                self.tell_all().await;
                list.metadata.resource_version.unwrap_or_default()
            }
        };
        self.version = Some(version.clone());
        let parameters =
            WatchParams { field_selector: self.fields.clone(), label_selector: labels, ..WatchParams::default() };
        let events = self.objects().watch(&parameters, &version).await.map_err(|error| End { verb: "watch", error })?;
        let mut events = pin!(events);
        (self.retry, self.absent) = (RETRY, ABSENT);
        self.tell(News::InContact(self.kind)).await;
        // An error in the stream is a lost connection: what comes of it shows when the next watch is started.
        while let Some(Ok(event)) = events.next().await {
            if let Some(status) = self.take(event).await {
                return Err(End { verb: "watch", error: kube::Error::Api(status) });
            }
        }
        Ok(())
    }

    /// Returns the API server's error, if the event is one.
    async fn take(&mut self, event: WatchEvent<DynamicObject>) -> Option<Box<Status>> {
        match event {
            WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                self.version.clone_from(&object.metadata.resource_version);
                self.store.insert(api::key(&object), api::plain(self.kind, &object));
                self.tell_all().await;
            }
            WatchEvent::Deleted(object) => {
                self.version.clone_from(&object.metadata.resource_version);
                self.store.remove(&api::key(&object));
                self.tell_all().await;
            }
            WatchEvent::Bookmark(bookmark) => {
                self.version = Some(bookmark.metadata.resource_version);
                self.tell(News::InContact(self.kind)).await;
            }
            WatchEvent::Error(status) => return Some(status),
        }
        None
    }

    /// Says what happened, and how long to wait.
    async fn recover(&mut self, end: &End) -> Duration {
        let code = end.code();
        if code.is_some_and(|code| !matches!(code, 401 | 403)) {
            self.version = None;
        }
        match code {
            // The resource version has expired: nothing is wrong.
            Some(410) => RETRY,
            Some(404) => {
                self.tell(News::Known(self.kind, Known::Absent)).await;
                self.tell(News::InContact(self.kind)).await;
                doubled(&mut self.absent, ABSENT_LIMIT)
            }
            _ => {
                let text = api::explain(&self.kind.place(), end.verb, &end.error);
                self.tell(News::Failed(self.kind, text)).await;
                doubled(&mut self.retry, RETRY_LIMIT)
            }
        }
    }
}

/// How long to wait now; the next time it is twice as long.
fn doubled(delay: &mut Duration, limit: Duration) -> Duration {
    let now = *delay;
    *delay = (now * 2).min(limit);
    now
}
