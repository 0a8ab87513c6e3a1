//! A line of what `bpf-lb-load follow` reads.

use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{Error as _, MapAccess, Visitor},
    ser::SerializeMap as _,
};

use crate::{
    table::{Change, Nodes, Refuse, Service, ServiceAddress, ServiceName, ServiceTable},
    time::{self, Time},
};

/// One change, and why: an object with one key of [`Change`], and perhaps `triggered`.
#[derive(Clone, Debug, PartialEq)]
pub struct Line {
    /// What is to change.
    pub change: Change,
    /// When what it follows from happened in the cluster, in RFC 3339.
    pub triggered: Option<String>,
}

const TRIGGERED: &str = "triggered";
/// What a line has one of.
const CHANGES: &str = "one of the keys set, remove, table, nodes, refuse, leave and renew";
const KEYS: &[&str] = &["set", "remove", "table", "nodes", "refuse", "leave", "renew", TRIGGERED];

impl Serialize for Line {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        match &self.change {
            Change::Set(service) => map.serialize_entry("set", service)?,
            Change::Remove(name) => map.serialize_entry("remove", name)?,
            Change::Table(table) => map.serialize_entry("table", table)?,
            Change::Nodes(nodes) => map.serialize_entry("nodes", nodes)?,
            Change::Refuse(cidrs) => map.serialize_entry("refuse", cidrs)?,
            Change::Leave(address) => map.serialize_entry("leave", address)?,
            Change::Renew(renew) => map.serialize_entry("renew", renew)?,
        }
        if let Some(triggered) = &self.triggered {
            map.serialize_entry(TRIGGERED, triggered)?;
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for Line {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(LineVisitor)
    }
}

struct LineVisitor;

impl<'de> Visitor<'de> for LineVisitor {
    type Value = Line;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an object with {CHANGES}")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Line, A::Error> {
        #[derive(Deserialize)]
        struct Triggered(#[serde(deserialize_with = "time::option")] Option<String>);

        let (mut change, mut triggered) = (None, None);
        while let Some(key) = map.next_key::<String>()? {
            if key == TRIGGERED {
                let Triggered(time) = map.next_value()?;
                if triggered.replace(time).is_some() {
                    return Err(A::Error::duplicate_field(TRIGGERED));
                }
                continue;
            }
            let one = match key.as_str() {
                "set" => Change::Set(map.next_value()?),
                "remove" => Change::Remove(map.next_value()?),
                "table" => Change::Table(map.next_value()?),
                "nodes" => Change::Nodes(map.next_value()?),
                "refuse" => Change::Refuse(map.next_value()?),
                "leave" => Change::Leave(map.next_value()?),
                "renew" => Change::Renew(map.next_value()?),
                _ => return Err(A::Error::unknown_field(&key, KEYS)),
            };
            if change.replace(one).is_some() {
                return Err(A::Error::custom("more than one change on a line"));
            }
        }
        let change = change.ok_or_else(|| A::Error::custom(format_args!("no change: {CHANGES}")))?;
        Ok(Line { change, triggered: triggered.flatten() })
    }
}

impl JsonSchema for Line {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Line".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let time = generator.subschema_for::<Option<Time>>();
        let one = |key: &str, schema: Schema| {
            json_schema!({
                "type": "object",
                "properties": { key: schema, TRIGGERED: time },
                "required": [key],
                "additionalProperties": false
            })
        };
        let set = one("set", generator.subschema_for::<Service>());
        let remove = one("remove", generator.subschema_for::<ServiceName>());
        let table = one("table", generator.subschema_for::<ServiceTable>());
        let nodes = one("nodes", generator.subschema_for::<Nodes>());
        let refuse = one("refuse", generator.subschema_for::<Refuse>());
        let leave = one("leave", generator.subschema_for::<ServiceAddress>());
        let renew = one("renew", generator.subschema_for::<bool>());
        json_schema!({
            "description": "One change, and perhaps when what it follows from happened in the cluster.",
            "oneOf": [set, remove, table, nodes, refuse, leave, renew]
        })
    }
}
