//! Who undoes what we repair, again and again, is left alone for a while. Pure.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

/// What is undone so often, each time within `SOON`, is left alone for a while: for a second, then for twice as long, up to
/// the limit.
const ROUNDS: u32 = 10;
const SOON: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_secs(1);
const PAUSE_LIMIT: Duration = Duration::from_secs(60);

/// The repairs of one attachment, by what was repaired.
#[derive(Clone, Debug, Default)]
pub struct Contest(BTreeMap<String, Dispute>);

#[derive(Clone, Debug)]
struct Dispute {
    rounds: u32,
    pause: Duration,
    until: Instant,
}

impl Contest {
    /// Notes a repair. Returns for how long the object is left alone if somebody undoes this one too.
    pub fn note(&mut self, object: &str, now: Instant) -> Option<Duration> {
        self.0.retain(|_, dispute| now < dispute.until + SOON);
        let new = Dispute { rounds: 0, pause: PAUSE, until: now };
        let dispute = self.0.entry(object.to_owned()).or_insert(new);
        dispute.rounds += 1;
        if dispute.rounds < ROUNDS {
            dispute.until = now;
            return None;
        }
        let pause = dispute.pause;
        (dispute.until, dispute.pause) = (now + pause, (pause * 2).min(PAUSE_LIMIT));
        Some(pause)
    }

    /// Whether an object is left alone at a time.
    pub fn spares(&self, object: &str, now: Instant) -> bool {
        self.0.get(object).is_some_and(|dispute| now < dispute.until)
    }

    /// When the first object that is left alone at a time has its turn again.
    pub fn next(&self, now: Instant) -> Option<Instant> {
        self.0.values().map(|dispute| dispute.until).filter(|until| now < *until).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_undone_again_and_again_is_left_alone_for_longer_and_longer_and_other_things_are_not() {
        let (mut contest, mut now) = (Contest::default(), Instant::now());
        for _ in 1..ROUNDS {
            assert_eq!(contest.note("rule", now), None);
            assert!(!contest.spares("rule", now));
        }
        for seconds in [1, 2, 4, 8, 16, 32, 60, 60] {
            assert_eq!(contest.note("rule", now), Some(Duration::from_secs(seconds)));
            assert!(contest.spares("rule", now));
            assert!(!contest.spares("route", now));
            now = contest.next(now).unwrap();
            assert!(!contest.spares("rule", now));
        }
    }

    #[test]
    fn what_was_right_for_two_seconds_begins_anew() {
        let (mut contest, now) = (Contest::default(), Instant::now());
        for _ in 0..ROUNDS {
            contest.note("rule", now);
        }
        let later = now + PAUSE + SOON;
        assert_eq!(contest.note("rule", later), None);
    }
}
