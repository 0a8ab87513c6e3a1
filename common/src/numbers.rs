//! Numbers that others use too: routing tables, marks, and the places of rules. Each has a setting from which the search for a free one begins; what
//! somebody uses is left alone, and ours is told by [`PROTOCOL`](crate::object::PROTOCOL), never by its number. Pure.

use std::net::IpAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    netlink::RuleEntry,
    object::{Mark, Rule},
    settings::Settings,
};

/// `RT_TABLE_LOCAL`: the node's own addresses.
const LOCAL_TABLE: u32 = 255;
/// `RT_TABLE_UNSPEC`, and those that the kernel made: default, main and local.
const KERNEL_TABLES: [u32; 4] = [0, 253, 254, LOCAL_TABLE];

/// What an attachment uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Numbers {
    /// The pod's table with the way into the node, for replies to what came in that way. Further interfaces have the tables after it.
    pub pod_table: u32,
    /// The node's table for pods.
    pub node_table: u32,
    /// The pod's mark for these replies.
    pub mark: Mark,
}

impl Numbers {
    /// Those of the first version, which did not note them.
    pub fn first_version(settings: &Settings) -> Self {
        Self { pod_table: 100, node_table: settings.host_rule_table, mark: Mark::default() }
    }

    /// The same with the pod's numbers as its rule of ours by mark has them, if there is one.
    pub fn as_in(self, pod: &[RuleEntry]) -> Option<Self> {
        let Rule { table, fwmark, fwmask, .. } =
            &pod.iter().find(|entry| entry.ours && entry.rule.fwmark.is_some())?.rule;
        let mark = Mark { value: (*fwmark)?, mask: fwmask.unwrap_or(u32::MAX) };
        Some(Self { pod_table: *table, mark, ..self })
    }
}

/// The first table from `base` on that is nobody's.
pub fn free_table(base: u32, is_taken: impl Fn(u32) -> bool) -> u32 {
    (base..=u32::MAX).find(|table| !KERNEL_TABLES.contains(table) && !is_taken(*table)).unwrap_or(base)
}

/// The bit `base`, or the first one that no rule of somebody else compares; `base` where they compare all.
pub fn free_mark(base: u32, rules: &[RuleEntry]) -> Mark {
    let compared = |entry: &RuleEntry| entry.rule.fwmark.map_or(0, |_| entry.rule.fwmask.unwrap_or(u32::MAX));
    let taken = rules.iter().filter(|entry| !entry.ours).fold(0, |taken, entry| taken | compared(entry));
    let bits = [base].into_iter().chain((0..u32::BITS).map(|bit| 1 << bit));
    let bit = bits.into_iter().find(|bit| bit & taken == 0).unwrap_or(base);
    Mark { value: bit, mask: bit }
}

/// Whether a rule of somebody else can decide on a packet to one of these addresses (on any packet where there are none) before a rule of ours behind it
/// does. One that selects by mark is for packets that somebody has picked out, and the local table has no address of a pod.
pub fn catches(entry: &RuleEntry, towards: &[IpAddr]) -> bool {
    let local = entry.action.is_none() && [LOCAL_TABLE, 0].contains(&entry.rule.table);
    let elsewhere = |to: ipnet::IpNet| !towards.is_empty() && !towards.iter().any(|address| to.contains(address));
    !entry.ours && !local && (entry.inverted || (entry.rule.fwmark.is_none() && !entry.to.is_some_and(elsewhere)))
}

/// The priority for `count` rules of ours in a row: before every rule in `rules` (those of one family) that [`catches`], at `preferred` or the next number
/// below that nobody has. Those that are there stay (`current`) as long as they are before.
pub fn place(rules: &[RuleEntry], current: Option<u32>, towards: &[IpAddr], preferred: u32, count: u32) -> u32 {
    let limit = rules.iter().filter(|entry| catches(entry, towards)).map(|entry| entry.rule.priority).min();
    let is_before = |first: u32| limit.is_none_or(|limit| first + count <= limit);
    if let Some(current) = current.filter(|current| is_before(*current)) {
        return current;
    }
    let taken = |priority: u32| rules.iter().any(|entry| !entry.ours && entry.rule.priority == priority);
    let highest = limit.map_or(preferred, |limit| preferred.min(limit.saturating_sub(count))).max(1);
    (1..=highest).rev().find(|first| (0..count).all(|n| !taken(first + n))).unwrap_or(highest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::Family;

    fn foreign(priority: u32, table: u32) -> RuleEntry {
        let rule = Rule { priority, family: Family::Ipv4, from: None, fwmark: None, fwmask: None, table };
        RuleEntry { rule, ours: false, plain: true, action: None, inverted: false, to: None }
    }

    fn marked(priority: u32, value: u32, mask: Option<u32>) -> RuleEntry {
        let mut entry = foreign(priority, 100);
        (entry.rule.fwmark, entry.rule.fwmask) = (Some(value), mask);
        entry
    }

    #[test]
    fn a_table_that_somebody_uses_or_the_kernel_made_is_passed_over() {
        assert_eq!(free_table(8500, |_| false), 8500);
        assert_eq!(free_table(8500, |table| table < 8503), 8503);
        assert_eq!(free_table(253, |_| false), 256);
        assert_eq!(free_table(u32::MAX, |_| true), u32::MAX);
    }

    #[test]
    fn a_bit_that_somebody_compares_is_passed_over() {
        let mark = |rules: &[RuleEntry]| free_mark(0x1000, rules).value;
        assert_eq!(mark(&[marked(32764, 0x111, Some(0xfff))]), 0x1000);
        assert_eq!(mark(&[marked(5, 0x1000, Some(0xf000)), marked(6, 1, Some(1))]), 2);
        assert_eq!(mark(&[marked(5, 0xca6c, None)]), 0x1000);
    }

    #[test]
    fn our_rules_go_before_whatever_catches_and_stay_where_they_are_if_they_are_before() {
        let (local, main) = (foreign(0, 255), foreign(32766, 254));
        let at = |rules: &[RuleEntry], current| place(rules, current, &[], 85, 2);
        assert_eq!(at(&[local.clone(), main.clone()], None), 85);
        assert_eq!(at(&[local.clone(), main.clone()], Some(1000)), 1000);
        assert_eq!(at(&[local.clone(), foreign(100, 254), main.clone()], Some(1000)), 85);
        assert_eq!(at(&[local.clone(), foreign(50, 254)], Some(85)), 48);
        assert_eq!(at(&[local, foreign(50, 254), foreign(49, 255), foreign(48, 255)], None), 46);
    }

    #[test]
    fn a_rule_by_mark_or_to_elsewhere_is_nobody_to_get_ahead_of_and_an_inverted_one_is() {
        let address: IpAddr = "10.6.0.9".parse().unwrap();
        let to = |net: &str| RuleEntry { to: net.parse().ok(), plain: false, ..foreign(9, 254) };
        assert!(!catches(&marked(9, 0x200, Some(0xf00)), &[]));
        assert!(catches(&RuleEntry { inverted: true, ..marked(9, 0xca6c, None) }, &[address]));
        let action = |action: &str| RuleEntry { action: Some(action.to_owned()), plain: false, ..foreign(50, 0) };
        assert!(catches(&action("goto 32766"), &[address]) && catches(&action("blackhole"), &[]));
        assert_eq!(action("goto 32766").to_string(), "pref 50 goto 32766");
        assert!(catches(&to("10.6.0.0/16"), &[address]) && !catches(&to("10.7.0.0/16"), &[address]));
    }
}
