//! Decide: what must be done so that what is there becomes what is wanted. Pure.

use crate::object::{Operation, Placed};

/// An object that the kernel has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// What it is, and where.
    pub placed: Placed,
    /// Whether Underpass made it, for this attachment: only such an object is ever replaced or removed.
    pub owned: bool,
}

impl Found {
    /// An object of ours.
    pub fn ours(placed: Placed) -> Self {
        Self { placed, owned: true }
    }

    /// An object that somebody else made.
    pub fn foreign(placed: Placed) -> Self {
        Self { placed, owned: false }
    }
}

/// Something that is not ours stands where an object of ours must be.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{found} is in the way of {wanted}, and is not ours to replace")]
pub struct Conflict {
    /// What is to be there.
    pub wanted: Placed,
    /// What is there.
    pub found: Placed,
}

/// The operations that turn `found` into `wanted`, removals first.
///
/// What is already so stays; what is in the way and ours is replaced; what is ours and not wanted is removed, in the
/// opposite order of `found`. Everything else is left alone. With nothing wanted, this is the teardown.
///
/// # Errors
/// The first [`Conflict`]; nothing is planned then.
pub fn plan(wanted: &[Placed], found: &[Found]) -> Result<Vec<Operation>, Box<Conflict>> {
    let unwanted = |candidate: &&Found| candidate.owned && !wanted.iter().any(|w| w.collides(&candidate.placed));
    let mut operations: Vec<_> =
        found.iter().rev().filter(unwanted).map(|found| Operation::Delete(found.placed.clone())).collect();
    for wanted in wanted {
        operations.extend(step(wanted, found)?);
    }
    Ok(operations)
}

fn step(wanted: &Placed, found: &[Found]) -> Result<Option<Operation>, Box<Conflict>> {
    let in_the_way = || found.iter().filter(|found| wanted.collides(&found.placed));
    if in_the_way().any(|found| wanted.object.satisfied_by(&found.placed.object)) {
        return Ok(None);
    }
    if let Some(found) = in_the_way().find(|found| found.owned || found.placed.object.is_value()) {
        return Ok(Some(Operation::Replace { from: found.placed.clone(), to: wanted.clone() }));
    }
    match in_the_way().next() {
        None => Ok(Some(Operation::Add(wanted.clone()))),
        Some(found) => Err(Box::new(Conflict { wanted: wanted.clone(), found: found.placed.clone() })),
    }
}
