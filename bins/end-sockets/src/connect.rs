//! Connects sockets of other processes, by copies of their descriptors.

use std::{
    collections::{HashMap, HashSet},
    fs,
    net::UdpSocket,
    os::fd::{OwnedFd, RawFd},
    path::{Path, PathBuf},
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
    /// Those that connect() failed for, to be tried again.
    pub waiting: Vec<Held>,
    /// Why there was no copy of a descriptor that a process has.
    pub refused: Option<Errno>,
}

/// A socket to connect, as a process has it.
pub struct Held {
    process: PathBuf,
    descriptor: RawFd,
    anew: Anew,
}

/// What one was found to be.
enum State {
    /// Connected now.
    Connected,
    /// Connected by somebody else since it was ended.
    Settled,
    /// Not connected: a Service without backends refuses.
    Waiting,
    /// Another one by now, or closed.
    Gone,
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

/// Tries those again that waited, and keeps those that still do. How many are connected now.
pub fn reconnect(waiting: &mut Vec<Held>) -> u64 {
    let mut connected = 0;
    waiting.retain(|held| {
        let state = held.connect();
        connected += u64::from(matches!(state, Ok(State::Connected)));
        // Where there was no copy, as without a free descriptor, there may be one the next time.
        matches!(state, Ok(State::Waiting) | Err(_))
    });
    connected
}

/// Takes those that the process holds from what is left. One that it has closed meanwhile, somebody else may hold.
fn look_into(process: &Path, netns: NetnsId, left: &mut HashMap<(NetnsId, u32), Anew>, done: &mut Connected) {
    for (descriptor, inode) in sockets(process) {
        let Some(anew) = left.get(&(netns, inode)).copied() else { continue };
        let held = Held { process: process.to_owned(), descriptor, anew };
        match held.connect() {
            Ok(State::Gone) => continue,
            Ok(State::Settled) => {}
            Ok(State::Connected) => _ = done.cookies.insert(anew.cookie),
            Ok(State::Waiting) => done.waiting.push(held),
            Err(error) => {
                done.refused = Some(error);
                continue;
            }
        }
        left.remove(&(netns, inode));
    }
}

impl Held {
    /// Connects it, unless somebody has done so. An error if the kernel gives no copy of it.
    fn connect(&self) -> Result<State, Errno> {
        let socket = match copy(&self.process, self.descriptor) {
            Ok(socket) if socket_cookie(&socket) == Ok(self.anew.cookie) => UdpSocket::from(socket),
            // The number of a process may be a thread's by now (EINVAL, since Linux 6.9 ENOENT).
            Ok(_) | Err(Errno::BADF | Errno::SRCH | Errno::INVAL | Errno::NOENT) => return Ok(State::Gone),
            Err(error) => return Err(error),
        };
        if socket.peer_addr().is_ok() {
            return Ok(State::Settled);
        }
        Ok(if socket.connect(self.anew.to).is_ok() { State::Connected } else { State::Waiting })
    }
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
