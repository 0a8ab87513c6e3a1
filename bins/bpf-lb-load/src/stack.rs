//! What the programs take of the stack, as Linux 6.1 counts it: newer kernels take 16 bytes for what that one takes 32.

use std::collections::{BTreeSet, HashSet};

use aya_obj::{Object, generated::bpf_insn};

use crate::load::OBJECT;

/// `MAX_BPF_STACK`, in bytes.
const STACK: usize = 512;
/// `MAX_CALL_FRAMES`.
const FRAMES: usize = 8;
/// `BPF_REG_FP`.
const FRAME: u8 = 10;

/// A program with all that it calls.
struct Linked<'a> {
    instructions: &'a [bpf_insn],
    /// Where functions begin.
    starts: BTreeSet<usize>,
}

impl<'a> Linked<'a> {
    fn new(instructions: &'a [bpf_insn]) -> Self {
        let called = (0..instructions.len()).filter_map(|at| callee(instructions, at));
        Self { instructions, starts: called.chain([0]).collect() }
    }

    /// Bytes and calls of the deepest chain from the function at `start` (`check_max_stack_depth`).
    fn deepest(&self, start: usize) -> (usize, usize) {
        let end = self.starts.range(start + 1..).next().copied().unwrap_or(self.instructions.len());
        let own = own_stack(&self.instructions[start..end]).max(1).next_multiple_of(32);
        let called = (start..end).filter_map(|at| callee(self.instructions, at)).map(|callee| self.deepest(callee));
        let (bytes, frames) = called.fold((0, 0), |most, next| (most.0.max(next.0), most.1.max(next.1)));
        (own + bytes, 1 + frames)
    }
}

/// The function that the instruction calls (`BPF_PSEUDO_CALL`).
fn callee(instructions: &[bpf_insn], at: usize) -> Option<usize> {
    const CALL: u8 = 0x85;
    let instruction = &instructions[at];
    (instruction.code == CALL && instruction.src_reg() == 1).then(|| at.strict_add_signed(1 + instruction.imm as isize))
}

/// How far below its frame pointer a function reaches, in bytes: by itself, and by addresses that it makes.
fn own_stack(instructions: &[bpf_insn]) -> usize {
    const CLASS: u8 = 0x07;
    const LOAD: u8 = 0x01;
    const STORES: [u8; 2] = [0x02, 0x03];
    const COPY: u8 = 0xbf;
    const ADD: u8 = 0x07;
    let direct = instructions.iter().filter_map(|it| {
        let class = it.code & CLASS;
        let is_frames = class == LOAD && it.src_reg() == FRAME || STORES.contains(&class) && it.dst_reg() == FRAME;
        is_frames.then(|| i32::from(it.off))
    });
    let addresses = instructions.windows(2).filter_map(|pair| {
        let is_copy = pair[0].code == COPY && pair[0].src_reg() == FRAME;
        let is_sum = pair[1].code == ADD && pair[1].dst_reg() == pair[0].dst_reg();
        is_copy.then(|| if is_sum { pair[1].imm } else { panic!("a frame pointer that goes its own way") })
    });
    direct.chain(addresses).min().map_or(0, |lowest| lowest.unsigned_abs() as usize)
}

#[test]
#[cfg_attr(bpf_lb_missing, ignore = "the eBPF programs were not built")]
fn programs_have_room_on_the_stack_of_linux_6_1() {
    let mut object = Object::parse(OBJECT).unwrap();
    let sections: HashSet<_> = object.functions.keys().map(|(section, _)| *section).collect();
    object.relocate_calls(&sections).unwrap();
    let mut most = 0;
    for (name, program) in &object.programs {
        let (bytes, frames) = Linked::new(&object.functions[&program.function_key()].instructions).deepest(0);
        assert!(bytes <= STACK, "{name}: {bytes} bytes");
        assert!(frames <= FRAMES, "{name}: {frames} frames");
        most = most.max(bytes);
    }
    // The largest of them are near to it; if none is, nothing was counted.
    assert!(most > STACK / 2, "{most}");
}
