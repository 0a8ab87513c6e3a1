//! What was found of one thing that pods need of their node.

use std::borrow::Cow;

use common::table;
use serde::Serialize;

/// One thing that pods need of their node.
#[derive(Debug, Serialize)]
pub struct Check {
    /// What it is about.
    pub name: &'static str,
    /// Whether it is so.
    pub ok: bool,
    /// What was found, for a person.
    pub msg: String,
    /// What to change where it is not so.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub remedy: Cow<'static, str>,
}

/// A row for each check and, where something is to be changed, a second one that says what.
pub fn table(checks: &[Check]) -> String {
    let row = |name: &str, ok: &str, text: &str| vec![name.to_owned(), ok.to_owned(), text.to_owned()];
    let rows = checks.iter().flat_map(|check| {
        let remedy = (!check.ok).then(|| row("", "", &format!("-> {}", check.remedy)));
        [row(check.name, if check.ok { "yes" } else { "NO" }, &check.msg)].into_iter().chain(remedy)
    });
    table::table(&["CHECK", "OK", "WHAT"], &rows.collect::<Vec<_>>())
}
