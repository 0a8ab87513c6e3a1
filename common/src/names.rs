//! Names and addresses that follow from a container's id, so that they can be found again without any file.

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

fn digest(container_id: &str) -> [u8; 32] {
    Sha256::digest(container_id.as_bytes()).into()
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

/// The network's name as an alias has it: as much of it as fits.
pub fn network(request: &Request) -> &str {
    let room = ALIAS_MAX.saturating_sub(ALIAS_PREFIX.len() + LONGEST_ATTACHMENT + 1);
    let name = request.network();
    &name[..name.floor_char_boundary(room)]
}

/// The attachment and the network of an alias of ours.
pub fn parse_alias(alias: &str) -> Option<(&str, &str)> {
    alias.strip_prefix(ALIAS_PREFIX)?.split_once(' ')
}

#[cfg(test)]
mod tests {
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

    #[test]
    fn an_alias_names_attachment_and_network() {
        assert_eq!(parse_alias("underpass abc/eth0 net a"), Some(("abc/eth0", "net a")));
        assert_eq!(parse_alias("my own alias"), None);
    }
}
