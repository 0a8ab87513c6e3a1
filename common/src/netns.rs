//! Network namespaces, by path and by thread.

use std::{
    fs::File,
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

/// The calling thread's network namespace.
const OWN: &str = "/proc/thread-self/ns/net";

/// An open network namespace other than the caller's.
#[derive(Debug)]
pub struct NetnsFile(File);

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
        let name = || path.display().to_string();
        let open = || File::open(path).and_then(|file| Ok((file.metadata()?, file)));
        let (metadata, file) = open().map_err(|source| NetnsError::Open { path: name(), source })?;
        let is_namespace = fstatfs(&file).is_ok_and(|stat| stat.filesystem_type() == NSFS_MAGIC);
        if !is_namespace {
            return Err(NetnsError::NotNamespace(name()));
        }
        let own = std::fs::metadata(OWN).map_err(|source| NetnsError::Open { path: OWN.to_owned(), source })?;
        if (own.dev(), own.ino()) == (metadata.dev(), metadata.ino()) {
            return Err(NetnsError::Own(name()));
        }
        Ok(Self(file))
    }

    /// Runs `work` in the namespace, and comes back from there; the process ends where there is no way back. Only the
    /// calling thread goes.
    ///
    /// # Errors
    /// What `setns(2)` says.
    pub fn run<T>(&self, work: impl FnOnce() -> T) -> io::Result<T> {
        let home = File::open(OWN)?;
        setns(&self.0, CloneFlags::CLONE_NEWNET)?;
        let done = work();
        if let Err(error) = setns(&home, CloneFlags::CLONE_NEWNET) {
            // What comes after must not be done to the pod in place of the node.
            log::error!("no way back into the thread's own network namespace: {error}");
            process::abort();
        }
        Ok(done)
    }

    /// The descriptor's number, for `IFLA_NET_NS_FD`.
    pub fn raw(&self) -> i32 {
        self.0.as_raw_fd()
    }
}

impl AsFd for NetnsFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
