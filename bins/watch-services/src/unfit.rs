//! Services that the kernel has no room for, or whose address another one has, as `bpf-lb-load follow` says in the state directory.

use std::{collections::BTreeMap, fs};

use cluster_api::Name;
use common::state;
use serde::Deserialize;

use crate::{problem::Problem, service};

#[derive(Deserialize)]
struct Unfit {
    /// `namespace/name:port name`.
    service: String,
    error: String,
}

/// What is to be said of each, by Service's port.
pub fn problems() -> BTreeMap<String, Problem> {
    let text = fs::read(state::directory().join(state::UNFIT)).unwrap_or_default();
    let unfit: Vec<Unfit> = serde_json::from_slice(&text).unwrap_or_default();
    unfit.into_iter().filter_map(problem).collect()
}

/// Nothing for what is no Service: the nodes' addresses.
fn problem(unfit: Unfit) -> Option<(String, Problem)> {
    let name: Name = unfit.service.split(':').next()?.parse().ok()?;
    let object = service::reference(&name);
    let texts = vec![format!("{}: {}", unfit.service, unfit.error)];
    Some((
        format!("{} in the kernel", unfit.service),
        Problem { reason: "NotServed".into(), texts, object, service: None },
    ))
}
