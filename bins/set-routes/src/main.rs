//! Makes the routes in the pod and on the node.

mod plan;

use std::{io, process::ExitCode};

use common::{
    document::{Command, PodDocument},
    failure::{Code, Context, Failure},
    harness::{self, About, Tool},
    kernel::Kernel,
    names::host_veth,
    netlink::RouteFilter,
    object::{Object, PROTOCOL, Placed, Route},
    plan::Found,
};
use ipnet::IpNet;

struct SetRoutes;

fn main() -> ExitCode {
    harness::run::<SetRoutes>()
}

impl Tool for SetRoutes {
    const ABOUT: About = About {
        name: "set-routes",
        does: "Makes the routes that lead from a pod through its node to Services and back; in DEL removes them and \
               puts back those that had to move.",
        example: "  cni-request < conf.json | detect-mode | sync-cidrs | mk-veth | set-routes --explain",
    };

    async fn observe(document: &mut PodDocument, kernel: &Kernel) -> Result<Vec<Found>, Failure> {
        if document.request.command == Command::Gc {
            return Ok(vec![]);
        }
        let mut found = in_the_pod(document, kernel).await.context(Code::Io, "cannot read the pod's routes")?;
        found.extend(on_the_node(document, kernel).await.context(Code::Io, "cannot read the node's routes")?);
        Ok(found)
    }

    fn wanted(document: &PodDocument) -> Result<Vec<Placed>, Failure> {
        if document.request.command.tears_down() {
            return Ok(document.put_back(|placed| matches!(placed.object, Object::Route(_))));
        }
        plan::wanted(document)
    }
}

async fn in_the_pod(document: &PodDocument, kernel: &Kernel) -> io::Result<Vec<Found>> {
    let Some(pod) = &kernel.pod else { return Ok(vec![]) };
    let routes = pod.netlink.routes(RouteFilter::default()).await?;
    let ours: Vec<bool> = match document.request.command {
        Command::Del => routes.iter().map(|route| plan::is_removed(document, route, &routes)).collect(),
        _ => routes.iter().map(|route| plan::is_replaced(document, route)).collect(),
    };
    let found = |(route, owned)| Found { placed: Placed::pod(Object::Route(route)), owned };
    Ok(routes.into_iter().zip(ours).map(found).collect())
}

/// The routes to the interface's addresses, those that the lookup finds included: a pod that had the address before may
/// have left one. With the first interface's DEL, all routes through the container's link.
async fn on_the_node(document: &PodDocument, kernel: &Kernel) -> io::Result<Vec<Found>> {
    let host_veth = host_veth(&document.request.container_id);
    let mut routes = through(&host_veth, kernel).await?;
    if !(document.request.command == Command::Del && document.is_first()) {
        for side in document.mode.iter().flat_map(|mode| &mode.host_side) {
            routes.extend(through(&side.dev, kernel).await?);
        }
        let addresses: Vec<_> = document.nic_addresses().iter().map(|net| net.addr()).collect();
        routes.retain(|route| addresses.iter().any(|address| route.destination == IpNet::from(*address)));
        for address in addresses {
            let matching = kernel.node.matching_route(address).await?;
            routes.extend(matching.filter(|route| route.destination == IpNet::from(address)));
        }
    }
    Ok(routes.into_iter().map(|route| found_on_the_node(document, route)).collect())
}

fn found_on_the_node(document: &PodDocument, route: Route) -> Found {
    let owned = route.protocol == PROTOCOL && plan::is_of_this_pod(document, &route);
    Found { placed: Placed::node(Object::Route(route)), owned }
}

/// The routes of ours out of a link of the node.
async fn through(name: &str, kernel: &Kernel) -> io::Result<Vec<Route>> {
    match kernel.node.link(name).await? {
        Some(link) => kernel.node.routes(RouteFilter { oif: Some(link.index), ours: true, ..Default::default() }).await,
        None => Ok(vec![]),
    }
}
