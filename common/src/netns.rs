//! Network namespaces, by path.

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

/// A pod's network namespace, and the one of the thread that opened it.
#[derive(Debug)]
pub struct NetnsFile {
    pod: File,
    node: File,
}

/// Takes the thread back, also out of a panic. A process that cannot go back ends, before it does to the pod what is meant for the node.
struct Back<'a>(&'a File);

impl Drop for Back<'_> {
    fn drop(&mut self) {
        if let Err(error) = setns(self.0, CloneFlags::CLONE_NEWNET) {
            eprintln!("cannot return to the node's network namespace: {error}");
            process::abort();
        }
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
}

impl NetnsFile {
    /// Opens the namespace at `path`, and makes sure that it is one and not the caller's own.
    ///
    /// # Errors
    /// [`NetnsError`], for what the path may be instead.
    pub fn open(path: &Path) -> Result<Self, NetnsError> {
        let name = || path.display().to_string();
        let open = |path| File::open(path).and_then(|file| Ok((file.metadata()?, file)));
        let (metadata, pod) = open(path).map_err(|source| NetnsError::Open { path: name(), source })?;
        let is_namespace = fstatfs(&pod).is_ok_and(|stat| stat.filesystem_type() == NSFS_MAGIC);
        if !is_namespace {
            return Err(NetnsError::NotNamespace(name()));
        }
        let own = Path::new("/proc/thread-self/ns/net");
        let (own, node) = open(own).map_err(|source| NetnsError::Open { path: own.display().to_string(), source })?;
        if (own.dev(), own.ino()) == (metadata.dev(), metadata.ino()) {
            return Err(NetnsError::Own(name()));
        }
        Ok(Self { pod, node })
    }

    /// Runs `work` in the namespace, and takes the calling thread back to the node's.
    ///
    /// # Errors
    /// What `setns(2)` says.
    pub fn run<T>(&self, work: impl FnOnce() -> T) -> io::Result<T> {
        setns(&self.pod, CloneFlags::CLONE_NEWNET)?;
        let _back = Back(&self.node);
        Ok(work())
    }

    /// The descriptor's number, for `IFLA_NET_NS_FD`.
    pub fn raw(&self) -> i32 {
        self.pod.as_raw_fd()
    }
}

impl AsFd for NetnsFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pod.as_fd()
    }
}
