//! Where the news go: a file that ADD reads, a line on standard output, metrics.

use std::{
    fs,
    io::{self, Write},
    path::PathBuf,
};

use anyhow::Context;
use cluster_api::Health;
use common::state::{self, Kept};
use metrics_file::{
    Labelled, MOST_SERIES, Metrics,
    prometheus_client::metrics::{counter::Counter, gauge::Gauge},
    registered, replace, set,
};
use serde_json::Value;

use crate::{derive::Cluster, kind::Kind};

/// Keeps the file, prints the lines and counts.
#[derive(Debug)]
pub struct Publisher {
    file: Kept,
    pending: Kept,
    last: Option<Value>,
    metrics: Metrics,
    known: Gauge,
    changes: Counter,
    problems: Labelled,
    counts: Labelled,
    sources: Labelled,
}

impl Publisher {
    /// Publishes into `file`, or into the state directory's cluster.json.
    pub fn new(file: Option<PathBuf>) -> Self {
        let state = state::directory();
        let mut metrics = Metrics::new("sync-cidrs");
        let registry = &mut metrics.registry;
        Self {
            counts: registered(registry, "cidrs", "CIDRs that are routed through the node"),
            known: registered(registry, "cidrs_known", "Whether ADD finds the cluster's CIDRs"),
            changes: registered(registry, "cidrs_changes", "Changes of the cluster's CIDRs and settings"),
            problems: registered(registry, "cidrs_problems", "What was refused or not found"),
            sources: registered(registry, "cidrs_source", "Where each CIDR is from"),
            metrics,
            file: Kept::new(file.unwrap_or_else(|| state.join(state::CLUSTER))),
            pending: Kept::new(state.join(state::PENDING)),
            last: None,
        }
    }

    /// The health of the watches, among the metrics.
    pub fn health(&mut self) -> Health<Kind> {
        Health::new(self.metrics.registry.sub_registry_with_prefix("cidrs"), "CIDRs")
    }

    /// Prints what an earlier run left: it stands until the cluster says something else.
    ///
    /// # Errors
    /// When nobody reads standard output.
    pub fn begin(&mut self) -> anyhow::Result<()> {
        let left = fs::read(self.file.path()).ok().and_then(|text| serde_json::from_slice(&text).ok());
        if let Some(left) = left {
            print(&left)?;
            self.last = Some(left);
        }
        Ok(())
    }

    /// Publishes what the cluster says, if it is news. Where the file cannot be written it is tried again; running pods follow
    /// all the same.
    ///
    /// # Errors
    /// When nobody reads standard output.
    pub fn publish(&mut self, cluster: &Cluster) -> anyhow::Result<()> {
        let document = cluster.document();
        say(self.file.write(format!("{document}\n")));
        if self.last.as_ref() == Some(&document) {
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
        self.changes.inc();
        print(&document)?;
        self.last = Some(document);
        Ok(())
    }

    /// Writes the metrics, and while there is no file, why. `unchecked` is why what is known of the cluster is not taken.
    pub fn report(&mut self, health: &mut Health<Kind>, unchecked: &str) {
        health.refresh();
        self.measure(unchecked);
        self.metrics.write();
        let reasons = [health.pending(), unchecked.to_owned()];
        let pending = reasons.into_iter().find(|reason| self.last.is_none() && !reason.is_empty()).unwrap_or_default();
        if pending.is_empty() {
            let _ = fs::remove_file(self.pending.path());
        } else {
            say(self.pending.write(pending));
        }
    }

    fn measure(&self, unchecked: &str) {
        let none = Value::Null;
        let last = self.last.as_ref().unwrap_or(&none);
        self.known.set(i64::from(!last.is_null() && self.file.path().exists()));
        let problems = last["problems"].as_array().into_iter().flatten().filter_map(Value::as_str);
        replace(&self.problems, "problem", problems.chain(Some(unchecked).filter(|unchecked| !unchecked.is_empty())));
        for of in ["service", "pod"] {
            let count = last["cidrs"][of].as_array().map_or(0, Vec::len);
            set(&self.counts.get_or_create(&vec![("of", of.to_owned())]), count);
        }
        self.sources.clear();
        let sources = last["sources"].as_object().into_iter().flatten().flat_map(|(cidr, sources)| {
            let sources = sources.as_array().into_iter().flatten().filter_map(Value::as_str);
            sources.map(move |source| vec![("cidr", cidr.clone()), ("source", source.to_owned())])
        });
        for labels in sources.take(MOST_SERIES) {
            self.sources.get_or_create(&labels).set(1);
        }
    }
}

fn say(written: io::Result<()>) {
    if let Err(error) = written {
        log::error!("{error}");
    }
}

fn print(document: &Value) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{document}").and_then(|()| stdout.flush()).context("nobody reads standard output any more")
}
