//! What there is to say: log lines and metrics.

use std::{collections::BTreeMap, fmt::Write, time::Duration};

use common::{
    harness::Change,
    object::{Object, Placed},
};

use crate::{
    care::{Outcome, object_of},
    keeper::Attachment,
};

/// What is counted.
#[derive(Debug, Default)]
pub struct Counters {
    /// News of the cluster's.
    pub changes: u64,
    /// Attempts that failed.
    pub errors: u64,
    /// Pauses because somebody keeps undoing a repair.
    pub contests: u64,
    /// From the last news to the last pod.
    pub last: Duration,
    operations: usize,
    repairs: BTreeMap<&'static str, u64>,
}

/// Some of the outcomes.
type Which = fn(&Outcome) -> bool;

const STATES: [(&str, Which); 5] = [
    ("current", |outcome| matches!(outcome, Outcome::Current(_))),
    ("contested", |outcome| matches!(outcome, Outcome::Contested(_))),
    ("locked", |outcome| matches!(outcome, Outcome::Locked)),
    ("gone", |outcome| matches!(outcome, Outcome::Gone)),
    ("failing", |outcome| matches!(outcome, Outcome::Failed(_))),
];

fn count<'a>(attachments: impl Iterator<Item = &'a Attachment>, which: Which) -> usize {
    attachments.filter_map(|attachment| attachment.outcome.as_ref()).filter(|outcome| which(outcome)).count()
}

impl Counters {
    /// Counts changes, and says what was put right.
    pub fn note(&mut self, attachment: &str, changes: &[Change]) {
        self.operations += changes.len();
        let mut repairs = vec![];
        for change in changes.iter().filter(|change| change.repair) {
            *self.repairs.entry(kind(object_of(change))).or_default() += 1;
            repairs.push(change.operation.to_string());
        }
        if !repairs.is_empty() {
            log::warn!("{attachment}: put right what somebody else has changed: {}", repairs.join("; "));
        }
    }

    /// Says what became of the cluster's news.
    pub fn say<'a>(&self, attachments: impl Iterator<Item = &'a Attachment> + Clone) {
        let current = count(attachments.clone(), |outcome| matches!(outcome, Outcome::Current(_)));
        let changed =
            count(attachments.clone(), |outcome| matches!(outcome, Outcome::Current(changes) if !changes.is_empty()));
        let failing = count(attachments, |outcome| matches!(outcome, Outcome::Failed(_)));
        let took = self.last.as_millis();
        log::info!("{current} attachments are current, {changed} of them changed; {failing} failed; in {took} ms");
    }

    /// The metrics in Prometheus' text format.
    pub fn metrics<'a>(&self, attachments: impl Iterator<Item = &'a Attachment> + Clone) -> String {
        let mut text = String::new();
        let mut metric = |name: &str, kind: &str, help: &str, samples: &[(String, String)]| {
            let _ = writeln!(text, "# HELP underpass_{name} {help}\n# TYPE underpass_{name} {kind}");
            for (labels, value) in samples {
                let _ = writeln!(text, "underpass_{name}{labels} {value}");
            }
        };
        let one = |value: String| [(String::new(), value)];
        let states = STATES
            .map(|(state, which)| (format!("{{state=\"{state}\"}}"), count(attachments.clone(), which).to_string()));
        let repairs: Vec<_> =
            self.repairs.iter().map(|(kind, count)| (format!("{{object=\"{kind}\"}}"), count.to_string())).collect();
        metric("attachments", "gauge", "Pods' interfaces that are kept as an ADD would make them now.", &states);
        metric("follow_changes_total", "counter", "News of the cluster's CIDRs.", &one(self.changes.to_string()));
        metric(
            "follow_operations_total",
            "counter",
            "Objects added, replaced and removed.",
            &one(self.operations.to_string()),
        );
        metric("follow_errors_total", "counter", "Attempts that failed.", &one(self.errors.to_string()));
        let last = self.last.as_secs_f64().to_string();
        metric(
            "follow_last_duration_seconds",
            "gauge",
            "From the last news to the routes in the last pod.",
            &one(last),
        );
        metric("repairs_total", "counter", "What somebody else removed or altered, and was put right.", &repairs);
        metric(
            "contests_total",
            "counter",
            "Pauses because somebody keeps undoing a repair.",
            &one(self.contests.to_string()),
        );
        text
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
