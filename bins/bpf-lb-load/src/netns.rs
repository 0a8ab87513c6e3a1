//! Network namespaces, by the cookie that the kernel gives each of them.

use std::{io, os::fd::AsFd, path::Path};

use crate::sys;

/// The cookie of the network namespace in which this thread is.
pub fn own_cookie() -> io::Result<u64> {
    let socket = std::os::unix::net::UnixDatagram::unbound()?;
    sys::netns_cookie(socket.as_fd())
}

/// The cookie of the network namespace at `path`.
pub fn cookie(path: &Path) -> io::Result<u64> {
    within(Some(path), own_cookie)
}

/// Does `work` in the network namespace at `path`, if there is one, or else in the caller's.
pub fn within<T: Send>(path: Option<&Path>, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    match path {
        Some(path) => common::netns::within(&common::netns::open(path)?, work),
        None => work(),
    }
}
