//! Which endpoints sockets may be translated to: nobody has to look for the sockets of one that no connection was ever counted of.

use std::{collections::HashSet, net::SocketAddr};

use service_table::Protocol;

use crate::kernel::{Installed, Kernel};

/// With so many noted, all endpoints count as used: those of one node's pods are far fewer.
const LIMIT: usize = 1 << 16;

/// Endpoints that connections were counted of, with those whose counts nobody knows.
#[derive(Debug, Default)]
pub struct Used(HashSet<(Protocol, SocketAddr)>);

impl Used {
    /// Notes some.
    pub fn note(&mut self, endpoints: impl IntoIterator<Item = (Protocol, SocketAddr)>) {
        let room = LIMIT.saturating_sub(self.0.len());
        self.0.extend(endpoints.into_iter().take(room));
    }

    /// Whether this is one.
    pub fn has(&self, protocol: Protocol, endpoint: SocketAddr) -> bool {
        self.0.len() >= LIMIT || self.0.contains(&(protocol, endpoint))
    }
}

impl Kernel {
    /// Notes which endpoints of a service connections were counted of, before it loses one of them, or an address: with these the
    /// counts go, and sockets may stay.
    pub(crate) fn note_used(&mut self, service: &Installed) {
        let (_, connections) = self.counts(service);
        self.used.note(connections.into_keys().map(|endpoint| (service.spec.protocol, endpoint)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_used_once_stays_so_and_what_there_is_no_room_for_counts_as_used() {
        let endpoint = |number: u32| SocketAddr::from((number.to_be_bytes(), 80));
        let mut used = Used::default();
        used.note([(Protocol::Tcp, endpoint(1))]);
        let has = |used: &Used| [1, 2].map(|number| used.has(Protocol::Tcp, endpoint(number)));
        assert_eq!((has(&used), used.has(Protocol::Udp, endpoint(1))), ([true, false], false));
        used.note((0x0a00_0000..).take(2 * LIMIT).map(|number| (Protocol::Tcp, endpoint(number))));
        assert_eq!((has(&used), used.0.len()), ([true, true], LIMIT));
    }
}
