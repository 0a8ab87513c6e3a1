//! What is wrong with objects.

use std::{collections::BTreeMap, fmt};

use cluster_api::{Name, k8s_openapi::api::core::v1 as core, kube::Resource};

use crate::service;

/// What is wrong with an object.
#[derive(Clone, Debug, PartialEq)]
pub struct Problem {
    /// What an Event about it is called.
    pub reason: String,
    /// One or more, for a person.
    pub texts: Vec<String>,
    /// The object.
    pub object: core::ObjectReference,
    /// Of a slice, the Service that it names.
    pub service: Option<core::ObjectReference>,
}

impl Problem {
    /// None if there is nothing wrong.
    pub fn of<K: Resource<DynamicType = ()>>(object: &K, texts: Vec<String>) -> Option<Self> {
        // Which version of the object has it does not make it another problem.
        let reference = || core::ObjectReference { resource_version: None, ..object.object_ref(&()) };
        let reason = format!("Invalid{}", K::kind(&()));
        (!texts.is_empty()).then(|| Self { reason, texts, object: reference(), service: None })
    }

    /// The addresses that a Service lacks, since others leave them to the host path. None if it has all of its own.
    pub fn of_addresses(service: &Name, texts: Vec<String>) -> Option<Self> {
        let reason = "AddressTaken".to_owned();
        (!texts.is_empty()).then(|| Self { reason, texts, object: service::reference(service), service: None })
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.texts.join("; "))
    }
}

/// All that is wrong now, by object; what changes in it is said in the log.
#[derive(Debug, Default)]
pub struct Problems(BTreeMap<String, Problem>);

impl Problems {
    /// What is wrong with an object now, if anything.
    pub fn note(&mut self, object: String, problem: Option<Problem>) {
        let Some(problem) = problem else {
            if self.0.remove(&object).is_some() {
                log::info!("{object}: nothing is wrong any more");
            }
            return;
        };
        if self.0.get(&object) != Some(&problem) {
            log::warn!("{object}: {problem}; the rest is served");
            self.0.insert(object, problem);
        }
    }

    /// By object.
    pub const fn all(&self) -> &BTreeMap<String, Problem> {
        &self.0
    }
}
