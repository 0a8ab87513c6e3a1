//! Cilium: by its ipam mode.

use serde_json::Value;

use crate::{
    kind::Kind,
    survey::{Asked, Finding, Survey, name},
};

impl Survey<'_> {
    pub(super) fn cilium(&self) -> Asked<Vec<Finding>> {
        let Some(config) = self.object(Kind::CiliumConfig)? else {
            self.problem("there is no ConfigMap kube-system/cilium-config".to_owned());
            return Ok(vec![]);
        };
        let data = &config["data"];
        match data["ipam"].as_str().unwrap_or("cluster-pool") {
            "cluster-pool" => Ok(self.cluster_pool(data)),
            "multi-pool" => self.multi_pool(),
            "kubernetes" => self.cluster_pods(),
            other => {
                self.problem(format!("cilium-config: ipam {other} is not known here: set overlayPodCIDR"));
                Ok(vec![])
            }
        }
    }

    fn cluster_pool(&self, data: &Value) -> Vec<Finding> {
        let of = |family: &str| {
            let key = format!("cluster-pool-{family}-cidr");
            let enabled = data[format!("enable-{family}")] != "false";
            let text = data[&*key].as_str().filter(|_| enabled).unwrap_or_default();
            self.accept(text, &format!("cilium-config, {key}"))
        };
        [of("ipv4"), of("ipv6")].concat()
    }

    fn multi_pool(&self) -> Asked<Vec<Finding>> {
        let mut found = vec![];
        for pool in self.objects(Kind::CiliumPools)? {
            let source = format!("CiliumPodIPPool {}", name(pool));
            for family in ["ipv4", "ipv6"] {
                let cidrs = pool["spec"][family]["cidrs"].as_array().into_iter().flatten();
                found.extend(cidrs.filter_map(|cidr| self.accept_one(cidr.as_str().unwrap_or_default(), &source)));
            }
        }
        Ok(found)
    }

    /// What Cilium has given to the own node.
    pub(super) fn own_cilium_node(&self) -> Asked<Vec<Finding>> {
        let Some(node) = self.object(Kind::OwnCiliumNode)? else { return Ok(vec![]) };
        let ipam = &node["spec"]["ipam"];
        let pools = ipam["pools"]["allocated"].as_array().into_iter().flatten().map(|pool| &pool["cidrs"]);
        let cidrs = pools.chain([&ipam["podCIDRs"]]).flat_map(|cidrs| cidrs.as_array().into_iter().flatten());
        // In a pool's list they are objects, for Cilium's API has changed.
        let texts = cidrs.filter_map(|cidr| cidr["cidr"].as_str().or(cidr.as_str()));
        let source = format!("CiliumNode {}", name(node));
        let found: Vec<Finding> = texts.filter_map(|text| self.accept_one(text, &source)).collect();
        self.only_here(&found);
        Ok(found)
    }
}
