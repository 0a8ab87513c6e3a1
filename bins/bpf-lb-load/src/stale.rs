//! What clients are told of endpoints that went: of a service, or of an address that another service has now, or nobody.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::SocketAddr,
    rc::Rc,
    time::{Duration, Instant},
};

use service_table::{Protocol, ServiceName};

use crate::{
    gone::{self, Endpoints, Gone, Holding, State, Why},
    kernel::{Kernel, Key},
    peers::{Flow, Peers},
    spec::{Frontend, Spec},
};

/// The endpoints that get nothing new, of the services that have such.
pub type Drains = BTreeMap<Key, Endpoints>;

/// How many addresses without a service are remembered, and how many endpoints that left; a cluster gives most of them to nobody again.
const ORPHANS: usize = 4096;
/// So long after an endpoint left its service it is said of it that it is back, to drain: whoever ends sockets waits a second for
/// that. (Of one that gets new connections the maps say it.)
const BACK: Duration = Duration::from_secs(2);

/// What the kernel does not keep of endpoints that sockets may still be translated to.
#[derive(Default)]
pub struct Stale {
    /// See [`Drains`].
    pub draining: Drains,
    /// Addresses that no service has any more, with the endpoints of the one that had them last and what became of these.
    orphans: foldhash::HashMap<Frontend, (Rc<[SocketAddr]>, Why)>,
    /// Endpoints that left their service, which stays, a moment ago, and when.
    left: foldhash::HashMap<(Key, SocketAddr), Instant>,
    /// What sockets were translated to before there was anybody who could say which backends are gone.
    pub unseen: BTreeSet<Flow>,
}

impl Stale {
    /// What sockets are translated to now, of which the first whole table says whether it is still there.
    ///
    /// # Errors
    /// See [`Peers::each`].
    pub fn see(&mut self, peers: &Peers) -> io::Result<()> {
        peers.each(|_, flow| {
            self.unseen.insert(flow);
            Ok(())
        })
    }

    /// What a service has.
    pub fn holding(&self, kernel: &Kernel, key: &ServiceName) -> Holding {
        Holding::new(kernel.services().get(key), self.draining.get(key))
    }

    /// What a service has, and each that has an address which the service is to have.
    pub fn holders(&self, kernel: &Kernel, key: &Key, spec: &Spec) -> BTreeMap<Key, Holding> {
        let owners = spec.frontends.keys().filter_map(|frontend| kernel.owner(frontend));
        let others = owners.filter(|owner| *owner != key);
        others.chain([key]).map(|owner| (owner.clone(), self.holding(kernel, owner))).collect()
    }

    /// Notes which endpoints of a service get nothing new.
    pub fn drain(&mut self, key: &Key, endpoints: Option<Endpoints>) {
        self.draining.remove(key);
        self.draining.extend(endpoints.map(|endpoints| (key.clone(), endpoints)));
    }

    /// Says which endpoints services have no more, and which are not those of the service that has their address now.
    pub fn tell(&mut self, kernel: &Kernel, before: impl IntoIterator<Item = (Key, Holding)>, gone: &mut Vec<Gone>) {
        if self.orphans.len() > ORPHANS {
            self.orphans.clear();
        }
        let now = Instant::now();
        self.left.retain(|_, when| now < *when + BACK);
        if self.left.len() > ORPHANS {
            self.left.clear();
        }
        for (key, before) in before {
            let after = self.holding(kernel, &key);
            gone.extend(gone::back(&key, &before, &after, |endpoint| {
                self.left.contains_key(&(key.clone(), *endpoint))
            }));
            let less = gone::gone(&key, &before, &after);
            let stays = after.installed.is_some();
            let left = |gone: &Gone| (stays && gone.why == Why::Left).then(|| ((key.clone(), gone.backend), now));
            gone.extend(less.inspect(|gone| self.left.extend(left(gone))));
            let why = if stays { Why::Unready } else { Why::Left };
            let (mut heirs, mut orphans) = (BTreeSet::new(), Vec::new());
            for frontend in before.frontends() {
                match kernel.owner(frontend) {
                    None => orphans.push(*frontend),
                    Some(owner) => heirs.extend((*owner != key).then_some(owner)),
                }
            }
            for heir in heirs {
                let now = self.holding(kernel, heir);
                gone.extend(gone::moved(heir, before.protocol(), before.endpoints(), &now, why));
            }
            if !orphans.is_empty() {
                let endpoints: Rc<[_]> = before.endpoints().copied().collect();
                self.orphans.extend(orphans.into_iter().map(|frontend| (frontend, (endpoints.clone(), why))));
            }
        }
    }

    /// A service that takes over an address after a gap, as one made again by another name does: the sockets that came by it
    /// still lead to the endpoints of before.
    pub fn adopt(&mut self, kernel: &Kernel, key: &ServiceName, gone: &mut Vec<Gone>) {
        if self.orphans.is_empty() {
            return;
        }
        let now = self.holding(kernel, key);
        for frontend in now.frontends() {
            if let Some((before, why)) = self.orphans.remove(frontend) {
                gone.extend(gone::moved(key, frontend.protocol, before.iter(), &now, why));
            }
        }
    }

    /// Says all of that of a whole table, and of what was [seen](Stale::see) before it.
    pub fn tell_all(
        &mut self,
        kernel: &Kernel,
        before: impl IntoIterator<Item = (Key, Holding)>,
        gone: &mut Vec<Gone>,
    ) {
        self.tell(kernel, before, gone);
        kernel.services().keys().for_each(|key| self.adopt(kernel, key, gone));
        let unseen = std::mem::take(&mut self.unseen);
        if unseen.is_empty() {
            return;
        }
        let endpoints = self.endpoints(kernel);
        for old in unseen.iter().filter_map(|flow| self.old(kernel, flow, &endpoints)) {
            // What was said of the change itself holds, whoever else still has the endpoint.
            let same =
                |said: &Gone| (&said.service, said.protocol, said.backend) == (&old.service, old.protocol, old.backend);
            if !gone.iter().any(same) {
                gone.push(old);
            }
        }
    }

    /// All endpoints, each as what it is the most for any service.
    fn endpoints(&self, kernel: &Kernel) -> foldhash::HashMap<(Protocol, SocketAddr), State> {
        let services = kernel.services();
        let ready = services.values().flat_map(|installed| {
            installed.backends.keys().map(|endpoint| ((installed.spec.protocol, *endpoint), State::Ready))
        });
        let draining = self.draining.iter().flat_map(|(key, endpoints)| {
            let protocol = services.get(key).map(|installed| installed.spec.protocol).unwrap_or_default();
            endpoints.iter().map(move |(endpoint, state)| ((protocol, *endpoint), *state))
        });
        let mut all = foldhash::HashMap::default();
        for (endpoint, state) in ready.chain(draining) {
            all.entry(endpoint).and_modify(|most: &mut State| *most = state.min(*most)).or_insert(state);
        }
        all
    }

    /// Nothing if a new connection may get that backend too, or if it is as good as before and only the address by which a client
    /// came leads nowhere any more. Of an address that leads to another service, as [`gone::moved`] says.
    fn old(
        &self,
        kernel: &Kernel,
        flow: &Flow,
        endpoints: &foldhash::HashMap<(Protocol, SocketAddr), State>,
    ) -> Option<Gone> {
        let frontend = kernel.frontend(&flow.service).unwrap_or(flow.service);
        let owner = kernel.owner(&frontend);
        let installed = owner.and_then(|owner| kernel.services().get(owner));
        if installed.is_some_and(|installed| installed.spec.leads_to(&frontend, &flow.backend)) {
            return None;
        }
        let state = owner.and_then(|owner| {
            let state = self.draining.get(owner)?.get(&flow.backend)?;
            Some(self.holding(kernel, owner).least()(&flow.backend).min(*state))
        });
        let why = match state {
            // Still an endpoint of its Service, and not for who comes by this address.
            None if installed.is_some_and(|installed| installed.backends.contains_key(&flow.backend)) => Why::Draining,
            None => match endpoints.get(&(flow.service.protocol, flow.backend)) {
                None => Why::Left,
                Some(State::Ready) if owner.is_none() => return None,
                Some(State::Draining) if owner.is_none() => Why::Draining,
                Some(_) => Why::Unready,
            },
            Some(state) => state.why(),
        };
        let service = owner.map(|owner| owner.to_string().into());
        Some(Gone { service, protocol: flow.service.protocol, backend: flow.backend, why, unused: false })
    }
}
