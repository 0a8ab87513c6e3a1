//! What an object is called.

use std::{fmt, str::FromStr};

use kube::Resource;

/// An object's namespace (empty where it has none) and name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name {
    /// The namespace; empty for an object that belongs to none.
    pub namespace: String,
    /// The name.
    pub name: String,
}

impl Name {
    /// The name of an object.
    pub fn of<K: Resource>(object: &K) -> Self {
        let metadata = object.meta();
        let text = |field: &Option<String>| field.clone().unwrap_or_default();
        Self { namespace: text(&metadata.namespace), name: text(&metadata.name) }
    }
}

impl fmt::Display for Name {
    /// `namespace/name`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl FromStr for Name {
    type Err = &'static str;

    /// Of an object that belongs to a namespace: `namespace/name`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once('/') {
            Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
                Ok(Self { namespace: namespace.to_owned(), name: name.to_owned() })
            }
            _ => Err("expected a namespace and a name, as in default/web"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_is_read_again_and_half_a_name_is_none() {
        let name = Name { namespace: "default".to_owned(), name: "web".to_owned() };
        assert_eq!(name.to_string().parse(), Ok(name));
        for wrong in ["", "web", "/web", "default/", "default/web/http"] {
            assert!(wrong.parse::<Name>().is_err(), "{wrong}");
        }
    }
}
