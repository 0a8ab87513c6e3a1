//! The nftables table of a pod: a connection that came in through the link to the node gets a conntrack mark, and its
//! replies get a packet mark, by which a policy rule sends them back through that link.

use std::io;

use netlink_bindings::nftables::{CtKeys, MetaKeys};
use nix::libc;

use crate::{
    nft::{Chain, Expression, Socket, Statements, Transaction},
    object::{Mark, Marks},
};

/// `NF_CT_STATE_BIT(IP_CT_NEW)`.
const CT_STATE_NEW: u32 = 8;
const IP_CT_DIR_REPLY: u8 = 1;

fn bits(mask: u32, xor: u32) -> Expression {
    Expression::Bits { mask: mask.to_ne_bytes().to_vec(), xor: xor.to_ne_bytes().to_vec() }
}

/// Loads the mark into the register. Where all its bits are ours there is nothing to keep.
fn mark_over(load: Expression, Mark { value, mask }: Mark) -> Statements {
    if mask == u32::MAX {
        return vec![Expression::Value(value.to_ne_bytes().to_vec())];
    }
    vec![load, bits(!mask, value)]
}

fn mark_connection(dev: &str, mark: Mark) -> Statements {
    let mut name = dev.as_bytes().to_vec();
    name.resize(libc::IFNAMSIZ, 0);
    let mut statements = vec![
        Expression::LoadMeta(MetaKeys::Iifname as u32),
        Expression::Equal(name),
        Expression::LoadCt(CtKeys::State as u32),
        bits(CT_STATE_NEW, 0),
        Expression::NotEqual(0u32.to_ne_bytes().to_vec()),
    ];
    statements.extend(mark_over(Expression::LoadCt(CtKeys::Mark as u32), mark));
    statements.push(Expression::SetCt(CtKeys::Mark as u32));
    statements
}

fn mark_replies(mark: Mark) -> Statements {
    let mut statements = vec![
        Expression::LoadCt(CtKeys::Direction as u32),
        Expression::Equal(vec![IP_CT_DIR_REPLY]),
        Expression::LoadCt(CtKeys::Mark as u32),
    ];
    statements.extend((mark.mask != u32::MAX).then(|| bits(mark.mask, 0)));
    statements.push(Expression::Equal(mark.value.to_ne_bytes().to_vec()));
    statements.extend(mark_over(Expression::LoadMeta(MetaKeys::Mark as u32), mark));
    statements.push(Expression::SetMeta(MetaKeys::Mark as u32));
    statements
}

/// The mark that replies get by a rule of ours.
fn mark_of(rule: &Statements) -> Option<Mark> {
    let number = |bytes: &Vec<u8>| Some(u32::from_ne_bytes(bytes.as_slice().try_into().ok()?));
    match rule.as_slice() {
        [_, _, Expression::LoadCt(_), Expression::Bits { mask, .. }, Expression::Equal(value), ..] => {
            Some(Mark { value: number(value)?, mask: number(mask)? })
        }
        [_, _, Expression::LoadCt(_), Expression::Equal(value), ..] => {
            Some(Mark { value: number(value)?, mask: u32::MAX })
        }
        _ => None,
    }
}

/// The chains as we write them. `route` makes the kernel look the route up again when the mark has changed.
fn chains(dev: &str, mark: Mark) -> Vec<Chain> {
    let chain = |name, kind, hook, rules| Chain::new(name, kind, hook, libc::NF_IP_PRI_MANGLE, rules);
    let prerouting = vec![mark_connection(dev, mark), mark_replies(mark)];
    vec![
        chain("prerouting", "filter", libc::NF_INET_PRE_ROUTING, prerouting),
        chain("output", "route", libc::NF_INET_LOCAL_OUT, vec![mark_replies(mark)]),
    ]
}

/// The table of the calling thread's network namespace.
///
/// # Errors
/// When the kernel refuses a dump for another reason than that there is no such table or no nf_tables.
pub fn find() -> io::Result<Option<Marks>> {
    let mut socket = Socket::default();
    let Some(dormant) = socket.is_dormant()? else { return Ok(None) };
    let found = socket.chains()?;
    let dev = found.iter().flat_map(|chain| &chain.rules).find_map(input_dev).unwrap_or_default();
    let mark = found.iter().flat_map(|chain| &chain.rules).rev().find_map(mark_of).unwrap_or_default();
    let as_written = !dormant && found == chains(&dev, mark);
    let state = dormant.then(|| "flags dormant".to_owned());
    let altered =
        if as_written { vec![] } else { state.into_iter().chain(found.iter().map(|c| format!("{c:?}"))).collect() };
    Ok(Some(Marks { dev, mark, altered }))
}

/// Makes the table in the calling thread's network namespace, at one stroke.
///
/// # Errors
/// When the kernel refuses the transaction, also because there is such a table; nothing has changed then.
pub fn create(marks: &Marks) -> io::Result<()> {
    Socket::default().transact(|transaction| {
        transaction.create_table();
        chains(&marks.dev, marks.mark).iter().for_each(|chain| transaction.add_chain(chain));
    })
}

/// Removes the table from the calling thread's network namespace.
///
/// # Errors
/// When the kernel refuses the transaction, also because there is no such table.
pub fn delete() -> io::Result<()> {
    let mut socket = Socket::default();
    socket.transact(Transaction::delete_table)?;
    socket.close_in_child()
}

fn input_dev(rule: &Statements) -> Option<String> {
    match rule.as_slice() {
        [Expression::LoadMeta(_), Expression::Equal(name), ..] => {
            let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
            Some(String::from_utf8_lossy(&name[..end]).into_owned())
        }
        _ => None,
    }
}
