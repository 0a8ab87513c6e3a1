//! Counters per service and backend.

use std::{collections::BTreeMap, fmt, mem, net::SocketAddr, rc::Rc};

use common::table;
use metrics_file::prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric as _, prometheus_text},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
    registry::Registry,
};
use schemars::JsonSchema;
use serde::Serialize;
use service_table::ServiceName;

use crate::kernel::{Installed, Kernel, Key};

/// The counters of a service. They begin at 0 when the service, or the backend, is added.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServiceStats {
    /// The Kubernetes namespace.
    namespace: String,
    /// The Service's name.
    name: String,
    /// The port's name.
    port_name: String,
    /// Connections and flows that found no backend.
    refused: u64,
    /// By address and port.
    backends: BTreeMap<SocketAddr, BackendStats>,
}

/// The counters of a backend.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BackendStats {
    /// Connections begun, and flows of unconnected UDP sockets.
    connections: u64,
    /// Sockets that are translated to it now, if the service counts them: with the algorithm least-connections.
    #[serde(skip_serializing_if = "Option::is_none")]
    open: Option<u64>,
}

/// Of all services.
pub fn stats(kernel: &Kernel) -> Vec<ServiceStats> {
    let stats = |(key, installed): (&Key, &Rc<Installed>)| {
        let ServiceName { namespace, name, port_name } = (**key).clone();
        let (refused, connections) = kernel.counts(installed);
        let backends = installed.backends.iter().map(|(address, backend)| {
            let connections = connections.get(address).copied().unwrap_or_default();
            let open = installed.spec.least_connections.then(|| kernel.open_sockets(*backend));
            (*address, BackendStats { connections, open })
        });
        ServiceStats { namespace, name, port_name, refused, backends: backends.collect() }
    };
    kernel.services().iter().map(stats).collect()
}

/// The same for people.
pub fn table(stats: &[ServiceStats]) -> String {
    let mut rows = vec![];
    for service in stats {
        let [namespace, name, port_name] = service.labels().map(|(_, value)| value.to_owned());
        let name = ServiceName { namespace, name, port_name }.to_string();
        // Of several lines the first one's.
        let mut of_all = [name, service.refused.to_string()];
        for (address, BackendStats { connections, open }) in &service.backends {
            let open = open.map(|open| open.to_string()).unwrap_or_default();
            rows.push([&mem::take(&mut of_all)[..], &[address.to_string(), connections.to_string(), open]].concat());
        }
        if service.backends.is_empty() {
            rows.push([&of_all[..], &["none".to_owned()]].concat());
        }
    }
    table::table(&["SERVICE", "REFUSED", "BACKEND", "CONNECTIONS", "OPEN"], &rows)
}

/// The same in the text format of Prometheus.
///
/// # Errors
/// None: a string takes all that is written to it.
pub fn prometheus(stats: Vec<ServiceStats>, is_served: bool, has_expired: bool) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("underpass_lb");
    registry.register_collector(Box::new(Exposition { stats, is_served, has_expired }));
    let mut text = String::new();
    prometheus_text::encode(&mut text, &registry)?;
    Ok(text)
}

#[derive(Debug)]
struct Exposition {
    stats: Vec<ServiceStats>,
    is_served: bool,
    has_expired: bool,
}

impl Exposition {
    /// All backends, with the labels of each.
    fn backends(&self) -> impl Iterator<Item = (impl EncodeLabelSet, &BackendStats)> {
        self.stats.iter().flat_map(|service| {
            let labels = |address: &SocketAddr| (service.labels(), [("backend", address.to_string())]);
            service.backends.iter().map(move |(address, backend)| (labels(address), backend))
        })
    }
}

impl Collector for Exposition {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let (counter, gauge) = (MetricType::Counter, MetricType::Gauge);
        if !self.is_served {
            let attached = encoder.encode_descriptor("attached", "Whether anybody is served.", None, gauge)?;
            ConstGauge::new(0).encode(attached)?;
        }
        if self.has_expired {
            let expired = encoder.encode_descriptor("expired", "Whether the table has expired.", None, gauge)?;
            ConstGauge::new(1).encode(expired)?;
        }
        let mut refused = encoder.encode_descriptor("refused", "Connections that found no backend.", None, counter)?;
        for service in &self.stats {
            ConstCounter::new(service.refused).encode(refused.encode_family(&service.labels())?)?;
        }
        let mut connections = encoder.encode_descriptor("connections", "Connections begun.", None, counter)?;
        for (labels, backend) in self.backends() {
            ConstCounter::new(backend.connections).encode(connections.encode_family(&labels)?)?;
        }
        let help = "Sockets translated to the backend now.";
        let mut open = encoder.encode_descriptor("open_sockets", help, None, gauge)?;
        for (labels, backend) in self.backends() {
            if let Some(sockets) = backend.open {
                ConstGauge::new(sockets).encode(open.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

impl ServiceStats {
    fn labels(&self) -> [(&'static str, &str); 3] {
        [("namespace", &self.namespace), ("service", &self.name), ("port", &self.port_name)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prometheus_reads_each_counter_in_order() {
        let stats = |name: &str, open| {
            let backend = |port| (SocketAddr::from(([10, 0, 0, 1], port)), BackendStats { connections: 7, open });
            ServiceStats {
                namespace: "test".into(),
                name: name.into(),
                port_name: String::new(),
                refused: 1,
                backends: [backend(80), backend(81)].into(),
            }
        };
        let text = prometheus(vec![stats("b\"", None), stats("a", Some(2))], false, true).unwrap();
        let wanted = r##"# HELP underpass_lb_attached Whether anybody is served.
# TYPE underpass_lb_attached gauge
underpass_lb_attached 0
# HELP underpass_lb_expired Whether the table has expired.
# TYPE underpass_lb_expired gauge
underpass_lb_expired 1
# HELP underpass_lb_refused_total Connections that found no backend.
# TYPE underpass_lb_refused_total counter
underpass_lb_refused_total{namespace="test",service="b\"",port=""} 1
underpass_lb_refused_total{namespace="test",service="a",port=""} 1
# HELP underpass_lb_connections_total Connections begun.
# TYPE underpass_lb_connections_total counter
underpass_lb_connections_total{namespace="test",service="b\"",port="",backend="10.0.0.1:80"} 7
underpass_lb_connections_total{namespace="test",service="b\"",port="",backend="10.0.0.1:81"} 7
underpass_lb_connections_total{namespace="test",service="a",port="",backend="10.0.0.1:80"} 7
underpass_lb_connections_total{namespace="test",service="a",port="",backend="10.0.0.1:81"} 7
# HELP underpass_lb_open_sockets Sockets translated to the backend now.
# TYPE underpass_lb_open_sockets gauge
underpass_lb_open_sockets{namespace="test",service="a",port="",backend="10.0.0.1:80"} 2
underpass_lb_open_sockets{namespace="test",service="a",port="",backend="10.0.0.1:81"} 2
"##;
        assert_eq!(text, wanted);
    }
}
