//! Who has an address that several services claim. Pure.

use std::collections::BTreeMap;

use bpf_lb_abi::Kind;
use schemars::JsonSchema;
use serde::Serialize;
use service_table::{Claim, ServiceName};

use crate::{
    kernel::Key,
    spec::{Frontend, Spec},
};

/// The claim of `service` to a frontend, if it has one.
pub fn claim<'a>(service: &'a Key, spec: &Spec, frontend: &Frontend) -> Option<Claim<&'a Key>> {
    let kind = *spec.frontends.get(frontend)?;
    Some(Claim::new(kind != Kind::ClusterIp, spec.created, service))
}

/// Whether these are ports of one Service.
pub fn is_of_same(one: &ServiceName, other: &ServiceName) -> bool {
    (&one.namespace, &one.name) == (&other.namespace, &other.name)
}

/// A claim that came second.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Conflict {
    /// Address, port and protocol.
    pub frontend: String,
    /// Who claims it in vain, as `namespace/name:port name`.
    pub service: String,
    /// Who has it.
    pub owner: String,
}

impl Conflict {
    /// `service` does not get `frontend`, since `owner` has it.
    pub fn new(frontend: &Frontend, service: &ServiceName, owner: &ServiceName) -> Self {
        Self { frontend: frontend.to_string(), service: service.to_string(), owner: owner.to_string() }
    }
}

/// Takes away from each service the frontends that another one has the better claim to. Returns what was taken, and the
/// services as they were that lost any.
pub fn settle(specs: &mut BTreeMap<Key, Spec>) -> (Vec<Conflict>, BTreeMap<Key, Spec>) {
    let mut best: foldhash::HashMap<Frontend, Claim<&Key>> = foldhash::HashMap::default();
    for (key, spec) in &*specs {
        for frontend in spec.frontends.keys() {
            let Some(claim) = claim(key, spec, frontend) else { continue };
            best.entry(*frontend).and_modify(|first| *first = claim.min(*first)).or_insert(claim);
        }
    }
    let lost = |key: &Key, spec: &Spec| -> Vec<(Frontend, Key)> {
        let owner = |frontend: &Frontend| best.get(frontend).map(|claim| claim.service).filter(|owner| *owner != key);
        spec.frontends.keys().filter_map(|frontend| Some((*frontend, owner(frontend)?.clone()))).collect()
    };
    let losers = specs.iter().map(|(key, spec)| (key, lost(key, spec))).filter(|(_, lost)| !lost.is_empty());
    let losers: Vec<_> = losers.map(|(key, lost)| (key.clone(), lost)).collect();
    let (mut conflicts, mut whole) = (Vec::new(), BTreeMap::new());
    for (key, lost) in losers {
        let Some(spec) = specs.get_mut(&key) else { continue };
        whole.insert(key.clone(), spec.clone());
        for (frontend, owner) in lost {
            spec.frontends.remove(&frontend);
            conflicts.push(Conflict::new(&frontend, &key, &owner));
        }
    }
    (conflicts, whole)
}
