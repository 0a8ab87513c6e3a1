//! Ethernet addresses.

use std::{fmt, net::Ipv6Addr, str::FromStr};

use serde::{Deserialize, Serialize};

/// An EUI-48 address in transmission order, written `0a:58:0a:06:d4:f1` as iproute2 and CNI write it.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// A unicast, locally administered address made from `bytes` (IEEE 802-2014, 8.2.2).
    pub fn local(bytes: [u8; 6]) -> Self {
        let mut bytes = bytes;
        bytes[0] = bytes[0] & !0x01 | 0x02;
        Self(bytes)
    }

    /// The interface identifier that the kernel makes of it, the last eight bytes of an IPv6 address (RFC 4291, appendix A).
    pub fn interface_id(self) -> [u8; 8] {
        let [a, b, c, d, e, f] = self.0;
        [a ^ 0x02, b, c, 0xff, 0xfe, d, e, f]
    }

    /// The IPv6 link-local address with that identifier.
    pub fn link_local(self) -> Ipv6Addr {
        Ipv6Addr::from_bits((0xfe80 << 112) | u128::from(u64::from_be_bytes(self.interface_id())))
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is not six pairs of hexadecimal digits separated by colons.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not a MAC address of the form 0a:58:0a:06:d4:f1")]
pub struct InvalidMac(String);

impl FromStr for Mac {
    type Err = InvalidMac;

    fn from_str(text: &str) -> Result<Self, InvalidMac> {
        let is_pair = |pair: &str| pair.len() == 2 && pair.bytes().all(|digit| digit.is_ascii_hexdigit());
        let octet = |pair: &str| is_pair(pair).then(|| u8::from_str_radix(pair, 16).ok()).flatten();
        let octets: Option<Vec<u8>> = text.split(':').map(octet).collect();
        octets.and_then(|octets| octets.try_into().ok()).map(Self).ok_or_else(|| InvalidMac(text.to_owned()))
    }
}

impl TryFrom<String> for Mac {
    type Error = InvalidMac;

    fn try_from(text: String) -> Result<Self, InvalidMac> {
        text.parse()
    }
}

impl From<Mac> for String {
    fn from(mac: Mac) -> Self {
        mac.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parse_after_print_is_the_identity() {
        let mac = Mac::local([0xff, 1, 2, 0xab, 0xcd, 0xef]);
        assert_eq!(mac.to_string(), "fe:01:02:ab:cd:ef");
        assert_eq!(mac.to_string().parse::<Mac>().unwrap(), mac);
    }

    #[test]
    fn the_link_local_address_is_the_modified_eui_64() {
        let mac: Mac = "34:56:78:9a:bc:de".parse().unwrap();
        assert_eq!(mac.link_local().to_string(), "fe80::3656:78ff:fe9a:bcde");
    }

    #[test]
    fn text_that_is_no_address_is_refused() {
        for text in
            ["", "0a:58:0a:06:d4", "0a:58:0a:06:d4:f1:00", "0a:58:0a:06:d4:fg", "+a:58:0a:06:d4:f1", "a:58:0a:06:d4:f1"]
        {
            assert!(text.parse::<Mac>().is_err(), "{text}");
        }
    }
}
