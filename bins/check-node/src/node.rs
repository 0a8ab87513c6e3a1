//! What of the node itself its kernel and its file system must have.

use std::fs;

use common::{marks, state};

use crate::check::Check;

/// One for each thing.
pub fn check() -> Vec<Check> {
    let forwarding = ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"].into_iter().map(forwarding);
    forwarding.chain([nftables(), state_directory()]).collect()
}

fn forwarding(path: &str) -> Check {
    let value = fs::read_to_string(format!("/proc/sys/{path}")).unwrap_or_default();
    Check {
        name: "forwarding",
        ok: value.trim() == "1",
        msg: format!("{path} is {}", if value.is_empty() { "not there" } else { value.trim() }),
        remedy: "the node forwards pods' packets to Services: set it to 1, or do without pods of that address family".into(),
    }
}

fn nftables() -> Check {
    let found = marks::find();
    Check {
        name: "nftables",
        ok: found.is_ok(),
        msg: match found {
            Ok(_) => "the kernel has nf_tables".to_owned(),
            Err(error) => format!("the kernel has no nf_tables: {error}"),
        },
        remedy: "replies find their way by an nftables mark: load the module nf_tables (Linux 5.2: route chains of the family inet)"
            .into(),
    }
}

fn state_directory() -> Check {
    let directory = state::directory();
    let made = fs::create_dir_all(&directory);
    Check {
        name: "state",
        ok: made.is_ok(),
        msg: match made {
            Ok(()) => format!("{} is there", directory.display()),
            Err(error) => format!("{} cannot be made: {error}", directory.display()),
        },
        remedy: "the plugin keeps locks and documents there: make it writable for root".into(),
    }
}
