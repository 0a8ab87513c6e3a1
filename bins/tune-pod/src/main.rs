//! Sets sysctls and link properties in the pod, and asks the network about its addresses.

use std::process::ExitCode;

fn main() -> ExitCode {
    common::harness::run::<tune_pod::TunePod>()
}
