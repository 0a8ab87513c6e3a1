//! Makes the routes in the pod and on the node.

pub mod plan;

use std::{io, net::IpAddr};

use common::{
    document::{Command, PodDocument, Routing},
    failure::{Code, Context, Failure},
    harness::{About, Tool},
    kernel::{Kernel, Pod},
    names::{POD_VETH, host_veth},
    netlink::{Link, RouteFilter},
    object::{Object, PROTOCOL, Placed, Route},
    plan::{Found, Owner},
    state,
};
use ipnet::IpNet;

use crate::plan::Teardown;

/// The tool.
#[derive(Debug)]
pub struct SetRoutes;

impl Tool for SetRoutes {
    const ABOUT: About = About {
        name: "set-routes",
        does: "Makes the routes that lead from a pod through its node to Services and back; in DEL removes them and \
               puts back those that had to move. With --follow it reads what sync-cidrs --watch prints, and gives every \
               pod of the node that is running the routes that an ADD would give it now.",
        example: "  cni-request < conf.json | detect-mode | sync-cidrs | mk-veth | set-routes --explain\n  \
                  sync-cidrs --watch | set-routes --follow",
    };

    async fn observe(document: &mut PodDocument, kernel: &Kernel) -> Result<Vec<Found>, Failure> {
        if document.request.command == Command::Gc {
            return stale(document, kernel).await.context(Code::Io, "cannot read the node's routes");
        }
        let pod = in_the_pod(document, kernel).await.context(Code::Io, "cannot read the pod's routes")?;
        let node = on_the_node(document, kernel).await.context(Code::Io, "cannot read the node's routes")?;
        Ok([pod, node].concat())
    }

    fn wanted(document: &PodDocument) -> Result<Vec<Placed>, Failure> {
        if document.request.command.tears_down() {
            let back = document.routing.stays.iter().cloned();
            return Ok(back.map(|route| Placed::pod(Object::Route(route))).collect());
        }
        plan::wanted(document)
    }
}

async fn in_the_pod(document: &mut PodDocument, kernel: &Kernel) -> io::Result<Vec<Found>> {
    let Some(pod) = &kernel.pod else {
        document.routing = Routing::default();
        return Ok(vec![]);
    };
    let deletes = document.request.command == Command::Del;
    let filter = RouteFilter { refusing: !deletes, ..RouteFilter::default() };
    let destinations = plan::destinations(document);
    let counts = |route: &Route| !route.is_daemons() || destinations.contains(&route.destination);
    let routes = pod.netlink.routes_where(filter, counts).await?;
    let ours: Vec<bool> = if deletes {
        if document.numbers.is_none() {
            // The document was lost, or the first version made it.
            document.numbers = document.numbers().as_in(&pod.netlink.rules().await?);
        }
        let uplink_needed = uplink_needed(document, kernel, pod).await?;
        let teardown = Teardown::new(document, &routes, uplink_needed);
        let ours = routes.iter().map(|route| teardown.removes(route)).collect();
        document.routing = Routing { stays: teardown.returning, ..Routing::default() };
        ours
    } else {
        routes.iter().map(|route| plan::is_replaced(document, route)).collect()
    };
    let found = |(route, ours)| {
        let owner = match ours {
            true => Owner::Ours,
            false if !deletes && plan::serves(document, &route) => Owner::Serves,
            false => Owner::Foreign,
        };
        Found { placed: Placed::pod(Object::Route(route)), owner }
    };
    Ok(routes.into_iter().zip(ours).map(found).collect())
}

/// In DEL: whether the pod's overlay interface is still another attachment's way into the node. Where its document was lost, the node
/// may know: it has a route by way of that interface to each attachment's addresses, if it has a link to it.
async fn uplink_needed(document: &PodDocument, kernel: &Kernel, pod: &Pod) -> io::Result<bool> {
    let opened = document.others.iter().any(|other| other.opens_uplink);
    if opened || document.is_first() || pod.netlink.link(POD_VETH).await?.is_some() {
        return Ok(true);
    }
    let (own, uplink) = (document.nic_addresses(), overlay_addresses(document, kernel).await?);
    let of_another = |route: &Route| {
        route.gateway.is_some_and(|gateway| uplink.contains(&gateway))
            && !own.iter().any(|net| route.destination == IpNet::from(net.addr()))
    };
    let routes = kernel.node.routes(RouteFilter { ours: true, ..Default::default() }).await?;
    Ok(routes.iter().any(of_another))
}

/// The addresses of the pod's first interface.
async fn overlay_addresses(document: &PodDocument, kernel: &Kernel) -> io::Result<Vec<IpAddr>> {
    let Some(pod) = &kernel.pod else { return Ok(vec![]) };
    let Some(first) = pod.netlink.link(&document.settings.pod_default_cni_nic).await? else { return Ok(vec![]) };
    let addresses = pod.netlink.addresses().await?.into_iter().filter(|address| address.link == first.index);
    Ok(addresses.map(|address| address.net.addr()).collect())
}

/// The routes to the interface's addresses, those that the lookup finds included: a pod that had the address before may
/// have left one. With the first interface's DEL, all routes through the container's link.
async fn on_the_node(document: &PodDocument, kernel: &Kernel) -> io::Result<Vec<Found>> {
    let deletes = document.request.command == Command::Del;
    let link = match deletes {
        true => kernel.host_veth(document).await?,
        false => kernel.node.link(&host_veth(&document.request.container_id)).await?,
    };
    let mut routes = through(link.as_ref(), kernel).await?;
    let addresses: Vec<_> = document.nic_addresses().iter().map(|net| net.addr()).collect();
    let all = deletes && document.is_first();
    if !all {
        for side in document.mode.iter().flat_map(|mode| &mode.host_side) {
            routes.extend(through(kernel.node.link(&side.dev).await?.as_ref(), kernel).await?);
        }
        for address in addresses.iter().copied() {
            let matching = match kernel.node.matching_route(address).await? {
                None => refusing_route(address, document, kernel).await?,
                matching => matching,
            };
            routes.extend(matching.filter(|route| route.destination == IpNet::from(address)));
        }
    }
    let overlay = if deletes { overlay_addresses(document, kernel).await? } else { vec![] };
    let found = |route: Route| {
        // By the same link go routes to the addresses of the pod's other interfaces.
        let own = all || addresses.iter().any(|address| route.destination == IpNet::from(*address));
        let refuses = route.refusal.is_some();
        let ours = own && (route.protocol == PROTOCOL || refuses);
        let by_pair = link.as_ref().is_some_and(|link| link.name == route.dev);
        let elsewhere = ours && !refuses && !by_pair && !plan::leads_by_overlay(document, &route, &overlay);
        let owner = match (ours, elsewhere) {
            (true, false) => Owner::Ours,
            // A pod that had the address before may have left it, or has it still.
            (true, true) if !deletes => {
                state::holder(route.destination.addr(), &document.request).map_or(Owner::Ours, Owner::Pod)
            }
            _ => Owner::Foreign,
        };
        Found { placed: Placed::node(Object::Route(route)), owner }
    };
    Ok(routes.into_iter().map(found).collect())
}

/// The route in our table on the node that refuses what goes to an address, which the lookup does not find.
async fn refusing_route(address: IpAddr, document: &PodDocument, kernel: &Kernel) -> io::Result<Option<Route>> {
    let filter = RouteFilter { table: Some(document.numbers().node_table), refusing: true, ..RouteFilter::default() };
    let mut routes = kernel.node.routes(filter).await?.into_iter();
    Ok(routes.find(|route| route.refusal.is_some() && route.destination == IpNet::from(address)))
}

/// In GC: the node's routes to stale attachments. Those of a pod whose pair went have gone with it.
async fn stale(gc: &PodDocument, kernel: &Kernel) -> io::Result<Vec<Found>> {
    let mut found = vec![];
    for document in state::stale(&gc.request) {
        let addresses: Vec<_> = document.nic_addresses().iter().map(|net| net.addr()).collect();
        let link = kernel.host_veth(&document).await?;
        let mut routes = through(link.as_ref(), kernel).await?;
        for side in document.mode.iter().flat_map(|mode| &mode.host_side) {
            let routes_to_side = through(kernel.node.link(&side.dev).await?.as_ref(), kernel).await?.into_iter();
            routes.extend(routes_to_side.filter(|route| route.gateway == Some(side.address)));
        }
        let own = |route: &Route| addresses.iter().any(|address| route.destination == IpNet::from(*address));
        found.extend(routes.into_iter().filter(own).map(|route| Found::ours(Placed::node(Object::Route(route)))));
    }
    Ok(found)
}

/// The routes of ours out of a link of the node.
async fn through(link: Option<&Link>, kernel: &Kernel) -> io::Result<Vec<Route>> {
    match link {
        Some(link) => kernel.node.routes(RouteFilter { oif: Some(link.index), ours: true, ..Default::default() }).await,
        None => Ok(vec![]),
    }
}
