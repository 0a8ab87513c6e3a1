//! Whether somebody else translates Services at connect() too.

use std::{fs::File, io, path::Path};

use common::{
    balancers::{self, Balancers, REMEDY},
    cgroup,
};

use crate::check::Check;

/// Nothing to say where there is no cgroup v2, or where this process may not look.
pub fn check(cgroup: Option<&Path>) -> Vec<Check> {
    let Some(cgroup) = cgroup.map(Path::to_owned).or_else(cgroup::mount) else { return vec![] };
    let check = |ok, msg| vec![Check { name: "balancers", ok, msg, remedy: REMEDY.into() }];
    let place = cgroup.display();
    match File::open(&cgroup).and_then(|cgroup| balancers::find(&cgroup)) {
        Ok(Balancers { ours, others }) => match (ours, others.join(" and ")) {
            (true, others) if !others.is_empty() => {
                check(false, format!("at {place} two translate Services at connect(): ours and {others}"))
            }
            (true, _) => check(true, format!("at {place} ours alone translates Services at connect()")),
            (false, others) if !others.is_empty() => {
                check(true, format!("at {place} {others} translates Services at connect(), and ours does not"))
            }
            (false, _) => vec![],
        },
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => vec![],
        Err(error) => check(false, format!("the programs at {place} cannot be listed: {error}")),
    }
}
