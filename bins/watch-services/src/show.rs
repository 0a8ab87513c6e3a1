//! The table for a person.

use common::table;
use service_table::{Service, ServiceTable};

/// One line for each port of a Service.
pub fn table(table: &ServiceTable) -> String {
    let head = ["SERVICE", "PORT", "ADDRESSES", "BACKENDS", "LOCAL", "DRAINING"];
    table::table(&head, &table.services.iter().map(row).collect::<Vec<_>>())
}

fn row(service: &Service) -> Vec<String> {
    let addresses = service.cluster_ips.iter().chain(&service.external_ips).chain(&service.load_balancer_ips);
    let node_port = service.node_port.map(|port| format!(", node port {port}")).unwrap_or_default();
    vec![
        service.key().to_string(),
        format!("{}/{}", service.port, service.protocol),
        addresses.map(ToString::to_string).collect::<Vec<_>>().join(", ") + &node_port,
        service.backends.len().to_string(),
        service.backends.iter().filter(|backend| backend.local).count().to_string(),
        service.draining.len().to_string(),
    ]
}
