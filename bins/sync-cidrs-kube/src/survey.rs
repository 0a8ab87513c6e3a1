//! What the questions of [`crate::derive`] share: what they are asked of, and how a CIDR is taken or refused.

use std::{cell::RefCell, collections::BTreeSet, net::IpAddr};

use common::object::Family;
use ipnet::IpNet;
use serde_json::Value;

use crate::{
    check,
    cni::File,
    kind::Kind,
    settings::{Defaults, PodCidrType},
    world::{Known, World},
};

/// What the answer depends on besides the cluster.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Options {
    /// podCIDRType, where the command line has it.
    pub pod_cidr_type: Option<PodCidrType>,
    /// The own node's name, where it is known.
    pub node: Option<String>,
    /// The node's CNI configuration.
    pub cni: Vec<File>,
}

/// A CIDR and where it is from.
#[derive(Clone, Debug, PartialEq)]
pub struct Finding {
    /// The CIDR.
    pub cidr: IpNet,
    /// For a person: which object says so.
    pub source: String,
    /// What was made of it, for a person; empty if it was taken as it is.
    pub note: String,
}

impl Finding {
    /// For a person: where it is from, and what was made of it.
    pub fn describe(&self) -> String {
        let Self { source, note, .. } = self;
        if note.is_empty() { source.clone() } else { format!("{source} ({note})") }
    }
}

/// Something is not known yet.
pub struct Unknown;

/// What a question is answered with.
pub type Asked<T> = Result<T, Unknown>;

/// What the questions share.
pub struct Survey<'a> {
    /// What is known of the cluster.
    pub world: &'a World,
    /// What the answer depends on besides.
    pub options: &'a Options,
    /// The node's own addresses.
    pub own: Vec<IpAddr>,
    /// The kinds that were looked at.
    pub needs: RefCell<BTreeSet<Kind>>,
    /// What was refused or not found.
    pub problems: RefCell<Vec<String>>,
    /// The families in which a CIDR was refused because the node itself is in it.
    pub around_the_node: RefCell<BTreeSet<Family>>,
}

impl Survey<'_> {
    /// The objects of a kind, none where the API does not have it.
    pub fn objects(&self, kind: Kind) -> Asked<Vec<&Value>> {
        self.known(kind).map(|known| match known {
            Known::Absent => vec![],
            Known::Objects(objects) => objects.values().collect(),
        })
    }

    /// The one object of a kind of which there is one at most.
    pub fn object(&self, kind: Kind) -> Asked<Option<&Value>> {
        Ok(self.objects(kind)?.first().copied())
    }

    /// What is known of a kind, which is needed then.
    pub fn known(&self, kind: Kind) -> Asked<Known<'_>> {
        self.needs.borrow_mut().insert(kind);
        self.world.get(kind).ok_or(Unknown)
    }

    /// Says what was refused or not found.
    pub fn problem(&self, problem: String) {
        self.problems.borrow_mut().push(problem);
    }

    /// The CIDRs of a text, separated by commas or blanks. What is wrong is refused and named.
    pub fn accept(&self, text: &str, source: &str) -> Vec<Finding> {
        let parts = text.split([',', ' ', '\n']).filter(|part| !part.trim().is_empty());
        parts.filter_map(|part| self.accept_one(part, source)).collect()
    }

    /// The same of one.
    pub fn accept_one(&self, text: &str, source: &str) -> Option<Finding> {
        let said = check::parse(text);
        match check::cidr(text, &self.own) {
            Ok(cidr) => {
                let masked = said.filter(|said| *said != cidr);
                let note = masked.map(|said| format!("{said}, its host bits masked")).unwrap_or_default();
                Some(Finding { cidr, source: source.to_owned(), note })
            }
            Err(reason) => {
                if let Some(net) = said.filter(|net| self.own.iter().any(|own| net.contains(own))) {
                    self.around_the_node.borrow_mut().insert(Family::of(net.addr()));
                }
                self.problem(format!("{source}: {reason}"));
                None
            }
        }
    }

    /// The first source that has something.
    pub fn first(sources: &[&dyn Fn() -> Asked<Vec<Finding>>]) -> Asked<Vec<Finding>> {
        for source in sources {
            let found = source()?;
            if !found.is_empty() {
                return Ok(found);
            }
        }
        Ok(vec![])
    }

    /// The node's own addresses, where a node is named.
    pub fn own_addresses(&self) -> Asked<Vec<IpAddr>> {
        if self.options.node.is_none() {
            return Ok(vec![]);
        }
        let node = self.objects(Kind::OwnNode)?;
        let addresses = node.iter().flat_map(|node| node["status"]["addresses"].as_array().into_iter().flatten());
        Ok(addresses.filter_map(|address| address["address"].as_str()?.parse().ok()).collect())
    }

    /// Why no CIDR can be checked against them, where a node is named.
    pub fn unchecked(&self) -> Option<String> {
        let node = self.options.node.as_ref().filter(|_| self.own.is_empty())?;
        let why = match self.object(Kind::OwnNode) {
            Ok(Some(_)) => format!("Node {node} has no address"),
            _ => format!("there is no Node {node} (--node)"),
        };
        Some(format!("{why}: no CIDR can be checked against the node's own addresses"))
    }

    /// The podCIDRType that somebody set, and who.
    pub fn pod_cidr_type(&self, defaults: &Defaults) -> (PodCidrType, &'static str) {
        match (self.options.pod_cidr_type, defaults.pod_cidr_type) {
            (Some(chosen), _) => (chosen, "the command line"),
            (None, Some(chosen)) => (chosen, "the cluster's settings"),
            (None, None) => (PodCidrType::Auto, "default"),
        }
    }

    /// Says that these are the pods' CIDRs of this node alone.
    pub fn only_here(&self, found: &[Finding]) {
        if let Some(first) = found.first() {
            let source = &first.source;
            self.problem(format!(
                "{source}: the pods' CIDRs of this node only; for those of other nodes set overlayPodCIDR"
            ));
        }
    }
}

/// Whether somebody has deleted it and a finalizer holds it back.
pub fn is_being_deleted(object: &Value) -> bool {
    !object["metadata"]["deletionTimestamp"].is_null()
}

/// An object's name.
pub fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or_default()
}
