//! Which places of a map are free.

use std::collections::{BTreeMap, BTreeSet};

use crate::grace::Limbo;

/// Allocates runs of places that lie side by side.
///
/// What programs may still be reading is retired first, and free only when a wait for them has ended.
#[derive(Debug)]
pub struct Space {
    /// Start and length; no two of them touch.
    free: BTreeMap<u32, u32>,
    /// The same, by length and start.
    gaps: BTreeSet<(u32, u32)>,
    retired: Limbo<(u32, u32)>,
}

impl Space {
    /// A space of `capacity` places, of which the `used` runs, given as start and length, are taken.
    pub fn new(capacity: u32, used: impl IntoIterator<Item = (u32, u32)>) -> Self {
        let mut used: Vec<_> = used.into_iter().filter(|(_, len)| *len > 0).collect();
        used.sort_unstable();
        let mut space = Self { free: BTreeMap::new(), gaps: BTreeSet::new(), retired: Limbo::default() };
        let mut next = 0;
        for (start, len) in used.into_iter().chain([(capacity, 0)]) {
            if start > next {
                space.insert(next, start - next);
            }
            next = next.max(start.saturating_add(len));
        }
        space
    }

    fn insert(&mut self, start: u32, len: u32) {
        self.free.insert(start, len);
        self.gaps.insert((len, start));
    }

    fn remove(&mut self, start: u32) -> Option<u32> {
        let len = self.free.remove(&start)?;
        self.gaps.remove(&(len, start));
        Some(len)
    }

    /// The start of `len` places side by side, or nothing if there are none. They come from the smallest gap that is large enough,
    /// so that large ones stay for who needs many.
    pub fn allocate(&mut self, len: u32) -> Option<u32> {
        if len == 0 {
            return Some(0);
        }
        let (free, start) = *self.gaps.range((len, 0)..).next()?;
        self.remove(start);
        if free > len {
            self.insert(start + len, free - len);
        }
        Some(start)
    }

    /// Gives places back that no program has seen.
    pub fn free(&mut self, start: u32, len: u32) {
        if len == 0 {
            return;
        }
        let (mut start, mut len) = (start, len);
        if let Some(after) = self.remove(start + len) {
            len += after;
        }
        if let Some((&before, &before_len)) = self.free.range(..start).next_back()
            && before + before_len == start
        {
            self.remove(before);
            (start, len) = (before, len + before_len);
        }
        self.insert(start, len);
    }

    /// Gives places back that programs may still be reading.
    pub fn retire(&mut self, start: u32, len: u32) {
        self.retired.push((start, len));
    }

    /// See [`Limbo::needs_wait`].
    pub const fn needs_wait(&self) -> bool {
        self.retired.needs_wait()
    }

    /// See [`Limbo::wait_begins`].
    pub fn wait_begins(&mut self) {
        self.retired.wait_begins();
    }

    /// Frees what was retired before the wait began.
    pub fn wait_ends(&mut self) {
        for (start, len) in self.retired.wait_ends() {
            self.free(start, len);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Space;

    #[test]
    fn what_is_freed_joins_its_neighbours() {
        let mut space = Space::new(10, []);
        let runs = [3, 3, 4].map(|len| (space.allocate(len).unwrap(), len));
        assert_eq!(space.allocate(1), None);
        for (start, len) in [runs[0], runs[2], runs[1]] {
            space.free(start, len);
        }
        assert_eq!(space.allocate(10), Some(0));
    }

    #[test]
    fn what_is_retired_is_not_given_away_before_a_wait_has_ended() {
        let mut space = Space::new(4, []);
        let start = space.allocate(4).unwrap();
        space.retire(start, 4);
        space.wait_begins();
        assert_eq!(space.allocate(1), None);
        space.wait_ends();
        assert!(space.allocate(4).is_some());
    }

    #[test]
    fn runs_that_are_replaced_again_and_again_leave_what_is_free_in_one_piece() {
        // Of 32,768 places 500 services have 11 each. Some change all the time, some seldom; each time the new run comes first.
        let (capacity, mut space) = (32_768, Space::new(32_768, []));
        let mut runs: Vec<_> = (0..500).map(|_| space.allocate(11).unwrap()).collect();
        for change in 0..50_000_usize {
            let service = if change % 10 == 0 { change / 10 % 500 } else { change * change % 50 };
            let (old, len) = (runs[service], 11);
            runs[service] = space.allocate(len).unwrap();
            space.retire(old, len);
            space.wait_begins();
            space.wait_ends();
        }
        assert!(space.allocate((capacity - 500 * 11) / 2).is_some(), "{:?}", space.gaps.last());
    }

    #[test]
    fn what_was_in_use_before_is_not_free() {
        let mut space = Space::new(8, [(4, 2), (0, 1)]);
        assert_eq!((space.allocate(3), space.allocate(3), space.allocate(2)), (Some(1), None, Some(6)));
    }
}
