//! Where the news go: a file that ADD reads, a line on standard output, metrics.

use std::{
    fs,
    io::{self, Write},
    path::PathBuf,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::Context;
use common::state;
use serde_json::Value;

use crate::{derive::Cluster, kind::Kind};

/// What there is to say about the watching itself.
#[derive(Debug)]
pub struct Report {
    /// When everything that is needed was last known to be true; the epoch for never.
    pub last_sync: SystemTime,
    /// Errors so far.
    pub errors: u64,
    /// The errors that last.
    pub failing: Vec<String>,
    /// What is not known yet.
    pub waiting_for: Vec<Kind>,
}

/// Keeps the file, prints the lines and counts.
#[derive(Debug)]
pub struct Publisher {
    file: PathBuf,
    metrics: PathBuf,
    pending: PathBuf,
    last: Option<Value>,
    changes: u64,
    written: Option<(String, String)>,
}

impl Publisher {
    /// Publishes into `file`, or into the state directory's cluster.json.
    pub fn new(file: Option<PathBuf>) -> Self {
        let state = state::directory();
        Self {
            file: file.unwrap_or_else(|| state.join("cluster.json")),
            metrics: state.join("sync-cidrs.prom"),
            pending: state.join(state::PENDING),
            last: None,
            changes: 0,
            written: None,
        }
    }

    /// Prints what an earlier run left: it stands until the cluster says something else.
    ///
    /// # Errors
    /// When nobody reads standard output.
    pub fn begin(&mut self) -> anyhow::Result<()> {
        let left = fs::read(&self.file).ok().and_then(|text| serde_json::from_slice(&text).ok());
        if let Some(left) = left {
            print(&left)?;
            self.last = Some(left);
        }
        Ok(())
    }

    /// Publishes what the cluster says, if it is news.
    ///
    /// # Errors
    /// When the file cannot be written, or nobody reads standard output.
    pub fn publish(&mut self, cluster: &Cluster) -> anyhow::Result<()> {
        let document = cluster.document();
        if self.last.as_ref() == Some(&document) && self.file.exists() {
            return Ok(());
        }
        let before = self.last.as_ref().map(|last| &last["problems"]);
        for problem in document["problems"].as_array().into_iter().flatten() {
            let old = before.and_then(Value::as_array).is_some_and(|before| before.contains(problem));
            if !old {
                log::warn!("{}", problem.as_str().unwrap_or_default());
            }
        }
        log::info!("Services: {}, pods: {}", document["cidrs"]["service"], document["cidrs"]["pod"]);
        state::write(&self.file, &format!("{document}\n"))
            .with_context(|| format!("cannot write {}", self.file.display()))?;
        self.changes += 1;
        print(&document)?;
        self.last = Some(document);
        Ok(())
    }

    /// Writes the metrics, and while there is no file, why.
    ///
    /// # Errors
    /// When the state directory cannot be written.
    pub fn report(&mut self, report: &Report) -> anyhow::Result<()> {
        let pending = if self.last.is_some() { String::new() } else { pending(report) };
        let written = (self.metrics(report), pending);
        if self.written.as_ref() == Some(&written) {
            return Ok(());
        }
        state::write(&self.metrics, &written.0).with_context(|| format!("cannot write {}", self.metrics.display()))?;
        if written.1.is_empty() {
            let _ = fs::remove_file(&self.pending);
        } else {
            state::write(&self.pending, &format!("{}\n", written.1)).context("cannot write the state directory")?;
        }
        self.written = Some(written);
        Ok(())
    }

    /// In Prometheus' text format.
    fn metrics(&self, report: &Report) -> String {
        let never = Value::Null;
        let last = self.last.as_ref().unwrap_or(&never);
        let mut text = String::new();
        let mut metric = |name: &str, kind: &str, help: &str, samples: &[(String, String)]| {
            text += &format!("# HELP underpass_{name} {help}\n# TYPE underpass_{name} {kind}\n");
            for (labels, value) in samples {
                text += &format!("underpass_{name}{labels} {value}\n");
            }
        };
        let one = |value: String| [(String::new(), value)];
        let synced = report.last_sync != UNIX_EPOCH;
        let age =
            if synced { report.last_sync.elapsed().unwrap_or_default().as_secs().to_string() } else { "NaN".into() };
        let in_contact = u8::from(synced && report.failing.is_empty());
        metric(
            "cidrs_known",
            "gauge",
            "Whether ADD finds the cluster's CIDRs.",
            &one(u8::from(!last.is_null()).to_string()),
        );
        metric(
            "cidrs_in_contact",
            "gauge",
            "Whether the API server is followed without an error.",
            &one(in_contact.to_string()),
        );
        metric(
            "cidrs_last_sync_timestamp_seconds",
            "gauge",
            "When the CIDRs were last known to be the cluster's.",
            &one(seconds(report.last_sync).to_string()),
        );
        metric("cidrs_age_seconds", "gauge", "Time since then, when this was written.", &one(age));
        metric(
            "cidrs_changes_total",
            "counter",
            "Changes of the cluster's CIDRs and settings.",
            &one(self.changes.to_string()),
        );
        metric(
            "cidrs_errors_total",
            "counter",
            "Errors of the API server's and of the way to it.",
            &one(report.errors.to_string()),
        );
        metric(
            "cidrs_failing",
            "gauge",
            "Errors that last.",
            &labelled("error", report.failing.iter().map(String::as_str)),
        );
        let problems = last["problems"].as_array().into_iter().flatten().filter_map(Value::as_str);
        metric("cidrs_problems", "gauge", "What was refused or not found.", &labelled("problem", problems));
        let count = |section: &str| last["cidrs"][section].as_array().map_or(0, Vec::len).to_string();
        let counts = ["service", "pod"].map(|section| (format!("{{of=\"{section}\"}}"), count(section)));
        metric("cidrs", "gauge", "CIDRs that are routed through the node.", &counts);
        let sources = last["sources"].as_object().into_iter().flatten().flat_map(|(cidr, sources)| {
            let sources = sources.as_array().into_iter().flatten().filter_map(Value::as_str);
            sources.map(move |source| (format!("{{cidr=\"{cidr}\",source=\"{}\"}}", escape(source)), "1".to_owned()))
        });
        metric("cidrs_source", "gauge", "Where each CIDR is from.", &sources.take(SERIES).collect::<Vec<_>>());
        text
    }
}

/// No more series than this of what a cluster can have many of.
const SERIES: usize = 100;

fn labelled<'a>(label: &str, values: impl Iterator<Item = &'a str>) -> Vec<(String, String)> {
    values.take(SERIES).map(|value| (format!("{{{label}=\"{}\"}}", escape(value)), "1".to_owned())).collect()
}

fn escape(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs()
}

fn pending(report: &Report) -> String {
    if !report.failing.is_empty() {
        return report.failing.join("\n");
    }
    let waiting: Vec<_> = report.waiting_for.iter().map(|kind| kind.place().describe()).collect();
    format!("waiting for the API server to list {}", waiting.join(", "))
}

fn print(document: &Value) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{document}").and_then(|()| stdout.flush()).context("nobody reads standard output any more")
}
