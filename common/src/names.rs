//! Names and addresses that follow from a container's id, so that they can be found again without any file.

use std::borrow::Cow;

use sha2::{Digest, Sha256};

use crate::{document::Request, mac::Mac};

/// Name of the pod's end of the veth pair.
pub const POD_VETH: &str = "veth0";
/// What every alias of ours begins with.
const ALIAS_PREFIX: &str = "underpass ";
/// A container's id of 200 bytes, a slash, and an interface's name of 15.
const LONGEST_ATTACHMENT: usize = 216;
/// `IFALIASZ` less the terminating zero.
const ALIAS_MAX: usize = 255;
/// What is left for a network's name.
const NETWORK_MAX: usize = ALIAS_MAX - ALIAS_PREFIX.len() - LONGEST_ATTACHMENT - 1;

fn digest(name: &str) -> [u8; 32] {
    Sha256::digest(name.as_bytes()).into()
}

/// A number that follows from a container's id, the same in every version of the tools.
pub fn container_number(container_id: &str) -> u32 {
    let [a, b, c, d, ..] = digest(container_id);
    u32::from_be_bytes([a, b, c, d])
}

/// Name of the node's end: `veth` and 11 hexadecimal digits, 15 characters in all as the kernel allows (`IFNAMSIZ`).
pub fn host_veth(container_id: &str) -> String {
    let digits: String = digest(container_id).iter().take(6).map(|byte| format!("{byte:02x}")).collect();
    format!("veth{}", &digits[..11])
}

/// MAC addresses of the node's end and the pod's. Explicit ones, so that udev does not change them and a second ADD
/// finds them as they were.
pub fn veth_macs(container_id: &str) -> (Mac, Mac) {
    let [.., a, b, c, d, e] = digest(container_id);
    (Mac::local([0x02, a, b, c, d, e & !1]), Mac::local([0x02, a, b, c, d, e | 1]))
}

/// The alias of the node's end, `underpass CONTAINER/IFNAME NETWORK`.
pub fn alias(request: &Request) -> String {
    format!("{ALIAS_PREFIX}{} {}", request.attachment(), network(request))
}

/// The network's name as an alias has it. Of one that does not fit, the beginning, which others may have too, and a number that
/// follows from all of it.
pub fn network(request: &Request) -> Cow<'_, str> {
    let name = request.network();
    if name.len() <= NETWORK_MAX {
        return name.into();
    }
    let [a, b, c, d, ..] = digest(name);
    let number = format!("~{:08x}", u32::from_be_bytes([a, b, c, d]));
    let beginning = &name[..name.floor_char_boundary(NETWORK_MAX - number.len())];
    format!("{beginning}{number}").into()
}

/// The attachment and the network of an alias of ours.
pub fn parse_alias(alias: &str) -> Option<(&str, &str)> {
    alias.strip_prefix(ALIAS_PREFIX)?.split_once(' ')
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_name_fits_and_follows_from_the_container() {
        assert_eq!(host_veth("a").len(), 15);
        assert_eq!(host_veth("a"), host_veth("a"));
        assert_ne!(host_veth("a"), host_veth("b"));
    }

    #[test]
    fn the_two_macs_differ_and_are_local_unicast() {
        let (host, pod) = veth_macs("a");
        assert_ne!(host, pod);
        assert_eq!((host.0[0] & 3, pod.0[0] & 3), (2, 2));
    }

    fn network_of(name: &str) -> String {
        let request = json!({"command": "ADD", "containerId": "c".repeat(200), "ifname": "e".repeat(15), "config": {"name": name}});
        let request: Request = serde_json::from_value(request).unwrap();
        assert!(alias(&request).len() <= ALIAS_MAX);
        network(&request).into_owned()
    }

    #[test]
    fn networks_whose_long_names_begin_alike_differ_in_an_alias_and_one_that_fits_is_there_as_it_is() {
        assert_eq!(network_of("macvlan-vlan100-production-e"), "macvlan-vlan100-production-e");
        assert!(network_of("macvlan-vlan100-production-eu-1").starts_with("macvlan-vlan100-pro~"));
        assert_ne!(network_of("macvlan-vlan100-production-eu-1"), network_of("macvlan-vlan100-production-eu-2"));
        assert_ne!(network_of(&"\u{e9}".repeat(100)), network_of(&"\u{e9}".repeat(101)));
    }

    #[test]
    fn an_alias_names_attachment_and_network() {
        assert_eq!(parse_alias("underpass abc/eth0 net a"), Some(("abc/eth0", "net a")));
        assert_eq!(parse_alias("my own alias"), None);
    }
}
