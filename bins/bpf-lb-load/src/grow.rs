//! Maps that become larger, while sockets are open and Services are served: new ones beside the old, with the same at the same
//! places, so that what sockets and programs remember of places stays true. They take the old ones' place with the programs.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use bpf_lb_abi::{Backend, Long, Name, Slot, Word};

use crate::{
    family::{Family, Tables},
    grace::Grace,
    load::capacity,
    maps::{MapsError, mapped},
    pins::Pins,
    sys::Mapped,
};

/// A map that can become larger. Its functions take its name, and the folders of the old one and of the new one.
#[derive(Debug)]
struct Growing {
    map: &'static str,
    /// Gives the new one what the old one has, but for what is counted.
    fill: fn(&str, &Path, &Path) -> Result<()>,
    /// Adds what was counted in the old one.
    count: fn(&str, &Path, &Path) -> Result<(), MapsError>,
}

/// In the order in which the new ones are seen: what leads to others comes last.
static GROWING: [Growing; 6] = [
    Growing { map: "names", fill: copy::<Name>, count: count::<Name> },
    Growing { map: "backends", fill: copy::<Backend>, count: count::<Backend> },
    Growing { map: "slots4", fill: copy::<Slot<u32>>, count: count::<Slot<u32>> },
    Growing { map: "slots6", fill: copy::<Slot<[u32; 4]>>, count: count::<Slot<[u32; 4]>> },
    Growing { map: "frontends4", fill: rehash::<u32>, count: |_, _, _| Ok(()) },
    Growing { map: "frontends6", fill: rehash::<[u32; 4]>, count: |_, _, _| Ok(()) },
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

    /// Where they are made.
    pub fn paths(&self) -> impl Iterator<Item = (&'static str, PathBuf)> {
        self.maps.iter().map(|growing| (growing.map, self.pins.new_maps().join(growing.map)))
    }

    /// Gives them what the old ones have, for the programs that are to use them.
    pub fn fill(&self) -> Result<()> {
        self.maps.iter().try_for_each(|growing| (growing.fill)(growing.map, &self.pins.maps(), &self.pins.new_maps()))
    }

    /// Lets them take the place of the old ones, when the programs that use those have been replaced.
    pub fn publish(&self) -> Result<()> {
        if self.maps.is_empty() {
            return Ok(());
        }
        let mut grace = Grace::open(&self.pins.maps())?;
        grace.begin();
        grace.end()?;
        for growing in &self.maps {
            (growing.count)(growing.map, &self.pins.maps(), &self.pins.new_maps())?;
        }
        self.pins.replace(self.maps.iter().map(|growing| growing.map))
    }
}

/// What has a count that programs add to, while one map takes the place of the other.
trait Counted: Sized {
    /// The same, with nothing counted.
    fn anew(self) -> Self {
        self
    }

    /// Adds what was counted before.
    fn add(&self, _before: &Self) {}
}

impl Counted for Name {}

impl Counted for Backend {
    fn anew(self) -> Self {
        Self { open: Word::new(0), ..self }
    }

    fn add(&self, before: &Self) {
        self.open.add(before.open.load());
    }
}

impl<A: Family> Counted for Slot<A> {
    fn anew(self) -> Self {
        Self { connections: Long::new(0), ..self }
    }

    fn add(&self, before: &Self) {
        self.connections.add(before.connections.load());
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
            now.add(before);
        }
    }
    Ok(())
}

fn rehash<A: Family>(_: &str, old: &Path, new: &Path) -> Result<()> {
    ensure!(Tables::<A>::rehash(old, new)?, "too many frontends have hashes alike; ask for a larger --max-services");
    Ok(())
}
