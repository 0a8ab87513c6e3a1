//! What a service has counted while its backends come and go: a backend takes its own count with it, and a counter does not fall.

use std::{collections::BTreeMap, net::SocketAddr};

/// The counters of a service since somebody looks at them.
#[derive(Debug, Default)]
pub struct Tally {
    /// Connections begun.
    pub connections: u64,
    /// Connections that found no backend.
    pub refused: u64,
    /// What its backends had counted when they were last looked at.
    backends: BTreeMap<SocketAddr, u64>,
    /// The refusals at that time.
    own: u64,
    /// All of it together, unless the backends may be others by now.
    pub sum: Option<u64>,
}

impl Tally {
    /// Takes note of what the kernel has counted ([`crate::kernel::Kernel::counts`]).
    pub fn note(&mut self, (refused, backends): (u64, BTreeMap<SocketAddr, u64>)) {
        let before = |address| self.backends.get(address).copied().unwrap_or_default();
        self.connections += backends.iter().map(|(address, now)| now.saturating_sub(before(address))).sum::<u64>();
        self.refused += refused.saturating_sub(self.own);
        self.sum = Some(refused + backends.values().sum::<u64>());
        (self.own, self.backends) = (refused, backends);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backend_that_goes_or_comes_again_takes_nothing_away() {
        let mut tally = Tally::default();
        let mut note = |refused, counts: &[(&str, u64)]| {
            let backends = counts.iter().map(|(backend, count)| (backend.parse().unwrap(), *count)).collect();
            tally.note((refused, backends));
            (tally.connections, tally.refused)
        };
        assert_eq!(note(0, &[("10.0.0.1:80", 3), ("10.0.0.2:80", 2)]), (5, 0));
        assert_eq!(note(1, &[("10.0.0.1:80", 4)]), (6, 1));
        assert_eq!(note(3, &[]), (6, 3));
        assert_eq!(note(3, &[("10.0.0.1:80", 1)]), (7, 3));
    }
}
