//! Makes the routes in the pod and on the node.

use std::{env, process::ExitCode};

use common::harness;
use set_routes::SetRoutes;

/// What follows running pods. That part is a program of its own, so that ADD does not load it.
const KEEPER: &str = "keep-pods";

fn main() -> ExitCode {
    if env::args_os().nth(1).is_some_and(|flag| flag == "--follow") {
        return harness::become_beside("set-routes", KEEPER, env::args_os().skip(2));
    }
    harness::run::<SetRoutes>()
}
