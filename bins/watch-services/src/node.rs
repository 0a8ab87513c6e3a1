//! What is kept of a Node, and on which of its addresses node ports answer.

use std::{net::IpAddr, str::FromStr};

use cluster_api::k8s_openapi::api::core::v1 as core;
use common::object::Family;
use ipnet::IpNet;

use crate::address;

const ZONE: &str = "topology.kubernetes.io/zone";

/// What is of use of a Node.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Node {
    /// Its internal addresses, then its external ones.
    pub addresses: Vec<IpAddr>,
    /// The zone that it is in.
    pub zone: Option<String>,
    /// What is wrong with it, for a person.
    pub problems: Vec<String>,
}

impl Node {
    /// What is of use of an object.
    pub fn of(object: &core::Node) -> Self {
        let zone = object.metadata.labels.as_ref().and_then(|labels| labels.get(ZONE)).cloned();
        let mut node = Self { zone: zone.filter(|zone| !zone.is_empty()), ..Self::default() };
        let all = || object.status.iter().flat_map(|status| status.addresses.iter().flatten());
        for kind in ["InternalIP", "ExternalIP"] {
            for text in all().filter(|address| address.type_ == kind).map(|address| &address.address) {
                match address::parse_reachable(text) {
                    Some(address) if !node.addresses.contains(&address) => node.addresses.push(address),
                    Some(_) => {}
                    None => {
                        node.problems.push(format!("{kind} {text:?} is not an address by which others reach a host"))
                    }
                }
            }
        }
        node
    }
}

/// On which of a node's addresses node ports answer: kube-proxy's `nodePortAddresses`.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum NodePortAddresses {
    /// On all.
    #[default]
    All,
    /// On the first of each family.
    Primary,
    /// On those in one of these; on all of a family that none of them is of.
    In(Vec<IpNet>),
}

impl FromStr for NodePortAddresses {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.trim() {
            "" => Ok(Self::All),
            "primary" => Ok(Self::Primary),
            list => {
                let cidr =
                    |text: &str| text.trim().parse().map_err(|_| format!("{text:?} is neither a CIDR nor \"primary\""));
                list.split(',').map(cidr).collect::<Result<_, _>>().map(Self::In)
            }
        }
    }
}

impl NodePortAddresses {
    /// Those of a node's addresses.
    pub fn of(&self, node: &Node) -> Vec<IpAddr> {
        let addresses = &node.addresses;
        match self {
            Self::All => addresses.clone(),
            Self::Primary => Family::first_of_each(addresses.iter().copied()),
            Self::In(cidrs) => {
                let of_family = |address: &IpAddr| cidrs.iter().any(|cidr| Family::same(cidr.addr(), *address));
                let within = |address: &IpAddr| cidrs.iter().any(|cidr| cidr.contains(address));
                addresses.iter().copied().filter(|address| within(address) || !of_family(address)).collect()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(setting: &str) -> Vec<String> {
        let addresses = ["10.6.212.101", "10.7.0.101", "fd00:6::101", "203.0.113.1"].map(|text| text.parse().unwrap());
        let node = Node { addresses: addresses.to_vec(), ..Node::default() };
        setting.parse::<NodePortAddresses>().unwrap().of(&node).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn node_port_addresses_mean_what_they_mean_to_kube_proxy() {
        assert_eq!(of(""), ["10.6.212.101", "10.7.0.101", "fd00:6::101", "203.0.113.1"]);
        assert_eq!(of("primary"), ["10.6.212.101", "fd00:6::101"]);
        assert_eq!(of("10.7.0.0/16"), ["10.7.0.101", "fd00:6::101"], "the other family is not limited");
        assert_eq!(of("10.7.0.0/16, fd00:9::/64"), ["10.7.0.101"]);
        assert_eq!(of("0.0.0.0/0,10.7.0.0/16,::/0").len(), 4);
        assert!("10.7.0.0/33".parse::<NodePortAddresses>().is_err());
        assert!("primary,10.7.0.0/16".parse::<NodePortAddresses>().is_err());
    }
}
