//! Sets sysctls and link properties in the pod.

mod plan;

use std::process::ExitCode;

use common::{
    document::{Command, PodDocument},
    failure::{Code, Context, Failure},
    harness::{self, About, Tool},
    kernel::Kernel,
    object::{Object, Placed},
    plan::Found,
};

struct TunePod;

fn main() -> ExitCode {
    harness::run::<TunePod>()
}

impl Tool for TunePod {
    const ABOUT: About = About {
        name: "tune-pod",
        does: "Sets the pod's rp_filter and, where configured, its interface's transmit queue length and MAC address; \
               in DEL puts back what was there.",
        example: "  cni-request < conf.json | detect-mode | tune-pod --explain",
    };

    async fn observe(document: &mut PodDocument, kernel: &Kernel) -> Result<Vec<Found>, Failure> {
        if document.request.command == Command::Gc || kernel.pod.is_none() {
            return Ok(vec![]);
        }
        let sysctls = plan::put_back_or_wanted(document)?.into_iter().filter_map(|placed| match placed.object {
            Object::Sysctl(sysctl) => Some(sysctl.path),
            _ => None,
        });
        kernel.sysctls(&sysctls.collect::<Vec<_>>()).context(Code::Io, "cannot read the pod's sysctls")
    }

    fn wanted(document: &PodDocument) -> Result<Vec<Placed>, Failure> {
        plan::put_back_or_wanted(document)
    }
}
