//! Pod document in, CNI result or CNI error out.

mod result;

use std::process::ExitCode;

use common::{
    document::{Command, PodDocument},
    failure::{Code, Context, Failure},
    harness::{self, About},
    state, table,
};
use serde_json::{Value, json};

const ABOUT: About = About {
    name: "cni-result",
    does: "Turns the pod document into what the container runtime expects: the CNI result, or the CNI error. Keeps the \
           document of a successful ADD for DEL. Exits 0 on success, 1 on an error, and 3 on an error after which \
           something may have to be undone.",
    example: "  cni-request < conf.json | detect-mode | sync-cidrs | mk-veth | set-routes | set-rules | cni-result",
};

/// An ADD that failed after it had begun, or of which nothing is known any more: DEL will put things right.
const UNDO: u8 = 3;

fn main() -> ExitCode {
    let flags = harness::matches(harness::cli_with_plan(ABOUT));
    let keeps = !flags.get_flag("dry-run") && !flags.get_flag("explain");
    let input = harness::read_document();
    let (input, document) = match input {
        Ok(input) => (input.clone(), serde_json::from_value::<PodDocument>(input).ok()),
        Err(failure) => return answer(&Value::Null, &Failure { tool: ABOUT.name.to_owned(), ..failure }, UNDO),
    };
    let Some(document) = document else {
        let failure = serde_json::from_value(input["error"].clone()).unwrap_or_else(|error| Failure {
            tool: ABOUT.name.to_owned(),
            ..Failure::new(Code::Decoding, "standard input is not a pod document").details(error)
        });
        let lost = input["request"].is_null() || failure.code == Code::ToolDied as u32;
        return answer(&input, &failure, if lost { UNDO } else { 1 });
    };
    harness::init_log(ABOUT.name, &document.settings.log_options, &document.request.attachment());
    let kept = || if keeps { keep(&document, &input) } else { Ok(()) };
    match document.error.clone().map_or_else(kept, Err) {
        Ok(()) => match result::success(&document) {
            Some(output) => harness::print_json(&output, ExitCode::SUCCESS),
            None => ExitCode::SUCCESS,
        },
        Err(failure) => {
            let undo = document.request.command == Command::Add && !document.applied.is_empty();
            if undo && keeps {
                // DEL finds here what the kernel cannot tell it.
                let _ = state::save(&document.request, &with_earlier(&document, &input));
            }
            answer(&input, &failure, if undo { UNDO } else { 1 })
        }
    }
}

fn answer(document: &Value, failure: &Failure, code: u8) -> ExitCode {
    let people = || format!("{}: error: {}", ABOUT.name, table::one_line(&failure.to_string()));
    harness::answer(&result::error(document, failure), people, ExitCode::from(code))
}

/// Keeps or forgets the state of the attachment.
fn keep(document: &PodDocument, text: &Value) -> Result<(), Failure> {
    let request = &document.request;
    let kept = match request.command {
        Command::Add => state::save(request, &with_earlier(document, text)),
        Command::Del => state::forget(&request.container_id, &request.ifname),
        Command::Gc => forget_stale(document),
        Command::Check | Command::Status | Command::Version => Ok(()),
    };
    kept.context(Code::Io, "cannot write the state directory")
        .map_err(|failure| Failure { tool: ABOUT.name.to_owned(), ..failure })
}

/// The document with the operations of earlier ADDs before its own: what those replaced, DEL puts back. Of the pod's other
/// attachments only those on what all share, for the last of them that is served puts that back.
fn with_earlier(document: &PodDocument, text: &Value) -> Value {
    let saved = state::load(&document.request)
        .filter(|saved| saved.request.netns == document.request.netns && !saved.has_lost_netns());
    let mut applied = saved.map(|saved| saved.applied).unwrap_or_default();
    let others = document.others.iter().filter(|_| !document.is_left_alone()).flat_map(|other| &other.applied);
    let news: Vec<_> = others.filter(|operation| !applied.contains(operation)).cloned().collect();
    applied.extend(news.into_iter().chain(document.applied.clone()));
    let mut text = text.clone();
    text["applied"] = json!(applied);
    text
}

fn forget_stale(document: &PodDocument) -> std::io::Result<()> {
    let stale = state::stale(&document.request);
    stale.iter().try_for_each(|PodDocument { request, .. }| state::forget(&request.container_id, &request.ifname))
}
