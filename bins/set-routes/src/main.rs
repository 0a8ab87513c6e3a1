//! Makes the routes in the pod and on the node.

mod plan;

use std::{io, process::ExitCode};

use common::{
    document::{Command, PodDocument},
    failure::{Code, Context, Failure},
    harness::{self, About, Tool},
    kernel::Kernel,
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

/// The routes to the pod's addresses, also one that a pod which had the address before has left.
async fn on_the_node(document: &PodDocument, kernel: &Kernel) -> io::Result<Vec<Found>> {
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
