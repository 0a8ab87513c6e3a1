//! Addresses that a host can have, and so can be connected to. The schema and the code accept exactly the same text.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize as _, Deserializer, de};

/// The address of a host, for the schema: the fields are of type [`IpAddr`].
pub(crate) struct Host;

/// A CIDR, for the schema: the fields are of type [`IpNet`].
pub(crate) struct Cidr;

const OCTET: &str = "(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])";
const GROUP: &str = "[0-9a-fA-F]{1,4}";

fn four() -> String {
    format!("{OCTET}(\\.{OCTET}){{3}}")
}

/// Every way to write an IPv6 address.
fn six() -> String {
    // The 128 bits end in two groups, or in an IPv4 address that takes their place.
    let four = four();
    let mut forms = vec![format!("({GROUP}:){{6}}({GROUP}:{GROUP}|{four})")];
    for before in 0..=7 {
        let head = if before == 0 { ":".to_owned() } else { format!("({GROUP}:){{{before}}}") };
        forms.push(format!("{head}:"));
        // The two colons stand for one group at least.
        if before <= 6 {
            forms.push(format!("{head}:({GROUP}:){{0,{}}}{GROUP}", 6 - before));
        }
        if before <= 5 {
            forms.push(format!("{head}:({GROUP}:){{0,{}}}{four}", 5 - before));
        }
    }
    forms.join("|")
}

impl JsonSchema for Cidr {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Cidr".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let (four, six) = (four(), six());
        json_schema!({
            "description": "Addresses that begin with the same bits.",
            "type": "string",
            "pattern": format!("^({four}/([12]?[0-9]|3[0-2])|({six})/(1[01][0-9]|12[0-8]|[1-9]?[0-9]))$")
        })
    }
}

impl JsonSchema for Host {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Host".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let four = format!("([1-9]|[1-9][0-9]|1[0-9][0-9]|2[01][0-9]|22[0-3])(\\.{OCTET}){{3}}");
        let (any_four, six, group) = (self::four(), six(), GROUP);
        json_schema!({
            "description": "The address of a host: none that is unspecified (0.0.0.0/8 too), multicast, broadcast or reserved \
                            (240.0.0.0/4), and none that is link-local in IPv6, which says nothing without a link. An \
                            IPv4-mapped one is written ::ffff:a.b.c.d, with the same limits.",
            "type": "string",
            "anyOf": [
                { "pattern": format!("^{four}$") },
                { "pattern": format!("^::[fF]{{4}}:{four}$") },
                {
                    "pattern": format!("^({six})$"),
                    "not": { "pattern": format!(
                        "^([0:.]+|[fF]{{2}}[0-9a-fA-F]{{2}}:.*|[fF][eE][89abAB][0-9a-fA-F]:.*|[0:]*:[fF]{{4}}:({group}:{group}|{any_four})\
                         |(0{{1,4}}:){{5}}[fF]{{4}}:(:|{group}::|:{group}))$"
                    ) }
                }
            ]
        })
    }
}

/// The address that `text` is, if a host can have it.
pub(crate) fn parse(text: &str) -> Result<IpAddr, String> {
    let refused = |why: &str| Err(format!("{text}: {why}"));
    let Ok(address) = text.parse::<IpAddr>() else { return refused("not an IP address") };
    let canonical = address.to_canonical();
    if canonical != address
        && !text.get(..7).is_some_and(|start| start.eq_ignore_ascii_case("::ffff:") && text.contains('.'))
    {
        return refused("write an IPv4-mapped address as ::ffff:a.b.c.d");
    }
    wrong(canonical).map_or(Ok(address), refused)
}

/// Whether a host can have the address, and the table so too.
pub fn is_host(address: IpAddr) -> bool {
    wrong(address.to_canonical()).is_none()
}

fn wrong(canonical: IpAddr) -> Option<&'static str> {
    match canonical {
        IpAddr::V4(four) if !is_host4(four) => Some("not an address of a host"),
        IpAddr::V6(six) if six.is_unspecified() || six.is_multicast() => Some("not an address of a host"),
        IpAddr::V6(six) if six.is_unicast_link_local() => Some("a link-local address says nothing without a link"),
        _ => None,
    }
}

/// Neither "this network" (RFC 1122), nor multicast, reserved or broadcast.
fn is_host4(address: Ipv4Addr) -> bool {
    let [first, ..] = address.octets();
    (1..224).contains(&first)
}

/// Reads one.
pub(crate) fn one<'de, D: Deserializer<'de>>(deserializer: D) -> Result<IpAddr, D::Error> {
    let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
    parse(&text).map_err(de::Error::custom)
}

/// Reads a list of them.
pub(crate) fn list<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<IpAddr>, D::Error> {
    struct Each(IpAddr);

    impl<'de> serde::Deserialize<'de> for Each {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            one(deserializer).map(Self)
        }
    }

    Ok(Vec::<Each>::deserialize(deserializer)?.into_iter().map(|Each(address)| address).collect())
}

/// Reads a list of CIDRs.
pub(crate) fn cidrs<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<IpNet>, D::Error> {
    let texts = Vec::<std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
    if texts.len() > 8 {
        return Err(de::Error::custom(format!("{} CIDRs; at most 8", texts.len())));
    }
    texts.iter().map(|text| cidr(text).ok_or_else(|| de::Error::custom(format!("{text}: no CIDR")))).collect()
}

fn cidr(text: &str) -> Option<IpNet> {
    let (address, len) = text.split_once('/')?;
    let len = Some(len).filter(|len| *len == "0" || !len.starts_with(['0', '+']))?;
    IpNet::new(address.parse().ok()?, len.parse().ok()?).ok().map(canonical)
}

/// The one way to say which addresses a CIDR has: without bits of a host, and as one of IPv4 if they are IPv4-mapped.
pub fn canonical(cidr: IpNet) -> IpNet {
    let cidr = cidr.trunc();
    let four = cidr.prefix_len().checked_sub(96).and_then(|len| IpNet::new(cidr.addr().to_canonical(), len).ok());
    four.filter(|four| four.addr().is_ipv4()).unwrap_or(cidr)
}
