//! Lines in, a line about each that ended sockets out.

use std::{
    collections::BTreeMap,
    io::{self, BufRead as _},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{
        Arc,
        mpsc::{self, Receiver, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use bpf_lb_load::{gone::Gone, peers::Peers, pins::Pins, print};
use clap::Parser;
use metrics_file::{
    Metrics,
    prometheus_client::{
        metrics::{counter::Counter, gauge::Gauge},
        registry::Registry,
    },
    registered,
};
use serde::{Deserialize, Serialize};

use crate::{
    connect::reconnect,
    end::{Outcome, end},
    wanted::{Rules, Wanted, When},
};

/// Ends the sockets that were translated to backends which went, so that clients see an error and connect anew; and connects
/// UDP sockets itself
///
/// Reads what `bpf-lb-load follow` prints, and looks into every network namespace of the node: it has to see the node's
/// processes, and takes CAP_NET_ADMIN, CAP_SYS_ADMIN, CAP_SYS_PTRACE and CAP_BPF. Sockets that were connected to a pod's own
/// address stay.
#[derive(Debug, Parser)]
#[command(version, after_help = "Example:\n  watch-services --watch | bpf-lb-load follow | end-sockets")]
pub struct Cli {
    /// The directory in which the load balancer's maps are pinned
    #[arg(long, default_value = "/sys/fs/bpf/underpass")]
    pin_dir: PathBuf,
    /// How far a backend has to be gone for its TCP connections to end
    #[arg(long, value_enum, default_value_t = When::Left)]
    tcp: When,
    /// The same for connected UDP sockets
    #[arg(long, value_enum, default_value_t = When::Unready)]
    udp: When,
    /// Also end UDP sockets that are not connected, if what they first sent to is gone. By default they stay: what they send
    /// next goes to another backend, and an end would cost them their local port and with it the answers of others
    #[arg(long)]
    unconnected: bool,
}

/// So long after a search has ended comes the next one at the earliest: it is for all that went in that time.
const PAUSE: Duration = Duration::from_millis(250);
/// The metrics are written so often, if they could not be before, and sockets that wait are tried again.
const TICK: Duration = Duration::from_secs(2);
/// So many searches fail before there is no other one. Each waits twice as long as the one before, the second for a tick.
const TRIES: u32 = 5;

/// The part of a line that matters here.
#[derive(Deserialize)]
struct Line {
    #[serde(default)]
    gone: Vec<Gone>,
}

/// What is said of the sockets of one service's backend.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    service: Option<Arc<str>>,
    protocol: service_table::Protocol,
    backend: String,
    ended: usize,
    reconnected: usize,
}

struct Counts {
    ended: Counter,
    reconnected: Counter,
    errors: Counter,
    able: Gauge,
}

impl Counts {
    fn registered(registry: &mut Registry) -> Self {
        Self {
            ended: registered(registry, "sockets_ended", "Sockets that were ended since their backend went"),
            reconnected: registered(
                registry,
                "sockets_reconnected",
                "Connected UDP sockets that were ended and connected anew",
            ),
            errors: registered(registry, "sockets_errors", "Searches for sockets that failed"),
            able: registered(registry, "sockets_endable", "Whether the kernel can end sockets"),
        }
    }
}

/// The search after one that failed.
struct Retry {
    failed: u32,
    due: Instant,
}

impl Retry {
    /// Nothing when enough have failed.
    fn after(failed: u32, now: Instant) -> Option<Self> {
        (failed < TRIES).then(|| Self { failed, due: now + TICK * (1 << (failed - 1)) })
    }
}

/// Runs until standard input ends.
pub fn run(cli: &Cli) -> ExitCode {
    match work(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn work(cli: &Cli) -> Result<()> {
    let rules = Rules { tcp: cli.tcp, udp: cli.udp };
    let mut metrics = Metrics::new("end-sockets");
    let counts = Counts::registered(&mut metrics.registry);
    counts.able.set(1);
    let lines = read()?;
    // Those of a search that failed are searched for once more with the next ones, or when it is due.
    let (mut wanted, mut retry, mut errors, mut refused) = (Wanted::default(), None::<Retry>, vec![], None);
    let (mut last, mut rested) = (None::<Instant>, Instant::now());
    let (mut waiting, mut tried) = (vec![], Instant::now());
    loop {
        if tried.elapsed() >= TICK {
            counts.reconnected.inc_by(reconnect(&mut waiting));
            tried = Instant::now();
        }
        metrics.write();
        let next_of = |wanted: &Wanted| wanted.next(last).map(|next| next.max(rested));
        let next = next_of(&wanted);
        let wait = next.map_or(TICK, |next| next.saturating_duration_since(Instant::now())).min(TICK);
        let gone = match (batch(&lines, wait), next) {
            (Some(gone), _) => gone,
            (None, Some(_)) => {
                thread::sleep(wait);
                vec![]
            }
            (None, None) => return Ok(()),
        };
        if counts.able.get() == 0 {
            wanted = Wanted::default();
            continue;
        }
        wanted.add(&gone, rules, Instant::now());
        if wanted.is_empty() {
            retry = None;
            continue;
        }
        let begun = Instant::now();
        let is_due = retry.as_ref().is_some_and(|retry| begun >= retry.due);
        if !is_due && next_of(&wanted).is_none_or(|next| begun < next) {
            continue;
        }
        last = Some(begun);
        let is_first = retry.is_none();
        let searched = maps(&cli.pin_dir).and_then(|peers| end(&peers, &wanted.due(begun), cli.unconnected));
        let outcome = searched.unwrap_or_else(|error| Outcome::failed(&error));
        rested = Instant::now() + PAUSE;
        tell(&outcome, &errors, &counts, begun)?;
        if let Some(error) = outcome.refused
            && refused.replace(error) != Some(error)
        {
            log::warn!(
                "UDP sockets are ended and not connected anew: a copy of a process' descriptor (pidfd_getfd): {error}"
            );
        }
        waiting.extend(outcome.waiting);
        errors = outcome.errors;
        if (is_first || is_due) && !errors.is_empty() {
            retry = Retry::after(retry.map_or(0, |retry| retry.failed) + 1, Instant::now());
            if retry.is_none() {
                log::error!("sockets of backends that went may stay: the search for them failed again and again");
            }
        }
        if errors.is_empty() || retry.is_none() {
            wanted.done(begun);
            retry = None;
        }
    }
}

fn maps(pin_dir: &Path) -> Result<Peers> {
    let pins = Pins::new(pin_dir);
    bpf_lb_load::layout::check(&pins)?;
    Peers::open(&pins.maps()).context("the load balancer's maps")
}

/// Lines, read by a thread of its own so that those that come together are one search.
fn read() -> Result<Receiver<Vec<Gone>>> {
    let (sender, receiver) = mpsc::channel();
    let lines = || io::stdin().lock();
    thread::Builder::new().name("lines".into()).spawn(move || {
        let mut lines = lines();
        let mut text = Vec::new();
        while lines.read_until(b'\n', &mut text).is_ok_and(|len| len > 0) {
            match serde_json::from_slice::<Line>(&text) {
                Ok(Line { gone }) if gone.is_empty() => {}
                Ok(Line { gone }) => {
                    if sender.send(gone).is_err() {
                        break;
                    }
                }
                Err(error) => log::error!("a line that bpf-lb-load follow does not print: {error}"),
            }
            text.clear();
        }
    })?;
    Ok(receiver)
}

/// Those that come together, none if none comes in that time, nothing when there are no more.
fn batch(lines: &Receiver<Vec<Gone>>, wait: Duration) -> Option<Vec<Gone>> {
    match lines.recv_timeout(wait) {
        Ok(mut batch) => {
            batch.extend(lines.try_iter().flatten());
            Some(batch)
        }
        Err(RecvTimeoutError::Timeout) => Some(vec![]),
        Err(RecvTimeoutError::Disconnected) => None,
    }
}

/// Of errors only those that the search before did not have.
fn tell(outcome: &Outcome, before: &[String], counts: &Counts, begun: Instant) -> Result<()> {
    for error in &outcome.errors {
        counts.errors.inc();
        if !before.contains(error) {
            log::error!("{error}");
        }
    }
    if outcome.unable {
        counts.able.set(0);
        log::warn!(
            "this kernel cannot end sockets (CONFIG_INET_DIAG_DESTROY): clients of a backend that goes are not told",
        );
    }
    let mut reports = BTreeMap::<_, (usize, usize)>::new();
    for socket in &outcome.ended {
        let of = (socket.service.clone(), socket.flow.service.protocol, socket.flow.backend);
        let (ended, reconnected) = reports.entry(of).or_default();
        *ended += 1;
        *reconnected += usize::from(socket.is_reconnected);
        counts.ended.inc();
        counts.reconnected.inc_by(u64::from(socket.is_reconnected));
    }
    let reports: Vec<_> = reports
        .into_iter()
        .map(|((service, protocol, backend), (ended, reconnected))| {
            let backend = backend.to_string();
            Report { service, protocol, backend, ended, reconnected }
        })
        .collect();
    if !reports.is_empty() {
        let milliseconds = u64::try_from(begun.elapsed().as_millis()).unwrap_or_default();
        let line = serde_json::json!({ "ended": reports, "milliseconds": milliseconds });
        print::line(&line)?;
    }
    Ok(())
}
