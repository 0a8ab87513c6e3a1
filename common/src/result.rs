//! The CNI result of the plugins before this one (`prevResult`), as far as Underpass reads it.

use std::{collections::HashSet, fmt, net::IpAddr};

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, de::Error as _};
use serde_json::Value;

use crate::{
    failure::{Code, Context, Failure},
    mac::Mac,
    object::{self, Family, MAIN_TABLE},
};

/// A version of the CNI specification that the plugin speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum CniVersion {
    /// ADD and DEL, of lists of plugins.
    V0_3_0,
    /// The same.
    V0_3_1,
    /// With CHECK, and prevResult in DEL.
    V0_4_0,
    /// Addresses without `version`.
    V1_0_0,
    /// With GC and STATUS, and results that say MTUs and routing tables.
    V1_1_0,
}

impl CniVersion {
    /// All of them, oldest first.
    pub const ALL: [Self; 5] = [Self::V0_3_0, Self::V0_3_1, Self::V0_4_0, Self::V1_0_0, Self::V1_1_0];
    /// The last one.
    pub const NEWEST: Self = Self::V1_1_0;

    /// As a configuration spells it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::V0_3_0 => "0.3.0",
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }

    /// The `cniVersion` of a plugin configuration, if it is one of these.
    pub fn of(config: &Value) -> Option<Self> {
        let text = config.get("cniVersion")?.as_str()?;
        Self::ALL.into_iter().find(|version| version.as_str() == text)
    }
}

impl fmt::Display for CniVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A CNI result of version 0.3.0 or later (CNI specification 1.1.0, section 5). Everything else in it is passed on
/// unread. What is null or an empty address is not there, as for the CNI library, which is in Go.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct CniResult {
    /// The interfaces made so far.
    #[serde(default, deserialize_with = "default_if_null")]
    pub interfaces: Vec<Interface>,
    /// The addresses given so far.
    #[serde(default, deserialize_with = "default_if_null")]
    pub ips: Vec<Ip>,
    /// The routes made so far.
    #[serde(default, deserialize_with = "default_if_null")]
    pub routes: Vec<Route>,
}

/// A route of a CNI result.
#[derive(Clone, Debug, Deserialize)]
pub struct Route {
    /// The destination.
    pub dst: IpNet,
    /// The next hop.
    #[serde(default, deserialize_with = "address")]
    pub gw: Option<IpAddr>,
    /// The routing table, since CNI 1.1.0; the main table otherwise.
    #[serde(default)]
    pub table: Option<u32>,
    /// The metric, since CNI 1.1.0.
    #[serde(default)]
    pub priority: Option<u32>,
    /// The MTU along the path, in bytes, since CNI 1.1.0.
    #[serde(default)]
    pub mtu: Option<u32>,
}

/// An interface of a CNI result.
#[derive(Clone, Debug, Deserialize)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// The namespace's path; empty on the node.
    #[serde(default, deserialize_with = "default_if_null")]
    pub sandbox: String,
    /// Its hardware address, of whatever form; empty where none is said.
    #[serde(default, deserialize_with = "default_if_null")]
    pub mac: String,
}

/// An address of a CNI result.
#[derive(Clone, Debug, Deserialize)]
pub struct Ip {
    /// Address and prefix length.
    pub address: IpNet,
    /// The default gateway of its subnet.
    #[serde(default, deserialize_with = "address")]
    pub gateway: Option<IpAddr>,
    /// Index into the interfaces.
    #[serde(default)]
    pub interface: Option<usize>,
}

fn default_if_null<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

fn address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<IpAddr>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?.filter(|text| !text.is_empty());
    text.map(|text| text.parse().map_err(D::Error::custom)).transpose()
}

impl CniResult {
    /// The prevResult of a plugin configuration.
    ///
    /// # Errors
    /// When there is none, or it is not a CNI result.
    pub fn previous(config: &Value) -> Result<Self, Failure> {
        let Some(previous) = config.get("prevResult").filter(|previous| previous.is_object()) else {
            return Err(Failure::new(Code::InvalidConfiguration, "the configuration has no prevResult")
                .details("chain this plugin behind the one that makes the interface (macvlan, ipvlan, sriov, ...)"));
        };
        Self::deserialize(previous).context(Code::Decoding, "prevResult is not a CNI result")
    }

    /// The routes that the result promises for the interface of the call. A route without a next hop goes to the gateway
    /// of its family, as the CNI library's `ConfigureIface` does it.
    pub fn routes_of(&self, ifname: &str) -> Vec<object::Route> {
        let gateway =
            |dst: IpNet| self.ips_of(ifname).filter_map(|ip| ip.gateway).find(|gw| Family::same(*gw, dst.addr()));
        let route = |route: &Route| object::Route {
            gateway: route.gw.or_else(|| gateway(route.dst)),
            metric: route.priority.and_then(|metric| Family::of(route.dst.addr()).metric(metric)),
            mtu: route.mtu.filter(|mtu| *mtu > 0),
            protocol: 0,
            ..object::Route::new(route.dst.trunc(), ifname, route.table.unwrap_or(MAIN_TABLE))
        };
        self.routes.iter().map(route).collect()
    }

    /// The default gateways of an interface's subnets.
    pub fn gateways_of(&self, ifname: &str) -> Vec<IpAddr> {
        self.ips_of(ifname).filter_map(|ip| ip.gateway).collect()
    }

    /// The routers of an interface: [`routers`].
    pub fn routers_of(&self, ifname: &str) -> Vec<IpAddr> {
        routers(&self.gateways_of(ifname), &self.routes_of(ifname))
    }

    /// The MAC address of an interface in the sandbox, if the result has one of six bytes.
    pub fn mac_of(&self, ifname: &str) -> Option<Mac> {
        let is_it = |interface: &&Interface| interface.name == ifname && !interface.sandbox.is_empty();
        self.interfaces.iter().find(is_it)?.mac.parse().ok()
    }

    /// The addresses of an interface in the sandbox; all addresses where none says which interface it is on.
    pub fn ips_of(&self, ifname: &str) -> impl Iterator<Item = &Ip> {
        let on = move |ip: &&Ip| match ip.interface.and_then(|index| self.interfaces.get(index)) {
            Some(interface) => interface.name == ifname && !interface.sandbox.is_empty(),
            None => ip.interface.is_none(),
        };
        self.ips.iter().filter(on)
    }
}

/// The routers of an interface with these gateways and routes, each once: the gateways, and the next hops of its default routes.
pub fn routers(gateways: &[IpAddr], routes: &[object::Route]) -> Vec<IpAddr> {
    let defaults = routes.iter().filter(|route| route.destination.prefix_len() == 0);
    let mut seen = HashSet::new();
    let all = gateways.iter().copied().chain(defaults.filter_map(|route| route.gateway));
    all.filter(|router| seen.insert(*router)).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn addresses(result: Value, ifname: &str) -> Vec<String> {
        let result = CniResult::previous(&json!({ "prevResult": result })).unwrap();
        result.ips_of(ifname).map(|ip| ip.address.to_string()).collect()
    }

    #[test]
    fn only_the_addresses_of_the_interface_in_the_sandbox_count() {
        let result = json!({
            "interfaces": [{"name": "eth0"}, {"name": "eth0", "sandbox": "/n"}, {"name": "net1", "sandbox": "/n"}],
            "ips": [{"address": "10.0.0.1/24", "interface": 0}, {"address": "10.0.0.2/24", "interface": 1},
                    {"address": "10.0.0.3/24", "interface": 2}, {"address": "10.0.0.9/24", "interface": 9}],
        });
        assert_eq!(addresses(result, "eth0"), ["10.0.0.2/24"]);
    }

    #[test]
    fn an_address_without_an_interface_belongs_to_the_call() {
        let result = json!({"ips": [{"version": "4", "address": "10.0.0.2/24", "gateway": "10.0.0.1"}]});
        assert_eq!(addresses(result, "eth0"), ["10.0.0.2/24"]);
    }

    #[test]
    fn what_is_null_or_an_empty_address_is_not_there() {
        let result = json!({"interfaces": null, "ips": [{"address": "10.0.0.2/24", "gateway": "", "interface": null}],
            "routes": [{"dst": "0.0.0.0/0", "gw": "", "table": null, "priority": null}]});
        assert_eq!(addresses(result.clone(), "eth0"), ["10.0.0.2/24"]);
        let result = CniResult::previous(&json!({ "prevResult": result })).unwrap();
        assert_eq!(result.routes_of("eth0").iter().map(|route| route.gateway).collect::<Vec<_>>(), [None]);
        assert!(
            addresses(json!({"interfaces": [{"name": "eth0", "sandbox": null}], "ips": null, "routes": null}), "eth0")
                .is_empty()
        );
    }

    #[test]
    fn a_metric_that_a_route_has_if_nobody_says_any_is_none() {
        let route = |dst: &str, priority: u32| json!({"dst": dst, "priority": priority});
        let routes = [
            route("10.0.0.0/8", 0),
            route("10.0.0.0/8", 1024),
            route("::/0", 0),
            route("::/0", 1024),
            route("::/0", 5),
        ];
        let result = CniResult::previous(&json!({ "prevResult": { "routes": routes } })).unwrap();
        let metrics: Vec<_> = result.routes_of("eth0").iter().map(|route| route.metric).collect();
        assert_eq!(metrics, [None, Some(1024), None, None, Some(5)]);
    }

    #[test]
    fn a_route_has_the_mtu_that_the_result_says_and_0_says_none() {
        let routes = json!([{"dst": "::/0", "mtu": 1450}, {"dst": "10.0.0.0/8", "mtu": 0}, {"dst": "0.0.0.0/0"}]);
        let result = CniResult::previous(&json!({ "prevResult": { "routes": routes } })).unwrap();
        let mtus: Vec<_> = result.routes_of("eth0").iter().map(|route| route.mtu).collect();
        assert_eq!(mtus, [Some(1450), None, None]);
    }

    #[test]
    fn a_configuration_without_prev_result_is_refused() {
        let failure = CniResult::previous(&json!({ "prevResult": null })).unwrap_err();
        assert_eq!(failure.code, Code::InvalidConfiguration as u32);
    }
}
