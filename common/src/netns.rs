//! Network namespaces, by path and by thread.

use std::{
    fs::File,
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd},
        unix::fs::MetadataExt,
    },
    path::Path,
    thread,
};

use nix::{
    sched::{CloneFlags, setns},
    sys::statfs::{NSFS_MAGIC, fstatfs},
};

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
        let own = std::fs::metadata("/proc/thread-self/ns/net")
            .map_err(|source| NetnsError::Open { path: "/proc/thread-self/ns/net".to_owned(), source })?;
        if (own.dev(), own.ino()) == (metadata.dev(), metadata.ino()) {
            return Err(NetnsError::Own(name()));
        }
        Ok(Self(file))
    }

    /// Runs `work` on a thread of its own that is in the namespace and ends there, so that no other thread ever is.
    ///
    /// # Errors
    /// What `setns(2)` says, or the thread's panic.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        thread::scope(|scope| {
            scope
                .spawn(|| {
                    setns(&self.0, CloneFlags::CLONE_NEWNET)?;
                    Ok(work())
                })
                .join()
                .map_err(|_| io::Error::other("a thread in the pod's network namespace panicked"))?
        })
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
