//! Makes the veth pair between pod and node.

mod plan;

use std::{io, net::IpAddr};

use common::{
    document::{Command, ModeKind, PodDocument, VethPair},
    failure::{Code, Context, Failure},
    harness::{About, Tool},
    kernel::Kernel,
    names::{self, POD_VETH},
    netlink::{Link, Netlink},
    object::{Address, Netns, Object, Placed, Veth},
    plan::Found,
};

/// The tool.
#[derive(Debug)]
pub struct MkVeth;

impl Tool for MkVeth {
    const ABOUT: About = About {
        name: "mk-veth",
        does: "Makes the veth pair that leads from an underlay pod into its node, with its MAC addresses, permanent \
               neighbours and, where configured, an address; in DEL and GC removes it.",
        example: "  cni-request < conf.json | detect-mode | mk-veth --explain",
    };

    async fn observe(document: &mut PodDocument, kernel: &Kernel) -> Result<Vec<Found>, Failure> {
        let found = match document.request.command {
            Command::Gc => stale_pairs(document, kernel).await,
            Command::Del => in_teardown(document, kernel).await,
            _ if document.mode()?.kind != ModeKind::Underlay => return Ok(vec![]),
            _ => {
                document.veth = Some(pair(document)?);
                standing(document, &plan::wanted(document)?, kernel).await
            }
        };
        found.context(Code::Io, "cannot read links, addresses and neighbours")
    }

    fn wanted(document: &PodDocument) -> Result<Vec<Placed>, Failure> {
        if document.request.command.tears_down() { Ok(vec![]) } else { plan::wanted(document) }
    }
}

fn pair(document: &PodDocument) -> Result<VethPair, Failure> {
    let container = &document.request.container_id;
    let (host_mac, pod_mac) = names::veth_macs(container);
    let mtu = document.settings.veth_mtu.unwrap_or(document.mode()?.nic.mtu);
    Ok(VethPair { host: names::host_veth(container), host_mac, pod: POD_VETH.to_owned(), pod_mac, mtu })
}

/// What there is of the pair and on it, in whatever state an earlier ADD left it.
async fn standing(document: &PodDocument, wanted: &[Placed], kernel: &Kernel) -> io::Result<Vec<Found>> {
    let Some(pod) = &kernel.pod else { return Ok(vec![]) };
    let (host, peer) = ends(document, &kernel.node, &pod.netlink).await?;
    let mut found = vec![];
    let first = document.mode.as_ref().is_some_and(|mode| mode.first);
    if first && (host.is_some() || peer.is_some()) {
        // The alias follows right after the link: one without died in between. Another one is somebody's who took no
        // notice of ours, if the MAC addresses are the container's.
        let alias = names::alias(&document.request);
        let (host_mac, pod_mac) = names::veth_macs(&document.request.container_id);
        let macs = [(&host, host_mac), (&peer, pod_mac)]
            .iter()
            .all(|(link, mac)| link.as_ref().is_some_and(|link| link.mac == Some(*mac)));
        let owned = host.as_ref().is_some_and(|host| host.alias.is_empty() || host.alias == alias || macs);
        found.push(Found::new(veth(host.as_ref(), Some(&peer.clone().unwrap_or_default())), owned));
    }
    if let Some(peer) = peer.as_ref().filter(|_| first) {
        found.extend(addresses(&pod.netlink, peer).await?);
    }
    if host.is_some() && peer.is_some() {
        found.extend(kernel.sysctls(wanted)?);
    }
    if found.iter().any(|found| !found.placed.object.is_value() && !wanted.contains(&found.placed)) {
        // A new MAC address makes the kernel forget the link's neighbours (`neigh_changeaddr`), and so does the end of its
        // last IPv4 address (`fib_disable_ip`).
        return Ok(found);
    }
    let ours = plan::neighbours(document);
    if let Some(host) = &host {
        found.extend(neighbours(Netns::Node, &kernel.node, host, &ours).await?);
    }
    if let Some(peer) = &peer {
        found.extend(neighbours(Netns::Pod, &pod.netlink, peer, &ours).await?);
    }
    Ok(found)
}

/// The pair's ends. Where one has not its name, somebody may have renamed it: then it is at the other's other end, with its
/// MAC address.
async fn ends(document: &PodDocument, node: &Netlink, pod: &Netlink) -> io::Result<(Option<Link>, Option<Link>)> {
    let container = &document.request.container_id;
    let (host_mac, pod_mac) = names::veth_macs(container);
    let (host, peer) = (node.link(&names::host_veth(container)).await?, pod.link(POD_VETH).await?);
    let renamed = |link: Option<Link>, mac| link.filter(|link| link.mac == Some(mac));
    Ok(match (&host, &peer) {
        (Some(Link { peer: Some(index), .. }), None) => {
            (host.clone(), renamed(pod.link_by_index(*index).await?, pod_mac))
        }
        (None, Some(Link { peer: Some(index), .. })) => {
            (renamed(node.link_by_index(*index).await?, host_mac), peer.clone())
        }
        _ => (host, peer),
    })
}

/// The pair as it is. `peer` is none where nobody has looked.
fn veth(host: Option<&Link>, peer: Option<&Link>) -> Placed {
    let host = host.cloned().unwrap_or_default();
    let peer = peer.cloned().unwrap_or_else(|| Link { name: POD_VETH.to_owned(), ..Link::default() });
    Placed::node(Object::Veth(Veth {
        name: host.name,
        mac: host.mac.unwrap_or_default(),
        peer: peer.name,
        peer_mac: peer.mac.unwrap_or_default(),
        mtu: if host.mtu == peer.mtu { host.mtu } else { 0 },
        alias: host.alias,
        group: host.group,
        up: host.up && peer.up,
    }))
}

async fn neighbours(netns: Netns, netlink: &Netlink, link: &Link, ours: &[IpAddr]) -> io::Result<Vec<Found>> {
    let neighbours = netlink.neighbours(link).await?;
    let found = neighbours.into_iter().map(|neighbour| {
        let owned = ours.contains(&neighbour.address);
        Found::new(Placed { netns, object: Object::Neighbour(neighbour) }, owned)
    });
    Ok(found.collect())
}

async fn addresses(pod: &Netlink, link: &Link) -> io::Result<Vec<Found>> {
    let addresses = pod.addresses_of(link).await?;
    let object = |address| Object::Address(Address { dev: link.name.clone(), address });
    Ok(addresses.into_iter().map(|address| Found::ours(Placed::pod(object(address)))).collect())
}

/// In DEL: the container's pair if this attachment made it, with all that is on it; else the entries that this
/// attachment has on the pair.
async fn in_teardown(document: &PodDocument, kernel: &Kernel) -> io::Result<Vec<Found>> {
    let request = &document.request;
    let Some(host) = kernel.host_veth(document).await? else { return Ok(vec![]) };
    match names::parse_alias(&host.alias) {
        Some((attachment, _)) if attachment != request.attachment() => {
            let ours = plan::neighbours(document);
            let found = neighbours(Netns::Node, &kernel.node, &host, &ours).await?;
            Ok(found.into_iter().filter(Found::is_ours).collect())
        }
        _ => Ok(vec![Found::ours(veth(Some(&host), None))]),
    }
}

/// In GC: the pairs of this network whose attachment is not in the list.
async fn stale_pairs(document: &PodDocument, kernel: &Kernel) -> io::Result<Vec<Found>> {
    let request = &document.request;
    let stale = |link: &Link| {
        names::parse_alias(&link.alias).is_some_and(|(attachment, network)| {
            network == names::network(request) && !request.is_valid_attachment(attachment)
        })
    };
    let links = kernel.node.links().await?;
    Ok(links.iter().filter(|link| stale(link)).map(|link| Found::ours(veth(Some(link), None))).collect())
}
