//! Network namespaces, by path.

use std::{
    fs::{File, Metadata},
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd},
        unix::fs::MetadataExt,
    },
    path::Path,
    process,
};

use nix::{
    sched::{CloneFlags, setns},
    sys::statfs::{NSFS_MAGIC, fstatfs},
};

/// An open network namespace other than the caller's, and the caller's own.
#[derive(Debug)]
pub struct NetnsFile {
    file: File,
    own: File,
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
}

impl NetnsFile {
    /// Opens the namespace at `path`, and makes sure that it is one and not the caller's own.
    ///
    /// # Errors
    /// [`NetnsError`], for what the path may be instead.
    pub fn open(path: &Path) -> Result<Self, NetnsError> {
        let (metadata, file) = open(path)?;
        let is_namespace = fstatfs(&file).is_ok_and(|stat| stat.filesystem_type() == NSFS_MAGIC);
        if !is_namespace {
            return Err(NetnsError::NotNamespace(path.display().to_string()));
        }
        let (of_own, own) = open(Path::new("/proc/thread-self/ns/net"))?;
        if (of_own.dev(), of_own.ino()) == (metadata.dev(), metadata.ino()) {
            return Err(NetnsError::Own(path.display().to_string()));
        }
        Ok(Self { file, own })
    }

    /// Runs `work` in the namespace, with the calling thread, which is then back in its own; or else the process ends, for
    /// whatever it did next it would do to the pod.
    ///
    /// # Errors
    /// What `setns(2)` says.
    pub fn run<T>(&self, work: impl FnOnce() -> T) -> io::Result<T> {
        setns(&self.file, CloneFlags::CLONE_NEWNET)?;
        let _back = Back(&self.own);
        Ok(work())
    }

    /// The descriptor's number, for `IFLA_NET_NS_FD`.
    pub fn raw(&self) -> i32 {
        self.file.as_raw_fd()
    }
}

fn open(path: &Path) -> Result<(Metadata, File), NetnsError> {
    let opened = File::open(path).and_then(|file| Ok((file.metadata()?, file)));
    opened.map_err(|source| NetnsError::Open { path: path.display().to_string(), source })
}

/// Where a thread goes back to, also when it panics.
struct Back<'a>(&'a File);

impl Drop for Back<'_> {
    fn drop(&mut self) {
        if let Err(error) = setns(self.0, CloneFlags::CLONE_NEWNET) {
            log::error!("cannot leave the pod's network namespace: {error}");
            process::abort();
        }
    }
}

impl AsFd for NetnsFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
