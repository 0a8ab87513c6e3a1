//! Finds the sockets that are to end in every network namespace of the node, and ends them.

use std::{
    collections::{HashMap, HashSet, hash_map::Entry},
    fs::File,
    io,
    os::fd::{AsFd as _, BorrowedFd},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
};

use anyhow::{Context as _, Result};
use bpf_lb_load::{
    peers::{Flow, Peers},
    spec::Frontend,
};
use common::netns::{self, NetnsId};
use rustix::io::Errno;
use service_table::Protocol;

use crate::{
    anew::Anew,
    connect::{Held, connect},
    diag::{Diag, Found, Query},
    wanted::Wanted,
};

/// How many namespaces are looked into at the same time.
const AT_ONCE: usize = 4;

/// A socket that was ended.
pub struct Ended {
    /// What it was.
    pub flow: Flow,
    /// Whose address it had asked for.
    pub service: Option<Arc<str>>,
    /// How it is to be connected anew.
    pub anew: Option<Anew>,
    /// Whether it was.
    pub is_reconnected: bool,
}

/// What was done.
#[derive(Default)]
pub struct Outcome {
    /// The sockets.
    pub ended: Vec<Ended>,
    /// What went wrong, each once.
    pub errors: Vec<String>,
    /// The kernel cannot end sockets.
    pub unable: bool,
    /// Sockets to connect anew when that can be.
    pub waiting: Vec<Held>,
    /// Why a socket that a process holds could not be connected anew.
    pub refused: Option<Errno>,
}

impl Outcome {
    /// Of a search that could not begin.
    pub fn failed(why: &anyhow::Error) -> Self {
        Self { errors: vec![format!("{why:#}")], ..Self::default() }
    }
}

/// The search for the sockets of one batch of changes.
struct Search<'a> {
    peers: &'a Peers,
    wanted: &'a Wanted,
    /// Sockets that have a place in the maps, or one in each family.
    known: HashMap<u64, Vec<Flow>>,
    /// Also look at what sockets keep themselves.
    storage: bool,
    unconnected: bool,
    left: AtomicUsize,
    unable: AtomicBool,
    outcome: Mutex<Outcome>,
}

/// Ends them, and connects those of UDP anew.
///
/// # Errors
/// When the maps cannot be read.
pub fn end(peers: &Peers, wanted: &Wanted, unconnected: bool) -> Result<Outcome> {
    let (mut known, mut verdicts) = (HashMap::<_, Vec<_>>::new(), Verdicts::new(peers, wanted));
    peers.each(|cookie, flow| {
        if wanted.concerns(&flow) && verdicts.of(&flow)?.is_some() {
            known.entry(cookie).or_default().push(flow);
        }
        Ok(())
    })?;
    let storage = wanted.may_be_anywhere() && peers.has_overflowed();
    if known.is_empty() && !storage {
        return Ok(Outcome::default());
    }
    let left = AtomicUsize::new(known.len());
    let (unable, outcome) = (AtomicBool::new(false), Mutex::default());
    let search = Search { peers, wanted, known, storage, unconnected, left, unable, outcome };
    let (namespaces, errors) = netns::all();
    search.note(|outcome| outcome.errors.extend(errors));
    search.everywhere(&namespaces);
    let mut outcome = search.outcome.into_inner().ok().context("a thread died")?;
    outcome.unable = search.unable.into_inner();
    let connected = connect(outcome.ended.iter().filter_map(|ended| ended.anew));
    for ended in &mut outcome.ended {
        ended.is_reconnected = ended.anew.is_some_and(|anew| connected.cookies.contains(&anew.cookie));
    }
    outcome.waiting = connected.waiting;
    outcome.refused = connected.refused;
    outcome.errors.sort();
    outcome.errors.dedup();
    Ok(outcome)
}

/// By which service a socket that was translated like that is one to end, if it is: each asked once, so of sockets that were
/// there before.
struct Verdicts<'a> {
    peers: &'a Peers,
    wanted: &'a Wanted,
    given: HashMap<Flow, Option<Option<Arc<str>>>>,
}

impl<'a> Verdicts<'a> {
    fn new(peers: &'a Peers, wanted: &'a Wanted) -> Self {
        Self { peers, wanted, given: HashMap::new() }
    }

    fn of(&mut self, flow: &Flow) -> io::Result<&Option<Option<Arc<str>>>> {
        Ok(match self.given.entry(*flow) {
            Entry::Occupied(given) => given.into_mut(),
            Entry::Vacant(place) => {
                let (owner, leads_to) = self.peers.now(flow)?;
                let owner = owner.map(|owner| owner.to_string().into());
                place.insert(self.wanted.ends(flow, owner.clone(), leads_to).then_some(owner))
            }
        })
    }
}

impl Search<'_> {
    fn everywhere(&self, namespaces: &[File]) {
        let next = AtomicUsize::new(0);
        let work = || {
            while let Some(netns) = namespaces.get(next.fetch_add(1, Ordering::Relaxed)) {
                if self.is_over() {
                    break;
                }
                let search = |file| netns::within(netns, || self.here(NetnsId::of(&file)));
                if let Err(error) = netns.metadata().and_then(search) {
                    self.note(|outcome| outcome.errors.push(error.to_string()));
                }
            }
        };
        thread::scope(|scope| {
            for _ in 0..AT_ONCE {
                scope.spawn(work);
            }
        });
    }

    /// All sockets that have a place have been found; those that have none may be anywhere.
    fn is_over(&self) -> bool {
        self.unable.load(Ordering::Relaxed) || !self.storage && self.left.load(Ordering::Relaxed) == 0
    }

    fn note(&self, note: impl FnOnce(&mut Outcome)) {
        if let Ok(mut outcome) = self.outcome.lock() {
            note(&mut outcome);
        }
    }

    /// In the calling thread's network namespace.
    fn here(&self, netns: NetnsId) -> io::Result<()> {
        let mut diag = Diag::open()?;
        let storage = self.storage.then(|| self.peers.overflow.fd().as_fd());
        let subflows = self.subflows(&mut diag, storage)?;
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let flows = self.known.values().flatten().filter(|flow| flow.service.protocol == protocol);
            let ports: HashSet<_> = flows.map(|flow| flow.backend.port()).collect();
            // See `Wanted::may_be_anywhere`.
            let storage = storage.filter(|_| protocol == Protocol::Tcp);
            if ports.is_empty() && storage.is_none() {
                continue;
            }
            let unconnected = self.unconnected && protocol == Protocol::Udp;
            let mut ports = ports.into_iter();
            // The kernel looks for one port by itself.
            let port = match (ports.next(), ports.next()) {
                (Some(port), None) if !unconnected && storage.is_none() => Some(port),
                _ => None,
            };
            let list = diag.list(Query { protocol, multipath: false, port, unconnected, storage })?;
            let mut verdicts = Verdicts::new(self.peers, self.wanted);
            for found in list {
                match self.look_at(&mut diag, protocol, &found, &subflows, &mut verdicts) {
                    Ok(None) => {}
                    Ok(Some((flow, service))) => {
                        let anew = Anew::of(netns, &found, &flow);
                        let ended = Ended { flow, service, anew, is_reconnected: false };
                        self.note(|outcome| outcome.ended.push(ended));
                    }
                    Err(error) => self.note(|outcome| outcome.errors.push(error.to_string())),
                }
            }
        }
        Ok(())
    }

    /// The subflows of Multipath TCP sockets that were translated, by cookie: the socket that the process has keeps it.
    fn subflows(&self, diag: &mut Diag, storage: Option<BorrowedFd<'_>>) -> io::Result<HashMap<u64, Flow>> {
        if storage.is_none() {
            return Ok(HashMap::new());
        }
        let query = Query { protocol: Protocol::Tcp, multipath: true, port: None, unconnected: false, storage };
        match diag.list(query) {
            // The kernel has no Multipath TCP, or cannot list it (CONFIG_INET_MPTCP_DIAG).
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(HashMap::new()),
            found => {
                Ok(found?.iter().filter_map(|found| Some((found.subflow()?, kept(found, Protocol::Tcp)?))).collect())
            }
        }
    }

    /// Ends a socket if it is one to end. Says then what it was, and whose address it had asked for.
    fn look_at(
        &self,
        diag: &mut Diag,
        protocol: Protocol,
        found: &Found,
        subflows: &HashMap<u64, Flow>,
        verdicts: &mut Verdicts<'_>,
    ) -> io::Result<Option<(Flow, Option<Arc<str>>)>> {
        let known = self.known.get(&found.cookie).into_iter().flatten().chain(subflows.get(&found.cookie)).copied();
        // It may have gone on to somewhere else.
        let is_there = |flow: &Flow| found.remote == flow.backend || found.remote.port() == 0;
        let is_it = |flow: &Flow| flow.service.protocol == protocol && is_there(flow) && self.wanted.concerns(flow);
        let Some(flow) = known.chain(kept(found, protocol)).find(is_it) else { return Ok(None) };
        let Some(service) = verdicts.of(&flow)?.clone() else { return Ok(None) };
        self.left.fetch_sub(usize::from(self.known.contains_key(&found.cookie)), Ordering::Relaxed);
        match diag.destroy(protocol, found) {
            Ok(()) => return Ok(Some((flow, service))),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
            // What the process has closed meanwhile is no whole socket, which Linux 5.15 cannot end (`tcp_abort`).
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                if !diag.can_destroy()? {
                    self.unable.store(true, Ordering::Relaxed);
                }
            }
            Err(error) => return Err(error),
        }
        Ok(None)
    }
}

/// What a socket keeps itself of how it was translated.
fn kept(found: &Found, protocol: Protocol) -> Option<Flow> {
    let (address, backend) = found.remembered()?;
    Some(Flow { service: Frontend::new(address, protocol), backend })
}
