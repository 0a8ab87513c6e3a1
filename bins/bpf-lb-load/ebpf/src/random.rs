//! Random numbers.

use aya_ebpf::helpers::generated::bpf_get_prandom_u32;
use bpf_lb_abi::scramble;

use crate::setting::setting;

/// So that not each node's sockets choose alike. The loader sets it.
#[unsafe(no_mangle)]
static SEED: u32 = 0;

/// Where a number is taken from, should one be needed: a cookie, which is never 0, or 0 for the kernel.
#[derive(Clone, Copy)]
pub(crate) struct Random(u64);

impl Random {
    /// The cookie of a new socket, which no other one has, and which is known: to ask the kernel for a number takes as long as a
    /// third of all that connect() does here.
    #[inline(always)]
    pub(crate) fn of_new_socket(cookie: u64) -> Self {
        Self(cookie)
    }

    #[inline(always)]
    pub(crate) fn of_kernel() -> Self {
        Self(0)
    }

    /// The same one each time for a new socket.
    #[inline(always)]
    pub(crate) fn number(self) -> u64 {
        // SAFETY: takes no arguments.
        let word = if self.0 == 0 { unsafe { bpf_get_prandom_u32() }.into() } else { self.0 };
        scramble(word ^ u64::from(setting(&SEED)) << 32)
    }
}
