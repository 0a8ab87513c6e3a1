//! `lifeline COMMAND [ARGUMENT...]` becomes that command, which the kernel ends (SIGTERM) as soon as whoever started it is
//! gone, however that happened. As util-linux' `setpriv --pdeathsig` does it; BusyBox' setpriv cannot.

use std::{
    env,
    io::{self, Write},
    os::unix::process::CommandExt,
    process::{Command, ExitCode},
};

use nix::{
    sys::{prctl, signal::Signal},
    unistd::{Pid, getppid},
};

fn main() -> ExitCode {
    let mut arguments = env::args_os().skip(1);
    let Some(program) = arguments.next() else {
        return fail("Usage: lifeline COMMAND [ARGUMENT...]", 2);
    };
    let parent = getppid();
    if let Err(error) = prctl::set_pdeathsig(Signal::SIGTERM) {
        return fail(&format!("lifeline: cannot ask for a signal: {error}"), 125);
    }
    // Whoever started it was gone before: then there is another parent, or, in a pid namespace, none that can be seen.
    if getppid() != parent && parent != Pid::from_raw(0) {
        return ExitCode::FAILURE;
    }
    let error = Command::new(&program).args(arguments).exec();
    let code = if error.kind() == io::ErrorKind::NotFound { 127 } else { 126 };
    fail(&format!("lifeline: {}: {error}", program.display()), code)
}

fn fail(message: &str, code: u8) -> ExitCode {
    let _ = writeln!(io::stderr(), "{message}");
    ExitCode::from(code)
}
