//! Makes the routes in the pod and on the node.

use std::{
    env,
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{self, ExitCode},
};

use common::{
    failure::{Code, Failure},
    harness,
    settings::LogOptions,
};
use serde_json::json;

/// What follows running pods. That part is a program of its own, so that ADD does not load it.
const KEEPER: &str = "keep-pods";

fn main() -> ExitCode {
    if env::args_os().nth(1).is_some_and(|flag| flag == "--follow") {
        return become_keeper();
    }
    harness::run::<set_routes::SetRoutes>()
}

/// The program beside this one.
fn become_keeper() -> ExitCode {
    let beside = env::current_exe().ok().and_then(|own| Some(own.parent()?.join(KEEPER)));
    let program = beside.filter(|path| path.exists()).unwrap_or_else(|| PathBuf::from(KEEPER));
    let error = process::Command::new(&program).args(env::args_os().skip(2)).exec();
    harness::init_log("set-routes", &LogOptions::default(), "");
    let failure = Failure::new(Code::Io, format!("cannot run {}", program.display())).details(error);
    harness::fail("set-routes", json!({}), failure)
}
