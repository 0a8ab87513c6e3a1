//! The hash table that the frontends of a family are: which buckets are in use, and in which of them a frontend can be. Pure, but for the
//! look into one.

use std::ops::{ControlFlow, Range};

use bpf_lb_abi::{Address, CELLS, Cell, Config, Endpoint, Entry, PROBES};

use crate::sys::Mapped;

/// How many cells a bucket has.
pub const CELLS_PER_BUCKET: u32 = CELLS as u32;

/// How many buckets are in use at first, if there are so many.
pub const FIRST_BUCKETS: u32 = 1 << 10;

/// How many buckets are to be in use for so many frontends, at least: one in 200 is full then, or fewer.
pub const fn enough_buckets(frontends: u32) -> u32 {
    frontends.saturating_add(frontends / 2)
}

/// Where the frontends of a family are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buckets {
    /// Of [`Endpoint::hash`].
    key: u64,
    /// See [`Config::frontend_mask`].
    pub mask: u32,
}

impl Buckets {
    /// Those of the family that are in use now.
    pub fn of<A: Address>(config: &Mapped<Config>) -> Self {
        config.get(0).map_or(Self { key: 0, mask: 0 }, |config| Self {
            key: config.hash_key.load(),
            mask: config.frontend_mask::<A>().load(),
        })
    }

    /// The same, with so many in use, a power of two.
    pub const fn with(self, count: u32) -> Self {
        Self { mask: count.saturating_sub(1), ..self }
    }

    /// The first bucket in which a frontend can be.
    fn home<A: Address>(self, frontend: &Endpoint<A>) -> u32 {
        frontend.hash(self.key) & self.mask
    }

    /// The bucket so many after that one; after the last comes the first.
    pub const fn after(self, bucket: u32, steps: u32) -> u32 {
        bucket.wrapping_add(steps) & self.mask
    }

    /// How many buckets programs look into before that one for a frontend; nothing if they do not get there.
    pub fn steps<A: Address>(self, frontend: &Endpoint<A>, bucket: u32) -> Option<u32> {
        let steps = bucket.wrapping_sub(self.home(frontend)) & self.mask;
        (steps < PROBES).then_some(steps)
    }

    /// The cells of the buckets in which a frontend can be, in the order in which programs look into them.
    pub fn cells<A: Address>(self, frontend: &Endpoint<A>) -> impl Iterator<Item = Range<u32>> {
        let home = self.home(frontend);
        (0..PROBES).map(move |step| cells_of(self.after(home, step)))
    }

    /// Whether a frontend that is in that bucket of those in use `now` is found there also with these: its first bucket is the same, and the
    /// way from there does not lead round the end of those of now, after which new ones come.
    pub fn keep<A: Address>(self, now: Self, frontend: &Endpoint<A>, bucket: u32) -> bool {
        let home = self.home(frontend);
        home == now.home(frontend) && bucket >= home
    }
}

/// The cells of a bucket.
pub fn cells_of(bucket: u32) -> Range<u32> {
    bucket * CELLS_PER_BUCKET..(bucket + 1) * CELLS_PER_BUCKET
}

/// Looks into a bucket for a frontend, as the programs do: breaks with its cell, or with nothing if it is in none that follows either.
pub fn look<A: Address>(
    cells: &Mapped<Cell<A>>,
    bucket: Range<u32>,
    wanted: &Endpoint<A>,
) -> ControlFlow<Option<(u32, Entry)>> {
    let cells = || bucket.clone().filter_map(|cell| Some((cell, cells.get(cell)?)));
    let same = cells().filter(|(_, found)| found.key == *wanted);
    let found = same.map(|(cell, found)| (cell, Entry(found.entry.load()))).find(|(_, entry)| entry.is_present());
    // The key would be here if there was room.
    if found.is_some() || cells().any(|(_, found)| found.key.port == 0) {
        return ControlFlow::Break(found);
    }
    ControlFlow::Continue(())
}

#[cfg(test)]
mod tests {
    use bpf_lb_abi::TCP;

    use super::*;

    /// A frontend of which that is the first bucket of so many.
    fn of(home: u32, buckets: Buckets) -> Endpoint<u32> {
        let ports = (1..=u16::MAX).map(|port| Endpoint { address: 1, port, protocol: TCP });
        ports.into_iter().find(|frontend| buckets.home(frontend) == home).unwrap()
    }

    fn buckets(count: u32) -> Buckets {
        Buckets { key: 7, mask: count - 1 }
    }

    #[test]
    fn a_frontend_is_looked_for_in_eight_buckets_after_the_last_of_which_comes_the_first() {
        let sixteen = buckets(16);
        let frontend = of(13, sixteen);
        let looked: Vec<_> = sixteen.cells(&frontend).map(|cells| cells.start / CELLS_PER_BUCKET).collect();
        assert_eq!(looked, [13, 14, 15, 0, 1, 2, 3, 4]);
        let steps = |bucket| sixteen.steps(&frontend, bucket);
        assert_eq!([13, 15, 0, 4, 5, 12].map(steps), [Some(0), Some(2), Some(3), Some(7), None, None]);
        assert_eq!((sixteen.after(15, 2), sixteen.after(0, 2_u32.wrapping_neg())), (1, 14));
    }

    #[test]
    fn a_frontend_keeps_its_place_among_more_buckets_if_no_new_one_comes_before() {
        let (now, next) = (buckets(16), buckets(32));
        let (low, high) = (of(13, next), of(13 + 16, next));
        assert_eq!([&low, &high].map(|frontend| now.home(frontend)), [13, 13]);
        assert_eq!([13, 15, 0].map(|bucket| next.keep(now, &low, bucket)), [true, true, false]);
        assert_eq!([13, 15, 0].map(|bucket| next.keep(now, &high, bucket)), [false; 3]);
    }

    #[test]
    fn there_are_one_and_a_half_buckets_for_each_frontend() {
        assert_eq!([0, 1, 682, 683, u32::MAX].map(enough_buckets), [0, 1, 1023, 1024, u32::MAX]);
    }
}
