//! The pod document as text.

use serde::{Serialize, Serializer, ser::Error as _};
use serde_json::{Map, Value};

use crate::document::PodDocument;

/// A pod document that was read, to be written again with what this version does not know of it.
#[derive(Clone, Debug)]
pub struct Envelope {
    /// What this version knows.
    pub document: PodDocument,
    /// What else was read, an object; nothing if there was nothing else.
    more: Option<Value>,
}

impl Envelope {
    /// Reads a document.
    ///
    /// # Errors
    /// When the text is no pod document.
    pub fn read(text: &[u8]) -> serde_json::Result<Self> {
        if !text.trim_ascii_start().starts_with(b"{") {
            return Err(serde_json::Error::custom("it is no JSON object"));
        }
        let document = serde_json::from_slice(text)?;
        let written = serde_json::to_vec(&document)?;
        let is_ours = written == text.trim_ascii_end();
        let more =
            if is_ours { None } else { beyond(serde_json::from_slice(text)?, &serde_json::from_slice(&written)?) };
        Ok(Self { document, more })
    }

    /// All of it. By way of text: the tools have the code for that, and from a document to a value they need none else.
    fn whole(&self, more: &Value) -> serde_json::Result<Value> {
        let document = serde_json::from_slice(&serde_json::to_vec(&self.document)?)?;
        Ok(merge(more.clone(), document))
    }
}

impl Serialize for Envelope {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.more {
            None => self.document.serialize(serializer),
            Some(more) => self.whole(more).map_err(S::Error::custom)?.serialize(serializer),
        }
    }
}

/// What of a value is in no place of the other one, if anything.
fn beyond(value: Value, other: &Value) -> Option<Value> {
    let (Value::Object(value), Value::Object(other)) = (value, other) else { return None };
    let more = value.into_iter().filter_map(|(key, value)| match other.get(&key) {
        Some(other) => Some((key, beyond(value, other)?)),
        None => Some((key, value)),
    });
    let more: Map<_, _> = more.collect();
    (!more.is_empty()).then_some(Value::Object(more))
}

/// `document` over `original`.
pub fn merge(original: Value, document: Value) -> Value {
    match (original, document) {
        (Value::Object(mut original), Value::Object(document)) => {
            for (key, value) in document {
                let old = original.entry(key).or_insert(Value::Null);
                *old = merge(old.take(), value);
            }
            Value::Object(original)
        }
        (_, document) => document,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(text: &Value) -> Envelope {
        Envelope::read(text.to_string().as_bytes()).unwrap()
    }

    fn text() -> Value {
        let request = json!({"command": "ADD", "containerId": "c", "ifname": "eth0", "config": {"name": "n", "a": {"b": [1, {}]}}});
        let nic = json!({"name": "eth0", "mtu": 1500, "addresses": ["10.6.10.1/16"]});
        let uplink = json!({"dev": "veth0", "sources": [], "gateways": []});
        let mode = json!({"mode": "underlay", "first": true, "nic": nic, "nodeAddresses": [], "uplink": uplink});
        json!(read(&json!({"version": 1, "request": request, "mode": mode})).document)
    }

    #[test]
    fn what_was_read_is_written_again() {
        let text = text();
        let envelope = read(&text);
        assert!(envelope.more.is_none());
        assert_eq!(json!(envelope), text);
        let pretty = format!("{text:#}");
        assert!(Envelope::read(pretty.as_bytes()).unwrap().more.is_none());
    }

    #[test]
    fn fields_that_a_tool_does_not_know_stay_wherever_they_are() {
        for path in
            ["", "/request", "/settings", "/settings/logOptions", "/mode", "/mode/nic", "/mode/uplink", "/routing"]
        {
            let mut text = text();
            text.pointer_mut(path).unwrap()["future"] = json!({"a": [1, null]});
            let mut envelope = read(&text);
            envelope.document.version = 2;
            text["version"] = json!(2);
            assert_eq!(json!(envelope), text, "{path}");
        }
    }

    #[test]
    fn what_a_tool_takes_out_does_not_come_back_beside_a_field_that_it_does_not_know() {
        let mut text = text();
        text["future"] = json!(1);
        text["places"] = json!([{"netns": "node", "family": "ipv4", "priority": 85}]);
        let mut envelope = read(&text);
        envelope.document.places.clear();
        envelope.document.mode = None;
        for section in ["places", "mode"] {
            text.as_object_mut().unwrap().shift_remove(section);
        }
        assert_eq!(json!(envelope), text);
    }

    #[test]
    fn what_is_not_one_object_with_each_key_once_is_no_document() {
        let text = text();
        assert!(Envelope::read(format!(" {text}\n").as_bytes()).is_ok());
        let twice = text.to_string().replacen("{", r#"{"version":1,"#, 1);
        for wrong in
            [format!("{text} {{}}"), twice, r#"[1,["STATUS","c",null,"eth0",null,{}]]"#.to_owned(), "5".to_owned()]
        {
            assert!(Envelope::read(wrong.as_bytes()).is_err(), "{wrong}");
        }
    }
}
