//! Addresses as Kubernetes' objects have them.

use std::net::{IpAddr, Ipv4Addr};

/// An address as kube-proxy reads it (`ParseIPSloppy`): old objects have zeros before the numbers of an IPv4 address, and an
/// IPv4 address that is written as an IPv6 one is that IPv4 address. Nothing for an address that no host has: one of them would
/// make the whole table one that the loader refuses.
pub fn parse(text: &str) -> Option<IpAddr> {
    let address = text.parse::<IpAddr>().ok().or_else(|| decimal(text).map(IpAddr::V4))?;
    Some(address.to_canonical()).filter(|address| service_table::is_host(*address))
}

/// The same for an address on which others than the own host can be asked: each pod's loopback is its own, and no proxy takes it
/// from the pod.
pub fn parse_reachable(text: &str) -> Option<IpAddr> {
    parse(text).filter(|address| !address.is_loopback())
}

/// Four decimal numbers, with zeros before them or not.
fn decimal(text: &str) -> Option<Ipv4Addr> {
    let number = |part: &str| {
        let digits = !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        digits.then(|| part.trim_start_matches('0')).map(|part| if part.is_empty() { "0" } else { part })?.parse().ok()
    };
    let octets: Vec<u8> = text.split('.').map(number).collect::<Option<_>>()?;
    <[u8; 4]>::try_from(octets).ok().map(Ipv4Addr::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_as_kube_proxy_reads_it() {
        let read = |text| parse(text).map(|address| address.to_string());
        assert_eq!(read("10.6.0.1").as_deref(), Some("10.6.0.1"));
        assert_eq!(read("010.006.000.001").as_deref(), Some("10.6.0.1"));
        assert_eq!(read("FD00::0001").as_deref(), Some("fd00::1"));
        assert_eq!(read("::ffff:10.6.0.1").as_deref(), Some("10.6.0.1"));
        for wrong in
            ["", "10.6.0", "10.6.0.256", "10.6.0.1.2", "10.6.0.+1", "10.6..1", "10.6.0.1/32", "fd00:::1", "web"]
        {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }
}
