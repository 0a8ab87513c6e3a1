//! Ends the sockets that were translated to backends which went.

mod anew;
mod connect;
mod diag;
mod end;
mod run;
mod wanted;

use common::{harness, settings::LogOptions};

fn main() -> std::process::ExitCode {
    let cli = harness::parse();
    harness::init_log("end-sockets", &LogOptions::default(), "");
    run::run(&cli)
}
