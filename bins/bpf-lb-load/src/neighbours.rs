//! Who else translates Services for those whom the programs serve: whoever was there before them, and whoever comes later.

use std::fs::File;

use common::balancers;

use crate::{
    attach::{self, Served},
    pins::Pins,
};

/// Those that were found at the last look.
#[derive(Debug, Default)]
pub struct Neighbours {
    others: Vec<String>,
    /// Where was looked, so that it need not be searched for each time.
    cgroup: Option<(u64, File)>,
}

impl Neighbours {
    /// Looks again, and says who is there if that has changed.
    pub fn look(&mut self, pins: &Pins) -> Option<&[String]> {
        let Served::Cgroup(number) = attach::served(pins) else { return None };
        if self.cgroup.as_ref().is_none_or(|(known, _)| *known != number) {
            self.cgroup = attach::path_of(number).and_then(|path| File::open(path).ok()).map(|cgroup| (number, cgroup));
        }
        let others = balancers::find(&self.cgroup.as_ref()?.1).ok()?.others;
        (others != self.others).then(|| {
            self.others = others;
            self.others.as_slice()
        })
    }
}
