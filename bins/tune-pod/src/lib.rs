//! Sets sysctls and link properties in the pod, and asks the network about its addresses.

mod packet;
mod plan;
mod probe;
mod wire;

use std::io;

use common::{
    document::{Command, PodDocument},
    failure::{Code, Context, Failure},
    harness::{About, Tool},
    kernel::{Kernel, Pod},
    netlink::Link,
    object::{LinkAddress, Netns, Object, Operation, Placed, QueueLength},
    plan::Found,
};

use crate::{
    probe::{Asker, Inquiry},
    wire::Wire,
};

/// The tool.
#[derive(Debug)]
pub struct TunePod;

impl Tool for TunePod {
    const ABOUT: About = About {
        name: "tune-pod",
        does: "Sets the pod's rp_filter and, where configured, its interface's transmit queue length and MAC address, \
               which it announces; before that it asks, where configured, whether another host has the pod's addresses \
               and whether the gateway is there. In DEL puts back what was there.",
        example: "  cni-request < conf.json | detect-mode | tune-pod --explain",
    };

    async fn observe(document: &mut PodDocument, kernel: &Kernel) -> Result<Vec<Found>, Failure> {
        let Some(pod) = kernel.pod.as_ref().filter(|_| document.request.command != Command::Gc) else {
            return Ok(vec![]);
        };
        let wanted = plan::put_back_or_wanted(document)?;
        let mut found = kernel.sysctls(&wanted).context(Code::Io, "cannot read the pod's sysctls")?;
        if wanted.iter().any(|placed| !matches!(placed.object, Object::Sysctl(_))) {
            found.extend(link(document, pod).await?.iter().flat_map(properties));
        }
        Ok(found)
    }

    fn wanted(document: &PodDocument) -> Result<Vec<Placed>, Failure> {
        plan::put_back_or_wanted(document)
    }

    async fn before_add(document: &PodDocument, kernel: &Kernel) -> Result<(), Failure> {
        let settings = &document.settings;
        if !settings.detect_ip_conflict && !settings.detect_gateway {
            return Ok(());
        }
        if settings.detect_ip_conflict {
            let addresses = kernel.node.addresses().await.context(Code::Io, "cannot read the node's addresses")?;
            let addresses: Vec<_> = addresses.iter().map(|entry| entry.net.addr()).collect();
            probe::refuse_the_nodes(document, &addresses)?;
        }
        let (pod, unreadable) = (&kernel.pod()?.netlink, "cannot read the pod's links");
        let links = pod.links().await.context(Code::Io, unreadable)?;
        let Some(link) = links.iter().find(|link| link.name == document.request.ifname) else { return Ok(()) };
        let (netns, wire) = wire_of(link, kernel).await.context(Code::Io, unreadable)?;
        let Some(mac) = wire.mac.filter(|_| wire.arp) else {
            log::warn!(
                "{} is no Ethernet interface on which hosts ask for each other: no conflict and no gateway is detected",
                link.name
            );
            return Ok(());
        };
        let nets = pod.addresses_of(link).await.context(Code::Io, unreadable)?;
        let own = links.iter().filter_map(|link| link.mac).collect();
        let asker = Asker { nic: link.name.clone(), mac, nets, own };
        for mut inquiry in Inquiry::all(document, &asker) {
            let ask = || Wire::open(wire.index)?.inquire(&mut inquiry, &settings.detect_options);
            kernel.within(netns, ask).context(Code::Io, format!("cannot ask the network of {}", asker.nic))??;
        }
        Ok(())
    }

    async fn after_add(document: &PodDocument, kernel: &Kernel, done: &[Operation]) -> Result<(), Failure> {
        let is_mac = |operation: &&Operation| matches!(operation, Operation::Replace { to, .. } if matches!(to.object, Object::LinkAddress(_)));
        let (Some(_), Some(mac)) = (done.iter().find(is_mac), document.nic_mac()) else { return Ok(()) };
        let Some(link) = link(document, kernel.pod()?).await? else { return Ok(()) };
        let announce = || {
            let wire = Wire::open(link.index)?;
            let addresses = document.nic_addresses();
            addresses.iter().try_for_each(|net| wire.send(&packet::announcement(mac, net.addr())))
        };
        kernel
            .within(Netns::Pod, announce)
            .context(Code::Io, format!("cannot announce the MAC address of {}", link.name))
    }
}

/// The link on which an interface's network is asked: itself or, for one of IPvlan, its parent on the node. Those of a parent have one MAC
/// address, and the kernel gives an answer to the one that has the address to which it goes (`ipvlan_addr_lookup`); a probe is from none.
async fn wire_of(link: &Link, kernel: &Kernel) -> io::Result<(Netns, Link)> {
    let parent = match link.peer.filter(|_| link.is_ipvlan() && link.peer_nsid.is_some()) {
        Some(index) => kernel.node.link_by_index(index).await?,
        None => None,
    };
    let parent = parent.filter(|parent| parent.mac == link.mac);
    Ok(parent.map_or_else(|| (Netns::Pod, link.clone()), |parent| (Netns::Node, parent)))
}

async fn link(document: &PodDocument, pod: &Pod) -> Result<Option<Link>, Failure> {
    let ifname = &document.request.ifname;
    pod.netlink.link(ifname).await.context(Code::Io, format!("cannot read the pod's link {ifname}"))
}

/// What every link has and a setting may change.
fn properties(link: &Link) -> Vec<Found> {
    let dev = &link.name;
    let queue = Object::QueueLength(QueueLength { dev: dev.clone(), packets: link.queue_length });
    let mac = link.mac.map(|mac| Object::LinkAddress(LinkAddress { dev: dev.clone(), mac }));
    [Some(queue), mac].into_iter().flatten().map(|object| Found::foreign(Placed::pod(object))).collect()
}
