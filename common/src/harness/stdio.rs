//! Standard input and output, and errors as data.

use std::{
    fmt::Display,
    io::{self, IsTerminal, Read, Write},
    process::ExitCode,
};

use nix::{libc, unistd::close};
use serde::Serialize;
use serde_json::{Value, json};

use crate::{
    document::VERSION,
    envelope::Envelope,
    failure::{Code, Failure},
};

/// No document is longer than this, in bytes: one of DEL has the operations of ADD beside its own.
const MAX_DOCUMENT: usize = 1 << 26;

/// Standard input that is no pod document.
#[derive(Debug)]
pub struct Refused {
    /// What there is of one: an object, in which a tool before may have put its error.
    pub input: Value,
    /// Why it is none.
    pub failure: Failure,
}

/// The pod document on standard input.
///
/// # Errors
/// When it is empty, too long, or no pod document.
pub fn read_document() -> Result<Envelope, Box<Refused>> {
    let refused = |input, failure| Box::new(Refused { input, failure });
    let nothing = |failure| refused(json!({ "version": VERSION }), failure);
    let text = read_input().map_err(nothing)?;
    if text.trim_ascii().is_empty() {
        let failure = Failure::new(Code::ToolDied, "standard input is empty")
            .details("the tool before this one in the pipeline died, or this one was started without a document");
        return Err(nothing(failure));
    }
    Envelope::read(&text).map_err(|why| {
        let wrong = |msg, why| Failure::new(Code::Decoding, msg).details(why);
        match serde_json::from_slice(&text) {
            Ok(input @ Value::Object(_)) => refused(input, wrong("standard input is not a pod document", &why)),
            Ok(_) => nothing(Failure::new(Code::Decoding, "standard input is not a JSON object")),
            Err(error) => nothing(wrong("standard input is not JSON", &error)),
        }
    })
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
    let earlier = document.get("error").cloned().and_then(|error| serde_json::from_value::<Failure>(error).ok());
    document["error"] = json!(said(tool, earlier, failure));
    if io::stdout().is_terminal() { ExitCode::FAILURE } else { print(&document.to_string(), ExitCode::FAILURE) }
}

/// The same of a document that was read.
pub fn fail_on(tool: &str, mut envelope: Envelope, failure: Failure) -> ExitCode {
    let earlier = envelope.document.error.take();
    envelope.document.error = Some(said(tool, earlier, failure));
    if io::stdout().is_terminal() { ExitCode::FAILURE } else { print_json(&envelope, ExitCode::FAILURE) }
}

/// A tool's failure, said on standard error; after the one that there was before, if there was one.
fn said(tool: &str, earlier: Option<Failure>, failure: Failure) -> Failure {
    let failure = Failure { tool: tool.to_owned(), ..failure };
    log::error!("{failure}");
    match earlier {
        Some(earlier) => earlier.and(&failure),
        None => failure,
    }
}

/// Ends a tool that has printed what it has to say: of an error, which is not one of a document, it says all causes.
pub fn end(tool: &str, done: Result<(), impl Display>) -> ExitCode {
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(tool, json!({}), Failure::new(Code::Io, format!("{error:#}"))),
    }
}

/// Prints a document, for a person at a terminal in lines.
pub fn print_json(document: &impl Serialize, code: ExitCode) -> ExitCode {
    let text = serde_json::to_string(document).and_then(|text| {
        if io::stdout().is_terminal() {
            let value: Value = serde_json::from_str(&text)?;
            return serde_json::to_string_pretty(&value);
        }
        Ok(text)
    });
    match text {
        Ok(text) => print(&text, code),
        Err(error) => {
            log::error!("cannot write the document: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Prints an answer: a person at a terminal gets what `people` makes of it, a pipe JSON.
pub fn answer(value: &Value, people: impl FnOnce() -> String, code: ExitCode) -> ExitCode {
    if io::stdout().is_terminal() { print(&people(), code) } else { print(&value.to_string(), code) }
}

/// Prints the one thing that goes to standard output, and closes it. That nobody reads it to its end is no failure.
pub fn print(text: &str, code: ExitCode) -> ExitCode {
    // In one piece, since whoever reads wakes up for each.
    let line = format!("{text}\n");
    let mut stdout = io::stdout().lock();
    let written = stdout.write_all(line.as_bytes()).and_then(|()| stdout.flush());
    // The next tool waits for the end of this, and a process that ends closes it only after it has given back its memory.
    match written.and_then(|()| Ok(close(libc::STDOUT_FILENO)?)) {
        Ok(()) => code,
        // Who has read enough of it, as `head` does, goes.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => code,
        Err(error) => {
            log::error!("cannot write to standard output: {error}");
            ExitCode::FAILURE
        }
    }
}
