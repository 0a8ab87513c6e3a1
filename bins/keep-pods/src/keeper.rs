//! Which pods are to be looked at, and when.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    mem,
    net::IpAddr,
    sync::{
        Mutex, PoisonError,
        mpsc::{Receiver, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};

use common::state::{self, Saved, Stamp};
use serde_json::Value;

use crate::{
    care::{self, Done, Job, Outcome},
    contest::Contest,
    node::Node,
    notice::Notice,
    report::Report,
    whereabouts::{Whereabouts, concerns_node},
};

/// Pods that are worked on at the same time.
const WORKERS: usize = 8;
/// An ADD that read the old CIDRs and ended after the change is found so soon.
const RESCAN: Duration = Duration::from_secs(1);
/// No more news than this wait to be heard, and no more are heard at once.
pub const MOST_NEWS: usize = 1024;
/// What changes one thing often changes more: so long after the first notification all of them count as one.
const SETTLE: Duration = Duration::from_millis(20);
/// A pod in which something happens all the time is looked at no more often.
const INTERVAL: Duration = Duration::from_millis(100);
/// Each pod is looked at so often without any notification: the kernel does not tell of every sysctl.
const LOOK: Duration = Duration::from_secs(60);
/// Somebody holds the pod's lock: an ADD or DEL, which takes no longer.
const LOCKED: Duration = Duration::from_millis(50);
/// A pod that failed is tried again after this, then after twice as long, up to the limit.
const RETRY: Duration = Duration::from_secs(1);
const RETRY_LIMIT: Duration = Duration::from_secs(60);

/// What the keeper hears.
#[derive(Debug)]
pub enum News {
    /// A line of `sync-cidrs --watch`.
    Cluster(Value),
    /// The kernel's notifications.
    Notices(Vec<Notice>),
    /// The end.
    End,
}

/// What is known of one attachment.
#[derive(Debug)]
struct Attachment {
    /// The saved document that the outcome is for.
    stamp: Stamp,
    /// None when nothing is known yet.
    outcome: Option<Outcome>,
    contest: Contest,
    delay: Duration,
}

/// What is known of one container.
#[derive(Debug)]
struct Container {
    whereabouts: Whereabouts,
    /// When it is to be looked at.
    next: Instant,
    /// When it was last looked at.
    looked: Option<Instant>,
}

/// Keeps the pods of the node.
#[derive(Debug, Default)]
pub struct Keeper {
    cluster: Value,
    node: Node,
    attachments: BTreeMap<Saved, Attachment>,
    containers: BTreeMap<String, Container>,
    report: Report,
}

impl Keeper {
    /// Keeps them until the news end.
    pub fn keep(&mut self, news: &Receiver<News>) {
        self.look_at_node();
        loop {
            self.rescan();
            let wait = self.next_look().min(RESCAN);
            let mut heard: Vec<News> = match news.recv_timeout(wait) {
                Ok(first) => vec![first],
                Err(RecvTimeoutError::Timeout) => vec![],
                Err(RecvTimeoutError::Disconnected) => return,
            };
            if !heard.is_empty() {
                thread::sleep(SETTLE);
                heard.extend(news.try_iter().take(MOST_NEWS));
            }
            let (mut changed, begin) = (false, Instant::now());
            for news in heard {
                match news {
                    News::End => return,
                    News::Notices(notices) => self.hear(&notices),
                    News::Cluster(cluster) => {
                        self.cluster = cluster;
                        self.report.changes.inc();
                        changed = true;
                    }
                }
            }
            if changed {
                self.look_at_all();
                self.attachments.values_mut().for_each(|attachment| attachment.delay = RETRY);
            }
            self.rescan();
            self.work();
            let outcomes = self.attachments.values().filter_map(|attachment| attachment.outcome.as_ref());
            if changed {
                self.report.say(begin.elapsed(), outcomes.clone());
            }
            self.report.write(outcomes);
        }
    }

    fn next_look(&self) -> Duration {
        let next = self.containers.values().map(|container| container.next).min();
        next.map_or(RESCAN, |next| next.saturating_duration_since(Instant::now()))
    }

    fn look_at_all(&mut self) {
        let now = Instant::now();
        self.containers.values_mut().for_each(|container| container.next = now);
    }

    /// Finds the pods that the kernel's notifications concern.
    fn hear(&mut self, notices: &[Notice]) {
        let mut of_node = false;
        for notice in notices {
            let mut of_pods = false;
            for container in self.containers.values_mut().filter(|container| container.whereabouts.concerns(notice)) {
                container.look_soon();
                of_pods = true;
            }
            of_node |= *notice == Notice::Lost || (!of_pods && concerns_node(notice));
        }
        if of_node {
            self.look_at_node();
        }
    }

    /// Looks whether the pods' plans would come out differently for what has changed on the node.
    fn look_at_node(&mut self) {
        match Node::look(&self.routers()) {
            Ok(node) => {
                if !node.agrees(&self.node) {
                    self.look_at_all();
                }
                self.node = node;
            }
            Err(failure) => log::error!("{failure}"),
        }
    }

    /// Finds attachments that have come, gone, or been saved anew.
    fn rescan(&mut self) {
        let found: BTreeMap<_, _> = state::saved().into_iter().collect();
        self.attachments.retain(|saved, _| found.contains_key(saved));
        let ids: BTreeSet<&String> = found.keys().map(|saved| &saved.container_id).collect();
        self.containers.retain(|id, _| ids.contains(id));
        let now = Instant::now();
        for (saved, stamp) in found {
            let new = || Attachment { stamp, outcome: None, contest: Contest::default(), delay: RETRY };
            let id = saved.container_id.clone();
            let attachment = self.attachments.entry(saved).or_insert_with(new);
            let container = self.containers.entry(id).or_insert_with(|| Container {
                whereabouts: Whereabouts::default(),
                next: now,
                looked: None,
            });
            if attachment.stamp != stamp || attachment.outcome.is_none() {
                (attachment.stamp, attachment.delay) = (stamp, RETRY);
                container.next = now;
            }
        }
    }

    /// Looks at every pod whose time has come.
    fn work(&mut self) {
        let now = Instant::now();
        let due = self.containers.iter().filter(|(_, container)| container.next <= now);
        let job = |(id, container): (&String, &Container)| Job {
            container: id.clone(),
            attachments: self
                .attachments
                .range(Saved { container_id: id.clone(), ifname: String::new() }..)
                .take_while(|(saved, _)| saved.container_id == *id)
                .map(|(saved, attachment)| (saved.clone(), attachment.contest.clone()))
                .collect(),
            lacking: container.whereabouts.lacking,
        };
        let queue: VecDeque<Job> = due.map(job).collect();
        for done in in_parallel(queue, &self.cluster) {
            self.note(done);
        }
    }

    fn note(&mut self, done: Done) {
        let now = Instant::now();
        let mut next = now + LOOK;
        for (saved, outcome) in done.outcomes {
            next = next.min(self.note_attachment(&saved, outcome, now));
        }
        let Some(container) = self.containers.get_mut(&done.container) else { return };
        container.looked = Some(now);
        container.next = next;
        let Some(whereabouts) = done.whereabouts else { return };
        // More of its addresses may be about to go.
        let again = whereabouts.lacking.map(|since| since + care::TAKING).filter(|again| now < *again);
        container.next = next.min(again.unwrap_or(next));
        let before = mem::replace(&mut container.whereabouts, whereabouts);
        if container.whereabouts.routers != before.routers {
            // From here on the ways to these routers count: the pod was just looked at with what they are now.
            self.look_at_node();
        }
    }

    fn routers(&self) -> BTreeSet<IpAddr> {
        self.containers.values().flat_map(|container| &container.whereabouts.routers).copied().collect()
    }

    /// Returns when the attachment is to be looked at again.
    fn note_attachment(&mut self, saved: &Saved, outcome: Outcome, now: Instant) -> Instant {
        let Some(attachment) = self.attachments.get_mut(saved) else { return now + LOOK };
        let name = format!("{}/{}", saved.container_id, saved.ifname);
        self.report.note(&name, outcome.changes());
        for change in outcome.changes().iter().filter(|change| change.repair) {
            let object = care::object_of(change).to_string();
            if let Some(pause) = attachment.contest.note(&object, now) {
                self.report.contests.inc();
                let seconds = pause.as_secs();
                log::error!("{name}: somebody keeps undoing this; leaving it alone for {seconds} s: {object}");
            }
        }
        let outcome = match outcome {
            // A namespace that is taken down has its link for a moment; one that still has it is there.
            Outcome::Unseen(failure)
                if matches!(attachment.outcome, Some(Outcome::Unseen(_) | Outcome::Failed(..))) =>
            {
                Outcome::Failed(failure, vec![])
            }
            outcome => outcome,
        };
        let next = match &outcome {
            Outcome::Current(_) | Outcome::Contested(_) => {
                attachment.delay = RETRY;
                attachment.contest.next(now).unwrap_or(now + LOOK)
            }
            Outcome::Locked => now + LOCKED,
            Outcome::Gone => {
                log::debug!("{name}: its sandbox is gone");
                now + LOOK
            }
            Outcome::Unseen(_) => now + RETRY,
            Outcome::Failed(failure, _) => {
                self.report.errors.inc();
                // Said once, however often something happens in such a pod; its state is in the metrics.
                if !matches!(&attachment.outcome, Some(Outcome::Failed(known, _)) if known == failure) {
                    log::error!("{name}: {failure}");
                }
                let retry = now + attachment.delay;
                attachment.delay = (attachment.delay * 2).min(RETRY_LIMIT);
                attachment.contest.next(now).map_or(retry, |next| next.min(retry))
            }
        };
        attachment.outcome = Some(outcome);
        // Its document may have been saved by this very look.
        attachment.stamp = saved.stamp().unwrap_or(attachment.stamp);
        next
    }
}

impl Container {
    /// Soon, but not all the time.
    fn look_soon(&mut self) {
        let now = Instant::now();
        self.next = self.next.min(self.looked.map_or(now, |looked| now.max(looked + INTERVAL)));
    }
}

/// Works on several pods at a time, so that a slow one holds nobody up.
fn in_parallel(queue: VecDeque<Job>, cluster: &Value) -> Vec<Done> {
    let workers = queue.len().min(WORKERS);
    let (queue, done) = (Mutex::new(queue), Mutex::new(vec![]));
    let worker = || {
        loop {
            let next = queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            let Some(job) = next else { return };
            let outcome = care::container(job, cluster);
            done.lock().unwrap_or_else(PoisonError::into_inner).push(outcome);
        }
    };
    thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(worker);
        }
    });
    done.into_inner().unwrap_or_else(PoisonError::into_inner)
}
