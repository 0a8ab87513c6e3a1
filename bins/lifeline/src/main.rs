//! `lifeline PARENT COMMAND [ARGUMENT...]` becomes that command, which the kernel ends (SIGTERM) as soon as whoever started it, the
//! process with the number PARENT, is gone, however that happened. As util-linux' `setpriv --pdeathsig` does it; BusyBox' setpriv cannot.
//!
//! Two more things that a POSIX shell cannot do, and BusyBox not everywhere, end with their parent too:
//! `lifeline PARENT --until-one-ends PID...` ends as soon as one of these processes does.
//! `lifeline PARENT --lock WORDS <&9` locks the file that the shell has open there (flock(2)), until the last process that inherited it
//! has ended. If somebody else has the lock, it says WORDS and waits.

use std::{
    env,
    ffi::{OsStr, OsString},
    fs::{File, TryLockError},
    io::{self, Write},
    os::{fd::AsFd, unix::process::CommandExt},
    process::{Command, ExitCode},
    thread,
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
    process::{Pid, PidfdFlags, Signal, getppid, pidfd_open, set_parent_process_death_signal},
};

fn main() -> ExitCode {
    let mut arguments = env::args_os().skip(1);
    let (Some(parent), Some(program)) = (arguments.next().and_then(number), arguments.next()) else {
        return fail(
            "Usage: lifeline PARENT COMMAND [ARGUMENT...] | lifeline PARENT --until-one-ends PID... | lifeline PARENT --lock WORDS",
            2,
        );
    };
    if let Err(error) = set_parent_process_death_signal(Some(Signal::TERM)) {
        return fail(&format!("lifeline: cannot ask for a signal: {error}"), 125);
    }
    // Whoever started it was gone before.
    if Pid::as_raw(getppid()) != parent {
        return ExitCode::FAILURE;
    }
    let done = match program.to_str() {
        Some("--until-one-ends") => until_one_ends(arguments),
        Some("--lock") => lock(&arguments.next().unwrap_or_default()),
        _ => {
            let error = Command::new(&program).args(arguments).exec();
            let code = if error.kind() == io::ErrorKind::NotFound { 127 } else { 126 };
            return fail(&format!("lifeline: {}: {error}", program.display()), code);
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&format!("lifeline: {error}"), 1),
    }
}

fn number(argument: OsString) -> Option<i32> {
    argument.to_str()?.parse().ok()
}

fn lock(words: &OsStr) -> io::Result<()> {
    let file = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => {
            say(&words.display().to_string())?;
            file.lock()
        }
        result => Ok(result?),
    }
}

fn until_one_ends(pids: impl Iterator<Item = OsString>) -> io::Result<()> {
    let mut processes = Vec::new();
    for pid in pids {
        let pid = number(pid).and_then(Pid::from_raw);
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
    let _ = say(message);
    ExitCode::from(code)
}

/// In one write: others have the same log.
fn say(message: &str) -> io::Result<()> {
    io::stderr().write_all(format!("{message}\n").as_bytes())
}
