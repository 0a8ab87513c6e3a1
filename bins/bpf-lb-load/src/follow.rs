//! One change a line, and a line about each.

use std::io::BufRead;

use anyhow::{Context as _, Result};
use serde::Serialize;
use service_table::Line;

use crate::{
    apply::{ApplyError, Summary, Table},
    gone::Gone,
    print,
};

/// What `follow` says of a line.
#[derive(Debug, Serialize, schemars::JsonSchema)]
pub struct Answer {
    /// The line's number, from 1.
    line: usize,
    /// What was done. Missing if the line makes no sense: then nothing was changed.
    #[serde(flatten)]
    done: Option<Summary>,
    /// Endpoints that are less than before.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    gone: Vec<Gone>,
    /// What went wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

impl Answer {
    fn done(line: usize, mut done: Summary) -> Self {
        let errors: Vec<_> =
            done.refused.iter().map(|refused| format!("{}: {}", refused.service, refused.error)).collect();
        let error = (!errors.is_empty()).then(|| errors.join("; "));
        Self { line, gone: std::mem::take(&mut done.gone), done: Some(done), error }
    }

    fn refused(line: usize, error: impl std::error::Error) -> Self {
        Self { line, done: None, gone: Vec::new(), error: Some(error.to_string()) }
    }
}

/// Makes the changes that `input` has until it ends.
///
/// # Errors
/// When nobody reads the answers any more, when `input` cannot be read, or when the maps cannot be written.
pub fn follow(mut table: Table, mut input: impl BufRead) -> Result<()> {
    let mut text = Vec::new();
    for line in 1.. {
        text.clear();
        if input.read_until(b'\n', &mut text).context("stdin")? == 0 {
            break;
        }
        let answer = match serde_json::from_slice::<Line>(&text) {
            Ok(Line { change, .. }) => match table.change(&change) {
                Ok(done) => Answer::done(line, done),
                Err(ApplyError::Maps(error)) => return Err(error.into()),
                Err(error) => Answer::refused(line, error),
            },
            Err(error) => Answer::refused(line, error),
        };
        print::line(&answer)?;
    }
    Ok(())
}
