//! What is wrong with an object as an Event on the Service, for those who look there (`kubectl describe service`).

use std::collections::BTreeMap;

use cluster_api::{
    Selection, explain,
    k8s_openapi::api::core::v1::{ObjectReference, Service},
    kube::{
        Api, Client,
        runtime::events::{Event, EventType, Recorder, Reporter},
    },
    list, status,
};
use tokio::sync::mpsc;

use crate::cluster::Problem;

const CONTROLLER: &str = "underpass.io/watch-services";
/// So many wait for the API server; what is more is in the log and the metrics alone.
const WAITING: usize = 100;
/// The API's limit for a note, in bytes.
const NOTE: usize = 1024;

/// Says each problem once, and again when it comes back: then kube's recorder counts it in the Event that there is.
#[derive(Debug)]
pub struct Events {
    queue: mpsc::Sender<Problem>,
    said: BTreeMap<String, Problem>,
}

impl Events {
    /// Begins to write Events in the background, as this node's: nothing else waits for the API server to take them.
    pub fn new(client: &Client, node: &str) -> Self {
        let (queue, problems) = mpsc::channel(WAITING);
        let reporter = Reporter { controller: CONTROLLER.into(), instance: Some(node.to_owned()) };
        tokio::spawn(write(client.clone(), reporter, problems));
        Self { queue, said: BTreeMap::new() }
    }

    /// What is wrong now with objects, and what found no room in the kernel.
    pub fn tell(&mut self, problems: &BTreeMap<String, Problem>, unfit: &BTreeMap<String, Problem>) {
        self.said.retain(|object, said| problems.get(object).or_else(|| unfit.get(object)) == Some(said));
        for (object, problem) in problems.iter().chain(unfit) {
            if self.said.contains_key(object) {
                continue;
            }
            // When there is room again it is said.
            if self.queue.try_send(problem.clone()).is_err() {
                return;
            }
            self.said.insert(object.clone(), problem.clone());
        }
    }
}

async fn write(client: Client, reporter: Reporter, mut problems: mpsc::Receiver<Problem>) {
    let recorder = Recorder::new(client.clone(), reporter);
    let mut said = None;
    while let Some(problem) = problems.recv().await {
        match recorder.publish(&event(&problem), &regarding(&client, &problem).await).await {
            Ok(()) => said = None,
            Err(error) => {
                let why = refused(&error);
                if said.as_ref() != Some(&why) {
                    log::warn!("{why}; problems are in the log and the metrics alone");
                    said = Some(why);
                }
            }
        }
    }
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
    fn a_text_is_cut_between_characters() {
        assert_eq!(cut("abc", 2), "ab");
        assert_eq!(cut("a\u{e9}", 2), "a");
        assert_eq!(cut("a", 2), "a");
    }
}
