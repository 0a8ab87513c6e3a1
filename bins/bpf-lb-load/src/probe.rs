//! What the load balancer needs of the kernel, and since when it is there.

use anyhow::{Context as _, Result};
use aya::{
    programs::ProgramType,
    sys::{BpfHelper, is_helper_supported},
};

use crate::btf;

/// The first version that has the hooks and all that the programs use.
pub const LINUX: &str = "Linux 5.14 (arm64: 5.18)";

/// A program, and what it is for.
#[derive(Debug)]
pub struct Hook {
    /// Its name, in the object and in the pin directory.
    pub program: &'static str,
    /// Whether there is any use in the others without it.
    pub required: bool,
    /// What does not work without it.
    pub without: &'static str,
    /// Whether it is for keeping node ports free alone.
    pub protects: bool,
}

const fn hook(program: &'static str, without: &'static str) -> Hook {
    Hook { program, required: without.is_empty(), without, protects: false }
}

const fn protects(program: &'static str) -> Hook {
    Hook { protects: true, ..hook(program, "node ports are not kept free") }
}

/// In the order in which they are attached: what undoes a translation is there before the first one is made.
pub const HOOKS: &[Hook] = &[
    hook("sock_release", ""),
    hook("getpeername4", "getpeername shows the backend"),
    hook("getpeername6", "getpeername shows the backend"),
    hook("recvmsg4", ""),
    hook("recvmsg6", ""),
    protects("post_bind4"),
    protects("post_bind6"),
    hook("sendmsg4", ""),
    hook("sendmsg6", ""),
    hook("connect4", ""),
    hook("connect6", ""),
];

/// Whether programs can say with which error a call fails.
pub fn has_set_retval() -> Result<bool> {
    is_helper_supported(ProgramType::CgroupSockAddr, BpfHelper::BPF_FUNC_set_retval)
        .context("look for bpf_set_retval; this takes CAP_BPF and CAP_NET_ADMIN")
}

/// Whether programs can see with which error a call fails.
pub fn has_get_retval() -> Result<bool> {
    is_helper_supported(ProgramType::CgroupSockAddr, BpfHelper::BPF_FUNC_get_retval).context("look for bpf_get_retval")
}

/// Whether programs can find the socket of which another one is a subflow, and read what the kernel knows of a socket.
pub fn has_kernel_sockets() -> Result<bool> {
    let helper = is_helper_supported(ProgramType::CgroupSockAddr, BpfHelper::BPF_FUNC_skc_to_mptcp_sock)
        .context("look for bpf_skc_to_mptcp_sock")?;
    // Without BTF the verifier knows no type of what the helper returns, and says so only of a call that is right otherwise.
    Ok(helper && btf::can_call_with_socket(BpfHelper::BPF_FUNC_skc_to_mptcp_sock as i32))
}
