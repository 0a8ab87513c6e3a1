//! Which endpoints a change takes away, so that the sockets that were translated to them can be ended. Pure.

use std::{cell::LazyCell, collections::BTreeMap, net::SocketAddr, rc::Rc, sync::Arc};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use service_table::{Draining, Protocol, ServiceName};

use crate::{kernel::Installed, spec::Frontend};

/// What an endpoint is still good for, the most first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// It gets new connections.
    Ready,
    /// It gets none, and serves those that it has.
    Draining,
    /// It does not serve, and is not gone.
    Unready,
}

impl State {
    /// Why the sockets of an endpoint in this state may have to end.
    pub const fn why(self) -> Why {
        match self {
            Self::Ready | Self::Draining => Why::Draining,
            Self::Unready => Why::Unready,
        }
    }
}

/// The endpoints of a service.
pub type Endpoints = BTreeMap<SocketAddr, State>;

/// Those that drain.
pub fn draining(list: &[Draining]) -> impl Iterator<Item = (SocketAddr, State)> {
    list.iter().map(|endpoint| {
        let state = if endpoint.serving { State::Draining } else { State::Unready };
        (SocketAddr::new(endpoint.address.to_canonical(), endpoint.port), state)
    })
}

/// Why an endpoint's sockets may have to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Why {
    /// It gets no new connections, and serves those that it has.
    Draining,
    /// It does not serve any more, and is not gone; or not by that address, which another service has now.
    Unready,
    /// It is gone.
    Left,
}

/// An endpoint that is less of one than before, or than it was until it left a moment ago.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Gone {
    /// `namespace/name:port name` of the service that has the address which clients asked for; null if it is not known any more.
    pub service: Option<Arc<str>>,
    /// Of the service's port.
    pub protocol: Protocol,
    /// The endpoint.
    pub backend: SocketAddr,
    /// In what way.
    pub why: Why,
    /// No connection to it was ever counted here.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unused: bool,
}

/// What a service has. It stays so, whatever becomes of the service.
#[derive(Debug)]
pub struct Holding {
    /// What is in the maps.
    pub installed: Option<Rc<Installed>>,
    /// The endpoints that get nothing new.
    pub draining: Endpoints,
}

impl Holding {
    /// What it has in the maps, and what drains.
    pub fn new(installed: Option<&Rc<Installed>>, draining: Option<&Endpoints>) -> Self {
        Self { installed: installed.cloned(), draining: draining.cloned().unwrap_or_default() }
    }

    /// Of its port.
    pub fn protocol(&self) -> Protocol {
        self.installed.as_ref().map(|installed| installed.spec.protocol).unwrap_or_default()
    }

    /// Its addresses.
    pub fn frontends(&self) -> impl Iterator<Item = &Frontend> {
        self.installed.iter().flat_map(|installed| installed.spec.frontends.keys())
    }

    /// Its endpoints, also those that drain.
    pub fn endpoints(&self) -> impl Iterator<Item = &SocketAddr> {
        self.ready().chain(self.only_draining().map(|(endpoint, _)| endpoint))
    }

    /// Whether that is one of its endpoints.
    fn has(&self, endpoint: &SocketAddr) -> bool {
        self.is_ready(endpoint) || self.draining.contains_key(endpoint)
    }

    /// Those that get new connections, in order.
    fn ready(&self) -> impl Iterator<Item = &SocketAddr> {
        self.installed.iter().flat_map(|installed| installed.backends.keys())
    }

    fn is_ready(&self, endpoint: &SocketAddr) -> bool {
        self.installed.as_ref().is_some_and(|installed| installed.backends.contains_key(endpoint))
    }

    /// An endpoint that is good for less counts as no less than this. Where none of its family serves, a socket keeps the one that
    /// it has, as with kube-proxy (`CleanStaleEntries`): there is nothing better.
    pub fn least(&self) -> impl Fn(&SocketAddr) -> State + Copy + use<> {
        let serves = [false, true].map(|v6| {
            let of_family = |endpoint: &SocketAddr| endpoint.is_ipv6() == v6;
            let draining = |(endpoint, state): (&SocketAddr, &State)| of_family(endpoint) && *state == State::Draining;
            self.ready().any(of_family) || self.draining.iter().any(draining)
        });
        move |endpoint| if serves[usize::from(endpoint.is_ipv6())] { State::Unready } else { State::Draining }
    }

    fn only_draining(&self) -> impl Iterator<Item = (&SocketAddr, &State)> {
        self.draining.iter().filter(|(endpoint, _)| !self.is_ready(endpoint))
    }
}

/// The endpoints of a service that were more `before` than they are `after`.
pub fn gone<'a>(service: &'a ServiceName, before: &'a Holding, after: &'a Holding) -> impl Iterator<Item = Gone> {
    let (service, protocol) = (text(service), before.protocol());
    let (was, is) = (before.least(), after.least());
    let changed = move |(backend, state): (&SocketAddr, &State)| {
        let why = match after.draining.get(backend).map(|state| is(backend).min(*state)) {
            None => Why::Left,
            Some(now) if now <= was(backend).min(*state) => return None,
            Some(now) => now.why(),
        };
        Some(Gone { service: Some(service.clone()), protocol, backend: *backend, why, unused: false })
    };
    let unready = only_first(before.ready(), after.ready()).map(|endpoint| (endpoint, &State::Ready));
    let drained = before.only_draining().filter(move |(endpoint, _)| !after.is_ready(endpoint));
    unready.chain(drained).filter_map(changed)
}

/// The endpoints of a service that it did not have `before`, drain in it `after`, and `left` it shortly before.
pub fn back<'a>(
    service: &'a ServiceName,
    before: &'a Holding,
    after: &'a Holding,
    left: impl Fn(&SocketAddr) -> bool,
) -> impl Iterator<Item = Gone> {
    let (service, protocol, is) = (text(service), after.protocol(), after.least());
    let returned = after.only_draining().filter(move |(endpoint, _)| !before.has(endpoint) && left(endpoint));
    returned.map(move |(backend, state)| {
        let why = is(backend).min(*state).why();
        Gone { service: Some(service.clone()), protocol, backend: *backend, why, unused: false }
    })
}

/// The items of one sorted iterator that are not in another one.
fn only_first<T: Ord>(first: impl Iterator<Item = T>, other: impl Iterator<Item = T>) -> impl Iterator<Item = T> {
    let mut other = other.peekable();
    first.filter(move |item| {
        while other.next_if(|other| other < item).is_some() {}
        other.next_if_eq(item).is_none()
    })
}

/// The endpoints of the service that had an address which is now `service`'s, and that are none `after` of the latter.
pub fn moved<'a>(
    service: &ServiceName,
    protocol: Protocol,
    before: impl IntoIterator<Item = &'a SocketAddr>,
    after: &Holding,
    why: Why,
) -> impl Iterator<Item = Gone> {
    let service = text(service);
    let others = before.into_iter().filter(move |backend| !after.has(backend));
    others.map(move |backend| Gone { service: Some(service.clone()), protocol, backend: *backend, why, unused: false })
}

/// One copy for all endpoints, and none where none is gone.
fn text(service: &ServiceName) -> LazyCell<Arc<str>, impl FnOnce() -> Arc<str>> {
    LazyCell::new(|| service.to_string().into())
}

#[cfg(test)]
mod tests {
    use service_table::Service;

    use super::*;
    use crate::{family::BackendRef, spec::Spec};

    /// What an endpoint is before and after.
    type Pair = (Option<State>, Option<State>);

    fn endpoint(port: u16) -> SocketAddr {
        ([10, 0, 0, 1], port).into()
    }

    fn holding(ready: &[u16], draining: &[(u16, State)]) -> Holding {
        let mut installed = Installed::new(0, Spec::new(&Service::default(), &BTreeMap::new()).unwrap());
        let backend = BackendRef { id: 0, generation: 0 };
        installed.backends = ready.iter().map(|port| (endpoint(*port), backend)).collect();
        let draining = draining.iter().map(|(port, state)| (endpoint(*port), *state)).collect();
        Holding { installed: Some(installed.into()), draining }
    }

    #[test]
    fn an_endpoint_is_gone_that_is_less_of_one_than_before() {
        use State::{Draining, Ready, Unready};
        let states = [Some(Ready), Some(Draining), Some(Unready), None];
        let pairs: Vec<_> =
            states.iter().flat_map(|before| states.iter().map(move |after| (*before, *after))).collect();
        let side = |state: fn(&Pair) -> Option<State>| {
            let all = (1..).zip(&pairs).filter_map(|(port, pair)| Some((port, state(pair)?)));
            let (ready, draining): (Vec<_>, Vec<_>) = all.partition(|(_, state)| *state == Ready);
            holding(&ready.iter().map(|(port, _)| *port).collect::<Vec<_>>(), &draining)
        };
        let (before, after) = (side(|pair| pair.0), side(|pair| pair.1));
        let name = ServiceName { namespace: "a".into(), name: "b".into(), port_name: String::new() };
        let mut found: Vec<_> = gone(&name, &before, &after).map(|gone| (gone.backend, gone.why)).collect();
        found.sort_unstable();
        let why = |(before, after): &Pair| match (before, after) {
            (Some(_), None) => Some(Why::Left),
            (Some(Ready | Draining), Some(Unready)) => Some(Why::Unready),
            (Some(Ready), Some(Draining)) => Some(Why::Draining),
            _ => None,
        };
        let wanted = (1..).zip(&pairs).filter_map(|(port, pair)| Some((endpoint(port), why(pair)?)));
        assert_eq!(found, wanted.collect::<Vec<_>>());
    }

    #[test]
    fn where_nothing_serves_nobody_is_unready_until_something_does() {
        let name = ServiceName { namespace: "a".into(), name: "b".into(), port_name: String::new() };
        let why =
            |before: &Holding, after: &Holding| gone(&name, before, after).map(|gone| gone.why).collect::<Vec<_>>();
        let (ready, unready) = (holding(&[1], &[]), holding(&[], &[(1, State::Unready)]));
        assert_eq!(why(&ready, &unready), [Why::Draining]);
        assert_eq!(why(&unready, &ready), []);
        assert_eq!(why(&unready, &holding(&[2], &[(1, State::Unready)])), [Why::Unready]);
        assert_eq!(why(&unready, &holding(&[], &[(1, State::Unready), (2, State::Draining)])), [Why::Unready]);
        assert_eq!(why(&unready, &holding(&[], &[])), [Why::Left]);
    }

    #[test]
    fn of_two_sorted_lists_what_only_the_first_has_is_found() {
        for (first, other, wanted) in
            [(&[1, 3, 5][..], &[0, 1, 2, 4, 5, 6][..], &[3][..]), (&[1, 2], &[], &[1, 2]), (&[], &[1], &[])]
        {
            assert_eq!(only_first(first.iter(), other.iter()).copied().collect::<Vec<_>>(), wanted);
        }
    }
}
