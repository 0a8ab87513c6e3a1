//! What an object says for itself of the socket path.

use std::collections::BTreeMap;

/// The annotation by which a pod says whether it takes part in the socket path, and a Service whether it is there: "true" or
/// "false".
pub const SOCKET_PATH: &str = "underpass.io/socket-path";

/// What an object's annotations say of that; nothing where they have no such one.
///
/// # Errors
/// The annotation, if it is neither "true" nor "false".
pub fn socket_path(annotations: &BTreeMap<String, String>) -> Result<Option<bool>, &str> {
    let Some(text) = annotations.get(SOCKET_PATH) else { return Ok(None) };
    text.parse().map(Some).map_err(|_| text.as_str())
}
