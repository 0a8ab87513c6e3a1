//! What went wrong, as CNI wants to hear it.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Error codes: those of the CNI specification 1.1.0, section 5 "Error", that of its Go library for a wrong network
/// namespace, and our own from 100 on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Code {
    /// The `cniVersion` is not one that we know, or does not have this command.
    IncompatibleVersion = 1,
    /// A `CNI_*` environment variable is missing or has a value that is not allowed.
    InvalidEnvironment = 4,
    /// Reading, writing or the kernel failed.
    Io = 5,
    /// The input is not JSON or not of the expected form.
    Decoding = 6,
    /// The network configuration has a value that is not allowed, or lacks one.
    InvalidConfiguration = 7,
    /// `CNI_NETNS` is not the network namespace of a pod.
    InvalidNetns = 8,
    /// Something that will be there is not there yet.
    TryAgainLater = 11,
    /// ADD would fail now.
    NotAvailable = 50,
    /// The kernel refused an operation, or something that is not ours is in the way.
    Kernel = 100,
    /// CHECK found something missing, different or left over.
    CheckFailed = 101,
    /// A tool of the pipeline died.
    ToolDied = 102,
    /// Another host has the pod's address.
    AddressConflict = 103,
    /// The gateway does not answer.
    GatewayUnreachable = 104,
}

/// The `error` section of the document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, thiserror::Error)]
pub struct Failure {
    /// The tool that failed.
    #[serde(default)]
    pub tool: String,
    /// The CNI error code.
    pub code: u32,
    /// One line for a person: what was tried, on what, where.
    pub msg: String,
    /// The causes, outermost first, and what to do.
    #[serde(default)]
    pub details: String,
}

impl Failure {
    /// A failure with a code and a message. The harness fills in the tool.
    pub fn new(code: Code, msg: impl fmt::Display) -> Self {
        Self { tool: String::new(), code: code as u32, msg: msg.to_string(), details: String::new() }
    }

    /// The same with details.
    #[must_use]
    pub fn details(self, details: impl fmt::Display) -> Self {
        Self { details: details.to_string(), ..self }
    }

    /// This failure and a later one, of the same tool or another, in one: the first keeps its code.
    #[must_use]
    pub fn and(mut self, later: &Self) -> Self {
        let line = format!("{}: {}", later.tool, later);
        self.details = if self.details.is_empty() { line } else { format!("{}\n{line}", self.details) };
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.msg)?;
        if self.details.is_empty() { Ok(()) } else { write!(f, ": {}", self.details) }
    }
}

/// A kernel error met while doing what the context says.
pub trait Context<T> {
    /// Says what was tried.
    ///
    /// # Errors
    /// The same error, as a [`Failure`] with the context as message and the cause as details.
    fn context(self, code: Code, msg: impl fmt::Display) -> Result<T, Failure>;
}

impl<T, E: std::error::Error> Context<T> for Result<T, E> {
    fn context(self, code: Code, msg: impl fmt::Display) -> Result<T, Failure> {
        self.map_err(|error| Failure::new(code, msg).details(causes(&error)))
    }
}

fn causes(error: &dyn std::error::Error) -> String {
    std::iter::successors(error.source(), |cause| cause.source())
        .fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
