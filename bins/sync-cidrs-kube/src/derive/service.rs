//! The Services' CIDRs.

use serde_json::Value;

use super::{Asked, Finding, Survey};
use crate::{kind::Kind, world::Known};

impl Survey<'_> {
    /// From the ServiceCIDR resources where the API has them, else as the control plane was told.
    pub(super) fn services(&self) -> Asked<Vec<Finding>> {
        let found = self.service_cidrs()?;
        let found = if found.is_empty() { self.cluster_services()? } else { found };
        if found.is_empty() {
            self.problem("no CIDR of Services was found".to_owned());
        }
        Ok(found)
    }

    /// The newest version that the API has. Those count that are ready and are not being deleted.
    fn service_cidrs(&self) -> Asked<Vec<Finding>> {
        for kind in [Kind::ServiceCidrs, Kind::ServiceCidrsBeta, Kind::ServiceCidrsAlpha] {
            let Known::Objects(objects) = self.known(kind)? else { continue };
            let served = objects.values().filter(|object| is_ready(object) && !is_being_deleted(object));
            return Ok(served.flat_map(|object| self.of_service_cidr(object)).collect());
        }
        Ok(vec![])
    }

    fn of_service_cidr(&self, object: &Value) -> Vec<Finding> {
        let source = format!("ServiceCIDR {}", name(object));
        let cidrs = object["spec"]["cidrs"].as_array().into_iter().flatten();
        cidrs.filter_map(|cidr| self.accept_one(cidr.as_str().unwrap_or_default(), &source)).collect()
    }
}

fn is_ready(object: &Value) -> bool {
    let conditions = object["status"]["conditions"].as_array().into_iter().flatten();
    conditions.filter(|condition| condition["type"] == "Ready").any(|condition| condition["status"] == "True")
}

/// Whether somebody has deleted it and a finalizer holds it back.
pub(super) fn is_being_deleted(object: &Value) -> bool {
    !object["metadata"]["deletionTimestamp"].is_null()
}

/// An object's name.
pub(super) fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or_default()
}
