//! One container: what an ADD of each of its interfaces would make now, by the same tools.

use std::{
    cell::{Cell, RefCell},
    io,
    net::IpAddr,
    time::{Duration, Instant},
};

use common::{
    cidrs,
    document::{Command, Mode, ModeKind, NicTable, PodDocument, Share},
    failure::{Code, Context, Failure},
    harness::{self, Change, Tool, Undone},
    kernel::Kernel,
    lock::Lock,
    names::host_veth,
    object::{Family, Netns, Operation, Placed},
    result::CniResult,
    settings::Settings,
    state::{self, Saved},
};
use mk_veth::MkVeth;
use serde_json::{Value, json};
use set_routes::SetRoutes;
use set_rules::SetRules;
use tune_pod::TunePod;

use crate::{contest::Contest, whereabouts::Whereabouts};

/// No pod takes longer than this.
const PATIENCE: Duration = Duration::from_secs(10);

/// A sandbox that takes an interface's addresses takes one after the other, and is done within this.
pub const TAKING: Duration = Duration::from_secs(1);

/// What became of one attachment.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// It has what it is to have, after these changes.
    Current(Vec<Change>),
    /// Somebody keeps undoing some of it, which is left alone for a while; these changes were made.
    Contested(Vec<Change>),
    /// Another process works on it.
    Locked,
    /// Its sandbox is gone: a DEL will come.
    Gone,
    /// So it seems, but the node's link to it is there: it is going, or its path leads nowhere from here.
    Unseen(Failure),
    /// It could not be done, but for these changes.
    Failed(Failure, Vec<Change>),
}

impl Outcome {
    /// The changes that were made.
    pub fn changes(&self) -> &[Change] {
        match self {
            Self::Current(changes) | Self::Contested(changes) | Self::Failed(_, changes) => changes,
            Self::Locked | Self::Gone | Self::Unseen(_) => &[],
        }
    }
}

/// What is to be done for a container.
#[derive(Clone, Debug)]
pub struct Job {
    /// Its id.
    pub container: String,
    /// Its attachments, with what is known of who undoes what.
    pub attachments: Vec<(Saved, Contest)>,
    /// As [`Whereabouts::lacking`], of the last look.
    pub lacking: Option<Instant>,
}

/// What became of it.
#[derive(Debug)]
pub struct Done {
    /// The container's id.
    pub container: String,
    /// Each attachment's outcome.
    pub outcomes: Vec<(Saved, Outcome)>,
    /// Where its objects are; none if that could not be found out.
    pub whereabouts: Option<Whereabouts>,
}

/// An attachment's document, as it was read.
struct Attachment {
    saved: Saved,
    contest: Contest,
    lacking: Option<Instant>,
    value: Value,
    document: PodDocument,
}

/// Brings a container up to date, while no ADD or DEL works on it. `cluster` is what the cluster says, null if nothing is
/// known.
pub fn container(job: Job, cluster: &Value) -> Done {
    let Job { container, attachments, lacking } = job;
    let all = |outcome: &Outcome| attachments.iter().map(|(saved, _)| (saved.clone(), outcome.clone())).collect();
    let done = |outcomes, whereabouts| Done { container: container.clone(), outcomes, whereabouts };
    let _lock = match Lock::Container(&container).try_acquire() {
        Ok(Some(lock)) => lock,
        Ok(None) => return done(all(&Outcome::Locked), None),
        Err(error) => {
            let failure = Failure::new(Code::Io, "cannot lock the container").details(error);
            return done(all(&Outcome::Failed(failure, vec![])), None);
        }
    };
    let (mut open, mut outcomes) = (vec![], vec![]);
    for (saved, contest) in attachments.iter().cloned() {
        match read(&saved) {
            Ok((value, document)) => open.push(Attachment { saved, contest, lacking, value, document }),
            Err(outcome) => outcomes.push((saved, outcome)),
        }
    }
    // The others' way into the node is the first one's.
    open.sort_by_key(|attachment| !attachment.document.is_first());
    let Some(first) = open.first() else { return done(outcomes, None) };
    let share = |attachment: &Attachment| Share::of(&renewed(attachment.document.clone(), cluster).ok()?);
    let shares: Vec<Share> = if open.len() > 1 { open.iter().filter_map(share).collect() } else { vec![] };
    let mut whereabouts = Whereabouts::default();
    let work = async {
        let kernel = Kernel::open(harness::node()?, &first.document)?;
        // From here on the kernel tells what happens in the pod.
        let nsid =
            kernel.node.nsid(&kernel.pod()?.netns).await.context(Code::Io, "cannot number the pod's namespace")?;
        whereabouts.nsid = Some(nsid);
        for attachment in &open {
            let care =
                tokio::time::timeout(PATIENCE, care(attachment, &shares, cluster, &kernel, &mut whereabouts)).await;
            let late = || Failure::new(Code::Kernel, format!("not done within {} s", PATIENCE.as_secs()));
            let outcome = care.map_err(|_| late()).flatten().unwrap_or_else(outcome_of);
            outcomes.push((attachment.saved.clone(), outcome));
        }
        Ok(())
    };
    match harness::block_on(work).flatten() {
        Ok(()) => done(outcomes, Some(whereabouts)),
        Err(failure) => {
            let outcome = match outcome_of(failure.clone()) {
                Outcome::Gone if has_link(&container) && !first.document.has_lost_netns() => Outcome::Unseen(
                    failure.details("the node's link to the pod is there: is this path mounted where keep-pods runs?"),
                ),
                outcome => outcome,
            };
            let open = open.iter().map(|attachment| (attachment.saved.clone(), outcome.clone()));
            done(outcomes.into_iter().chain(open).collect(), None)
        }
    }
}

/// Whether the node has a link of ours to the container.
fn has_link(container: &str) -> bool {
    let link =
        async { harness::node()?.link(&host_veth(container)).await.context(Code::Io, "cannot read the node's links") };
    harness::block_on(link).flatten().is_ok_and(|link| link.is_some())
}

fn outcome_of(failure: Failure) -> Outcome {
    if failure.code == Code::InvalidNetns as u32 { Outcome::Gone } else { Outcome::Failed(failure, vec![]) }
}

/// An attachment's document.
fn read(saved: &Saved) -> Result<(Value, PodDocument), Outcome> {
    let unreadable = |error: io::Error| Failure::new(Code::Io, "cannot read its saved document").details(error);
    let value = saved.read().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => Outcome::Gone,
        _ => Outcome::Failed(unreadable(error), vec![]),
    })?;
    let document =
        serde_json::from_value(value.clone()).context(Code::Decoding, "its saved document is not a pod document");
    document.map(|document| (value, document)).map_err(|failure| Outcome::Failed(failure, vec![]))
}

/// Gives an attachment what an ADD would give it now, and notes it in its document.
async fn care(
    attachment: &Attachment,
    shares: &[Share],
    cluster: &Value,
    kernel: &Kernel,
    whereabouts: &mut Whereabouts,
) -> Result<Outcome, Failure> {
    let mut before = attachment.document.clone();
    // An ADD that failed, and will be taken back; or one after which there is nothing to keep.
    if before.error.is_some() || before.request.command != Command::Add || before.is_left_alone() {
        return Ok(Outcome::Current(vec![]));
    }
    let mut document = before.clone();
    detect_mode::detect(&mut document, kernel).await?;
    let lost = loss(&before, &document)?;
    if lost == Loss::Some {
        let since = attachment.lacking.unwrap_or_else(Instant::now);
        whereabouts.lacking = Some(since);
        if since.elapsed() < TAKING {
            note_whereabouts(&before, kernel, whereabouts).await?;
            return Ok(Outcome::Current(vec![]));
        }
    }
    if lost == Loss::All {
        note_whereabouts(&before, kernel, whereabouts).await?;
        return Ok(Outcome::Current(vec![]));
    }
    // A table that this attachment needs no more may be another one's.
    before.routing.tables.retain(|NicTable { nic, .. }| {
        document.routing.table_of(nic).is_some() || !document.others.iter().any(|other| other.ifname == *nic)
    });
    // A default route that it does not choose any more is nobody's to take away.
    before.routing.stays.retain(|route| document.routing.stays.contains(route));
    // Those that are saved may be older, where another attachment could not be done.
    for other in &mut document.others {
        if let Some(share) = shares.iter().find(|share| share.ifname == other.ifname) {
            other.clone_from(share);
        }
    }
    let mut document = renewed(document, cluster)?;
    let care = Care {
        kernel,
        before: &before,
        contest: &attachment.contest,
        spared: Cell::new(false),
        changes: RefCell::default(),
    };
    // What one of them cannot do must not cost the pod what the others can.
    let done = [
        care.tool::<MkVeth>(&mut document).await,
        care.tool::<SetRoutes>(&mut document).await,
        care.tool::<SetRules>(&mut document).await,
        care.tool::<TunePod>(&mut document).await,
    ];
    let failure = done.into_iter().filter_map(Result::err).reduce(|failure, later| failure.and(&later));
    let (spared, changes) = (care.spared.get(), care.changes.into_inner());
    note_values(&mut document, &changes);
    note_whereabouts(&document, kernel, whereabouts).await?;
    if let Some(failure) = failure {
        return Ok(Outcome::Failed(failure, changes));
    }
    keep(&attachment.value, &document)?;
    Ok(if spared { Outcome::Contested(changes) } else { Outcome::Current(changes) })
}

/// What has gone of the addresses that the plugins before this one gave to an interface.
#[derive(Debug, PartialEq)]
enum Loss {
    None,
    Some,
    /// All, and of a family the interface has no other. gVisor moves them into its own network stack ("Steal IP address from NIC" in
    /// runsc/sandbox/network.go): the pod has them, and needs its way from the node.
    All,
}

fn loss(before: &PodDocument, now: &PodDocument) -> Result<Loss, Failure> {
    let result = CniResult::previous(&before.request.config)?;
    let has = |document: &PodDocument, address| document.nic_addresses().iter().any(|net| net.addr() == address);
    let given = || result.ips_of(&before.request.ifname).map(|ip| ip.address.addr());
    let lost: Vec<_> = given().filter(|address| has(before, *address) && !has(now, *address)).collect();
    let has_family = |address: IpAddr| now.nic_addresses().iter().any(|net| Family::same(net.addr(), address));
    // A further interface's way from the node takes a family of the pod's first one, whose addresses go before its own.
    let led = |document: &PodDocument| {
        let underlay = document.mode.iter().filter(|mode| mode.kind == ModeKind::Underlay);
        underlay.flat_map(Mode::led_addresses).collect::<Vec<_>>()
    };
    let (was_led, is_led) = (led(before), led(now));
    let has_lost_way = was_led.iter().any(|address| has(now, *address) && !is_led.contains(address));
    let all_ways = has_lost_way && is_led.is_empty();
    let all_addresses = !given().any(|address| has(now, address)) && lost.iter().any(|address| !has_family(*address));
    Ok(if all_ways || all_addresses {
        Loss::All
    } else if has_lost_way || !lost.is_empty() {
        Loss::Some
    } else {
        Loss::None
    })
}

struct Care<'a> {
    kernel: &'a Kernel,
    before: &'a PodDocument,
    contest: &'a Contest,
    spared: Cell<bool>,
    changes: RefCell<Vec<Change>>,
}

impl Care<'_> {
    async fn tool<T: Tool>(&self, document: &mut PodDocument) -> Result<(), Failure> {
        let now = Instant::now();
        let spares = |change: &Change| {
            let spares = change.repair && self.contest.spares(&object_of(change).to_string(), now);
            self.spared.set(self.spared.get() || spares);
            spares
        };
        let (changes, failure) = match harness::converge::<T>(document, self.before, self.kernel, spares).await {
            Ok(changes) => (changes, None),
            Err(Undone { failure, changes }) => (changes, Some(failure)),
        };
        self.changes.borrow_mut().extend(changes);
        failure.map_or(Ok(()), Err)
    }
}

/// What a change is about.
pub fn object_of(change: &Change) -> &Placed {
    match &change.operation {
        Operation::Add(placed) | Operation::Delete(placed) | Operation::Replace { to: placed, .. } => placed,
    }
}

/// The document with the CIDRs that apply now.
fn renewed(mut document: PodDocument, cluster: &Value) -> Result<PodDocument, Failure> {
    if cluster.is_null() {
        return Ok(document);
    }
    // What is wrong in the settings was ADD's to refuse.
    let config = &document.request.config;
    let (now, _) = Settings::resolve(config, &cluster["settings"]);
    document.settings = document.settings.in_running_pod(config, now);
    document.cidrs = Some(cidrs::resolve(&document.settings, &cluster["cidrs"], Command::Add, document.subnets())?);
    Ok(document)
}

/// What DEL is to put back: values that had not been changed before.
fn note_values(document: &mut PodDocument, changes: &[Change]) {
    for Change { operation, repair } in changes {
        if !repair && matches!(operation, Operation::Replace { to, .. } if to.object.is_value()) {
            document.applied.push(operation.clone());
        }
    }
}

async fn note_whereabouts(
    document: &PodDocument,
    kernel: &Kernel,
    whereabouts: &mut Whereabouts,
) -> Result<(), Failure> {
    let mode = document.mode()?;
    let sides = mode.host_side.iter().map(|side| side.dev.clone());
    let names = [host_veth(&document.request.container_id)].into_iter().chain(sides);
    for name in names {
        let link = kernel.node.link(&name).await.context(Code::Io, "cannot read the node's links")?;
        if document.veth.is_some() && whereabouts.pod_veth.is_none() {
            whereabouts.pod_veth = link.as_ref().and_then(|link| link.peer);
        }
        whereabouts.links.push((link.map_or(0, |link| link.index), name));
    }
    whereabouts.destinations.extend(set_routes::plan::destinations(document));
    whereabouts.addresses.extend(mode.nic.addresses.iter().map(|net| net.addr()));
    whereabouts.node_addresses.extend(&mode.node_addresses);
    let rules = document.places.iter().filter(|place| place.netns == Netns::Node).map(|place| place.priority);
    whereabouts.rule = rules.chain([whereabouts.rule]).max().unwrap_or_default();
    let result = CniResult::previous(&document.request.config)?;
    whereabouts.routers.extend(result.routers_of(&document.request.ifname));
    Ok(())
}

/// Saves the document if it says anything new.
fn keep(saved: &Value, document: &PodDocument) -> Result<(), Failure> {
    let kept = kept(saved, document);
    if kept == *saved {
        return Ok(());
    }
    state::save(&document.request, &kept).context(Code::Io, "cannot save its document")
}

/// What a later look can change of a document; the rest is ADD's.
const KEPT: [&str; 8] = ["settings", "mode", "others", "routing", "places", "cidrs", "veth", "applied"];

/// The saved document with what this look has found. A section that it has none of goes.
fn kept(saved: &Value, document: &PodDocument) -> Value {
    let (mut kept, found) = (saved.clone(), json!(document));
    if let Some(kept) = kept.as_object_mut() {
        for section in KEPT {
            match found.get(section) {
                Some(found) => kept.insert(section.to_owned(), found.clone()),
                None => kept.remove(section),
            };
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use common::{
        document::{Nic, Request, Uplink},
        settings::Settings,
    };

    use super::*;

    fn document(config: Value) -> PodDocument {
        let request = Request {
            command: Command::Add,
            container_id: "c".to_owned(),
            netns: None,
            ifname: "eth0".to_owned(),
            args: None,
            config,
        };
        PodDocument::new(request, Settings::default())
    }

    #[test]
    fn what_is_saved_is_what_the_look_has_found_without_what_it_has_not_and_the_rest_stays_as_add_left_it() {
        let found = document(json!({}));
        let saved = json!({
            "request": "ADD's", "netns": "ADD's", "numbers": "ADD's", "future": "ADD's", "settings": {"mode": "underlay"},
            "mode": {}, "others": [1], "places": [1], "cidrs": {}, "veth": {}, "applied": [1],
        });
        let expected = json!({
            "request": "ADD's", "netns": "ADD's", "numbers": "ADD's", "future": "ADD's", "settings": found.settings,
            "routing": found.routing, "applied": [],
        });
        assert_eq!(kept(&saved, &found), expected);
    }

    fn cluster(service: &str) -> Value {
        json!({ "settings": {}, "cidrs": { "service": [service], "pod": [] } })
    }

    fn services(config: Value) -> Vec<String> {
        let cidrs = renewed(document(config), &cluster("10.112.0.0/12")).unwrap().cidrs.unwrap();
        cidrs.service.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn what_the_configuration_names_stays_whatever_the_cluster_says() {
        assert_eq!(services(json!({ "serviceCIDR": ["10.96.0.0/12"] })), ["10.96.0.0/12"]);
        assert_eq!(services(json!({})), ["10.112.0.0/12"]);
    }

    #[test]
    fn while_nothing_is_known_of_the_cluster_a_pod_keeps_what_it_has() {
        let before = document(json!({}));
        assert_eq!(renewed(before.clone(), &Value::Null).unwrap().cidrs, before.cidrs);
    }

    #[test]
    fn addresses_are_taken_when_none_is_left_that_was_given_and_no_other_has_come() {
        let config = json!({ "prevResult": { "ips": [{ "address": "10.6.10.1/16" }, { "address": "fd00:6::1/64" }] } });
        let with = |addresses: &[&str]| PodDocument {
            mode: Some(Mode {
                kind: ModeKind::Underlay,
                first: true,
                nic: Nic {
                    name: "eth0".to_owned(),
                    mtu: 1500,
                    addresses: addresses.iter().map(|net| net.parse().unwrap()).collect(),
                    ..Nic::default()
                },
                node_addresses: vec![],
                uplink: Uplink::default(),
                host_side: vec![],
            }),
            ..document(config.clone())
        };
        let both = with(&["10.6.10.1/16", "fd00:6::1/64"]);
        let loss = |before: &PodDocument, now: &[&str]| loss(before, &with(now)).unwrap();
        assert_eq!(loss(&both, &[]), Loss::All);
        assert_eq!(loss(&both, &["10.6.10.1/16"]), Loss::Some);
        assert_eq!(loss(&both, &["10.6.77.7/16", "fd00:6::77/64"]), Loss::Some);
        // An address that the interface found by itself since.
        assert_eq!(loss(&both, &["fd00:6::77/64"]), Loss::All);
        assert_eq!(loss(&both, &["10.6.10.1/16", "fd00:6::1/64", "10.6.77.7/16"]), Loss::None);
        assert_eq!(loss(&with(&["10.6.10.1/16"]), &["10.6.10.1/16"]), Loss::None);
    }
}
