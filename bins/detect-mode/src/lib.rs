//! Decides how a pod's interface is served, apart from the program around it: the node agent decides it again.

mod node;
pub mod observe;
pub mod plan;
pub mod routing;

use std::{io, net::IpAddr};

use common::{
    document::{Command, Mode, ModeKind, Nic, PodDocument, Routing, Share},
    failure::{Code, Context, Failure},
    kernel::Kernel,
    names::POD_VETH,
    netlink::{Link, Netlink},
    object::{Family, Route},
    result::CniResult,
    state,
};
use ipnet::IpNet;

use crate::{node::PodAddress, observe::Pod, routing::View};

/// Whether there is anything to decide.
pub fn concerns(command: Command) -> bool {
    matches!(command, Command::Add | Command::Check)
}

/// Completes the sections `mode`, `others`, `numbers` and `routing`. What they have already is what was decided before: CHECK
/// compares with that, and the node agent, which decides anew, keeps the mode.
///
/// # Errors
/// What the kernel says, and what the configuration asks for and cannot be had.
pub async fn detect(document: &mut PodDocument, kernel: &Kernel) -> Result<(), Failure> {
    let (request, settings) = (&document.request, &document.settings);
    let netlink = &kernel.pod()?.netlink;
    let unreadable = "cannot read the pod's network";
    let mut pod = Pod::read(netlink).await.context(Code::Io, unreadable)?;
    let link = pod.link(&request.ifname).cloned().ok_or_else(|| {
        Failure::new(Code::InvalidEnvironment, format!("the pod has no interface {}", request.ifname))
            .details("CNI_IFNAME must name the interface that the plugins before this one made")
    })?;
    // Only then: a pod with one interface need not look for the documents of others.
    let others = pod.interfaces().len() > 1;
    document.others = if others { state::others(request) } else { vec![] };
    let others = !document.others.is_empty() || others && state::is_another_leaving(request);
    let alone = document.is_first() && settings.pod_default_route_nic.is_none() && !others;
    if request.command == Command::Check && document.mode.is_some() {
        if alone {
            // Its table has gone with the last further one.
            document.routing = Routing::default();
        }
        if !document.routing.tables.is_empty() {
            pod.complete(netlink).await.context(Code::Io, unreadable)?;
        }
        let owner = routing::owner(&pod, &request.ifname, settings, &document.others);
        if let Some(owner) = owner.filter(|owner| Some(*owner) != settings.pod_default_route_nic.as_deref()) {
            // Another attachment has decided since.
            document.routing.stays.retain(|route| route.dev == owner);
        }
        document.routing.leaves = routing::intruders(&pod, document);
        return Ok(());
    }
    let mode = match &document.mode {
        Some(decided) => decided.mode,
        None => plan::mode(settings, &request.ifname, pod.link(POD_VETH).is_some())?,
    };
    let result = CniResult::previous(&request.config)?;
    let given: Vec<_> = result.ips_of(&request.ifname).map(|ip| ip.address.addr()).collect();
    if mode != ModeKind::Disable && document.mode.is_none() {
        pod.settle(netlink, &link, &given).await?;
    }
    // The addresses that were given to the interface come before those that it found itself.
    let mut addresses = pod.addresses_of(&request.ifname);
    addresses.sort_by_key(|net| given.iter().position(|address| *address == net.addr()).unwrap_or(given.len()));
    let nic = Nic { name: link.name, mtu: link.mtu, addresses };
    let is_first = document.is_first();
    if mode == ModeKind::Disable {
        let (node_addresses, uplink, host_side) = Default::default();
        document.mode = Some(Mode { mode, first: is_first, nic, node_addresses, uplink, host_side });
        return Ok(());
    }
    if nic.addresses.is_empty() && document.mode.is_none() {
        log::warn!("{} has no address yet: its way to Services comes with one, if the node agent runs", nic.name);
    }
    let undecided = document.mode.is_none();
    let read = match (alone, undecided) {
        (false, _) => pod.complete(netlink).await,
        (true, true) => pod.survey(netlink).await,
        (true, false) => Ok(()),
    };
    read.context(Code::Io, unreadable)?;
    if undecided {
        let node_table = node::table(&kernel.node, settings.host_rule_table).await;
        let node_table = node_table.context(Code::Io, "cannot read the node's rules and routes")?;
        document.numbers = Some(plan::numbers(settings, &pod, node_table));
    }
    let first = &settings.pod_default_cni_nic;
    let own = towards(&nic.addresses, |net| result.gateway_of(net.addr()));
    let (pod_addresses, beside) = match is_first {
        true => (own, vec![]),
        false => {
            let gateway = |net: &IpNet| gateway_of(&document.others, first, Family::of(net.addr()));
            (towards(&pod.addresses_of(first), gateway), own)
        }
    };
    let overlay = mode == ModeKind::Overlay;
    let node_addresses = node::addresses(&kernel.node, &pod_addresses, &beside, overlay).await;
    let node_addresses = node_addresses.context(Code::Io, "cannot read the node's addresses")?;
    let ways = match pod.link(first).filter(|_| overlay) {
        Some(link) => ways_out(&pod, link, &kernel.node).await.context(Code::Io, "cannot read the node's addresses")?,
        None => vec![],
    };
    let uplink = match (plan::uplink(mode, settings, &nic, &pod, &node_addresses, &ways), &document.mode) {
        // A running pod that has lost its routes gets back what it had.
        (Err(_), Some(decided)) => decided.uplink.clone(),
        (uplink, _) => uplink?,
    };
    for net in pod.addresses_of(&uplink.dev).iter().filter(|_| undecided && overlay) {
        let family = Family::of(net.addr());
        if uplink.source(family).is_none() {
            log::warn!(
                "nothing leads out of {} from {}: the pod has no Services over {family}",
                uplink.dev,
                net.addr()
            );
        }
    }
    let promised = result.routes_of(&nic.name);
    let view = View {
        settings,
        others: &document.others,
        nic: &nic,
        uplink_table: document.numbers().pod_table,
        overlay,
        ways: &ways,
        pod: &pod,
        promised: &promised,
        decided: &document.routing,
    };
    let routing = if alone { Routing::default() } else { routing::routing(view)? };
    let host_side = match pod.link(&uplink.dev).filter(|_| overlay) {
        Some(link) => node::sides(&kernel.node, link, &uplink)
            .await
            .context(Code::Io, "cannot read the node's links and routes")?,
        None => vec![],
    };
    document.mode = Some(Mode { mode, first: is_first, nic, node_addresses, uplink, host_side });
    document.routing = routing;
    Ok(())
}

/// The ways out by the pod's overlay interface, one of each family at most.
async fn ways_out(pod: &Pod, link: &Link, node: &Netlink) -> io::Result<Vec<Route>> {
    let nets = pod.addresses_of(&link.name);
    let mut ways = vec![];
    for family in Family::ALL {
        if !nets.iter().any(|net| Family::of(net.addr()) == family) {
            continue;
        }
        let way = match pod.default_route(&link.name, family) {
            Some(route) => Some(route.clone()),
            None => {
                let near = node::near(node, link, &nets).await?;
                pod.way_out(&link.name, family, &near)
            }
        };
        ways.extend(way);
    }
    Ok(ways)
}

/// The addresses that the node is asked its way to, with the next hop where one is known.
fn towards(addresses: &[IpNet], gateway: impl Fn(&IpNet) -> Option<IpAddr>) -> Vec<PodAddress> {
    addresses.iter().map(|net| (*net, gateway(net))).collect()
}

/// The next hop of the default route that another of the pod's attachments was given.
fn gateway_of(others: &[Share], nic: &str, family: Family) -> Option<IpAddr> {
    let of_nic = others.iter().filter(|other| other.ifname == nic).flat_map(|other| &other.promised);
    of_nic.filter(|route| route.destination == family.default_route()).find_map(|route| route.gateway)
}
