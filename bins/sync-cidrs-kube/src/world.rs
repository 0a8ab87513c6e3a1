//! What is known of the cluster: objects, by kind.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::kind::Kind;

/// What is known of one kind.
#[derive(Clone, Debug, PartialEq)]
pub enum Known {
    /// The API does not have this resource.
    Absent,
    /// The objects that there are.
    Objects(Vec<Value>),
}

/// Everything that has been read so far.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct World(BTreeMap<Kind, Known>);

impl World {
    /// Everything, from what `kubectl get ... --output json` printed: a List, an object, or several of these one after
    /// the other. What is not in there is absent.
    pub fn from_objects(documents: &[Value], node: Option<&str>) -> Self {
        let mut objects = vec![];
        for document in documents {
            match document["items"].as_array() {
                Some(items) => objects.extend(items),
                None => objects.push(document),
            }
        }
        let known = |kind: Kind| {
            let of_kind: Vec<Value> = objects.iter().filter(|o| kind.has(o, node)).map(|o| (*o).clone()).collect();
            (kind, if of_kind.is_empty() { Known::Absent } else { Known::Objects(of_kind) })
        };
        Self(Kind::ALL.into_iter().map(known).collect())
    }

    /// What is known of a kind, if anything.
    pub fn get(&self, kind: Kind) -> Option<&Known> {
        self.0.get(&kind)
    }

    /// Notes what is known of a kind.
    pub fn set(&mut self, kind: Kind, known: Known) {
        self.0.insert(kind, known);
    }

    /// Forgets a kind that nobody follows any more.
    pub fn forget(&mut self, kind: Kind) {
        self.0.remove(&kind);
    }
}
