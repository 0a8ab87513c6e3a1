//! Where cgroups are.

use std::{fs, path::PathBuf};

/// The mount point of cgroup v2, which is not the same on every system; nothing where there is none.
pub fn mount() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    mounts.lines().map(|line| line.split(' ')).find_map(|mut fields| {
        let path = fields.nth(1)?;
        (fields.next()? == "cgroup2").then(|| PathBuf::from(path))
    })
}
