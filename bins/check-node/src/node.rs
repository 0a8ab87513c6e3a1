//! What of the node itself its kernel and its file system must have.

use std::fs;

use common::{lock::Lock, marks, state};
use ipnet::IpNet;

use crate::check::Check;

/// One for each thing. `pods` is where pods get their addresses from, or what they have.
pub fn check<'a>(mut pods: impl Iterator<Item = &'a IpNet>) -> Vec<Check> {
    let mut checks = vec![forwarding("net/ipv4/ip_forward")];
    if has_ipv6(&fs::read_to_string("/proc/net/if_inet6").unwrap_or_default()) || pods.any(|net| net.addr().is_ipv6()) {
        checks.push(forwarding("net/ipv6/conf/all/forwarding"));
    }
    checks.extend([nftables(), state_directory()]);
    checks
}

/// Whether the node has a global IPv6 address, by `/proc/net/if_inet6`: address, index, prefix length, scope, flags and name.
fn has_ipv6(addresses: &str) -> bool {
    addresses.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).any(|words| words.get(3) == Some(&"00"))
}

fn forwarding(path: &str) -> Check {
    let value = fs::read_to_string(format!("/proc/sys/{path}")).unwrap_or_default();
    Check {
        name: "forwarding",
        ok: value.trim() == "1",
        msg: format!("{path} is {}", if value.is_empty() { "not there" } else { value.trim() }),
        remedy: "the node forwards pods' packets to Services: set it to 1, or do without pods of that address family"
            .into(),
    }
}

const NO_NFTABLES: &str = "replies find their way by an nftables mark: load the module nf_tables (Linux 5.2: route chains of the family inet)";

fn nftables() -> Check {
    let found = marks::find();
    Check {
        name: "nftables",
        ok: found.is_ok(),
        msg: match found {
            Ok(_) => "the kernel has nf_tables".to_owned(),
            Err(error) => format!("the kernel has no nf_tables: {error}"),
        },
        remedy: NO_NFTABLES.into(),
    }
}

fn state_directory() -> Check {
    let directory = state::directory();
    // As an ADD begins.
    let written = Lock::Node.try_acquire();
    Check {
        name: "state",
        ok: written.is_ok(),
        msg: match written {
            Ok(_) => format!("{} is there", directory.display()),
            Err(error) => format!("{} cannot be written: {error}", directory.display()),
        },
        remedy: "the plugin keeps locks and documents there: make it writable for root".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_has_ipv6_by_an_address_that_is_neither_its_loopback_nor_its_links() {
        let lo = "00000000000000000000000000000001 01 80 10 80       lo\n";
        let link = "fe80000000000000d0b4aafffe000001 02 40 20 80     eth0\n";
        assert!(!has_ipv6(&format!("{lo}{link}")));
        assert!(has_ipv6(&format!("{link}fd000006000000000000000000000101 02 40 00 80     eth0\n")));
    }
}
