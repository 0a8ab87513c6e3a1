//! What is wrong with an object as an Event on the Service, for those who look there (`kubectl describe service`).

use std::{
    collections::BTreeMap,
    ops::Bound::{Excluded, Unbounded},
    time::Duration,
};

use cluster_api::{
    Selection, backoff, explain,
    k8s_openapi::api::core::v1::{ObjectReference, Service},
    kube::{
        Api, Client,
        runtime::events::{Event, EventType, Recorder, Reporter},
    },
    list, status,
};
use tokio::{sync::watch, time::sleep};

use crate::problem::Problem;

const CONTROLLER: &str = "underpass.io/watch-services";
/// How long until the API server is asked again after it has refused one: at first and at most.
const WAITS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_mins(5));
/// The API's limit for a note, in bytes.
const NOTE: usize = 1024;

type Problems = BTreeMap<String, Problem>;

/// Says each problem once, and again when it comes back: then kube's recorder counts it in the Event that there is.
#[derive(Debug)]
pub struct Events(watch::Sender<Problems>);

impl Events {
    /// Begins to write Events in the background, as this node's: nothing else waits for the API server to take them.
    pub fn new(client: &Client, node: &str) -> Self {
        let (sender, problems) = watch::channel(Problems::new());
        let reporter = Reporter { controller: CONTROLLER.into(), instance: Some(node.to_owned()) };
        tokio::spawn(write(client.clone(), reporter, problems));
        Self(sender)
    }

    /// What is wrong now with objects, and what found no room in the kernel.
    pub fn tell(&self, problems: &Problems, unfit: &Problems) {
        let all: BTreeMap<_, _> = unfit.iter().chain(problems).collect();
        self.0.send_if_modified(|told| {
            let is_new = !told.iter().eq(all.iter().map(|(object, problem)| (*object, *problem)));
            if is_new {
                *told = all.into_iter().map(|(object, problem)| (object.clone(), problem.clone())).collect();
            }
            is_new
        });
    }
}

async fn write(client: Client, reporter: Reporter, mut problems: watch::Receiver<Problems>) {
    let recorder = Recorder::new(client.clone(), reporter);
    let (mut said, mut last) = (Problems::new(), String::new());
    let (mut waits, mut complained) = (backoff(WAITS), None);
    loop {
        let Some((object, problem)) = next(&mut problems, &mut said, &last) else {
            if problems.changed().await.is_err() {
                return;
            }
            continue;
        };
        last.clone_from(&object);
        match recorder.publish(&event(&problem), &regarding(&client, &problem).await).await {
            Ok(()) => {
                said.insert(object, problem);
                (waits, complained) = (backoff(WAITS), None);
            }
            Err(error) => {
                let why = refused(&error);
                if complained.as_ref() != Some(&why) {
                    log::warn!("{why}; problems are in the log and the metrics alone");
                    complained = Some(why);
                }
                sleep(waits.next().unwrap_or(WAITS.1)).await;
            }
        }
    }
}

/// A problem that was not said, in turn: one that is refused again and again keeps no other waiting for longer than once.
fn next(problems: &mut watch::Receiver<Problems>, said: &mut Problems, last: &String) -> Option<(String, Problem)> {
    let now = problems.borrow_and_update();
    said.retain(|object, said| now.get(object) == Some(said));
    let mut in_turn = now.range::<String, _>((Excluded(last), Unbounded)).chain(now.iter());
    let next = in_turn.find(|(object, _)| !said.contains_key(*object));
    next.map(|(object, problem)| (object.clone(), problem.clone()))
}

/// The Service, or what there is instead. Who looks at a Service (`kubectl describe`) looks for Events with its UID.
async fn regarding(client: &Client, problem: &Problem) -> ObjectReference {
    let mut object = problem.service.as_ref().unwrap_or(&problem.object).clone();
    if let ObjectReference { uid: None, namespace: Some(namespace), name: Some(name), .. } = &object {
        let selection = Selection::of::<Service>().within(namespace).named(name);
        let of_namespace = Api::namespaced(client.clone(), namespace);
        let found = list(&of_namespace, &selection, |service: Service| service.metadata.uid).await;
        object.uid = found.ok().and_then(|mut uids| uids.pop()?);
    }
    object
}

/// The recorder takes two Events for one if they differ in their notes alone: the action has the first problem too.
fn event(problem: &Problem) -> Event {
    Event {
        type_: EventType::Warning,
        reason: problem.reason.clone(),
        note: Some(cut(&format!("{problem}; the rest is served"), NOTE)),
        action: cut(&problem.to_string(), 128),
        secondary: problem.service.as_ref().map(|_| problem.object.clone()),
    }
}

/// At most so many bytes of it.
fn cut(text: &str, most: usize) -> String {
    let end = (0..=most.min(text.len())).rev().find(|end| text.is_char_boundary(*end)).unwrap_or_default();
    text[..end].to_owned()
}

fn refused(error: &cluster_api::kube::Error) -> String {
    let events = Selection::resource("events.k8s.io", "v1", "Event", "events");
    let again = status(error).is_some_and(|status| status.message.contains("cannot patch"));
    explain(&events, if again { "patch" } else { "create" }, error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_refused_is_said_again_after_the_others() {
        let problem = |reason: &str| {
            let (object, texts) = (ObjectReference::default(), vec![]);
            Problem { reason: reason.to_owned(), texts, object, service: None }
        };
        let now: Problems = ["a", "b", "c"].map(|object| (object.to_owned(), problem("Wrong"))).into();
        let (sender, mut receiver) = watch::channel(now);
        let mut said = Problems::new();
        let mut ask =
            |said: &mut Problems, last: &str| next(&mut receiver, said, &last.to_owned()).map(|(name, _)| name);
        assert_eq!(ask(&mut said, "").as_deref(), Some("a"));
        assert_eq!(ask(&mut said, "a").as_deref(), Some("b"));
        said.insert("b".to_owned(), problem("Wrong"));
        assert_eq!(ask(&mut said, "b").as_deref(), Some("c"));
        said.insert("c".to_owned(), problem("Wrong"));
        assert_eq!(ask(&mut said, "c").as_deref(), Some("a"));
        sender.send_modify(|now| drop(now.insert("b".to_owned(), problem("Other"))));
        assert_eq!(ask(&mut said, "a").as_deref(), Some("b"));
        sender.send_modify(|now| drop(now.split_off("b")));
        assert_eq!(ask(&mut said, "a").as_deref(), Some("a"));
        assert!(said.is_empty());
    }

    #[test]
    fn a_text_is_cut_between_characters() {
        assert_eq!(cut("abc", 2), "ab");
        assert_eq!(cut("a\u{e9}", 2), "a");
        assert_eq!(cut("a", 2), "a");
    }
}
