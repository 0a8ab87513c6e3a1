//! The nftables table of a pod: a connection that came in through the link to the node gets a conntrack mark, and its
//! replies get a packet mark, by which a policy rule sends them back through that link.
//!
//! Written over netlink (`NETLINK_NETFILTER`, `nf_tables`): not every node has `nft`.

use std::{
    ffi::{CStr, CString},
    fs::File,
    io,
};

use netlink_bindings::nftables::{
    self, Chained, CmpOps, CtKeys, ExprOps, IterableExprAttrs, IterableExprListAttrs, MetaKeys, Nfgenmsg, PayloadBase,
    PushExprListAttrs, Registers, TableFlags,
};
use netlink_socket2::{NetlinkSocket, ReplyError};
use nix::{
    libc,
    unistd::{ForkResult, dup2_stderr, dup2_stdin, dup2_stdout, fork, pipe, read},
};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Name of the table, in the family `inet`.
pub const TABLE: &str = "underpass";

const NFPROTO_INET: u8 = 1;
pub(crate) const NF_INET_PRE_ROUTING: u32 = 0;
const NF_INET_LOCAL_OUT: u32 = 3;
pub(crate) const NF_IP_PRI_MANGLE: i32 = -150;
const NFNL_SUBSYS_NFTABLES: u16 = 10;
/// `NF_CT_STATE_BIT(IP_CT_NEW)`.
const CT_STATE_NEW: u32 = 8;
/// What a base chain does with a packet on which none of its rules decides, if nobody says it.
pub(crate) const NF_ACCEPT: u32 = 1;
const IP_CT_DIR_REPLY: u8 = 1;
const IFNAMSIZ: usize = 16;
/// What has nothing but a name.
const PLAIN: [&CStr; 2] = [c"notrack", c"masq"];
/// What stands for an expression of a kind that we never write: a rule that has one is none of ours.
const UNKNOWN: Expression = Expression::Plain(c"unknown");

/// The nftables table `inet underpass` of a pod, which marks replies to what came in through `dev`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Marks {
    /// Name of the link through which the node reaches the pod.
    pub dev: String,
    /// The mark.
    #[serde(default)]
    pub mark: Mark,
    /// The chains as found, where they are not as we write them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub altered: Vec<String>,
}

/// The mark of a connection that came in through the node, and of its replies. Only the bits of the mask are ours to read and to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Mark {
    /// Its value.
    pub value: u32,
    /// The bits that count.
    pub mask: u32,
}

/// That of the first version: a pod that it served keeps it.
impl Default for Mark {
    fn default() -> Self {
        Self { value: 1, mask: u32::MAX }
    }
}

/// One nftables expression over register 1, the only one that our rules need.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Expression {
    LoadMeta(u32),
    LoadCt(u32),
    /// Bytes of the network header.
    LoadHeader {
        offset: u32,
        length: u32,
    },
    /// `(register & mask) ^ xor`.
    Bits {
        mask: Vec<u8>,
        xor: Vec<u8>,
    },
    Equal(Vec<u8>),
    NotEqual(Vec<u8>),
    Value(Vec<u8>),
    SetMeta(u32),
    SetCt(u32),
    /// One that is only a name: `notrack`, `masq`.
    Plain(&'static CStr),
}

pub(crate) type Statements = Vec<Expression>;

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Chain {
    pub(crate) name: String,
    pub(crate) kind: String,
    pub(crate) hook: u32,
    pub(crate) priority: i32,
    pub(crate) policy: u32,
    pub(crate) rules: Vec<Statements>,
}

/// The bits of the mask.
pub(crate) fn masked(mask: Vec<u8>) -> Expression {
    Expression::Bits { xor: vec![0; mask.len()], mask }
}

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
    name.resize(IFNAMSIZ, 0);
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
    let chain = |name: &str, kind: &str, hook, rules| Chain {
        name: name.to_owned(),
        kind: kind.to_owned(),
        hook,
        priority: NF_IP_PRI_MANGLE,
        policy: NF_ACCEPT,
        rules,
    };
    vec![
        chain("prerouting", "filter", NF_INET_PRE_ROUTING, vec![mark_connection(dev, mark), mark_replies(mark)]),
        chain("output", "route", NF_INET_LOCAL_OUT, vec![mark_replies(mark)]),
    ]
}

/// The commands of `nft` that make the same table.
pub(crate) fn script(Marks { dev, mark: Mark { value, mask }, .. }: &Marks) -> Vec<String> {
    let (rest, whole) = (!mask, *mask == u32::MAX);
    let is = if whole { format!("ct mark {value:#x}") } else { format!("ct mark and {mask:#x} == {value:#x}") };
    let set = |what: &str| {
        let kept = if whole { String::new() } else { format!("{what} and {rest:#x} or ") };
        format!("{what} set {kept}{value:#x}")
    };
    let reply = format!("ct direction reply {is} {}", set("meta mark"));
    [
        format!("add table inet {TABLE}"),
        format!("add chain inet {TABLE} prerouting '{{ type filter hook prerouting priority mangle; }}'"),
        format!("add chain inet {TABLE} output '{{ type route hook output priority mangle; }}'"),
        format!("add rule inet {TABLE} prerouting iifname {dev} ct state new {}", set("ct mark")),
        format!("add rule inet {TABLE} prerouting {reply}"),
        format!("add rule inet {TABLE} output {reply}"),
    ]
    .map(|command| format!("nft {command}"))
    .to_vec()
}

/// The table of the calling thread's network namespace.
///
/// # Errors
/// When the kernel refuses a dump for another reason than that there is no such table or no nf_tables.
pub fn find() -> io::Result<Option<Marks>> {
    let mut socket = NetlinkSocket::new();
    let Some(dormant) = is_dormant(&mut socket)? else { return Ok(None) };
    let found = dump(&mut socket)?;
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
    transaction(|batch, table| {
        batch.request().set_create().set_excl().op_newtable_do(&header()).encode().push_name(table);
        for chain in chains(&marks.dev, marks.mark) {
            add_chain(batch, table, &chain);
        }
    })
    .map(drop)
}

/// Removes the table from the calling thread's network namespace.
///
/// # Errors
/// When the kernel refuses the transaction, also because there is no such table.
pub fn delete() -> io::Result<()> {
    let socket = transaction(|batch, table| {
        batch.request().op_deltable_do(&header()).encode().push_name(table);
    })?;
    // The last one to close the socket waits until the kernel has freed the table (`nft_rcv_nl_event`), for 10 ms and
    // more. The table is gone already: let that be a child that nobody waits for.
    close_in_child(socket)
}

#[expect(
    unsafe_code,
    reason = "the child makes plain system calls only, which is safe after fork in a threaded process"
)]
pub(crate) fn close_in_child(socket: NetlinkSocket) -> io::Result<()> {
    let null = File::options().read(true).write(true).open("/dev/null")?;
    let (parent_is_done, parent_end) = pipe()?;
    if let ForkResult::Child = unsafe { fork() }? {
        // Whoever reads this process's output must not wait for the child.
        let _ = (dup2_stdin(&null), dup2_stdout(&null), dup2_stderr(&null));
        drop(parent_end);
        let _ = read(&parent_is_done, &mut [0]);
        unsafe { libc::_exit(0) }
    }
    drop(socket);
    Ok(())
}

pub(crate) fn header() -> Nfgenmsg {
    Nfgenmsg { nfgen_family: NFPROTO_INET, ..Default::default() }
}

pub(crate) fn cstring(text: &str) -> CString {
    CString::new(text).unwrap_or_default()
}

pub(crate) fn transaction(fill: impl FnOnce(&mut Chained<'_>, &CStr)) -> io::Result<NetlinkSocket> {
    let mut socket = NetlinkSocket::new();
    let mut batch = Chained::new(socket.reserve_seq(64));
    let mut begin = Nfgenmsg::new();
    begin.set_res_id(NFNL_SUBSYS_NFTABLES);
    batch.request().op_batch_begin_do(&begin);
    fill(&mut batch, &cstring(TABLE));
    batch.request().op_batch_end_do(&begin);
    socket.request_chained(&batch.finalize())?.recv_all()?;
    Ok(socket)
}

/// Adds a chain with its rules; where there is such a chain, adds the rules to it.
pub(crate) fn add_chain(batch: &mut Chained<'_>, table: &CStr, chain: &Chain) {
    let name = cstring(&chain.name);
    batch
        .request()
        .set_create()
        .op_newchain_do(&header())
        .encode()
        .push_table(table)
        .push_name(&name)
        .nested_hook()
        .push_num(chain.hook)
        .push_priority(chain.priority)
        .end_nested()
        .push_policy(chain.policy)
        .push_type(&cstring(&chain.kind));
    for rule in &chain.rules {
        let request = batch.request().set_create().set_append().op_newrule_do(&header());
        let mut request = request;
        let mut list = request.encode().push_table(table).push_chain(&name).nested_expressions();
        for expression in rule {
            list = encode(list, expression);
        }
        list.end_nested();
    }
}

fn encode<P: netlink_bindings::traits::Pusher>(
    list: PushExprListAttrs<P>,
    expression: &Expression,
) -> PushExprListAttrs<P> {
    let register = Registers::Reg1 as u32;
    let element = list.nested_elem();
    match expression {
        Expression::LoadMeta(key) => element.nested_data_meta().push_key(*key).push_dreg(register).end_nested(),
        Expression::SetMeta(key) => element.nested_data_meta().push_key(*key).push_sreg(register).end_nested(),
        Expression::Plain(name) => return element.push_name(name).end_nested(),
        Expression::LoadHeader { offset, length } => element
            .nested_data_payload()
            .push_dreg(register)
            .push_base(PayloadBase::NetworkHeader as u32)
            .push_offset(*offset)
            .push_len(*length)
            .end_nested(),
        Expression::LoadCt(key) => element.nested_data_ct().push_key(*key).push_dreg(register).end_nested(),
        Expression::SetCt(key) => element.nested_data_ct().push_key(*key).push_sreg(register).end_nested(),
        Expression::Bits { mask, xor } => element
            .nested_data_bitwise()
            .push_sreg(register)
            .push_dreg(register)
            .push_len(mask.len() as u32)
            .nested_mask()
            .push_value(mask)
            .end_nested()
            .nested_xor()
            .push_value(xor)
            .end_nested()
            .end_nested(),
        Expression::Equal(value) | Expression::NotEqual(value) => element
            .nested_data_cmp()
            .push_sreg(register)
            .push_op(if matches!(expression, Expression::Equal(_)) { CmpOps::Eq } else { CmpOps::Neq } as u32)
            .nested_data()
            .push_value(value)
            .end_nested()
            .end_nested(),
        Expression::Value(value) => element
            .nested_data_immediate()
            .push_dreg(register)
            .nested_data()
            .push_value(value)
            .end_nested()
            .end_nested(),
    }
    .end_nested()
}

/// Whether the table is dormant, so that none of its chains is in use (`NFT_TABLE_F_DORMANT`); `None` where there is no table.
pub(crate) fn is_dormant(socket: &mut NetlinkSocket) -> io::Result<Option<bool>> {
    let mut request = nftables::Request::new().op_gettable_do(&header());
    request.encode().push_name(&cstring(TABLE));
    let mut replies = socket.request(&request)?;
    present(
        replies.recv_one().map(|(_, table)| table.get_flags().unwrap_or_default() & TableFlags::Dormant as u32 != 0),
    )
}

fn present<T>(found: Result<T, ReplyError>) -> io::Result<Option<T>> {
    match found.map_err(io::Error::from) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        found => found.map(Some),
    }
}

/// A base chain of the table, without its rules.
pub(crate) fn chain(socket: &mut NetlinkSocket, name: &str) -> io::Result<Option<Chain>> {
    let mut request = nftables::Request::new().op_getchain_do(&header());
    request.encode().push_table(&cstring(TABLE)).push_name(&cstring(name));
    let mut replies = socket.request(&request)?;
    Ok(present(replies.recv_one().map(|(_, attributes)| parse_chain(&attributes).ok()))?.flatten())
}

fn parse_chain(attributes: &nftables::IterableChainAttrs<'_>) -> Result<Chain, ReplyError> {
    let hook = attributes.get_hook()?;
    Ok(Chain {
        name: attributes.get_name()?.to_string_lossy().into_owned(),
        kind: attributes.get_type()?.to_string_lossy().into_owned(),
        hook: hook.get_num()?,
        priority: hook.get_priority()?,
        policy: attributes.get_policy().unwrap_or(NF_ACCEPT),
        rules: vec![],
    })
}

fn dump(socket: &mut NetlinkSocket) -> io::Result<Vec<Chain>> {
    let mut chains = Vec::new();
    let request = nftables::Request::new().op_getchain_dump(&header());
    let mut replies = socket.request(&request)?;
    while let Some(reply) = replies.recv() {
        let (_, attributes) = reply.map_err(io::Error::from)?;
        if attributes.get_table().is_ok_and(|table| table.to_bytes() == TABLE.as_bytes()) {
            chains.extend(parse_chain(&attributes).ok());
        }
    }
    for chain in &mut chains {
        chain.rules = dump_rules(socket, &chain.name)?;
    }
    Ok(chains)
}

fn dump_rules(socket: &mut NetlinkSocket, chain: &str) -> io::Result<Vec<Statements>> {
    let mut request = nftables::Request::new().op_getrule_dump(&header());
    request.encode().push_table(&cstring(TABLE)).push_chain(&cstring(chain));
    let mut rules = Vec::new();
    let mut replies = socket.request(&request)?;
    while let Some(reply) = replies.recv() {
        let (_, attributes) = reply.map_err(io::Error::from)?;
        let expressions = attributes.get_expressions().map_err(io::Error::other)?;
        rules.push(statements(&expressions));
    }
    Ok(rules)
}

/// A rule's expressions.
pub(crate) fn statements(expressions: &IterableExprListAttrs<'_>) -> Statements {
    expressions.get_elem().map(|element| decode(&element).unwrap_or(UNKNOWN)).collect()
}

/// `None` for an expression of a kind that we never write.
fn decode(element: &IterableExprAttrs<'_>) -> Option<Expression> {
    if let Some(name) = PLAIN.into_iter().find(|name| element.get_name().is_ok_and(|found| found == *name)) {
        return Some(Expression::Plain(name));
    }
    let data = |attributes: nftables::IterableDataAttrs<'_>| attributes.get_value().ok().map(<[u8]>::to_vec);
    match element.get_data().ok()? {
        ExprOps::Meta(meta) if meta.get_sreg().is_ok() => Some(Expression::SetMeta(meta.get_key().ok()?)),
        ExprOps::Meta(meta) => Some(Expression::LoadMeta(meta.get_key().ok()?)),
        ExprOps::Payload(payload) if payload.get_base().ok()? == PayloadBase::NetworkHeader as u32 => {
            Some(Expression::LoadHeader { offset: payload.get_offset().ok()?, length: payload.get_len().ok()? })
        }
        ExprOps::Ct(ct) if ct.get_sreg().is_ok() => Some(Expression::SetCt(ct.get_key().ok()?)),
        ExprOps::Ct(ct) => Some(Expression::LoadCt(ct.get_key().ok()?)),
        ExprOps::Bitwise(bitwise) => {
            Some(Expression::Bits { mask: data(bitwise.get_mask().ok()?)?, xor: data(bitwise.get_xor().ok()?)? })
        }
        ExprOps::Cmp(cmp) if cmp.get_op().ok()? == CmpOps::Eq as u32 => {
            Some(Expression::Equal(data(cmp.get_data().ok()?)?))
        }
        ExprOps::Cmp(cmp) if cmp.get_op().ok()? == CmpOps::Neq as u32 => {
            Some(Expression::NotEqual(data(cmp.get_data().ok()?)?))
        }
        ExprOps::Immediate(immediate) => Some(Expression::Value(data(immediate.get_data().ok()?)?)),
        _ => None,
    }
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
