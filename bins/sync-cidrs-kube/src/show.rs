//! What was found out, for a person. Pure.

use common::table::table;
use serde_json::Value;

/// The tables for a document as [`crate::derive::Cluster::document`] makes it, or for a cidrs section alone, which knows
/// nothing of sources and settings. What was refused is not in them: it is among the warnings.
pub fn tables(printed: &Value) -> String {
    let Some(section) = printed.get("cidrs") else {
        return table(&["KIND", "CIDR"], &cidrs(printed, &Value::Null));
    };
    let cidrs = table(&["KIND", "CIDR", "SOURCE"], &cidrs(section, &printed["sources"]));
    format!("{cidrs}\n\n{}", table(&["SETTING", "VALUE", "SOURCE"], &settings(printed)))
}

/// A row for each CIDR, and for each further source of it one more with that alone.
fn cidrs(section: &Value, sources: &Value) -> Vec<Vec<String>> {
    let mut rows = vec![];
    for (key, kind) in [("service", "Service"), ("pod", "pod"), ("hijack", "hijack")] {
        let found = list(&section[key]);
        if found.is_empty() && key != "hijack" {
            rows.push(row([kind, "none", ""]));
        }
        for cidr in found {
            let sources = list(&sources[cidr]);
            rows.push(row([kind, cidr, sources.first().copied().unwrap_or_default()]));
            rows.extend(sources.iter().skip(1).map(|source| row(["", "", source])));
        }
    }
    rows
}

/// The podCIDRType that applied, and what the cluster sets.
fn settings(document: &Value) -> Vec<Vec<String>> {
    let chosen = &document["podCIDRType"];
    let first = row(["podCIDRType", &text(&chosen["value"]), &text(&chosen["chosenBy"])]);
    let set = document["settings"].as_object().into_iter().flatten();
    std::iter::once(first).chain(set.map(|(key, value)| row([key, &text(value), "the cluster's settings"]))).collect()
}

fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(str::to_owned).to_vec()
}

fn list(value: &Value) -> Vec<&str> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_cidr_has_all_its_sources_and_a_kind_without_any_is_named() {
        let document = json!({
            "settings": {"hostRuleTable": 600},
            "podCIDRType": {"value": "none", "chosenBy": "the command line"},
            "cidrs": {"service": ["10.96.0.0/12", "fd00::/108"], "pod": []},
            "sources": {"10.96.0.0/12": ["one", "another (a note)"], "fd00::/108": ["one"]},
            "problems": [],
        });
        let expected = "\
KIND     CIDR          SOURCE
Service  10.96.0.0/12  one
                       another (a note)
Service  fd00::/108    one
pod      none

SETTING        VALUE  SOURCE
podCIDRType    none   the command line
hostRuleTable  600    the cluster's settings";
        assert_eq!(tables(&document), expected);
    }

    #[test]
    fn a_section_alone_has_no_sources() {
        let section = json!({"service": [], "pod": ["10.244.0.0/16"], "hijack": ["169.254.0.0/16"]});
        let expected = "\
KIND     CIDR
Service  none
pod      10.244.0.0/16
hijack   169.254.0.0/16";
        assert_eq!(tables(&section), expected);
    }
}
