//! Makes the maps equal to a table, with as few changes as there are differences.

use schemars::JsonSchema;
use serde::Serialize;
use thiserror::Error;

use crate::{
    kernel::{Kernel, UpdateError},
    spec::{Invalid, Spec, specs},
    table::{Change, ServiceTable},
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
    let gone: Vec<_> = kernel.services().keys().filter(|key| !specs.contains_key(*key)).cloned().collect();
    kernel.set_node_addresses(&table.node_addresses);
    let mut summary = Summary::default();
    for (key, spec) in specs {
        count(&mut summary, kernel.set(&key, spec)?);
    }
    // Last, since an address may have moved from one of these to one of those.
    for key in gone {
        summary.removed += usize::from(kernel.remove(&key));
    }
    Ok(summary)
}

/// Makes one change.
pub fn change(kernel: &mut Kernel, change: &Change) -> Result<Summary, ApplyError> {
    let mut summary = Summary::default();
    match change {
        Change::Set(service) => {
            let spec = Spec::new(service, &kernel.node_addresses())?;
            count(&mut summary, kernel.set(&service.key(), spec)?);
        }
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
