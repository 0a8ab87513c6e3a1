//! Which endpoints sockets may be translated to: nobody has to look for the sockets of one that no connection was ever counted of.

use std::{collections::HashSet, net::SocketAddr};

use service_table::Protocol;

/// With so many noted, all endpoints count as used: those of one node's pods are far fewer.
const LIMIT: usize = 1 << 16;

/// Endpoints that connections were counted of, with those whose counts nobody knows.
#[derive(Debug, Default)]
pub struct Used(HashSet<(Protocol, SocketAddr)>);

impl Used {
    /// Notes some.
    pub fn note(&mut self, endpoints: impl IntoIterator<Item = (Protocol, SocketAddr)>) {
        for endpoint in endpoints {
            if self.0.len() >= LIMIT {
                break;
            }
            self.0.insert(endpoint);
        }
    }

    /// Whether this is one.
    pub fn has(&self, protocol: Protocol, endpoint: SocketAddr) -> bool {
        self.0.len() >= LIMIT || self.0.contains(&(protocol, endpoint))
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
        used.note((0x0a00_0000..).take(LIMIT - 2).map(|number| (Protocol::Tcp, endpoint(number))));
        used.note([endpoint(1), endpoint(2)].map(|known_and_new| (Protocol::Tcp, known_and_new)));
        assert_eq!((has(&used), used.0.len()), ([true, true], LIMIT));
        used.note([(Protocol::Tcp, endpoint(3))]);
        assert_eq!((has(&used), used.0.len()), ([true, true], LIMIT));
    }
}
