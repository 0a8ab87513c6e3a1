//! Reading what is in the maps, also what a writer that was killed has left there.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    path::Path,
    rc::Rc,
};

use anyhow::{Context as _, Result};
use bpf_lb_abi::{Backend, Entry, NO_SERVICE, NO_SLOT, OTHER_NODE};

use crate::{
    family::{self, About, BackendRef, Run, Tables},
    grace::Grace,
    kernel::{Installed, Kernel, Key, Lingering, Owned, disown, tables},
    layout,
    maps::{MapsError, mapped},
    name,
    node::NodeMap,
    pins::Pins,
    space::Space,
    spec::{self, Frontend},
    used::Used,
};

impl Kernel {
    /// Opens the maps of a load balancer, if they are of this version, and reads them. Before any change, see
    /// [`Kernel::recover`].
    pub fn open(pins: &Pins) -> Result<Self> {
        layout::check(pins)?;
        let folder = pins.maps();
        let read = Self::read(&folder).map_err(|error| pins.explain(error));
        read.with_context(|| format!("read the maps in {}", folder.display()))
    }

    fn read(folder: &Path) -> Result<Self, MapsError> {
        let mut kernel = Self {
            four: Tables::open(folder)?,
            six: Tables::open(folder)?,
            names: mapped(folder, "names")?,
            backends: mapped(folder, "backends")?,
            nodes: NodeMap::open(folder)?,
            node_ports: mapped(folder, "node_ports")?,
            config: mapped(folder, "config")?,
            grace: Grace::open(folder)?,
            name_space: Space::new(0, []),
            backend_space: Space::new(0, []),
            services: BTreeMap::new(),
            owners: foldhash::HashMap::default(),
            wildcards: HashMap::new(),
            spared: HashSet::new(),
            // By a writer that was killed before it could make the wildcards fit.
            frontends_changed: true,
            lingering: HashMap::new(),
            used: Used::default(),
        };
        kernel.find_services();
        Ok(kernel)
    }

    fn find_services(&mut self) {
        let mut by_id = HashMap::new();
        for id in 0..self.names.capacity() {
            if let Some((key, spec)) = self.names.get(id).and_then(name::decode) {
                let key = Key::new(key);
                by_id.insert(id, key.clone());
                self.services.insert(key, Installed::new(id, spec).into());
            }
        }
        let (four, six) = (self.four.read(), self.six.read());
        self.wildcards = four.wildcards.into_iter().chain(six.wildcards).collect();
        for (frontend, cell, entry) in four.frontends.into_iter().chain(six.frontends) {
            let about = tables!(self, frontend.address.is_ipv6(), tables => tables.about(Run::of(entry)));
            let about = about.map(|(about, _)| about);
            let owner = about.and_then(|about| by_id.get(&about.service)).cloned();
            self.adopt(frontend, owner.as_ref(), entry, about);
            self.owners.insert(frontend, Owned { cell, owner });
        }
        self.name_space = Space::new(self.names.capacity(), by_id.keys().map(|id| (*id, 1)));
    }

    /// Takes note of a frontend that is in the maps.
    fn adopt(&mut self, frontend: Frontend, owner: Option<&Key>, entry: Entry, about: Option<About>) {
        let Some(service) = owner.and_then(|owner| self.services.get_mut(owner)).map(Rc::make_mut) else { return };
        let (set, run) = (spec::set_of(&frontend, entry.kind()), Run::of(entry));
        service.spec.frontends.insert(frontend, entry.kind());
        let runs = service.runs.entry(set).or_default();
        service.torn |= entry.least_connections() != service.spec.least_connections
            || entry.has_affinity() != service.spec.affinity_seconds.is_some()
            || entry.is_per_node() != service.spec.is_per_node(&frontend)
            || about.map(|about| about.affinity_seconds) != Some(service.spec.affinity_seconds.unwrap_or_default());
        if runs.contains(&run) {
            return;
        }
        service.torn |= !runs.is_empty();
        runs.push(run);
        let members = service.spec.sets.entry(set).or_default();
        let backends: Vec<_> = tables!(self, set.v6, tables => tables.backends(run).collect());
        for (address, backend, _) in backends {
            members.insert(address, backend.generation & Backend::LOCAL != 0);
            let known = *service.backends.entry(address).or_insert(backend);
            if known != backend && !service.doubles.contains(&backend) {
                service.doubles.push(backend);
            }
        }
    }

    /// Readies for changes what a writer that was killed may have left half done, and waits until no program reads what
    /// that writer gave up.
    pub fn recover(&mut self) -> Result<(), MapsError> {
        let mut members: HashMap<u32, [u32; 2]> = HashMap::new();
        for service in self.services.values() {
            for (set, runs) in &service.runs {
                for run in runs {
                    for (id, slot) in self.places(*set, *run) {
                        let places = members.entry(id).or_insert([NO_SLOT; 2]);
                        let place = &mut places[set.scope as usize];
                        if set.node == 0 {
                            *place = slot;
                        } else if *place == NO_SLOT {
                            *place = slot | OTHER_NODE;
                        }
                    }
                }
            }
        }
        for id in 0..self.backends.capacity() {
            let Some(backend) = self.backends.get(id) else { continue };
            let slots = members.get(&id).unwrap_or(&[NO_SLOT; 2]);
            for (word, slot) in backend.slots.iter().zip(slots) {
                if word.load() != *slot {
                    word.store(*slot);
                }
            }
        }
        self.find_lingering(&members);
        for service in self.services.values().cloned().collect::<Vec<_>>() {
            self.note_used(&service);
        }
        let lingering = self.lingering.values().map(|lingering| lingering.backend.id);
        let used = members.keys().copied().chain(lingering).map(|id| (id, 1));
        self.backend_space = Space::new(self.backends.capacity(), used);
        self.write_node_ports();
        self.settle()?;
        self.four.recover();
        self.six.recover();
        Ok(())
    }

    /// Takes note of the backends that are in no set and have open sockets, and disowns the others that are in none.
    fn find_lingering(&mut self, members: &HashMap<u32, [u32; 2]>) {
        let counting = self.services.values().filter(|service| service.spec.least_connections);
        let counting: HashSet<_> = counting.map(|service| service.id).collect();
        for id in (0..self.backends.capacity()).filter(|id| !members.contains_key(id)) {
            let Some(place) = self.backends.get(id) else { continue };
            let key = (place.service.load(), family::canonical(&place.endpoint));
            if key.0 == NO_SERVICE {
                continue;
            }
            if place.open.load() == 0 || !counting.contains(&key.0) || self.lingering.contains_key(&key) {
                disown(place);
                continue;
            }
            let backend = BackendRef { id, generation: place.generation.load() };
            self.lingering.insert(key, Lingering { backend, waited: false });
        }
    }
}
