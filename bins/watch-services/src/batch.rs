//! Changes that come together are said together.

use std::{future::pending, time::Duration};

use tokio::time::{Instant, sleep_until};

/// So long after a change others are waited for ...
const QUIET: Duration = Duration::from_millis(2);
/// ... but no change waits longer than this.
const PATIENCE: Duration = Duration::from_millis(25);

/// Changes that wait for others.
#[derive(Debug, Default)]
pub struct Batch {
    /// When the oldest came, and when the youngest.
    waiting: Option<(Instant, Instant)>,
}

impl Batch {
    /// One more change.
    pub fn add(&mut self) {
        let now = Instant::now();
        self.waiting = Some((self.waiting.map_or(now, |(first, _)| first), now));
    }

    /// Waits until it is time for what waits; for ever if nothing does.
    pub async fn due(&self) {
        match self.waiting {
            Some((first, last)) => sleep_until((first + PATIENCE).min(last + QUIET)).await,
            None => pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::interval;

    use super::*;

    /// Twice [`PATIENCE`]: what a change may wait at most, whatever the clock does.
    const BOUND: Duration = Duration::from_millis(50);

    /// So many changes, one each `every`: for each batch, how many were in it and how long its first waited.
    async fn batches(changes: usize, every: Duration) -> Vec<(usize, Duration)> {
        let (mut batch, mut since, mut count, mut left) = (Batch::default(), Instant::now(), 0, changes);
        let mut batches = vec![];
        let mut tick = interval(every);
        while left > 0 || count > 0 {
            tokio::select! {
                _ = tick.tick(), if left > 0 => {
                    if count == 0 {
                        since = Instant::now();
                    }
                    (count, left) = (count + 1, left - 1);
                    batch.add();
                }
                () = batch.due() => {
                    batches.push((count, since.elapsed()));
                    (batch, count) = (Batch::default(), 0);
                }
            }
        }
        batches
    }

    #[tokio::test(start_paused = true)]
    async fn a_burst_never_delays_its_first_change_by_more_than_the_bound() {
        let batches = batches(1000, Duration::from_millis(1)).await;
        assert_eq!(batches.iter().map(|(count, _)| count).sum::<usize>(), 1000);
        assert!(batches.iter().all(|(_, waited)| *waited <= BOUND), "{batches:?}");
        // And it is batched.
        assert!(batches.len() <= 1000 / 20, "{batches:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_by_itself_waits_only_for_silence() {
        let batches = batches(10, Duration::from_millis(100)).await;
        assert_eq!(batches.len(), 10);
        // The clock counts milliseconds.
        assert!(batches.iter().all(|(_, waited)| *waited <= QUIET + Duration::from_millis(1)), "{batches:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn without_changes_nothing_is_due() {
        assert!(tokio::time::timeout(Duration::from_secs(3600), Batch::default().due()).await.is_err());
    }
}
