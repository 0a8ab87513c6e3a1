//! Makes the veth pair between pod and node.

use std::process::ExitCode;

fn main() -> ExitCode {
    common::harness::run::<mk_veth::MkVeth>()
}
