//! The list in the kernel, and the network namespaces on this node.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    net::IpAddr,
    path::{Path, PathBuf},
    thread,
};

use anyhow::{Context, Result, anyhow};
use aya::maps::HashMap;
use bpf_lb_abi::{Config, Participation};
use bpf_lb_load::{
    layout,
    maps::{mapped, pinned},
    netns,
    pins::Pins,
};
use nix::{
    ifaddrs::getifaddrs,
    sched::{CloneFlags, setns},
};

use crate::plan::{Place, paths};

/// Where runtimes keep pods' network namespaces.
const NAMESPACES: [&str; 2] = ["/run/netns", "/var/run/netns"];

/// Makes the kernel's list equal to these places, and says to it whether the list is of those who are left out (`default`) or of
/// those who take part. Returns how many entries were written and removed. A place that is not there (any more) is left out.
///
/// # Errors
/// When no load balancer is loaded, or its maps cannot be written.
pub fn converge(pins: &Pins, default: bool, places: &[Place]) -> Result<(usize, usize)> {
    layout::check(pins)?;
    let paths = paths(places, namespaces, |path| addresses_in(path).unwrap_or_default());
    let wanted: BTreeSet<u64> = paths.iter().filter_map(|path| netns::cookie(path).ok()).collect();
    let mut list: HashMap<_, u64, u32> = HashMap::try_from(pinned(&pins.maps(), "namespaces")?)?;
    let found: BTreeSet<u64> = list.keys().collect::<Result<_, _>>().context("map namespaces")?;
    // First those who come, then the meaning of the list, then those who go: nobody is left out who is not to be for longer
    // than it takes, and nobody who is to be takes part.
    for cookie in wanted.difference(&found) {
        list.insert(cookie, 1, 0).context("map namespaces")?;
    }
    let participation = if default { Participation::AllBut } else { Participation::Only };
    let config = mapped::<Config>(&pins.maps(), "config")?;
    config.get(0).context("the map config is empty")?.participation.store(participation as u32);
    for cookie in found.difference(&wanted) {
        list.remove(cookie).context("map namespaces")?;
    }
    Ok((wanted.difference(&found).count(), found.difference(&wanted).count()))
}

fn namespaces() -> Vec<PathBuf> {
    let entries = NAMESPACES.iter().filter_map(|directory| Path::new(directory).read_dir().ok()).flatten().flatten();
    // One of the two is often a link to the other.
    let by_name: BTreeMap<_, _> = entries.map(|entry| (entry.file_name(), entry.path())).collect();
    by_name.into_values().collect()
}

/// The addresses in a network namespace.
fn addresses_in(path: &Path) -> Result<Vec<IpAddr>> {
    let netns = File::open(path)?;
    // A thread of its own, so that no other ever finds itself elsewhere.
    let thread = thread::spawn(move || -> Result<Vec<IpAddr>> {
        setns(netns, CloneFlags::CLONE_NEWNET)?;
        let address = |storage: nix::sys::socket::SockaddrStorage| {
            let v4 = storage.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
            v4.or_else(|| storage.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
        };
        Ok(getifaddrs()?.filter_map(|interface| interface.address.and_then(address)).collect())
    });
    thread.join().map_err(|_| anyhow!("the thread that entered the namespace died"))?
}
