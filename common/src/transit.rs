//! The node's nftables table: how packets of underlay pods pass through the node to a CIDR behind it.
//!
//! Between an underlay pod and an overlay pod on another node, one direction goes through the underlay pod's node and the
//! other straight over the data-centre network. That node sees half of the connection: its connection tracking calls
//! invalid what it cannot follow, and others drop what is invalid, kube-proxy for one. So what is invalid is let off
//! connection tracking, before any rule for forwarded packets sees it. Nothing is translated: addresses stay, and so do
//! network policies, which the overlay pod's own node applies, where both directions pass.
//!
//! Where that is not wanted, such packets get the node's address as source, and answers come back through the node.

use std::{io, net::IpAddr};

use ipnet::IpNet;
use netlink_bindings::nftables::{CtKeys, MetaKeys};
use nix::libc;

use crate::{
    nft::{Chain, Expression, Rule, Socket, Statements, Transaction, masked},
    object::Transit,
};

/// `NF_CT_STATE_INVALID_BIT`.
const CT_STATE_INVALID: u32 = 1;
/// The names of the chains that our rules are in.
const CHAINS: [&str; 2] = ["prerouting", "postrouting"];

fn chain(transit: &Transit) -> Chain {
    let [prerouting, postrouting] = CHAINS;
    let rules = vec![statements(transit)];
    if transit.masquerade {
        Chain::new(postrouting, "nat", libc::NF_INET_POST_ROUTING, libc::NF_IP_PRI_NAT_SRC, rules)
    } else {
        Chain::new(prerouting, "filter", libc::NF_INET_PRE_ROUTING, libc::NF_IP_PRI_MANGLE, rules)
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

/// A rule of the table.
struct Entry {
    rule: Rule,
    /// `None` for a rule that is none of ours.
    transit: Option<Transit>,
}

/// The table as it is.
#[derive(Default)]
struct Table {
    dormant: bool,
    /// The chains whose policy is not to accept, without their rules.
    closed: Vec<Chain>,
    entries: Vec<Entry>,
}

impl Table {
    fn read(socket: &mut Socket) -> io::Result<Self> {
        let Some(dormant) = socket.is_dormant()? else { return Ok(Self::default()) };
        let mut closed = vec![];
        for name in CHAINS {
            closed.extend(socket.chain(name)?.filter(|chain| !chain.is_open()));
        }
        Ok(Self { dormant, closed, entries: entries(socket)? })
    }
}

fn entries(socket: &mut Socket) -> io::Result<Vec<Entry>> {
    let rules = socket.rules()?.into_iter();
    Ok(rules.map(|rule| Entry { transit: parse(&rule.statements), rule }).collect())
}

/// The rules of ours in the calling thread's network namespace, and whether somebody put others into the table, made it dormant,
/// or gave a chain another policy.
///
/// # Errors
/// When the kernel refuses the dump.
pub fn find() -> io::Result<(Vec<Transit>, bool)> {
    let Table { dormant, closed, entries } = Table::read(&mut Socket::default())?;
    let altered = dormant || !closed.is_empty() || entries.iter().any(|entry| entry.transit.is_none());
    Ok((entries.into_iter().filter_map(|entry| entry.transit).collect(), altered))
}

/// Adds rules in the calling thread's network namespace, and their chains and the table where they are not there, at one
/// stroke: after a second one the kernel would wait when the socket is closed. What somebody else put into the table goes.
///
/// # Errors
/// When the kernel refuses the transaction; nothing has changed then.
pub fn create<'a>(transits: impl Iterator<Item = &'a Transit>) -> io::Result<()> {
    let transits: Vec<_> = transits.collect();
    let mut socket = Socket::default();
    let Table { dormant, closed, entries } = Table::read(&mut socket)?;
    let stays = |entry: &&Entry| entry.transit.as_ref().is_some_and(|transit| !transits.contains(&transit));
    socket.transact(|transaction| {
        transaction.add_table();
        if dormant {
            transaction.wake_table();
        }
        entries.iter().filter(|entry| !stays(entry)).for_each(|entry| transaction.delete_rule(&entry.rule));
        for chain in closed.into_iter().map(Chain::opened).chain(chains(&transits)) {
            transaction.add_chain(&chain);
        }
    })
}

/// Removes rules from the calling thread's network namespace, and the table with the last one, at one stroke.
///
/// # Errors
/// When the kernel refuses, also because there is none of these rules.
pub fn delete<'a>(transits: impl Iterator<Item = &'a Transit>) -> io::Result<()> {
    let transits: Vec<_> = transits.collect();
    let mut socket = Socket::default();
    let is_to_go = |entry: &Entry| entry.transit.as_ref().is_some_and(|transit| transits.contains(&transit));
    let (goes, stays): (Vec<_>, Vec<_>) = entries(&mut socket)?.into_iter().partition(is_to_go);
    if goes.is_empty() {
        return Err(io::ErrorKind::NotFound.into());
    }
    if stays.iter().all(|entry| entry.transit.is_none()) {
        socket.transact(Transaction::delete_table)?;
    } else {
        socket.transact(|transaction| goes.iter().for_each(|entry| transaction.delete_rule(&entry.rule)))?;
    }
    socket.close_in_child()
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
