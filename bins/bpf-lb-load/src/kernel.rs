//! The service table as the kernel has it, and the changes that can be made to it.
//!
//! The maps are the only state. A writer reads them once, and keeps what it read up to date with what it writes; if it is
//! killed at any point, the programs go on with what is there, and the next writer finds it.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::{IpAddr, SocketAddr},
    path::Path,
};

use bpf_lb_abi::{Backend, Config, Endpoint, Entry, Long, NO_SERVICE, NO_SLOT, Name, Scope, Word, node_port_bit};
use service_table::Protocol;
use thiserror::Error;

use crate::{
    family::{self, About, BackendRef, Family as _, Run, Tables, number, words},
    grace::Grace,
    maps::{MapsError, mapped},
    name,
    space::Space,
    spec::{Frontend, SetKey, Spec},
    sys::Mapped,
};

/// What there is no room for, where backends that linger can make some.
const BACKEND: &str = "a backend";

/// Why a change was not made.
#[derive(Debug, Error)]
pub enum UpdateError {
    /// No change was made to the kernel, and the next one may be.
    #[error("{service}: no room for {what}; load with a larger {option}")]
    Full {
        /// Its key.
        service: String,
        /// What there is no room for.
        what: &'static str,
        /// The option that says how much.
        option: &'static str,
    },
    /// The change may be made in part. The next writer finds out.
    #[error(transparent)]
    Maps(#[from] MapsError),
}

/// A service in the maps.
#[derive(Clone, Debug)]
pub struct Installed {
    /// What it is meant to be.
    pub spec: Spec,
    /// Its index in `names`.
    pub id: u32,
    /// The runs to which its frontends lead. More than one to a set if a writer was killed between two frontends.
    runs: BTreeMap<SetKey, Vec<Run>>,
    /// All of its sets' backends.
    pub backends: BTreeMap<SocketAddr, BackendRef>,
    /// A writer was killed while it changed the service: not all is yet as `spec` says.
    torn: bool,
    /// Places that the addresses of `backends` have beside those, in a service that is torn.
    doubles: Vec<BackendRef>,
}

impl Installed {
    const fn new(id: u32, spec: Spec) -> Self {
        Self { spec, id, runs: BTreeMap::new(), backends: BTreeMap::new(), torn: false, doubles: Vec::new() }
    }
}

/// Who has a frontend, and where its cell is.
#[derive(Clone, Debug)]
struct Owned {
    cell: u32,
    owner: String,
}

/// A backend that left its service: while sockets are open to it, its place is kept, so that these count should it come back.
#[derive(Clone, Copy, Debug)]
struct Lingering {
    backend: BackendRef,
    /// A wait has begun since it left; when the next one begins, that has ended, and no program adds to the count any more.
    waited: bool,
}

/// The maps, and what is in them.
pub struct Kernel {
    four: Tables<u32>,
    six: Tables<[u32; 4]>,
    names: Mapped<Name>,
    backends: Mapped<Backend>,
    node_ports: Mapped<Long>,
    config: Mapped<Config>,
    grace: Grace,
    name_space: Space,
    backend_space: Space,
    services: BTreeMap<String, Installed>,
    owners: HashMap<Frontend, Owned>,
    /// By service id and address. Of services with least connections only, since the others' sockets are not counted.
    lingering: HashMap<(u32, SocketAddr), Lingering>,
}

/// Calls a method of the tables of the right family.
macro_rules! tables {
    ($kernel:expr, $v6:expr, $tables:ident => $body:expr) => {
        if $v6 {
            let $tables = &mut $kernel.six;
            $body
        } else {
            let $tables = &mut $kernel.four;
            $body
        }
    };
}

impl Kernel {
    /// Opens the maps that are pinned in `folder`, and reads them. Before any change, see [`Kernel::recover`].
    pub fn open(folder: &Path) -> Result<Self, MapsError> {
        let mut kernel = Self {
            four: Tables::open(folder)?,
            six: Tables::open(folder)?,
            names: mapped(folder, "names")?,
            backends: mapped(folder, "backends")?,
            node_ports: mapped(folder, "node_ports")?,
            config: mapped(folder, "config")?,
            grace: Grace::open(folder)?,
            name_space: Space::new(0, []),
            backend_space: Space::new(0, []),
            services: BTreeMap::new(),
            owners: HashMap::new(),
            lingering: HashMap::new(),
        };
        kernel.read();
        Ok(kernel)
    }

    fn read(&mut self) {
        let mut by_id = HashMap::new();
        for id in 0..self.names.capacity() {
            if let Some((key, spec)) = self.names.get(id).and_then(name::decode) {
                by_id.insert(id, key.clone());
                self.services.insert(key, Installed::new(id, spec));
            }
        }
        let four = self.four.read();
        let frontends = four.into_iter().chain(self.six.read());
        for (frontend, cell, entry) in frontends.collect::<Vec<_>>() {
            let about = tables!(self, frontend.address.is_ipv6(), tables => tables.about(Run::of(entry)));
            let about = about.map(|(about, _)| about);
            let owner = about.and_then(|about| by_id.get(&about.service)).cloned().unwrap_or_default();
            self.adopt(frontend, &owner, entry, about);
            self.owners.insert(frontend, Owned { cell, owner });
        }
        self.name_space = Space::new(self.names.capacity(), by_id.keys().map(|id| (*id, 1)));
    }

    /// Takes note of a frontend that is in the maps.
    fn adopt(&mut self, frontend: Frontend, owner: &str, entry: Entry, about: Option<About>) {
        let Some(service) = self.services.get_mut(owner) else { return };
        let (set, run) = ((entry.scope(), frontend.address.is_ipv6()), Run::of(entry));
        service.spec.frontends.insert(frontend, entry.kind());
        let runs = service.runs.entry(set).or_default();
        service.torn |= entry.least_connections() != service.spec.least_connections
            || entry.has_affinity() != service.spec.affinity_seconds.is_some()
            || about.map(|about| about.affinity_seconds) != Some(service.spec.affinity_seconds.unwrap_or_default());
        if runs.contains(&run) {
            return;
        }
        service.torn |= !runs.is_empty();
        runs.push(run);
        let members = service.spec.sets.entry(set).or_default();
        let backends: Vec<_> = tables!(self, set.1, tables => tables.backends(run).collect());
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
            for ((scope, v6), runs) in &service.runs {
                for run in runs {
                    let slots = tables!(self, *v6, tables => tables.backends(*run).collect::<Vec<_>>());
                    for (index, (_, backend, _)) in (0..).zip(slots) {
                        members.entry(backend.id).or_insert([NO_SLOT; 2])[*scope as usize] = run.slot(index);
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
        let lingering = self.lingering.values().map(|lingering| lingering.backend.id);
        let used = members.keys().copied().chain(lingering).map(|id| (id, 1));
        self.backend_space = Space::new(self.backends.capacity(), used);
        self.write_node_ports();
        self.settle()
    }

    /// Takes note of the backends that are in no set and have open sockets, and disowns the others that are in none.
    fn find_lingering(&mut self, members: &HashMap<u32, [u32; 2]>) {
        let counting = self.services.values().filter(|service| service.spec.least_connections);
        let counting: HashSet<_> = counting.map(|service| service.id).collect();
        for id in (0..self.backends.capacity()).filter(|id| !members.contains_key(id)) {
            let Some(place) = self.backends.get(id) else { continue };
            let key = (place.service.load(), address_of(place));
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

    /// Waits until every program that runs now has ended, and frees all that was retired.
    fn settle(&mut self) -> Result<(), MapsError> {
        // A wait that is under way began too early for what was retired since.
        if self.grace.is_waiting() {
            self.grace.end()?;
            self.wait_ends();
        }
        self.wait_begins();
        self.grace.end()?;
        self.wait_ends();
        Ok(())
    }

    /// Frees what no program uses any more, and begins to wait for the rest.
    fn tidy(&mut self) -> Result<(), MapsError> {
        if self.grace.has_ended()? {
            self.wait_ends();
        }
        if !self.grace.is_waiting() && (self.four.needs_wait() || self.six.needs_wait()) {
            self.wait_begins();
        }
        Ok(())
    }

    fn wait_begins(&mut self) {
        self.forget_lingering(|_, waited, open| waited && open == 0);
        self.lingering.values_mut().for_each(|lingering| lingering.waited = true);
        self.four.wait_begins();
        self.six.wait_begins();
        self.name_space.wait_begins();
        self.backend_space.wait_begins();
        self.grace.begin();
    }

    fn wait_ends(&mut self) {
        self.four.wait_ends();
        self.six.wait_ends();
        self.name_space.wait_ends();
        self.backend_space.wait_ends();
    }

    /// Gives up the places of those backends that linger and that `which` picks, by the service's id, whether a wait has
    /// begun since they left, and how many sockets are open to them.
    fn forget_lingering(&mut self, which: impl Fn(u32, bool, u32) -> bool) {
        let open = |backend: BackendRef| self.backends.get(backend.id).map_or(0, |place| place.open.load());
        let picked =
            |(service, _): &(u32, SocketAddr), left: &mut Lingering| which(*service, left.waited, open(left.backend));
        let forgotten: Vec<_> = self.lingering.extract_if(picked).collect();
        for (_, lingering) in forgotten {
            self.retire_backend(lingering.backend);
        }
    }

    /// The services, by key.
    pub const fn services(&self) -> &BTreeMap<String, Installed> {
        &self.services
    }

    /// What the programs and the loader share beside the table.
    pub fn config(&self) -> Option<&Config> {
        self.config.get(0)
    }

    /// What was counted of a service: connections that were refused for want of a backend, and those of each backend.
    pub fn counts(&self, service: &Installed) -> (u64, BTreeMap<SocketAddr, u64>) {
        let (mut refused, mut connections) = (0, BTreeMap::new());
        for ((_, v6), run) in service.runs.iter().flat_map(|(set, runs)| runs.iter().map(move |run| (set, *run))) {
            let (about, backends): (_, Vec<_>) = if *v6 {
                (self.six.about(run), self.six.backends(run).collect())
            } else {
                (self.four.about(run), self.four.backends(run).collect())
            };
            refused += about.map_or(0, |(_, refused)| refused);
            for (address, _, count) in backends {
                *connections.entry(address).or_default() += count;
            }
        }
        (refused, connections)
    }

    /// How many sockets are translated to a backend now.
    pub fn open_sockets(&self, backend: BackendRef) -> u64 {
        self.backends.get(backend.id).map_or(0, |backend| backend.open.load().into())
    }

    /// The addresses on which node ports answer.
    pub fn node_addresses(&self) -> Vec<IpAddr> {
        let Some(config) = self.config() else { return Vec::new() };
        let count = config.node_address_count.load() as usize;
        let address = |words: &[Word; 4]| words.each_ref().map(Word::load).to_ip().to_canonical();
        config.node_addresses.iter().take(count).map(address).collect()
    }

    /// Sets the addresses on which node ports answer, for the services that are set from now on.
    pub fn set_node_addresses(&self, addresses: &[IpAddr]) {
        let Some(config) = self.config() else { return };
        for (place, address) in config.node_addresses.iter().zip(addresses) {
            for (place, word) in place.iter().zip(mapped_words(*address)) {
                place.store(word);
            }
        }
        config.node_address_count.store(u32::try_from(addresses.len()).unwrap_or_default());
    }

    fn write_node_ports(&self) {
        let mut words = vec![0; self.node_ports.capacity() as usize];
        for service in self.services.values() {
            if let Some(port) = service.spec.node_port {
                let (word, bit) = node_port_bit(port, number(service.spec.protocol));
                if let Some(word) = words.get_mut(word as usize) {
                    *word |= bit;
                }
            }
        }
        for (index, value) in (0..).zip(words) {
            if let Some(word) = self.node_ports.get(index) {
                word.store(value);
            }
        }
    }

    /// Makes the service `key` be like `spec`. Says whether there was anything to do.
    ///
    /// Frontends that belong to another service are taken from it.
    pub fn set(&mut self, key: &str, spec: Spec) -> Result<bool, UpdateError> {
        if self.services.get(key).is_some_and(|old| old.spec == spec && !old.torn) {
            return Ok(false);
        }
        self.tidy()?;
        let old = self.services.remove(key);
        match self.find_room(key, &spec, old.as_ref()) {
            Ok(draft) => {
                self.write(key, spec, old, draft);
                Ok(true)
            }
            Err(error) => {
                self.services.extend(old.map(|old| (key.into(), old)));
                Err(error)
            }
        }
    }

    /// As [`Kernel::draft`], but if need be it waits for what was retired, and then gives up what lingers: that a backend
    /// is there matters more than another one's count.
    fn find_room(&mut self, key: &str, spec: &Spec, old: Option<&Installed>) -> Result<Draft, UpdateError> {
        let mut draft = self.draft(key, spec, old);
        if matches!(draft, Err(UpdateError::Full { .. })) {
            self.settle()?;
            draft = self.draft(key, spec, old);
        }
        let idle_then_all: [fn(u32) -> bool; 2] = [|open| open == 0, |_| true];
        for gives_up in idle_then_all {
            if !matches!(draft, Err(UpdateError::Full { what: BACKEND, .. })) {
                break;
            }
            self.forget_lingering(|_, _, open| gives_up(open));
            self.settle()?;
            draft = self.draft(key, spec, old);
        }
        draft
    }

    /// Finds room for all that is new, or for nothing.
    fn draft(&mut self, key: &str, spec: &Spec, old: Option<&Installed>) -> Result<Draft, UpdateError> {
        let mut draft = Draft::default();
        match self.fill(&mut draft, spec, old) {
            Ok(()) => Ok(draft),
            Err((what, option)) => {
                self.give_back(draft);
                Err(UpdateError::Full { service: key.into(), what, option })
            }
        }
    }

    fn fill(
        &mut self,
        draft: &mut Draft,
        spec: &Spec,
        old: Option<&Installed>,
    ) -> Result<(), (&'static str, &'static str)> {
        draft.id = match old {
            Some(old) => old.id,
            None => {
                let id = self.name_space.allocate(1).ok_or(("the service", "--max-services"))?;
                draft.new_id = Some(id);
                id
            }
        };
        for (address, local) in spec.sets.values().flatten() {
            let is_same = |known: &&BackendRef| known.generation & Backend::LOCAL == u32::from(*local);
            let before = old.and_then(|old| old.backends.get(address)).filter(is_same);
            if before.or_else(|| draft.new_backends.get(address).filter(is_same)).is_some() {
                continue;
            }
            let left = self.lingering.get(&(draft.id, *address)).map(|lingering| &lingering.backend);
            if let Some(back) = left.filter(is_same) {
                draft.returning.insert(*address, *back);
            } else {
                let id = self.backend_space.allocate(1).ok_or((BACKEND, "--max-backends"))?;
                let generation = self.backends.get(id).map_or(0, |place| place.generation.load());
                let generation = (generation & !Backend::LOCAL).wrapping_add(2) | u32::from(*local);
                draft.new_backends.insert(*address, BackendRef { id, generation });
            }
        }
        for (set, backends) in &spec.sets {
            if let Some(old) = old
                && !old.torn
                && old.spec.sets.get(set) == Some(backends)
                && old.spec.affinity_seconds == spec.affinity_seconds
                && old.spec.protocol == spec.protocol
                && let Some([run]) = old.runs.get(set).map(Vec::as_slice)
            {
                draft.kept_runs.insert(*set, *run);
                continue;
            }
            let len = u32::try_from(backends.len()).unwrap_or(u32::MAX);
            let run =
                tables!(self, set.1, tables => tables.allocate_run(len)).ok_or(("the backends", "--max-backends"))?;
            draft.new_runs.insert(*set, run);
        }
        for frontend in spec.frontends.keys().filter(|frontend| !self.owners.contains_key(frontend)) {
            let cell = tables!(self, frontend.address.is_ipv6(), tables => tables.allocate_cell(frontend))
                .ok_or(("a frontend", "--max-services"))?;
            draft.new_cells.insert(*frontend, cell);
        }
        Ok(())
    }

    fn give_back(&mut self, draft: Draft) {
        if let Some(id) = draft.new_id {
            self.name_space.free(id, 1);
        }
        for backend in draft.new_backends.values() {
            self.backend_space.free(backend.id, 1);
        }
        for ((_, v6), run) in draft.new_runs {
            tables!(self, v6, tables => tables.free_run(run));
        }
        for (frontend, cell) in draft.new_cells {
            tables!(self, frontend.address.is_ipv6(), tables => tables.free_cell(cell));
        }
    }

    /// Writes what nobody reads yet, then lets the frontends lead there, then takes the old away.
    fn write(&mut self, key: &str, spec: Spec, old: Option<Installed>, draft: Draft) {
        if old.as_ref().is_none_or(|old| name::encode(key, &old.spec) != name::encode(key, &spec)) {
            self.names.put(draft.id, name::encode(key, &spec));
        }
        let mut backends = old.as_ref().map(|old| old.backends.clone()).unwrap_or_default();
        let others = draft.new_backends.keys().chain(draft.returning.keys());
        let replaced: Vec<_> = others.filter_map(|address| backends.remove(address)).collect();
        for (address, backend) in &draft.new_backends {
            self.backends.put(backend.id, new_backend(*backend, draft.id, *address, spec.protocol));
            backends.insert(*address, *backend);
        }
        for (address, backend) in &draft.returning {
            self.lingering.remove(&(draft.id, *address));
            backends.insert(*address, *backend);
        }
        let about = About { service: draft.id, affinity_seconds: spec.affinity_seconds.unwrap_or_default() };
        for (set, run) in &draft.new_runs {
            let before = old.as_ref().and_then(|old| old.runs.get(set)?.first()).copied();
            self.write_run(*set, *run, about, before, &spec, &backends);
        }
        let runs: BTreeMap<_, _> =
            draft.kept_runs.iter().chain(&draft.new_runs).map(|(set, run)| (*set, *run)).collect();
        for frontend in spec.frontends.keys() {
            self.lead(key, frontend, entry(&spec, frontend, &runs), draft.new_cells.get(frontend).copied());
        }
        let runs = runs.into_iter().map(|(set, run)| (set, vec![run])).collect();
        let node_port = (old.as_ref().and_then(|old| old.spec.node_port), spec.node_port);
        let mut new = Installed { runs, backends, ..Installed::new(draft.id, spec) };
        self.clear(key, old, &mut new, &replaced);
        self.services.insert(key.into(), new);
        if node_port.0 != node_port.1 {
            self.write_node_ports();
        }
    }

    fn write_run(
        &mut self,
        (scope, v6): SetKey,
        run: Run,
        about: About,
        before: Option<Run>,
        spec: &Spec,
        backends: &BTreeMap<SocketAddr, BackendRef>,
    ) {
        tables!(self, v6, tables => tables.write_about(run, about, before));
        let members = spec.sets.get(&(scope, v6)).into_iter().flat_map(BTreeMap::keys);
        for (index, address) in (0..).zip(members) {
            let Some(backend) = backends.get(address) else { continue };
            let Some(place) = self.backends.get(backend.id).map(|place| &place.slots[scope as usize]) else { continue };
            let before = Some(place.load()).filter(|slot| *slot != NO_SLOT);
            let slot = run.slot(index);
            tables!(self, v6, tables => tables.write_slot(slot, *address, spec.protocol, *backend, before));
            place.store(slot);
        }
    }

    fn lead(&mut self, key: &str, frontend: &Frontend, entry: Entry, new: Option<u32>) {
        let v6 = frontend.address.is_ipv6();
        let cell = match (self.owners.get(frontend), new) {
            (Some(owned), _) => {
                tables!(self, v6, tables => tables.lead(owned.cell, entry));
                owned.cell
            }
            (None, Some(cell)) => {
                tables!(self, v6, tables => tables.insert(frontend, cell, entry));
                cell
            }
            (None, None) => return,
        };
        let before = self.owners.insert(*frontend, Owned { cell, owner: key.into() });
        if let Some(other) =
            before.filter(|owned| owned.owner != key).and_then(|owned| self.services.get_mut(&owned.owner))
        {
            other.spec.frontends.remove(frontend);
        }
    }

    /// Takes away what the service had and has no more.
    fn clear(&mut self, key: &str, old: Option<Installed>, new: &mut Installed, replaced: &[BackendRef]) {
        for backend in replaced {
            self.retire_backend(*backend);
        }
        if let Some(old) = old {
            for double in &old.doubles {
                self.retire_backend(*double);
            }
            for frontend in old.spec.frontends.keys().filter(|frontend| !new.spec.frontends.contains_key(frontend)) {
                self.remove_frontend(key, frontend);
            }
            for (address, backend) in old.backends.iter().filter(|(_, backend)| !replaced.contains(backend)) {
                let stays = [Scope::Internal, Scope::External].map(|scope| {
                    new.spec.sets.iter().any(|(set, members)| set.0 == scope && members.contains_key(address))
                });
                self.leave(*backend, stays);
                if stays == [false; 2] {
                    new.backends.remove(address);
                    self.part(&old, *address, *backend);
                }
            }
            for (set, run) in old.runs.iter().flat_map(|(set, runs)| runs.iter().map(move |run| (set, run))) {
                if new.runs.get(set).is_none_or(|kept| !kept.contains(run)) {
                    tables!(self, set.1, tables => tables.retire_run(*run));
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

    fn retire_backend(&mut self, backend: BackendRef) {
        self.leave(backend, [false; 2]);
        if let Some(place) = self.backends.get(backend.id) {
            disown(place);
        }
        self.backend_space.retire(backend.id, 1);
    }

    fn leave(&self, backend: BackendRef, stays: [bool; 2]) {
        let slots = self.backends.get(backend.id).into_iter().flat_map(|place| &place.slots);
        for (slot, _) in slots.zip(stays).filter(|(_, stays)| !stays) {
            slot.store(NO_SLOT);
        }
    }

    fn remove_frontend(&mut self, key: &str, frontend: &Frontend) {
        if let Some(owned) = self.owners.get(frontend).filter(|owned| owned.owner == key) {
            tables!(self, frontend.address.is_ipv6(), tables => tables.remove(owned.cell));
            self.owners.remove(frontend);
        }
    }

    /// Removes the service `key`. Says whether it was there.
    pub fn remove(&mut self, key: &str) -> bool {
        let Some(service) = self.services.remove(key) else { return false };
        for frontend in service.spec.frontends.keys() {
            self.remove_frontend(key, frontend);
        }
        for backend in service.backends.into_values().chain(service.doubles) {
            self.retire_backend(backend);
        }
        self.forget_lingering(|id, _, _| id == service.id);
        for (set, run) in service.runs.iter().flat_map(|(set, runs)| runs.iter().map(move |run| (set, run))) {
            tables!(self, set.1, tables => tables.retire_run(*run));
        }
        self.names.put(service.id, name::NONE);
        self.name_space.retire(service.id, 1);
        if service.spec.node_port.is_some() {
            self.write_node_ports();
        }
        true
    }
}

/// Room for what is new in a service.
#[derive(Default)]
struct Draft {
    id: u32,
    new_id: Option<u32>,
    new_backends: BTreeMap<SocketAddr, BackendRef>,
    returning: BTreeMap<SocketAddr, BackendRef>,
    kept_runs: BTreeMap<SetKey, Run>,
    new_runs: BTreeMap<SetKey, Run>,
    new_cells: BTreeMap<Frontend, u32>,
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

/// Makes a backend's sockets strangers to its place, so that none of them counts down what is counted there next.
fn disown(place: &Backend) {
    place.generation.store(place.generation.load().wrapping_add(2));
    place.service.store(NO_SERVICE);
}

fn mapped_words(address: IpAddr) -> [u32; 4] {
    words(match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    })
}

/// Where a backend listens.
fn address_of(backend: &Backend) -> SocketAddr {
    let address = family::address(&backend.endpoint);
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

fn entry(spec: &Spec, frontend: &Frontend, runs: &BTreeMap<SetKey, Run>) -> Entry {
    let kind = spec.frontends.get(frontend).copied().unwrap_or_default();
    let run = spec.set_of(frontend).and_then(|set| runs.get(&set));
    run.map_or(Entry::NONE, |run| {
        Entry::new(run.base, run.count, spec.affinity_seconds.is_some(), spec.least_connections, kind)
    })
}
