//! Loads, attaches, pins, feeds and shows the socket load balancer.

fn main() -> std::process::ExitCode {
    bpf_lb_load::cli::run(common::harness::parse())
}
