//! For how long the programs go by the table when nobody renews that.

use std::{str::FromStr, time::Duration};

use nix::time::{ClockId, clock_gettime};

use crate::kernel::Kernel;

/// For how many seconds the table is good from when it was renewed last; 0 is for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease(u32);

impl Lease {
    /// The table never expires.
    pub const FOR_EVER: Self = Self(0);
    /// A shorter one might be over before `follow` renews it.
    const SHORTEST: u32 = 5;

    /// [`bpf_lb_abi::Config::expires`] of a table that is renewed at this time of `CLOCK_MONOTONIC`.
    fn expires(self, now: Duration) -> u32 {
        // Of the second that has begun nobody knows how much is left.
        let end = u32::try_from(now.as_secs()).unwrap_or(u32::MAX).saturating_add(1).saturating_add(self.0);
        if self == Self::FOR_EVER { 0 } else { end }
    }
}

impl FromStr for Lease {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let seconds = text.parse().ok().filter(|seconds| *seconds == 0 || *seconds >= Self::SHORTEST);
        seconds
            .map(Self)
            .ok_or_else(|| format!("not 0 (for ever), and no number of seconds from {} on", Self::SHORTEST))
    }
}

/// `CLOCK_MONOTONIC`, which no Linux lacks.
fn now() -> Duration {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from).unwrap_or_default()
}

impl Kernel {
    /// Lets the programs go by the table for so long from now on.
    pub fn renew(&self, lease: Lease) {
        if let Some(config) = self.config() {
            config.expires.store(lease.expires(now()));
        }
    }

    /// Whether they do so for a time only.
    pub fn expires(&self) -> bool {
        self.config().is_some_and(|config| config.expires.load() != 0)
    }

    /// Whether they do not any more.
    pub fn has_expired(&self) -> bool {
        let now_ns = u64::try_from(now().as_nanos()).unwrap_or(u64::MAX);
        self.config().is_some_and(|config| config.has_expired(now_ns))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_no_shorter_than_it_says_and_one_for_ever_has_no_end() {
        for (now, seconds, expires) in [(0, 5, 6), (100_000, 600, 701), (100_999, 600, 701), (u64::MAX, 600, u32::MAX)]
        {
            assert_eq!(Lease(seconds).expires(Duration::from_millis(now)), expires);
            assert_eq!(Lease::FOR_EVER.expires(Duration::from_millis(now)), 0);
        }
    }

    #[test]
    fn a_lease_that_would_be_over_before_it_is_renewed_is_none() {
        assert_eq!("600".parse(), Ok(Lease(600)));
        assert_eq!("5".parse(), Ok(Lease(5)));
        assert_eq!("0".parse(), Ok(Lease::FOR_EVER));
        for text in ["4", "1", "-1", "", "10m", "4294967296"] {
            assert!(text.parse::<Lease>().is_err(), "{text}");
        }
    }
}
