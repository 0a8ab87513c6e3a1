//! Locks, in a file of the state directory.

use std::{
    fmt,
    fs::{self, File, OpenOptions},
    io,
    os::{
        fd::{AsFd, BorrowedFd, RawFd},
        unix::fs::OpenOptionsExt,
    },
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::Duration,
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, fcntl},
    libc,
    sys::stat::{Mode, fchmod, fstat},
};

use crate::{names::container_number, state};

/// What is locked: one byte of one file each, so that no lock file is ever left over. A container's byte comes from
/// its id; two containers that share one wait for each other, and that is all.
#[derive(Clone, Copy, Debug)]
pub enum Lock<'a> {
    /// What all pods of the node share.
    Node,
    /// All that belongs to one container.
    Container(&'a str),
}

/// Who waits for longer says so.
const PATIENCE: Duration = Duration::from_secs(1);
/// Who can open the file can hold the lock.
const MODE: Mode = Mode::S_IRUSR.union(Mode::S_IWUSR);

impl Lock<'_> {
    fn byte(self) -> i64 {
        match self {
            Self::Node => 0,
            Self::Container(id) => 1 + i64::from(container_number(id)),
        }
    }

    /// Waits for the lock, in an open file of its own.
    ///
    /// # Errors
    /// When the state directory cannot be written.
    pub fn acquire(self) -> io::Result<Locked> {
        let file = open_lock()?;
        self.acquire_on(file.as_fd())?;
        Ok(self.held(file))
    }

    /// Takes the lock if nobody has it; `None` if somebody does.
    ///
    /// # Errors
    /// When the state directory cannot be written.
    pub fn try_acquire(self) -> io::Result<Option<Locked>> {
        let file = open_lock()?;
        Ok(self.try_acquire_on(file.as_fd())?.then(|| self.held(file)))
    }

    /// Waits for the lock on a descriptor that this process was started with (`F_OFD_SETLKW`, fcntl(2)). The lock
    /// belongs to the open file description: it lasts until the last process that inherited it has ended.
    ///
    /// # Errors
    /// When the descriptor is not one of a file that is open for writing.
    pub fn acquire_inherited(self, descriptor: RawFd) -> io::Result<()> {
        #[expect(unsafe_code, reason = "fcntl reports a descriptor that is not open, and nothing else uses this one")]
        let file = unsafe { BorrowedFd::borrow_raw(descriptor) };
        self.acquire_on(file)
    }

    fn acquire_on(self, file: BorrowedFd<'_>) -> io::Result<()> {
        keep_private(file)?;
        if self.try_acquire_on(file)? {
            return Ok(());
        }
        let (done, waiting) = mpsc::channel::<()>();
        let what = self.to_string();
        thread::spawn(move || {
            if waiting.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
                log::warn!(
                    "waiting for the lock of {what}, which another process has held for {} s",
                    PATIENCE.as_secs()
                );
            }
        });
        fcntl(file, FcntlArg::F_OFD_SETLKW(&self.range(libc::F_WRLCK)))?;
        drop(done);
        Ok(())
    }

    fn try_acquire_on(self, file: BorrowedFd<'_>) -> io::Result<bool> {
        match fcntl(file, FcntlArg::F_OFD_SETLK(&self.range(libc::F_WRLCK))) {
            Ok(_) => Ok(true),
            Err(Errno::EAGAIN | Errno::EACCES) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn held(self, file: File) -> Locked {
        Locked { file, unlock: self.range(libc::F_UNLCK) }
    }

    fn range(self, kind: i32) -> libc::flock {
        libc::flock { l_type: kind as i16, l_whence: libc::SEEK_SET as i16, l_start: self.byte(), l_len: 1, l_pid: 0 }
    }
}

impl fmt::Display for Lock<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node => write!(f, "the node"),
            Self::Container(id) => write!(f, "container {id}"),
        }
    }
}

/// A lock that this process has until it drops this.
#[derive(Debug)]
pub struct Locked {
    file: File,
    unlock: libc::flock,
}

impl Drop for Locked {
    fn drop(&mut self) {
        // A child that has inherited the file would keep the lock for as long as it lives.
        let _ = fcntl(self.file.as_fd(), FcntlArg::F_OFD_SETLK(&self.unlock));
    }
}

fn open_lock() -> io::Result<File> {
    fs::create_dir_all(state::directory())?;
    OpenOptions::new().create(true).append(true).mode(MODE.bits()).open(state::directory().join("lock"))
}

/// Earlier versions let everybody read the file.
fn keep_private(file: BorrowedFd<'_>) -> io::Result<()> {
    let mode = Mode::from_bits_truncate(fstat(file)?.st_mode);
    if mode.intersects(Mode::S_IRWXG | Mode::S_IRWXO) {
        fchmod(file, MODE)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::{fd::AsRawFd as _, unix::fs::MetadataExt as _};

    use nix::sys::memfd::{MFdFlags, memfd_create};

    use super::*;

    #[test]
    fn a_child_that_inherited_the_file_does_not_keep_the_lock_and_nobody_else_can_open_it() {
        let memory = File::from(memfd_create(c"lock", MFdFlags::empty()).unwrap());
        let open = || OpenOptions::new().append(true).open(format!("/proc/self/fd/{}", memory.as_raw_fd())).unwrap();
        let is_free = || fcntl(open(), FcntlArg::F_OFD_SETLK(&Lock::Node.range(libc::F_WRLCK))).is_ok();
        let file = open();
        Lock::Node.acquire_on(file.as_fd()).unwrap();
        assert_eq!(file.metadata().unwrap().mode() & 0o777, 0o600);
        let inherited = file.try_clone().unwrap();
        let locked = Lock::Node.held(file);
        assert!(!is_free());
        drop(locked);
        assert!(is_free());
        drop(inherited);
    }
}
