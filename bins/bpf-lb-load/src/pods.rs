//! Which pod a network namespace is, for people.

use std::{
    collections::HashMap,
    path::Path,
    time::{Duration, Instant},
};

use common::state;

use crate::netns;

/// Where runtimes keep network namespaces.
const NAMESPACES: &str = "/run/netns";
/// Nobody looks again sooner than this, however many network namespaces are unknown.
const PAUSE: Duration = Duration::from_secs(1);

/// What a network namespace is called.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetnsName {
    /// `namespace/name` of the pod, if our plugin made a way for it and the runtime said which one it is.
    pub pod: Option<String>,
    /// Its file's name in /run/netns.
    pub netns: Option<String>,
}

/// The network namespaces on this node, by cookie.
#[derive(Debug, Default)]
pub struct Pods {
    names: HashMap<u64, NetnsName>,
    looked: Option<Instant>,
}

impl Pods {
    /// What the network namespace with that cookie is called. Looks anew if it is unknown.
    pub fn name(&mut self, cookie: u64) -> NetnsName {
        if !self.names.contains_key(&cookie) && self.looked.is_none_or(|looked| looked.elapsed() >= PAUSE) {
            self.names = names();
            self.looked = Some(Instant::now());
        }
        self.names.get(&cookie).cloned().unwrap_or_default()
    }
}

fn names() -> HashMap<u64, NetnsName> {
    let mut names: HashMap<u64, NetnsName> = HashMap::new();
    for entry in Path::new(NAMESPACES).read_dir().into_iter().flatten().flatten() {
        if let Ok(cookie) = netns::cookie(&entry.path()) {
            names.entry(cookie).or_default().netns = entry.file_name().into_string().ok();
        }
    }
    for document in state::list().filter(|document| !document.has_lost_netns()) {
        let Some((namespace, name)) = document.request.pod() else { continue };
        if let Some(cookie) = document.request.netns.as_deref().and_then(|path| netns::cookie(path).ok()) {
            names.entry(cookie).or_default().pod = Some(format!("{namespace}/{name}"));
        }
    }
    names
}
