//! The table for a person.

use service_table::{Service, ServiceTable};

/// One line for each port of a Service.
pub fn table(table: &ServiceTable) -> String {
    let head = ["SERVICE", "PORT", "ADDRESSES", "BACKENDS", "LOCAL", "DRAINING"].map(str::to_owned);
    columns(&std::iter::once(head).chain(table.services.iter().map(row)).collect::<Vec<_>>())
}

fn row(service: &Service) -> [String; 6] {
    let addresses = service.cluster_ips.iter().chain(&service.external_ips).chain(&service.load_balancer_ips);
    let protocol = format!("{:?}", service.protocol).to_uppercase();
    let node_port = service.node_port.map(|port| format!(", node port {port}")).unwrap_or_default();
    [
        service.key().to_string(),
        format!("{}/{protocol}", service.port),
        addresses.map(ToString::to_string).collect::<Vec<_>>().join(", ") + &node_port,
        service.backends.len().to_string(),
        service.backends.iter().filter(|backend| backend.local).count().to_string(),
        service.draining.len().to_string(),
    ]
}

/// Cells one under the other.
pub fn columns<const N: usize>(rows: &[[String; N]]) -> String {
    let widths: [usize; N] =
        std::array::from_fn(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default());
    let line = |row: &[String; N]| {
        let cells: Vec<String> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        cells.join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}
