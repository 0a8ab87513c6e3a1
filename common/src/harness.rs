//! What is the same in every tool: flags, standard input and output, errors as data, plan and apply.

use std::{
    env,
    ffi::OsString,
    fmt::Display,
    fs::{self, File, OpenOptions},
    io::{self, IsTerminal, Read, Write},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{self, ExitCode},
    sync::Mutex,
};

use clap::{Arg, ArgAction, ArgMatches, Command as Cli, Parser};
use nix::{libc, unistd::close};
use serde::Deserialize as _;
use serde_json::{Value, json};
use tokio::runtime::{Builder, Runtime};

use crate::{
    document::{Command, PodDocument, merge},
    failure::{Code, Context, Failure},
    kernel::{self, Kernel},
    lock::Lock,
    netlink::Netlink,
    object::{Netns, Operation, Placed},
    plan::{Conflict, Found, Owner, plan},
    settings::LogOptions,
    table::{one_line, table},
};

/// No document is longer than this, in bytes.
pub const MAX_DOCUMENT: usize = (1 << 20) - 1;

/// What a tool is called and what `--help` says.
#[derive(Clone, Copy, Debug)]
pub struct About {
    /// The program's name.
    pub name: &'static str,
    /// What it does, in one paragraph.
    pub does: &'static str,
    /// An example to paste.
    pub example: &'static str,
}

/// A tool that changes the kernel, in two parts: what there is, and what is wanted.
pub trait Tool {
    /// Name and help.
    const ABOUT: About;
    /// Whether it works on what all pods of the node share, so that one at a time may run on a node.
    const SHARED: bool = false;

    /// Looks at the kernel: completes the tool's own section of the document and returns what is there of what the
    /// tool cares about. In a teardown everything of ours that is to go counts as found.
    ///
    /// # Errors
    /// What the kernel refuses, and what the request asks for and is not there.
    fn observe(document: &mut PodDocument, kernel: &Kernel) -> impl Future<Output = Result<Vec<Found>, Failure>>;

    /// What is to be there; in a teardown, what was there before. Pure.
    ///
    /// # Errors
    /// When the document lacks what the tool needs.
    fn wanted(document: &PodDocument) -> Result<Vec<Placed>, Failure>;

    /// Looks at what no plan can show, before ADD changes anything.
    ///
    /// # Errors
    /// Why ADD must not go on.
    fn before_add(_document: &PodDocument, _kernel: &Kernel) -> impl Future<Output = Result<(), Failure>> {
        async { Ok(()) }
    }

    /// Tells others what ADD has changed.
    ///
    /// # Errors
    /// What the kernel refuses.
    fn after_add(
        _document: &PodDocument,
        _kernel: &Kernel,
        _done: &[Operation],
    ) -> impl Future<Output = Result<(), Failure>> {
        async { Ok(()) }
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Output {
    Document,
    Plan,
    Commands,
}

impl Output {
    fn asked(flags: &ArgMatches) -> Self {
        match (flags.get_flag("dry-run"), flags.get_flag("explain")) {
            (true, _) => Self::Plan,
            (_, true) => Self::Commands,
            _ => Self::Document,
        }
    }

    /// What to print in place of the document.
    fn of(self, operations: &[Operation], pod: Option<&Path>) -> Option<String> {
        let commands = || operations.iter().flat_map(|operation| operation.commands(pod)).collect::<Vec<_>>();
        match self {
            Self::Document => None,
            Self::Plan if !io::stdout().is_terminal() => Some(json!(operations).to_string()),
            Self::Plan => Some(plan_for_people(operations)),
            Self::Commands => Some(commands().join("\n")),
        }
    }
}

fn plan_for_people(operations: &[Operation]) -> String {
    if operations.is_empty() {
        return "nothing to do".to_owned();
    }
    let row = |operation: &Operation| {
        let (what, placed) = match operation {
            Operation::Add(placed) => ("add", placed.to_string()),
            Operation::Delete(placed) => ("delete", placed.to_string()),
            Operation::Replace { from, to } => ("replace", format!("{from} by {}", to.object)),
        };
        vec![what.to_owned(), placed]
    };
    table(&["DO", "WHAT"], &operations.iter().map(row).collect::<Vec<_>>())
}

/// Runs a tool that changes the kernel.
pub fn run<T: Tool>() -> ExitCode {
    let output = Output::asked(&matches(cli_with_plan(T::ABOUT)));
    with_kernel(T::ABOUT, async |document, node| work::<T>(document, output, node).await)
}

/// Runs a tool that reads the kernel, beginning with the node's, and completes the document.
pub fn run_observer(
    about: About,
    work: impl AsyncFnOnce(&mut PodDocument, Netlink) -> Result<(), Failure>,
) -> ExitCode {
    let output = Output::asked(&matches(cli_with_plan(about)));
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

/// Runs a tool that only reads and completes the document. Its command line is [`cli_with_plan`], with flags of its own.
pub fn run_filter(
    cli: Cli,
    about: About,
    work: impl FnOnce(&mut PodDocument, &ArgMatches) -> Result<(), Failure>,
) -> ExitCode {
    let flags = matches(cli);
    filter(about, |document| {
        work(document, &flags)?;
        Ok(Output::asked(&flags).of(&[], None))
    })
}

/// The command line that every tool has.
pub fn cli(about: About) -> Cli {
    Cli::new(about.name)
        .version(env!("CARGO_PKG_VERSION"))
        .about(about.does)
        .after_help(format!("Example:\n{}", about.example))
}

/// The same for a tool on the way of a pod document, which says what it would do if it is asked.
pub fn cli_with_plan(about: About) -> Cli {
    let flag = |name: &'static str, help: &'static str| Arg::new(name).long(name).action(ArgAction::SetTrue).help(help);
    cli(about)
        .arg(flag("dry-run", "Print what would be done, as JSON, and do nothing"))
        .arg(flag("explain", "Print it as commands to read or paste, and do nothing").conflicts_with("dry-run"))
}

/// What the command line says; ends the program where it says nothing that `cli` knows.
pub fn matches(cli: Cli) -> ArgMatches {
    #[cfg(feature = "pages")]
    crate::pages::write_if_asked(&cli);
    cli.get_matches()
}

/// The same for a command line that is a type.
pub fn parse<T: Parser>() -> T {
    T::from_arg_matches(&matches(T::command())).unwrap_or_else(|error| error.exit())
}

/// Runs a future on this thread.
///
/// # Errors
/// When the kernel gives no epoll descriptor.
pub fn block_on<T>(future: impl Future<Output = T>) -> Result<T, Failure> {
    Ok(runtime(Builder::enable_all)?.block_on(future))
}

fn runtime(enable: fn(&mut Builder) -> &mut Builder) -> Result<Runtime, Failure> {
    enable(&mut Builder::new_current_thread()).build().map_err(|error| Failure::new(Code::Io, error))
}

async fn work<T: Tool>(document: &mut PodDocument, output: Output, node: Netlink) -> Result<Option<String>, Failure> {
    if document.is_left_alone() {
        return Ok(output.of(&[], None));
    }
    let _lock = match (T::SHARED, output) {
        (true, Output::Document) => Some(Lock::Node.acquire().context(Code::Io, "cannot lock the node's state")?),
        _ => None,
    };
    let kernel = Kernel::open(node, document)?;
    recover_addresses(document, &kernel).await.context(Code::Io, "cannot read the pod's addresses")?;
    let (operations, conflicts) = planned::<T>(document, &kernel, &[]).await?;
    if let Some(conflict) = conflicts.first() {
        return Err(conflict.clone());
    }
    match output.of(&operations, document.request.netns.as_deref()) {
        Some(text) => Ok(Some(text)),
        None => carry_out::<T>(document, &kernel, operations).await.map(|()| None),
    }
}

/// In DEL, where neither a saved document nor prevResult has the interface's addresses, those that it has stand for prevResult's.
async fn recover_addresses(document: &mut PodDocument, kernel: &Kernel) -> io::Result<()> {
    let request = &document.request;
    let is_lost = request.command == Command::Del && document.mode.is_none() && document.nic_addresses().is_empty();
    let Some(pod) = kernel.pod.as_ref().filter(|_| is_lost) else { return Ok(()) };
    let Some(link) = pod.netlink.link(&request.ifname).await? else { return Ok(()) };
    let addresses = pod.netlink.addresses().await?.into_iter().filter(|address| address.link == link.index);
    let ips: Vec<_> = addresses.map(|address| json!({ "address": address.net })).collect();
    if let Some(config) = document.request.config.as_object_mut() {
        config.insert("prevResult".to_owned(), json!({ "ips": ips }));
    }
    Ok(())
}

/// Applies the plan; in CHECK, expects it to be empty.
async fn carry_out<T: Tool>(
    document: &mut PodDocument,
    kernel: &Kernel,
    operations: Vec<Operation>,
) -> Result<(), Failure> {
    let failures = match document.request.command {
        Command::Check => {
            let differences: Vec<_> = operations.iter().map(ToString::to_string).collect();
            let msg = format!("{} is not as it should be", document.request.attachment());
            let failure = Failure::new(Code::CheckFailed, msg).details(differences.join("\n"));
            return if operations.is_empty() { Ok(()) } else { Err(failure) };
        }
        Command::Del | Command::Gc => kernel.apply_all(&operations).await,
        _ => {
            T::before_add(document, kernel).await?;
            kernel.apply(&operations).await?;
            let told = T::after_add(document, kernel, &operations).await;
            document.applied.extend(operations);
            return told;
        }
    };
    document.applied.extend(operations);
    match failures.split_first() {
        Some((first, rest)) => Err(rest.iter().fold(first.clone(), Failure::and)),
        None => Ok(()),
    }
}

/// The plan, and what is in the way of the rest of it. An object counts as ours also if it is in `known`, or stands where one of
/// `known` stood.
async fn planned<T: Tool>(
    document: &mut PodDocument,
    kernel: &Kernel,
    known: &[Placed],
) -> Result<(Vec<Operation>, Vec<Failure>), Failure> {
    let mut found = T::observe(document, kernel).await?;
    for found in found.iter_mut().filter(|found| found.owner == Owner::Foreign) {
        let replaced =
            |known: &Placed| known.collides(&found.placed) && !known.object.satisfied_by(&found.placed.object);
        if known.contains(&found.placed) || known.iter().any(replaced) {
            found.owner = Owner::Ours;
        }
    }
    let (operations, conflicts) = plan(&T::wanted(document)?, &found);
    let failure = |conflict: Conflict| match &conflict.found.owner {
        Owner::Pod(holder) => Failure::new(
            Code::AddressConflict,
            format!("another pod of this node, {holder}, has its address: {conflict}"),
        )
        .details("give one of the two another address, or serve one of their networks with mode disable"),
        _ => Failure::new(Code::Kernel, conflict).details("remove it, or configure Underpass to use something else"),
    };
    Ok((operations, conflicts.into_iter().map(failure).collect()))
}

/// One thing that [`converge`] did.
#[derive(Clone, Debug)]
pub struct Change {
    /// What was done.
    pub operation: Operation,
    /// Whether it undoes what somebody else did. Otherwise the document wants something else than before.
    pub repair: bool,
}

/// Why something is not as it is to be, and what was done all the same.
#[derive(Clone, Debug)]
pub struct Undone {
    /// Why.
    pub failure: Failure,
    /// What was done.
    pub changes: Vec<Change>,
}

impl From<Failure> for Undone {
    fn from(failure: Failure) -> Self {
        Self { failure, changes: vec![] }
    }
}

/// Makes in a running pod what an ADD would make of its document now, where `before` is the document of the last time: the
/// same plan, without [`Tool::before_add`]'s questions. What is new comes before what is old goes, so that no
/// packet is without a route that has one before and after. Changes that are `spared` are left out.
///
/// # Errors
/// As for ADD. What can be done is done all the same: somebody else's fault must not cost a running pod the rest.
pub async fn converge<T: Tool>(
    document: &mut PodDocument,
    before: &PodDocument,
    kernel: &Kernel,
    spared: impl Fn(&Change) -> bool,
) -> Result<Vec<Change>, Undone> {
    let wanted_before = T::wanted(before).unwrap_or_default();
    // On the node a tool that is SHARED makes what other pods need too; and a value cannot be removed.
    let of_this_pod = |placed: &&Placed| !(placed.object.is_value() || T::SHARED && placed.netns == Netns::Node);
    let known: Vec<Placed> = wanted_before.iter().filter(of_this_pod).cloned().collect();
    let mut lock = None;
    loop {
        let (operations, conflicts) = planned::<T>(document, kernel, &known).await?;
        let conflict = conflicts.into_iter().reduce(|conflict, later| conflict.and(&later));
        let change = |operation: Operation| {
            let repair = match &operation {
                Operation::Add(placed) | Operation::Replace { to: placed, .. } => wanted_before.contains(placed),
                Operation::Delete(placed) => !wanted_before.contains(placed),
            };
            Change { operation, repair }
        };
        let mut changes: Vec<Change> = operations.into_iter().map(change).filter(|change| !spared(change)).collect();
        if changes.is_empty() {
            return conflict.map_or(Ok(changes), |conflict| Err(conflict.into()));
        }
        if T::SHARED && lock.is_none() {
            lock = Some(Lock::Node.acquire().context(Code::Io, "cannot lock the node's state")?);
            continue;
        }
        changes.sort_by_key(|change| matches!(change.operation, Operation::Delete(_)));
        let operations: Vec<Operation> = changes.iter().map(|change| change.operation.clone()).collect();
        let failed = kernel.apply_each(&operations).await;
        T::after_add(document, kernel, &operations).await?;
        let refused = failed.iter().map(|(run, error)| kernel::refusal(&operations[run.start], error));
        let failure = conflict.into_iter().chain(refused).reduce(|failure, later| failure.and(&later));
        let is_done = |number: &usize| !failed.iter().any(|(run, _)| run.contains(number));
        let changes = (0..).zip(changes).filter(|(number, _)| is_done(number)).map(|(_, change)| change).collect();
        return match failure {
            Some(failure) => Err(Undone { failure, changes }),
            None => Ok(changes),
        };
    }
}

/// Reads the document, lets `work` complete it, and prints it: enriched, or with the error set.
fn filter(about: About, work: impl FnOnce(&mut PodDocument) -> Result<Option<String>, Failure>) -> ExitCode {
    let name = about.name;
    let input = match read_document() {
        Ok(input) => input,
        Err(failure) => {
            init_log(name, &LogOptions::default(), "");
            return fail(name, json!({ "version": crate::document::VERSION }), failure);
        }
    };
    let failed = input.get("error").is_some_and(|error| !error.is_null());
    let mut document = match PodDocument::deserialize(&input) {
        // An error in place of a document: there is nothing to work on.
        Err(_) if failed => return print_json(&input, ExitCode::FAILURE),
        Err(error) => {
            init_log(name, &LogOptions::default(), "");
            let failure = Failure::new(Code::Decoding, "standard input is not a pod document").details(error);
            return fail(name, input, failure);
        }
        Ok(document) => document,
    };
    if failed && !document.request.command.tears_down() {
        return print_json(&input, ExitCode::FAILURE);
    }
    init_log(name, &document.settings.log_options, &document.request.attachment());
    let result = work(&mut document);
    let output = match &result {
        Ok(Some(text)) => return print(text, ExitCode::SUCCESS),
        _ => merge(input, json!(document)),
    };
    match result {
        Err(failure) => fail(name, output, failure),
        Ok(_) if failed => print_json(&output, ExitCode::FAILURE),
        Ok(_) => print_json(&output, ExitCode::SUCCESS),
    }
}

/// The JSON object on standard input.
///
/// # Errors
/// When it is empty, too long, or not a JSON object.
pub fn read_document() -> Result<Value, Failure> {
    let text = read_input()?;
    if text.trim_ascii().is_empty() {
        return Err(Failure::new(Code::ToolDied, "standard input is empty")
            .details("the tool before this one in the pipeline died, or this one was started without a document"));
    }
    let value: Value = serde_json::from_slice(&text)
        .map_err(|error| Failure::new(Code::Decoding, "standard input is not JSON").details(error))?;
    if !value.is_object() {
        return Err(Failure::new(Code::Decoding, "standard input is not a JSON object"));
    }
    Ok(value)
}

/// Standard input to its end.
///
/// # Errors
/// When it cannot be read, or is longer than [`MAX_DOCUMENT`].
pub fn read_input() -> Result<Vec<u8>, Failure> {
    let stdin = io::stdin();
    if stdin.is_terminal() {
        log::warn!("waiting for a document on standard input; see --help");
    }
    let mut text = Vec::with_capacity(16 << 10);
    stdin
        .lock()
        .take(MAX_DOCUMENT as u64 + 1)
        .read_to_end(&mut text)
        .map_err(|error| Failure::new(Code::Io, "cannot read standard input").details(error))?;
    if text.len() > MAX_DOCUMENT {
        return Err(Failure::new(Code::Decoding, format!("standard input is longer than {MAX_DOCUMENT} bytes")));
    }
    Ok(text)
}

/// Sets the document's error, or adds to the one that it has, prints it, and says that the tool failed. At a terminal there is only the message.
pub fn fail(tool: &str, mut document: Value, failure: Failure) -> ExitCode {
    let failure = Failure { tool: tool.to_owned(), ..failure };
    log::error!("{failure}");
    let earlier = document.get("error").cloned().and_then(|error| serde_json::from_value::<Failure>(error).ok());
    document["error"] = json!(earlier.map_or(failure.clone(), |earlier| earlier.and(&failure)));
    if io::stdout().is_terminal() { ExitCode::FAILURE } else { print(&document.to_string(), ExitCode::FAILURE) }
}

/// Ends a tool that has printed what it has to say: of an error, which is not one of a document, it says all causes.
pub fn end(tool: &str, done: Result<(), impl Display>) -> ExitCode {
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(tool, json!({}), Failure::new(Code::Io, format!("{error:#}"))),
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

/// Prints a document, for a person at a terminal in lines.
pub fn print_json(document: &Value, code: ExitCode) -> ExitCode {
    if io::stdout().is_terminal() { print(&format!("{document:#}"), code) } else { print(&document.to_string(), code) }
}

/// Prints an answer: a person at a terminal gets what `people` makes of it, a pipe JSON.
pub fn answer(value: &Value, people: impl FnOnce() -> String, code: ExitCode) -> ExitCode {
    if io::stdout().is_terminal() { print(&people(), code) } else { print(&value.to_string(), code) }
}

/// Prints the one thing that goes to standard output, and closes it.
pub fn print(text: &str, code: ExitCode) -> ExitCode {
    let mut stdout = io::stdout().lock();
    let written =
        stdout.write_all(text.as_bytes()).and_then(|()| stdout.write_all(b"\n")).and_then(|()| stdout.flush());
    // The next tool waits for the end of this, and a process that ends closes it only after it has given back its memory.
    match written.and_then(|()| Ok(close(libc::STDOUT_FILENO)?)) {
        Ok(()) => code,
        Err(error) => {
            log::error!("cannot write to standard output: {error}");
            ExitCode::FAILURE
        }
    }
}

struct Logger {
    tool: &'static str,
    attachment: String,
    file: Option<Mutex<File>>,
}

impl log::Log for Logger {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        // The netlink crates describe every packet at debug level; a Kubernetes client's errors come back to who asked.
        let from = |part: &str| metadata.target().starts_with(part);
        !from("tower") && !from("kube") && !from("aya") && (!from("netlink") || metadata.level() <= log::Level::Warn)
    }

    fn log(&self, record: &log::Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let (level, msg) = (record.level().as_str().to_ascii_lowercase(), record.args().to_string());
        let line = json!({ "level": level, "tool": self.tool, "attachment": self.attachment, "msg": msg });
        let line = format!("{line}\n");
        // Each line is one write: several tools have the same log, and pieces of two lines would mix there. One that cannot be
        // written must not fail the pod.
        let mut stderr = io::stderr();
        let _ = if stderr.is_terminal() {
            stderr.write_all(format!("{}: {level}: {}\n", self.tool, one_line(&msg)).as_bytes())
        } else {
            stderr.write_all(line.as_bytes())
        };
        if let Some(Ok(mut file)) = self.file.as_ref().map(Mutex::lock) {
            let _ = file.write_all(line.as_bytes());
        }
    }

    fn flush(&self) {}
}

/// Sends log messages to standard error, one JSON object a line or, to a terminal, as text; and to the file that the configuration asks for.
pub fn init_log(tool: &'static str, options: &LogOptions, attachment: &str) {
    let open = |path: &String| {
        let made = Path::new(path).parent().map_or(Ok(()), fs::create_dir_all);
        made.and_then(|()| OpenOptions::new().create(true).append(true).open(path))
    };
    let (file, refused) = match options.log_file.as_ref().map(open) {
        Some(Ok(file)) => (Some(Mutex::new(file)), None),
        Some(Err(error)) => (None, Some(error)),
        None => (None, None),
    };
    let logger = Logger { tool, attachment: attachment.to_owned(), file };
    if log::set_boxed_logger(Box::new(logger)).is_ok() {
        log::set_max_level(options.log_level.parse().unwrap_or(log::LevelFilter::Info));
    }
    if let (Some(error), Some(path)) = (refused, &options.log_file) {
        log::warn!("cannot write messages to {path}: {error}");
    }
}
