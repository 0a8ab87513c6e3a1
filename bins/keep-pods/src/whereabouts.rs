//! Which container a notification of the kernel's concerns. Pure.

use std::{collections::BTreeSet, net::IpAddr};

use common::object::PROTOCOL;

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
    /// The routers that the node is asked its way to.
    pub gateways: BTreeSet<IpAddr>,
}

impl Whereabouts {
    /// Whether a notification concerns this container.
    pub fn concerns(&self, notice: &Notice) -> bool {
        let is_link = |index: u32| self.links.iter().any(|(known, _)| *known == index);
        match notice {
            Notice::Lost => true,
            Notice::Pod(nsid, What::Neighbour { index }) => self.nsid == Some(*nsid) && self.pod_veth == Some(*index),
            Notice::Pod(nsid, _) => self.nsid == Some(*nsid),
            Notice::Node(What::Link { index, name }) => {
                is_link(*index) || self.links.iter().any(|(_, known)| known == name)
            }
            Notice::Node(What::Neighbour { index } | What::Settings { index } | What::Address { index }) => {
                is_link(*index)
            }
            Notice::Node(What::Route { destination: Some(address), .. }) => self.addresses.contains(address),
            Notice::Node(What::Rule { protocol }) => *protocol == PROTOCOL,
            // The node's own table is for all of them.
            Notice::Node(What::Marks) => true,
            Notice::Node(_) => false,
        }
    }
}

/// Whether a notification that concerns no container by itself may say that the node's addresses, or its ways to the pods,
/// have changed.
pub fn concerns_node(notice: &Notice) -> bool {
    match notice {
        Notice::Node(What::Address { .. }) => true,
        Notice::Node(What::Route { destination, protocol }) => destination.is_none() && *protocol != PROTOCOL,
        _ => false,
    }
}
