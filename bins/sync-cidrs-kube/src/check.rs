//! Which CIDRs are taken: a wrong one is refused and named, the rest is served.

use std::net::IpAddr;

use ipnet::IpNet;

/// No more CIDRs than this in all: each is a route in every pod.
pub const MOST: usize = 1024;

/// What is neither a Service's nor a pod's address, whatever an object says (RFC 6890).
const RESERVED: [&str; 6] = ["127.0.0.0/8", "224.0.0.0/4", "::1/128", "fe80::/10", "ff00::/8", "0.0.0.0/8"];

/// The CIDR that a text means, without host bits: Kubernetes takes them where it takes a CIDR, and masks them.
///
/// # Errors
/// Why it is refused, for a person. `own` are the node's addresses.
pub fn cidr(text: &str, own: &[IpAddr]) -> Result<IpNet, String> {
    let net = parse(text).ok_or_else(|| format!("{text:?} is not a CIDR"))?.trunc();
    if net.prefix_len() == 0 {
        return Err(format!("{net} is every address, not a network of the cluster's"));
    }
    if let Some(own) = own.iter().find(|address| net.contains(*address)) {
        return Err(format!("{net} contains the node's own address {own}"));
    }
    let reserved = RESERVED.iter().filter_map(|reserved| reserved.parse::<IpNet>().ok());
    match reserved.into_iter().find(|reserved| net.contains(reserved) || reserved.contains(&net)) {
        Some(reserved) => Err(format!("{net} overlaps {reserved}, which is reserved")),
        None => Ok(net),
    }
}

/// The CIDR as a text has it.
pub fn parse(text: &str) -> Option<IpNet> {
    text.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_cidr_is_refused_and_says_why() {
        let own = ["10.6.212.101".parse().unwrap(), "fd00:6::101".parse().unwrap()];
        let refused = |text| cidr(text, &own).unwrap_err();
        assert!(refused("10.233.64.0/33").contains("is not a CIDR"));
        assert!(refused("").contains("is not a CIDR"));
        assert!(refused("10.233.64.0").contains("is not a CIDR"));
        assert!(refused("0.0.0.0/0").contains("every address"));
        assert!(refused("::/0").contains("every address"));
        assert!(refused("10.0.0.0/8").contains("own address 10.6.212.101"));
        assert!(refused("fd00:6::/64").contains("own address fd00:6::101"));
        assert!(refused("127.0.0.0/16").contains("reserved"));
        assert!(refused("10.6.0.1/16").contains("10.6.0.0/16 contains the node's own address"));
        assert!(refused("224.0.0.0/3").contains("reserved"));
    }

    #[test]
    fn a_right_cidr_is_taken_with_blanks_around_it_and_without_its_host_bits() {
        assert_eq!(cidr("10.233.64.1/18", &[]).unwrap().to_string(), "10.233.64.0/18");
        assert_eq!(cidr("fd00:233::1/108", &[]).unwrap().to_string(), "fd00:233::/108");
        assert_eq!(cidr(" 10.233.64.0/18 ", &[]).unwrap().to_string(), "10.233.64.0/18");
        assert_eq!(cidr("fd00:233::/108", &[]).unwrap().to_string(), "fd00:233::/108");
    }
}
