//! The node's side: its addresses, and its links to a pod.

use std::{
    collections::{HashMap, hash_map::Entry},
    io,
    net::IpAddr,
};

use common::{
    document::{HostSide, Uplink},
    netlink::{Link, Netlink, is_link_local},
};
use ipnet::IpNet;

use detect_mode::plan;

/// An address of the pod, and the next hop of its subnet if it has one.
pub type PodAddress = (IpNet, Option<IpAddr>);

/// The node's addresses for a pod, the best one of each family first.
///
/// # Errors
/// What the kernel says.
pub async fn addresses(node: &Netlink, pod: &[PodAddress], host_veth: &str) -> io::Result<Vec<IpAddr>> {
    let mut names: HashMap<u32, String> = HashMap::new();
    let mut all = vec![];
    for (index, net) in node.addresses().await?.into_iter().filter(|(_, net)| !is_link_local(net.addr())) {
        if let Entry::Vacant(entry) = names.entry(index) {
            entry.insert(node.link_by_index(index).await?.map(|link| link.name).unwrap_or_default());
        }
        all.push((names[&index].clone(), net));
    }
    let mut addresses: Vec<IpAddr> = vec![];
    for (net, gateway) in pod {
        let routed = node.source_towards(gateway.unwrap_or(net.addr())).await?;
        // After an earlier ADD the pod's address is routed through the veth pair, which says nothing.
        let routed = routed.filter(|(_, dev)| dev != host_veth).map(|(source, _)| source);
        for address in plan::node_addresses(&all, *net, routed) {
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
    }
    Ok(addresses)
}

/// The node's links to a pod's overlay interface `nic`: the other end of its veth pair or, where that is a port of a
/// bridge, whatever the node routes its addresses to. None if it is no veth: its link's index may then mean anything,
/// such as the node's own interface below a macvlan.
///
/// # Errors
/// What the kernel says.
pub async fn sides(node: &Netlink, nic: &Link, uplink: &Uplink) -> io::Result<Vec<HostSide>> {
    let peer = match nic.peer {
        Some(index) => node.link_by_index(index).await?,
        None => None,
    };
    let Some(peer) = peer.filter(|peer| peer.peer == Some(nic.index)) else { return Ok(vec![]) };
    let mut sides = vec![];
    for address in &uplink.sources {
        let dev = match peer.controller {
            None => Some(peer.name.clone()),
            Some(_) => node.source_towards(*address).await?.map(|(_, dev)| dev),
        };
        sides.extend(dev.map(|dev| HostSide { address: *address, dev }));
    }
    Ok(sides)
}
