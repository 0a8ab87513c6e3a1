//! Where the kernel has what the programs read of a socket: its BTF tells, and the programs are told by the loader.

use std::fs;

use anyhow::{Context as _, Result, anyhow};
use bpf_lb_abi::{RDONLY_CAST, SockTypes};
use btfparse::{Error, ErrorKind, Offset, Readable, TypeInformation};
use common::bpf;

/// What the kernel says of itself.
const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

/// How the programs read the kernel's sockets.
#[derive(Clone, Copy, Debug)]
pub struct Sockets {
    /// What is there to read.
    pub types: SockTypes,
    /// The number of `bpf_rdonly_cast`.
    cast: u32,
}

impl Sockets {
    /// Asks this kernel.
    ///
    /// # Errors
    /// When it has no BTF, no such function (before Linux 6.2), or lets nobody use it who has no `CAP_PERFMON`.
    pub fn find() -> Result<Self> {
        let sockets = Self::parse(fs::read(VMLINUX).context(VMLINUX)?)?;
        for kind in [bpf::CONNECT, bpf::SOCK_RELEASE] {
            bpf::verify(kind, &sockets.probe()).context("load a program that calls it")?;
        }
        Ok(sockets)
    }

    fn parse(btf: Vec<u8>) -> Result<Self> {
        let btf = TypeInformation::new(&Bytes(btf)).map_err(|error| anyhow!("{VMLINUX}: {error:?}"))?;
        let id = |name| btf.id_of(name).with_context(|| format!("{VMLINUX}: no {name}"));
        let member = |of, name| match btf.offset_of(of, name) {
            Ok((_, Offset::ByteOffset(offset))) => Ok(offset),
            other => Err(anyhow!("{VMLINUX}: {name}: {other:?}")),
        };
        let (sock_common, tcp_sock) = (id("sock_common")?, id("tcp_sock")?);
        let cookie = member(sock_common, "skc_cookie")?;
        let (net, net_cookie) = (member(sock_common, "skc_net")?, member(id("net")?, "net_cookie")?);
        // A kernel without Multipath TCP has no such member.
        let (tcp_sock, is_mptcp) = member(tcp_sock, "is_mptcp").map_or((0, 0), |offset| (tcp_sock, offset));
        let types = SockTypes { sock_common, cookie, net, net_cookie, tcp_sock, is_mptcp };
        Ok(Self { types, cast: id("bpf_rdonly_cast")? })
    }

    /// Puts the calls into the programs.
    pub fn put(&self, object: &mut [u8]) {
        let placeholder = MOVE.with(RDONLY_CAST).bytes();
        for instruction in object.chunks_exact_mut(placeholder.len()).filter(|it| **it == placeholder) {
            instruction.copy_from_slice(&self.call().bytes());
        }
    }

    /// A program that reads what the others do, from the socket that is its context.
    fn probe(&self) -> Vec<[u8; 8]> {
        let SockTypes { sock_common, cookie, net, net_cookie, tcp_sock, is_mptcp } = self.types;
        let cast = |kind: u32| [COPY.to(1).from(6), MOVE.to(2).with(kind as i32), self.call()];
        let load = |offset: u32| LOAD_LONG.from(0).at(offset as i16);
        let mut program = vec![COPY.to(6).from(1)];
        program.extend(cast(sock_common));
        program.extend([load(cookie).to(1), load(net), load(net_cookie)]);
        if tcp_sock != 0 {
            program.extend(cast(tcp_sock));
            program.push(LOAD_BYTE.from(0).at(is_mptcp as i16));
        }
        program.extend([MOVE.with(1), EXIT]);
        program.into_iter().map(Instruction::bytes).collect()
    }

    const fn call(&self) -> Instruction {
        CALL_KERNEL_FUNCTION.with(self.cast as i32)
    }
}

/// Whether the kernel takes a program that calls a helper with the socket of its context alone.
pub fn can_call_with_socket(helper: i32) -> bool {
    /// Of `sk` in `struct bpf_sock_addr`.
    const SK: i16 = 64;
    let program = [LOAD_LONG.to(1).from(1).at(SK), CALL_HELPER.with(helper), MOVE.with(1), EXIT];
    bpf::verify(bpf::CONNECT, &program.map(Instruction::bytes)).is_ok()
}

/// The kernel's `struct bpf_insn` (include/uapi/linux/bpf.h), on a machine with the low byte first.
#[derive(Clone, Copy, Debug)]
struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    value: i32,
}

const fn instruction(code: u8) -> Instruction {
    Instruction { code, registers: 0, offset: 0, value: 0 }
}

/// `BPF_ALU64 | BPF_MOV | BPF_K`.
const MOVE: Instruction = instruction(0xb7);
/// `BPF_ALU64 | BPF_MOV | BPF_X`.
const COPY: Instruction = instruction(0xbf);
/// `BPF_LDX | BPF_MEM | BPF_DW`.
const LOAD_LONG: Instruction = instruction(0x79);
/// `BPF_LDX | BPF_MEM | BPF_B`.
const LOAD_BYTE: Instruction = instruction(0x71);
/// `BPF_JMP | BPF_CALL`.
const CALL_HELPER: Instruction = instruction(0x85);
/// The same, of `BPF_PSEUDO_KFUNC_CALL`.
const CALL_KERNEL_FUNCTION: Instruction = CALL_HELPER.from(2);
/// `BPF_JMP | BPF_EXIT`.
const EXIT: Instruction = instruction(0x95);

impl Instruction {
    const fn to(self, register: u8) -> Self {
        Self { registers: self.registers | register, ..self }
    }
    const fn from(self, register: u8) -> Self {
        Self { registers: self.registers | register << 4, ..self }
    }
    const fn at(self, offset: i16) -> Self {
        Self { offset, ..self }
    }
    const fn with(self, value: i32) -> Self {
        Self { value, ..self }
    }
    fn bytes(self) -> [u8; 8] {
        let ([low, high], [a, b, c, d]) = (self.offset.to_le_bytes(), self.value.to_le_bytes());
        [self.code, self.registers, low, high, a, b, c, d]
    }
}

/// What btfparse reads.
struct Bytes(Vec<u8>);

impl Readable for Bytes {
    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), Error> {
        let bytes = usize::try_from(offset).ok().and_then(|offset| self.0.get(offset..)?.get(..buffer.len()));
        buffer.copy_from_slice(bytes.ok_or_else(|| Error::new(ErrorKind::EOF, "no more bytes"))?);
        Ok(())
    }
}
