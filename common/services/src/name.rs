//! Names, which are no longer than Kubernetes lets them be.

use serde::{Deserialize as _, Deserializer, de};

fn checked<E: de::Error>(name: String, max: usize) -> Result<String, E> {
    if name.chars().count() > max {
        return Err(E::custom(format!("the name {name} is longer than {max} characters")));
    }
    if name.contains('\0') {
        return Err(E::custom("a name with the character U+0000"));
    }
    Ok(name)
}

/// Of a namespace, of a Service, or of a Service's port (only a container's port is bound to 15 characters).
pub(crate) fn label<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    checked(String::deserialize(deserializer)?, 63)
}

/// Of a node.
pub(crate) fn node<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    checked(String::deserialize(deserializer)?, 253)
}

/// Of a node, if it is known.
pub(crate) fn option<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    Option::<String>::deserialize(deserializer)?.map(|name| checked(name, 253)).transpose()
}
