//! Decides how a pod's interface is served.

mod node;
mod observe;
mod plan;

use std::process::ExitCode;

use common::{
    document::{Command, Mode, ModeKind, Nic, PodDocument},
    failure::{Code, Context, Failure},
    harness::{self, About},
    kernel::Kernel,
    names::{POD_VETH, host_veth},
    result::CniResult,
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
    let pod = observe::Pod::read(&kernel.pod()?.netlink).await.context(Code::Io, "cannot read the pod's network")?;
    let nic = pod.link(&request.ifname).ok_or_else(|| {
        Failure::new(Code::InvalidEnvironment, format!("the pod has no interface {}", request.ifname))
            .details("CNI_IFNAME must name the interface that the plugins before this one made")
    })?;
    let mode = plan::mode(settings, &request.ifname, pod.link(POD_VETH).is_some())?;
    let result = CniResult::previous(&request.config)?;
    let ips: Vec<_> = result.ips_of(&request.ifname).collect();
    if ips.is_empty() && mode != ModeKind::Disable {
        return Err(Failure::new(
            Code::InvalidConfiguration,
            format!("prevResult has no address for {}", request.ifname),
        )
        .details("the plugin before this one needs an IPAM plugin"));
    }
    let addresses = ips.iter().map(|ip| ip.address).collect();
    let nic = Nic { name: nic.name.clone(), mtu: nic.mtu, addresses };
    let node_addresses = node::addresses(&kernel.node, &ips, &host_veth(&request.container_id)).await;
    let node_addresses = node_addresses.context(Code::Io, "cannot read the node's addresses")?;
    let moved = match mode {
        ModeKind::Disable => None,
        _ => plan::moved(settings, &nic, &pod, &result)?,
    };
    let uplink = plan::uplink(mode, settings, &nic, &pod, &node_addresses)?;
    let host_side = match mode {
        ModeKind::Overlay => {
            node::sides(&kernel.node, &uplink).await.context(Code::Io, "cannot read the node's routes")?
        }
        _ => vec![],
    };
    let first = request.ifname == settings.pod_default_cni_nic;
    document.mode = Some(Mode { mode, first, nic, node_addresses, uplink, host_side, moved });
    Ok(())
}
