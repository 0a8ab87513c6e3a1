//! Whether it is known who takes part, as metrics in the state directory.

use cluster_api::{Event, Health, Selection};
use metrics_file::{Metrics, prometheus_client::metrics::gauge::Gauge, registered};

/// What is measured.
#[derive(Debug)]
pub struct Report {
    metrics: Metrics,
    health: Health<()>,
    known: Gauge,
    unfound: Gauge,
    listed: bool,
}

impl Report {
    /// Nothing is known yet of the pods that are asked for.
    pub fn new(pods: &Selection) -> Self {
        let mut metrics = Metrics::new("scope-pods");
        let scope = metrics.registry.sub_registry_with_prefix("scope");
        let known = registered(scope, "known", "Whether the kernel knows which pods take part in the socket path");
        let unfound =
            "Pods whose annotations have no effect on the socket path, since their network namespace is not found";
        let unfound = registered(scope, "unfound", unfound);
        let mut health = Health::new(scope, "pods");
        health.begin((), pods);
        Self { metrics, health, known, unfound, listed: false }
    }

    /// Takes what the API has to say.
    pub fn note<T>(&mut self, event: &Event<T>) {
        self.health.note(&(), event);
        self.listed |= self.health.is_current();
    }

    /// Whether the pods were known at any time.
    pub const fn is_listed(&self) -> bool {
        self.listed
    }

    /// The kernel's list is as it is to be, or not.
    pub fn decided(&mut self, known: bool) {
        if self.known.set(i64::from(known)) != i64::from(known) {
            self.write();
        }
    }

    /// So many pods were not found.
    pub fn unfound(&self, pods: usize) {
        metrics_file::set(&self.unfound, pods);
    }

    /// Writes the metrics as they are now.
    pub fn write(&mut self) {
        self.health.refresh();
        self.metrics.write();
    }
}
