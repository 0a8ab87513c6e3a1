//! What there is to say: log lines and metrics.

use std::{sync::atomic::AtomicU64, time::Duration};

use common::{
    harness::Change,
    object::{Object, Placed},
};
use metrics_file::{
    Labelled, Labels, Metrics,
    prometheus_client::metrics::{counter::Counter, family::Family, gauge::Gauge},
    registered,
};

use crate::care::{Outcome, object_of};

/// What is counted, and the file that has it: `keep-pods.prom` in the state directory.
#[derive(Debug)]
pub struct Report {
    /// News of the cluster's.
    pub changes: Counter,
    /// Attempts that failed.
    pub errors: Counter,
    /// Pauses because somebody keeps undoing a repair.
    pub contests: Counter,
    metrics: Metrics,
    attachments: Labelled,
    operations: Counter,
    last_seconds: Gauge<f64, AtomicU64>,
    repairs: Family<Labels, Counter>,
}

/// Some of the outcomes.
type Which = fn(&Outcome) -> bool;

const STATES: [(&str, Which); 5] = [
    ("current", |outcome| matches!(outcome, Outcome::Current(_))),
    ("contested", |outcome| matches!(outcome, Outcome::Contested(_))),
    ("locked", |outcome| matches!(outcome, Outcome::Locked)),
    ("gone", |outcome| matches!(outcome, Outcome::Gone | Outcome::Unseen(_))),
    ("failing", |outcome| matches!(outcome, Outcome::Failed(..))),
];

fn count<'a>(outcomes: impl Iterator<Item = &'a Outcome>, which: Which) -> usize {
    outcomes.filter(|outcome| which(outcome)).count()
}

impl Default for Report {
    fn default() -> Self {
        let mut metrics = Metrics::new("keep-pods");
        let registry = &mut metrics.registry;
        let attachments = "Pods' interfaces that are kept as an ADD would make them now";
        let repairs = "What somebody else removed or altered, and was put right";
        let last = "From the last news to the routes in the last pod";
        Self {
            attachments: registered(registry, "attachments", attachments),
            repairs: registered(registry, "repairs", repairs),
            contests: registered(registry, "contests", "Pauses because somebody keeps undoing a repair"),
            changes: registered(registry, "follow_changes", "News of the cluster's CIDRs"),
            operations: registered(registry, "follow_operations", "Objects added, replaced and removed"),
            errors: registered(registry, "follow_errors", "Attempts that failed"),
            last_seconds: registered(registry, "follow_last_duration_seconds", last),
            metrics,
        }
    }
}

impl Report {
    /// Counts changes, and says what was put right.
    pub fn note(&self, attachment: &str, changes: &[Change]) {
        self.operations.inc_by(changes.len() as u64);
        let mut repairs = vec![];
        for change in changes.iter().filter(|change| change.repair) {
            self.repairs.get_or_create(&vec![("object", kind(object_of(change)).to_owned())]).inc();
            repairs.push(change.operation.to_string());
        }
        if !repairs.is_empty() {
            log::warn!("{attachment}: put right what somebody else has changed: {}", repairs.join("; "));
        }
    }

    /// Says what became of the cluster's news, which took so long.
    pub fn say<'a>(&self, took: Duration, outcomes: impl Iterator<Item = &'a Outcome> + Clone) {
        self.last_seconds.set(took.as_secs_f64());
        let current = count(outcomes.clone(), |outcome| matches!(outcome, Outcome::Current(_)));
        let changed =
            count(outcomes.clone(), |outcome| matches!(outcome, Outcome::Current(changes) if !changes.is_empty()));
        let failing = count(outcomes, |outcome| matches!(outcome, Outcome::Failed(..)));
        let took = took.as_millis();
        log::info!("{current} attachments are current, {changed} of them changed; {failing} failed; in {took} ms");
    }

    /// Writes the metrics, if they are not as they were.
    pub fn write<'a>(&mut self, outcomes: impl Iterator<Item = &'a Outcome> + Clone) {
        for (state, which) in STATES {
            let of_state = self.attachments.get_or_create(&vec![("state", state.to_owned())]);
            metrics_file::set(&of_state, count(outcomes.clone(), which));
        }
        self.metrics.write();
    }
}

fn kind(placed: &Placed) -> &'static str {
    match placed.object {
        Object::Veth(_) => "veth",
        Object::Address(_) => "address",
        Object::Neighbour(_) => "neighbour",
        Object::Route(_) => "route",
        Object::Rule(_) => "rule",
        Object::Marks(_) => "marks",
        Object::Transit(_) => "transit",
        Object::Sysctl(_) => "sysctl",
        Object::QueueLength(_) => "queueLength",
        Object::LinkAddress(_) => "linkAddress",
    }
}
