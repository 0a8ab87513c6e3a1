//! A tool that changes the kernel: plan and apply.

use std::io;

use serde_json::json;

use super::cli::{About, Output};
use crate::{
    document::{Command, PodDocument},
    failure::{Code, Context, Failure},
    kernel::{self, Kernel},
    lock::Lock,
    netlink::Netlink,
    object::{Netns, Operation, Placed},
    plan::{Conflict, Found, Owner, plan},
};

/// A tool that changes the kernel, in two parts: what there is, and what is wanted.
pub trait Tool {
    /// Name and help.
    const ABOUT: About;
    /// Whether it works on what all pods of the node share, so that one at a time may run on a node.
    const SHARED: bool = false;

    /// Looks at the kernel: completes the tool's own section of the document and returns what is there of what the
    /// tool cares about. In a teardown everything of ours that is to go counts as found.
    ///
    /// # Errors
    /// What the kernel refuses, and what the request asks for and is not there.
    fn observe(document: &mut PodDocument, kernel: &Kernel) -> impl Future<Output = Result<Vec<Found>, Failure>>;

    /// What is to be there; in a teardown, what was there before. Pure.
    ///
    /// # Errors
    /// When the document lacks what the tool needs.
    fn wanted(document: &PodDocument) -> Result<Vec<Placed>, Failure>;

    /// Looks at what no plan can show, before ADD changes anything.
    ///
    /// # Errors
    /// Why ADD must not go on.
    fn before_add(_document: &PodDocument, _kernel: &Kernel) -> impl Future<Output = Result<(), Failure>> {
        async { Ok(()) }
    }

    /// Tells others what ADD has changed.
    ///
    /// # Errors
    /// What the kernel refuses.
    fn after_add(
        _document: &PodDocument,
        _kernel: &Kernel,
        _done: &[Operation],
    ) -> impl Future<Output = Result<(), Failure>> {
        async { Ok(()) }
    }
}

pub(super) async fn work<T: Tool>(
    document: &mut PodDocument,
    output: Output,
    node: Netlink,
) -> Result<Option<String>, Failure> {
    if document.is_left_alone() {
        return Ok(output.of(&[], None));
    }
    let _lock = match (T::SHARED, output) {
        (true, Output::Document) => Some(Lock::Node.acquire().context(Code::Io, "cannot lock the node's state")?),
        _ => None,
    };
    let kernel = Kernel::open(node, document)?;
    recover_addresses(document, &kernel).await.context(Code::Io, "cannot read the pod's addresses")?;
    let (operations, conflicts) = planned::<T>(document, &kernel, &[]).await?;
    if let Some(conflict) = conflicts.first() {
        return Err(conflict.clone());
    }
    match output.of(&operations, document.request.netns.as_deref()) {
        Some(text) => Ok(Some(text)),
        None => carry_out::<T>(document, &kernel, operations).await.map(|()| None),
    }
}

/// In DEL, where neither a saved document nor prevResult has the interface's addresses, those that it has stand for prevResult's.
async fn recover_addresses(document: &mut PodDocument, kernel: &Kernel) -> io::Result<()> {
    let request = &document.request;
    let is_lost = request.command == Command::Del && document.mode.is_none() && document.nic_addresses().is_empty();
    let Some(pod) = kernel.pod.as_ref().filter(|_| is_lost) else { return Ok(()) };
    let Some(link) = pod.netlink.link(&request.ifname).await? else { return Ok(()) };
    let addresses = pod.netlink.addresses().await?.into_iter().filter(|address| address.link == link.index);
    let ips: Vec<_> = addresses.map(|address| json!({ "address": address.net })).collect();
    if let Some(config) = document.request.config.as_object_mut() {
        config.insert("prevResult".to_owned(), json!({ "ips": ips }));
    }
    Ok(())
}

/// Applies the plan; in CHECK, expects it to be empty.
async fn carry_out<T: Tool>(
    document: &mut PodDocument,
    kernel: &Kernel,
    operations: Vec<Operation>,
) -> Result<(), Failure> {
    let failures = match document.request.command {
        Command::Check => {
            let differences: Vec<_> = operations.iter().map(ToString::to_string).collect();
            let msg = format!("{} is not as it should be", document.request.attachment());
            let failure = Failure::new(Code::CheckFailed, msg).details(differences.join("\n"));
            return if operations.is_empty() { Ok(()) } else { Err(failure) };
        }
        Command::Del | Command::Gc => kernel.apply_all(&operations).await,
        _ => {
            T::before_add(document, kernel).await?;
            kernel.apply(&operations).await?;
            let told = T::after_add(document, kernel, &operations).await;
            document.applied.extend(operations);
            return told;
        }
    };
    document.applied.extend(operations);
    match failures.split_first() {
        Some((first, rest)) => Err(rest.iter().fold(first.clone(), Failure::and)),
        None => Ok(()),
    }
}

/// The plan, and what is in the way of the rest of it. An object counts as ours also if it is in `known`, or stands where one of
/// `known` stood.
async fn planned<T: Tool>(
    document: &mut PodDocument,
    kernel: &Kernel,
    known: &[Placed],
) -> Result<(Vec<Operation>, Vec<Failure>), Failure> {
    let mut found = T::observe(document, kernel).await?;
    for found in found.iter_mut().filter(|found| found.owner == Owner::Foreign) {
        let replaced =
            |known: &Placed| known.collides(&found.placed) && !known.object.satisfied_by(&found.placed.object);
        if known.contains(&found.placed) || known.iter().any(replaced) {
            found.owner = Owner::Ours;
        }
    }
    let (operations, conflicts) = plan(&T::wanted(document)?, &found);
    let failure = |conflict: Conflict| match &conflict.found.owner {
        Owner::Pod(holder) => Failure::new(
            Code::AddressConflict,
            format!("another pod of this node, {holder}, has its address: {conflict}"),
        )
        .details("give one of the two another address, or serve one of their networks with mode disable"),
        _ => Failure::new(Code::Kernel, conflict).details("remove it, or configure Underpass to use something else"),
    };
    Ok((operations, conflicts.into_iter().map(failure).collect()))
}

/// One thing that [`converge`] did.
#[derive(Clone, Debug)]
pub struct Change {
    /// What was done.
    pub operation: Operation,
    /// Whether it undoes what somebody else did. Otherwise the document wants something else than before.
    pub repair: bool,
}

/// Why something is not as it is to be, and what was done all the same.
#[derive(Clone, Debug)]
pub struct Undone {
    /// Why.
    pub failure: Failure,
    /// What was done.
    pub changes: Vec<Change>,
}

impl From<Failure> for Undone {
    fn from(failure: Failure) -> Self {
        Self { failure, changes: vec![] }
    }
}

/// Makes in a running pod what an ADD would make of its document now, where `before` is the document of the last time: the
/// same plan, without [`Tool::before_add`]'s questions. What is new comes before what is old goes, so that no
/// packet is without a route that has one before and after. Changes that are `spared` are left out.
///
/// # Errors
/// As for ADD. What can be done is done all the same: somebody else's fault must not cost a running pod the rest.
pub async fn converge<T: Tool>(
    document: &mut PodDocument,
    before: &PodDocument,
    kernel: &Kernel,
    spared: impl Fn(&Change) -> bool,
) -> Result<Vec<Change>, Undone> {
    let wanted_before = T::wanted(before).unwrap_or_default();
    // On the node a tool that is SHARED makes what other pods need too; and a value cannot be removed.
    let of_this_pod = |placed: &&Placed| !(placed.object.is_value() || T::SHARED && placed.netns == Netns::Node);
    let known: Vec<Placed> = wanted_before.iter().filter(of_this_pod).cloned().collect();
    let mut lock = None;
    loop {
        let (operations, conflicts) = planned::<T>(document, kernel, &known).await?;
        let conflict = conflicts.into_iter().reduce(|conflict, later| conflict.and(&later));
        let change = |operation: Operation| {
            let repair = match &operation {
                Operation::Add(placed) | Operation::Replace { to: placed, .. } => wanted_before.contains(placed),
                Operation::Delete(placed) => !wanted_before.contains(placed),
            };
            Change { operation, repair }
        };
        let mut changes: Vec<Change> = operations.into_iter().map(change).filter(|change| !spared(change)).collect();
        if changes.is_empty() {
            return conflict.map_or(Ok(changes), |conflict| Err(conflict.into()));
        }
        if T::SHARED && lock.is_none() {
            lock = Some(Lock::Node.acquire().context(Code::Io, "cannot lock the node's state")?);
            continue;
        }
        changes.sort_by_key(|change| matches!(change.operation, Operation::Delete(_)));
        let operations: Vec<Operation> = changes.iter().map(|change| change.operation.clone()).collect();
        let failed = kernel.apply_each(&operations).await;
        T::after_add(document, kernel, &operations).await?;
        let refused = failed.iter().map(|(run, error)| kernel::refusal(&operations[run.start], error));
        let failure = conflict.into_iter().chain(refused).reduce(|failure, later| failure.and(&later));
        let is_done = |number: &usize| !failed.iter().any(|(run, _)| run.contains(number));
        let changes = (0..).zip(changes).filter(|(number, _)| is_done(number)).map(|(_, change)| change).collect();
        return match failure {
            Some(failure) => Err(Undone { failure, changes }),
            None => Ok(changes),
        };
    }
}
