//! Decide: what must be done so that what is there becomes what is wanted. Pure.

use crate::object::{Object, Operation, Placed};

/// Whose an object is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Owner {
    /// Underpass made it, for this attachment: only such an object is ever replaced or removed.
    Ours,
    /// Somebody else's, or not this attachment's.
    Foreign,
    /// Of another container's attachment, which has it rightly: it is never this one's, whatever this one knew of it.
    Pod(String),
    /// Somebody else's, which does what ours in its place would do: ours is not needed.
    Serves,
}

/// An object that the kernel has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// What it is, and where.
    pub placed: Placed,
    /// Whose it is.
    pub owner: Owner,
}

impl Found {
    /// An object, ours or somebody else's.
    pub fn new(placed: Placed, ours: bool) -> Self {
        Self { placed, owner: if ours { Owner::Ours } else { Owner::Foreign } }
    }

    /// An object of ours.
    pub fn ours(placed: Placed) -> Self {
        Self::new(placed, true)
    }

    /// An object that somebody else made.
    pub fn foreign(placed: Placed) -> Self {
        Self::new(placed, false)
    }

    /// Whether it is ours to replace and to remove.
    pub fn is_ours(&self) -> bool {
        self.owner == Owner::Ours
    }
}

/// Something that is not ours stands where an object of ours must be.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{} is in the way of {wanted}, and is not ours to replace", found.placed)]
pub struct Conflict {
    /// What is to be there.
    pub wanted: Placed,
    /// What is there.
    pub found: Found,
}

/// The operations that turn `found` into `wanted`, removals first; of rules last, for two of them never exclude each other, and
/// no packet is to go without.
///
/// What is already so stays; what is in the way and ours is replaced; what is ours and not wanted is removed, in the
/// opposite order of `found`. Everything else is left alone. With nothing wanted, this is the teardown.
///
/// What something else is in the way of is no part of the plan, and returned beside it. Where that is a link, nothing is planned:
/// all else is on it.
pub fn plan(wanted: &[Placed], found: &[Found]) -> (Vec<Operation>, Vec<Conflict>) {
    // Of what is found most may be nobody's concern: a pod can have a great many routes. What was found twice is there once.
    let concerns = |one: &&Found| one.is_ours() || wanted.iter().any(|wanted| wanted.collides(&one.placed));
    let mut rest: Vec<&Found> = vec![];
    for one in found.iter().filter(concerns) {
        if !rest.contains(&one) {
            rest.push(one);
        }
    }
    let (mut operations, mut conflicts) = (vec![], vec![]);
    for wanted in wanted {
        match step(wanted, &mut rest) {
            Ok(operation) => operations.extend(operation),
            Err(conflict) if matches!(wanted.object, Object::Veth(_)) => return (vec![], vec![*conflict]),
            Err(conflict) => conflicts.push(*conflict),
        }
    }
    let unwanted =
        rest.into_iter().rev().filter(|found| found.is_ours()).map(|found| Operation::Delete(found.placed.clone()));
    let is_rule =
        |operation: &Operation| matches!(operation, Operation::Delete(Placed { object: Object::Rule(_), .. }));
    let (rules, others): (Vec<_>, Vec<_>) = unwanted.partition(is_rule);
    (others.into_iter().chain(operations).chain(rules).collect(), conflicts)
}

/// Takes the object that becomes `wanted` out of those that were found. Several may collide with it: the next hops of an
/// IPv6 multipath route are routes of their own.
fn step(wanted: &Placed, found: &mut Vec<&Found>) -> Result<Option<Operation>, Box<Conflict>> {
    let is_so = |found: &&Found| {
        wanted.collides(&found.placed)
            && (found.owner == Owner::Serves || wanted.object.satisfied_by(&found.placed.object))
    };
    if let Some(index) = found.iter().position(is_so) {
        found.remove(index);
        return Ok(None);
    }
    let in_the_way = |found: &&&Found| wanted.collides(&found.placed);
    let replaceable = |found: &&Found| in_the_way(&found) && (found.is_ours() || found.placed.object.is_value());
    if let Some(index) = found.iter().position(replaceable) {
        let from = found.remove(index).placed.clone();
        return Ok(Some(Operation::Replace { from, to: wanted.clone() }));
    }
    match found.iter().find(in_the_way) {
        None => Ok(Some(Operation::Add(wanted.clone()))),
        Some(found) => Err(Box::new(Conflict { wanted: wanted.clone(), found: (*found).clone() })),
    }
}
