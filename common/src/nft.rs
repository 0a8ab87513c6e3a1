//! nf_tables over netlink (`NETLINK_NETFILTER`), for not every node has `nft`. All is about the table `inet underpass`: a pod's, of
//! which [`crate::marks`] tells, or the node's, of which [`crate::transit`] tells.

use std::{
    ffi::{CStr, CString},
    fs::File,
    io, iter, mem,
};

use netlink_bindings::{
    nftables::{
        Chained, CmpOps, ExprOps, IterableChainAttrs, IterableDataAttrs, IterableExprAttrs, Nfgenmsg, PayloadBase,
        PushExprListAttrs, Registers, Request, TableFlags,
    },
    traits::Pusher,
};
use netlink_socket2::{NetlinkSocket, ReplyError};
use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::{
    libc,
    sys::socket::{setsockopt, sockopt::SndBufForce},
    unistd::{ForkResult, dup2_stderr, dup2_stdin, dup2_stdout, fork, pipe, read},
};

use crate::{
    object::NFT_TABLE,
    wire::{self, u16_at, u32_at},
};

/// What a base chain does with a packet on which none of its rules decides, if nobody says it.
const ACCEPT: u32 = libc::NF_ACCEPT as u32;
/// Where the flags are in `struct nlmsghdr`.
const FLAGS: usize = mem::offset_of!(libc::nlmsghdr, nlmsg_flags);
/// What has nothing but a name.
const PLAIN: [&CStr; 2] = [c"notrack", c"masq"];
/// What stands for an expression of a kind that we never write: a rule that has one is none of ours.
const UNKNOWN: Expression = Expression::Plain(c"unknown");

/// One expression over register 1, the only one that our rules need.
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

/// What a rule says, one after the other.
pub(crate) type Statements = Vec<Expression>;

/// A base chain.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Chain {
    pub(crate) name: String,
    pub(crate) kind: String,
    pub(crate) hook: u32,
    pub(crate) priority: i32,
    pub(crate) policy: u32,
    pub(crate) rules: Vec<Statements>,
}

/// A rule, and by what the kernel knows it.
pub(crate) struct Rule {
    pub(crate) chain: String,
    handle: u64,
    pub(crate) statements: Statements,
}

/// The bits of the mask.
pub(crate) fn masked(mask: Vec<u8>) -> Expression {
    Expression::Bits { xor: vec![0; mask.len()], mask }
}

impl Chain {
    /// One that accepts what none of its rules decides on.
    pub(crate) fn new(name: &str, kind: &str, hook: i32, priority: i32, rules: Vec<Statements>) -> Self {
        Self { name: name.to_owned(), kind: kind.to_owned(), hook: hook as u32, priority, policy: ACCEPT, rules }
    }

    /// Whether its policy is to accept.
    pub(crate) fn is_open(&self) -> bool {
        self.policy == ACCEPT
    }

    /// The same with that policy.
    pub(crate) fn opened(self) -> Self {
        Self { policy: ACCEPT, ..self }
    }
}

/// Sockets in the network namespace of the thread that first asks something of them.
#[derive(Default)]
pub(crate) struct Socket {
    questions: NetlinkSocket,
    changes: Option<netlink_sys::Socket>,
}

impl Socket {
    /// Whether the table is dormant, so that none of its chains is in use (`NFT_TABLE_F_DORMANT`); `None` where there is no table.
    pub(crate) fn is_dormant(&mut self) -> io::Result<Option<bool>> {
        let mut request = Request::new().op_gettable_do(&header());
        request.encode().push_name(&cstring(NFT_TABLE));
        let mut replies = self.questions.request(&request)?;
        let flags = replies.recv_one().map(|(_, table)| table.get_flags().unwrap_or_default());
        present(flags.map(|flags| flags & TableFlags::Dormant as u32 != 0))
    }

    /// A base chain of the table, without its rules.
    pub(crate) fn chain(&mut self, name: &str) -> io::Result<Option<Chain>> {
        let mut request = Request::new().op_getchain_do(&header());
        request.encode().push_table(&cstring(NFT_TABLE)).push_name(&cstring(name));
        let mut replies = self.questions.request(&request)?;
        Ok(present(replies.recv_one().map(|(_, attributes)| parse_chain(&attributes).ok()))?.flatten())
    }

    /// The base chains of the table, with their rules.
    pub(crate) fn chains(&mut self) -> io::Result<Vec<Chain>> {
        let mut chains = Vec::new();
        let request = Request::new().op_getchain_dump(&header());
        let mut replies = self.questions.request(&request)?;
        while let Some(reply) = replies.recv() {
            let (_, attributes) = reply.map_err(io::Error::from)?;
            if attributes.get_table().is_ok_and(|table| table.to_bytes() == NFT_TABLE.as_bytes()) {
                chains.extend(parse_chain(&attributes).ok());
            }
        }
        for Rule { chain, statements, .. } in self.rules()? {
            if let Some(chain) = chains.iter_mut().find(|known| known.name == chain) {
                chain.rules.push(statements);
            }
        }
        Ok(chains)
    }

    /// The rules of the table.
    pub(crate) fn rules(&mut self) -> io::Result<Vec<Rule>> {
        let mut request = Request::new().op_getrule_dump(&header());
        request.encode().push_table(&cstring(NFT_TABLE));
        let mut rules = Vec::new();
        let mut replies = self.questions.request(&request)?;
        while let Some(reply) = replies.recv() {
            let Some((_, attributes)) = present(reply)? else { break };
            let expressions = attributes.get_expressions().map_err(io::Error::other)?;
            rules.push(Rule {
                chain: attributes.get_chain().map_err(io::Error::other)?.to_string_lossy().into_owned(),
                handle: attributes.get_handle().map_err(io::Error::other)?,
                statements: expressions.get_elem().map(|element| decode(&element).unwrap_or(UNKNOWN)).collect(),
            });
        }
        Ok(rules)
    }

    /// Does what `fill` says all at one stroke, or nothing of it.
    pub(crate) fn transact(&mut self, fill: impl FnOnce(&mut Transaction)) -> io::Result<()> {
        let mut transaction = Transaction(Chained::new(0));
        let mut limits = Nfgenmsg::new();
        limits.set_res_id(libc::NFNL_SUBSYS_NFTABLES as u16);
        transaction.0.request().op_batch_begin_do(&limits);
        fill(&mut transaction);
        transaction.0.request().op_batch_end_do(&limits);
        let mut batch = transaction.0.finalize();
        let batch = batch.buf_mut();
        ask_once(batch);
        let socket = self.changes.insert(netlink_sys::Socket::new(NETLINK_NETFILTER)?);
        // It goes in one piece or not at all (`netlink_sendmsg`). Who may not have more room has that for some hundred rules.
        let _ = setsockopt(&*socket, SndBufForce, &batch.len());
        // Of many refusals there may be room for some: the first one is enough.
        socket.set_no_enobufs(true)?;
        socket.send(batch, 0)?;
        let (answer, _) = socket.recv_from_full()?;
        let code = wire::messages(&answer).next().and_then(|(_, body)| u32_at(body, 0));
        match code.ok_or(io::ErrorKind::UnexpectedEof)?.cast_signed() {
            0 => Ok(()),
            code => Err(io::Error::from_raw_os_error(-code)),
        }
    }

    /// The last one to close a socket after something was removed waits until the kernel has freed that
    /// (`nft_rcv_nl_event`), for 10 ms and more. It is gone already: let that be a child that nobody waits for.
    #[expect(
        unsafe_code,
        reason = "the child makes plain system calls only, which is safe after fork in a threaded process"
    )]
    pub(crate) fn close_in_child(self) -> io::Result<()> {
        let null = File::options().read(true).write(true).open("/dev/null")?;
        let (parent_is_done, parent_end) = pipe()?;
        if let ForkResult::Child = unsafe { fork() }? {
            // Whoever reads this process's output must not wait for the child.
            let _ = (dup2_stdin(&null), dup2_stdout(&null), dup2_stderr(&null));
            drop(parent_end);
            let _ = read(&parent_is_done, &mut [0]);
            unsafe { libc::_exit(0) }
        }
        drop(self);
        Ok(())
    }
}

/// Takes the question for an answer from each message but the last change, before the batch's end. The kernel answers when it is
/// through with all of them, and says unasked what it refuses (`nfnetlink_rcv_batch`).
fn ask_once(batch: &mut [u8]) {
    let mut messages = beginnings(batch);
    let last_change = messages.len().saturating_sub(2);
    messages.remove(last_change);
    for flags in messages.into_iter().map(|message| message + FLAGS) {
        let others = u16_at(batch, flags).unwrap_or_default() & !(libc::NLM_F_ACK as u16);
        batch[flags..][..2].copy_from_slice(&others.to_ne_bytes());
    }
}

/// Where each message of a batch begins.
fn beginnings(batch: &[u8]) -> Vec<usize> {
    let next = |message: &usize| Some(message + u32_at(batch, *message)? as usize);
    iter::successors(Some(0), next).take_while(|message| *message < batch.len()).collect()
}

/// Changes that come together.
pub(crate) struct Transaction(Chained<'static>);

impl Transaction {
    /// Makes the table; fails where there is one.
    pub(crate) fn create_table(&mut self) {
        self.0.request().set_create().set_excl().op_newtable_do(&header()).encode().push_name(&cstring(NFT_TABLE));
    }

    /// Makes the table where there is none.
    pub(crate) fn add_table(&mut self) {
        self.0.request().set_create().op_newtable_do(&header()).encode().push_name(&cstring(NFT_TABLE));
    }

    /// Puts a dormant table to use.
    pub(crate) fn wake_table(&mut self) {
        self.0.request().op_newtable_do(&header()).encode().push_name(&cstring(NFT_TABLE)).push_flags(0);
    }

    /// Removes the table with all that is in it.
    pub(crate) fn delete_table(&mut self) {
        self.0.request().op_deltable_do(&header()).encode().push_name(&cstring(NFT_TABLE));
    }

    /// Adds a chain with its rules; where there is such a chain, adds the rules to it.
    pub(crate) fn add_chain(&mut self, chain: &Chain) {
        let (table, name) = (cstring(NFT_TABLE), cstring(&chain.name));
        self.0
            .request()
            .set_create()
            .op_newchain_do(&header())
            .encode()
            .push_table(&table)
            .push_name(&name)
            .nested_hook()
            .push_num(chain.hook)
            .push_priority(chain.priority)
            .end_nested()
            .push_policy(chain.policy)
            .push_type(&cstring(&chain.kind));
        for rule in &chain.rules {
            let mut request = self.0.request().set_create().set_append().op_newrule_do(&header());
            let list = request.encode().push_table(&table).push_chain(&name).nested_expressions();
            rule.iter().fold(list, encode).end_nested();
        }
    }

    /// Removes a rule.
    pub(crate) fn delete_rule(&mut self, Rule { chain, handle, .. }: &Rule) {
        let mut request = self.0.request().op_delrule_do(&header());
        request.encode().push_table(&cstring(NFT_TABLE)).push_chain(&cstring(chain)).push_handle(*handle);
    }
}

fn header() -> Nfgenmsg {
    Nfgenmsg { nfgen_family: libc::NFPROTO_INET as u8, ..Default::default() }
}

fn cstring(text: &str) -> CString {
    CString::new(text).unwrap_or_default()
}

fn present<T>(found: Result<T, ReplyError>) -> io::Result<Option<T>> {
    match found.map_err(io::Error::from) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        found => found.map(Some),
    }
}

fn parse_chain(attributes: &IterableChainAttrs<'_>) -> Result<Chain, ReplyError> {
    let hook = attributes.get_hook()?;
    Ok(Chain {
        name: attributes.get_name()?.to_string_lossy().into_owned(),
        kind: attributes.get_type()?.to_string_lossy().into_owned(),
        hook: hook.get_num()?,
        priority: hook.get_priority()?,
        policy: attributes.get_policy().unwrap_or(ACCEPT),
        rules: vec![],
    })
}

fn encode<P: Pusher>(list: PushExprListAttrs<P>, expression: &Expression) -> PushExprListAttrs<P> {
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

/// `None` for an expression of a kind that we never write.
fn decode(element: &IterableExprAttrs<'_>) -> Option<Expression> {
    if let Some(name) = PLAIN.into_iter().find(|name| element.get_name().is_ok_and(|found| found == *name)) {
        return Some(Expression::Plain(name));
    }
    let data = |attributes: IterableDataAttrs<'_>| attributes.get_value().ok().map(<[u8]>::to_vec);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_batch_only_the_last_change_asks_for_an_answer_and_nothing_else_changes() {
        let limits = Nfgenmsg::new();
        let mut transaction = Transaction(Chained::new(0));
        transaction.0.request().op_batch_begin_do(&limits);
        transaction.add_table();
        transaction.add_chain(&Chain::new("output", "route", libc::NF_INET_LOCAL_OUT, 0, vec![vec![masked(vec![1])]]));
        transaction.0.request().op_batch_end_do(&limits);
        let mut batch = transaction.0.finalize();
        let before = batch.buf().clone();
        ask_once(batch.buf_mut());
        let flags: Vec<_> = beginnings(&before).into_iter().map(|message| message + FLAGS).collect();
        let ask = |batch: &[u8]| flags.iter().map(|at| u16_at(batch, *at).unwrap() & 4 != 0).collect::<Vec<_>>();
        assert_eq!(ask(&before), [true; 5]);
        assert_eq!(ask(batch.buf()), [false, false, false, true, false]);
        let changed = before.iter().zip(batch.buf()).filter(|(before, after)| before != after);
        assert_eq!(changed.count(), 4);
    }
}
