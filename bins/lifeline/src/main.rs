//! `lifeline COMMAND [ARGUMENT...]` becomes that command, which the kernel ends (SIGTERM) as soon as whoever started it is
//! gone, however that happened. As util-linux' `setpriv --pdeathsig` does it; BusyBox' setpriv cannot.
//!
//! `lifeline --until-one-ends PID...` ends as soon as one of these processes does, which a POSIX shell cannot wait for.

use std::{
    env,
    ffi::OsString,
    io::{self, Write},
    os::unix::process::CommandExt,
    process::{Command, ExitCode},
    thread,
    time::Duration,
};

use nix::{
    sys::{prctl, signal::Signal},
    unistd::{Pid, getppid},
};
use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
    process::{self, PidfdFlags, pidfd_open},
};

fn main() -> ExitCode {
    let mut arguments = env::args_os().skip(1);
    let Some(program) = arguments.next() else {
        return fail("Usage: lifeline COMMAND [ARGUMENT...] | lifeline --until-one-ends PID...", 2);
    };
    let parent = getppid();
    if let Err(error) = prctl::set_pdeathsig(Signal::SIGTERM) {
        return fail(&format!("lifeline: cannot ask for a signal: {error}"), 125);
    }
    // Whoever started it was gone before: then there is another parent, or, in a pid namespace, none that can be seen.
    if getppid() != parent && parent != Pid::from_raw(0) {
        return ExitCode::FAILURE;
    }
    if program == "--until-one-ends" {
        return match until_one_ends(arguments) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(&format!("lifeline: {error}"), 1),
        };
    }
    let error = Command::new(&program).args(arguments).exec();
    let code = if error.kind() == io::ErrorKind::NotFound { 127 } else { 126 };
    fail(&format!("lifeline: {}: {error}", program.display()), code)
}

fn until_one_ends(pids: impl Iterator<Item = OsString>) -> io::Result<()> {
    let mut processes = Vec::new();
    for pid in pids {
        let pid = pid.to_str().and_then(|pid| process::Pid::from_raw(pid.parse().ok()?));
        match pidfd_open(pid.ok_or(Errno::INVAL)?, PidfdFlags::empty()) {
            Ok(process) => processes.push(process),
            Err(Errno::SRCH) => return Ok(()),
            // Before Linux 5.3. Whoever asks looks again by himself.
            Err(Errno::NOSYS) => {
                thread::sleep(Duration::from_secs(1));
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        }
    }
    let mut ends: Vec<_> = processes.iter().map(|process| PollFd::new(process, PollFlags::IN)).collect();
    poll(&mut ends, None).map(drop).map_err(io::Error::from)
}

fn fail(message: &str, code: u8) -> ExitCode {
    let _ = writeln!(io::stderr(), "{message}");
    ExitCode::from(code)
}
