//! Sysctls and link properties of the pod. Pure.

use common::{
    document::{Mode, PodDocument, Share},
    failure::Failure,
    object::{Family, LinkAddress, Object, Placed, QueueLength, Sysctl},
};

/// In a teardown what was there before or what the pod's other attachments ask for, else what is to be there.
pub fn put_back_or_wanted(document: &PodDocument) -> Result<Vec<Placed>, Failure> {
    if document.request.command.tears_down() {
        let asked: Vec<_> = shared_rp_filter(document).map(Placed::pod).collect();
        let back = document.put_back(|placed| placed.object.is_value()).into_iter();
        return Ok(back
            .map(|placed| asked.iter().find(|asked| asked.collides(&placed)).cloned().unwrap_or(placed))
            .collect());
    }
    let mode = document.mode()?;
    let mut wanted = vec![];
    if has_ipv4(mode) {
        let own = document.settings.pod_rp_filter.map(|value| rp_filter(&mode.nic.name, value));
        wanted.extend(shared_rp_filter(document).chain(own));
    }
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
/// comes later (`IN_DEV_RPFILTER`): all of them have to be written. What attachments share gets the least that one of them
/// asks for, so that each interface has its own.
fn shared_rp_filter(document: &PodDocument) -> impl Iterator<Item = Object> {
    let least =
        |of: fn(&Share) -> bool| document.shares().filter(of).filter_map(|share| share.settings.pod_rp_filter).min();
    let (pod, uplink) = (least(|_| true), least(|share| share.opens_uplink));
    let dev = document.mode.as_ref().map(|mode| mode.uplink.dev.as_str());
    let of = |dev: Option<&str>, value: Option<u8>| Some(rp_filter(dev?, value?));
    [of(Some("all"), pod), of(Some("default"), pod), of(dev, uplink)].into_iter().flatten()
}

fn rp_filter(dev: &str, value: u8) -> Object {
    Object::Sysctl(Sysctl { path: format!("net/ipv4/conf/{dev}/rp_filter"), value: value.to_string() })
}

/// IPv6 has no such sysctl.
fn has_ipv4(mode: &Mode) -> bool {
    let mut addresses = mode.nic.addresses.iter().map(ipnet::IpNet::addr).chain(mode.uplink.sources.iter().copied());
    addresses.any(|address| Family::of(address) == Family::Ipv4)
}
