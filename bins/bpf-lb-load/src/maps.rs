//! Where the maps are pinned, and how they are opened.

use std::{io, path::Path};

use aya::maps::{Map, MapData, MapError};
use bpf_lb_abi::Config;
use thiserror::Error;

use crate::sys::{Mapped, Values};

/// The folder of the maps inside the pin directory.
pub const FOLDER: &str = "maps";

/// A map that could not be opened, read or written.
#[derive(Debug, Error)]
#[error("map {map}: {source}")]
pub struct MapsError {
    map: String,
    source: MapError,
}

impl MapsError {
    /// What went wrong with which map.
    pub fn new(map: &str, source: MapError) -> Self {
        Self { map: map.into(), source }
    }

    /// As [`MapsError::new`].
    pub fn io(map: &str, error: io::Error) -> Self {
        Self::new(map, MapError::IoError(error))
    }

    /// Whether there is no such map.
    pub fn is_missing(&self) -> bool {
        self.kind() == Some(io::ErrorKind::NotFound)
    }

    /// Whether the map's values are not those that were asked for.
    pub fn is_of_another_form(&self) -> bool {
        self.kind() == Some(io::ErrorKind::InvalidData)
    }

    fn kind(&self) -> Option<io::ErrorKind> {
        match &self.source {
            MapError::SyscallError(error) => Some(error.io_error.kind()),
            MapError::IoError(error) => Some(error.kind()),
            _ => None,
        }
    }
}

/// Whether that went wrong since a map is not there: nothing is loaded, or not yet, or no longer.
pub fn are_missing(error: &anyhow::Error) -> bool {
    error.downcast_ref().is_some_and(MapsError::is_missing)
}

/// The map of that name, pinned in `folder`.
pub fn pinned_data(folder: &Path, name: &str) -> Result<MapData, MapsError> {
    MapData::from_pin(folder.join(name)).map_err(|source| MapsError::new(name, source))
}

/// As [`pinned_data`], typed by its kind.
pub fn pinned(folder: &Path, name: &str) -> Result<Map, MapsError> {
    Map::from_map_data(pinned_data(folder, name)?).map_err(|source| MapsError::new(name, source))
}

/// How many entries a map has room for.
pub fn capacity(folder: &Path, name: &str) -> Result<u32, MapsError> {
    let info = pinned_data(folder, name)?.info().map_err(|source| MapsError::new(name, source))?;
    Ok(info.max_entries())
}

/// The values of an array, of which nothing is mapped yet.
pub fn values<T>(folder: &Path, name: &str) -> Result<Values<T>, MapsError> {
    Values::new(pinned_data(folder, name)?).map_err(|error| MapsError::io(name, error))
}

/// All of them, shared with the programs.
pub fn mapped<T>(folder: &Path, name: &str) -> Result<Mapped<T>, MapsError> {
    values(folder, name)?.all().map_err(|error| MapsError::io(name, error))
}

/// The key by which frontends are hashed.
pub fn hash_key(folder: &Path) -> Result<u64, MapsError> {
    let config: Mapped<Config> = mapped(folder, "config")?;
    Ok(config.get(0).map_or(0, |config| config.hash_key.load()))
}
