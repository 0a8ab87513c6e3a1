//! Whether somebody else's policy rules get ahead of ours on the node.

use std::{io, net::IpAddr};

use common::{
    harness::block_on,
    netlink::{Netlink, RouteFilter, RuleEntry},
    numbers,
    object::Family,
};

use crate::check::Check;

/// The addresses on the underlay of the pods that run: our routes lead to them.
///
/// # Errors
/// What the kernel says.
pub fn pods() -> io::Result<Vec<IpAddr>> {
    let routes =
        block_on(async { Netlink::open()?.routes(RouteFilter { ours: true, ..RouteFilter::default() }).await });
    Ok(routes.map_err(io::Error::other)??.iter().map(|route| route.destination.addr()).collect())
}

const REMEDY: &str = "give that rule a priority behind ours (ip rule show protocol 85), and those routes another table; the \
     next pod's ADD moves ours before it";

/// Nothing to say where no rule is ours: the next ADD puts its own before all others.
pub fn check(pods: io::Result<Vec<IpAddr>>) -> Vec<Check> {
    let found = pods.and_then(|pods| {
        let read = async {
            let netlink = Netlink::open()?;
            Ok((netlink.rules().await?, netlink.foreign_tables().await?, pods))
        };
        block_on(read).map_err(io::Error::other)?
    });
    let (ok, msg) = match found {
        Err(error) => (false, format!("the policy rules cannot be read: {error}")),
        Ok((rules, ..)) if !rules.iter().any(|entry| entry.ours) => return vec![],
        Ok((rules, foreign, pods)) => {
            let ahead = ahead(&rules, &pods);
            let shared = rules.iter().find(|entry| entry.ours && foreign.contains(&entry.rule.table));
            match (ahead.first(), shared) {
                (Some(entry), _) => {
                    (false, format!("the rule \"{entry}\" gets ahead of the one that leads to the pods"))
                }
                (None, Some(entry)) => {
                    (false, format!("table {}, which leads to the pods, has routes of others", entry.rule.table))
                }
                (None, None) => (true, "no rule of others gets ahead of the one that leads to the pods".to_owned()),
            }
        }
    };
    vec![Check { name: "rules", ok, msg, remedy: REMEDY.into() }]
}

/// The rules of others that can decide on a packet to a pod before ours does, in either family.
fn ahead<'a>(rules: &'a [RuleEntry], pods: &[IpAddr]) -> Vec<&'a RuleEntry> {
    let of = |family: Family| {
        let pods: Vec<IpAddr> = pods.iter().copied().filter(|address| Family::of(*address) == family).collect();
        let rules: Vec<&RuleEntry> = rules.iter().filter(|entry| entry.rule.family == family).collect();
        let last = rules.iter().filter(|entry| entry.ours).map(|entry| entry.rule.priority).max();
        let before = move |entry: &&RuleEntry| last.is_some_and(|last| entry.rule.priority <= last);
        let catching: Vec<_> =
            rules.into_iter().filter(before).filter(|entry| numbers::catches(entry, &pods)).collect();
        catching
    };
    Family::ALL.into_iter().flat_map(of).collect()
}
