//! Which mode applies to an interface. Pure.

use std::{collections::HashSet, net::IpAddr};

use common::{
    document::{ModeKind, Nic, Uplink},
    failure::{Code, Failure},
    names::POD_VETH,
    netlink::Link,
    numbers::{self, Numbers},
    object::{Family, Route},
    settings::{ModeSetting, Settings},
};
use ipnet::IpNet;

use crate::observe::Pod;

/// The pod's first interface, as it is known when a further one comes.
#[derive(Clone, Debug, Default)]
pub struct First {
    /// What drives it; empty for hardware, and where there is none.
    pub kind: String,
    /// The node's link to other hosts by which the node reaches it, if it does so.
    pub underlay: Option<String>,
}

impl First {
    /// By what it is seen to lead past the node, to the underlay. Of all but macvlan an overlay can be made too, as Terway does of
    /// IPvlan and OVN-Kubernetes of virtual functions, if the configuration says that it is one.
    fn passes_by(&self, asked: ModeSetting) -> Option<String> {
        let kind = &self.kind;
        match (asked, kind.as_str()) {
            (ModeSetting::Auto | ModeSetting::Overlay, "macvlan" | "macvtap")
            | (ModeSetting::Auto, "ipvlan" | "ipvtap") => Some(format!("is a {kind}, which is no overlay's")),
            (ModeSetting::Auto, _) => {
                let dev = self.underlay.as_ref()?;
                Some(format!(
                    "is where other hosts are, behind the node's {dev} (set mode to overlay if it is an overlay's)"
                ))
            }
            _ => None,
        }
    }
}

/// The mode for the interface `ifname` of a pod that has the veth pair already, or not.
///
/// # Errors
/// When the configured mode cannot be had for this interface. The details say what to change.
pub fn mode(settings: &Settings, ifname: &str, has_veth: bool, first: &First) -> Result<ModeKind, Failure> {
    let is_first = ifname == settings.pod_default_cni_nic;
    let refuse = |what: &str, remedy: &str| {
        Err(Failure::new(Code::InvalidConfiguration, format!("mode {what} for interface {ifname}")).details(remedy))
    };
    if !is_first
        && !has_veth
        && let Some(past) = first.passes_by(settings.mode)
    {
        return refuse(
            "overlay cannot be",
            &format!(
                "the pod's first interface {} {past} and does not lead to the node: chain this plugin behind it too, before this \
                 interface, or set mode to disable",
                settings.pod_default_cni_nic
            ),
        );
    }
    match (settings.mode, is_first, has_veth) {
        (ModeSetting::Disable, ..) => Ok(ModeKind::Disable),
        _ if ifname == POD_VETH => refuse(
            "other than disable cannot be",
            "the pod's end of the veth pair has this name: give the interface another one",
        ),
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

/// What a link of the node is there for, as far as the link itself says it. Names say nothing: `br-ex` has the node's
/// address on OpenShift, `br-4f1c...` that of a Docker network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// It leads to other hosts.
    Hosts,
    /// It leads to this node's own containers, or into an overlay; or its addresses are not the node's alone, like those
    /// of the Services that kube-proxy's IPVS mode keeps on a dummy link.
    Containers,
    /// Its ports and routes say it: a bridge.
    Ports,
}

/// Whether an address on a link that leads nowhere is that of something which each node has for its own pods, like the
/// node-local DNS cache of Kubernetes (169.254.20.10). The rest of 169.254.0.0/16, a cloud's metadata service among them,
/// stays where the pod's own network has it, unless hijackCIDR says otherwise.
pub fn is_node_local(net: &IpNet) -> bool {
    matches!(net, IpNet::V4(net) if net.addr().is_link_local() && net.prefix_len() == 32)
}

/// What a link with these addresses is there for.
pub fn purpose(link: &Link, nets: &[IpNet]) -> Purpose {
    let has_subnet = nets.iter().any(|net| net.prefix_len() < net.max_prefix_len());
    match link.kind.as_str() {
        "bridge" => Purpose::Ports,
        // A port that Open vSwitch has in the host. The overlays that are made of it look like any other.
        "openvswitch" => Purpose::Containers,
        // A node that is a container itself has one as its NIC. Those to its own containers have no subnet, and a pair
        // whose ends are both here is some overlay's.
        "veth" if has_subnet && link.peer_nsid.is_some() => Purpose::Hosts,
        "veth" | "netkit" | "dummy" | "ifb" | "tun" | "wireguard" => Purpose::Containers,
        "vxlan" | "geneve" | "ipip" | "sit" | "gre" | "gretap" | "erspan" | "ip6tnl" | "ip6gre" | "ip6gretap" => {
            Purpose::Containers
        }
        _ => Purpose::Hosts,
    }
}

/// The numbers for this attachment: those that the pod has already, else free ones.
pub fn numbers(settings: &Settings, pod: &Pod, node_table: u32) -> Numbers {
    let of_an_interface = |table| pod.rules.iter().any(|entry| entry.ours && entry.rule.table == table);
    let taken = |table| pod.is_foreign_table(table) || of_an_interface(table);
    let new = Numbers {
        pod_table: numbers::free_table(settings.pod_rule_table, taken),
        node_table,
        mark: numbers::free_mark(settings.pod_mark, &pod.rules),
    };
    new.as_in(&pod.rules).unwrap_or(new)
}

/// Whether a bridge's port leads to other hosts: it is no end of a veth pair and no virtual machine's.
pub fn is_cable(port: &Link) -> bool {
    purpose(port, &[]) == Purpose::Hosts
}

/// Of the node's addresses `all`, those that a pod with the address `pod` can use: the one that the node would use towards
/// the pod first, that is the one that the routing says (`routed`), else one in the pod's subnet.
pub fn node_addresses(all: &[IpNet], pod: IpNet, routed: Option<IpAddr>) -> Vec<IpAddr> {
    let mut addresses: Vec<_> = all.iter().filter(|net| Family::same(net.addr(), pod.addr())).collect();
    addresses.sort_by_key(|net| (Some(net.addr()) != routed, !net.contains(&pod.addr())));
    let mut seen = HashSet::new();
    addresses.into_iter().map(IpNet::addr).filter(|address| seen.insert(*address)).collect()
}

/// The link that leads into the node. In overlay mode `ways` are those out by the pod's first interface.
///
/// # Errors
/// In overlay mode, when the pod has no overlay interface with an address, or none by which anything leads out.
pub fn uplink(
    mode: ModeKind,
    settings: &Settings,
    nic: &Nic,
    pod: &Pod,
    node_addresses: &[IpAddr],
    ways: &[Route],
) -> Result<Uplink, Failure> {
    let first = &settings.pod_default_cni_nic;
    let nets = if nic.name == *first { nic.addresses.clone() } else { pod.global_addresses_of(first) };
    let sources = Family::first_of_each(nets.iter().map(IpNet::addr));
    match mode {
        ModeKind::Disable => Ok(Uplink::default()),
        ModeKind::Underlay => {
            let gateways = Family::first_of_each(node_addresses.iter().copied());
            Ok(Uplink { dev: POD_VETH.to_owned(), sources, gateways })
        }
        ModeKind::Overlay if sources.is_empty() => Err(Failure::new(
            Code::InvalidConfiguration,
            format!("overlay mode needs an overlay interface {first} with an address, and the pod has none"),
        )
        .details("set podDefaultCniNic to the name of the pod's first interface")),
        ModeKind::Overlay => {
            let leads = |source: &IpAddr| ways.iter().any(|way| Family::same(way.destination.addr(), *source));
            let sources: Vec<_> = sources.into_iter().filter(leads).collect();
            if sources.is_empty() {
                return Err(Failure::new(
                    Code::InvalidConfiguration,
                    format!("overlay mode needs a way out by the overlay interface {first}, and the pod has no default route there"),
                )
                .details("let that interface keep its default route: Multus' default-route for another one takes it away"));
            }
            Ok(Uplink { dev: first.clone(), sources, gateways: ways.iter().filter_map(|way| way.gateway).collect() })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(mode: ModeSetting) -> Settings {
        Settings { mode, ..Settings::default() }
    }

    #[test]
    fn auto_is_underlay_for_the_first_interface_and_then_what_the_pod_has() {
        let auto = |ifname: &str, has_veth, kind: &str| {
            let first = First { kind: kind.to_owned(), underlay: None };
            mode(&settings(ModeSetting::Auto), ifname, has_veth, &first)
        };
        assert_eq!(auto("eth0", false, "macvlan"), Ok(ModeKind::Underlay));
        assert_eq!(auto("eth0", true, "macvlan"), Ok(ModeKind::Underlay));
        assert_eq!(auto("net1", true, "macvlan"), Ok(ModeKind::Underlay));
        assert_eq!(auto("net1", false, "veth"), Ok(ModeKind::Overlay));
        assert_eq!(auto("net1", false, ""), Ok(ModeKind::Overlay));
    }

    #[test]
    fn an_interface_where_other_hosts_are_is_an_overlays_only_if_the_configuration_says_it() {
        let first = First { kind: String::new(), underlay: Some("bond0".to_owned()) };
        let mode = |asked, has_veth| mode(&settings(asked), "net1", has_veth, &first);
        let failure = mode(ModeSetting::Auto, false).unwrap_err();
        assert_eq!(failure.code, Code::InvalidConfiguration as u32);
        assert!(failure.details.contains("behind the node's bond0"), "{failure}");
        assert_eq!(mode(ModeSetting::Overlay, false), Ok(ModeKind::Overlay));
        assert_eq!(mode(ModeSetting::Auto, true), Ok(ModeKind::Underlay));
    }

    #[test]
    fn a_mode_that_cannot_be_is_an_error_that_says_what_to_change() {
        for (setting, ifname, has_veth, first_kind, change) in [
            (ModeSetting::Underlay, "net1", false, "veth", "set mode to auto or overlay"),
            (ModeSetting::Overlay, "eth0", false, "veth", "set mode to auto or underlay"),
            (ModeSetting::Overlay, "net1", true, "veth", "set mode to auto or underlay"),
            (ModeSetting::Auto, POD_VETH, true, "veth", "give the interface another"),
            (ModeSetting::Auto, "net1", false, "macvlan", "chain this plugin behind it too"),
            (ModeSetting::Auto, "net1", false, "ipvlan", "chain this plugin behind it too"),
            (ModeSetting::Overlay, "net1", false, "macvtap", "chain this plugin behind it too"),
        ] {
            let first = First { kind: first_kind.to_owned(), underlay: None };
            let failure = mode(&settings(setting), ifname, has_veth, &first).unwrap_err();
            assert_eq!(failure.code, Code::InvalidConfiguration as u32);
            assert!(failure.details.contains(change), "{failure}");
        }
    }

    fn nets(nets: &[&str]) -> Vec<IpNet> {
        nets.iter().map(|net| net.parse().unwrap()).collect()
    }

    #[test]
    fn the_address_that_the_node_uses_towards_the_pod_comes_first_then_one_in_the_pods_subnet() {
        let all = nets(&["192.168.7.1/24", "10.6.212.101/16", "fd00::1/64", "10.6.0.99/32", "10.6.212.101/32"]);
        let addresses = |pod: &str, routed: Option<&str>| {
            let routed = routed.map(|address| address.parse().unwrap());
            node_addresses(&all, pod.parse().unwrap(), routed).iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(addresses("10.6.212.241/16", None), ["10.6.212.101", "192.168.7.1", "10.6.0.99"]);
        assert_eq!(addresses("10.7.0.2/16", Some("10.6.212.101")), ["10.6.212.101", "192.168.7.1", "10.6.0.99"]);
        assert_eq!(addresses("10.6.0.2/16", Some("192.168.7.1")), ["192.168.7.1", "10.6.212.101", "10.6.0.99"]);
        assert_eq!(addresses("fd00::2/64", None), ["fd00::1"]);
    }

    #[test]
    fn what_a_link_is_there_for_follows_from_its_kind_and_addresses_and_not_from_its_name() {
        let of = |name: &str, kind: &str, elsewhere: bool, addresses: &[&str]| {
            let peer_nsid = elsewhere.then_some(0);
            let link = Link { name: name.to_owned(), kind: kind.to_owned(), peer_nsid, ..Link::default() };
            purpose(&link, &nets(addresses))
        };
        assert_eq!(of("docker-uplink", "", false, &["10.6.212.101/16"]), Purpose::Hosts);
        assert_eq!(of("cni-bond", "bond", false, &["10.6.212.101/16"]), Purpose::Hosts);
        assert_eq!(of("vnet7", "vlan", false, &["10.6.212.101/16"]), Purpose::Hosts);
        assert_eq!(of("eth0", "veth", true, &["172.18.0.2/16"]), Purpose::Hosts);
        assert_eq!(of("eth1", "veth", true, &["10.88.0.1/32"]), Purpose::Containers);
        assert_eq!(of("eth2", "veth", false, &["10.233.1.1/24"]), Purpose::Containers);
        assert_eq!(of("eth3", "dummy", false, &["10.233.64.1/32"]), Purpose::Containers);
        assert_eq!(of("mgmt0", "vxlan", false, &["10.244.1.0/32"]), Purpose::Containers);
        assert_eq!(of("br-ex", "bridge", false, &["10.6.212.101/16"]), Purpose::Ports);
    }
}
