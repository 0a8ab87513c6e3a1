//! The rules for forwarded packets, read from nf_tables, where `iptables` and firewalld write theirs too.

use std::{fmt, io};

use common::object::Family;
use netlink_bindings::nftables::{
    self, CmpOps, CtKeys, ExprOps, IterableDataAttrs, IterableExprAttrs, MetaKeys, Nfgenmsg, PayloadBase, VerdictCode,
};
use netlink_socket2::NetlinkSocket;

const NF_INET_FORWARD: u32 = 2;
const NF_DROP: u32 = 0;
/// `NFPROTO_INET`, `NFPROTO_IPV4`, `NFPROTO_IPV6`: the families whose forward hook sees IP packets.
const FAMILIES: [u8; 3] = [1, 2, 10];

/// A table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// Its family, `NFPROTO_`.
    pub family: u8,
    /// Its name.
    pub name: String,
}

/// A chain and its rules.
#[derive(Clone, Debug)]
pub struct Chain {
    pub table: Table,
    pub name: String,
    /// Whether its policy is to drop.
    pub drops: bool,
    pub rules: Vec<Vec<Term>>,
}

/// The base chains of the forward hook, and all chains of their tables.
#[derive(Clone, Debug, Default)]
pub struct Ruleset {
    pub bases: Vec<Chain>,
    pub chains: Vec<Chain>,
}

/// What a rule says, one after the other.
#[derive(Clone, Debug)]
pub enum Term {
    Load {
        register: u32,
        field: Field,
    },
    Value {
        register: u32,
        value: Vec<u8>,
    },
    Bits {
        from: u32,
        to: u32,
        mask: Vec<u8>,
        xor: Vec<u8>,
    },
    Compare {
        register: u32,
        equal: bool,
        value: Vec<u8>,
    },
    /// iptables' devgroup: the groups of the input and output link, each with a mask.
    Group {
        source: Option<(u32, u32)>,
        destination: Option<(u32, u32)>,
    },
    /// A condition that is not understood here.
    Undecided,
    Verdict(Verdict),
}

/// What a rule may look at.
#[derive(Clone, Copy, Debug)]
pub enum Field {
    InGroup,
    OutGroup,
    InName,
    OutName,
    Protocol,
    /// Bytes of the network header.
    Header {
        offset: u32,
        length: u32,
    },
    State,
    Status,
    Direction,
    Mark,
    Other,
}

/// What a rule decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Accept,
    Drop,
    Jump(String),
    Goto(String),
    Return,
}

impl Table {
    /// Whether packets of a family pass its chains.
    pub fn has(&self, family: Family) -> bool {
        match self.family {
            2 => family == Family::Ipv4,
            10 => family == Family::Ipv6,
            _ => true,
        }
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = match self.family {
            2 => "ip",
            10 => "ip6",
            _ => "inet",
        };
        write!(f, "table {family} {}", self.name)
    }
}

impl Ruleset {
    /// The chain of this name in a table.
    pub fn chain(&self, table: &Table, name: &str) -> Option<&Chain> {
        self.chains.iter().find(|chain| chain.table == *table && chain.name == name)
    }
}

/// The rules of the calling thread's network namespace.
///
/// # Errors
/// When the kernel refuses a dump.
pub fn read() -> io::Result<Ruleset> {
    let mut socket = NetlinkSocket::new();
    let mut ruleset = Ruleset::default();
    for family in FAMILIES {
        let bases = bases(&mut socket, family)?;
        let mut tables: Vec<Table> = bases.iter().map(|base| base.table.clone()).collect();
        tables.dedup();
        for table in tables {
            ruleset.chains.extend(chains(&mut socket, table)?);
        }
        ruleset.bases.extend(bases);
    }
    for base in &mut ruleset.bases {
        let same = |chain: &&Chain| chain.table == base.table && chain.name == base.name;
        base.rules = ruleset.chains.iter().find(same).map(|chain| chain.rules.clone()).unwrap_or_default();
    }
    Ok(ruleset)
}

fn header(family: u8) -> Nfgenmsg {
    Nfgenmsg { nfgen_family: family, ..Default::default() }
}

fn bases(socket: &mut NetlinkSocket, family: u8) -> io::Result<Vec<Chain>> {
    let mut bases = vec![];
    let request = nftables::Request::new().op_getchain_dump(&header(family));
    let mut replies = socket.request(&request)?;
    while let Some(reply) = replies.recv() {
        let (_, attributes) = reply.map_err(io::Error::from)?;
        if !attributes.get_hook().and_then(|hook| hook.get_num()).is_ok_and(|number| number == NF_INET_FORWARD) {
            continue;
        }
        if let (Ok(table), Ok(name)) = (attributes.get_table(), attributes.get_name()) {
            bases.push(Chain {
                table: Table { family, name: table.to_string_lossy().into_owned() },
                name: name.to_string_lossy().into_owned(),
                drops: attributes.get_policy().is_ok_and(|policy| policy == NF_DROP),
                rules: vec![],
            });
        }
    }
    Ok(bases)
}

/// The chains of a table that have rules.
fn chains(socket: &mut NetlinkSocket, table: Table) -> io::Result<Vec<Chain>> {
    let mut chains: Vec<Chain> = vec![];
    let mut request = nftables::Request::new().op_getrule_dump(&header(table.family));
    request.encode().push_table_bytes(table.name.as_bytes());
    let mut replies = socket.request(&request)?;
    while let Some(reply) = replies.recv() {
        let (_, attributes) = reply.map_err(io::Error::from)?;
        let (Ok(name), Ok(expressions)) = (attributes.get_chain(), attributes.get_expressions()) else { continue };
        let name = name.to_string_lossy();
        let rule = expressions.get_elem().filter_map(|element| term(&element)).collect();
        // The kernel lists a chain's rules one after the other.
        match chains.last_mut().filter(|chain| chain.name == name) {
            Some(chain) => chain.rules.push(rule),
            None => {
                chains.push(Chain { table: table.clone(), name: name.into_owned(), drops: false, rules: vec![rule] })
            }
        }
    }
    Ok(chains)
}

/// What an expression says; `None` for one that neither decides nor changes anything here.
fn term(element: &IterableExprAttrs<'_>) -> Option<Term> {
    let name = element.get_name().map(|name| name.to_string_lossy()).unwrap_or_default();
    if matches!(&*name, "counter" | "log" | "objref" | "last" | "notrack") {
        return None;
    }
    if name == "reject" {
        return Some(Term::Verdict(Verdict::Drop));
    }
    let Ok(data) = element.get_data() else { return Some(Term::Undecided) };
    match data {
        ExprOps::Match(xt) if xt.get_name().is_ok_and(|name| name.to_bytes() == b"comment") => None,
        ExprOps::Meta(meta) if meta.get_sreg().is_ok() => None,
        ExprOps::Ct(ct) if ct.get_sreg().is_ok() => None,
        ExprOps::Target(xt) => match xt.get_name().map(|name| name.to_bytes()) {
            Ok(b"REJECT") => Some(Term::Verdict(Verdict::Drop)),
            _ => None,
        },
        data => Some(condition(data).unwrap_or(Term::Undecided)),
    }
}

fn condition(data: ExprOps<'_>) -> Option<Term> {
    let bytes = |data: IterableDataAttrs<'_>| data.get_value().ok().map(<[u8]>::to_vec);
    Some(match data {
        ExprOps::Meta(meta) => Term::Load { register: meta.get_dreg().ok()?, field: meta_field(meta.get_key().ok()?) },
        ExprOps::Ct(ct) => Term::Load { register: ct.get_dreg().ok()?, field: ct_field(ct.get_key().ok()?) },
        ExprOps::Payload(payload) => {
            let is_ip = payload.get_base().ok()? == PayloadBase::NetworkHeader as u32;
            let (offset, length) = (payload.get_offset().ok()?, payload.get_len().ok()?);
            let field = if is_ip { Field::Header { offset, length } } else { Field::Other };
            Term::Load { register: payload.get_dreg().ok()?, field }
        }
        ExprOps::Bitwise(bitwise) => Term::Bits {
            from: bitwise.get_sreg().ok()?,
            to: bitwise.get_dreg().ok()?,
            mask: bytes(bitwise.get_mask().ok()?)?,
            xor: bytes(bitwise.get_xor().ok()?)?,
        },
        ExprOps::Cmp(cmp) => {
            let op = cmp.get_op().ok()?;
            let equal = op == CmpOps::Eq as u32;
            if !equal && op != CmpOps::Neq as u32 {
                return None;
            }
            Term::Compare { register: cmp.get_sreg().ok()?, equal, value: bytes(cmp.get_data().ok()?)? }
        }
        ExprOps::Immediate(immediate) => match immediate.get_data().ok()?.get_verdict() {
            Ok(verdict) => {
                let chain = || Some(verdict.get_chain().ok()?.to_string_lossy().into_owned());
                match VerdictCode::from_value(verdict.get_code().ok()?.into())? {
                    VerdictCode::Accept => Term::Verdict(Verdict::Accept),
                    VerdictCode::Drop => Term::Verdict(Verdict::Drop),
                    VerdictCode::Jump => Term::Verdict(Verdict::Jump(chain()?)),
                    VerdictCode::Goto => Term::Verdict(Verdict::Goto(chain()?)),
                    VerdictCode::Return => Term::Verdict(Verdict::Return),
                    _ => return None,
                }
            }
            Err(_) => Term::Value { register: immediate.get_dreg().ok()?, value: bytes(immediate.get_data().ok()?)? },
        },
        ExprOps::Match(xt) if xt.get_name().ok()?.to_bytes() == b"devgroup" => devgroup(xt.get_info().ok()?)?,
        _ => return None,
    })
}

fn meta_field(key: u32) -> Field {
    match key {
        key if key == MetaKeys::Iifgroup as u32 => Field::InGroup,
        key if key == MetaKeys::Oifgroup as u32 => Field::OutGroup,
        key if key == MetaKeys::Iifname as u32 => Field::InName,
        key if key == MetaKeys::Oifname as u32 => Field::OutName,
        key if key == MetaKeys::Nfproto as u32 => Field::Protocol,
        key if key == MetaKeys::Mark as u32 => Field::Mark,
        _ => Field::Other,
    }
}

fn ct_field(key: u32) -> Field {
    match key {
        key if key == CtKeys::State as u32 => Field::State,
        key if key == CtKeys::Status as u32 => Field::Status,
        key if key == CtKeys::Direction as u32 => Field::Direction,
        key if key == CtKeys::Mark as u32 => Field::Mark,
        _ => Field::Other,
    }
}

/// `struct xt_devgroup_info`: flags (1 source, 2 not, 4 destination, 8 not), then each group and its mask.
pub fn devgroup(info: &[u8]) -> Option<Term> {
    let number = |index: usize| Some(u32::from_ne_bytes(info.get(index * 4..index * 4 + 4)?.try_into().ok()?));
    let flags = number(0)?;
    let side = |flag: u32, index: usize| Some((number(index)?, number(index + 1)?)).filter(|_| flags & flag != 0);
    (flags & 0b1010 == 0).then(|| Term::Group { source: side(1, 1), destination: side(4, 3) })
}
