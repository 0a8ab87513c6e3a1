//! Waiting until no program runs any more that may have seen what was given up.

use std::{
    io,
    path::Path,
    sync::mpsc::{Receiver, Sender, TryRecvError, channel},
    thread,
};

use aya::maps::{Array, ArrayOfMaps, MapData};

use crate::maps::{MapsError, pinned};

const MAP: &str = "grace";

type Ended = Result<(), MapsError>;

/// Waits in a thread of its own, since a wait takes longer than any update of the maps.
#[derive(Debug)]
pub struct Grace {
    begin: Sender<()>,
    ended: Receiver<Ended>,
    waiting: bool,
}

impl Grace {
    /// Opens the map `grace` that is pinned in `folder`.
    pub fn open(folder: &Path) -> Result<Self, MapsError> {
        let mut map = ArrayOfMaps::try_from(pinned(folder, MAP)?).map_err(|source| MapsError::new(MAP, source))?;
        let (begin, begun) = channel();
        let (end, ended) = channel();
        // Ends with the sender of `begun`, or with the receiver of `ended`.
        thread::spawn(move || begun.iter().try_for_each(|()| end.send(wait(&mut map))));
        Ok(Self { begin, ended, waiting: false })
    }

    /// Whether a wait is under way.
    pub const fn is_waiting(&self) -> bool {
        self.waiting
    }

    /// Begins a wait for all programs that run now.
    pub fn begin(&mut self) {
        self.waiting = self.begin.send(()).is_ok();
    }

    /// Whether a wait has ended since the last call.
    pub fn has_ended(&mut self) -> Result<bool, MapsError> {
        match self.ended.try_recv() {
            Ok(ended) => self.note(ended).map(|()| true),
            Err(TryRecvError::Empty) => Ok(false),
            Err(TryRecvError::Disconnected) => Err(died()),
        }
    }

    /// Returns when the wait that was begun has ended.
    pub fn end(&mut self) -> Result<(), MapsError> {
        let ended = self.ended.recv().unwrap_or_else(|_| Err(died()));
        self.note(ended)
    }

    fn note(&mut self, ended: Ended) -> Ended {
        self.waiting = false;
        ended
    }
}

fn died() -> MapsError {
    MapsError::io(MAP, io::Error::other("the thread that waits has ended"))
}

/// An update of a map of maps from user space returns when every program that ran before it has ended
/// (`maybe_wait_bpf_programs` in the kernel).
fn wait(map: &mut ArrayOfMaps<MapData, Array<MapData, u32>>) -> Ended {
    let failed = |source| MapsError::new(MAP, source);
    let inner = Array::create(1, 0).map_err(failed)?;
    map.set(0, &inner, 0).map_err(failed)
}

/// What was given up, and may still be in use by programs.
#[derive(Debug)]
pub struct Limbo<T> {
    /// Given up since the last wait began.
    since: Vec<T>,
    /// Given up before it began: free when it ends.
    before: Vec<T>,
}

impl<T> Default for Limbo<T> {
    fn default() -> Self {
        Self { since: Vec::new(), before: Vec::new() }
    }
}

impl<T> Limbo<T> {
    /// Whether a wait would be of use: something was given up since the last one began.
    pub const fn needs_wait(&self) -> bool {
        !self.since.is_empty()
    }

    /// Gives something up.
    pub fn push(&mut self, item: T) {
        self.since.push(item);
    }

    /// A wait begins.
    pub fn wait_begins(&mut self) {
        self.before.append(&mut self.since);
    }

    /// The wait has ended: what no program uses any more.
    pub fn wait_ends(&mut self) -> Vec<T> {
        std::mem::take(&mut self.before)
    }
}

#[cfg(test)]
mod tests {
    use super::Limbo;

    #[test]
    fn what_is_given_up_during_a_wait_stays_until_the_end_of_the_next() {
        let mut limbo = Limbo::default();
        limbo.push("before");
        limbo.wait_begins();
        limbo.push("during");
        assert_eq!(limbo.wait_ends(), ["before"]);
        limbo.wait_begins();
        assert_eq!(limbo.wait_ends(), ["during"]);
    }
}
