//! Calico: its pools. A pool that is disabled gives no new addresses, but pods keep those that they have.

use ipnet::IpNet;
use serde_json::Value;

use crate::{
    kind::Kind,
    survey::{Asked, Finding, Survey, is_being_deleted, name},
    world::Known,
};

impl Survey<'_> {
    /// The pools as Calico's programs keep them, else as its API shows them.
    pub(super) fn calico_pools(&self) -> Asked<Vec<&Value>> {
        let kept = self.objects(Kind::CalicoPools)?;
        if kept.is_empty() { self.objects(Kind::CalicoPoolsV3) } else { Ok(kept) }
    }

    /// Whether the API has Calico's pools at all.
    pub(super) fn has_calico(&self) -> Asked<bool> {
        Ok(self.known(Kind::CalicoPools)? != Known::Absent || self.known(Kind::CalicoPoolsV3)? != Known::Absent)
    }

    pub(super) fn calico(&self) -> Asked<Vec<Finding>> {
        let mut found = vec![];
        for pool in self.calico_pools()?.into_iter().filter(|pool| is_for_pods(pool)) {
            let cidr = pool["spec"]["cidr"].as_str().unwrap_or_default();
            let disabled = pool["spec"]["disabled"] == true || is_being_deleted(pool);
            let source = format!("IPPool {}", name(pool));
            let source = if disabled { format!("{source} (disabled, with addresses in use)") } else { source };
            let Some(finding) = self.accept_one(cidr, &source) else { continue };
            if !disabled || self.has_addresses_in_use(&finding.cidr)? {
                found.push(finding);
            }
        }
        Ok(found)
    }

    fn has_addresses_in_use(&self, pool: &IpNet) -> Asked<bool> {
        let within = |block: &Value| {
            let cidr = block["spec"]["cidr"].as_str().and_then(|cidr| cidr.parse::<IpNet>().ok());
            cidr.is_some_and(|cidr| pool.contains(&cidr))
        };
        let in_use = |block: &Value| {
            let mut allocations = block["spec"]["allocations"].as_array().into_iter().flatten();
            block["spec"]["deleted"] != true && allocations.any(|allocation| !allocation.is_null())
        };
        Ok(self.objects(Kind::CalicoBlocks)?.iter().any(|block| within(block) && in_use(block)))
    }
}

/// `allowedUses` says Workload, Tunnel or LoadBalancer; unset means the first two.
fn is_for_pods(pool: &Value) -> bool {
    let uses = pool["spec"]["allowedUses"].as_array().filter(|uses| !uses.is_empty());
    uses.is_none_or(|uses| uses.iter().any(|allowed| allowed == "Workload"))
}
