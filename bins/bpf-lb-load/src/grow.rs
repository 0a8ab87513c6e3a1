//! Maps that become larger, while sockets are open and Services are served: new ones beside the old, with the same at the same
//! places, so that what sockets and programs remember of places stays true. They take the old ones' place with the programs.
//!
//! From the first program on that uses them they are kept until all of them have that place: a loader that finds them goes on where
//! the one before was killed.

use std::path::{Path, PathBuf};

use anyhow::Result;
use bpf_lb_abi::{Address, Backend, Cell, Long, Name, Slot, Word};

use crate::{
    grace::Grace,
    maps::{MapsError, capacity, mapped},
    pins::Pins,
    sys::Mapped,
};

/// A map that can become larger. Its functions take its name, and the folders of the old one and of the new one.
#[derive(Debug)]
struct Growing {
    map: &'static str,
    /// Gives the new one what the old one has, but for what is counted.
    fill: fn(&str, &Path, &Path) -> Result<()>,
    /// Takes over what was counted in the old one.
    count: fn(&str, &Path, &Path) -> Result<(), MapsError>,
}

/// In the order in which the new ones are seen: what leads to others comes last.
static GROWING: [Growing; 6] = [
    Growing { map: "names", fill: copy::<Name>, count: count::<Name> },
    Growing { map: "backends", fill: copy::<Backend>, count: count::<Backend> },
    Growing { map: "slots4", fill: copy::<Slot<u32>>, count: count::<Slot<u32>> },
    Growing { map: "slots6", fill: copy::<Slot<[u32; 4]>>, count: count::<Slot<[u32; 4]>> },
    Growing { map: "frontends4", fill: copy::<Cell<u32>>, count: count::<Cell<u32>> },
    Growing { map: "frontends6", fill: copy::<Cell<[u32; 4]>>, count: count::<Cell<[u32; 4]>> },
];

/// The maps that do.
#[derive(Debug)]
pub struct Grown {
    pins: Pins,
    maps: Vec<&'static Growing>,
}

impl Grown {
    /// None of them.
    pub const fn none(pins: Pins) -> Self {
        Self { pins, maps: Vec::new() }
    }

    /// Those of the maps that have fewer entries than they are to have.
    pub fn begin(pins: Pins, entries: &[(&str, u32)]) -> Result<Self> {
        let mut grown = Self::none(pins);
        for growing in &GROWING {
            let has = capacity(&grown.pins.maps(), growing.map)?;
            if entries.iter().any(|(map, wanted)| *map == growing.map && has < *wanted) {
                grown.maps.push(growing);
            }
        }
        if !grown.maps.is_empty() {
            grown.pins.begin_beside()?;
        }
        Ok(grown)
    }

    /// Those that a loader left which was killed, if programs may use them already.
    pub fn left(pins: Pins) -> Option<Self> {
        let next = pins.next_maps();
        let maps = GROWING.iter().filter(|growing| next.join(growing.map).exists()).collect();
        next.exists().then_some(Self { pins, maps })
    }

    /// Where they are: at first where nobody sees them.
    pub fn paths(&self) -> impl Iterator<Item = (&'static str, PathBuf)> {
        let next = self.pins.next_maps();
        let folder = if next.exists() { next } else { self.pins.new_maps() };
        self.maps.iter().map(move |growing| (growing.map, folder.join(growing.map)))
    }

    /// Gives them what the old ones have, for the programs that are to use them.
    pub fn fill(&self) -> Result<()> {
        self.maps.iter().try_for_each(|growing| (growing.fill)(growing.map, &self.pins.maps(), &self.pins.new_maps()))
    }

    /// From now on programs may use them.
    pub fn begin_use(&self) -> Result<()> {
        if self.pins.new_maps().exists() { self.pins.begin_next() } else { Ok(()) }
    }

    /// Lets them take the place of the old ones, when the programs that use those have been replaced.
    pub fn publish(&self) -> Result<()> {
        if self.maps.is_empty() {
            return self.pins.end_next();
        }
        let mut grace = Grace::open(&self.pins.maps())?;
        grace.begin();
        grace.end()?;
        for growing in &self.maps {
            (growing.count)(growing.map, &self.pins.maps(), &self.pins.next_maps())?;
            self.pins.replace(growing.map)?;
        }
        self.pins.end_next()
    }
}

/// What has a count that programs add to, while one map takes the place of the other.
trait Counted: Sized {
    /// The same, with nothing counted.
    fn anew(self) -> Self {
        self
    }

    /// Takes over what was counted before.
    fn take(&self, _before: &Self) {}
}

impl Counted for Name {}

/// As many buckets are in use as before, so each frontend stays in its cell; the next writer that needs more of them spreads them.
impl<A: Address> Counted for Cell<A> {}

impl Counted for Backend {
    fn anew(self) -> Self {
        Self { open: Word::new(0), ..self }
    }

    fn take(&self, before: &Self) {
        self.open.take(&before.open);
    }
}

impl<A: Address> Counted for Slot<A> {
    fn anew(self) -> Self {
        Self { connections: Long::new(0), ..self }
    }

    fn take(&self, before: &Self) {
        self.connections.take(&before.connections);
    }
}

fn copy<T: Counted>(map: &str, old: &Path, new: &Path) -> Result<()> {
    let (old, new): (Mapped<T>, Mapped<T>) = (mapped(old, map)?, mapped(new, map)?);
    for index in 0..old.capacity() {
        if let Some(value) = old.copy(index) {
            new.put(index, value.anew());
        }
    }
    Ok(())
}

fn count<T: Counted>(map: &str, old: &Path, new: &Path) -> Result<(), MapsError> {
    let (old, new): (Mapped<T>, Mapped<T>) = (mapped(old, map)?, mapped(new, map)?);
    for index in 0..old.capacity() {
        if let (Some(before), Some(now)) = (old.get(index), new.get(index)) {
            now.take(before);
        }
    }
    Ok(())
}
