//! What is known of the cluster: objects, by kind.

use std::collections::BTreeMap;

use cluster_api::{Event, Name};
use serde_json::Value;

use crate::kind::Kind;

/// What is known of one kind.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Known<'a> {
    /// The API does not have this resource.
    Absent,
    /// The objects that there are.
    Objects(&'a Objects),
}

/// Objects by name.
pub type Objects = BTreeMap<Name, Value>;

/// Everything that has been read so far.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct World(BTreeMap<Kind, Seen>);

#[derive(Clone, Debug, Default, PartialEq)]
struct Seen {
    objects: Objects,
    /// Whether the API has the resource; not known until all of it has been said.
    there: Option<bool>,
}

impl World {
    /// Everything, from what `kubectl get ... --output json` printed: a List, an object, or several of these one after
    /// the other. What is not in there is absent.
    pub fn from_objects(documents: &[Value], node: Option<&str>) -> Self {
        let objects = objects(documents);
        let seen = |kind: Kind| {
            let of_kind = objects.iter().filter(|object| kind.has(object, node));
            let objects: Objects = of_kind.map(|object| (name(object), (*object).clone())).collect();
            (kind, Seen { there: Some(!objects.is_empty()), objects })
        };
        Self(Kind::ALL.into_iter().map(seen).collect())
    }

    /// Whether all of this is what `kubectl get ... --output json` prints: each object says its kind, and a List too.
    pub fn is_of_kubernetes(documents: &[Value]) -> bool {
        documents.iter().chain(objects(documents)).all(|object| object["kind"].is_string())
    }

    /// What is known of a kind, if anything.
    pub fn get(&self, kind: Kind) -> Option<Known<'_>> {
        let seen = self.0.get(&kind)?;
        Some(if seen.there? { Known::Objects(&seen.objects) } else { Known::Absent })
    }

    /// Notes what a watch says of a kind.
    pub fn note(&mut self, kind: Kind, event: Event<Value>) {
        let seen = self.0.entry(kind).or_default();
        match event {
            Event::Applied(name, object) => drop(seen.objects.insert(name, object)),
            Event::Deleted(name) => drop(seen.objects.remove(&name)),
            Event::Listed => seen.there = Some(true),
            Event::Absent => seen.there = Some(false),
            Event::InContact | Event::Failed(_) | Event::Denied(_) => {}
        }
    }

    /// Forgets a kind that nobody follows any more.
    pub fn forget(&mut self, kind: Kind) {
        self.0.remove(&kind);
    }
}

/// The objects, those of Lists too.
fn objects<'a>(documents: &'a [Value]) -> Vec<&'a Value> {
    let of = |document: &'a Value| match document["items"].as_array() {
        Some(items) => items.iter().collect(),
        None => vec![document],
    };
    documents.iter().flat_map(of).collect()
}

fn name(object: &Value) -> Name {
    let text = |key: &str| object["metadata"][key].as_str().unwrap_or_default().to_owned();
    Name { namespace: text("namespace"), name: text("name") }
}
