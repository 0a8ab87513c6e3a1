//! Pod document in, CNI result or CNI error out.

mod result;

use std::process::ExitCode;

use common::{
    document::{Command, PodDocument, Share},
    envelope::Envelope,
    failure::{Code, Context, Failure},
    harness::{self, About},
    settings::LogOptions,
    state, table,
};
use serde_json::Value;

const ABOUT: About = About {
    name: "cni-result",
    does: "Turns the pod document into what the container runtime expects: the CNI result, or the CNI error. Keeps the \
           document of a successful ADD for DEL. Exits 0 on success, 1 on an error, and 3 on an error after which \
           something may have to be undone.",
    example: "  cni-request < conf.json | detect-mode | sync-cidrs | mk-veth | set-routes | set-rules | cni-result",
};

/// An ADD that failed after it had begun, whose result cannot be written, or of which nothing is known any more: DEL will put
/// things right.
const UNDO: u8 = 3;

fn main() -> ExitCode {
    let flags = harness::matches_if_any(|| harness::cli_with_plan(ABOUT));
    let keeps = flags.is_none_or(|flags| !flags.get_flag("dry-run") && !flags.get_flag("explain"));
    let envelope = match harness::read_document() {
        Ok(envelope) => envelope,
        Err(refused) => {
            harness::init_log(ABOUT.name, &LogOptions::default(), "");
            let (input, failure) = (refused.input, refused.failure);
            let failure = serde_json::from_value(input["error"].clone()).unwrap_or_else(|_| ours(failure));
            let lost = input["request"].is_null() || failure.code == Code::ToolDied as u32;
            return answer(&input["request"]["config"], &failure, if lost { UNDO } else { 1 });
        }
    };
    let document = &envelope.document;
    harness::init_log(ABOUT.name, &document.settings.log_options, &document.request.attachment());
    let kept = || if keeps { keep(&envelope) } else { Ok(()) };
    match document.error.clone().map_or_else(kept, Err) {
        Ok(()) => match result::success(document) {
            Some(output) => {
                let printed = harness::print_json(&output, ExitCode::SUCCESS);
                let is_unheard = printed != ExitCode::SUCCESS && document.request.command == Command::Add;
                if is_unheard && keeps { ExitCode::from(UNDO) } else { printed }
            }
            None => ExitCode::SUCCESS,
        },
        Err(failure) => {
            let undo = document.request.command == Command::Add && !document.applied.is_empty();
            if undo && keeps {
                // DEL finds here what the kernel cannot tell it.
                let _ = state::save(&document.request, &with_earlier(&envelope));
            }
            answer(&document.request.config, &failure, if undo { UNDO } else { 1 })
        }
    }
}

fn ours(failure: Failure) -> Failure {
    Failure { tool: ABOUT.name.to_owned(), ..failure }
}

/// Says what went wrong, in the form of the version that the plugin configuration has.
fn answer(config: &Value, failure: &Failure, code: u8) -> ExitCode {
    let people = || format!("{}: error: {}", ABOUT.name, table::one_line(&failure.to_string()));
    // Whether that can be written changes nothing.
    harness::answer(&result::error(config, failure), people, ExitCode::from(code));
    ExitCode::from(code)
}

/// Keeps or forgets the state of the attachment.
fn keep(envelope: &Envelope) -> Result<(), Failure> {
    let request = &envelope.document.request;
    let kept = match request.command {
        Command::Add => state::save(request, &with_earlier(envelope)),
        Command::Del => state::forget(&request.container_id, &request.ifname),
        Command::Gc => forget_stale(&envelope.document),
        Command::Check | Command::Status | Command::Version => Ok(()),
    };
    kept.context(Code::Io, "cannot write the state directory").map_err(ours)
}

/// The document with the operations of earlier ADDs before its own: what those replaced, DEL puts back. Of the pod's other
/// attachments only those on what all share, for the last of them that is served puts that back.
fn with_earlier(envelope: &Envelope) -> Envelope {
    let mut envelope = envelope.clone();
    let document = &mut envelope.document;
    let saved = state::load(&document.request)
        .filter(|saved| saved.request.netns == document.request.netns && !saved.has_lost_netns());
    let mut applied = saved.map(|saved| saved.applied).unwrap_or_default();
    let others: &[Share] = if document.is_left_alone() { &[] } else { &document.others };
    let others = others.iter().flat_map(|other| &other.applied);
    let news: Vec<_> = others.filter(|operation| !applied.contains(operation)).cloned().collect();
    applied.extend(news);
    applied.append(&mut document.applied);
    document.applied = applied;
    envelope
}

fn forget_stale(document: &PodDocument) -> std::io::Result<()> {
    let stale = state::stale(&document.request);
    stale.iter().try_for_each(|PodDocument { request, .. }| state::forget(&request.container_id, &request.ifname))
}
