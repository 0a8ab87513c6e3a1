//! Metrics of a tool that goes on running, in Prometheus' text format, in a file of the state directory: whoever serves
//! them needs no way to the tool, and what the tool has counted outlives it.

use std::io;

use common::state::{self, Kept};
pub use prometheus_client;
use prometheus_client::{
    encoding::prometheus_text,
    metrics::{family::Family, gauge::Gauge},
    registry::{Metric, Registry},
};

/// No more series than this of what a cluster can have many of.
pub const MOST_SERIES: usize = 100;

/// Labels that are not known beforehand.
pub type Labels = Vec<(&'static str, String)>;

/// A gauge with such labels.
pub type Labelled = Family<Labels, Gauge>;

/// A tool's metrics, each named `underpass_...`, and the file that has them.
#[derive(Debug)]
pub struct Metrics {
    /// What is measured: register here, without the prefix.
    pub registry: Registry,
    file: Kept,
}

impl Metrics {
    /// The metrics of a tool, for the file `TOOL.prom` in the state directory.
    pub fn new(tool: &str) -> Self {
        let file = Kept::new(state::directory().join(format!("{tool}.prom")));
        Self { registry: Registry::with_prefix("underpass"), file }
    }

    /// Writes the file, if it is not as it was. A reader sees the old content or the new. Where the state directory cannot be
    /// written, the log says so once, until it can be again: no reason to stop what is measured. The file's time says all the same that
    /// the tool lives.
    pub fn write(&mut self) {
        let mut text = String::new();
        let encoded = prometheus_text::encode(&mut text, &self.registry).map_err(io::Error::other);
        if let Err(error) = encoded.and_then(|()| self.file.write(text)) {
            log::error!("{error}");
        }
        let _ = state::touch(self.file.path());
    }
}

/// A metric of this name, registered with its help.
pub fn registered<M: Metric + Clone + Default>(registry: &mut Registry, name: &str, help: &str) -> M {
    let metric = M::default();
    registry.register(name, help, metric.clone());
    metric
}

/// Sets a gauge to a number that has no sign: of things, or of seconds.
pub fn set(gauge: &Gauge, number: impl TryInto<i64>) {
    gauge.set(number.try_into().unwrap_or(i64::MAX));
}

/// Makes the values of a label all that a gauge has, each 1: for what is either there or not.
pub fn replace(gauge: &Labelled, label: &'static str, values: impl IntoIterator<Item = impl Into<String>>) {
    gauge.clear();
    for value in values.into_iter().take(MOST_SERIES) {
        gauge.get_or_create(&vec![(label, value.into())]).set(1);
    }
}
