//! Sysctls and link properties of the pod. Pure.

use common::{
    document::{Mode, ModeKind, PodDocument},
    failure::Failure,
    object::{Family, LinkAddress, Object, Placed, QueueLength, Sysctl},
};

/// In a teardown what was there before, else what is to be there.
pub fn put_back_or_wanted(document: &PodDocument) -> Result<Vec<Placed>, Failure> {
    if document.request.command.tears_down() {
        return Ok(document.put_back(|placed| placed.object.is_value()));
    }
    let mode = document.mode()?;
    if mode.mode == ModeKind::Disable {
        return Ok(vec![]);
    }
    let mut wanted: Vec<_> =
        document.settings.pod_rp_filter.into_iter().flat_map(|value| rp_filter(mode, value)).collect();
    wanted.extend(no_default_routers(document));
    let dev = &mode.nic.name;
    wanted.extend(
        document.settings.tx_queue_len.map(|packets| Object::QueueLength(QueueLength { dev: dev.clone(), packets })),
    );
    wanted.extend(document.nic_mac().map(|mac| Object::LinkAddress(LinkAddress { dev: dev.clone(), mac })));
    Ok(wanted.into_iter().map(Placed::pod).collect())
}

/// An interface that keeps its default route in its own table takes none of a router advertisement, which would come into
/// the main table, again and again.
fn no_default_routers(document: &PodDocument) -> impl Iterator<Item = Object> + '_ {
    let tables = document.routing.tables.iter().filter(|_| document.settings.tune_pod_routes);
    let moved = tables.map(|table| &table.nic).filter(|nic| document.default_leaves(nic, Family::Ipv6));
    moved.map(|nic| {
        Object::Sysctl(Sysctl { path: format!("net/ipv6/conf/{nic}/accept_ra_defrtr"), value: "0".to_owned() })
    })
}

/// The kernel takes the greater of `all` and the interface's own value, and gives `default` to every interface that
/// comes later (`IN_DEV_RPFILTER`): all of them have to be written. IPv6 has no such sysctl.
fn rp_filter(mode: &Mode, value: u8) -> Vec<Object> {
    let addresses = mode.nic.addresses.iter().map(ipnet::IpNet::addr).chain(mode.uplink.sources.iter().copied());
    if !addresses.map(Family::of).any(|family| family == Family::Ipv4) {
        return vec![];
    }
    ["all", "default", &mode.nic.name, &mode.uplink.dev]
        .map(|dev| Sysctl { path: format!("net/ipv4/conf/{dev}/rp_filter"), value: value.to_string() })
        .map(Object::Sysctl)
        .to_vec()
}
