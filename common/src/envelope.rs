//! The pod document as text.

use serde::{Serialize, Serializer, ser::Error as _};
use serde_json::Value;

use crate::document::PodDocument;

/// A pod document that was read, to be written again with what this version does not know of it.
#[derive(Clone, Debug)]
pub struct Envelope {
    /// What this version knows.
    pub document: PodDocument,
    /// All that was read, unless this version would have written just that.
    original: Option<Value>,
}

impl Envelope {
    /// Reads a document.
    ///
    /// # Errors
    /// When the text is no pod document.
    pub fn read(text: &[u8]) -> serde_json::Result<Self> {
        let document = serde_json::from_slice(text)?;
        let is_ours = serde_json::to_vec(&document)? == text.trim_ascii_end();
        let original = if is_ours { None } else { Some(serde_json::from_slice(text)?) };
        Ok(Self { document, original })
    }

    /// All of it. By way of text: the tools have the code for that, and from a document to a value they need none else.
    fn whole(&self, original: &Value) -> serde_json::Result<Value> {
        let document = serde_json::from_slice(&serde_json::to_vec(&self.document)?)?;
        Ok(merge(original.clone(), document))
    }
}

impl Serialize for Envelope {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.original {
            None => self.document.serialize(serializer),
            Some(original) => self.whole(original).map_err(S::Error::custom)?.serialize(serializer),
        }
    }
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
        assert!(envelope.original.is_none());
        assert_eq!(json!(envelope), text);
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
    fn what_follows_a_document_is_an_error() {
        assert!(Envelope::read(format!("{}\n", text()).as_bytes()).is_ok());
        assert!(Envelope::read(format!("{} {{}}", text()).as_bytes()).is_err());
    }
}
