//! Which places of a map are free.

use std::collections::BTreeMap;

use crate::grace::Limbo;

/// Allocates runs of places that lie side by side.
///
/// What programs may still be reading is retired first, and free only when a wait for them has ended.
#[derive(Debug)]
pub struct Space {
    /// Start and length; no two of them touch.
    free: BTreeMap<u32, u32>,
    retired: Limbo<(u32, u32)>,
    /// Where the last search ended: the next begins there, so that it does not walk over the same small gaps again.
    cursor: u32,
}

impl Space {
    /// A space of `capacity` places, of which the `used` runs, given as start and length, are taken.
    pub fn new(capacity: u32, used: impl IntoIterator<Item = (u32, u32)>) -> Self {
        let mut used: Vec<_> = used.into_iter().filter(|(_, len)| *len > 0).collect();
        used.sort_unstable();
        let mut free = BTreeMap::new();
        let mut next = 0;
        for (start, len) in used.into_iter().chain([(capacity, 0)]) {
            if start > next {
                free.insert(next, start - next);
            }
            next = next.max(start.saturating_add(len));
        }
        Self { free, retired: Limbo::default(), cursor: 0 }
    }

    /// The start of `len` places side by side, or nothing if there are none.
    pub fn allocate(&mut self, len: u32) -> Option<u32> {
        if len == 0 {
            return Some(0);
        }
        let fits = |(start, free): (&u32, &u32)| (*free >= len).then_some((*start, *free));
        let (start, free) =
            self.free.range(self.cursor..).find_map(fits).or_else(|| self.free.range(..self.cursor).find_map(fits))?;
        self.free.remove(&start);
        if free > len {
            self.free.insert(start + len, free - len);
        }
        self.cursor = start + len;
        Some(start)
    }

    /// Gives places back that no program has seen.
    pub fn free(&mut self, start: u32, len: u32) {
        if len == 0 {
            return;
        }
        let (mut start, mut len) = (start, len);
        if let Some(after) = self.free.remove(&(start + len)) {
            len += after;
        }
        if let Some((&before, &before_len)) = self.free.range(..start).next_back()
            && before + before_len == start
        {
            self.free.remove(&before);
            (start, len) = (before, len + before_len);
        }
        self.free.insert(start, len);
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

    /// How many places are free now.
    pub fn available(&self) -> u32 {
        self.free.values().sum()
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
        assert_eq!(space.available(), 4);
        assert!(space.allocate(4).is_some());
    }

    #[test]
    fn what_was_in_use_before_is_not_free() {
        let mut space = Space::new(8, [(4, 2), (0, 1)]);
        assert_eq!((space.allocate(3), space.allocate(3), space.allocate(2)), (Some(1), None, Some(6)));
    }
}
