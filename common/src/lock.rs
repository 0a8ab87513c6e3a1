//! Locks, in a file of the state directory.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::fd::{AsFd, BorrowedFd, RawFd},
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, fcntl},
    libc,
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
        match fcntl(file.as_fd(), FcntlArg::F_OFD_SETLK(&self.range(libc::F_WRLCK))) {
            Ok(_) => Ok(Some(self.held(file))),
            Err(Errno::EAGAIN | Errno::EACCES) => Ok(None),
            Err(error) => Err(error.into()),
        }
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
        fcntl(file, FcntlArg::F_OFD_SETLKW(&self.range(libc::F_WRLCK)))?;
        Ok(())
    }

    fn held(self, file: File) -> Locked {
        Locked { file, unlock: self.range(libc::F_UNLCK) }
    }

    fn range(self, kind: i32) -> libc::flock {
        libc::flock { l_type: kind as i16, l_whence: libc::SEEK_SET as i16, l_start: self.byte(), l_len: 1, l_pid: 0 }
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
    OpenOptions::new().create(true).append(true).open(state::directory().join("lock"))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd as _;

    use nix::sys::memfd::{MFdFlags, memfd_create};

    use super::*;

    #[test]
    fn a_child_that_inherited_the_file_does_not_keep_the_lock() {
        let memory = File::from(memfd_create(c"lock", MFdFlags::empty()).unwrap());
        let open = || OpenOptions::new().append(true).open(format!("/proc/self/fd/{}", memory.as_raw_fd())).unwrap();
        let is_free = || fcntl(open(), FcntlArg::F_OFD_SETLK(&Lock::Node.range(libc::F_WRLCK))).is_ok();
        let file = open();
        Lock::Node.acquire_on(file.as_fd()).unwrap();
        let inherited = file.try_clone().unwrap();
        let locked = Lock::Node.held(file);
        assert!(!is_free());
        drop(locked);
        assert!(is_free());
        drop(inherited);
    }
}
