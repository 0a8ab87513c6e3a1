//! What is the same in every tool: flags, standard input and output, errors as data, plan and apply.

mod cli;
mod messages;
mod stdio;
mod tool;

use std::{
    env,
    ffi::OsString,
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{self, ExitCode},
};

use clap::{ArgMatches, Command as Cli};
use serde_json::json;
use tokio::runtime::{Builder, Runtime};

use self::{cli::Output, stdio::fail_on};
pub use self::{
    cli::{About, cli, cli_with_plan, matches, matches_if_any, parse},
    messages::init_log,
    stdio::{Refused, answer, end, fail, print, print_json, read_document, read_input},
    tool::{Change, Tool, Undone, converge},
};
use crate::{
    document::{Command, PodDocument},
    failure::{Code, Context, Failure},
    netlink::Netlink,
    settings::LogOptions,
};

/// Runs a tool that changes the kernel.
pub fn run<T: Tool>() -> ExitCode {
    let output = Output::asked(matches_if_any(|| cli_with_plan(T::ABOUT)).as_ref());
    with_kernel(T::ABOUT, async |document, node| tool::work::<T>(document, output, node).await)
}

/// Runs a tool that reads the kernel, beginning with the node's, and completes the document.
pub fn run_observer(
    about: About,
    work: impl AsyncFnOnce(&mut PodDocument, Netlink) -> Result<(), Failure>,
) -> ExitCode {
    let output = Output::asked(matches_if_any(|| cli_with_plan(about)).as_ref());
    with_kernel(about, async |document, node| {
        work(document, node).await?;
        Ok(output.of(&[], None))
    })
}

fn with_kernel(
    about: About,
    work: impl AsyncFnOnce(&mut PodDocument, Netlink) -> Result<Option<String>, Failure>,
) -> ExitCode {
    // Before the document is there, since until then the tools before this one are at work. Nobody waits for a descriptor.
    let ready = runtime(Builder::enable_time).and_then(|runtime| {
        let node = runtime.block_on(async { node() })?;
        Ok((runtime, node))
    });
    filter(about, |document| {
        if matches!(document.request.command, Command::Status | Command::Version) {
            return Ok(None);
        }
        let (runtime, node) = ready?;
        runtime.block_on(work(document, node))
    })
}

/// A socket in the node's network namespace, which is the calling thread's.
///
/// # Errors
/// When the kernel gives none. Must be called within a tokio runtime.
pub fn node() -> Result<Netlink, Failure> {
    Netlink::open().context(Code::Io, "cannot open a netlink socket on the node")
}

/// Runs a tool that only reads and completes the document. Its command line is [`cli_with_plan`], with flags of its own, and
/// nothing where it is started without a word.
pub fn run_filter(
    cli: impl FnOnce() -> Cli,
    about: About,
    work: impl FnOnce(&mut PodDocument, Option<&ArgMatches>) -> Result<(), Failure>,
) -> ExitCode {
    let flags = matches_if_any(cli);
    filter(about, |document| {
        work(document, flags.as_ref())?;
        Ok(Output::asked(flags.as_ref()).of(&[], None))
    })
}

/// Runs a future that asks the kernel alone on this thread. That takes no descriptor; what waits for the network does, and tokio panics where
/// it gets none for signals.
///
/// # Errors
/// When tokio makes no runtime.
pub fn block_on<T>(future: impl Future<Output = T>) -> Result<T, Failure> {
    Ok(runtime(Builder::enable_time)?.block_on(future))
}

/// The same for a future that waits for the network.
///
/// # Errors
/// When the kernel gives no epoll descriptor.
pub fn block_on_network<T>(future: impl Future<Output = T>) -> Result<T, Failure> {
    Ok(runtime(Builder::enable_all)?.block_on(future))
}

fn runtime(enable: fn(&mut Builder) -> &mut Builder) -> Result<Runtime, Failure> {
    enable(&mut Builder::new_current_thread()).build().map_err(|error| Failure::new(Code::Io, error))
}

/// Reads the document, lets `work` complete it, and prints it: enriched, or with the error set.
fn filter(about: About, work: impl FnOnce(&mut PodDocument) -> Result<Option<String>, Failure>) -> ExitCode {
    let name = about.name;
    let mut envelope = match read_document() {
        Ok(envelope) => envelope,
        // An error in place of a document: there is nothing to work on.
        Err(refused) if !refused.input["error"].is_null() => return print_json(&refused.input, ExitCode::FAILURE),
        Err(refused) => {
            init_log(name, &LogOptions::default(), "");
            return fail(name, refused.input, refused.failure);
        }
    };
    let document = &mut envelope.document;
    let failed = document.error.is_some();
    if failed && !document.request.command.tears_down() {
        return print_json(&envelope, ExitCode::FAILURE);
    }
    init_log(name, &document.settings.log_options, &document.request.attachment());
    match work(document) {
        Ok(Some(text)) => print(&text, ExitCode::SUCCESS),
        Ok(None) => print_json(&envelope, if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }),
        Err(failure) => fail_on(name, envelope, failure),
    }
}

/// Replaces this process, the tool `own`, by the program of another name in its directory, else in `PATH`. Returns only when that fails,
/// which it says as [`fail`] does.
pub fn become_beside(own: &'static str, program: &str, arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let beside = env::current_exe().ok().and_then(|own| Some(own.parent()?.join(program)));
    let program = beside.filter(|path| path.exists()).unwrap_or_else(|| PathBuf::from(program));
    let error = process::Command::new(&program).args(arguments).exec();
    init_log(own, &LogOptions::default(), "");
    fail(own, json!({}), Failure::new(Code::Io, format!("cannot run {}", program.display())).details(error))
}
