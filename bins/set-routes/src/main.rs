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
    object::{Object, PROTOCOL, Placed},
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

/// With the first interface's DEL, all routes through the container's link; else the routes to the interface's
/// addresses, also one that a pod which had the address before has left.
async fn on_the_node(document: &PodDocument, kernel: &Kernel) -> io::Result<Vec<Found>> {
    if document.request.command == Command::Del && document.is_first() {
        return through_the_link(&host_veth(&document.request.container_id), kernel).await;
    }
    let mut found = vec![];
    for net in document.nic_addresses() {
        let route = kernel.node.matching_route(net.addr()).await?;
        if let Some(route) = route.filter(|route| route.destination == IpNet::from(net.addr())) {
            let owned = route.protocol == PROTOCOL && plan::is_of_this_pod(document, &route);
            found.push(Found { placed: Placed::node(Object::Route(route)), owned });
        }
    }
    Ok(found)
}

async fn through_the_link(name: &str, kernel: &Kernel) -> io::Result<Vec<Found>> {
    let Some(link) = kernel.node.link(name).await? else { return Ok(vec![]) };
    let filter = RouteFilter { oif: Some(link.index), ours: true, ..RouteFilter::default() };
    let routes = kernel.node.routes(filter).await?;
    Ok(routes.into_iter().map(|route| Found::ours(Placed::node(Object::Route(route)))).collect())
}
