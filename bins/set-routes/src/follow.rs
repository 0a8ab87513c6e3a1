//! Routes that follow: what `sync-cidrs --watch` prints comes in, and every running pod of the node gets the routes that
//! an ADD would give it now.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt, io,
    process::ExitCode,
    sync::{
        Mutex, PoisonError,
        mpsc::{self, Receiver, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant, SystemTime},
};

use common::{
    cidrs,
    document::{Cidrs, Command, PodDocument},
    failure::{Code, Context, Failure},
    harness,
    object::{Netns, Object, Placed},
    settings::{LogOptions, Settings},
    state::{self, Lock, Saved},
};
use ipnet::IpNet;
use serde_json::{Value, json};

use crate::SetRoutes;

/// Pods that are worked on at the same time.
const WORKERS: usize = 8;
/// An ADD that read the old CIDRs and ended after the change is found so soon.
const RESCAN: Duration = Duration::from_secs(1);
/// Somebody holds the pod's lock: an ADD or DEL, which takes no longer.
const LOCKED: Duration = Duration::from_millis(50);
/// A pod that failed is tried again after this, then after twice as long, up to the limit.
const RETRY: Duration = Duration::from_secs(1);
const RETRY_LIMIT: Duration = Duration::from_secs(60);
/// No pod takes longer than this.
const PATIENCE: Duration = Duration::from_secs(10);

/// What became of one pod.
#[derive(Debug)]
enum Outcome {
    /// It has the routes that it is to have; so many operations were done for it.
    Current(usize),
    /// Another process works on it.
    Locked,
    /// Its sandbox is gone: a DEL will come.
    Gone,
    /// It could not be done.
    Failed(Failure),
}

/// Some of the outcomes.
type Which = fn(&Outcome) -> bool;

/// What is known of one attachment.
#[derive(Debug)]
struct Attachment {
    /// The saved document that the outcome is for.
    stamp: (SystemTime, u64),
    /// None when it is to be worked on.
    outcome: Option<Outcome>,
    again: Option<Instant>,
    delay: Duration,
}

#[derive(Debug, Default)]
struct Counters {
    changes: u64,
    operations: usize,
    errors: u64,
    /// From the news to the last pod.
    last: Duration,
}

/// Follows standard input until it ends.
pub fn run() -> ExitCode {
    harness::init_log("set-routes", &LogOptions::default(), "");
    let (sender, news) = mpsc::channel();
    thread::spawn(move || {
        for line in io::stdin().lines() {
            let Ok(line) = line else { return };
            let sent = match serde_json::from_str::<Value>(&line) {
                Ok(cluster) => sender.send(cluster).is_ok(),
                Err(error) => {
                    log::error!("a line on standard input is not JSON: {error}");
                    true
                }
            };
            if !sent {
                return;
            }
        }
    });
    let mut follower = Follower::default();
    match follower.follow(&news) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            log::error!("{failure}");
            ExitCode::FAILURE
        }
    }
}

#[derive(Debug, Default)]
struct Follower {
    cluster: Value,
    attachments: BTreeMap<Saved, Attachment>,
    counters: Counters,
    metrics: String,
}

impl Follower {
    fn follow(&mut self, news: &Receiver<Value>) -> Result<(), Failure> {
        loop {
            let wait = self.next_attempt().map_or(RESCAN, |next| next.min(RESCAN));
            match news.recv_timeout(wait) {
                Ok(cluster) => {
                    // Only the last of several counts.
                    self.cluster = news.try_iter().last().unwrap_or(cluster);
                    self.counters.changes += 1;
                    self.attachments.values_mut().for_each(Attachment::renew);
                    let begin = Instant::now();
                    self.work();
                    self.counters.last = begin.elapsed();
                    self.say();
                }
                Err(RecvTimeoutError::Timeout) if self.cluster.is_null() => {}
                Err(RecvTimeoutError::Timeout) => self.work(),
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
            self.report().context(Code::Io, "cannot write the state directory")?;
        }
    }

    fn next_attempt(&self) -> Option<Duration> {
        let next = self.attachments.values().filter_map(|attachment| attachment.again).min();
        next.map(|next| next.saturating_duration_since(Instant::now()))
    }

    /// Works on every pod that the news, or its own saved document, or its last outcome asks for.
    fn work(&mut self) {
        self.rescan();
        let now = Instant::now();
        for attachment in self.attachments.values_mut() {
            if attachment.again.is_some_and(|again| again <= now) {
                (attachment.outcome, attachment.again) = (None, None);
            }
        }
        let open = |(saved, attachment): (&Saved, &Attachment)| attachment.outcome.is_none().then(|| saved.clone());
        let queue: VecDeque<Saved> = self.attachments.iter().filter_map(open).collect();
        for (saved, outcome) in in_parallel(queue, &self.cluster) {
            self.note(&saved, outcome);
        }
    }

    fn rescan(&mut self) {
        let found: BTreeMap<_, _> = state::saved().into_iter().collect();
        self.attachments.retain(|saved, _| found.contains_key(saved));
        for (saved, stamp) in found {
            match self.attachments.get_mut(&saved) {
                Some(attachment) if attachment.stamp == stamp => {}
                Some(attachment) => {
                    attachment.stamp = stamp;
                    attachment.renew();
                }
                None => {
                    let new = Attachment { stamp, outcome: None, again: None, delay: RETRY };
                    self.attachments.insert(saved, new);
                }
            }
        }
    }

    fn note(&mut self, saved: &Saved, outcome: Outcome) {
        let Some(attachment) = self.attachments.get_mut(saved) else { return };
        match &outcome {
            Outcome::Current(operations) => {
                self.counters.operations += operations;
                attachment.delay = RETRY;
            }
            Outcome::Locked => attachment.again = Some(Instant::now() + LOCKED),
            Outcome::Gone => log::debug!("{saved:?}: its sandbox is gone"),
            Outcome::Failed(failure) => {
                self.counters.errors += 1;
                log::error!("{}/{}: {failure}", saved.container_id, saved.ifname);
                attachment.again = Some(Instant::now() + attachment.delay);
                attachment.delay = (attachment.delay * 2).min(RETRY_LIMIT);
            }
        }
        attachment.outcome = Some(outcome);
    }

    fn count(&self, which: Which) -> usize {
        self.attachments.values().filter_map(|attachment| attachment.outcome.as_ref()).filter(|o| which(o)).count()
    }

    fn say(&self) {
        let current = self.count(|outcome| matches!(outcome, Outcome::Current(_)));
        let changed = self.count(|outcome| matches!(outcome, Outcome::Current(1..)));
        let failing = self.count(|outcome| matches!(outcome, Outcome::Failed(_)));
        let took = self.counters.last.as_millis();
        log::info!("{current} attachments are current, {changed} of them changed; {failing} failed; in {took} ms");
    }

    /// Writes the metrics, in Prometheus' text format, if they are not as they were.
    fn report(&mut self) -> io::Result<()> {
        let text = self.to_string();
        if text != self.metrics {
            state::write(&state::directory().join("set-routes.prom"), &text)?;
            self.metrics = text;
        }
        Ok(())
    }
}

impl fmt::Display for Follower {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "# HELP underpass_attachments Pods' interfaces whose routes follow the cluster's CIDRs.")?;
        writeln!(f, "# TYPE underpass_attachments gauge")?;
        let states: [(&str, Which); 4] = [
            ("current", |outcome| matches!(outcome, Outcome::Current(_))),
            ("locked", |outcome| matches!(outcome, Outcome::Locked)),
            ("gone", |outcome| matches!(outcome, Outcome::Gone)),
            ("failing", |outcome| matches!(outcome, Outcome::Failed(_))),
        ];
        for (state, which) in states {
            writeln!(f, "underpass_attachments{{state=\"{state}\"}} {}", self.count(which))?;
        }
        let counters = &self.counters;
        let mut metric = |name: &str, kind: &str, help: &str, value: &dyn fmt::Display| {
            writeln!(f, "# HELP underpass_follow_{name} {help}\n# TYPE underpass_follow_{name} {kind}")?;
            writeln!(f, "underpass_follow_{name} {value}")
        };
        metric("changes_total", "counter", "News of the cluster's CIDRs.", &counters.changes)?;
        metric("operations_total", "counter", "Routes added, replaced and removed.", &counters.operations)?;
        metric("errors_total", "counter", "Attempts that failed.", &counters.errors)?;
        metric(
            "last_duration_seconds",
            "gauge",
            "From the last news to the routes in the last pod.",
            &counters.last.as_secs_f64(),
        )
    }
}

impl Attachment {
    /// It is to be worked on, whatever has become of it before.
    fn renew(&mut self) {
        (self.outcome, self.again, self.delay) = (None, None, RETRY);
    }
}

/// Works on several pods at a time, so that a slow one holds nobody up.
fn in_parallel(queue: VecDeque<Saved>, cluster: &Value) -> Vec<(Saved, Outcome)> {
    let workers = queue.len().min(WORKERS);
    let (queue, done) = (Mutex::new(queue), Mutex::new(vec![]));
    let worker = || {
        loop {
            let next = queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            let Some(saved) = next else { return };
            let outcome = one(&saved, cluster);
            done.lock().unwrap_or_else(PoisonError::into_inner).push((saved, outcome));
        }
    };
    thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(worker);
        }
    });
    done.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// Brings one attachment up to date, while no ADD or DEL works on its container.
fn one(saved: &Saved, cluster: &Value) -> Outcome {
    let lock = match Lock::Container(&saved.container_id).try_acquire() {
        Ok(Some(lock)) => lock,
        Ok(None) => return Outcome::Locked,
        Err(error) => return Outcome::Failed(Failure::new(Code::Io, "cannot lock the container").details(error)),
    };
    let value = match saved.read() {
        Ok(value) => value,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Outcome::Gone,
        Err(error) => return Outcome::Failed(Failure::new(Code::Io, "cannot read its saved document").details(error)),
    };
    let result = update(&value, cluster);
    drop(lock);
    match result {
        Ok(operations) => Outcome::Current(operations),
        Err(failure) if failure.code == Code::InvalidNetns as u32 => Outcome::Gone,
        Err(failure) => Outcome::Failed(failure),
    }
}

/// Gives an attachment the routes for what the cluster says now, and notes it in its document. Returns how many
/// operations it took.
fn update(value: &Value, cluster: &Value) -> Result<usize, Failure> {
    let document: PodDocument =
        serde_json::from_value(value.clone()).context(Code::Decoding, "its saved document is not a pod document")?;
    // An ADD that failed, and will be taken back.
    if document.error.is_some() || document.request.command != Command::Add {
        return Ok(0);
    }
    let before = document.cidrs.clone().unwrap_or_default();
    let Some(document) = renewed(document, cluster)? else { return Ok(0) };
    let changed = changed(&before, document.cidrs()?);
    // The rest of the document is as old as its ADD: what became of the pod since then is none of its business.
    let concerns = |placed: &Placed| is_route_to(placed, &changed);
    let mut work = document.clone();
    let converge = async { tokio::time::timeout(PATIENCE, harness::converge::<SetRoutes>(&mut work, concerns)).await };
    let operations = harness::block_on(converge)?
        .map_err(|_| Failure::new(Code::Kernel, format!("not done within {} s", PATIENCE.as_secs())))??;
    let mut saved = value.clone();
    (saved["cidrs"], saved["settings"]) = (json!(document.cidrs), json!(document.settings));
    state::save(&document.request, &saved).context(Code::Io, "cannot save its document")?;
    Ok(operations)
}

/// The CIDRs that only one of the two has.
fn changed(before: &Cidrs, after: &Cidrs) -> Vec<IpNet> {
    let only = |one: &Cidrs, other: &Cidrs| {
        let other: Vec<IpNet> = other.all().collect();
        one.all().filter(|cidr| !other.contains(cidr)).collect::<Vec<_>>()
    };
    [only(before, after), only(after, before)].concat()
}

/// Whether an object is a route in the pod to one of these: in the main table, or in that of a further interface.
fn is_route_to(placed: &Placed, destinations: &[IpNet]) -> bool {
    let Placed { netns: Netns::Pod, object: Object::Route(route) } = placed else { return false };
    destinations.contains(&route.destination)
}

/// The document with the CIDRs that apply now; none if they are those that it has.
fn renewed(mut document: PodDocument, cluster: &Value) -> Result<Option<PodDocument>, Failure> {
    // What is wrong in the settings was ADD's to refuse; of the others only what says CIDRs can change in a running pod.
    let (settings, _) = Settings::resolve(&document.request.config, &cluster["settings"]);
    document.settings.service_cidr = settings.service_cidr;
    document.settings.overlay_pod_cidr = settings.overlay_pod_cidr;
    document.settings.hijack_cidr = settings.hijack_cidr;
    let cidrs = cidrs::resolve(&document.settings, &cluster["cidrs"], Command::Add, document.subnets())?;
    if document.cidrs.as_ref() == Some(&cidrs) {
        return Ok(None);
    }
    document.cidrs = Some(cidrs);
    Ok(Some(document))
}

#[cfg(test)]
mod tests {
    use common::{
        document::Request,
        object::{MAIN_TABLE, PROTOCOL, Route},
        settings::Settings,
    };

    use super::*;

    fn document(config: Value, service: &str) -> PodDocument {
        let request = Request {
            command: Command::Add,
            container_id: "c".to_owned(),
            netns: None,
            ifname: "eth0".to_owned(),
            args: None,
            config,
        };
        let mut document = PodDocument::new(request, Settings::default());
        document.cidrs = Some(Cidrs { service: vec![service.parse().unwrap()], ..Cidrs::default() });
        document
    }

    fn cluster(service: &str) -> Value {
        json!({ "settings": {}, "cidrs": { "service": [service], "pod": [] } })
    }

    #[test]
    fn a_pod_whose_cidrs_are_as_they_were_is_left_alone() {
        let document = document(json!({}), "10.96.0.0/12");
        assert!(renewed(document, &cluster("10.96.0.0/12")).unwrap().is_none());
    }

    #[test]
    fn a_pod_follows_the_cluster_but_not_against_its_own_configuration() {
        let follows = renewed(document(json!({}), "10.96.0.0/12"), &cluster("10.7.0.0/16")).unwrap().unwrap();
        assert_eq!(json!(follows.cidrs.unwrap().service), json!(["10.7.0.0/16"]));
        let config = json!({"serviceCIDR": ["10.96.0.0/12"]});
        assert!(renewed(document(config, "10.96.0.0/12"), &cluster("10.7.0.0/16")).unwrap().is_none());
    }

    #[test]
    fn what_else_goes_through_the_node_follows_the_clusters_settings() {
        let mut cluster = cluster("10.96.0.0/12");
        cluster["settings"] = json!({"hijackCIDR": ["169.254.20.10"], "hostRuleTable": 7});
        let follows = renewed(document(json!({}), "10.96.0.0/12"), &cluster).unwrap().unwrap();
        assert_eq!(json!(follows.cidrs.unwrap().hijack), json!(["169.254.20.10/32"]));
        assert_eq!(follows.settings.host_rule_table, 500);
    }

    #[test]
    fn of_concern_are_the_pods_routes_to_what_has_changed() {
        let cidrs = |text: &[&str]| Cidrs {
            service: text.iter().map(|cidr| cidr.parse().unwrap()).collect(),
            ..Cidrs::default()
        };
        let changed = changed(&cidrs(&["10.1.0.0/16", "10.2.0.0/16"]), &cidrs(&["10.2.0.0/16", "10.3.0.0/16"]));
        assert_eq!(json!(changed), json!(["10.1.0.0/16", "10.3.0.0/16"]));
        let route = |destination: &str, table| {
            Object::Route(Route {
                destination: destination.parse().unwrap(),
                gateway: None,
                dev: "eth0".to_owned(),
                source: None,
                table,
                metric: None,
                onlink: false,
                protocol: PROTOCOL,
            })
        };
        assert!(is_route_to(&Placed::pod(route("10.1.0.0/16", MAIN_TABLE)), &changed));
        assert!(!is_route_to(&Placed::pod(route("10.2.0.0/16", MAIN_TABLE)), &changed));
        assert!(!is_route_to(&Placed::pod(route("0.0.0.0/0", MAIN_TABLE)), &changed));
        assert!(is_route_to(&Placed::pod(route("10.1.0.0/16", 101)), &changed));
        assert!(!is_route_to(&Placed::node(route("10.1.0.0/16", MAIN_TABLE)), &changed));
    }
}
