//! Whole numbers. As in JSON Schema, 80.0 and 8e1 are other ways to write 80.

use std::{fmt, ops::RangeInclusive};

use serde::{
    Deserialize, Deserializer,
    de::{Error, Unexpected, Visitor},
};

/// Kubernetes' own limit for the timeout of a session affinity, in seconds.
pub(crate) const MAX_TIMEOUT: u32 = 86_400;

struct Within(RangeInclusive<u32>);

impl Visitor<'_> for Within {
    type Value = u32;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a whole number between {} and {}", self.0.start(), self.0.end())
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<u32, E> {
        let fits = u32::try_from(number).ok().filter(|number| self.0.contains(number));
        fits.ok_or_else(|| E::invalid_value(Unexpected::Unsigned(number), &self))
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<u32, E> {
        // What does not fit, or is not whole, is another number once it is converted.
        let whole = number as u32;
        let fits = f64::from(whole) == number && self.0.contains(&whole);
        if fits { Ok(whole) } else { Err(E::invalid_value(Unexpected::Float(number), &self)) }
    }
}

/// Reads the number of a port.
pub(crate) fn port<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u16, D::Error> {
    let port = deserializer.deserialize_any(Within(1..=u16::MAX.into()))?;
    u16::try_from(port).map_err(D::Error::custom)
}

/// Reads the number of a port, if there is one.
pub(crate) fn some_port<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u16>, D::Error> {
    #[derive(Deserialize)]
    struct Port(#[serde(deserialize_with = "port")] u16);

    Ok(Option::<Port>::deserialize(deserializer)?.map(|Port(port)| port))
}

/// Reads the timeout of a session affinity, in seconds.
pub(crate) fn timeout<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    deserializer.deserialize_any(Within(1..=MAX_TIMEOUT))
}
