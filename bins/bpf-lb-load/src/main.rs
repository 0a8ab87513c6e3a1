//! Loads, attaches, pins, feeds and shows the socket load balancer.

use common::{harness, settings::LogOptions};

fn main() -> std::process::ExitCode {
    let cli = harness::parse();
    harness::init_log("bpf-lb-load", &LogOptions::default(), "");
    bpf_lb_load::cli::run(cli)
}
