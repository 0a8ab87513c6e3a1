//! One change a line, and a line about each.

use std::{
    io::{self, BufRead as _},
    sync::mpsc::{Receiver, RecvTimeoutError, sync_channel},
    thread,
};

use anyhow::{Context as _, Result};
use common::memory;
use serde::Serialize;
use service_table::{Change, Line};

use crate::{
    apply::{ApplyError, Summary, Table},
    gone::Gone,
    lease::Lease,
    maps::MapsError,
    metrics::Metrics,
    print,
};

/// A line of more bytes is a whole table, of which nothing is kept as it was read.
const LONG: usize = 1 << 20;

/// What `follow` says of a line.
#[derive(Debug, Serialize, schemars::JsonSchema)]
pub struct Answer {
    /// The line's number, from 1.
    line: usize,
    /// What was done. Missing if the line makes no sense: then nothing was changed.
    #[serde(flatten)]
    done: Option<Summary>,
    /// Endpoints that are less than before, or that left a moment ago and are back to drain.
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
}

/// Makes the changes that standard input has until it ends, and renews the lease of the table as long as that lasts and does
/// not say otherwise.
///
/// # Errors
/// When nobody reads the answers any more, when the input cannot be read, when the maps cannot be written, or when somebody
/// takes away what is loaded: who starts this again loads it before.
pub fn follow(mut table: Table, mut metrics: Metrics, lease: Lease) -> Result<()> {
    let lines = read()?;
    for line in 1.. {
        // Whoever waits for an answer does not wait for this.
        let text = loop {
            if metrics.due().is_zero() {
                metrics.served()?;
                table.renew(lease);
                metrics.others();
                metrics.write(&table);
            }
            match lines.recv_timeout(metrics.due()) {
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
                Ok(text) => break text.context("stdin")?,
            }
        };
        let is_long = text.len() > LONG;
        let answer = answer(&mut table, &mut metrics, line, text)?;
        table.renew(lease);
        print::line(&answer)?;
        if is_long {
            memory::trim();
        }
    }
    Ok(())
}

fn answer(table: &mut Table, metrics: &mut Metrics, line: usize, text: Vec<u8>) -> Result<Answer, MapsError> {
    let read = serde_json::from_slice::<Line>(&text);
    // A whole table is long, and is not needed twice.
    drop(text);
    let done = match read {
        Ok(Line { change, triggered }) => {
            metrics.before(&change, table);
            // These say nothing of the cluster.
            let is_sync = !matches!(change, Change::Leave(_) | Change::Renew(_));
            table.change(&change).map(|done| {
                metrics.unfit(table);
                metrics.done(&done, is_sync, triggered.as_deref().filter(|_| !metrics.lacks(&change)));
                Answer::done(line, done)
            })
        }
        Err(error) => Err(ApplyError::Invalid(error.to_string())),
    };
    match done {
        Ok(answer) => Ok(answer),
        Err(ApplyError::Maps(error)) => Err(error),
        Err(error) => {
            metrics.refused();
            Ok(Answer { line, done: None, gone: Vec::new(), error: Some(error.to_string()) })
        }
    }
}

/// The lines of standard input, read by a thread of its own. Few at a time, so that whoever writes them waits if need be.
fn read() -> Result<Receiver<io::Result<Vec<u8>>>> {
    let (sender, receiver) = sync_channel(4);
    let lines = move || {
        let mut input = io::stdin().lock();
        loop {
            let mut text = Vec::new();
            let (line, is_last) = match input.read_until(b'\n', &mut text) {
                Ok(0) => break,
                Ok(_) => (Ok(text), false),
                Err(error) => (Err(error), true),
            };
            if sender.send(line).is_err() || is_last {
                break;
            }
        }
    };
    thread::Builder::new().name("lines".into()).spawn(lines)?;
    Ok(receiver)
}
