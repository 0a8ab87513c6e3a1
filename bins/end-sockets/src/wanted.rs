//! Which sockets are to end. Pure.

use std::{
    collections::{HashMap, HashSet},
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use bpf_lb_load::{
    gone::{Gone, Why},
    peers::Flow,
};
use clap::ValueEnum;
use service_table::Protocol;

/// So long after a backend went its sockets are searched for. By then it may be back: endpoints that move from one EndpointSlice to
/// another are in neither for a moment, as when a Service gets a port more (`finalize` in Kubernetes' endpointslice/reconciler.go).
const GRACE: Duration = Duration::from_secs(1);

/// How far a backend has to be gone for its sockets to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum When {
    /// As soon as it gets nothing new
    Draining,
    /// When it does not serve any more
    Unready,
    /// When it is gone
    Left,
    /// Never
    Never,
}

/// How far that is, by protocol.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// For TCP.
    pub tcp: When,
    /// For UDP.
    pub udp: When,
}

impl Rules {
    fn end(self, gone: &Gone) -> bool {
        let when = match gone.protocol {
            Protocol::Tcp => self.tcp,
            Protocol::Udp => self.udp,
        };
        let now = match gone.why {
            Why::Draining => When::Draining,
            Why::Unready => When::Unready,
            Why::Left => When::Left,
        };
        now >= when
    }
}

/// The services by which a backend was reached, and since when and why it is not any more.
type Services = HashMap<Option<Arc<str>>, (Instant, Why)>;

/// Backends whose sockets are to end.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    services: HashMap<(Protocol, SocketAddr), Services>,
    /// Those that sockets may have been translated to that have no place in the maps.
    used: HashSet<(Protocol, SocketAddr)>,
}

impl Wanted {
    /// Those of a list of changes that the rules are about, too. What a change says of a backend takes the place of what one before
    /// said.
    pub fn add(&mut self, gone: &[Gone], rules: Rules, now: Instant) {
        for gone in gone {
            let backend = (gone.protocol, gone.backend);
            if rules.end(gone) {
                let services = self.services.entry(backend).or_default();
                // What goes twice in the same way may have been back between, of which the maps alone tell.
                let before = services.get(&gone.service).filter(|(_, why)| *why != gone.why);
                let since = before.map_or(now, |(since, _)| *since);
                services.insert(gone.service.clone(), (since, gone.why));
                self.used.extend((!gone.unused).then_some(backend));
            } else if let Some(services) = self.services.get_mut(&backend) {
                services.remove(&gone.service);
            }
        }
        self.tidy();
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.services.is_empty()
    }

    /// When the next ones are to be searched for after the last search.
    pub fn next(&self, searched: Option<Instant>) -> Option<Instant> {
        let due = self.services.values().flat_map(HashMap::values).map(|(since, _)| *since + GRACE);
        due.filter(|due| Some(*due) > searched).min()
    }

    /// Those that are to be searched for by now.
    pub fn due(&self, now: Instant) -> Self {
        let mut due = self.clone();
        due.keep(|since| since + GRACE <= now);
        due
    }

    /// Leaves out those that were searched for.
    pub fn done(&mut self, searched: Instant) {
        self.keep(|since| since + GRACE > searched);
    }

    fn keep(&mut self, which: impl Fn(Instant) -> bool) {
        self.services.values_mut().for_each(|services| services.retain(|_, (since, _)| which(*since)));
        self.tidy();
    }

    fn tidy(&mut self) {
        self.services.retain(|_, services| !services.is_empty());
        self.used.retain(|backend| self.services.contains_key(backend));
    }

    /// Whether there may be sockets to end that only their own storage tells of. The kernel lists that of TCP's alone.
    pub fn may_be_anywhere(&self) -> bool {
        self.services.keys().any(|backend| backend.0 == Protocol::Tcp && self.used.contains(backend))
    }

    /// Whether a socket that was translated like that may be one: it was translated to such a backend.
    pub fn concerns(&self, flow: &Flow) -> bool {
        self.services.contains_key(&(flow.service.protocol, flow.backend))
    }

    /// Whether it is one: the service that it asked for, which is `owner`'s now, lost that backend and does not have it again
    /// (`leads_to`). If it is no Service's any more, then there is nobody to say that the backend is not gone.
    pub fn ends(&self, flow: &Flow, owner: Option<Arc<str>>, leads_to: bool) -> bool {
        let services = self.services.get(&(flow.service.protocol, flow.backend));
        !leads_to && services.is_some_and(|services| owner.is_none() || services.contains_key(&owner))
    }
}

#[cfg(test)]
mod tests {
    use bpf_lb_load::spec::Frontend;

    use super::*;

    const RULES: Rules = Rules { tcp: When::Left, udp: When::Unready };

    fn gone(protocol: Protocol, why: Why) -> Gone {
        Gone { service: Some("a/b".into()), protocol, backend: "10.0.0.1:80".parse().unwrap(), why, unused: false }
    }

    fn wanted(gone: Gone) -> Wanted {
        let mut wanted = Wanted::default();
        wanted.add(&[gone], RULES, Instant::now());
        wanted
    }

    fn flow(protocol: Protocol) -> Flow {
        let service = Frontend::new("10.96.0.1:80".parse().unwrap(), protocol);
        Flow { service, backend: "10.0.0.1:80".parse().unwrap() }
    }

    #[test]
    fn tcp_stays_until_the_backend_left_and_udp_while_it_serves() {
        let ends = |protocol, why| !wanted(gone(protocol, why)).is_empty();
        let all = [Why::Draining, Why::Unready, Why::Left];
        assert_eq!(all.map(|why| ends(Protocol::Tcp, why)), [false, false, true]);
        assert_eq!(all.map(|why| ends(Protocol::Udp, why)), [false, true, true]);
    }

    #[test]
    fn what_is_said_last_of_a_backend_is_what_it_is() {
        let mut wanted = wanted(gone(Protocol::Udp, Why::Unready));
        let mut is_empty = |protocol, why| {
            wanted.add(&[gone(protocol, why)], RULES, Instant::now());
            wanted.is_empty()
        };
        assert!(!is_empty(Protocol::Tcp, Why::Draining), "another protocol");
        assert!(is_empty(Protocol::Udp, Why::Draining), "it serves again");
        assert!(!is_empty(Protocol::Udp, Why::Left));
    }

    #[test]
    fn each_backend_has_its_own_grace_from_when_it_went_first() {
        let mut wanted = Wanted::default();
        let (first, second) = (Instant::now(), Instant::now() + GRACE / 2);
        wanted.add(&[gone(Protocol::Udp, Why::Unready)], RULES, first);
        wanted.add(&[gone(Protocol::Tcp, Why::Left), gone(Protocol::Udp, Why::Left)], RULES, second);
        let of = |wanted: &Wanted| [Protocol::Tcp, Protocol::Udp].map(|protocol| wanted.concerns(&flow(protocol)));
        assert_eq!((wanted.next(None), of(&wanted.due(first))), (Some(first + GRACE), [false, false]));
        assert_eq!(of(&wanted.due(first + GRACE)), [false, true]);
        assert_eq!(wanted.next(Some(first + GRACE)), Some(second + GRACE), "also where that search failed");
        assert_eq!(of(&wanted.due(second + GRACE)), [true, true]);
        wanted.done(first + GRACE);
        assert_eq!((of(&wanted), wanted.next(None)), ([true, false], Some(second + GRACE)));
        // It was back, and goes once more.
        wanted.add(&[gone(Protocol::Tcp, Why::Left)], RULES, second + GRACE / 2);
        assert_eq!(wanted.next(None), Some(second + GRACE / 2 + GRACE));
    }

    #[test]
    fn sockets_without_a_place_are_looked_for_only_of_tcp_backends_that_were_used() {
        let anywhere = |gone| wanted(gone).may_be_anywhere();
        assert!(anywhere(gone(Protocol::Tcp, Why::Left)));
        assert!(!anywhere(gone(Protocol::Udp, Why::Left)));
        let unused = || Gone { unused: true, ..gone(Protocol::Tcp, Why::Left) };
        assert!(!anywhere(unused()));
        let mut wanted = wanted(unused());
        let mut add = |gone| wanted.add(&[gone], RULES, Instant::now());
        add(gone(Protocol::Tcp, Why::Left));
        add(unused());
        assert!(wanted.may_be_anywhere(), "by another of its addresses it was used");
        wanted.add(&[gone(Protocol::Tcp, Why::Draining)], RULES, Instant::now());
        assert!(!wanted.may_be_anywhere(), "it is back");
    }

    #[test]
    fn sockets_of_another_service_with_the_same_backend_stay() {
        let wanted = wanted(gone(Protocol::Udp, Why::Left));
        let ends = |owner: Option<&str>, leads_to| wanted.ends(&flow(Protocol::Udp), owner.map(Into::into), leads_to);
        assert_eq!([Some("a/b"), None, Some("c/d")].map(|owner| ends(owner, false)), [true, true, false]);
        assert!(!ends(Some("a/b"), true), "the backend is back");
        assert!(!wanted.ends(&flow(Protocol::Tcp), None, false), "another protocol");
    }
}
