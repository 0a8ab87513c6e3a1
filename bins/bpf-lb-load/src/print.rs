//! The one place that writes to stdout.

use std::io::{self, Write as _};

use anyhow::{Context as _, Result};
use serde::Serialize;

/// One JSON document on one line. Fails when nobody reads any more.
pub fn line(document: &impl Serialize) -> Result<()> {
    written(&(serde_json::to_string(document)? + "\n")).context(STDOUT)
}

/// A JSON document for people.
pub fn pretty(document: &impl Serialize) -> Result<()> {
    text(&(serde_json::to_string_pretty(document)? + "\n"))
}

/// Text as it is, for people: who has read enough of it, as `head` does, goes.
pub fn text(text: &str) -> Result<()> {
    match written(text) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result.context(STDOUT),
    }
}

const STDOUT: &str = "standard output";

fn written(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}
