//! Decides how a pod's interface is served.

use std::process::ExitCode;

use common::{
    harness::{self, About},
    kernel::Kernel,
};

const ABOUT: About = About {
    name: "detect-mode",
    does: "Decides which mode applies to the pod's interface (underlay, overlay or none), and notes the interface's \
           addresses and the node's. Changes nothing.",
    example: "  cni-request < conf.json | detect-mode | jq .mode",
};

fn main() -> ExitCode {
    harness::run_observer(ABOUT, async |document, node| {
        if !detect_mode::concerns(document.request.command) {
            return Ok(());
        }
        let kernel = Kernel::open(node, document)?;
        detect_mode::detect(document, &kernel).await
    })
}
