//! The node's nftables table: how packets of underlay pods pass through the node to a CIDR behind it.
//!
//! Between an underlay pod and an overlay pod on another node, one direction goes through the underlay pod's node and the
//! other straight over the data-centre network. That node sees half of the connection: its connection tracking calls
//! invalid what it cannot follow, and others drop what is invalid, kube-proxy for one. So what is invalid is let off
//! connection tracking, before any rule for forwarded packets sees it. Nothing is translated: addresses stay, and so do
//! network policies, which the overlay pod's own node applies, where both directions pass.
//!
//! Where that is not wanted, such packets get the node's address as source, and answers come back through the node.

use std::{ffi::CStr, io, net::IpAddr};

use ipnet::IpNet;
use netlink_bindings::nftables::{self, Chained, CtKeys, MetaKeys};
use netlink_socket2::NetlinkSocket;
use nix::libc;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::marks::{
    self, Chain, Expression, NF_ACCEPT, NF_INET_PRE_ROUTING, NF_IP_PRI_MANGLE, Statements, TABLE, add_chain,
    close_in_child, cstring, header, masked, transaction,
};

const NF_INET_POST_ROUTING: u32 = 4;
const NF_IP_PRI_NAT_SRC: i32 = 100;
/// `NF_CT_STATE_INVALID_BIT`.
const CT_STATE_INVALID: u32 = 1;

/// A rule of the node's nftables table `inet underpass`: how packets from underlay pods pass to a CIDR behind the node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Transit {
    /// Link group of the node's ends of the pods' veth pairs.
    pub group: u32,
    /// Where the packets go.
    #[schemars(with = "String")]
    pub destination: IpNet,
    /// Whether they get the node's address as source. Otherwise they keep the pod's, and those of a connection of which
    /// the node sees one half are let off connection tracking.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub masquerade: bool,
}

/// A rule of the table, by what the kernel knows it.
struct Entry {
    chain: String,
    handle: u64,
    /// `None` for a rule that is none of ours.
    transit: Option<Transit>,
}

fn chain(transit: &Transit) -> Chain {
    let (name, kind, hook, priority) = if transit.masquerade {
        ("postrouting", "nat", NF_INET_POST_ROUTING, NF_IP_PRI_NAT_SRC)
    } else {
        ("prerouting", "filter", NF_INET_PRE_ROUTING, NF_IP_PRI_MANGLE)
    };
    Chain {
        name: name.to_owned(),
        kind: kind.to_owned(),
        hook,
        priority,
        policy: NF_ACCEPT,
        rules: vec![statements(transit)],
    }
}

/// The offset of the destination in an IP header, and the family's `NFPROTO_`.
fn place(destination: IpNet) -> (u32, u8) {
    match destination {
        IpNet::V4(_) => (16, libc::NFPROTO_IPV4 as u8),
        IpNet::V6(_) => (24, libc::NFPROTO_IPV6 as u8),
    }
}

fn bytes(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// Whether the packet goes to a CIDR, as nft writes it: of a prefix that ends with a byte, only those bytes are loaded.
fn goes_to(destination: IpNet) -> Statements {
    let (offset, family) = place(destination);
    let (mut address, whole) = (bytes(destination.network()), usize::from(destination.prefix_len() / 8));
    let mask = (!destination.prefix_len().is_multiple_of(8)).then(|| masked(bytes(destination.netmask())));
    if mask.is_none() {
        address.truncate(whole);
    }
    let mut statements = vec![
        Expression::LoadMeta(MetaKeys::Nfproto as u32),
        Expression::Equal(vec![family]),
        Expression::LoadHeader { offset, length: address.len() as u32 },
    ];
    statements.extend(mask);
    statements.push(Expression::Equal(address));
    statements
}

fn statements(transit: &Transit) -> Statements {
    let mut statements =
        vec![Expression::LoadMeta(MetaKeys::Iifgroup as u32), Expression::Equal(transit.group.to_ne_bytes().to_vec())];
    statements.extend(goes_to(transit.destination));
    if transit.masquerade {
        statements.push(Expression::Plain(c"masq"));
    } else {
        statements.extend([
            Expression::LoadCt(CtKeys::State as u32),
            masked(CT_STATE_INVALID.to_ne_bytes().to_vec()),
            Expression::NotEqual(0u32.to_ne_bytes().to_vec()),
            Expression::Plain(c"notrack"),
        ]);
    }
    statements
}

/// The rule of ours that these statements are.
fn parse(rule: &Statements) -> Option<Transit> {
    let [_, Expression::Equal(group), _, Expression::Equal(family), _, to @ .., last] = rule.as_slice() else {
        return None;
    };
    let (address, prefix) = match to {
        [Expression::Bits { mask, .. }, Expression::Equal(address), ..] => {
            (address, mask.iter().map(|byte| byte.count_ones()).sum::<u32>())
        }
        [Expression::Equal(address), ..] => (address, address.len() as u32 * 8),
        _ => return None,
    };
    let transit = Transit {
        group: u32::from_ne_bytes(group.as_slice().try_into().ok()?),
        destination: IpNet::new(padded(address, family == &[libc::NFPROTO_IPV4 as u8])?, prefix.try_into().ok()?)
            .ok()?,
        masquerade: *last == Expression::Plain(c"masq"),
    };
    (statements(&transit) == *rule).then_some(transit)
}

/// An address of which the first bytes are given.
fn padded(bytes: &[u8], is_ipv4: bool) -> Option<IpAddr> {
    let mut address = bytes.to_vec();
    address.resize(if is_ipv4 { 4 } else { 16 }, 0);
    let v4 = || <[u8; 4]>::try_from(address.as_slice()).ok().map(IpAddr::from);
    <[u8; 16]>::try_from(address.as_slice()).ok().map(IpAddr::from).or_else(v4)
}

impl Transit {
    /// The rule in nft's syntax, and the chain that it is in.
    fn rule(&self) -> (&'static str, String) {
        let Self { group, destination, masquerade } = self;
        let ip = if destination.addr().is_ipv4() { "ip" } else { "ip6" };
        let packets = format!("iifgroup {group} {ip} daddr {destination}");
        if *masquerade {
            ("postrouting", format!("{packets} masquerade"))
        } else {
            ("prerouting", format!("{packets} ct state invalid notrack"))
        }
    }
}

/// The commands of `nft` that add the rule.
pub(crate) fn script(transit: &Transit) -> Vec<String> {
    let (chain, rule) = transit.rule();
    let hook = match chain {
        "postrouting" => "type nat hook postrouting priority srcnat",
        _ => "type filter hook prerouting priority mangle",
    };
    vec![
        format!("nft add table inet {TABLE}"),
        format!("nft add chain inet {TABLE} {chain} '{{ {hook}; }}'"),
        format!("nft add rule inet {TABLE} {chain} {rule}"),
    ]
}

/// The commands that remove it, and with the last one the table.
pub(crate) fn removal(transit: &Transit) -> Vec<String> {
    let (chain, rule) = transit.rule();
    let handle = format!("nft -a list chain inet {TABLE} {chain} | sed -n 's|.*{rule} # handle ||p'");
    vec![
        format!("nft delete rule inet {TABLE} {chain} handle \"$({handle})\""),
        format!("nft list table inet {TABLE} | grep -q iifgroup || nft delete table inet {TABLE}"),
    ]
}

/// The names of the chains that our rules are in.
const CHAINS: [&str; 2] = ["prerouting", "postrouting"];

/// The rules of ours in the calling thread's network namespace, and whether somebody put others into the table, made it dormant,
/// or gave a chain another policy.
///
/// # Errors
/// When the kernel refuses the dump.
pub fn find() -> io::Result<(Vec<Transit>, bool)> {
    let entries = entries()?;
    let state = State::read()?;
    let altered = entries.iter().any(|entry| entry.transit.is_none()) || state.dormant || !state.closed.is_empty();
    Ok((entries.into_iter().filter_map(|entry| entry.transit).collect(), altered))
}

/// What somebody may have changed of the table beside its rules.
struct State {
    dormant: bool,
    /// The chains whose policy is not to accept, without their rules.
    closed: Vec<Chain>,
}

impl State {
    fn read() -> io::Result<Self> {
        let mut socket = NetlinkSocket::new();
        let dormant = marks::is_dormant(&mut socket)?;
        let mut closed = vec![];
        for name in CHAINS.iter().filter(|_| dormant.is_some()) {
            closed.extend(marks::chain(&mut socket, name)?.filter(|chain| chain.policy != NF_ACCEPT));
        }
        Ok(Self { dormant: dormant == Some(true), closed })
    }
}

fn entries() -> io::Result<Vec<Entry>> {
    let mut socket = NetlinkSocket::new();
    let mut request = nftables::Request::new().op_getrule_dump(&header());
    request.encode().push_table(&cstring(TABLE));
    let mut entries = Vec::new();
    let mut replies = socket.request(&request)?;
    while let Some(reply) = replies.recv() {
        let (_, attributes) = match reply.map_err(io::Error::from) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => break,
            reply => reply?,
        };
        let expressions = attributes.get_expressions().map_err(io::Error::other)?;
        entries.push(Entry {
            chain: attributes.get_chain().map_err(io::Error::other)?.to_string_lossy().into_owned(),
            handle: attributes.get_handle().map_err(io::Error::other)?,
            transit: parse(&marks::statements(&expressions)),
        });
    }
    Ok(entries)
}

/// Adds rules in the calling thread's network namespace, and their chains and the table where they are not there, at one
/// stroke: after a second one the kernel would wait when the socket is closed. What somebody else put into the table goes.
///
/// # Errors
/// When the kernel refuses the transaction; nothing has changed then.
pub fn create<'a>(transits: impl Iterator<Item = &'a Transit>) -> io::Result<()> {
    let transits: Vec<_> = transits.collect();
    let stays = |entry: &Entry| entry.transit.as_ref().is_some_and(|transit| !transits.contains(&transit));
    let goes: Vec<_> = entries()?.into_iter().filter(|entry| !stays(entry)).collect();
    let State { dormant, closed } = State::read()?;
    let opened = closed.into_iter().map(|chain| Chain { policy: NF_ACCEPT, ..chain });
    transaction(|batch, table| {
        batch.request().set_create().op_newtable_do(&header()).encode().push_name(table);
        if dormant {
            batch.request().op_newtable_do(&header()).encode().push_name(table).push_flags(0);
        }
        remove(batch, table, &goes);
        for chain in opened.chain(chains(&transits)) {
            add_chain(batch, table, &chain);
        }
    })
    .map(drop)
}

/// The chains that rules are in, each once: one that is added twice is altered, and then the kernel waits too.
fn chains(transits: &[&Transit]) -> Vec<Chain> {
    let mut chains: Vec<Chain> = Vec::new();
    for chain in transits.iter().copied().map(chain) {
        match chains.iter_mut().find(|known| known.name == chain.name) {
            Some(known) => known.rules.extend(chain.rules),
            None => chains.push(chain),
        }
    }
    chains
}

fn remove(batch: &mut Chained<'_>, table: &CStr, entries: &[Entry]) {
    for Entry { chain, handle, .. } in entries {
        let mut request = batch.request().op_delrule_do(&header());
        request.encode().push_table(table).push_chain(&cstring(chain)).push_handle(*handle);
    }
}

/// Removes rules from the calling thread's network namespace, and the table with the last one, at one stroke.
///
/// # Errors
/// When the kernel refuses, also because there is none of these rules.
pub fn delete<'a>(transits: impl Iterator<Item = &'a Transit>) -> io::Result<()> {
    let transits: Vec<_> = transits.collect();
    let is_to_go = |entry: &Entry| entry.transit.as_ref().is_some_and(|transit| transits.contains(&transit));
    let (goes, stays): (Vec<_>, Vec<_>) = entries()?.into_iter().partition(is_to_go);
    if goes.is_empty() {
        return Err(io::ErrorKind::NotFound.into());
    }
    let last = stays.iter().all(|entry| entry.transit.is_none());
    let socket = transaction(|batch, table| {
        if last {
            batch.request().op_deltable_do(&header()).encode().push_name(table);
            return;
        }
        remove(batch, table, &goes);
    })?;
    close_in_child(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_that_is_read_is_the_one_that_was_written() {
        for masquerade in [false, true] {
            for destination in ["10.233.0.0/18", "10.0.0.0/8", "10.0.0.1/32", "fd00:233::/48", "fd00::/33", "::1/128"] {
                let transit = Transit { group: 85, destination: destination.parse().unwrap(), masquerade };
                assert_eq!(parse(&statements(&transit)), Some(transit));
            }
        }
        assert_eq!(parse(&vec![]), None);
    }

    #[test]
    fn the_rules_of_a_chain_come_with_one_chain() {
        let rule = |destination: &str, masquerade| Transit {
            group: 85,
            destination: destination.parse().unwrap(),
            masquerade,
        };
        let rules = [rule("10.233.0.0/18", false), rule("fd00:233::/48", false), rule("10.0.0.0/8", true)];
        let chains = chains(&rules.iter().collect::<Vec<_>>());
        let counts: Vec<_> = chains.iter().map(|chain| (chain.name.as_str(), chain.rules.len())).collect();
        assert_eq!(counts, [("prerouting", 2), ("postrouting", 1)]);
    }
}
