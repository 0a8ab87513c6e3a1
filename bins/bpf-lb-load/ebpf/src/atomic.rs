//! The kernel's atomic instructions. Rust's BPF target has loads and stores only.

use core::arch::asm;

use bpf_lb_abi::{Long, Word};

/// Adds `change` to a count.
#[inline(always)]
pub(crate) fn count(word: &Word, change: i32) {
    // SAFETY: the word is aligned and may be written by any program.
    unsafe { asm!("lock *(u32 *)({word} + 0) += {change}", word = in(reg) word.as_ptr(), change = in(reg) change) }
}

/// Adds `value`.
#[inline(always)]
pub(crate) fn add(word: &Long, value: u64) {
    // SAFETY: as above.
    unsafe { asm!("lock *(u64 *)({word} + 0) += {value}", word = in(reg) word.as_ptr(), value = in(reg) value) }
}

/// Writes `value` if the word is 0, and says whether it did. Needs Linux 5.12, and 5.18 on arm64.
#[inline(always)]
pub(crate) fn set_if_zero(word: &Long, value: u64) -> bool {
    let found: u64;
    // SAFETY: as above.
    unsafe {
        asm!(
            "r0 = cmpxchg_64({word} + 0, r0, {value})",
            word = in(reg) word.as_ptr(),
            value = in(reg) value,
            inout("r0") 0_u64 => found,
        );
    }
    found == 0
}
