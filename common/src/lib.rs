//! What the Underpass tools share: the pod document, plans and operations, netlink, namespaces, the tool harness.
//!
//! Deciding is separate from doing. [`plan`] compares objects that are wanted with objects that were found and returns
//! [`object::Operation`]s; [`kernel`] applies them. Nothing that decides also talks to the kernel.

pub mod balancers;
pub mod bpf;
pub mod cgroup;
pub mod cidrs;
pub mod document;
pub mod envelope;
pub mod failure;
pub mod harness;
#[cfg(target_env = "musl")]
mod heap;
pub mod kernel;
pub mod keys;
pub mod lock;
pub mod mac;
pub mod marks;
pub mod memory;
pub mod names;
pub mod netlink;
pub mod netns;
mod nft;
pub mod numbers;
pub mod object;
#[cfg(feature = "pages")]
mod pages;
pub mod plan;
pub mod result;
pub mod settings;
pub mod state;
pub mod table;
pub mod transit;
pub mod wire;

// For its symbols, which are linked before libc's.
#[cfg(target_env = "musl")]
use memcpy as _;
