//! Makes the maps equal to a table, with as few changes as there are differences.

use std::{
    cell::LazyCell,
    collections::{BTreeMap, HashSet},
    io,
    net::IpAddr,
    rc::Rc,
};

use bpf_lb_abi::{Backend, Kind};
use schemars::JsonSchema;
use serde::Serialize;
use service_table::{Change, Claim, Nodes, Refuse, Service, ServiceAddress, ServiceName, ServiceTable, TrafficPolicy};
use thiserror::Error;

use crate::{
    claims::{self, Conflict, claim},
    diff::{self, Difference},
    gone::{self, Endpoints, Gone, Holding, State},
    kernel::{Installed, Kernel, Key},
    lease::Lease,
    maps::MapsError,
    peers::Peers,
    room::UpdateError,
    show,
    spec::{Frontend, Spec},
    stale::{Drains, Stale},
    write::NotSet,
};

/// Why nothing was done, or not all.
#[derive(Debug, Error)]
pub enum ApplyError {
    /// It is not what the schema says, and nothing was changed.
    #[error("{0}")]
    Invalid(String),
    /// The table makes no sense, and nothing was changed.
    #[error("{0} is in the table twice")]
    Twice(ServiceName),
    /// The maps cannot be written: what is known of them may no longer be so.
    #[error(transparent)]
    Maps(#[from] MapsError),
}

/// What was done.
#[derive(Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Summary {
    /// Services that are new or different.
    pub set: usize,
    /// Services that are gone.
    pub removed: usize,
    /// Services that were like that before.
    pub unchanged: usize,
    /// Services that are not as they were to be: of those that found no room, the endpoints that are still wanted and have a place
    /// stay; an address that is left with none is left to the host path. The others that are named here stay as they were.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub refused: Vec<Refused>,
    /// Addresses that several services claim.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conflicts: Vec<Conflict>,
    /// See [`Gone`]: for whoever reads what `follow` prints.
    #[serde(skip)]
    pub gone: Vec<Gone>,
}

impl Summary {
    /// Whether all is as it was to be.
    pub fn is_complete(&self) -> bool {
        self.refused.is_empty() && self.conflicts.is_empty()
    }
}

/// A service that could not be set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Refused {
    /// `namespace/name:port name`.
    pub service: String,
    /// Why.
    pub error: String,
    /// Its ClusterIPs.
    #[serde(skip)]
    cluster_ips: Vec<IpAddr>,
}

impl Refused {
    fn new(service: &Service, error: String) -> Self {
        let cluster_ips = service.cluster_ips.iter().map(IpAddr::to_canonical).collect();
        Self { service: service.key().to_string(), error, cluster_ips }
    }

    fn of_spec(key: &ServiceName, spec: &Spec, error: String) -> Self {
        let cluster_ips = spec.frontends.iter().filter(|(_, kind)| **kind == Kind::ClusterIp);
        let cluster_ips = cluster_ips.map(|(frontend, _)| frontend.address.ip()).collect();
        Self { service: key.to_string(), error, cluster_ips }
    }
}

/// What stands for the nodes among the services.
const NODES: &str = "nodes";

/// What a table says that is not there already.
#[derive(Default)]
struct News {
    /// The services that are to be otherwise, or new, by name.
    specs: Vec<(Key, Spec)>,
    /// Services that are there and not in the table.
    gone: Vec<(Key, Rc<Installed>)>,
    /// Services that are there, of which anything is to be otherwise, also what drains, and what they have.
    changed: Vec<(Key, Holding)>,
    unchanged: usize,
}

/// The table in the kernel, and what of it the kernel does not keep.
pub struct Table {
    /// The maps.
    pub kernel: Kernel,
    /// Services that lack addresses which another one has, or which they have left, as they were to be.
    lost: BTreeMap<Key, Spec>,
    /// Services that are not as they were to be, by name.
    unfit: BTreeMap<String, Refused>,
    /// Those of them that found no room, as they were to be, and what of them drains.
    waiting: BTreeMap<Key, (Spec, Option<Endpoints>)>,
    /// Services of which each node's node port leads to its own backends.
    per_node: BTreeMap<Key, Service>,
    stale: Stale,
    /// Whether a whole table has come.
    has_begun: bool,
    /// Whether the lease is renewed: whoever gives a whole table follows the cluster, unless it says otherwise.
    renews: bool,
}

impl Table {
    /// The table of these maps, ready for changes.
    ///
    /// # Errors
    /// When the kernel does not let itself be waited for.
    pub fn new(mut kernel: Kernel) -> Result<Self, MapsError> {
        kernel.recover()?;
        let services = show::table(&kernel).services.into_iter().filter(is_per_node);
        let per_node = services.map(|service| (service.key().into(), service)).collect();
        Ok(Self {
            kernel,
            lost: BTreeMap::new(),
            unfit: BTreeMap::new(),
            waiting: BTreeMap::new(),
            per_node,
            stale: Stale::default(),
            has_begun: false,
            renews: false,
        })
    }

    /// Also tells, with the first whole table, of backends that went while nobody wrote to the maps, as far as any socket is still
    /// translated to one.
    ///
    /// # Errors
    /// See [`Peers::each`].
    pub fn resume(mut self, peers: &Peers) -> io::Result<Self> {
        self.stale.see(peers)?;
        self.kernel.used.note(self.stale.unseen.iter().map(|flow| (flow.service.protocol, flow.backend)));
        Ok(self)
    }

    /// Lets the programs go by the table for so long from now on. One that has expired leads to backends that may be gone: it waits
    /// for a whole table, unless that is all that there is. One without an end gets one.
    pub fn renew(&self, lease: Lease) {
        let is_current = || self.renews && (self.has_begun || !self.kernel.has_expired());
        let may_renew = || is_current() || !self.kernel.expires();
        if lease == Lease::FOR_EVER || may_renew() {
            self.kernel.renew(lease);
        }
    }

    /// Makes the maps hold `table` and nothing else.
    ///
    /// # Errors
    /// [`ApplyError`]. What is wrong with single services is in the summary.
    pub fn apply(&mut self, table: &ServiceTable) -> Result<Summary, ApplyError> {
        let mut summary = Summary::default();
        let numbers = self.kernel.numbers_of(&table.nodes);
        let (mut specs, draining) = wanted(&self.kernel, &numbers, &self.stale.draining, table, &mut summary)?;
        self.unfit.clear();
        self.waiting.clear();
        (summary.conflicts, self.lost) = claims::settle(&mut specs);
        if !std::mem::replace(&mut self.has_begun, true) {
            self.renews = true;
            // Who drains already may have sockets from before this writer came.
            for (key, endpoints) in &draining {
                let protocol = specs.get(key).map(|spec| spec.protocol).unwrap_or_default();
                self.kernel.used.note(endpoints.keys().map(|endpoint| (protocol, *endpoint)));
            }
        }
        let News { specs, gone, changed, unchanged } = self.news(specs, &draining);
        summary.unchanged += unchanged;
        let left = gone.iter().map(|(key, _)| (key.clone(), self.stale.holding(&self.kernel, key)));
        let before: Vec<_> = left.chain(changed).collect();
        self.stale.draining = draining;
        let per_node = table.services.iter().filter(|service| is_per_node(service));
        self.per_node = per_node.map(|service| (service.key().into(), service.clone())).collect();
        self.write(table, specs, gone, &mut summary)?;
        self.stale.tell_all(&self.kernel, before, &mut summary.gone);
        self.close(&mut summary)?;
        Ok(summary)
    }

    fn write(
        &mut self,
        table: &ServiceTable,
        specs: Vec<(Key, Spec)>,
        gone: Vec<(Key, Rc<Installed>)>,
        summary: &mut Summary,
    ) -> Result<(), MapsError> {
        let claimed =
            LazyCell::new(|| -> HashSet<_> { specs.iter().flat_map(|(_, spec)| spec.frontends.keys()).collect() });
        let moves = |old: &Installed| old.spec.frontends.keys().any(|frontend| claimed.contains(frontend));
        // An address that moves to another service is to have no gap. All else that goes makes room first.
        let (last, first): (Vec<_>, Vec<_>) = gone.into_iter().partition(|(_, old)| moves(old));
        let nodes = table.all_nodes();
        self.kernel.prepare_nodes(&nodes)?;
        self.refuse(&table.refuse);
        summary.removed += self.remove_all(first);
        self.kernel.spread_for(&specs)?;
        let takes = |key: &Key, spec: &Spec| {
            spec.frontends.keys().any(|frontend| self.kernel.owner(frontend).is_some_and(|owner| owner != key))
        };
        let (takers, others): (Vec<_>, Vec<_>) = specs.into_iter().partition(|(key, spec)| takes(key, spec));
        let failed = self.set_all(takers.into_iter().chain(others), summary)?;
        summary.removed += self.remove_all(last);
        self.publish_nodes(&nodes, summary);
        // There may be room now, or where those were that are gone of services without.
        let failed = self.set_all(failed.into_iter().map(|(key, spec, _)| (key, spec)), summary)?;
        let mut left = BTreeMap::new();
        for (key, spec, _) in &failed {
            let whole = self.lost.get(key).unwrap_or(spec).clone();
            left.extend(self.shrink(key, &whole)?.map(|spec| (key.clone(), spec)));
        }
        for (key, spec, error) in self.set_all(failed.into_iter().map(|(key, spec, _)| (key, spec)), summary)? {
            if let Some(left) = left.remove(&key) {
                self.try_set(key.clone(), left, &mut Summary::default())?;
            }
            let (whole, drains) =
                (self.lost.get(&key).unwrap_or(&spec).clone(), self.stale.draining.get(&key).cloned());
            self.wait(key, whole, drains, error, summary);
        }
        Ok(())
    }

    /// Gives back those that find no room, each with a reason.
    fn set_all(
        &mut self,
        specs: impl Iterator<Item = (Key, Spec)>,
        summary: &mut Summary,
    ) -> Result<Vec<(Key, Spec, String)>, MapsError> {
        let mut failed = Vec::new();
        for (key, spec) in specs {
            failed.extend(self.try_set(key, spec, summary)?);
        }
        Ok(failed)
    }

    /// Takes from a service without room what is gone, and the addresses that are left with nothing: see [`Summary::refused`]. If
    /// what is left finds room only where the service itself was, gives that back, to be set if the whole finds none there.
    fn shrink(&mut self, key: &Key, wanted: &Spec) -> Result<Option<Spec>, MapsError> {
        let Some(old) = self.kernel.services().get(key).cloned() else { return Ok(None) };
        let has = |frontend: &Frontend| old.spec.frontends.contains_key(frontend);
        // What lacks room may be an address alone.
        let every = wanted.within(has, |backend| wanted.sets.values().find_map(|set| set.get(backend).copied()));
        let left = wanted.within(has, |backend| Some(old.backends.get(backend)?.generation & Backend::LOCAL != 0));
        for spec in [every, left.clone()] {
            if self.try_set(key.clone(), spec, &mut Summary::default())?.is_none() {
                return Ok(None);
            }
        }
        // For nothing there is always room.
        self.try_set(key.clone(), wanted.within(|_| false, |_| None), &mut Summary::default())?;
        Ok(Some(left))
    }

    /// Notes a service that finds no room, and what it lacks therefore.
    fn wait(&mut self, key: Key, spec: Spec, drains: Option<Endpoints>, error: String, summary: &mut Summary) {
        summary.refused.push(Refused::of_spec(&key, &spec, error));
        let now = self.kernel.services().get(&key);
        if now.is_some_and(|now| now.spec.frontends.len() == spec.frontends.len()) {
            self.lost.remove(&key);
        } else if now.is_some() || self.lost.contains_key(&key) {
            self.lost.insert(key.clone(), spec.clone());
        }
        if let Some(now) = now {
            // They are not gone, and get nothing new.
            let waiting =
                spec.sets.values().flat_map(BTreeMap::keys).filter(|backend| !now.backends.contains_key(backend));
            let waiting = waiting.map(|backend| (*backend, State::Draining));
            let drains: Endpoints = drains.clone().into_iter().flatten().chain(waiting).collect();
            self.stale.drain(&key, (!drains.is_empty()).then_some(drains));
        }
        self.waiting.insert(key, (spec, drains));
    }

    /// Sets those that found no room, as far as there is some now.
    fn retry(&mut self, summary: &mut Summary) -> Result<(), MapsError> {
        self.kernel.reclaim()?;
        for (key, (spec, drains)) in std::mem::take(&mut self.waiting) {
            if self.kernel.has_room(&key, &spec)? {
                self.set_spec(key, spec, drains, summary)?;
            } else {
                self.waiting.insert(key, (spec, drains));
            }
        }
        Ok(())
    }

    /// How much of what there may be no room for is taken, while anything waits for it.
    fn taken(&self) -> [usize; 3] {
        if self.waiting.is_empty() {
            return [0; 3];
        }
        let services = self.kernel.services().values();
        services.fold([0; 3], |[services, frontends, backends], service| {
            [services + 1, frontends + service.spec.frontends.len(), backends + service.backends.len()]
        })
    }

    fn refuse(&mut self, Refuse(cidrs): &Refuse) {
        if self.kernel.refuse() != *cidrs {
            self.kernel.set_refuse(cidrs);
        }
    }

    /// Notes what could not be set, and refuses the ports that no service has; and says which endpoints went that nobody used.
    fn close(&mut self, summary: &mut Summary) -> Result<(), MapsError> {
        for gone in &mut summary.gone {
            gone.unused = !self.kernel.used.has(gone.protocol, gone.backend);
        }
        self.unfit.extend(summary.refused.iter().map(|refused| (refused.service.clone(), refused.clone())));
        self.kernel.write_wildcards(self.unfit.values().flat_map(|unfit| &unfit.cluster_ips).copied().collect())
    }

    fn remove_all(&mut self, gone: Vec<(Key, Rc<Installed>)>) -> usize {
        gone.into_iter().filter(|(key, _)| self.kernel.remove(key)).count()
    }

    /// Sets a service, and gives it back with a reason if there is no room for it.
    fn try_set(
        &mut self,
        key: Key,
        spec: Spec,
        summary: &mut Summary,
    ) -> Result<Option<(Key, Spec, String)>, MapsError> {
        match self.kernel.set(key, spec) {
            Ok(true) => summary.set += 1,
            Ok(false) => summary.unchanged += 1,
            Err(NotSet { why: UpdateError::Maps(error), .. }) => return Err(error),
            Err(NotSet { service, why }) => {
                let (key, spec) = *service;
                return Ok(Some((key, spec, why.to_string())));
            }
        }
        Ok(None)
    }

    /// Makes one change.
    ///
    /// # Errors
    /// As [`Table::apply`].
    pub fn change(&mut self, change: &Change) -> Result<Summary, ApplyError> {
        let mut summary = Summary::default();
        let before = self.taken();
        match change {
            Change::Set(service) => self.set(service, &mut summary)?,
            Change::Nodes(nodes) => self.move_nodes(nodes, &mut summary)?,
            Change::Refuse(cidrs) => self.refuse(cidrs),
            Change::Remove(name) => self.remove(name, &mut summary)?,
            Change::Leave(address) => self.leave(address, &mut summary)?,
            Change::Renew(renew) => {
                self.renews = *renew;
                return Ok(summary);
            }
            Change::Table(table) => return self.apply(table),
        }
        if self.taken().iter().zip(before).any(|(now, before)| *now < before) {
            self.retry(&mut summary)?;
        }
        self.close(&mut summary)?;
        Ok(summary)
    }

    fn set(&mut self, service: &Service, summary: &mut Summary) -> Result<(), MapsError> {
        let key = Key::new(service.key());
        self.per_node.remove(&key);
        self.per_node.extend(is_per_node(service).then(|| (key.clone(), service.clone())));
        match Spec::new(service, self.kernel.node_numbers()) {
            Ok(spec) => self.set_spec(key, spec, drains(service), summary),
            Err(unfit) => {
                self.waiting.remove(&key);
                summary.refused.push(Refused::new(service, unfit.to_string()));
                Ok(())
            }
        }
    }

    fn set_spec(
        &mut self,
        key: Key,
        mut spec: Spec,
        drains: Option<Endpoints>,
        summary: &mut Summary,
    ) -> Result<(), MapsError> {
        let before = self.stale.holders(&self.kernel, &key, &spec);
        let (conflicts, losers, whole) = self.contest(&key, &mut spec);
        let old = self.kernel.services().get(&key);
        let freed = old.iter().flat_map(|old| old.spec.frontends.keys());
        let freed = freed.copied().filter(|frontend| !spec.frontends.contains_key(frontend)).collect();
        self.hand_over(&key, freed, summary)?;
        let mut failed = self.try_set(key.clone(), spec, summary)?;
        if let Some((key, spec, _)) = failed {
            let left = self.shrink(&key, whole.as_ref().unwrap_or(&spec))?;
            failed = self.try_set(key.clone(), spec, summary)?;
            if let Some(left) = left.filter(|_| failed.is_some()) {
                self.try_set(key, left, &mut Summary::default())?;
            }
        }
        if let Some((key, spec, error)) = failed {
            self.wait(key, whole.unwrap_or(spec), drains, error, summary);
            self.stale.tell(&self.kernel, before, &mut summary.gone);
            return Ok(());
        }
        self.fits(&key, summary);
        summary.conflicts.extend(conflicts);
        self.lost.extend(losers);
        self.lost.remove(&key);
        self.lost.extend(whole.map(|whole| (key.clone(), whole)));
        self.stale.drain(&key, drains);
        self.stale.tell(&self.kernel, before, &mut summary.gone);
        self.stale.adopt(&self.kernel, &key, &mut summary.gone);
        Ok(())
    }

    /// Notes that a service is as it is to be.
    fn fits(&mut self, key: &Key, summary: &mut Summary) {
        self.waiting.remove(key);
        let name = key.to_string();
        self.unfit.remove(&name);
        summary.refused.retain(|refused| refused.service != name);
    }

    /// Lets node ports answer on the addresses of these nodes.
    fn move_nodes(&mut self, nodes: &Nodes, summary: &mut Summary) -> Result<(), MapsError> {
        self.kernel.prepare_nodes(nodes)?;
        for service in self.per_node.clone().values() {
            self.set(service, summary)?;
        }
        self.publish_nodes(nodes, summary);
        Ok(())
    }

    fn publish_nodes(&mut self, nodes: &Nodes, summary: &mut Summary) {
        let left_out = self.kernel.publish_nodes(nodes);
        self.unfit.remove(NODES);
        if left_out > 0 {
            let error = format!("no room for {left_out} of their addresses: node ports do not answer there");
            summary.refused.push(Refused { service: NODES.into(), error, cluster_ips: vec![] });
        }
    }

    /// Takes out of `spec` what others have the better claim to. Returns those claims, the services that lose something to this
    /// one, as they were to be, and `spec` as it was if anything was taken out.
    fn contest(&self, key: &Key, spec: &mut Spec) -> (Vec<Conflict>, BTreeMap<Key, Spec>, Option<Spec>) {
        let (mut conflicts, mut losers, mut lost) = (Vec::new(), BTreeMap::new(), Vec::new());
        for frontend in spec.frontends.keys() {
            let Some(owner) = self.kernel.owner(frontend).filter(|owner| *owner != key) else {
                // Who lacks it may have the better claim by now, or has left it for a while.
                let own = claim(key, spec, frontend);
                let is_better = |best: &Claim<&Key>| Some(*best) < own && !claims::is_of_same(best.service, key);
                if let Some(best) = self.best_claim(frontend, key).filter(is_better) {
                    conflicts.push(Conflict::new(frontend, key, best.service));
                    lost.push(*frontend);
                }
                continue;
            };
            let Some(other) = self.kernel.services().get(owner) else { continue };
            // A port that takes the place of another of its Service comes before that one goes.
            let whole = self.lost.get(owner).unwrap_or(&other.spec);
            if claims::is_of_same(owner, key) {
                losers.insert(owner.clone(), whole.clone());
            } else if claim(owner, &other.spec, frontend) < claim(key, spec, frontend) {
                conflicts.push(Conflict::new(frontend, key, owner));
                lost.push(*frontend);
            } else {
                conflicts.push(Conflict::new(frontend, owner, key));
                losers.insert(owner.clone(), whole.clone());
            }
        }
        let whole = (!lost.is_empty()).then(|| spec.clone());
        for frontend in lost {
            spec.frontends.remove(&frontend);
        }
        (conflicts, losers, whole)
    }

    /// The best claim to a frontend of a service that lacks it, other than `key`'s.
    fn best_claim(&self, frontend: &Frontend, key: &Key) -> Option<Claim<&Key>> {
        let others = self.lost.iter().filter(|(other, _)| *other != key);
        others.filter_map(|(other, spec)| claim(other, spec, frontend)).min()
    }

    fn remove(&mut self, name: &ServiceName, summary: &mut Summary) -> Result<(), MapsError> {
        let key = &Key::new(name.clone());
        let before = self.stale.holding(&self.kernel, key);
        let left = self.lost.remove(key).into_iter().flat_map(|whole| whole.frontends.into_keys());
        let left: Vec<Frontend> = left.filter(|frontend| self.kernel.owner(frontend).is_none()).collect();
        self.unfit.remove(&key.to_string());
        self.waiting.remove(key);
        self.hand_over(key, before.frontends().copied().chain(left).collect(), summary)?;
        self.stale.drain(key, None);
        self.per_node.remove(key);
        summary.removed += usize::from(self.kernel.remove(key));
        self.stale.tell(&self.kernel, [(key.clone(), before)], &mut summary.gone);
        Ok(())
    }

    /// Takes one frontend out of the service that has it, for nobody else until that is set again. Its endpoints go on serving
    /// those who are connected.
    fn leave(&mut self, address: &ServiceAddress, summary: &mut Summary) -> Result<(), MapsError> {
        let frontend = Frontend::of(address);
        let Some(key) = self.kernel.owner(&frontend).cloned() else { return Ok(()) };
        let before = self.stale.holding(&self.kernel, &key);
        let Some(whole) = before.installed.as_ref().map(|installed| installed.spec.clone()) else { return Ok(()) };
        if let Some((key, spec, error)) = self.try_set(key.clone(), whole.without(&frontend), summary)? {
            summary.refused.push(Refused::of_spec(&key, &spec, error));
            return Ok(());
        }
        self.lost.entry(key.clone()).or_insert(whole);
        let endpoints = before.endpoints().map(|endpoint| (*endpoint, State::Draining)).collect();
        self.stale.drain(&key, Some(endpoints));
        // The address is no orphan: it is its service's again, which says then what became of the endpoints.
        summary.gone.extend(gone::gone(&key, &before, &self.stale.holding(&self.kernel, &key)));
        Ok(())
    }

    /// Gives frontends that `from` has and is to lose to those who claimed them in vain, before there is a gap.
    fn hand_over(&mut self, from: &Key, freed: Vec<Frontend>, summary: &mut Summary) -> Result<(), MapsError> {
        for frontend in freed {
            let Some(heir) = self.best_claim(&frontend, from).map(|claim| claim.service.clone()) else { continue };
            let (Some(whole), Some(installed)) = (self.lost.get(&heir), self.kernel.services().get(&heir)) else {
                continue;
            };
            let mut spec = whole.clone();
            spec.frontends.retain(|claimed, _| *claimed == frontend || installed.spec.frontends.contains_key(claimed));
            let (whole, is_whole) = (whole.clone(), spec.frontends.len() == whole.frontends.len());
            // What a service that waits has draining here is also what it waits for.
            let waits = self.waiting.get(&heir).map(|(_, drains)| drains.clone());
            let drains = waits.clone().unwrap_or_else(|| self.stale.draining.get(&heir).cloned());
            if let Some((key, _, error)) = self.try_set(heir.clone(), spec, summary)? {
                self.wait(key, whole, drains, error, summary);
            } else if is_whole {
                self.lost.remove(&heir);
                if waits.is_some() {
                    self.stale.drain(&heir, drains);
                    self.fits(&heir, summary);
                }
            }
        }
        Ok(())
    }

    /// The services that could not be set, or lack what another one has, by name.
    pub fn unfit(&self) -> BTreeMap<String, Refused> {
        let lacking = self.lost.iter().filter_map(|(key, spec)| Some((key.to_string(), self.lacking(key, spec)?)));
        lacking.chain(self.unfit.clone()).collect()
    }

    /// Nothing if no other Service has any of it.
    fn lacking(&self, key: &ServiceName, spec: &Spec) -> Option<Refused> {
        let belongs = |frontend| {
            let owner = self.kernel.owner(frontend).filter(|owner| !claims::is_of_same(owner, key))?;
            Some(format!("{frontend} belongs to {owner}"))
        };
        let error: Vec<_> = spec.frontends.keys().filter_map(belongs).collect();
        (!error.is_empty()).then(|| Refused::of_spec(key, spec, error.join("; ")))
    }

    /// What is new in a table, found in one walk over both, since both are sorted.
    fn news(&self, specs: BTreeMap<Key, Spec>, draining: &Drains) -> News {
        let mut news = News::default();
        let mut installed = self.kernel.services().iter().peekable();
        for (key, spec) in specs {
            while let Some((gone, old)) = installed.next_if(|(other, _)| **other < key) {
                news.gone.push((gone.clone(), old.clone()));
            }
            let old = installed.next_if(|(other, _)| **other == key).map(|(_, old)| old);
            let is_same = old.is_some_and(|old| old.is(&spec));
            let is_changed = !(is_same && draining.get(&key) == self.stale.draining.get(&key));
            if let Some(old) = old.filter(|_| is_changed) {
                news.changed.push((key.clone(), Holding::new(Some(old), self.stale.draining.get(&key))));
            }
            if is_same {
                news.unchanged += 1;
            } else {
                news.specs.push((key, spec));
            }
        }
        news.gone.extend(installed.map(|(gone, old)| (gone.clone(), old.clone())));
        news
    }
}

/// What the services of a table come to.
fn wanted(
    kernel: &Kernel,
    nodes: &BTreeMap<String, u32>,
    drained: &Drains,
    table: &ServiceTable,
    summary: &mut Summary,
) -> Result<(BTreeMap<Key, Spec>, Drains), ApplyError> {
    let (mut specs, mut draining) = (Vec::new(), BTreeMap::new());
    for service in &table.services {
        let key = Key::new(service.key());
        match Spec::new(service, nodes) {
            Ok(spec) => {
                draining.extend(drains(service).map(|endpoints| (key.clone(), endpoints)));
                specs.push((key, spec));
            }
            Err(unfit) => {
                summary.refused.push(Refused::new(service, unfit.to_string()));
                draining.extend(drained.get(&key).map(|endpoints| (key.clone(), endpoints.clone())));
                specs.extend(kernel.services().get(&key).map(|installed| (key, installed.spec.clone())));
            }
        }
    }
    specs.sort_by(|(one, _), (other, _)| one.cmp(other));
    match specs.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        Some(pair) => Err(ApplyError::Twice((*pair[0].0).clone())),
        None => Ok((specs.into_iter().collect(), draining)),
    }
}

/// What applying `table` would change, and what could not be.
///
/// # Errors
/// When the table makes no sense.
pub fn plan(kernel: &Kernel, table: &ServiceTable) -> Result<(Vec<Difference>, Summary), ApplyError> {
    let mut summary = Summary::default();
    let numbers = kernel.numbers_of(&table.nodes);
    let (mut specs, _) = wanted(kernel, &numbers, &BTreeMap::new(), table, &mut summary)?;
    (summary.conflicts, _) = claims::settle(&mut specs);
    let before = kernel.services().iter().map(|(key, installed)| (key.clone(), &installed.spec)).collect();
    let nodes = diff::nodes(&kernel.nodes(), &table.all_nodes());
    let refuse = diff::refuse(&kernel.refuse(), &table.refuse.0);
    Ok((nodes.into_iter().chain(refuse).chain(diff::differences(&before, &specs)).collect(), summary))
}

/// Whether other nodes' addresses lead to other backends than this one's.
fn is_per_node(service: &Service) -> bool {
    service.external_traffic_policy == TrafficPolicy::Local
        && service.node_port.is_some()
        && service.backends.iter().any(|backend| backend.node.is_some())
}

fn drains(service: &Service) -> Option<Endpoints> {
    (!service.draining.is_empty()).then(|| gone::draining(&service.draining).collect())
}
