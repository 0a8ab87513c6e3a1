//! The veth pair of a pod and what is on it. Pure.

use std::net::{IpAddr, Ipv6Addr};

use common::{
    document::{Mode, ModeKind, PodDocument},
    failure::Failure,
    names,
    object::{Address, Family, Neighbour, Netns, Object, Placed, Sysctl, Veth},
};
use ipnet::IpNet;

/// The link-local address of the pod's end: 169.254.200.1, written as IPv6.
const LINK_ADDRESS: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0xa9fe, 0xc801);

/// The pair, for the pod's first interface; a permanent neighbour on the node for each of the interface's addresses to which it leads
/// and, for the first interface, for each of the node's addresses in the pod, so that nobody has to ask and no answer
/// can be wrong.
pub fn wanted(document: &PodDocument) -> Result<Vec<Placed>, Failure> {
    let mode = document.mode()?;
    if mode.kind != ModeKind::Underlay {
        return Ok(vec![]);
    }
    let pair = document.veth()?;
    let mut wanted = vec![];
    if mode.first {
        wanted.push(Placed::node(Object::Veth(Veth {
            name: pair.host.clone(),
            mac: pair.host_mac,
            peer: pair.pod.clone(),
            peer_mac: pair.pod_mac,
            mtu: pair.mtu,
            alias: names::alias(&document.request),
            group: document.settings.veth_group(),
            up: true,
        })));
        wanted.extend(sysctls(document)?);
        wanted.extend(link_addresses(document, mode).map(|address| {
            let address = Address { dev: pair.pod.clone(), address: IpNet::from(address) };
            Placed::pod(Object::Address(address))
        }));
    }
    wanted.extend(mode.led_addresses().map(|address| {
        let neighbour = Neighbour { dev: pair.host.clone(), address, mac: pair.pod_mac };
        Placed::node(Object::Neighbour(neighbour))
    }));
    if mode.first {
        wanted.extend(mode.reachable_node_addresses().map(|address| {
            Placed::pod(Object::Neighbour(Neighbour { dev: pair.pod.clone(), address, mac: pair.host_mac }))
        }));
    }
    Ok(wanted)
}

/// The addresses of the pod's end itself. A sidecar's `REDIRECT` sends what comes in by a link to that link's first address,
/// and drops it where there is none (`nf_nat_redirect`). They are link-local: with the pod's own address on two links, a
/// multicast group that is joined by that address would be joined on the wrong one (`ip_mc_find_dev`).
fn link_addresses(document: &PodDocument, mode: &Mode) -> impl Iterator<Item = IpAddr> {
    let addresses = [document.settings.veth_link_address, Some(IpAddr::V6(LINK_ADDRESS))];
    let served = |address: &IpAddr| mode.uplink.gateway(Family::of(*address)).is_some();
    addresses.into_iter().flatten().filter(served).collect::<Vec<_>>().into_iter()
}

/// What the path needs of the pair's ends, which otherwise have what their namespaces' defaults say. Of what else a link has,
/// nothing stops it: neighbours are permanent (`arp_*`, `ndisc_*`, `proxy_*`, `*_evict_nocarrier`), addresses come without a
/// check (`accept_dad`, `*_dad`) and none by themselves (`autoconf`, `use_tempaddr`, `addr_gen_mode`); `rp_filter` is tune-pod's.
pub fn sysctls(document: &PodDocument) -> Result<Vec<Placed>, Failure> {
    let (pair, mode) = (document.veth()?, document.mode()?);
    let sysctl = |netns, family: &str, dev: &str, name: &str, value: u8| Placed {
        netns,
        object: Object::Sysctl(Sysctl { path: format!("net/{family}/conf/{dev}/{name}"), value: value.to_string() }),
    };
    let on_node = |family, name, value| sysctl(Netns::Node, family, &pair.host, name, value);
    let mut sysctls = vec![on_node("ipv4", "forwarding", 1)];
    if mode.nic.addresses.iter().any(|net| Family::of(net.addr()) == Family::Ipv6) {
        sysctls.push(on_node("ipv6", "disable_ipv6", 0));
        // No pod is its node's router.
        sysctls.push(on_node("ipv6", "accept_ra", 0));
        // The link has no address for what the node itself sends to the pod.
        sysctls.push(on_node("ipv6", "use_oif_addrs_only", 0));
        sysctls.push(sysctl(Netns::Pod, "ipv6", &pair.pod, "disable_ipv6", 0));
    }
    Ok(sysctls)
}

/// The addresses whose neighbour entries are this attachment's to make and to remove.
pub fn neighbours(document: &PodDocument) -> Vec<IpAddr> {
    let nodes = document.mode.iter().filter(|mode| mode.first).flat_map(|mode| &mode.node_addresses).copied();
    document.nic_addresses().iter().map(IpNet::addr).chain(nodes).collect()
}
