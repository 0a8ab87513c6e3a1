//! Whether kube-proxy gives the pods' connections an address that the backends' answers come back to.

use std::{collections::BTreeSet, env, fs};

use common::{object::Family, state};
use ipnet::IpNet;

use crate::{check::Check, processes, proxy::Masquerade};

/// What there is to say of the node's kube-proxy, for pods in `subnets`.
pub fn check(subnets: &[IpNet]) -> Vec<Check> {
    if sockets_alone() {
        return vec![Check {
            name: "kube-proxy",
            ok: true,
            msg: "pods reach Services by their sockets alone, for which no kube-proxy is needed; who asks a node port, a load \
                  balancer's or an external address from outside of the cluster is not served"
                .to_owned(),
            remedy: "".into(),
        }];
    }
    verdicts(&processes::proxies(), subnets)
}

/// Whether no pod takes the host path: by `UNDERPASS_PATHS`, else as the agent was told that was started last on this node.
fn sockets_alone() -> bool {
    let noted = || fs::read_to_string(state::directory().join("node-agent.parts")).unwrap_or_default();
    env::var("UNDERPASS_PATHS")
        .map_or_else(|_| noted().split_whitespace().any(|word| word == "paths=socket"), |paths| paths == "socket")
}

/// Without masquerade, a backend in the pod's own subnet answers the pod directly, from an address that the pod has never
/// talked to, and the pod resets the connection.
fn verdicts(proxies: &BTreeSet<Masquerade>, subnets: &[IpNet]) -> Vec<Check> {
    if proxies.is_empty() {
        return vec![Check {
            name: "kube-proxy",
            ok: false,
            msg: "no kube-proxy runs in this network namespace".to_owned(),
            remedy: "the host path needs kube-proxy, or whatever translates Services on the node in its place".into(),
        }];
    }
    proxies.iter().map(|masquerade| verdict(masquerade, subnets)).collect()
}

fn verdict(masquerade: &Masquerade, subnets: &[IpNet]) -> Check {
    let (ok, msg) = match masquerade {
        Masquerade::All => (true, "kube-proxy masquerades every connection to a Service".to_owned()),
        Masquerade::Nobody(why) => {
            (false, format!("kube-proxy masquerades no underlay pod, for {why}: {CANNOT_ANSWER}"))
        }
        Masquerade::AllButOthers(others) => (true, format!("kube-proxy masquerades every pod that is not of {others}")),
        Masquerade::Unknown(why) => {
            (false, format!("whether kube-proxy masquerades underlay pods is not known: {why}"))
        }
        Masquerade::AllBut(cidrs) => {
            let list = cidrs.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            match subnets.iter().find(|subnet| is_spared(cidrs, **subnet)) {
                Some(subnet) => (
                    false,
                    format!(
                        "kube-proxy, whose clusterCIDR is {list}, does not masquerade the underlay's {subnet}: {CANNOT_ANSWER}"
                    ),
                ),
                None => (true, format!("kube-proxy masquerades every pod that is not of {list}")),
            }
        }
    };
    Check { name: "kube-proxy", ok, msg, remedy: REMEDY.into() }
}

const REMEDY: &str = "set masqueradeAll (iptables.masqueradeAll or nftables.masqueradeAll in kube-proxy's configuration, or \
     --masquerade-all), or let clusterCIDR be the overlay pods' only; the socket path does not need it";

const CANNOT_ANSWER: &str = "a Service's backend on the pods' own network cannot answer";

/// Whether connections from a subnet keep their source: it overlaps a cluster CIDR, or its family has none.
fn is_spared(cidrs: &[IpNet], subnet: IpNet) -> bool {
    let mut family = cidrs.iter().filter(|cidr| Family::same(cidr.addr(), subnet.addr())).peekable();
    family.peek().is_none() || family.any(|cidr| cidr.contains(&subnet) || subnet.contains(cidr))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_cidr_that_has_the_underlay_is_as_bad_as_none() {
        let net = |text: &str| text.parse::<IpNet>().unwrap();
        let ok = |masquerade, subnet: &str| verdict(&masquerade, &[net(subnet)]).ok;
        assert!(ok(Masquerade::All, "10.6.0.0/16"));
        assert!(!ok(Masquerade::Nobody(String::new()), "10.6.0.0/16"));
        assert!(!ok(Masquerade::Unknown(String::new()), "10.6.0.0/16"));
        assert!(ok(Masquerade::AllBut(vec![net("10.233.0.0/18")]), "10.6.0.0/16"));
        assert!(!ok(Masquerade::AllBut(vec![net("10.0.0.0/8")]), "10.6.0.0/16"));
    }

    #[test]
    fn a_family_without_a_cluster_cidr_is_not_masqueraded() {
        let v4 = BTreeSet::from([Masquerade::AllBut(vec!["10.233.0.0/18".parse().unwrap()])]);
        let ok = |subnet: &str| verdicts(&v4, &[subnet.parse().unwrap()])[0].ok;
        assert_eq!([ok("10.6.0.0/16"), ok("fd00:6::/64")], [true, false]);
    }
}
