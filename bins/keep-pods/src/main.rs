//! Keeps running pods as an ADD would make them now: what `sync-cidrs --watch` prints comes in, and so do the kernel's
//! notifications; every pod that they concern gets the plan that ADD has.

mod care;
mod contest;
mod keeper;
mod node;
mod notice;
mod report;
mod whereabouts;

use std::{
    io::{self, BufRead as _},
    process::ExitCode,
    sync::mpsc::{self, SyncSender},
    thread,
};

use common::{
    harness::{self, About},
    settings::LogOptions,
};
use keeper::{Keeper, News};
use nix::sys::signal::{SigHandler, Signal, signal};
use notice::{Kind, Listener};

const ABOUT: About = About {
    name: "keep-pods",
    does: "Reads what sync-cidrs --watch prints and gives every pod of the node that is running what an ADD would give it \
           now; and puts right what somebody else removes or alters of what ADD made, on the node or in a pod, as soon as \
           the kernel tells of it. Ends with standard input.",
    example: "  sync-cidrs --watch | keep-pods",
};

fn main() -> ExitCode {
    harness::matches(harness::cli(ABOUT));
    harness::init_log(ABOUT.name, &LogOptions::default(), "");
    leave_children();
    let (sender, news) = mpsc::sync_channel(keeper::MOST_NEWS);
    for kind in Kind::ALL {
        match Listener::open(kind) {
            Ok(listener) => listen(listener, sender.clone()),
            Err(error) => log::error!(
                "cannot follow what the kernel says of {kind:?}: {error}; it takes CAP_NET_ADMIN and CAP_NET_BROADCAST; \
                 what somebody else does to a pod is only found by looking at each in turn"
            ),
        }
    }
    thread::spawn(move || read(&sender));
    Keeper::default().keep(&news);
    ExitCode::SUCCESS
}

/// Lets the kernel forget children as they end (sigaction(2)): they only close a socket, and nobody waits for them.
#[expect(unsafe_code, reason = "SIG_IGN is no handler that could run at a bad moment")]
fn leave_children() {
    if let Err(error) = unsafe { signal(Signal::SIGCHLD, SigHandler::SigIgn) } {
        log::error!("cannot ignore SIGCHLD: {error}");
    }
}

/// Passes on what the kernel says, until nobody listens any more. What the keeper has no room for waits with the kernel, which says if it had
/// to drop any.
fn listen(mut listener: Listener, sender: SyncSender<News>) {
    thread::spawn(move || {
        loop {
            let notices = match listener.receive() {
                Ok(notices) => notices,
                Err(error) => {
                    log::error!("cannot read the kernel's notifications any more: {error}");
                    return;
                }
            };
            if !notices.is_empty() && sender.send(News::Notices(notices)).is_err() {
                return;
            }
        }
    });
}

/// Passes on standard input, a line for each change, and its end.
fn read(sender: &SyncSender<News>) {
    for line in io::stdin().lock().split(b'\n') {
        let Ok(line) = line else { break };
        let sent = match serde_json::from_slice(&line) {
            Ok(cluster) => sender.send(News::Cluster(cluster)).is_ok(),
            Err(error) => {
                log::error!("a line on standard input is not JSON: {error}");
                true
            }
        };
        if !sent {
            return;
        }
    }
    let _ = sender.send(News::End);
}
