//! Decides how a pod's interface is served.

mod node;

use std::process::ExitCode;

use common::{
    document::{Command, Mode, ModeKind, Nic, PodDocument, Routing},
    failure::{Code, Context, Failure},
    harness::{self, About},
    kernel::Kernel,
    names::{POD_VETH, host_veth},
    result::CniResult,
};

use detect_mode::{
    observe, plan,
    routing::{self, View},
};

const ABOUT: About = About {
    name: "detect-mode",
    does: "Decides which mode applies to the pod's interface (underlay, overlay or none), and notes the interface's \
           addresses and the node's. Changes nothing.",
    example: "  cni-request < conf.json | detect-mode | jq .mode",
};

fn main() -> ExitCode {
    harness::run_filter(ABOUT, |document, _| harness::block_on(detect(document))?)
}

async fn detect(document: &mut PodDocument) -> Result<(), Failure> {
    if !matches!(document.request.command, Command::Add | Command::Check) {
        return Ok(());
    }
    let kernel = Kernel::open(&document.request)?;
    let (request, settings) = (&document.request, &document.settings);
    let netlink = &kernel.pod()?.netlink;
    let unreadable = "cannot read the pod's network";
    let mut pod = observe::Pod::read(netlink).await.context(Code::Io, unreadable)?;
    let link = pod.link(&request.ifname).cloned().ok_or_else(|| {
        Failure::new(Code::InvalidEnvironment, format!("the pod has no interface {}", request.ifname))
            .details("CNI_IFNAME must name the interface that the plugins before this one made")
    })?;
    let mode = plan::mode(settings, &request.ifname, pod.link(POD_VETH).is_some())?;
    let result = CniResult::previous(&request.config)?;
    let ips: Vec<_> = result.ips_of(&request.ifname).map(|ip| (ip.address, ip.gateway)).collect();
    let nic = Nic { name: link.name, mtu: link.mtu, addresses: ips.iter().map(|(net, _)| *net).collect() };
    let first = document.is_first();
    if mode == ModeKind::Disable {
        let (node_addresses, uplink, host_side) = Default::default();
        document.mode = Some(Mode { mode, first, nic, node_addresses, uplink, host_side });
        return Ok(());
    }
    if ips.is_empty() {
        let missing = format!("prevResult has no address for {}", request.ifname);
        return Err(Failure::new(Code::InvalidConfiguration, missing)
            .details("the plugin before this one needs an IPAM plugin"));
    }
    let alone = first && settings.pod_default_route_nic.is_none();
    if !alone {
        pod.complete(netlink).await.context(Code::Io, unreadable)?;
    }
    let towards = if first {
        ips
    } else {
        pod.addresses_of(&settings.pod_default_cni_nic).into_iter().map(|net| (net, None)).collect()
    };
    let node_addresses = node::addresses(&kernel.node, &towards, &host_veth(&request.container_id)).await;
    let node_addresses = node_addresses.context(Code::Io, "cannot read the node's addresses")?;
    let uplink = plan::uplink(mode, settings, &nic, &pod, &node_addresses)?;
    let promised = result.routes_of(&nic.name);
    let view = View {
        settings,
        nic: &nic,
        overlay: mode == ModeKind::Overlay,
        pod: &pod,
        promised: &promised,
        decided: &document.routing,
    };
    let routing = if alone { Routing::default() } else { routing::routing(view)? };
    let host_side = match pod.link(&uplink.dev).filter(|_| mode == ModeKind::Overlay) {
        Some(link) => node::sides(&kernel.node, link, &uplink)
            .await
            .context(Code::Io, "cannot read the node's links and routes")?,
        None => vec![],
    };
    document.mode = Some(Mode { mode, first, nic, node_addresses, uplink, host_side });
    document.routing = routing;
    Ok(())
}
