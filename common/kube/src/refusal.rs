//! What went wrong on the way to the API server, or what it refuses, and what to do.

use std::error::Error;

use kube::core::Status;

use crate::selection::Selection;

/// The API server's own answer, where it gave one.
pub fn status(error: &kube::Error) -> Option<&Status> {
    match error {
        kube::Error::Api(status) => Some(status),
        _ => None,
    }
}

/// What went wrong and what to do, for a person. `verb` is RBAC's name for what was tried.
pub fn explain(selection: &Selection, verb: &str, error: &kube::Error) -> String {
    match status(error) {
        Some(status) => refusal(selection, verb, status),
        None => format!("cannot {verb} {}: {}", selection.describe(), causes(error)),
    }
}

/// The API server's answer, for a person.
pub(crate) fn refusal(selection: &Selection, verb: &str, status: &Status) -> String {
    let what = selection.describe();
    match status.code {
        401 => format!(
            "cannot {verb} {what}: the API server does not accept our credentials (401): they have expired, or are \
             another cluster's"
        ),
        403 => format!("not allowed to {verb} {what} (403): it takes {}", selection.rule(verb)),
        code => format!("cannot {verb} {what}: {} ({code})", status.message),
    }
}

/// An error with its causes in one line, none of them twice: many errors repeat their cause's text in their own.
pub fn causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}
