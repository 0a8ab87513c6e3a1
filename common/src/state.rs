//! `/run/underpass`: what the kernel cannot keep.

use std::{
    env,
    ffi::OsStr,
    fs::{self, DirEntry, File, Metadata},
    io::{self, Write},
    mem,
    net::IpAddr,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::SystemTime,
};

use serde::Serialize;
use serde_json::Value;

use crate::{
    document::{PodDocument, Request, Share},
    failure::Failure,
};

/// The state directory: `UNDERPASS_STATE`, else `/run/underpass`.
pub fn directory() -> PathBuf {
    env::var_os("UNDERPASS_STATE").map_or_else(|| PathBuf::from("/run/underpass"), PathBuf::from)
}

/// File in the state directory with what the cluster says, as the node agent keeps it.
pub const CLUSTER: &str = "cluster.json";
/// File in the state directory that says why [`CLUSTER`] is not there yet.
pub const PENDING: &str = "cluster.pending";
/// File in the state directory that names the Services that the kernel has no room for, or whose address another one has.
pub const UNFIT: &str = "unfit.json";

/// What the cluster says, as the node agent keeps it: `settings` and `cidrs`. Null where there is none.
///
/// # Errors
/// When there is a file and it cannot be read or is no JSON object.
pub fn cluster() -> io::Result<Value> {
    match fs::read(directory().join(CLUSTER)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Value::Null),
        text => Ok(Value::Object(serde_json::from_slice(&text?)?)),
    }
}

/// A failure for want of [`CLUSTER`], with what keeps the node agent from knowing the cluster, where it has said so.
pub fn with_reason(failure: Failure) -> Failure {
    match fs::read_to_string(directory().join(PENDING)) {
        Ok(reason) => {
            let details = format!("{}\nthe node agent says: {}", failure.details, reason.trim_end());
            failure.details(details)
        }
        Err(_) => failure,
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
pub fn load(request: &Request) -> Option<PodDocument> {
    let path = file_of(&request.container_id, &request.ifname);
    document(fs::read(&path).or_else(|_| fs::read(beside(&path, LEAVING))))
}

/// The document in a file that was read, if it has one.
fn document(text: io::Result<Vec<u8>>) -> Option<PodDocument> {
    serde_json::from_slice(&text.ok()?).ok()
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
pub fn save(request: &Request, document: &impl Serialize) -> io::Result<()> {
    write(&file_of(&request.container_id, &request.ifname), &serde_json::to_string(document)?)
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

/// Gives a file of the state directory, which is made if it is not there, the time of now. Where there is no room for its content there is
/// for that.
///
/// # Errors
/// What the file system says.
pub fn touch(path: &Path) -> io::Result<()> {
    File::options().append(true).create(true).open(path)?.set_modified(SystemTime::now())
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

/// The saved documents of attachments whose DEL has not begun.
pub fn list() -> impl Iterator<Item = PodDocument> {
    list_of(|_| true)
}

/// The same, of those that are asked for.
fn list_of(is_asked_for: impl Fn(&Saved) -> bool) -> impl Iterator<Item = PodDocument> {
    let saved = files().filter_map(|file| Saved::of(&file.file_name())).filter(is_asked_for);
    saved.filter_map(|saved| document(fs::read(saved.path())))
}

/// The same, of those of them that are served and whose ADD is done.
fn standing(is_asked_for: impl Fn(&Saved) -> bool) -> impl Iterator<Item = PodDocument> {
    list_of(is_asked_for).filter(|document| document.error.is_none() && !document.is_left_alone())
}

/// The saved documents that a GC finds stale: of attachments of its network that are not in its list.
pub fn stale(gc: &Request) -> Vec<PodDocument> {
    let whole = files().map(|file| file.path()).filter(|path| !path.to_string_lossy().ends_with(UNFINISHED));
    let stale = |PodDocument { request, .. }: &PodDocument| {
        request.network() == gc.network() && !gc.is_valid_attachment(&request.attachment())
    };
    whole.filter_map(|path| document(fs::read(path))).filter(stale).collect()
}

/// What the other attachments of the request's pod ask for: those that are served, whose ADD is done and whose DEL has not begun.
pub fn others(request: &Request) -> Vec<Share> {
    let others = standing(|other| other.container_id == request.container_id && other.ifname != request.ifname);
    let others = others.filter(|other| other.request.netns == request.netns);
    let mut shares: Vec<Share> = others.filter_map(|other| Share::of(&other)).collect();
    shares.sort_by(|a, b| a.ifname.cmp(&b.ifname));
    shares
}

/// The attachment of another container that has an address on its interface: it is served, its ADD is done, its DEL has not begun,
/// and its network namespace is there.
pub fn holder(address: IpAddr, request: &Request) -> Option<String> {
    let holder = standing(|other| other.container_id != request.container_id).find(|other| {
        let is_there = other.request.netns.as_ref().is_some_and(|netns| netns.exists());
        is_there && !other.has_lost_netns() && other.nic_addresses().iter().any(|net| net.addr() == address)
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

    fn path(&self) -> PathBuf {
        file_of(&self.container_id, &self.ifname)
    }

    /// The stamp of its document; none where there is none any more.
    pub fn stamp(&self) -> Option<Stamp> {
        stamp_of(&fs::metadata(self.path()).ok()?)
    }

    /// The document.
    ///
    /// # Errors
    /// When the file cannot be read, also when there is none any more, or is not JSON.
    pub fn read(&self) -> io::Result<Value> {
        Ok(serde_json::from_slice(&fs::read(self.path())?)?)
    }
}
