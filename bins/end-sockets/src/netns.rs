//! The network namespaces of the node.

use std::{
    collections::HashSet,
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt as _,
    path::PathBuf,
    thread,
};

use nix::{
    sched::{CloneFlags, setns},
    sys::statfs::{NSFS_MAGIC, fstatfs},
};

/// All that some process is in, or that has a name: also those of pods that no CNI call of ours made. Each once, whatever
/// leads to it.
pub fn all() -> Vec<File> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(|entry| {
        let is_process = entry.file_name().as_encoded_bytes().iter().all(u8::is_ascii_digit);
        is_process.then(|| entry.path().join("ns/net"))
    });
    let entries = |folder| fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let named = entries("/run/netns").chain(entries("/var/run/docker/netns"));
    let mut known = HashSet::new();
    processes.chain(named).filter_map(|path| open(path, &mut known)).collect()
}

/// What ended meanwhile, or is no namespace, is left out.
fn open(path: PathBuf, known: &mut HashSet<(u64, u64)>) -> Option<File> {
    let metadata = fs::metadata(&path).ok()?;
    if !known.insert((metadata.dev(), metadata.ino())) {
        return None;
    }
    let file = File::open(path).ok()?;
    fstatfs(&file).is_ok_and(|stat| stat.filesystem_type() == NSFS_MAGIC).then_some(file)
}

/// Runs `work` on a thread of its own that is in the namespace and ends there, so that no other thread ever is.
///
/// # Errors
/// What `setns(2)` says, or `work`.
pub fn within<T: Send>(netns: &File, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let entered = scope.spawn(|| {
            setns(netns, CloneFlags::CLONE_NEWNET)?;
            work()
        });
        entered.join().map_err(|_| io::Error::other("the thread in a network namespace died"))?
    })
}
