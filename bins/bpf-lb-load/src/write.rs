//! Writing: what nobody reads yet, then what leads there, then the old is taken away.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, hash_map},
    net::SocketAddr,
    rc::Rc,
};

use bpf_lb_abi::{Backend, Endpoint, Entry, Kind, NO_SLOT, OTHER_NODE, Word};
use service_table::{Protocol, ServiceName};

use crate::{
    family::{About, BackendRef, Run, mapped_words, number},
    kernel::{Installed, Kernel, Key, Lingering, Owned, tables},
    name,
    room::{Draft, UpdateError},
    spec::{Frontend, SetKey, Spec, set_of},
};

/// A service that could not be set.
pub struct NotSet {
    /// As it was to be.
    pub service: Box<(Key, Spec)>,
    /// Why it is not.
    pub why: UpdateError,
}

impl Kernel {
    /// Makes the service `key` be like `spec`. Says whether there was anything to do.
    ///
    /// Frontends that belong to another service are taken from it.
    pub fn set(&mut self, key: Key, spec: Spec) -> Result<bool, NotSet> {
        let old = self.services.get(&key).cloned();
        if old.as_ref().is_some_and(|old| old.is(&spec)) {
            return Ok(false);
        }
        if let Err(error) = self.tidy() {
            return Err(NotSet { service: Box::new((key, spec)), why: error.into() });
        }
        match self.find_room(&spec, old.as_deref()) {
            Ok(draft) => {
                self.write(key, spec, old.as_deref(), draft);
                Ok(true)
            }
            Err(why) => Err(NotSet { service: Box::new((key, spec)), why }),
        }
    }

    /// Writes what nobody reads yet, then lets the frontends lead there, then takes the old away.
    fn write(&mut self, key: Key, spec: Spec, old: Option<&Installed>, mut draft: Draft) {
        let name = name::encode(&key, &spec);
        if self.names.get(draft.id) != Some(&name) {
            self.names.put(draft.id, name);
        }
        let mut backends = old.map(|old| old.backends.clone()).unwrap_or_default();
        let others = draft.new_backends.keys().chain(draft.returning.keys());
        let replaced: Vec<_> = others.filter_map(|address| backends.remove(address)).collect();
        for (address, backend) in &draft.new_backends {
            self.backends.put(backend.id, new_backend(*backend, draft.id, *address, spec.protocol));
        }
        for address in draft.returning.keys() {
            self.lingering.remove(&(draft.id, *address));
        }
        backends.append(&mut draft.new_backends);
        backends.append(&mut draft.returning);
        let affinity_seconds = spec.affinity_seconds.unwrap_or_default();
        for (set, run) in &draft.new_runs {
            let before = old.and_then(|old| old.runs.get(set)?.first()).copied();
            let about = About { service: draft.id, affinity_seconds };
            self.write_run(*set, *run, about, before, &spec, &backends);
        }
        let runs: BTreeMap<_, _> =
            draft.kept_runs.iter().chain(&draft.new_runs).map(|(set, run)| (*set, *run)).collect();
        self.place_others(&spec, &runs);
        let losers: BTreeSet<_> = spec.frontends.keys().filter_map(|frontend| self.owner(frontend)).cloned().collect();
        for loser in losers.iter().filter(|loser| **loser != key) {
            if let Some(loser) = self.services.get(loser).cloned() {
                self.note_used(&loser);
            }
        }
        self.frontends_changed |= old.is_none_or(|old| old.spec.frontends != spec.frontends);
        for (frontend, kind) in &spec.frontends {
            self.lead(&key, frontend, entry(&spec, frontend, *kind, &runs), draft.new_cells.get(frontend).copied());
        }
        let runs = runs.into_iter().map(|(set, run)| (set, vec![run])).collect();
        let node_port = |spec: &Spec| spec.node_port.map(|port| (port, spec.protocol));
        let moves = old.and_then(|old| node_port(&old.spec)) != node_port(&spec);
        let mut new = Installed { runs, backends, ..Installed::new(draft.id, spec) };
        self.clear(&key, old, &mut new, &replaced);
        self.services.insert(key, new.into());
        if moves {
            self.write_node_ports();
        }
    }

    fn write_run(
        &mut self,
        set: SetKey,
        run: Run,
        about: About,
        before: Option<Run>,
        spec: &Spec,
        backends: &BTreeMap<SocketAddr, BackendRef>,
    ) {
        // A number's low bits are enough to tell a client's nodes apart.
        tables!(self, set.v6, tables => tables.write_about(run, about, set.node as u16, before));
        // `backends` does not say where those of another node's set are.
        let before = before.filter(|_| set.node != 0);
        let before: HashMap<_, _> = before.map(|run| self.places(set, run).collect()).unwrap_or_default();
        let members = spec.sets.get(&set).into_iter().flat_map(BTreeMap::keys);
        for (index, address) in (0..).zip(members) {
            let Some(backend) = backends.get(address) else { continue };
            let Some(place) = self.backends.get(backend.id).map(|place| &place.slots[set.scope as usize]) else {
                continue;
            };
            let slot = run.slot(index);
            let before = if set.node == 0 {
                Some(place.load()).filter(|slot| slot & OTHER_NODE == 0)
            } else {
                before.get(&backend.id).copied()
            };
            tables!(self, set.v6, tables => tables.write_slot(slot, *address, spec.protocol, *backend, before));
            if set.node == 0 {
                place.store(slot);
            }
        }
    }

    /// Says of the backends that are only in another node's set that they are there.
    fn place_others(&self, spec: &Spec, runs: &BTreeMap<SetKey, Run>) {
        for (set, run) in runs.iter().filter(|(set, _)| set.node != 0) {
            let all = spec.sets.get(&SetKey { node: 0, ..*set });
            for ((id, slot), address) in
                self.places(*set, *run).zip(spec.sets.get(set).into_iter().flat_map(BTreeMap::keys))
            {
                if all.is_none_or(|all| !all.contains_key(address))
                    && let Some(place) = self.backends.get(id)
                {
                    place.slots[set.scope as usize].store(slot | OTHER_NODE);
                }
            }
        }
    }

    fn lead(&mut self, key: &Key, frontend: &Frontend, entry: Entry, new: Option<u32>) {
        let v6 = frontend.address.is_ipv6();
        let mut before = None;
        if let Some(owned) = self.owners.get_mut(frontend) {
            tables!(self, v6, tables => tables.lead(owned.cell, entry));
            before = owned.owner.replace(key.clone());
        } else if let Some(cell) = new {
            tables!(self, v6, tables => tables.insert(frontend, cell, entry));
            self.owners.insert(*frontend, Owned { cell, owner: Some(key.clone()) });
        }
        if let Some(other) = before
            && other != *key
            && let Some(loser) = self.services.get_mut(&other)
        {
            Rc::make_mut(loser).spec.frontends.remove(frontend);
        }
    }

    /// Takes away what the service had and has no more.
    fn clear(&mut self, key: &Key, old: Option<&Installed>, new: &mut Installed, replaced: &[BackendRef]) {
        for backend in replaced {
            self.retire_backend(*backend);
        }
        if let Some(old) = old {
            self.note_used(old);
            for double in &old.doubles {
                self.retire_backend(*double);
            }
            for frontend in old.spec.frontends.keys().filter(|frontend| !new.spec.frontends.contains_key(frontend)) {
                self.remove_frontend(key, frontend);
            }
            for (address, backend) in old.backends.iter().filter(|(_, backend)| !replaced.contains(backend)) {
                let mut stays = [false; 2];
                for (set, _) in new.spec.sets.iter().filter(|(_, members)| members.contains_key(address)) {
                    stays[set.scope as usize] = true;
                }
                self.leave(*backend, stays);
                if stays == [false; 2] {
                    new.backends.remove(address);
                    self.part(old, *address, *backend);
                }
            }
            for (set, run) in old.runs.iter().flat_map(|(set, runs)| runs.iter().map(move |run| (set, run))) {
                if new.runs.get(set).is_none_or(|kept| !kept.contains(run)) {
                    tables!(self, set.v6, tables => tables.retire_run(*run));
                }
            }
        }
    }

    /// A backend leaves its service, and may come back.
    fn part(&mut self, service: &Installed, address: SocketAddr, backend: BackendRef) {
        if !service.spec.least_connections {
            return self.retire_backend(backend);
        }
        let lingering = Lingering { backend, waited: false };
        // The same address, from when it was local or from when it was not.
        if let Some(older) = self.lingering.insert((service.id, address), lingering) {
            self.retire_backend(older.backend);
        }
    }

    fn remove_frontend(&mut self, key: &Key, frontend: &Frontend) {
        if let hash_map::Entry::Occupied(owned) = self.owners.entry(*frontend)
            && owned.get().owner.as_ref() == Some(key)
        {
            self.frontends_changed = true;
            tables!(self, frontend.address.is_ipv6(), tables => tables.remove(owned.remove().cell));
        }
    }

    /// Removes the service `key`. Says whether it was there.
    pub fn remove(&mut self, key: &ServiceName) -> bool {
        let Some((key, service)) = self.services.remove_entry(key) else { return false };
        self.note_used(&service);
        for frontend in service.spec.frontends.keys() {
            self.remove_frontend(&key, frontend);
        }
        for backend in service.backends.values().chain(&service.doubles) {
            self.retire_backend(*backend);
        }
        self.forget_lingering(|id, _, _| id == service.id);
        for (set, run) in service.runs.iter().flat_map(|(set, runs)| runs.iter().map(move |run| (set, run))) {
            tables!(self, set.v6, tables => tables.retire_run(*run));
        }
        self.names.put(service.id, name::NONE);
        self.name_space.retire(service.id, 1);
        if service.spec.node_port.is_some() {
            self.write_node_ports();
        }
        true
    }
}

fn new_backend(backend: BackendRef, service: u32, address: SocketAddr, protocol: Protocol) -> Backend {
    Backend {
        open: Word::new(0),
        slots: [Word::new(NO_SLOT), Word::new(NO_SLOT)],
        generation: Word::new(backend.generation),
        service: Word::new(service),
        endpoint: Endpoint {
            address: mapped_words(address.ip()),
            port: address.port().to_be(),
            protocol: number(protocol),
        },
    }
}

fn entry(spec: &Spec, frontend: &Frontend, kind: Kind, runs: &BTreeMap<SetKey, Run>) -> Entry {
    runs.get(&set_of(frontend, kind)).map_or(Entry::NONE, |run| {
        let entry = Entry::new(run.base, run.count, spec.affinity_seconds.is_some(), spec.least_connections, kind);
        if spec.is_per_node(frontend) { entry.per_node() } else { entry }
    })
}
