//! The one place that writes to stdout.

use anyhow::Result;
use serde::Serialize;

/// One JSON document on one line. Fails when nobody reads any more.
pub fn line(document: &impl Serialize) -> Result<()> {
    text(&(serde_json::to_string(document)? + "\n"))
}

/// A JSON document for people.
pub fn pretty(document: &impl Serialize) -> Result<()> {
    text(&(serde_json::to_string_pretty(document)? + "\n"))
}

/// Text as it is.
pub fn text(text: &str) -> Result<()> {
    use std::io::Write as _;
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    Ok(stdout.flush()?)
}
