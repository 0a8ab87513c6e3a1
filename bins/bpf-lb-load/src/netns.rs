//! Network namespaces, by the cookie that the kernel gives each of them.

use std::{fs::File, io, os::fd::AsFd, path::Path};

use nix::sched::{CloneFlags, setns};

use crate::sys;

/// The cookie of the network namespace in which this thread is.
pub fn own_cookie() -> io::Result<u64> {
    let socket = std::os::unix::net::UnixDatagram::unbound()?;
    sys::netns_cookie(socket.as_fd())
}

/// The cookie of the network namespace at `path`.
pub fn cookie(path: &Path) -> io::Result<u64> {
    let netns = File::open(path)?;
    // A thread of its own, so that no other ever finds itself elsewhere.
    let thread = std::thread::spawn(move || {
        setns(netns, CloneFlags::CLONE_NEWNET)?;
        own_cookie()
    });
    thread.join().map_err(|_| io::Error::other("the thread that entered the namespace died"))?
}
