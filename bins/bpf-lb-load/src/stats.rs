//! Counters per service and backend.

use std::{collections::BTreeMap, fmt::Write as _, net::SocketAddr, rc::Rc};

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

/// The same in the text format of Prometheus.
pub fn prometheus(stats: &[ServiceStats], is_served: bool) -> String {
    let mut text = String::new();
    if !is_served {
        text.push_str("# HELP underpass_lb_attached Whether anybody is served.\n# TYPE underpass_lb_attached gauge\n");
        text.push_str("underpass_lb_attached 0\n");
    }
    let mut family = |name: &str, kind: &str, help: &str, line: &dyn Fn(&ServiceStats, &mut String)| {
        let _infallible = write!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
        for service in stats {
            line(service, &mut text);
        }
    };
    family("underpass_lb_refused_total", "counter", "Connections that found no backend.", &|service, text| {
        let _infallible = writeln!(text, "underpass_lb_refused_total{{{}}} {}", labels(service), service.refused);
    });
    family("underpass_lb_connections_total", "counter", "Connections begun.", &|service, text| {
        for (address, backend) in &service.backends {
            let labels = labels(service);
            let _infallible = writeln!(
                text,
                "underpass_lb_connections_total{{{labels},backend=\"{address}\"}} {}",
                backend.connections
            );
        }
    });
    family("underpass_lb_open_sockets", "gauge", "Sockets translated to the backend now.", &|service, text| {
        for (address, backend) in &service.backends {
            if let Some(open) = backend.open {
                let labels = labels(service);
                let _infallible = writeln!(text, "underpass_lb_open_sockets{{{labels},backend=\"{address}\"}} {open}");
            }
        }
    });
    text
}

/// Kubernetes names need no escaping; anything else that came in by hand does.
fn labels(service: &ServiceStats) -> String {
    let escape = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    format!(
        "namespace=\"{}\",service=\"{}\",port=\"{}\"",
        escape(&service.namespace),
        escape(&service.name),
        escape(&service.port_name)
    )
}
