//! Keys of a plugin configuration, as Go's `encoding/json` matches them: whatever their case. The plugins that a configuration was written for are Go
//! programs, so that one which they take must not mean something else here. Pure.

use serde_json::{Map, Value};

use crate::settings::SETTINGS;

/// The keys that mean something, and what is below them.
#[derive(Clone, Copy, Debug)]
pub enum Shape {
    /// A value whose keys, if it has any, are its own.
    Any,
    /// A list of values of one shape.
    List(&'static Shape),
    /// An object with these keys. Others are passed on as they are.
    Object(&'static [(&'static str, Shape)]),
    /// The same with every setting.
    Configuration(&'static [(&'static str, Shape)]),
}

use Shape::{Any, Configuration, List, Object};

/// A CNI result, of every version (CNI specification 1.1.0, section 5).
const RESULT: Shape = Object(&[
    ("cniVersion", Any),
    (
        "interfaces",
        List(&Object(&[
            ("name", Any),
            ("mac", Any),
            ("mtu", Any),
            ("sandbox", Any),
            ("socketPath", Any),
            ("pciID", Any),
        ])),
    ),
    ("ips", List(&Object(&[("version", Any), ("interface", Any), ("address", Any), ("gateway", Any)]))),
    (
        "routes",
        List(&Object(&[
            ("dst", Any),
            ("gw", Any),
            ("mtu", Any),
            ("advmss", Any),
            ("priority", Any),
            ("table", Any),
            ("scope", Any),
        ])),
    ),
    ("dns", Any),
]);

/// A plugin configuration, which has all settings besides.
pub const CONFIGURATION: Shape = Configuration(&[
    ("cniVersion", Any),
    ("name", Any),
    ("type", Any),
    ("prevResult", RESULT),
    ("cni.dev/valid-attachments", List(&Object(&[("containerID", Any), ("ifname", Any)]))),
    ("policyRoutes", List(&Object(&[("dst", Any), ("gw", Any)]))),
    ("detectOptions", Object(&[("retries", Any), ("retry", Any), ("interval", Any), ("timeout", Any)])),
    (
        "logOptions",
        Object(&[("logLevel", Any), ("logFile", Any), ("logMaxSize", Any), ("logMaxAge", Any), ("logMaxCount", Any)]),
    ),
]);

/// The value with every key that means something spelled as here. Of several spellings of one key the last counts, and an object adds to the one before
/// it, as in Go.
pub fn spelled(value: Value, shape: Shape) -> Value {
    match (value, shape) {
        (Value::Array(list), List(shape)) => list.into_iter().map(|value| spelled(value, *shape)).collect(),
        (Value::Object(fields), Object(known) | Configuration(known)) => {
            let settings: &[_] = if matches!(shape, Configuration(_)) { SETTINGS } else { &[] };
            let settings = || settings.iter().map(|setting| (setting.key, Any));
            let mut found = Map::new();
            for (key, value) in fields {
                match known.iter().copied().chain(settings()).find(|(name, _)| same(name, &key)) {
                    Some((name, shape)) => set(&mut found, name, spelled(value, shape), shape),
                    None => set(&mut found, &key, value, Any),
                }
            }
            Value::Object(found)
        }
        (value, _) => value,
    }
}

fn set(fields: &mut Map<String, Value>, name: &str, value: Value, shape: Shape) {
    match (fields.get_mut(name), value, shape) {
        (Some(Value::Object(earlier)), Value::Object(later), Object(_)) => earlier.extend(later),
        (_, value, _) => {
            fields.insert(name.to_owned(), value);
        }
    }
}

/// Go's `foldName`: letters are compared by Unicode's simple folding, by which two characters beyond ASCII are letters of ours.
fn same(name: &str, key: &str) -> bool {
    let folded = |c: char| match c {
        '\u{212a}' => 'k',
        '\u{17f}' => 's',
        c => c.to_ascii_lowercase(),
    };
    name.chars().map(folded).eq(key.chars().map(folded))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(value: Value) -> Value {
        spelled(value, CONFIGURATION)
    }

    #[test]
    fn every_key_is_matched_whatever_its_case_and_those_below_it_too() {
        let config = json!({
            "CNIVersion": "1.0.0", "podDefaultRouteNIC": "net1", "POLICYROUTES": [{"Dst": "10.9.0.0/16", "GW": "10.6.0.1"}],
            "LogOptions": {"LOGLEVEL": "debug"}, "PrevResult": {"IPs": [{"Address": "10.6.0.2/16"}], "Other": {"Dst": 1}},
        });
        let expected = json!({
            "cniVersion": "1.0.0", "podDefaultRouteNic": "net1", "policyRoutes": [{"dst": "10.9.0.0/16", "gw": "10.6.0.1"}],
            "logOptions": {"logLevel": "debug"}, "prevResult": {"ips": [{"address": "10.6.0.2/16"}], "Other": {"Dst": 1}},
        });
        assert_eq!(read(config), expected);
    }

    #[test]
    fn of_two_spellings_the_last_counts_and_objects_add_up() {
        assert_eq!(read(json!({"mode": "overlay", "MODE": "underlay"})), json!({"mode": "underlay"}));
        assert_eq!(read(json!({"MODE": "underlay", "mode": "overlay"})), json!({"mode": "overlay"}));
        let twice = json!({"logOptions": {"logLevel": "debug"}, "logoptions": {"LogFile": "/x", "LOGLEVEL": "warn"}});
        assert_eq!(read(twice), json!({"logOptions": {"logLevel": "warn", "logFile": "/x"}}));
    }

    #[test]
    fn the_kelvin_sign_and_the_long_s_fold_as_in_go() {
        assert!(same("podMark", "podMar\u{212a}") && same("policyRoutes", "policyroute\u{17f}"));
        assert!(!same("mode", "modes") && !same("mode", "m\u{f6}de"));
    }

    #[test]
    fn every_setting_is_a_key_of_the_configuration() {
        for setting in SETTINGS {
            let read = read(json!({ setting.key.to_ascii_uppercase(): 1 }));
            assert_eq!(read, json!({ setting.key: 1 }));
        }
    }
}
