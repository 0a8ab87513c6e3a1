//! The cluster's settings: those of a SpiderCoordinator, else those of our own ConfigMap.

use clap::{ValueEnum, builder::PossibleValue};
use common::{
    keys,
    settings::{SETTINGS, Settings},
};
use serde_json::{Map, Value};

/// How the pods' CIDRs are found out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PodCidrType {
    /// By the node's CNI configuration, else by what the API has.
    #[default]
    Auto,
    /// From the control plane's configuration.
    Cluster,
    /// From Calico's pools.
    Calico,
    /// From Cilium's configuration.
    Cilium,
    /// Not at all, and the Services' CIDRs neither.
    None,
}

impl PodCidrType {
    /// As users write it.
    pub fn parse(text: &str) -> Option<Self> {
        Self::value_variants().iter().copied().find(|kind| kind.name() == text)
    }

    /// As users write it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Cluster => "cluster",
            Self::Calico => "calico",
            Self::Cilium => "cilium",
            Self::None => "none",
        }
    }
}

impl ValueEnum for PodCidrType {
    fn value_variants<'a>() -> &'a [Self] {
        &[Self::Auto, Self::Cluster, Self::Calico, Self::Cilium, Self::None]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(self.name().into())
    }
}

/// The cluster's defaults for the plugin configuration.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Defaults {
    /// Settings, named as in the plugin configuration.
    pub settings: Map<String, Value>,
    /// podCIDRType, where it is set.
    pub pod_cidr_type: Option<PodCidrType>,
}

/// The settings of a SpiderCoordinator. What is wrong is left out, and named in `problems`.
pub fn of_spider_coordinator(object: &Value, problems: &mut Vec<String>) -> Defaults {
    let fields = object["spec"].as_object().cloned().unwrap_or_default();
    let renamed = fields.into_iter().filter_map(|(key, value)| match key.as_str() {
        "podDefaultRouteNIC" => Some(("podDefaultRouteNic".to_owned(), value)),
        // Deprecated there; the node's own business.
        "hostRPFilter" => None,
        // Any negative number means the same there.
        "podRPFilter" => Some((key, if value.as_i64().is_some_and(|n| n < 0) { Value::from(-1) } else { value })),
        _ => Some((key, value)),
    });
    check(renamed.collect(), "SpiderCoordinator default", problems)
}

/// The settings of our ConfigMap: the key `settings` has them as YAML or JSON.
pub fn of_config_map(object: &Value, problems: &mut Vec<String>) -> Defaults {
    let text = object["data"]["settings"].as_str().unwrap_or_default();
    match serde_yaml_ng::from_str::<Value>(text) {
        Ok(Value::Object(fields)) => check(known(fields, problems), CONFIG_MAP, problems),
        Ok(Value::Null) => Defaults::default(),
        _ => {
            problems.push(format!("{CONFIG_MAP}: its settings are not a YAML mapping"));
            Defaults::default()
        }
    }
}

const CONFIG_MAP: &str = "ConfigMap kube-system/underpass";

/// The settings as the plugin configuration spells them. What is none is left out, and named: nobody else reads this object.
fn known(fields: Map<String, Value>, problems: &mut Vec<String>) -> Map<String, Value> {
    let mut known = Map::new();
    let spelled = keys::spelled(Value::Object(fields), keys::CONFIGURATION);
    for (key, value) in spelled.as_object().cloned().into_iter().flatten() {
        let names = SETTINGS.iter().map(|setting| setting.key).chain(["podCIDRType"]);
        match names.into_iter().find(|name| name.eq_ignore_ascii_case(&key)) {
            Some(name) => known.extend([(name.to_owned(), value)]),
            None => problems.push(format!("{CONFIG_MAP}: {key} is no setting")),
        }
    }
    known
}

fn check(fields: Map<String, Value>, source: &str, problems: &mut Vec<String>) -> Defaults {
    let mut defaults = Defaults::default();
    for (key, value) in fields {
        if key == "podCIDRType" {
            let text = value.as_str().unwrap_or_default();
            defaults.pod_cidr_type = PodCidrType::parse(text);
            if defaults.pod_cidr_type.is_none() && !text.is_empty() {
                problems.push(format!("{source}: podCIDRType: {value} is not allowed"));
            }
            continue;
        }
        let alone = Value::Object(Map::from_iter([(key.clone(), value.clone())]));
        let (_, failures) = Settings::resolve(&alone, &Value::Null);
        if failures.is_empty() {
            defaults.settings.insert(key, value);
        }
        problems.extend(failures.iter().map(|failure| format!("{source}: {failure}")));
    }
    defaults
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_spider_coordinator_is_read_with_its_own_names_and_what_is_wrong_is_left_out() {
        let object = json!({"spec": {
            "mode": "disabled", "podCIDRType": "calico", "podDefaultRouteNIC": "net1", "hostRPFilter": 0,
            "podRPFilter": -5, "hijackCIDR": ["169.254.0.0/16"], "podMACPrefix": "01:02"
        }});
        let mut problems = vec![];
        let defaults = of_spider_coordinator(&object, &mut problems);
        assert_eq!(defaults.pod_cidr_type, Some(PodCidrType::Calico));
        let expected = json!({
            "mode": "disabled", "podDefaultRouteNic": "net1", "podRPFilter": -1, "hijackCIDR": ["169.254.0.0/16"]
        });
        assert_eq!(Value::Object(defaults.settings), expected);
        assert!(problems.len() == 1 && problems[0].contains("podMACPrefix"), "{problems:?}");
    }

    #[test]
    fn our_config_map_is_yaml_with_the_same_names() {
        let object = json!({"data": {"settings": "podCIDRType: none\nhostRuleTable: 600\n"}});
        let mut problems = vec![];
        let defaults = of_config_map(&object, &mut problems);
        assert_eq!(defaults.pod_cidr_type, Some(PodCidrType::None));
        assert_eq!(Value::Object(defaults.settings), json!({"hostRuleTable": 600}));
        assert!(problems.is_empty());
        of_config_map(&json!({"data": {"settings": "- a\n"}}), &mut problems);
        of_config_map(&json!({"data": {"settings": "podCIDRType: some\n"}}), &mut problems);
        assert_eq!(problems.len(), 2);
    }

    #[test]
    fn in_our_config_map_case_does_not_matter_and_what_is_no_setting_is_named() {
        let text = "PodCidrType: none\nserviceCidr: [10.96.0.0/12]\npolicyRoutes: [{Dst: 10.9.0.0/16, GW: 10.6.0.1}]\nhijackCIDRs: [192.0.2.0/24]\ntype: x\n";
        let mut problems = vec![];
        let defaults = of_config_map(&json!({ "data": { "settings": text } }), &mut problems);
        assert_eq!(defaults.pod_cidr_type, Some(PodCidrType::None));
        let expected =
            json!({"serviceCIDR": ["10.96.0.0/12"], "policyRoutes": [{"dst": "10.9.0.0/16", "gw": "10.6.0.1"}]});
        assert_eq!(Value::Object(defaults.settings), expected);
        assert_eq!(
            problems,
            ["hijackCIDRs", "type"].map(|key| format!("ConfigMap kube-system/underpass: {key} is no setting"))
        );
    }
}
