//! The node's side: its addresses, and its links to a pod.

use std::{
    collections::{HashMap, hash_map::Entry},
    io,
    net::IpAddr,
};

use common::{
    document::{HostSide, Uplink},
    netlink::Netlink,
    result::Ip,
};

use crate::plan;

/// The node's addresses for a pod with the addresses `ips`, the best one of each family first.
///
/// # Errors
/// What the kernel says.
pub async fn addresses(node: &Netlink, ips: &[&Ip], host_veth: &str) -> io::Result<Vec<IpAddr>> {
    let mut names: HashMap<u32, String> = HashMap::new();
    let mut all = vec![];
    for (index, net) in node.addresses().await? {
        if let Entry::Vacant(entry) = names.entry(index) {
            entry.insert(node.link_by_index(index).await?.map(|link| link.name).unwrap_or_default());
        }
        all.push((names[&index].clone(), net));
    }
    let mut addresses: Vec<IpAddr> = vec![];
    for ip in ips {
        let routed = node.source_towards(ip.gateway.unwrap_or(ip.address.addr())).await?;
        // After an earlier ADD the pod's address is routed through the veth pair, which says nothing.
        let routed = routed.filter(|(_, dev)| dev != host_veth).map(|(source, _)| source);
        for address in plan::node_addresses(&all, ip.address, routed) {
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
    }
    Ok(addresses)
}

/// The node's links to a pod's overlay interface.
///
/// # Errors
/// What the kernel says.
pub async fn sides(node: &Netlink, uplink: &Uplink) -> io::Result<Vec<HostSide>> {
    let mut sides = vec![];
    for address in &uplink.sources {
        let route = node.source_towards(*address).await?;
        sides.extend(route.map(|(_, dev)| HostSide { address: *address, dev }));
    }
    Ok(sides)
}
