//! Which mode applies to an interface. Pure.

use std::{collections::HashSet, net::IpAddr};

use common::{
    document::{ModeKind, Nic, Uplink},
    failure::{Code, Failure},
    names::POD_VETH,
    settings::{ModeSetting, Settings},
};
use ipnet::IpNet;

use crate::observe::Pod;

/// The mode for the interface `ifname` of a pod that has the veth pair already, or not.
///
/// # Errors
/// When the configured mode cannot be had for this interface. The details say what to change.
pub fn mode(settings: &Settings, ifname: &str, has_veth: bool) -> Result<ModeKind, Failure> {
    let first = ifname == settings.pod_default_cni_nic;
    let refuse = |what: &str, remedy: &str| {
        Err(Failure::new(Code::InvalidConfiguration, format!("mode {what} for interface {ifname}")).details(remedy))
    };
    match (settings.mode, first, has_veth) {
        (ModeSetting::Disable, ..) => Ok(ModeKind::Disable),
        (ModeSetting::Auto | ModeSetting::Underlay, true, _) => Ok(ModeKind::Underlay),
        (ModeSetting::Auto | ModeSetting::Underlay, false, true) => Ok(ModeKind::Underlay),
        (ModeSetting::Auto | ModeSetting::Overlay, false, false) => Ok(ModeKind::Overlay),
        (ModeSetting::Underlay, false, false) => refuse(
            "underlay cannot be",
            &format!(
                "the pod has no {POD_VETH}: chain this plugin behind the pod's first interface {} too, set \
                 podDefaultCniNic to the name of the first interface, or set mode to auto or overlay",
                settings.pod_default_cni_nic
            ),
        ),
        (ModeSetting::Overlay, true, _) => refuse(
            "overlay cannot be",
            "it is the pod's first interface (podDefaultCniNic), which in overlay mode is the overlay network's: set \
             mode to auto or underlay, or chain this plugin behind a further interface only",
        ),
        (ModeSetting::Overlay, false, true) => refuse(
            "overlay cannot be",
            &format!(
                "the pod's first interface is served in underlay mode ({POD_VETH} is there): set mode to auto or underlay"
            ),
        ),
    }
}

/// Links whose addresses are for containers, or move from node to node: a pod must not reach its node by these.
const NOT_THE_NODES: [&str; 24] = [
    "docker",
    "br-",
    "cni",
    "cali",
    "cilium",
    "lxc",
    "flannel",
    "kube-ipvs",
    "kube-bridge",
    "kube-router",
    "veth",
    "virbr",
    "vnet",
    "dummy",
    "nodelocaldns",
    "tunl",
    "vxlan",
    "weave",
    "ovn",
    "antrea",
    "genev",
    "podman",
    "lxd",
    "incus",
];

/// An address of the node and the name of the link that it is on.
pub type NodeAddress = (String, IpNet);

/// The node's addresses for a pod with the address `pod`: the one that the node would use towards the pod first, that
/// is one in the pod's subnet, else the one that the routing says (`routed`).
pub fn node_addresses(all: &[NodeAddress], pod: IpNet, routed: Option<IpAddr>) -> Vec<IpAddr> {
    let is_container_link = |link: &str| NOT_THE_NODES.iter().any(|prefix| link.starts_with(prefix));
    let mut addresses: Vec<&IpNet> = all
        .iter()
        .filter(|(link, net)| !is_container_link(link) && net.addr().is_ipv4() == pod.addr().is_ipv4())
        .map(|(_, net)| net)
        .collect();
    addresses.sort_by_key(|net| (!net.contains(&pod.addr()), Some(net.addr()) != routed));
    let mut addresses: Vec<_> = addresses.into_iter().map(IpNet::addr).collect();
    let mut seen = HashSet::new();
    addresses.retain(|address| seen.insert(*address));
    addresses
}

/// The link that leads into the node.
///
/// # Errors
/// In overlay mode, when the pod has no overlay interface with an address.
pub fn uplink(
    mode: ModeKind,
    settings: &Settings,
    nic: &Nic,
    pod: &Pod,
    node_addresses: &[IpAddr],
) -> Result<Uplink, Failure> {
    let first = &settings.pod_default_cni_nic;
    let nets = if nic.name == *first { nic.addresses.clone() } else { pod.addresses_of(first) };
    let sources = one_of_each_family(nets.iter().map(IpNet::addr));
    match mode {
        ModeKind::Disable => Ok(Uplink::default()),
        ModeKind::Underlay => {
            let gateways = one_of_each_family(node_addresses.iter().copied());
            Ok(Uplink { dev: POD_VETH.to_owned(), sources, gateways })
        }
        ModeKind::Overlay if sources.is_empty() => Err(Failure::new(
            Code::InvalidConfiguration,
            format!("overlay mode needs an overlay interface {first} with an address, and the pod has none"),
        )
        .details("set podDefaultCniNic to the name of the pod's first interface")),
        ModeKind::Overlay => {
            let gateways = one_of_each_family(pod.gateways_of(first).into_iter());
            Ok(Uplink { dev: first.clone(), sources, gateways })
        }
    }
}

fn one_of_each_family(addresses: impl Iterator<Item = IpAddr> + Clone) -> Vec<IpAddr> {
    let first = |v4| addresses.clone().find(move |address| address.is_ipv4() == v4);
    [first(true), first(false)].into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(mode: ModeSetting) -> Settings {
        Settings { mode, ..Settings::default() }
    }

    #[test]
    fn auto_is_underlay_for_the_first_interface_and_then_what_the_pod_has() {
        let auto = settings(ModeSetting::Auto);
        assert_eq!(mode(&auto, "eth0", false), Ok(ModeKind::Underlay));
        assert_eq!(mode(&auto, "eth0", true), Ok(ModeKind::Underlay));
        assert_eq!(mode(&auto, "net1", true), Ok(ModeKind::Underlay));
        assert_eq!(mode(&auto, "net1", false), Ok(ModeKind::Overlay));
    }

    #[test]
    fn a_mode_that_cannot_be_is_an_error_that_says_what_to_change() {
        for (setting, ifname, has_veth, change) in [
            (ModeSetting::Underlay, "net1", false, "set mode to auto or overlay"),
            (ModeSetting::Overlay, "eth0", false, "set mode to auto or underlay"),
            (ModeSetting::Overlay, "net1", true, "set mode to auto or underlay"),
        ] {
            let failure = mode(&settings(setting), ifname, has_veth).unwrap_err();
            assert_eq!(failure.code, Code::InvalidConfiguration as u32);
            assert!(failure.details.contains(change), "{failure}");
        }
    }

    #[test]
    fn the_address_in_the_pods_subnet_comes_first_and_container_links_do_not_count() {
        let all: Vec<NodeAddress> = [
            ("docker0", "172.17.0.1/16"),
            ("eth1", "192.168.7.1/24"),
            ("eth0", "10.6.212.101/16"),
            ("eth0", "fd00::1/64"),
            ("cali123", "10.233.1.1/32"),
            ("eth0", "10.6.212.101/32"),
        ]
        .map(|(link, net)| (link.to_owned(), net.parse().unwrap()))
        .to_vec();
        let addresses = |pod: &str, routed: Option<&str>| {
            let routed = routed.map(|address| address.parse().unwrap());
            node_addresses(&all, pod.parse().unwrap(), routed).iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(addresses("10.6.212.241/16", None), ["10.6.212.101", "192.168.7.1"]);
        assert_eq!(addresses("10.7.0.2/16", Some("10.6.212.101")), ["10.6.212.101", "192.168.7.1"]);
        assert_eq!(addresses("10.7.0.2/16", None), ["192.168.7.1", "10.6.212.101"]);
        assert_eq!(addresses("fd00::2/64", None), ["fd00::1"]);
    }
}
