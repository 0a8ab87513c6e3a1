//! Which of the addresses on a pod's interface are the pod's. Pure.
//!
//! A container with CAP_NET_ADMIN can give its interface any address, and what is the pod's the node leads to it.

use std::{collections::HashSet, net::IpAddr};

use common::mac::Mac;
use ipnet::IpNet;

/// What the pod's addresses are known by.
#[derive(Clone, Debug, Default)]
pub struct Claims {
    /// What the plugins before this one gave to the interface.
    pub given: Vec<IpNet>,
    /// What it had when no container could give it anything, where those plugins gave it nothing.
    pub found: Vec<IpAddr>,
    /// The MAC addresses that it has had from the plugins before this one and from us.
    pub macs: Vec<Mac>,
    /// Whether it shares its MAC address with others, as IPvlan's do.
    pub shares_mac: bool,
    /// The node's own addresses, and the next hops of the pod's routes.
    pub others: HashSet<IpAddr>,
    /// Where the cluster's Services and overlay pods are.
    pub cluster: Vec<IpNet>,
}

impl Claims {
    /// Whether an address on the interface is the pod's: it was given to it; or it is in the subnet of one that was, as
    /// keepalived has it, and of nobody that is known; or the kernel made it of a router advertisement.
    pub fn include(&self, address: IpAddr) -> bool {
        let contains = |nets: &[IpNet]| nets.iter().any(|net| net.contains(&address));
        let is_given = self.given.iter().any(|net| net.addr() == address) || self.found.contains(&address);
        let is_beside = contains(&self.given) && !contains(&self.cluster);
        is_given || !self.others.contains(&address) && (is_beside || self.is_formed(address))
    }

    /// Whether the kernel forms an address of the interface's MAC address: a pod can choose the prefix, but not somebody
    /// else's interface identifier.
    fn is_formed(&self, address: IpAddr) -> bool {
        let IpAddr::V6(address) = address else { return false };
        let [.., a, b, c, d, e, f, g, h] = address.octets();
        // With IPvlan a number in place of ff:fe tells a pod from others of its node (`addrconf_ifid_eui48`), which each
        // keep what they have.
        let is_numbered = |mac: &Mac| self.shares_mac && mac.0 == [a, b, c, f, g, h];
        self.macs.iter().any(|mac| mac.interface_id() == [a, b, c, d, e, f, g, h] || is_numbered(mac))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claims() -> Claims {
        Claims {
            given: ["10.6.10.1/16", "fd00:6::a/64"].map(|net| net.parse().unwrap()).to_vec(),
            macs: vec!["0a:58:0a:06:d4:f1".parse().unwrap()],
            others: ["10.6.0.1", "10.6.212.101", "fd00:8:0:0:858:aff:fe06:d4f1"]
                .map(|address| address.parse().unwrap())
                .into(),
            cluster: vec!["10.6.64.0/18".parse().unwrap()],
            ..Claims::default()
        }
    }

    #[test]
    fn an_address_is_the_pods_if_it_was_given_or_is_nobodys_in_its_subnet_or_is_formed_of_its_mac_address() {
        let include = |address: &str| claims().include(address.parse().unwrap());
        for own in ["10.6.10.1", "10.6.10.2", "fd00:6::a", "fd00:6::bbbb", "fd00:7:0:0:858:aff:fe06:d4f1"] {
            assert!(include(own), "{own}");
        }
        let others = [
            "10.99.0.1",
            "10.6.0.1",
            "10.6.212.101",
            "10.6.64.7",
            "fd00:7::bbbb",
            "fd00:8:0:0:858:aff:fe06:d4f1",
            "fd00:7:0:0:a58:aff:fe06:d4f1",
            "fd00:7:0:0:a58:a00:106:d4f1",
        ];
        for other in others {
            assert!(!include(other), "{other}");
        }
    }

    #[test]
    fn what_was_given_is_the_pods_whoever_else_has_it_and_what_was_found_says_nothing_of_its_subnet() {
        let given = ["10.6.0.1/16", "10.6.64.7/16"].map(|net| net.parse().unwrap()).to_vec();
        let found = vec!["10.7.0.9".parse().unwrap()];
        let claims = Claims { given, found, ..claims() };
        let include = |address: &str| claims.include(address.parse().unwrap());
        assert!(include("10.6.0.1") && include("10.6.64.7") && include("10.7.0.9"));
        assert!(!include("10.7.0.10"));
    }

    #[test]
    fn an_ipvlan_interface_has_a_number_in_its_identifier() {
        let claims = Claims { shares_mac: true, ..claims() };
        let include = |address: &str| claims.include(address.parse().unwrap());
        assert!(include("fd00:7:0:0:a58:a00:106:d4f1"));
        assert!(!include("fd00:7:0:0:a58:a00:106:d4f2"));
    }
}
