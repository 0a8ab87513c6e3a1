//! Makes the policy rules, and the mark that sends replies back the way they came.

use std::process::ExitCode;

fn main() -> ExitCode {
    common::harness::run::<set_rules::SetRules>()
}
