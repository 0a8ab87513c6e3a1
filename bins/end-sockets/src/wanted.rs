//! Which sockets are to end. Pure.

use std::{
    collections::{HashMap, HashSet},
    net::SocketAddr,
    sync::Arc,
};

use bpf_lb_load::{
    gone::{Gone, Why},
    peers::Flow,
};
use clap::ValueEnum;
use service_table::Protocol;

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

/// Backends whose sockets are to end, and by which services they were reached.
#[derive(Debug, Default)]
pub struct Wanted {
    services: HashMap<(Protocol, SocketAddr), HashSet<Option<Arc<str>>>>,
    /// Those that sockets may have been translated to that have no place in the maps.
    used: HashSet<(Protocol, SocketAddr)>,
}

impl Wanted {
    /// Those of a list of changes that the rules are about, too. Says whether there are any. What a change says of a backend
    /// takes the place of what one before said.
    pub fn add(&mut self, gone: &[Gone], rules: Rules) -> bool {
        let mut any = false;
        for gone in gone {
            let backend = (gone.protocol, gone.backend);
            if rules.end(gone) {
                self.services.entry(backend).or_default().insert(gone.service.clone());
                self.used.extend((!gone.unused).then_some(backend));
                any = true;
            } else if let Some(services) = self.services.get_mut(&backend) {
                services.remove(&gone.service);
            }
        }
        self.services.retain(|_, services| !services.is_empty());
        any
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.services.is_empty()
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
        !leads_to && services.is_some_and(|services| owner.is_none() || services.contains(&owner))
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
        wanted.add(&[gone], RULES);
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
        assert!(!wanted.add(&[gone(Protocol::Tcp, Why::Draining)], RULES));
        assert!(!wanted.is_empty(), "another protocol");
        assert!(!wanted.add(&[gone(Protocol::Udp, Why::Draining)], RULES));
        assert!(wanted.is_empty(), "it serves again");
        assert!(wanted.add(&[gone(Protocol::Udp, Why::Left)], RULES));
        assert!(!wanted.is_empty());
    }

    #[test]
    fn sockets_without_a_place_are_looked_for_only_of_tcp_backends_that_were_used() {
        let anywhere = |gone| wanted(gone).may_be_anywhere();
        assert!(anywhere(gone(Protocol::Tcp, Why::Left)));
        assert!(!anywhere(gone(Protocol::Udp, Why::Left)));
        let unused = || Gone { unused: true, ..gone(Protocol::Tcp, Why::Left) };
        assert!(!anywhere(unused()));
        let mut wanted = wanted(unused());
        wanted.add(&[gone(Protocol::Tcp, Why::Left)], RULES);
        wanted.add(&[unused()], RULES);
        assert!(wanted.may_be_anywhere(), "by another of its addresses it was used");
        wanted.add(&[gone(Protocol::Tcp, Why::Draining)], RULES);
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
