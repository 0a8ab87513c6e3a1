//! A tool's command line, and what it is asked to print.

use std::{
    env,
    io::{self, IsTerminal},
    path::Path,
};

use clap::{Arg, ArgAction, ArgMatches, Command as Cli, Parser};
use serde_json::json;

use crate::{object::Operation, table::table};

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

/// What the command line of a tool says that is most often started without a word, as by ADD: nothing then, not even a default, and
/// none has to be made.
pub fn matches_if_any(cli: impl FnOnce() -> Cli) -> Option<ArgMatches> {
    // Who wants the pages says so in the environment.
    let has_any = cfg!(feature = "pages") || env::args_os().len() > 1;
    has_any.then(|| matches(cli()))
}

#[derive(Clone, Copy, PartialEq)]
pub(super) enum Output {
    Document,
    Plan,
    Commands,
}

impl Output {
    pub(super) fn asked(flags: Option<&ArgMatches>) -> Self {
        let asks = |name| flags.is_some_and(|flags| flags.get_flag(name));
        match (asks("dry-run"), asks("explain")) {
            (true, _) => Self::Plan,
            (_, true) => Self::Commands,
            _ => Self::Document,
        }
    }

    /// What to print in place of the document.
    pub(super) fn of(self, operations: &[Operation], pod: Option<&Path>) -> Option<String> {
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
