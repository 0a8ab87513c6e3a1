//! Makes the maps equal to a table, with as few changes as there are differences.

use std::collections::HashSet;

use schemars::JsonSchema;
use serde::Serialize;
use service_table::{Change, ServiceTable};
use thiserror::Error;

use crate::{
    kernel::{Installed, Kernel},
    room::UpdateError,
    spec::{Invalid, Spec, specs},
};

/// Why a table or a change was not applied.
#[derive(Debug, Error)]
pub enum ApplyError {
    /// It makes no sense, and nothing was changed.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// It could not be written.
    #[error(transparent)]
    Update(#[from] UpdateError),
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
}

/// Makes the maps hold `table` and nothing else.
pub fn apply(kernel: &mut Kernel, table: &ServiceTable) -> Result<Summary, ApplyError> {
    let specs = specs(table)?;
    let claimed: HashSet<_> = specs.values().flat_map(|spec| spec.frontends.keys().copied()).collect();
    let moves = |old: &Installed| old.spec.frontends.keys().any(|frontend| claimed.contains(frontend));
    let gone = kernel.services().iter().filter(|(key, _)| !specs.contains_key(*key));
    let gone = gone.map(|(key, old)| (key.clone(), moves(old)));
    // An address that moves to another service is to have no gap. All else that goes makes room first.
    let (last, first): (Vec<_>, Vec<_>) = gone.partition(|(_, moves)| *moves);
    kernel.set_node_addresses(&table.node_addresses);
    let mut summary = Summary::default();
    remove(kernel, &mut summary, first);
    for (key, spec) in specs {
        count(&mut summary, kernel.set(&key, spec)?);
    }
    remove(kernel, &mut summary, last);
    Ok(summary)
}

fn remove(kernel: &mut Kernel, summary: &mut Summary, gone: Vec<(String, bool)>) {
    for (key, _) in gone {
        summary.removed += usize::from(kernel.remove(&key));
    }
}

/// Makes one change.
pub fn change(kernel: &mut Kernel, change: &Change) -> Result<Summary, ApplyError> {
    let mut summary = Summary::default();
    match change {
        Change::Set(service) => {
            let spec = Spec::new(service, &kernel.node_addresses())?;
            count(&mut summary, kernel.set(&service.key(), spec)?);
        }
        Change::Nodes(nodes) => kernel.set_node_addresses(&nodes.node_addresses),
        Change::Remove(name) => summary.removed += usize::from(kernel.remove(&name.key())),
        Change::Table(table) => return apply(kernel, table),
    }
    Ok(summary)
}

fn count(summary: &mut Summary, changed: bool) {
    if changed {
        summary.set += 1;
    } else {
        summary.unchanged += 1;
    }
}
