//! Network namespaces, by path and by thread.

use std::{
    collections::HashSet,
    fs::{self, File, Metadata, OpenOptions},
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd},
        unix::fs::{MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    process, thread,
};

use nix::{
    libc,
    sched::{CloneFlags, setns},
    sys::statfs::{NSFS_MAGIC, fstatfs, statfs},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The calling thread's network namespace.
const OWN: &str = "/proc/thread-self/ns/net";

/// Where runtimes keep network namespaces by name, as far as a container of the agent has that directory.
const NAMED: [&str; 3] = ["/run/netns", "/var/run/netns", "/var/run/docker/netns"];

/// An open network namespace other than the caller's.
#[derive(Debug)]
pub struct NetnsFile {
    file: File,
    /// The namespace of the thread that opened it.
    home: File,
    id: NetnsId,
}

/// What tells a network namespace from all others that are there (`ioctl_ns(2)`, "Comparing namespaces").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub struct NetnsId {
    /// The device of its file.
    pub device: u64,
    /// The inode of its file.
    pub inode: u64,
}

impl NetnsId {
    /// Of the namespace at `path`.
    ///
    /// # Errors
    /// When nothing is there, or no namespace, such as what is left of a bind mount, or when the path may not be followed.
    pub fn at(path: &Path) -> io::Result<Self> {
        if statfs(path)?.filesystem_type() != NSFS_MAGIC {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Ok(Self::of(&fs::metadata(path)?))
    }

    /// Of the namespace whose file that is of.
    pub fn of(metadata: &Metadata) -> Self {
        Self { device: metadata.dev(), inode: metadata.ino() }
    }
}

/// Why a path is not the network namespace of a pod.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    /// There is nothing, or it cannot be opened.
    #[error("cannot open the network namespace {path}: {source}")]
    Open {
        /// The path, as `CNI_NETNS` gave it.
        path: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// A plain file, for example what is left of a bind mount.
    #[error("{0} is not a network namespace")]
    NotNamespace(String),
    /// The namespace of the node itself.
    #[error("{0} is the node's own network namespace")]
    Own(String),
    /// Another one than ADD was for: the path, a process's for example, names something else by now.
    #[error("{0} is another network namespace than it was at ADD")]
    Another(String),
}

impl NetnsError {
    /// Whether there may be a namespace all the same, which could not be opened: for want of a right or of a descriptor.
    pub fn is_there(&self) -> bool {
        let is_absent = |errno| matches!(errno, libc::ENOENT | libc::ENOTDIR | libc::ESRCH);
        matches!(self, Self::Open { source, .. } if !source.raw_os_error().is_some_and(is_absent))
    }
}

impl NetnsFile {
    /// Opens the namespace at `path`, and makes sure that it is one and not the caller's own.
    ///
    /// # Errors
    /// [`NetnsError`], for what the path may be instead.
    pub fn open(path: &Path) -> Result<Self, NetnsError> {
        let name = || path.display().to_string();
        let opened = || open(path).and_then(|file| Ok((file.metadata()?, file)));
        let (metadata, file) = opened().map_err(|source| NetnsError::Open { path: name(), source })?;
        let is_namespace = fstatfs(&file).is_ok_and(|stat| stat.filesystem_type() == NSFS_MAGIC);
        if !is_namespace {
            return Err(NetnsError::NotNamespace(name()));
        }
        let own = || File::open(OWN).and_then(|home| Ok((NetnsId::of(&home.metadata()?), home)));
        let (own, home) = own().map_err(|source| NetnsError::Open { path: OWN.to_owned(), source })?;
        let id = NetnsId::of(&metadata);
        if own == id {
            return Err(NetnsError::Own(name()));
        }
        Ok(Self { file, home, id })
    }

    /// Which one it is.
    pub fn id(&self) -> NetnsId {
        self.id
    }

    /// Runs `work` in the namespace, and comes back to that of the thread that opened it; the process ends where there is no
    /// way back. Only the calling thread goes.
    ///
    /// # Errors
    /// What `setns(2)` says.
    pub fn run<T>(&self, work: impl FnOnce() -> T) -> io::Result<T> {
        setns(&self.file, CloneFlags::CLONE_NEWNET)?;
        let done = work();
        if let Err(error) = setns(&self.home, CloneFlags::CLONE_NEWNET) {
            // What comes after must not be done to the pod in place of the node.
            log::error!("no way back into the thread's own network namespace: {error}");
            process::abort();
        }
        Ok(done)
    }

    /// The descriptor's number, for `IFLA_NET_NS_FD`.
    pub fn raw(&self) -> i32 {
        self.file.as_raw_fd()
    }
}

impl AsFd for NetnsFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Opens the file of a namespace, or whatever else is at `path`, and waits for nobody: a FIFO's open would, for one who writes.
///
/// # Errors
/// What `open(2)` says.
pub fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)
}

/// The folders in `/proc` of all processes that are seen.
pub fn processes() -> impl Iterator<Item = PathBuf> {
    fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(|entry| {
        let is_process = entry.file_name().as_encoded_bytes().iter().all(u8::is_ascii_digit);
        is_process.then(|| entry.path())
    })
}

/// All network namespaces that some process is in, or that have a name: also those of pods that no CNI call of ours made,
/// and the caller's own. Each once, whatever leads to it. And what went wrong with others.
pub fn all() -> (Vec<File>, Vec<String>) {
    let processes = processes().map(|process| process.join("ns/net"));
    let entries = |folder: &str| fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let named = NAMED.into_iter().flat_map(entries);
    let (mut known, mut found, mut errors) = (HashSet::new(), Vec::new(), Vec::new());
    for path in processes.chain(named) {
        match open_new(&path, &mut known) {
            Ok(netns) => found.extend(netns),
            Err(error) if is_gone(&path, &error) => {}
            Err(error) => errors.push(format!("open a network namespace: {error}")),
        }
    }
    (found, errors)
}

/// Nothing if it is known, or no namespace.
fn open_new(path: &Path, known: &mut HashSet<NetnsId>) -> io::Result<Option<File>> {
    let id = NetnsId::at(path)?;
    if known.contains(&id) {
        return Ok(None);
    }
    let file = open(path)?;
    known.insert(id);
    Ok((fstatfs(&file)?.filesystem_type() == NSFS_MAGIC).then_some(file))
}

/// The process has ended, or the name was removed.
fn is_gone(path: &Path, error: &io::Error) -> bool {
    match error.raw_os_error() {
        Some(libc::ENOENT | libc::ESRCH) => true,
        // What the kernel says of a process that ends meanwhile, too (`proc_ns_get_link`).
        Some(libc::EACCES) => {
            path.ends_with("ns/net") && path.ancestors().nth(2).is_some_and(|process| !process.exists())
        }
        _ => false,
    }
}

/// Runs `work` on a thread of its own that is in the namespace and ends there, so that no other thread ever is.
///
/// # Errors
/// What `setns(2)` says, or `work`.
pub fn within<T: Send>(netns: &File, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let entered = scope.spawn(|| {
            setns(netns, CloneFlags::CLONE_NEWNET)?;
            work()
        });
        entered.join().map_err(|_| io::Error::other("the thread in a network namespace died"))?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_may_not_be_looked_into_is_gone_if_it_is_not_there() {
        let is_gone = |path: &str, errno| is_gone(Path::new(path), &io::Error::from_raw_os_error(errno));
        assert!(is_gone("/proc/0/ns/net", libc::EACCES));
        assert!(!is_gone("/proc/self/ns/net", libc::EACCES));
        assert!(!is_gone("/run/netns/none", libc::EACCES));
        assert!(is_gone("/run/netns/none", libc::ENOENT));
    }
}
