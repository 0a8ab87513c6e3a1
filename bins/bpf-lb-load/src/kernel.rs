//! The service table as the kernel has it, and the changes that can be made to it.
//!
//! The maps are the only state. A writer reads them once, and keeps what it read up to date with what it writes; if it is
//! killed at any point, the programs go on with what is there, and the next writer finds it.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::{IpAddr, SocketAddr},
    rc::Rc,
};

use bpf_lb_abi::{Backend, Config, Long, NO_SERVICE, NO_SLOT, Name, node_port_bit};
use service_table::{Node, Nodes, ServiceName};

use crate::{
    family::{BackendRef, Run, Tables, number},
    grace::Grace,
    maps::MapsError,
    node::NodeMap,
    space::Space,
    spec::{Frontend, SetKey, Spec},
    sys::Mapped,
    used::Used,
};

/// The name of a service, of which any number of copies cost nothing.
pub type Key = Rc<ServiceName>;

/// A service in the maps.
#[derive(Clone, Debug)]
pub struct Installed {
    /// What it is meant to be.
    pub spec: Spec,
    /// Its index in `names`.
    pub id: u32,
    /// The runs to which its frontends lead. More than one to a set if a writer was killed between two frontends.
    pub(crate) runs: BTreeMap<SetKey, Vec<Run>>,
    /// All of its sets' backends.
    pub backends: BTreeMap<SocketAddr, BackendRef>,
    /// A writer was killed while it changed the service: not all is yet as `spec` says.
    pub(crate) torn: bool,
    /// Places that the addresses of `backends` have beside those, in a service that is torn.
    pub(crate) doubles: Vec<BackendRef>,
}

impl Installed {
    pub(crate) const fn new(id: u32, spec: Spec) -> Self {
        Self { spec, id, runs: BTreeMap::new(), backends: BTreeMap::new(), torn: false, doubles: Vec::new() }
    }

    /// Whether all of it is just so.
    pub fn is(&self, spec: &Spec) -> bool {
        self.spec == *spec && !self.torn
    }
}

/// Who has a frontend, and where its cell is.
#[derive(Clone, Debug)]
pub(crate) struct Owned {
    pub(crate) cell: u32,
    pub(crate) owner: Option<Key>,
}

/// A backend that left its service: while sockets are open to it, its place is kept, so that these count should it come back.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lingering {
    pub(crate) backend: BackendRef,
    /// A wait has begun since it left; when the next one begins, that has ended, and no program adds to the count any more.
    pub(crate) waited: bool,
}

/// The maps, and what is in them.
pub struct Kernel {
    pub(crate) four: Tables<u32>,
    pub(crate) six: Tables<[u32; 4]>,
    pub(crate) names: Mapped<Name>,
    pub(crate) backends: Mapped<Backend>,
    pub(crate) nodes: NodeMap,
    pub(crate) node_ports: Mapped<Long>,
    pub(crate) config: Mapped<Config>,
    pub(crate) grace: Grace,
    pub(crate) name_space: Space,
    pub(crate) backend_space: Space,
    /// Whoever holds one of them keeps it as it was.
    pub(crate) services: BTreeMap<Key, Rc<Installed>>,
    pub(crate) owners: foldhash::HashMap<Frontend, Owned>,
    /// The cell of each ClusterIP's entry for any port: a connect() to a port that no service has there is refused, see [`Self::refuse`].
    pub(crate) wildcards: HashMap<IpAddr, u32>,
    /// ClusterIPs of services that are not wholly in the tables: a connect() to a port that is missing there takes the host path, and
    /// must not be refused.
    pub(crate) spared: HashSet<IpAddr>,
    pub(crate) frontends_changed: bool,
    /// By service id and address. Of services with least connections only, since the others' sockets are not counted.
    pub(crate) lingering: HashMap<(u32, SocketAddr), Lingering>,
    /// Of what services have lost, and had before this writer came.
    pub(crate) used: Used,
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
pub(crate) use tables;

impl Kernel {
    /// Waits until every program that runs now has ended, and frees all that was retired.
    pub(crate) fn settle(&mut self) -> Result<(), MapsError> {
        // A wait that is under way began too early for what was retired since.
        self.end_wait()?;
        self.wait_begins();
        self.grace.end()?;
        self.wait_ends();
        Ok(())
    }

    /// Ends the wait that is under way, if one is.
    pub(crate) fn end_wait(&mut self) -> Result<(), MapsError> {
        if self.grace.is_waiting() {
            self.grace.end()?;
            self.wait_ends();
        }
        Ok(())
    }

    /// The same as [`Kernel::settle`] if anything was retired since the last wait, and says so; if not, another one frees nothing.
    pub(crate) fn reclaim(&mut self) -> Result<bool, MapsError> {
        let spaces = [&self.name_space, &self.backend_space];
        let retired = self.four.needs_wait() || self.six.needs_wait() || spaces.iter().any(|space| space.needs_wait());
        if retired {
            self.settle()?;
        } else if self.grace.is_waiting() {
            self.end_wait()?;
        } else {
            return Ok(false);
        }
        Ok(true)
    }

    /// Frees what no program uses any more, and begins to wait for the rest.
    pub(crate) fn tidy(&mut self) -> Result<(), MapsError> {
        if self.grace.has_ended()? {
            self.wait_ends();
        }
        if !self.grace.is_waiting() && (self.four.needs_wait() || self.six.needs_wait()) {
            self.wait_begins();
        }
        Ok(())
    }

    pub(crate) fn wait_begins(&mut self) {
        self.forget_lingering(|_, waited, open| waited && open == 0);
        self.lingering.values_mut().for_each(|lingering| lingering.waited = true);
        self.four.wait_begins();
        self.six.wait_begins();
        self.name_space.wait_begins();
        self.backend_space.wait_begins();
        self.grace.begin();
    }

    pub(crate) fn wait_ends(&mut self) {
        self.four.wait_ends();
        self.six.wait_ends();
        self.name_space.wait_ends();
        self.backend_space.wait_ends();
    }

    /// Gives up the places of those backends that linger and that `which` picks, by the service's id, whether a wait has
    /// begun since they left, and how many sockets are open to them.
    pub(crate) fn forget_lingering(&mut self, which: impl Fn(u32, bool, u32) -> bool) {
        let open = |backend: BackendRef| self.backends.get(backend.id).map_or(0, |place| place.open.load());
        let picked =
            |(service, _): &(u32, SocketAddr), left: &mut Lingering| which(*service, left.waited, open(left.backend));
        let forgotten: Vec<_> = self.lingering.extract_if(picked).collect();
        for (_, lingering) in forgotten {
            self.retire_backend(lingering.backend);
        }
    }

    /// The services, by key.
    pub const fn services(&self) -> &BTreeMap<Key, Rc<Installed>> {
        &self.services
    }

    /// Who has a frontend.
    pub fn owner(&self, frontend: &Frontend) -> Option<&Key> {
        self.owners.get(frontend)?.owner.as_ref()
    }

    /// The frontend to which an address leads, found as the programs find it.
    pub fn frontend(&self, asked: &Frontend) -> Option<Frontend> {
        if self.owner(asked).is_some() {
            return Some(*asked);
        }
        self.nodes.addresses.frontend(asked, |own| Some(self.services.get(self.owner(own)?)?.spec.is_per_node(own)))
    }

    /// On whose addresses node ports answer.
    pub fn nodes(&self) -> Nodes {
        self.nodes.nodes()
    }

    /// The numbers of the other nodes, by name.
    pub const fn node_numbers(&self) -> &BTreeMap<String, u32> {
        &self.nodes.numbers
    }

    /// Those that they would have.
    pub fn numbers_of(&self, nodes: &[Node]) -> BTreeMap<String, u32> {
        self.nodes.numbers_of(nodes)
    }

    /// Before the services are set that are to answer on the addresses of `nodes`: gives each node a number, and lets go of
    /// addresses that none of them has.
    pub fn prepare_nodes(&mut self, nodes: &Nodes) -> Result<(), MapsError> {
        self.nodes.prepare(nodes)
    }

    /// After it. Returns how many addresses found no room.
    pub fn publish_nodes(&mut self, nodes: &Nodes) -> usize {
        let left_out = self.nodes.publish(nodes);
        if let Some(config) = self.config() {
            config.has_nodes.store(u32::from(!self.nodes.is_empty()));
        }
        left_out
    }

    pub(crate) fn write_node_ports(&self) {
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

    /// What the programs and the loader share beside the table.
    pub fn config(&self) -> Option<&Config> {
        self.config.get(0)
    }

    /// All that was counted of a service, together: 0 of most.
    pub fn sum(&self, service: &Installed) -> u64 {
        let runs = service.runs.iter().flat_map(|(set, runs)| runs.iter().map(move |run| (set, *run)));
        runs.map(|(set, run)| if set.v6 { self.six.sum(run) } else { self.four.sum(run) }).sum()
    }

    /// What was counted of a service: connections that were refused for want of a backend, and those of each backend that
    /// had any.
    pub fn counts(&self, service: &Installed) -> (u64, BTreeMap<SocketAddr, u64>) {
        let (mut refused, mut connections) = (0, BTreeMap::new());
        for (set, run) in service.runs.iter().flat_map(|(set, runs)| runs.iter().map(move |run| (set, *run))) {
            let about = if set.v6 { self.six.about(run) } else { self.four.about(run) };
            refused += about.map_or(0, |(_, refused)| refused);
            for (address, _, count) in self.members(*set, run).into_iter().filter(|(.., count)| *count > 0) {
                *connections.entry(address).or_default() += count;
            }
        }
        (refused, connections)
    }

    /// Notes which endpoints of a service connections were counted of, before it loses one of them, or an address: with these the
    /// counts go, and sockets may stay.
    pub(crate) fn note_used(&mut self, service: &Installed) {
        let (_, connections) = self.counts(service);
        self.used.note(connections.into_keys().map(|endpoint| (service.spec.protocol, endpoint)));
    }

    /// The backends of a run, and how many connections each got.
    fn members(&self, set: SetKey, run: Run) -> Vec<(SocketAddr, BackendRef, u64)> {
        if set.v6 { self.six.backends(run).collect() } else { self.four.backends(run).collect() }
    }

    /// The backends of a run by their index in `backends`, and the slot of each.
    pub(crate) fn places(&self, set: SetKey, run: Run) -> impl Iterator<Item = (u32, u32)> + use<> {
        let members = self.members(set, run).into_iter();
        (0..).zip(members).map(move |(index, (_, backend, _))| (backend.id, run.slot(index)))
    }

    /// How many sockets are translated to a backend now.
    pub fn open_sockets(&self, backend: BackendRef) -> u64 {
        self.backends.get(backend.id).map_or(0, |backend| backend.open.load().into())
    }

    pub(crate) fn retire_backend(&mut self, backend: BackendRef) {
        self.leave(backend, [false; 2]);
        if let Some(place) = self.backends.get(backend.id) {
            disown(place);
        }
        self.backend_space.retire(backend.id, 1);
    }

    pub(crate) fn leave(&self, backend: BackendRef, stays: [bool; 2]) {
        let slots = self.backends.get(backend.id).into_iter().flat_map(|place| &place.slots);
        for (slot, _) in slots.zip(stays).filter(|(_, stays)| !stays) {
            slot.store(NO_SLOT);
        }
    }
}

/// Makes a backend's sockets strangers to its place, so that none of them counts down what is counted there next.
pub(crate) fn disown(place: &Backend) {
    place.generation.store(place.generation.load().wrapping_add(2));
    place.service.store(NO_SERVICE);
}
