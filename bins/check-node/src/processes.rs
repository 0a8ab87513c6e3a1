//! The processes of the caller's network namespace.

use std::{collections::BTreeSet, fs, os::unix::fs::MetadataExt, path::Path};

use crate::proxy::{Masquerade, of_process};

/// What the kube-proxies do that run here, by their command lines and configuration files. What several do is said once:
/// a program that a kube-proxy is about to start has its command line until execve(2).
pub fn proxies() -> BTreeSet<Masquerade> {
    let own = namespace(Path::new("/proc/thread-self"));
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten().map(|entry| entry.path());
    let here = processes.filter(|process| own.is_some() && namespace(process) == own);
    here.filter_map(|process| of_process(&arguments(&process)?, |path| file(&process, path))).collect()
}

fn namespace(process: &Path) -> Option<(u64, u64)> {
    let metadata = fs::metadata(process.join("ns/net")).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

fn arguments(process: &Path) -> Option<Vec<String>> {
    let text = fs::read_to_string(process.join("cmdline")).ok()?;
    Some(text.split_terminator('\0').map(str::to_owned).collect())
}

/// A file as the process sees it: it is in a container of its own.
fn file(process: &Path, path: &str) -> Option<String> {
    let from = if path.starts_with('/') { process.join("root") } else { process.join("cwd") };
    fs::read_to_string(from.join(path.trim_start_matches('/'))).ok()
}
