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
pub struct Place {
    /// `namespace/name` of the pod, if our plugin made a way for it and the runtime said which one it is.
    pub pod: Option<String>,
    /// Its file's name in /run/netns.
    pub netns: Option<String>,
}

/// The network namespaces on this node, by cookie.
#[derive(Debug, Default)]
pub struct Pods {
    places: HashMap<u64, Place>,
    looked: Option<Instant>,
}

impl Pods {
    /// What the network namespace with that cookie is called. Looks anew if it is unknown.
    pub fn place(&mut self, cookie: u64) -> Place {
        if !self.places.contains_key(&cookie) && self.looked.is_none_or(|looked| looked.elapsed() >= PAUSE) {
            self.places = places();
            self.looked = Some(Instant::now());
        }
        self.places.get(&cookie).cloned().unwrap_or_default()
    }
}

fn places() -> HashMap<u64, Place> {
    let mut places: HashMap<u64, Place> = HashMap::new();
    for entry in Path::new(NAMESPACES).read_dir().into_iter().flatten().flatten() {
        if let Ok(cookie) = netns::cookie(&entry.path()) {
            places.entry(cookie).or_default().netns = entry.file_name().into_string().ok();
        }
    }
    for document in state::list().filter(|document| !document.has_lost_netns()) {
        let Some((namespace, name)) = document.request.pod() else { continue };
        if let Some(cookie) = document.request.netns.as_deref().and_then(|path| netns::cookie(path).ok()) {
            places.entry(cookie).or_default().pod = Some(format!("{namespace}/{name}"));
        }
    }
    places
}
