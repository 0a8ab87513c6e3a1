//! Ends the sockets that were translated to backends which went.

mod diag;
mod end;
mod netns;
mod run;
mod wanted;

fn main() -> std::process::ExitCode {
    run::run(&common::harness::parse())
}
