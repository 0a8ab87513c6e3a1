//! Connects sockets of other processes, by copies of their descriptors.

use std::{
    collections::{HashMap, HashSet},
    fs,
    net::UdpSocket,
    os::fd::{OwnedFd, RawFd},
    path::Path,
};

use common::netns::{self, NetnsId};
use rustix::{
    io::Errno,
    net::sockopt::socket_cookie,
    process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open},
};

use crate::anew::Anew;

/// What came of it.
#[derive(Default)]
pub struct Connected {
    /// The cookies of those that are connected.
    pub cookies: HashSet<u64>,
    /// Why there was no copy of a descriptor that a process has.
    pub refused: Option<Errno>,
}

/// Connects those that a process in their own network namespace holds. All of them are looked for at once, so that each process is
/// looked into at most once, and none if there is nothing to connect.
pub fn connect(sockets: impl IntoIterator<Item = Anew>) -> Connected {
    let mut left: HashMap<_, _> = sockets.into_iter().map(|anew| ((anew.netns, anew.inode), anew)).collect();
    let mut done = Connected::default();
    if left.is_empty() {
        return done;
    }
    let namespaces: HashSet<_> = left.keys().map(|(netns, _)| *netns).collect();
    for process in netns::processes() {
        let netns = NetnsId::at(&process.join("ns/net")).ok();
        if let Some(netns) = netns.filter(|netns| namespaces.contains(netns)) {
            look_into(&process, netns, &mut left, &mut done);
        }
        if left.is_empty() {
            break;
        }
    }
    done
}

/// Takes those that the process holds from what is left. One that it has closed meanwhile, somebody else may hold.
fn look_into(process: &Path, netns: NetnsId, left: &mut HashMap<(NetnsId, u32), Anew>, done: &mut Connected) {
    for (descriptor, inode) in sockets(process) {
        let Some(anew) = left.get(&(netns, inode)).copied() else { continue };
        match copy(process, descriptor) {
            Ok(socket) if socket_cookie(&socket) == Ok(anew.cookie) => {
                left.remove(&(netns, inode));
                if is_connected_anew(socket, &anew) {
                    done.cookies.insert(anew.cookie);
                }
            }
            // It is another one by now, or gone.
            Ok(_) | Err(Errno::BADF | Errno::SRCH) => {}
            Err(error) => done.refused = Some(error),
        }
    }
}

/// Connects a socket, unless somebody has done so since it was ended. Says whether it did: a Service without backends refuses.
fn is_connected_anew(socket: OwnedFd, anew: &Anew) -> bool {
    let socket = UdpSocket::from(socket);
    socket.peer_addr().is_err() && socket.connect(anew.to).is_ok()
}

/// The descriptors of a process that are sockets, with these' inodes.
fn sockets(process: &Path) -> impl Iterator<Item = (RawFd, u32)> {
    fs::read_dir(process.join("fd")).into_iter().flatten().flatten().filter_map(|entry| {
        let target = fs::read_link(entry.path()).ok()?;
        let inode = target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()?;
        Some((entry.file_name().to_str()?.parse().ok()?, inode))
    })
}

/// A copy of a process' descriptor (Linux 5.6).
fn copy(process: &Path, descriptor: RawFd) -> Result<OwnedFd, Errno> {
    let number = process.file_name().and_then(|name| name.to_str()?.parse().ok());
    let process = pidfd_open(number.and_then(Pid::from_raw).ok_or(Errno::SRCH)?, PidfdFlags::empty())?;
    pidfd_getfd(process, descriptor, PidfdGetfdFlags::empty())
}
