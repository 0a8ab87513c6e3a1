//! Finding room for what is new in a service: all of it, or nothing is taken.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, SocketAddr},
};

use bpf_lb_abi::Backend;
use service_table::ServiceName;
use thiserror::Error;

use crate::{
    family::{BackendRef, Run},
    kernel::{Installed, Kernel, Key, tables},
    maps::MapsError,
    spec::{Frontend, SetKey, Spec},
};

const BACKEND: &str = "a backend";

/// Why a change was not made.
#[derive(Debug, Error)]
pub enum UpdateError {
    /// No change was made to the kernel, and the next one may be.
    #[error("no room for {what}; load with a larger {option}")]
    Full {
        /// What there is no room for.
        what: &'static str,
        /// The option that says how much.
        option: &'static str,
    },
    /// The change may be made in part. The next writer finds out.
    #[error(transparent)]
    Maps(#[from] MapsError),
}

/// How many of the addresses are of each family, IPv4 first.
pub(crate) fn by_family(addresses: impl Iterator<Item = IpAddr>) -> [u32; 2] {
    addresses.fold([0; 2], |mut counts, address| {
        counts[usize::from(address.is_ipv6())] += 1;
        counts
    })
}

/// Room for what is new in a service.
#[derive(Default)]
pub(crate) struct Draft {
    pub(crate) id: u32,
    pub(crate) new_id: Option<u32>,
    pub(crate) new_backends: BTreeMap<SocketAddr, BackendRef>,
    pub(crate) returning: BTreeMap<SocketAddr, BackendRef>,
    pub(crate) kept_runs: BTreeMap<SetKey, Run>,
    pub(crate) new_runs: BTreeMap<SetKey, Run>,
    pub(crate) new_cells: BTreeMap<Frontend, u32>,
}

impl Kernel {
    /// As [`Kernel::draft`], but if need be it waits for what was retired, and then gives up what lingers: that a backend
    /// is there matters more than another one's count.
    pub(crate) fn find_room(&mut self, spec: &Spec, old: Option<&Installed>) -> Result<Draft, UpdateError> {
        self.spread(self.new_frontends(spec.frontends.keys()))?;
        let mut draft = self.draft(spec, old);
        if matches!(draft, Err(UpdateError::Full { .. })) && self.reclaim()? {
            draft = self.draft(spec, old);
        }
        let idle_then_all: [fn(u32) -> bool; 2] = [|open| open == 0, |_| true];
        for gives_up in idle_then_all {
            if !matches!(draft, Err(UpdateError::Full { what: BACKEND, .. })) {
                break;
            }
            self.forget_lingering(|_, _, open| gives_up(open));
            if self.reclaim()? {
                draft = self.draft(spec, old);
            }
        }
        draft
    }

    /// Of these frontends, how many of each family, IPv4 first, have no entry yet.
    fn new_frontends<'a>(&self, frontends: impl Iterator<Item = &'a Frontend>) -> [u32; 2] {
        let new = frontends.filter(|frontend| !self.owners.contains_key(frontend));
        by_family(new.map(|frontend| frontend.address.ip()))
    }

    /// Before there is a whole table of such services, so that entries are copied once: see [`Kernel::spread`].
    pub(crate) fn spread_for(&mut self, specs: &[(Key, Spec)]) -> Result<(), MapsError> {
        let frontends = || specs.iter().flat_map(|(_, spec)| &spec.frontends);
        let [four, six] = self.new_frontends(frontends().map(|(frontend, _)| frontend));
        let [four_any, six_any] = by_family(self.new_wildcards(&self.refusing(frontends())));
        self.spread([four + four_any, six + six_any])
    }

    /// Before there are so many more entries of each family, IPv4 first: see [`crate::family::Tables::spread`].
    pub(crate) fn spread(&mut self, [four, six]: [u32; 2]) -> Result<(), MapsError> {
        let (four, six) = (self.four.wanted(four), self.six.wanted(six));
        if four.is_none() && six.is_none() {
            return Ok(());
        }
        // What that gives back is tidied up by the buckets by which programs go that run.
        self.end_wait()?;
        let moves = [
            four.map(|next| self.four.spread(next)).unwrap_or_default(),
            six.map(|next| self.six.spread(next)).unwrap_or_default(),
        ];
        if moves.iter().all(HashMap::is_empty) {
            return Ok(());
        }
        let moved = |is_ipv6, cell: &mut u32| {
            if let Some(place) = moves[usize::from(is_ipv6)].get(cell) {
                *cell = *place;
            }
        };
        self.owners.iter_mut().for_each(|(frontend, owned)| moved(frontend.address.is_ipv6(), &mut owned.cell));
        self.wildcards.iter_mut().for_each(|(address, cell)| moved(address.is_ipv6(), cell));
        // A program that began before finds them where they were.
        self.settle()?;
        let [four, six] = moves;
        four.into_keys().for_each(|cell| self.four.remove(cell));
        six.into_keys().for_each(|cell| self.six.remove(cell));
        Ok(())
    }

    /// Whether [`Kernel::find_room`] would find any for a service.
    pub(crate) fn has_room(&mut self, key: &ServiceName, spec: &Spec) -> Result<bool, MapsError> {
        let old = self.services.get(key).cloned();
        match self.find_room(spec, old.as_deref()) {
            Ok(draft) => {
                self.give_back(draft);
                Ok(true)
            }
            Err(UpdateError::Full { .. }) => Ok(false),
            Err(UpdateError::Maps(error)) => Err(error),
        }
    }

    /// Finds room for all that is new, or for nothing.
    fn draft(&mut self, spec: &Spec, old: Option<&Installed>) -> Result<Draft, UpdateError> {
        let mut draft = Draft::default();
        match self.fill(&mut draft, spec, old) {
            Ok(()) => Ok(draft),
            Err((what, option)) => {
                self.give_back(draft);
                Err(UpdateError::Full { what, option })
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
                tables!(self, set.v6, tables => tables.allocate_run(len)).ok_or(("the backends", "--max-backends"))?;
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
        for (set, run) in draft.new_runs {
            tables!(self, set.v6, tables => tables.free_run(run));
        }
        for (frontend, cell) in draft.new_cells {
            tables!(self, frontend.address.is_ipv6(), tables => tables.free_cell(cell));
        }
    }
}
