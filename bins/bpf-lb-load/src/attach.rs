//! To which cgroup the programs are attached.

use std::{
    fs::{self, File},
    os::{fd::AsFd as _, unix::fs::MetadataExt as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, fstatfs};

use common::{bpf, cgroup};

use crate::{pins::Pins, probe::HOOKS};

/// What is attached where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Served {
    /// Nothing is.
    Nobody,
    /// The cgroup was removed, and nobody is served.
    Removed,
    /// Not all is attached to one cgroup. That is the number of one to which some is.
    InPart(u64),
    /// The processes in the cgroup with that number.
    Cgroup(u64),
}

impl Served {
    /// Whether anybody is.
    pub const fn is_somebody(&self) -> bool {
        matches!(self, Self::Cgroup(_))
    }
}

impl std::fmt::Display for Served {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Nobody => f.write_str("nobody is served: no program is attached; run bpf-lb-load load"),
            Self::Removed => f.write_str(
                "nobody is served: the cgroup that the programs were attached to was removed; run bpf-lb-load load",
            ),
            Self::InPart(_) => f.write_str(
                "nobody is served as a whole: some programs are not attached, or to another cgroup than others; run bpf-lb-load load",
            ),
            Self::Cgroup(id) => match path_of(*id) {
                Some(path) => write!(f, "the processes in the cgroup {} are served", path.display()),
                None => {
                    write!(f, "the processes in the cgroup with number {id}, which is not mounted here, are served")
                }
            },
        }
    }
}

/// Whom the pinned links serve. One that lacks any program that is required leaves calls untranslated, or sockets remembered.
pub fn served(pins: &Pins) -> Served {
    let required = HOOKS.iter().rev().filter(|hook| hook.required);
    let cgroups: Vec<_> = required.map(|hook| cgroup_of(&pins.link(hook.program))).collect();
    // What translates comes first here: whom that serves is who notices.
    match cgroups.iter().flatten().find(|id| **id != 0) {
        Some(id) if cgroups.iter().all(|other| *other == Some(*id)) => Served::Cgroup(*id),
        Some(id) => Served::InPart(*id),
        None if cgroups.iter().any(Option::is_some) => Served::Removed,
        None => Served::Nobody,
    }
}

/// The number of the cgroup that the link at `pin` is attached to, 0 if that was removed. Nothing if there is no link.
pub fn cgroup_of(pin: &Path) -> Option<u64> {
    let link = bpf::open_pinned(pin).ok()?;
    bpf::link_cgroup(link.as_fd()).ok()
}

/// A cgroup's number.
pub fn number(cgroup: &File) -> Result<u64> {
    Ok(cgroup.metadata().context("the cgroup")?.ino())
}

/// The root of a hierarchy has this number (`kernfs`).
const ROOT: u64 = 1;

/// The mount point of cgroup v2, which is not the same on every system.
///
/// # Errors
/// When there is none, or when what is mounted there is only a part: the root of a cgroup namespace.
pub fn root() -> Result<PathBuf> {
    let path = cgroup::mount().context("no cgroup v2 is mounted; mount one, or name one with --cgroup")?;
    let number = fs::metadata(&path).with_context(|| path.display().to_string())?.ino();
    ensure!(
        number == ROOT,
        "{} is the root of a cgroup namespace, not of the hierarchy, so that nobody but the processes in it would be served: run in the \
         host's cgroup namespace, mount its hierarchy, or name a cgroup with --cgroup",
        path.display()
    );
    Ok(path)
}

/// Opens the directory of a cgroup.
///
/// # Errors
/// Also when it is none of cgroup v2.
pub fn open(path: &Path) -> Result<File> {
    let file = File::open(path).with_context(|| format!("cgroup {}", path.display()))?;
    let magic = fstatfs(&file).with_context(|| path.display().to_string())?.filesystem_type();
    ensure!(magic == CGROUP2_SUPER_MAGIC, "{} is not a directory of cgroup v2", path.display());
    Ok(file)
}

/// Where the cgroup with that number is mounted.
pub fn path_of(id: u64) -> Option<PathBuf> {
    let mut open = vec![cgroup::mount()?];
    while let Some(folder) = open.pop() {
        if fs::metadata(&folder).is_ok_and(|metadata| metadata.ino() == id) {
            return Some(folder);
        }
        let entries = fs::read_dir(&folder).into_iter().flatten().flatten();
        open.extend(
            entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()),
        );
    }
    None
}
