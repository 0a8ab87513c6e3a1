//! Whether what is known of the cluster is current.

use std::{
    collections::BTreeMap,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use metrics_file::{
    Labelled, Labels,
    prometheus_client::{
        metrics::{counter::Counter, family::Family, gauge::Gauge},
        registry::Registry,
    },
    registered, replace, set,
};

use crate::{follow::Event, selection::Selection};

/// The state of some watches, each of which has a key; what changes in it is said in the log.
#[derive(Debug)]
pub struct Health<K> {
    watches: BTreeMap<K, Watch>,
    last_sync: Option<(SystemTime, Instant)>,
    metrics: Metrics,
}

#[derive(Debug)]
struct Watch {
    describe: String,
    narrowly: String,
    listed: bool,
    error: Option<String>,
    /// Whether that began with a denial, or became one.
    denied: bool,
}

#[derive(Debug)]
struct Metrics {
    in_contact: Gauge,
    last_sync: Gauge,
    age: Family<Labels, Gauge>,
    errors: Counter,
    failing: Labelled,
    watching: Labelled,
}

impl<K: Ord> Health<K> {
    /// Registers the metrics: `in_contact`, `last_sync_timestamp_seconds`, `age_seconds`, `errors_total`, `failing` and
    /// `watching`. `what` says in their help what is known.
    pub fn new(registry: &mut Registry, what: &str) -> Self {
        let last_sync = format!("When the {what} were last known to be the cluster's");
        let metrics = Metrics {
            in_contact: registered(registry, "in_contact", "Whether the API server is followed without an error"),
            last_sync: registered(registry, "last_sync_timestamp_seconds", &last_sync),
            age: registered(registry, "age_seconds", "Time since then, when this was written"),
            errors: registered(registry, "errors", "Errors of the API server's and of the way to it"),
            failing: registered(registry, "failing", "Errors that last"),
            watching: registered(registry, "watching", "What is followed in the API"),
        };
        Self { watches: BTreeMap::new(), last_sync: None, metrics }
    }

    /// A watch begins.
    pub fn begin(&mut self, key: K, selection: &Selection) {
        let (describe, narrowly) = (selection.describe(), selection.describe_narrowly());
        self.watches.insert(key, Watch { describe, narrowly, listed: false, error: None, denied: false });
    }

    /// A watch is given up.
    pub fn end(&mut self, key: &K) {
        self.watches.remove(key);
    }

    /// Takes what a watch has to say, and logs what goes wrong and what has become right again.
    pub fn note<T>(&mut self, key: &K, event: &Event<T>) {
        let Some(watch) = self.watches.get_mut(key) else { return };
        match event {
            Event::Failed(error) | Event::Denied(error) => {
                watch.denied |= matches!(event, Event::Denied(_));
                self.metrics.errors.inc();
                if watch.error.as_ref() != Some(error) {
                    let known = self.last_sync.map(|(_, when)| when.elapsed().as_secs());
                    let stands = known.map(|age| format!("; what was known {age} s ago stands")).unwrap_or_default();
                    log::error!("{error}{stands}");
                }
                watch.error = Some(error.clone());
                return;
            }
            Event::Listed | Event::Absent => (watch.listed, watch.denied) = (true, false),
            Event::Applied(..) | Event::Deleted(_) | Event::InContact => {}
        }
        if watch.error.take().is_some() {
            log::info!("{}: in contact again", watch.describe);
        }
    }

    /// Whether everything is known, and followed without an error.
    pub fn is_current(&self) -> bool {
        !self.watches.is_empty() && self.watches.values().all(|watch| watch.listed && watch.error.is_none())
    }

    /// Whether anything goes wrong in following.
    pub fn is_failing(&self) -> bool {
        self.watches.values().any(|watch| watch.error.is_some())
    }

    /// Whether the API server has denied us what we follow (401, 403), and not all is known again.
    pub fn is_denied(&self) -> bool {
        self.watches.values().any(|watch| watch.denied)
    }

    /// Brings the metrics up to date: to be called every few seconds, and whenever something was noted.
    pub fn refresh(&mut self) {
        if self.is_current() {
            self.last_sync = Some((SystemTime::now(), Instant::now()));
        }
        let failing: Vec<&str> = self.watches.values().filter_map(|watch| watch.error.as_deref()).collect();
        let metrics = &self.metrics;
        metrics.in_contact.set(i64::from(self.last_sync.is_some() && failing.is_empty()));
        replace(&metrics.failing, "error", failing);
        replace(&metrics.watching, "resource", self.watches.values().map(|watch| watch.narrowly.as_str()));
        if let Some((time, instant)) = self.last_sync {
            let seconds = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
            set(&metrics.last_sync, seconds);
            set(&metrics.age.get_or_create(&vec![]), instant.elapsed().as_secs());
        }
    }

    /// Why not everything is known yet, for a person; empty when it is.
    pub fn pending(&self) -> String {
        let failing: Vec<&str> = self.watches.values().filter_map(|watch| watch.error.as_deref()).collect();
        if !failing.is_empty() {
            return failing.join("\n");
        }
        let waiting: Vec<&str> =
            self.watches.values().filter(|watch| !watch.listed).map(|watch| watch.describe.as_str()).collect();
        if waiting.is_empty() {
            return String::new();
        }
        format!("waiting for the API server to list {}", waiting.join(", "))
    }
}
