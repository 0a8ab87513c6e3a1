//! Metrics of the watches and of what is known, in the state directory.

use cluster_api::Health;
use metrics_file::{
    Labelled, Metrics,
    prometheus_client::metrics::{counter::Counter, gauge::Gauge},
    registered, replace, set,
};

use crate::cluster::Cluster;

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

/// What is counted.
#[derive(Debug)]
pub struct Report {
    metrics: Metrics,
    services: Gauge,
    slices: Gauge,
    endpoints: Gauge,
    changes: Counter,
    problems: Labelled,
}

impl Report {
    /// Nothing has happened yet.
    pub fn new() -> Self {
        let mut metrics = Metrics::new("watch-services");
        let registry = &mut metrics.registry;
        let problems = "What is wrong with an object, while the rest is served";
        Self {
            services: registered(registry, "services", "Services that have a place in the table"),
            slices: registered(registry, "services_slices", "EndpointSlices that are known"),
            endpoints: registered(registry, "services_endpoints", "Endpoints of these"),
            changes: registered(registry, "services_changes", "Lines that were printed after the whole table"),
            problems: registered(registry, "services_problems", problems),
            metrics,
        }
    }

    /// The health of the watches, among the metrics.
    pub fn health(&mut self) -> Health<Watch> {
        Health::new(self.metrics.registry.sub_registry_with_prefix("services"), "Services")
    }

    /// So many lines were printed.
    pub fn changed(&self, lines: usize) {
        self.changes.inc_by(lines as u64);
    }

    /// Writes the metrics as they are now.
    pub fn write(&mut self, cluster: &Cluster, health: &mut Health<Watch>) {
        health.refresh();
        let counts = cluster.counts();
        for (gauge, count) in
            [(&self.services, counts.services), (&self.slices, counts.slices), (&self.endpoints, counts.endpoints)]
        {
            set(gauge, count);
        }
        let problem = |(object, problem)| format!("{object}: {problem}");
        replace(&self.problems, "problem", cluster.problems().iter().map(problem));
        self.metrics.write();
    }
}
