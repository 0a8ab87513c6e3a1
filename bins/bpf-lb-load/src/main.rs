//! Loads, attaches, pins, feeds and shows the socket load balancer.

fn main() -> anyhow::Result<()> {
    bpf_lb_load::cli::run(clap::Parser::parse())
}
