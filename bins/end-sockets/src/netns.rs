//! The network namespaces of the node.

use std::{
    collections::HashSet,
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt as _,
    path::Path,
    thread,
};

use nix::{
    sched::{CloneFlags, setns},
    sys::statfs::{NSFS_MAGIC, fstatfs},
};

/// All that some process is in, or that has a name: also those of pods that no CNI call of ours made. Each once, whatever
/// leads to it. And what went wrong with others.
pub fn all() -> (Vec<File>, Vec<String>) {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(|entry| {
        let is_process = entry.file_name().as_encoded_bytes().iter().all(u8::is_ascii_digit);
        is_process.then(|| entry.path().join("ns/net"))
    });
    let entries = |folder| fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let named = entries("/run/netns").chain(entries("/var/run/docker/netns"));
    let (mut known, mut found, mut errors) = (HashSet::new(), Vec::new(), Vec::new());
    for path in processes.chain(named) {
        match open(&path, &mut known) {
            Ok(netns) => found.extend(netns),
            Err(error) if is_gone(&path, &error) => {}
            Err(error) => errors.push(format!("open a network namespace: {error}")),
        }
    }
    (found, errors)
}

/// Nothing if it is known, or no namespace.
fn open(path: &Path, known: &mut HashSet<(u64, u64)>) -> io::Result<Option<File>> {
    let metadata = fs::metadata(path)?;
    let number = (metadata.dev(), metadata.ino());
    if known.contains(&number) {
        return Ok(None);
    }
    let file = File::open(path)?;
    known.insert(number);
    Ok((fstatfs(&file)?.filesystem_type() == NSFS_MAGIC).then_some(file))
}

/// The process has ended, or the name was removed.
fn is_gone(path: &Path, error: &io::Error) -> bool {
    match error.raw_os_error() {
        Some(libc::ENOENT | libc::ESRCH) => true,
        // What the kernel says of a process that ends meanwhile, too (`proc_ns_get_link`).
        Some(libc::EACCES) => {
            path.ends_with("ns/net") && path.ancestors().nth(2).is_some_and(|process| !process.exists())
        }
        _ => false,
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_may_not_be_looked_into_is_gone_if_it_is_not_there() {
        let is_gone = |path: &str, errno| is_gone(Path::new(path), &io::Error::from_raw_os_error(errno));
        assert!(is_gone("/proc/0/ns/net", libc::EACCES));
        assert!(!is_gone("/proc/self/ns/net", libc::EACCES));
        assert!(!is_gone("/run/netns/none", libc::EACCES));
        assert!(is_gone("/run/netns/none", libc::ENOENT));
    }
}
