//! What `follow` says of itself for Prometheus.

use std::{
    collections::BTreeMap,
    sync::atomic::Ordering,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::ensure;
use common::{
    balancers::REMEDY,
    state::{self, Kept},
};
use metrics_file::{
    Labels, Metrics as File,
    prometheus_client::metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registered,
};
use service_table::{Change, ServiceName};

use crate::{
    apply::{Refused, Summary, Table},
    attach,
    kernel::{Installed, Kernel},
    neighbours::Neighbours,
    pins::Pins,
    spec::Frontend,
    tally::Tally,
};

/// How often the file is written at most.
const PAUSE: Duration = Duration::from_secs(2);

/// The metrics, and the file that has them: `bpf-lb-load.prom` in the state directory.
pub struct Metrics {
    file: File,
    pins: Pins,
    last_sync: Gauge,
    attached: Gauge,
    expired: Gauge,
    services: Gauge,
    endpoints: Gauge,
    incomplete: Gauge,
    others: Gauge,
    changes: Counter,
    errors: Counter,
    delay: Histogram,
    connections: Family<Labels, Counter>,
    refused: Family<Labels, Counter>,
    tallies: BTreeMap<ServiceName, Tally>,
    /// Services that are not as they were to be, as it was said of them; nothing before the first line.
    unfit: Option<BTreeMap<String, Refused>>,
    /// The file that has them.
    unfit_file: Kept,
    neighbours: Neighbours,
    written: Option<Instant>,
}

impl Metrics {
    /// Of a load balancer with these pins.
    pub fn new(pins: &Pins) -> Self {
        let mut file = File::new("bpf-lb-load");
        let registry = &mut file.registry;
        let delay = Histogram::new(buckets());
        let help = "From a change in the cluster to the kernel";
        registry.register("lb_network_programming_duration_seconds", help, delay.clone());
        Self {
            last_sync: registered(registry, "lb_last_sync_timestamp_seconds", "When the table was last changed"),
            attached: registered(registry, "lb_attached", "Whether anybody is served"),
            expired: registered(registry, "lb_expired", "Whether the table has expired"),
            services: registered(registry, "lb_services", "Service ports in the kernel"),
            endpoints: registered(registry, "lb_endpoints", "Endpoints in the kernel, by Service port"),
            incomplete: registered(registry, "lb_incomplete_services", "Services that are not as they were to be"),
            others: registered(registry, "lb_others", "How many others translate Services at connect()"),
            changes: registered(registry, "lb_changes", "Services that were set or removed"),
            errors: registered(registry, "lb_errors", "Lines and services that could not be done"),
            connections: registered(registry, "lb_service_connections", "Connections begun to a Service"),
            refused: registered(registry, "lb_service_refused", "Connections to a Service without backends"),
            delay,
            file,
            pins: pins.clone(),
            tallies: BTreeMap::new(),
            unfit: None,
            unfit_file: Kept::new(state::directory().join(state::UNFIT)),
            neighbours: Neighbours::default(),
            written: None,
        }
    }

    /// Takes note of what backends have counted that may go with a change.
    pub fn before(&mut self, change: &Change, table: &Table) {
        let key = match change {
            Change::Set(service) => service.key(),
            Change::Remove(name) => name.clone(),
            Change::Leave(place) => match table.kernel.owner(&Frontend::of(place)) {
                Some(owner) => (**owner).clone(),
                None => return,
            },
            Change::Table(_) | Change::Nodes(_) => {
                self.tally(table);
                return self.tallies.values_mut().for_each(|tally| tally.sum = None);
            }
            Change::Refuse(_) | Change::Renew(_) => return,
        };
        if let Some(service) = table.kernel.services().get(&key) {
            tally(&mut self.tallies, &key, &table.kernel, service);
            self.tallies.entry(key).and_modify(|tally| tally.sum = None);
        }
    }

    /// Takes note of a line that was done.
    pub fn done(&mut self, summary: &Summary, is_sync: bool, triggered: Option<&str>) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        if is_sync {
            self.last_sync.set(i64::try_from(now.as_secs()).unwrap_or(i64::MAX));
        }
        self.changes.inc_by((summary.set + summary.removed) as u64);
        self.errors.inc_by(summary.refused.len() as u64);
        if let Some(triggered) = triggered.and_then(service_table::nanoseconds) {
            let nanoseconds = i128::try_from(now.as_nanos()).unwrap_or(i128::MAX) - triggered;
            // Clocks of two machines differ.
            self.delay.observe(nanoseconds.max(0) as f64 / 1e9);
        }
    }

    /// Whether any port of the Service that a change is about is not as it was to be.
    pub fn lacks(&self, change: &Change) -> bool {
        let (namespace, name) = match change {
            Change::Set(service) => (&service.namespace, &service.name),
            Change::Remove(port) => (&port.namespace, &port.name),
            _ => return false,
        };
        let service = format!("{namespace}/{name}");
        self.unfit.iter().flat_map(BTreeMap::keys).any(|port| is_port_of(port, &service))
    }

    /// Says of each service that is not as it was to be why, unless it was said; and all that there are in a file of the state
    /// directory, for who can tell its owner.
    pub fn unfit(&mut self, table: &Table) {
        let unfit = table.unfit();
        if self.unfit.as_ref() == Some(&unfit) {
            return;
        }
        let before = self.unfit.take().unwrap_or_default();
        for (service, refused) in &unfit {
            if before.get(service).is_none_or(|said| said.error != refused.error) {
                log::warn!("{service}: {}; all others are as they are to be", refused.error);
            }
        }
        let all: Vec<_> = unfit.values().collect();
        let text = serde_json::to_string(&all).unwrap_or_default();
        self.unfit = Some(unfit);
        self.unfit_file.write(text).unwrap_or_else(|error| log::warn!("{error}"));
    }

    /// Says who else translates Services, when that changes.
    pub fn others(&mut self) {
        if let Some(others) = self.neighbours.look(&self.pins) {
            self.others.set(others.len() as i64);
            match others {
                [] => log::warn!("nobody else translates Services at connect() any more"),
                _ => log::warn!("two translate Services at connect(): ours and {}; {REMEDY}", others.join(" and ")),
            }
        }
    }

    /// Takes note of a line that makes no sense.
    pub fn refused(&self) {
        self.errors.inc();
    }

    /// Looks whether anybody is served.
    ///
    /// # Errors
    /// When somebody was, and nobody is any more.
    pub fn served(&self) -> anyhow::Result<()> {
        let served = attach::served(&self.pins);
        let before = self.attached.set(served.is_somebody().into());
        ensure!(before == 0 || served.is_somebody(), "somebody took away what was loaded: {served}");
        Ok(())
    }

    /// When the file is next to be written.
    pub fn due(&self) -> Duration {
        self.written.map_or(Duration::ZERO, |written| PAUSE.saturating_sub(written.elapsed()))
    }

    /// Writes the file, and the one of services that are not as they were to be where it could not be written before. Says once what
    /// cannot be.
    pub fn write(&mut self, table: &Table) {
        self.written = Some(Instant::now());
        let services = table.kernel.services();
        self.expired.set(table.kernel.has_expired().into());
        self.services.set(services.len() as i64);
        self.endpoints.set(services.values().map(|service| service.backends.len() as i64).sum());
        self.incomplete.set(self.unfit.as_ref().map_or(0, BTreeMap::len) as i64);
        self.count(table);
        self.file.write();
        self.unfit_file.keep().unwrap_or_else(|error| log::warn!("{error}"));
    }

    /// What was counted of each service that anybody used.
    fn count(&mut self, table: &Table) {
        self.tally(table);
        self.tallies.retain(|key, _| table.kernel.services().contains_key(key));
        self.connections.clear();
        self.refused.clear();
        for (key, tally) in &self.tallies {
            let labels = || {
                let [namespace, name, port] = [&key.namespace, &key.name, &key.port_name].map(Clone::clone);
                vec![("namespace", namespace), ("service", name), ("port", port)]
            };
            for (family, count) in [(&self.connections, tally.connections), (&self.refused, tally.refused)] {
                if count > 0 {
                    family.get_or_create(&labels()).inner().store(count, Ordering::Relaxed);
                }
            }
        }
    }

    fn tally(&mut self, table: &Table) {
        for (key, service) in table.kernel.services() {
            tally(&mut self.tallies, key, &table.kernel, service);
        }
    }
}

/// Of a service that nobody has used there is none.
fn tally(tallies: &mut BTreeMap<ServiceName, Tally>, key: &ServiceName, kernel: &Kernel, service: &Installed) {
    let sum = kernel.sum(service);
    match tallies.get_mut(key) {
        Some(tally) if tally.sum != Some(sum) => tally.note(kernel.counts(service)),
        None if sum > 0 => tallies.entry(key.clone()).or_default().note(kernel.counts(service)),
        _ => {}
    }
}

/// Those of kube-proxy's `network_programming_duration_seconds`, and before them some for what is faster.
fn buckets() -> impl Iterator<Item = f64> {
    let fast = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1].into_iter();
    let seconds = (1..60).chain((60..120).step_by(5)).chain((120..=300).step_by(30)).map(f64::from);
    fast.chain([0.25, 0.5]).chain(seconds)
}

/// Whether that is a port of the Service: [`ServiceName`] as text, which has no name of a port that has none.
fn is_port_of(port: &str, service: &str) -> bool {
    port.strip_prefix(service).is_some_and(|rest| rest.is_empty() || rest.starts_with(':'))
}

#[cfg(test)]
mod tests {
    use super::is_port_of;

    #[test]
    fn a_port_is_its_services_whether_it_has_a_name_or_not_and_no_others_whose_name_begins_so() {
        let ports = ["a/b", "a/b:http", "a/b-c", "a/b-c:http", "a/", "d/a/b"];
        assert_eq!(ports.map(|port| is_port_of(port, "a/b")), [true, true, false, false, false, false]);
    }
}
