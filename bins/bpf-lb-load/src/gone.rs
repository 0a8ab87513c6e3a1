//! Which endpoints a change takes away, so that the sockets that were translated to them can be ended. Pure.

use std::{collections::BTreeMap, net::SocketAddr};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use service_table::{Draining, Protocol};

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

/// An endpoint that is less of one than before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Gone {
    /// `namespace/name:port name` of the service that has the address which clients asked for; null if it is not known any more.
    pub service: Option<String>,
    /// Of the service's port.
    pub protocol: Protocol,
    /// The endpoint.
    pub backend: SocketAddr,
    /// In what way.
    pub why: Why,
}

/// The endpoints of a service that were more `before` than they are `after`.
pub fn gone(service: &str, protocol: Protocol, before: &Endpoints, after: &Endpoints) -> Vec<Gone> {
    let changed = |(backend, state): (&SocketAddr, &State)| {
        let why = match after.get(backend) {
            None => Why::Left,
            Some(now) if now <= state => return None,
            Some(State::Unready) => Why::Unready,
            Some(_) => Why::Draining,
        };
        Some(Gone { service: Some(service.into()), protocol, backend: *backend, why })
    };
    before.iter().filter_map(changed).collect()
}

/// The endpoints of the service that had an address which is now `service`'s, and that are none `after` of the latter.
pub fn moved<'a>(
    service: &str,
    protocol: Protocol,
    before: impl Iterator<Item = &'a SocketAddr>,
    after: &Endpoints,
    why: Why,
) -> Vec<Gone> {
    let others = before.filter(|backend| !after.contains_key(backend));
    others.map(|backend| Gone { service: Some(service.into()), protocol, backend: *backend, why }).collect()
}
