//! Objects in, CIDRs out, each with where it came from. Pure.
//!
//! It asks for what it needs as it goes: what a question needs follows from the answers before it, so nobody reads all
//! Nodes of a cluster whose kubeadm-config says it all.

use std::{cell::RefCell, collections::BTreeSet};

use common::{cidrs::merged, document::Cidrs, object::Family};
use ipnet::IpNet;
use serde_json::{Map, Value, json};

use crate::{
    check,
    cni::{self, Plugin},
    kind::Kind,
    settings::{self, Defaults, PodCidrType},
    survey::{Asked, Finding, Options, Survey, Unknown, name},
    world::World,
};

mod calico;
mod cilium;
mod cluster;
mod service;
#[cfg(test)]
mod tests;

/// What the cluster says.
#[derive(Clone, Debug, PartialEq)]
pub struct Cluster {
    /// The defaults for the plugin configuration.
    pub settings: Map<String, Value>,
    /// The podCIDRType that applied, never auto.
    pub pod_cidr_type: PodCidrType,
    /// Why this one.
    pub chosen_by: String,
    /// The Services' CIDRs.
    pub service: Vec<Finding>,
    /// The pods' CIDRs.
    pub pod: Vec<Finding>,
    /// What was refused or not found.
    pub problems: Vec<String>,
    /// Why no CIDR could be checked against the node's own addresses, which is one of the problems. An agent does not take what
    /// may lead its pods to the nodes.
    pub unchecked: Option<String>,
}

/// An answer, or what is still needed for one.
#[derive(Clone, Debug, PartialEq)]
pub struct Derived {
    /// The kinds that were looked at.
    pub needs: BTreeSet<Kind>,
    /// None while one of them is not known.
    pub cluster: Option<Cluster>,
}

/// Derives the cluster's CIDRs from what is known of it.
pub fn derive(world: &World, options: &Options) -> Derived {
    let mut survey = Survey {
        world,
        options,
        own: vec![],
        needs: RefCell::default(),
        problems: RefCell::default(),
        around_the_node: RefCell::default(),
    };
    // Each question is asked even if another has no answer yet, so that all that is needed is read at the same time.
    let own = survey.own_addresses().map(|own| survey.own = own);
    let defaults = survey.defaults();
    let service = defaults.as_ref().map_err(|_| Unknown).and_then(|defaults| survey.services(defaults));
    let pods = defaults.as_ref().map_err(|_| Unknown).and_then(|defaults| survey.pods(defaults));
    let cluster = match (own, defaults, service, pods) {
        (Ok(()), Ok(defaults), Ok(service), Ok((pod_cidr_type, chosen_by, pod))) => {
            let service = survey.within_limit(&service, 0);
            let pod = survey.within_limit(&pod, service.len());
            let unchecked = survey.unchecked().filter(|_| !service.is_empty() || !pod.is_empty());
            let mut problems = survey.problems.take();
            problems.extend(unchecked.clone());
            problems.sort();
            problems.dedup();
            Some(Cluster { settings: defaults.settings, pod_cidr_type, chosen_by, service, pod, problems, unchecked })
        }
        _ => None,
    };
    Derived { needs: survey.needs.take(), cluster }
}

impl Survey<'_> {
    fn defaults(&self) -> Asked<Defaults> {
        let mut problems = self.problems.borrow_mut();
        if let Some(object) = self.object(Kind::SpiderCoordinator)? {
            return Ok(settings::of_spider_coordinator(object, &mut problems));
        }
        let object = self.object(Kind::Settings)?;
        Ok(object.map(|object| settings::of_config_map(object, &mut problems)).unwrap_or_default())
    }

    fn pods(&self, defaults: &Defaults) -> Asked<(PodCidrType, String, Vec<Finding>)> {
        let (chosen, by) = self.pod_cidr_type(defaults);
        let (chosen, by) = if chosen == PodCidrType::Auto { self.detect()? } else { (chosen, by.to_owned()) };
        if chosen == PodCidrType::None {
            return Ok((chosen, by, vec![]));
        }
        self.around_the_node.take();
        let mut found = match chosen {
            PodCidrType::Calico => self.calico()?,
            PodCidrType::Cilium => self.cilium()?,
            _ => self.cluster_pods()?,
        };
        for family in self.around_the_node.take() {
            if !found.iter().any(|finding| Family::of(finding.cidr.addr()) == family) {
                found.extend(self.of_the_node(chosen, family)?);
            }
        }
        if found.is_empty() {
            self.problem(format!("no CIDR of overlay pods was found with podCIDRType {}", chosen.name()));
        }
        Ok((chosen, by, found))
    }

    /// What the own node was given, in place of a CIDR that the node itself is in. No more than that: to know what each of
    /// the others was given, every node would have to follow all of them.
    fn of_the_node(&self, chosen: PodCidrType, family: Family) -> Asked<Vec<Finding>> {
        let mut found = if chosen == PodCidrType::Cilium { self.own_cilium_node()? } else { vec![] };
        if found.is_empty() && chosen != PodCidrType::Calico {
            found = self.own_node()?;
        }
        found.retain(|finding| Family::of(finding.cidr.addr()) == family);
        Ok(found)
    }

    /// What podCIDRType auto means here: the node's CNI configuration decides, and where there is none, the API.
    fn detect(&self) -> Asked<(PodCidrType, String)> {
        let problems = self.options.cni.iter().filter_map(|(_, text)| text.as_ref().err());
        problems.for_each(|problem| self.problem(problem.clone()));
        if let Some(Plugin { name, ipam, file }) = cni::default_plugin(&self.options.cni) {
            let chosen = match (&*name, &*ipam) {
                // Canal, and others that give their addresses otherwise: no pool is used, even if there is one.
                ("calico", "" | "calico-ipam") => PodCidrType::Calico,
                ("cilium-cni", _) => PodCidrType::Cilium,
                _ => PodCidrType::Cluster,
            };
            let with = if name == "calico" && chosen == PodCidrType::Cluster {
                format!(" with ipam {ipam}")
            } else {
                String::new()
            };
            // Calico can keep its pools elsewhere than in the API.
            if chosen != PodCidrType::Calico || self.has_calico()? {
                return Ok((chosen, format!("plugin {name}{with} in {file}")));
            }
        }
        self.detect_by_api()
    }

    fn detect_by_api(&self) -> Asked<(PodCidrType, String)> {
        let (chosen, by) = if !self.calico_pools()?.is_empty() {
            match self.canal()? {
                Some(canal) => (PodCidrType::Cluster, format!("the API has {}", name(canal))),
                None => (PodCidrType::Calico, "the API has IPPools".to_owned()),
            }
        } else if !self.objects(Kind::CiliumConfig)?.is_empty() {
            (PodCidrType::Cilium, "the API has cilium-config".to_owned())
        } else {
            (PodCidrType::Cluster, "the API has neither Calico's nor Cilium's objects".to_owned())
        };
        Ok((chosen, by))
    }

    /// Refuses the object with which the CIDRs would become too many, and takes the others.
    fn within_limit(&self, findings: &[Finding], before: usize) -> Vec<Finding> {
        let mut taken: Vec<Finding> = vec![];
        let mut count = before;
        for object in findings.chunk_by(|one, next| one.source == next.source) {
            let cidrs: Vec<IpNet> = object.iter().map(|finding| finding.cidr).collect();
            let more = IpNet::aggregate(&cidrs).len();
            if count + more > check::MOST {
                let source = &object[0].source;
                self.problem(format!("{source}: {more} CIDRs are too many: at most {} in all", check::MOST));
                continue;
            }
            count += more;
            taken.extend_from_slice(object);
        }
        taken
    }
}

impl Cluster {
    /// The merged CIDRs.
    pub fn cidrs(&self) -> Cidrs {
        let of = |findings: &[Finding]| findings.iter().map(|finding| finding.cidr).collect();
        merged(&Cidrs { service: of(&self.service), pod: of(&self.pod), hijack: vec![] })
    }

    /// What is kept in `cluster.json`: the settings, the CIDRs, where each of these came from, and what was refused.
    pub fn document(&self) -> Value {
        let cidrs = self.cidrs();
        let mut sources = Map::new();
        for cidr in cidrs.all() {
            let within = self.service.iter().chain(&self.pod).filter(|finding| cidr.contains(&finding.cidr));
            let named: BTreeSet<String> = within.map(Finding::describe).collect();
            sources.insert(cidr.to_string(), json!(named));
        }
        json!({
            "settings": self.settings,
            "podCIDRType": { "value": self.pod_cidr_type.name(), "chosenBy": self.chosen_by },
            "cidrs": { "service": cidrs.service, "pod": cidrs.pod },
            "sources": sources,
            "problems": self.problems,
        })
    }
}
