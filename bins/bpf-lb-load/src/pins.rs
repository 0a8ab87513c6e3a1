//! The pin directory: where the kernel keeps links and maps when no loader runs.

use std::{
    fs::{self, DirBuilder, File, TryLockError},
    io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use crate::maps::{self, MapsError};

/// The folder of the links inside the pin directory.
const LINKS: &str = "links";
/// The folder of maps that are not whole yet.
const NEW: &str = "new";
/// The folder of maps that are whole, and that programs use from now on in place of those that they had.
const NEXT: &str = "next";

/// A directory on a BPF file system that belongs to one load balancer.
#[derive(Clone, Debug)]
pub struct Pins(PathBuf);

impl Pins {
    /// The directory `path`, whether it is there or not.
    pub fn new(path: &Path) -> Self {
        Self(path.into())
    }

    /// Where the maps are.
    pub fn maps(&self) -> PathBuf {
        self.0.join(maps::FOLDER)
    }

    /// Where maps are made, unseen until [`Pins::publish`].
    pub fn new_maps(&self) -> PathBuf {
        self.0.join(NEW)
    }

    /// Where maps are that take the place of others, from [`Pins::begin_next`] on.
    pub fn next_maps(&self) -> PathBuf {
        self.0.join(NEXT)
    }

    /// Where the link of that program is.
    pub fn link(&self, program: &str) -> PathBuf {
        self.0.join(LINKS).join(program)
    }

    /// The programs whose links are pinned.
    pub fn links(&self) -> Vec<String> {
        let entries = fs::read_dir(self.0.join(LINKS)).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
    }

    /// Whether a load balancer is there.
    pub fn is_loaded(&self) -> bool {
        self.maps().join("config").exists()
    }

    /// Makes the directory, for root only.
    pub fn create(&self) -> Result<()> {
        let parent = self.0.parent().context("--pin-dir has no parent directory")?;
        let magic = statfs(parent).with_context(|| parent.display().to_string())?.filesystem_type();
        ensure!(
            magic == BPF_FS_MAGIC,
            "{} is not on a BPF file system; mount one there: mount -t bpf bpf {}",
            parent.display(),
            parent.display()
        );
        create(&self.0)?;
        create(&self.0.join(LINKS))
    }

    /// Makes the folder of new maps, in the place of what one that was killed has left.
    pub fn begin(&self) -> Result<()> {
        remove(&self.new_maps())?;
        remove(&self.maps())?;
        create(&self.new_maps())
    }

    /// Makes the folder of new maps beside those that are there.
    pub fn begin_beside(&self) -> Result<()> {
        remove(&self.new_maps())?;
        create(&self.new_maps())
    }

    /// Takes away new maps that are not whole.
    pub fn forget_new(&self) -> Result<()> {
        remove(&self.new_maps())
    }

    /// The new maps are whole, and from now on programs may use them.
    pub fn begin_next(&self) -> Result<()> {
        fs::rename(self.new_maps(), self.next_maps()).with_context(|| self.next_maps().display().to_string())
    }

    /// Lets that map take the place of the one that is there.
    pub fn replace(&self, map: &str) -> Result<()> {
        let (from, to) = (self.next_maps().join(map), self.maps().join(map));
        fs::rename(&from, &to).with_context(|| to.display().to_string())
    }

    /// All of them have.
    pub fn end_next(&self) -> Result<()> {
        remove(&self.next_maps())
    }

    /// Lets the new maps be seen, all at once.
    pub fn publish(&self) -> Result<()> {
        fs::rename(self.new_maps(), self.maps()).with_context(|| self.maps().display().to_string())
    }

    /// Removes links, then maps, which nobody sees any more all at once, then the directory. What is not there is no error.
    pub fn remove(&self) -> Result<()> {
        remove(&self.0.join(LINKS))?;
        self.forget_new()?;
        match fs::rename(self.maps(), self.new_maps()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error).context("unpin the maps")?,
            _ => {}
        }
        [self.new_maps(), self.next_maps(), self.0.clone()].iter().try_for_each(|folder| remove(folder))
    }

    /// Keeps other writers out for as long as the file is open.
    pub fn lock(&self) -> Result<File> {
        let directory = File::open(&self.0).with_context(|| self.not_loaded())?;
        match directory.try_lock() {
            Ok(()) => Ok(directory),
            Err(TryLockError::WouldBlock) => bail!("another loader is writing to {}", self.0.display()),
            Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("lock {}", self.0.display())),
        }
    }

    /// As [`Pins::lock`], for who writes the table: all programs have to use the same maps.
    pub fn lock_table(&self) -> Result<File> {
        let lock = self.lock()?;
        ensure!(
            !self.next_maps().exists(),
            "a load ended while the maps in {} grew; run bpf-lb-load load again, which goes on with it",
            self.0.display()
        );
        Ok(lock)
    }

    /// The error, and what it means that a map is not there.
    pub fn explain(&self, error: MapsError) -> anyhow::Error {
        let is_missing = error.is_missing();
        let error = anyhow::Error::new(error);
        if is_missing { error.context(self.not_loaded()) } else { error }
    }

    /// What to say when none is.
    pub fn not_loaded(&self) -> String {
        format!("no load balancer is pinned in {}; run bpf-lb-load load first", self.0.display())
    }
}

fn create(folder: &Path) -> Result<()> {
    match DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        result => result.with_context(|| folder.display().to_string()),
    }
}

/// With the files in it.
fn remove(folder: &Path) -> Result<()> {
    let what = || folder.display().to_string();
    match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => {
            for entry in entries.with_context(what)? {
                let path = entry?.path();
                fs::remove_file(&path).with_context(|| path.display().to_string())?;
            }
        }
    }
    fs::remove_dir(folder).with_context(what)
}
