//! The list in the kernel, and the network namespaces on this node.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io,
    net::IpAddr,
    path::Path,
};

use anyhow::{Context, Result};
use aya::maps::HashMap;
use bpf_lb_abi::{Config, Participation};
use bpf_lb_load::{
    layout,
    maps::{mapped, pinned},
    netns::{cookie, own_cookie},
    pins::Pins,
};
use cluster_api::Name;
use common::netns::{all, processes, within};
use nix::{ifaddrs::getifaddrs, sys::socket::SockaddrStorage};

use crate::plan::{Found, Node, Sandbox, find, pod_of};

/// What was changed in the kernel's list.
#[derive(Debug, Default)]
pub struct Change {
    /// How many entries were written.
    pub added: usize,
    /// How many were removed.
    pub removed: usize,
    /// See [`Found::unfound`].
    pub unfound: BTreeSet<Name>,
    /// See [`Found::awaited`].
    pub awaited: BTreeMap<Name, String>,
}

/// Makes the kernel's list equal to these sandboxes, and says to it whether the list is of those who are left out (`default`) or of
/// those who take part. A path that is not there (any more) is left out.
///
/// # Errors
/// When no load balancer is loaded, or its maps cannot be written.
pub fn converge(pins: &Pins, default: bool, sandboxes: &[Sandbox]) -> Result<Change> {
    layout::check(pins)?;
    let Found { cookies: wanted, unfound, awaited } = find(sandboxes, &Kernel);
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
    let (added, removed) = (wanted.difference(&found).count(), found.difference(&wanted).count());
    Ok(Change { added, removed, unfound, awaited })
}

/// This node.
struct Kernel;

// What cannot be looked into is where somebody is not found, and that is said.
impl Node for Kernel {
    fn at(&self, path: &Path) -> Option<u64> {
        cookie(path).ok()
    }

    fn addresses(&self) -> Vec<(u64, Vec<IpAddr>)> {
        let own = own_cookie().ok();
        let here = || Ok((own_cookie()?, addresses()?));
        let seen = all().0.into_iter().filter_map(|netns| within(&netns, here).ok());
        seen.filter(|(cookie, _)| Some(*cookie) != own).collect()
    }

    fn processes(&self, uids: &BTreeSet<&str>) -> BTreeMap<String, u64> {
        let (own, mut found) = (own_cookie().ok(), BTreeMap::new());
        for process in processes() {
            let cgroups = fs::read_to_string(process.join("cgroup")).unwrap_or_default();
            // Of a pod's processes the first: others may have made namespaces of their own.
            let Some(uid) = pod_of(&cgroups, uids).filter(|uid| !found.contains_key(*uid)) else { continue };
            let cookie = File::open(process.join("ns/net")).and_then(|netns| within(&netns, own_cookie)).ok();
            // A runtime's process may be in the pod's cgroup before it is in its namespace.
            if let Some(cookie) = cookie.filter(|cookie| Some(*cookie) != own) {
                found.insert(uid.to_owned(), cookie);
            }
        }
        found
    }
}

/// Whether any pod with one of these UIDs has a process in a namespace of its own by now.
pub fn has_process<'a>(uids: impl Iterator<Item = &'a str>) -> bool {
    let uids: BTreeSet<_> = uids.collect();
    !uids.is_empty() && !Kernel.processes(&uids).is_empty()
}

/// The addresses in this thread's network namespace.
fn addresses() -> io::Result<Vec<IpAddr>> {
    let address = |storage: SockaddrStorage| {
        let v4 = storage.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
        v4.or_else(|| storage.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
    };
    Ok(getifaddrs()?.filter_map(|interface| interface.address.and_then(address)).collect())
}
