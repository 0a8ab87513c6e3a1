//! The Services' CIDRs.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use serde_json::Value;

use crate::{
    kind::Kind,
    settings::{Defaults, PodCidrType},
    survey::{Asked, Finding, Survey, is_being_deleted, name},
    world::Known,
};

impl Survey<'_> {
    /// From the ServiceCIDR resources where the API has them, else as the control plane was told. With podCIDRType none, as
    /// in Spiderpool, none: something else than the node's rules translates Services.
    pub(super) fn services(&self, defaults: &Defaults) -> Asked<Vec<Finding>> {
        if self.pod_cidr_type(defaults).0 == PodCidrType::None {
            return Ok(vec![]);
        }
        let found = self.service_cidrs()?;
        let found = if found.is_empty() { self.cluster_services()? } else { found };
        let found = if found.is_empty() { self.assumed()? } else { found };
        if found.is_empty() {
            self.problem("no CIDR of Services was found".to_owned());
        }
        Ok(found)
    }

    /// The newest version that the API has. Those count that are ready, and those that somebody has deleted and Kubernetes
    /// holds back, which it does while Services have addresses of them.
    fn service_cidrs(&self) -> Asked<Vec<Finding>> {
        for kind in [Kind::ServiceCidrs, Kind::ServiceCidrsBeta, Kind::ServiceCidrsAlpha] {
            let Known::Objects(objects) = self.known(kind)? else { continue };
            let served = objects.values().filter(|object| is_ready(object) || is_held_back(object));
            return Ok(served.flat_map(|object| self.of_service_cidr(object)).collect());
        }
        Ok(vec![])
    }

    /// Where nobody says it: what the API server's own Service is in. Its address is the first of the Services' CIDR; how
    /// large that is cannot be seen.
    fn assumed(&self) -> Asked<Vec<Finding>> {
        let Some(service) = self.object(Kind::ApiService)? else { return Ok(vec![]) };
        let all = service["spec"]["clusterIPs"].as_array().filter(|addresses| !addresses.is_empty());
        let addresses = all.map_or_else(|| vec![&service["spec"]["clusterIP"]], |all| all.iter().collect());
        let nets = addresses.iter().filter_map(|address| begins_before(address.as_str()?.parse().ok()?, &self.own));
        Ok(nets.filter_map(|(address, net)| {
            self.problem(format!(
                "the Services' CIDR is not said anywhere: {net} is assumed, since kubernetes.default is {address}; if it \
                 is another, set serviceCIDR"
            ));
            self.accept_one(&net.to_string(), "Service kubernetes, clusterIPs (size assumed)")
        }).collect())
    }

    fn of_service_cidr(&self, object: &Value) -> Vec<Finding> {
        let source = format!("ServiceCIDR {}", name(object));
        let source = if is_held_back(object) { format!("{source} (being deleted)") } else { source };
        let cidrs = object["spec"]["cidrs"].as_array().into_iter().flatten();
        cidrs.filter_map(|cidr| self.accept_one(cidr.as_str().unwrap_or_default(), &source)).collect()
    }
}

/// The CIDR whose first address this is: as large as the address allows, but no larger than most clusters have it (/16;
/// for IPv6 /108, the largest that Kubernetes takes), and without the node's own addresses.
fn begins_before(address: IpAddr, own: &[IpAddr]) -> Option<(IpAddr, IpNet)> {
    let (base, largest, zeros) = match address {
        IpAddr::V4(address) => {
            let base = u32::from(address).checked_sub(1)?;
            (IpAddr::from(Ipv4Addr::from(base)), 16, base.trailing_zeros())
        }
        IpAddr::V6(address) => {
            let base = u128::from(address).checked_sub(1)?;
            (IpAddr::from(Ipv6Addr::from(base)), 108, base.trailing_zeros())
        }
    };
    let bits: u8 = if address.is_ipv4() { 32 } else { 128 };
    let least = bits.saturating_sub(u8::try_from(zeros).ok()?).max(largest);
    let nets = (least..bits).filter_map(|prefix| IpNet::new(base, prefix).ok());
    nets.into_iter().find(|net| !own.iter().any(|own| net.contains(own))).map(|net| (address, net))
}

fn is_ready(object: &Value) -> bool {
    ready(object).any(|condition| condition["status"] == "True")
}

/// Its finalizer goes with its last Service; until then it is not ready, since it gives no new addresses.
fn is_held_back(object: &Value) -> bool {
    is_being_deleted(object) || ready(object).any(|condition| condition["reason"] == "Terminating")
}

fn ready(object: &Value) -> impl Iterator<Item = &Value> {
    let conditions = object["status"]["conditions"].as_array().into_iter().flatten();
    conditions.filter(|condition| condition["type"] == "Ready")
}
