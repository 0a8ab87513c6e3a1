//! `/run/underpass`: what the kernel cannot keep, and the locks.

use std::{
    env,
    ffi::OsStr,
    fs::{self, DirEntry, File, Metadata, OpenOptions},
    io::{self, Write},
    mem,
    net::IpAddr,
    os::{
        fd::{AsFd, BorrowedFd, RawFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
    time::SystemTime,
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, fcntl},
    libc,
};
use serde_json::Value;

use crate::{
    document::{PodDocument, Request, Share},
    names::container_number,
};

/// The state directory: `UNDERPASS_STATE`, else `/run/underpass`.
pub fn directory() -> PathBuf {
    env::var_os("UNDERPASS_STATE").map_or_else(|| PathBuf::from("/run/underpass"), PathBuf::from)
}

/// File in the state directory that says why `cluster.json` is not there yet.
pub const PENDING: &str = "cluster.pending";

/// What the cluster says, as the node agent keeps it: `settings` and `cidrs`. Null where there is none.
///
/// # Errors
/// When there is a file and it cannot be read or is no JSON object.
pub fn cluster() -> io::Result<Value> {
    match fs::read(directory().join("cluster.json")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Value::Null),
        text => Ok(Value::Object(serde_json::from_slice(&text?)?)),
    }
}

fn attachments() -> PathBuf {
    directory().join("attachments")
}

/// What is in there.
fn files() -> impl Iterator<Item = DirEntry> {
    fs::read_dir(attachments()).into_iter().flatten().flatten()
}

fn file_of(container_id: &str, ifname: &str) -> PathBuf {
    attachments().join(format!("{container_id}@{ifname}.json"))
}

/// The document that was saved for an attachment, if any can be read.
pub fn load(request: &Request) -> Option<Value> {
    let path = file_of(&request.container_id, &request.ifname);
    let text = fs::read(&path).or_else(|_| fs::read(beside(&path, LEAVING))).ok()?;
    serde_json::from_slice(&text).ok()
}

/// Says that an attachment is on its way out, before anything of it is removed: from here on the node agent leaves it
/// alone, whatever becomes of the DEL.
///
/// # Errors
/// What the file system says, except that there is no saved document.
pub fn leave(request: &Request) -> io::Result<()> {
    let path = file_of(&request.container_id, &request.ifname);
    match fs::rename(&path, beside(&path, LEAVING)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Saves an attachment's document. A reader sees the old one or the new one, never a part.
///
/// # Errors
/// What the file system says.
pub fn save(request: &Request, document: &Value) -> io::Result<()> {
    write(&file_of(&request.container_id, &request.ifname), &document.to_string())
}

/// Writes a file of the state directory, which is made if it is not there. A reader sees the old content or the new.
///
/// # Errors
/// What the file system says.
pub fn write(path: &Path, content: &str) -> io::Result<()> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    let new = beside(path, UNFINISHED);
    File::create(&new)?.write_all(content.as_bytes())?;
    fs::rename(&new, path)
}

/// A file of the state directory whose content changes. What could not be written is written when it can be.
#[derive(Debug)]
pub struct Kept {
    path: PathBuf,
    content: Option<String>,
    written: bool,
    failed: bool,
}

impl Kept {
    /// The file at `path`, of which nothing is known.
    pub const fn new(path: PathBuf) -> Self {
        Self { path, content: None, written: false, failed: false }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes the file, if it is not as it was left. A reader sees the old content or the new.
    ///
    /// # Errors
    /// When it cannot be written: said once, until it can be again. To be tried again with [`Kept::keep`].
    pub fn write(&mut self, content: String) -> io::Result<()> {
        let content = Some(content);
        self.written &= self.content == content;
        self.content = content;
        self.keep()
    }

    /// Writes what could not be written, or what somebody has removed since.
    ///
    /// # Errors
    /// As [`Kept::write`].
    pub fn keep(&mut self) -> io::Result<()> {
        let Some(content) = self.content.as_ref().filter(|_| !self.written || !self.path.exists()) else {
            return Ok(());
        };
        let result = write(&self.path, content);
        self.written = result.is_ok();
        let is_said = mem::replace(&mut self.failed, !self.written);
        let error =
            |error: io::Error| io::Error::new(error.kind(), format!("cannot write {}: {error}", self.path.display()));
        if is_said { Ok(()) } else { result.map_err(error) }
    }
}

/// What a file's name ends with until it is written whole.
const UNFINISHED: &str = ".new";
/// What the name of an attachment's document ends with once a DEL or GC has begun.
const LEAVING: &str = ".leaving";

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Forgets an attachment, also what a writer that was killed has left of it.
///
/// # Errors
/// What the file system says, except that there is no such file.
pub fn forget(container_id: &str, ifname: &str) -> io::Result<()> {
    let path = file_of(container_id, ifname);
    for path in [beside(&path, UNFINISHED), beside(&path, LEAVING), path] {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// The saved documents.
pub fn list() -> Vec<Value> {
    let whole =
        files().map(|file| file.path()).filter(|path| path.extension().is_some_and(|extension| extension == "json"));
    whole.filter_map(|path| serde_json::from_slice(&fs::read(path).ok()?).ok()).collect()
}

/// The saved documents that a GC finds stale: of attachments of its network that are not in its list.
pub fn stale(gc: &Request) -> Vec<PodDocument> {
    let whole = files().map(|file| file.path()).filter(|path| !path.to_string_lossy().ends_with(UNFINISHED));
    let document = |path: PathBuf| serde_json::from_slice(&fs::read(path).ok()?).ok();
    let stale = |PodDocument { request, .. }: &PodDocument| {
        request.network() == gc.network() && !gc.is_valid_attachment(&request.attachment())
    };
    whole.filter_map(document).filter(stale).collect()
}

/// What the other attachments of the request's pod ask for: those whose ADD is done and whose DEL has not begun.
pub fn others(request: &Request) -> Vec<Share> {
    let saved = files().filter_map(|file| Saved::of(&file.file_name()));
    let others = saved.filter(|other| other.container_id == request.container_id && other.ifname != request.ifname);
    let documents = others.filter_map(|other| serde_json::from_value::<PodDocument>(other.read().ok()?).ok());
    let done = documents.filter(|other| other.error.is_none() && other.request.netns == request.netns);
    let mut shares: Vec<Share> = done.filter_map(|other| Share::of(&other)).collect();
    shares.sort_by(|a, b| a.ifname.cmp(&b.ifname));
    shares
}

/// The attachment of another container that has an address on its interface: its ADD is done, its DEL has not begun, and its
/// network namespace is there.
pub fn holder(address: IpAddr, request: &Request) -> Option<String> {
    let saved = files().filter_map(|file| Saved::of(&file.file_name()));
    let others = saved.filter(|other| other.container_id != request.container_id);
    let mut documents = others.filter_map(|other| serde_json::from_value::<PodDocument>(other.read().ok()?).ok());
    let holder = documents.find(|other| {
        let is_there = other.request.netns.as_ref().is_some_and(|netns| netns.exists());
        other.error.is_none() && is_there && other.nic_addresses().iter().any(|net| net.addr() == address)
    });
    holder.map(|other| other.request.attachment())
}

/// Whether a DEL or GC of another attachment of the request's pod has begun and not ended.
pub fn is_another_leaving(request: &Request) -> bool {
    let leaving = |file: DirEntry| Saved::of(file.file_name().to_str()?.strip_suffix(LEAVING)?.as_ref());
    let is_others = |saved: Saved| saved.container_id == request.container_id && saved.ifname != request.ifname;
    files().filter_map(leaving).any(is_others)
}

/// An attachment whose document was saved.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Saved {
    /// The container's id.
    pub container_id: String,
    /// The interface's name.
    pub ifname: String,
}

/// What changes whenever a file is written anew.
pub type Stamp = (SystemTime, u64);

/// The attachments with a saved document, and its stamp.
pub fn saved() -> Vec<(Saved, Stamp)> {
    let entry = |file: DirEntry| Some((Saved::of(&file.file_name())?, stamp_of(&file.metadata().ok()?)?));
    files().filter_map(entry).collect()
}

fn stamp_of(metadata: &Metadata) -> Option<Stamp> {
    Some((metadata.modified().ok()?, metadata.ino()))
}

impl Saved {
    /// The attachment that a file of this name has the document of.
    fn of(name: &OsStr) -> Option<Self> {
        let (container_id, ifname) = name.to_str()?.strip_suffix(".json")?.split_once('@')?;
        Some(Self { container_id: container_id.to_owned(), ifname: ifname.to_owned() })
    }

    /// The stamp of its document; none where there is none any more.
    pub fn stamp(&self) -> Option<Stamp> {
        stamp_of(&fs::metadata(file_of(&self.container_id, &self.ifname)).ok()?)
    }

    /// The document.
    ///
    /// # Errors
    /// When the file cannot be read, also when there is none any more, or is not JSON.
    pub fn read(&self) -> io::Result<Value> {
        Ok(serde_json::from_slice(&fs::read(file_of(&self.container_id, &self.ifname))?)?)
    }
}

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
    fs::create_dir_all(directory())?;
    OpenOptions::new().create(true).append(true).open(directory().join("lock"))
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
