//! Who has an address that several Services claim.

use crate::time::seconds;

/// A Service's claim to an address with a port and a protocol. The lesser of two has it: a ClusterIP before any other address,
/// so that nobody takes a Service's address by naming it as an external one; then the older, then the one whose name comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Claim<S> {
    is_external: bool,
    created: u32,
    /// Who claims it: a name.
    pub service: S,
}

impl<S> Claim<S> {
    /// The claim of a Service that was [`created`] then, by one of its ClusterIPs or by another address. Who has no date is
    /// younger than all others.
    pub fn new(is_external: bool, created: Option<u32>, service: S) -> Self {
        Self { is_external, created: created.unwrap_or(u32::MAX), service }
    }
}

/// When something was created, in seconds since 1970, as far as 32 bits go: from RFC 3339.
pub fn created(time: &str) -> Option<u32> {
    let seconds = seconds(time)?.clamp(0, i64::from(u32::MAX - 1));
    u32::try_from(seconds).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_ip_comes_first_then_who_is_older_then_who_is_named_first() {
        let claims = [
            Claim::new(false, None, "b"),
            Claim::new(true, created("2026-01-02T03:04:05Z"), "b"),
            Claim::new(true, created("2026-01-02T03:04:06Z"), "a"),
            Claim::new(true, created("9999-01-02T03:04:05Z"), "a"),
            Claim::new(true, None, "a"),
            Claim::new(true, None, "b"),
        ];
        assert!(claims.is_sorted_by(|one, next| one < next));
    }
}
