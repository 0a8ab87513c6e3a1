//! Which container a notification of the kernel's concerns. Pure.

use std::{
    collections::{BTreeSet, HashSet},
    net::IpAddr,
    time::Instant,
};

use common::object::{self, PROTOCOL};
use ipnet::IpNet;

use crate::notice::{Notice, What};

/// Where one container's objects are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Whereabouts {
    /// The number by which the node knows the pod's namespace.
    pub nsid: Option<i32>,
    /// The node's links to the pod, by index and name.
    pub links: Vec<(u32, String)>,
    /// Index of the veth pair's end in the pod.
    pub pod_veth: Option<u32>,
    /// The addresses of the pod's interfaces.
    pub addresses: BTreeSet<IpAddr>,
    /// The node's, as the pod knows them.
    pub node_addresses: BTreeSet<IpAddr>,
    /// The routers that the node is asked its way to.
    pub routers: BTreeSet<IpAddr>,
    /// Where the pod's routes of ours lead, and its default ones.
    pub destinations: HashSet<IpNet>,
    /// The place of the node's rule, the later one of the two families'.
    pub rule: u32,
    /// Since when one of its interfaces has lacked some of the addresses that it was given.
    pub lacking: Option<Instant>,
}

impl Whereabouts {
    /// Whether a notification concerns this container.
    pub fn concerns(&self, notice: &Notice) -> bool {
        let is_link = |index: u32| self.links.iter().any(|(known, _)| *known == index);
        match notice {
            Notice::Lost => true,
            // The kernel learns others, and forgets them, all the time.
            Notice::Pod(nsid, What::Neighbour { index, address }) => {
                self.nsid == Some(*nsid) && self.pod_veth == Some(*index) && self.node_addresses.contains(address)
            }
            Notice::Node(What::Neighbour { index, address }) => is_link(*index) && self.addresses.contains(address),
            // A daemon makes and removes thousands in a second.
            Notice::Pod(nsid, What::Route { destination, protocol }) if object::is_daemons(*protocol) => {
                self.nsid == Some(*nsid) && self.destinations.contains(destination)
            }
            Notice::Pod(nsid, _) => self.nsid == Some(*nsid),
            Notice::Node(What::Link { index, name }) => {
                is_link(*index) || self.links.iter().any(|(_, known)| known == name)
            }
            Notice::Node(What::Settings { index } | What::Address { index }) => is_link(*index),
            Notice::Node(What::Route { destination, .. }) => {
                is_host(destination) && self.addresses.contains(&destination.addr())
            }
            // Somebody else's that comes before ours may take packets from it.
            Notice::Node(What::Rule { protocol, priority }) => *protocol == PROTOCOL || *priority <= self.rule,
            // The node's own table is for all of them.
            Notice::Node(What::Marks) => true,
        }
    }
}

/// Whether a notification that concerns no container by itself may say that the node's addresses, or its ways to the pods,
/// have changed.
pub fn concerns_node(notice: &Notice) -> bool {
    match notice {
        Notice::Node(What::Address { .. }) => true,
        Notice::Node(What::Route { destination, protocol }) => !is_host(destination) && *protocol != PROTOCOL,
        _ => false,
    }
}

/// Whether a destination is a single address.
fn is_host(destination: &IpNet) -> bool {
    destination.prefix_len() == destination.max_prefix_len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_learns_of_neighbours_by_itself_concerns_nobody() {
        let (pod, node): (IpAddr, IpAddr) = ("10.6.10.1".parse().unwrap(), "10.6.212.101".parse().unwrap());
        let whereabouts = Whereabouts {
            nsid: Some(3),
            links: vec![(7, "veth7".to_owned())],
            pod_veth: Some(2),
            addresses: BTreeSet::from([pod]),
            node_addresses: BTreeSet::from([node]),
            ..Whereabouts::default()
        };
        let neighbour = |index, address| What::Neighbour { index, address };
        let learnt = "fe80::a9fe:c801".parse().unwrap();
        assert!(whereabouts.concerns(&Notice::Node(neighbour(7, pod))));
        assert!(whereabouts.concerns(&Notice::Pod(3, neighbour(2, node))));
        for notice in [
            Notice::Node(neighbour(7, learnt)),
            Notice::Node(neighbour(8, pod)),
            Notice::Pod(3, neighbour(2, learnt)),
            Notice::Pod(3, neighbour(1, node)),
            Notice::Pod(4, neighbour(2, node)),
        ] {
            assert!(!whereabouts.concerns(&notice), "{notice:?}");
        }
    }

    #[test]
    fn a_routing_daemons_route_concerns_a_pod_in_the_place_of_one_of_ours_and_on_the_node_to_its_address() {
        let net = |text: &str| text.parse::<IpNet>().unwrap();
        let whereabouts = Whereabouts {
            nsid: Some(3),
            addresses: BTreeSet::from(["10.6.10.1".parse().unwrap()]),
            destinations: HashSet::from([net("10.233.64.0/18")]),
            ..Whereabouts::default()
        };
        let route = |to: &str, protocol| What::Route { destination: net(to), protocol };
        let (bird, boot) = (12, 3);
        assert!(whereabouts.concerns(&Notice::Pod(3, route("10.233.64.0/18", bird))));
        assert!(whereabouts.concerns(&Notice::Pod(3, route("192.0.2.0/24", boot))));
        assert!(whereabouts.concerns(&Notice::Pod(3, route("192.0.2.0/24", PROTOCOL))));
        assert!(whereabouts.concerns(&Notice::Node(route("10.6.10.1/32", bird))));
        for notice in [
            Notice::Pod(3, route("192.0.2.0/24", bird)),
            Notice::Pod(4, route("10.233.64.0/18", bird)),
            Notice::Node(route("10.6.10.0/24", bird)),
        ] {
            assert!(!whereabouts.concerns(&notice), "{notice:?}");
        }
        assert!(concerns_node(&Notice::Node(route("10.6.10.0/24", bird))));
        assert!(!concerns_node(&Notice::Node(route("10.6.10.2/32", bird))));
    }
}
