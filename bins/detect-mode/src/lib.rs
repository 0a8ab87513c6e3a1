//! Decides how a pod's interface is served, apart from the program around it: the node agent decides it again.

mod addresses;
mod node;
pub mod observe;
pub mod plan;
pub mod routing;

use std::{collections::HashSet, io, net::IpAddr};

use common::{
    cidrs,
    document::{Command, Mode, ModeKind, Nic, PodDocument, Routing, Uplink},
    failure::{Code, Context, Failure},
    kernel::{Kernel, Pod as Sandbox},
    names::POD_VETH,
    netlink::{Link, Netlink},
    object::{Family, PROTOCOL_RA, Route, is_link_local},
    result::CniResult,
    settings::ModeSetting,
    state,
};
use ipnet::IpNet;

use crate::{addresses::Claims, node::PodAddress, observe::Pod, plan::First, routing::View};

/// Whether there is anything to decide.
pub fn concerns(command: Command) -> bool {
    matches!(command, Command::Add | Command::Check)
}

const UNREADABLE: &str = "cannot read the pod's network";

/// Completes the sections `mode`, `others`, `numbers` and `routing`. What they have already is what was decided before: CHECK
/// compares with that, and the node agent, which decides anew, keeps the mode.
///
/// # Errors
/// What the kernel says, and what the configuration asks for and cannot be had.
pub async fn detect(document: &mut PodDocument, kernel: &Kernel) -> Result<(), Failure> {
    let Sandbox { netns, netlink } = kernel.pod()?;
    if document.mode.is_none() {
        document.netns = Some(netns.id());
    }
    let mut pod = Pod::read(netlink).await.context(Code::Io, UNREADABLE)?;
    let ifname = document.request.ifname.clone();
    let link = pod.link(&ifname).cloned().ok_or_else(|| {
        Failure::new(Code::InvalidEnvironment, format!("the pod has no interface {ifname}"))
            .details("CNI_IFNAME must name the interface that the plugins before this one made")
    })?;
    let alone = note_others(document, &pod);
    if document.request.command == Command::Check && document.mode.is_some() {
        return compare(document, netlink, &mut pod, alone).await;
    }
    let kind = match &document.mode {
        Some(decided) => decided.kind,
        None => {
            let first = first(document, kernel, &pod).await.context(Code::Io, "cannot read the node's routes")?;
            plan::mode(&document.settings, &ifname, pod.link(POD_VETH).is_some(), &first)?
        }
    };
    let result = CniResult::previous(&document.request.config)?;
    if kind != ModeKind::Disable && document.mode.is_none() {
        let given: Vec<_> = given_to(&result, &ifname).iter().map(IpNet::addr).collect();
        pod.settle(netlink, &link, &given).await?;
    }
    let mut nic = nic(document, &link, &pod, &result);
    if kind == ModeKind::Disable {
        let (node_addresses, uplink, host_side) = Default::default();
        document.mode = Some(Mode { kind, first: document.is_first(), nic, node_addresses, uplink, host_side });
        return Ok(());
    }
    refuse_others(document, &kernel.node, &link, &result, &mut nic).await?;
    pod.forget(&nic.name, &nic.refused);
    document.others.iter().for_each(|other| pod.forget(&other.ifname, &other.refused));
    if nic.addresses.is_empty() && document.mode.is_none() {
        log::warn!(
            "{} has no address yet: its way to Services comes, if the node agent runs, with one that it was given or that is formed \
             of its MAC address",
            nic.name
        );
    }
    survey(document, kernel, &mut pod, alone).await?;
    let attachment = Attachment { document, kernel, pod: &pod, result: &result, nic, kind };
    let (mode, routing) = attachment.decide(alone).await?;
    document.mode = Some(mode);
    document.routing = routing;
    Ok(())
}

/// Completes the section `others`. Whether the pod has no interface but this one that needs anything of ours.
fn note_others(document: &mut PodDocument, pod: &Pod) -> bool {
    // Only then: a pod with one interface need not look for the documents of others.
    let several = pod.interfaces().len() > 1;
    document.others = if several { state::others(&document.request) } else { vec![] };
    let others = !document.others.is_empty() || several && state::is_another_leaving(&document.request);
    document.is_first() && document.settings.pod_default_route_nic.is_none() && !others
}

/// What is to be known of the pod's first interface to choose a mode.
async fn first(document: &PodDocument, kernel: &Kernel, pod: &Pod) -> io::Result<First> {
    let Some(link) = pod.link(&document.settings.pod_default_cni_nic) else { return Ok(First::default()) };
    let is_open = document.settings.mode == ModeSetting::Auto && !document.is_first() && pod.link(POD_VETH).is_none();
    let underlay = match is_open {
        true => node::underlay(kernel, link, &pod.global_addresses_of(&link.name)).await?,
        false => None,
    };
    Ok(First { kind: link.kind.clone(), underlay })
}

/// In CHECK: what was decided is so still, but for what other attachments have decided since, and what somebody put beside it.
async fn compare(document: &mut PodDocument, netlink: &Netlink, pod: &mut Pod, alone: bool) -> Result<(), Failure> {
    if alone {
        // Its table has gone with the last further one.
        document.routing = Routing::default();
    }
    if document.routing != Routing::default() {
        pod.complete(netlink).await.context(Code::Io, UNREADABLE)?;
    }
    // An interface's that has gone stays no more.
    document.routing.stays.retain(|stay| pod.link(&stay.dev).is_some());
    let settings = &document.settings;
    let owner = routing::owner(pod, &document.request.ifname, settings, &document.others);
    let is_anothers =
        |owner: &&str| settings.tune_pod_routes && Some(*owner) != settings.pod_default_route_nic.as_deref();
    if let Some(owner) = owner.filter(is_anothers) {
        // Another attachment has decided since, in the families in which its interface was given a default route.
        let is_its =
            |route: &&Route| route.dev == owner && route.destination.prefix_len() == 0 && route.protocol != PROTOCOL_RA;
        let decided: Vec<Route> = pod.main_routes().filter(is_its).cloned().collect();
        let stays = &mut document.routing.stays;
        stays.retain(|stay| !decided.iter().any(|route| route.destination == stay.destination));
        stays.extend(decided);
    }
    document.routing.leaves = routing::intruders(pod, document);
    Ok(())
}

/// The interface. The addresses that were given to it come before those that it found itself.
fn nic(document: &PodDocument, link: &Link, pod: &Pod, result: &CniResult) -> Nic {
    let decided = document.mode.as_ref().map(|mode| &mode.nic);
    let mac = decided.and_then(|nic| nic.mac).or_else(|| result.mac_of(&link.name)).or(link.mac);
    let (given, mut addresses): (Vec<_>, _) = (given_to(result, &link.name), pod.global_addresses_of(&link.name));
    addresses.sort_by_key(|net| given.iter().position(|given| given.addr() == net.addr()).unwrap_or(given.len()));
    let found = match decided {
        _ if !given.is_empty() => vec![],
        // No container runs yet that could give it any.
        None => addresses.iter().map(IpNet::addr).collect(),
        // Documents of earlier versions do not say it.
        Some(nic) if nic.found.is_empty() => nic.addresses.iter().map(IpNet::addr).collect(),
        Some(nic) => nic.found.clone(),
    };
    Nic { name: link.name.clone(), mtu: link.mtu, mac, addresses, found, refused: vec![] }
}

/// Takes out of the interface's addresses those that are not the pod's.
async fn refuse_others(
    document: &PodDocument,
    node: &Netlink,
    link: &Link,
    result: &CniResult,
    nic: &mut Nic,
) -> Result<(), Failure> {
    let given = given_to(result, &nic.name);
    let is_known =
        |net: &IpNet| given.iter().any(|given| given.addr() == net.addr()) || nic.found.contains(&net.addr());
    if nic.addresses.iter().all(is_known) {
        return Ok(());
    }
    let claims =
        claims(document, node, nic, link, result).await.context(Code::Io, "cannot read the node's addresses")?;
    (nic.addresses, nic.refused) = nic.addresses.drain(..).partition(|net| claims.include(net.addr()));
    let known = document.mode.as_ref().map(|mode| &mode.nic.refused[..]).unwrap_or_default();
    for net in nic.refused.iter().filter(|net| !known.contains(net)) {
        log::warn!(
            "{}: the node does not lead {} to the pod: it was not given to {}, is no free address of its subnets, and is not \
             formed of its MAC address",
            document.request.attachment(),
            net.addr(),
            nic.name
        );
    }
    Ok(())
}

/// The addresses that the plugins before this one gave to an interface.
fn given_to(result: &CniResult, ifname: &str) -> Vec<IpNet> {
    result.ips_of(ifname).map(|ip| ip.address).collect()
}

/// What the addresses are known by that the pod can have on an interface.
async fn claims(
    document: &PodDocument,
    node: &Netlink,
    nic: &Nic,
    link: &Link,
    result: &CniResult,
) -> io::Result<Claims> {
    let given = given_to(result, &nic.name);
    let mut others: HashSet<_> = node.addresses().await?.iter().map(|address| address.net.addr()).collect();
    others.extend(next_hops(document, result));
    let cluster = state::cluster().unwrap_or_default();
    let cluster = cidrs::resolve(&document.settings, &cluster["cidrs"], Command::Add, &given).unwrap_or_default();
    Ok(Claims {
        found: nic.found.clone(),
        macs: nic.mac.into_iter().chain(document.nic_mac()).collect(),
        shares_mac: link.is_ipvlan(),
        others,
        cluster: [cluster.service, cluster.pod].concat(),
        given,
    })
}

/// The next hops of the pod's routes, as its networks have them.
fn next_hops(document: &PodDocument, result: &CniResult) -> Vec<IpAddr> {
    let given = result.ips.iter().filter_map(|ip| ip.gateway).chain(result.routes.iter().filter_map(|route| route.gw));
    let others = document.others.iter().flat_map(|other| &other.promised).filter_map(|route| route.gateway);
    let networks = document.others.iter().map(|other| &other.settings).chain([&document.settings]);
    given.chain(others).chain(networks.flat_map(|settings| &settings.policy_routes).map(|policy| policy.gw)).collect()
}

/// Reads what else is to be known of the pod, and completes the section `numbers`.
async fn survey(document: &mut PodDocument, kernel: &Kernel, pod: &mut Pod, alone: bool) -> Result<(), Failure> {
    let netlink = &kernel.pod()?.netlink;
    let undecided = document.mode.is_none();
    let read = match (alone, undecided) {
        (false, _) => pod.complete(netlink).await,
        (true, true) => pod.survey(netlink).await,
        (true, false) => Ok(()),
    };
    read.context(Code::Io, UNREADABLE)?;
    if undecided {
        let node_table = node::table(&kernel.node, document.settings.host_rule_table).await;
        let node_table = node_table.context(Code::Io, "cannot read the node's rules and routes")?;
        document.numbers = Some(plan::numbers(&document.settings, pod, node_table));
    }
    Ok(())
}

/// What is known when it is decided how an interface is served.
struct Attachment<'a> {
    document: &'a PodDocument,
    kernel: &'a Kernel,
    pod: &'a Pod,
    result: &'a CniResult,
    nic: Nic,
    kind: ModeKind,
}

impl Attachment<'_> {
    async fn decide(self, alone: bool) -> Result<(Mode, Routing), Failure> {
        let node_addresses = self.node_addresses().await.context(Code::Io, "cannot read the node's addresses")?;
        let ways = self.ways_out().await.context(Code::Io, "cannot read the node's addresses")?;
        let uplink = self.uplink(&node_addresses, &ways)?;
        let routing = if alone { Routing::default() } else { self.routing(&ways)? };
        let host_side = match self.pod.link(&uplink.dev).filter(|_| self.is_overlay()) {
            Some(link) => node::sides(self.kernel, link, &uplink)
                .await
                .context(Code::Io, "cannot read the node's links and routes")?,
            None => vec![],
        };
        let Self { document, kind, nic, .. } = self;
        Ok((Mode { kind, first: document.is_first(), nic, node_addresses, uplink, host_side }, routing))
    }

    fn is_overlay(&self) -> bool {
        self.kind == ModeKind::Overlay
    }

    /// The name of the pod's first interface.
    fn first(&self) -> &str {
        &self.document.settings.pod_default_cni_nic
    }

    /// The node's addresses for the pod: the same whichever of its attachments this one is.
    async fn node_addresses(&self) -> io::Result<Vec<IpAddr>> {
        let towards = |nic: &str| -> Vec<PodAddress> {
            let nets = self.pod.global_addresses_of(nic).into_iter();
            nets.map(|net| (net, self.router(nic, net))).collect()
        };
        let others = self.document.others.iter().map(|other| other.ifname.as_str());
        let further = others.chain([self.nic.name.as_str()]).filter(|nic| *nic != self.first());
        let beside: Vec<_> = further.flat_map(towards).collect();
        node::addresses(&self.kernel.node, &towards(self.first()), &beside, self.is_overlay()).await
    }

    /// The next hop from an address of an interface, as its prevResult has it: one in its subnet, if there are several. The node has no one way
    /// to a link-local one.
    fn router(&self, nic: &str, net: IpNet) -> Option<IpAddr> {
        let mut routers = match self.document.others.iter().find(|other| other.ifname == nic) {
            Some(other) => other.routers(),
            None if nic == self.nic.name => self.result.routers_of(nic),
            None => vec![],
        };
        routers.retain(|router| Family::same(*router, net.addr()) && !is_link_local(*router));
        routers.iter().find(|router| net.contains(*router)).or(routers.first()).copied()
    }

    /// In overlay mode, the ways out by the pod's overlay interface, one of each family at most.
    async fn ways_out(&self) -> io::Result<Vec<Route>> {
        let Some(link) = self.pod.link(self.first()).filter(|_| self.is_overlay()) else { return Ok(vec![]) };
        let nets = self.pod.global_addresses_of(&link.name);
        let mut families = Family::ALL.to_vec();
        families.retain(|family| nets.iter().any(|net| Family::of(net.addr()) == *family));
        let default = |family: Family| self.pod.default_route(&link.name, family).cloned();
        let near = match families.iter().all(|family| default(*family).is_some()) {
            true => vec![],
            false => node::near(self.kernel, link, &nets).await?,
        };
        let way = |family| default(family).or_else(|| self.pod.way_out(&link.name, family, &near));
        Ok(families.into_iter().filter_map(way).collect())
    }

    fn uplink(&self, node_addresses: &[IpAddr], ways: &[Route]) -> Result<Uplink, Failure> {
        let Self { document, pod, nic, kind, .. } = self;
        let uplink = match (plan::uplink(*kind, &document.settings, nic, pod, node_addresses, ways), &document.mode) {
            // A running pod that has lost its routes gets back what it had.
            (Err(_), Some(decided)) => decided.uplink.clone(),
            (uplink, _) => uplink?,
        };
        for net in pod.global_addresses_of(&uplink.dev).iter().filter(|_| document.mode.is_none() && self.is_overlay())
        {
            let family = Family::of(net.addr());
            if uplink.source(family).is_none() {
                log::warn!(
                    "nothing leads out of {} from {}: the pod has no Services over {family}",
                    uplink.dev,
                    net.addr()
                );
            }
        }
        Ok(uplink)
    }

    fn routing(&self, ways: &[Route]) -> Result<Routing, Failure> {
        let (promised, gateways) = (self.result.routes_of(&self.nic.name), self.result.gateways_of(&self.nic.name));
        let view = View {
            settings: &self.document.settings,
            others: &self.document.others,
            nic: &self.nic,
            uplink_table: self.document.numbers().pod_table,
            overlay: self.is_overlay(),
            ways,
            pod: self.pod,
            promised: &promised,
            gateways: &gateways,
            decided: &self.document.routing,
        };
        if self.document.mode.is_none() {
            view.check()?;
        }
        Ok(routing::routing(view))
    }
}
