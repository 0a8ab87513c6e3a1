//! Whether the node's firewall lets through what underlay pods send to overlay pods, and what others send to them.
//!
//! Services pass in any case: kube-proxy has a rule for what it masquerades. The rest is up to whoever wrote rules for
//! forwarded packets, such as Docker, whose policy is to drop, or firewalld, whose last rule rejects.

mod ruleset;
mod xtables;

use std::{io, net::IpAddr};

use common::{object::Family, settings::Settings, state};
use ipnet::IpNet;
use serde_json::Value;

use crate::check::Check;
use ruleset::{Chain, Field, Ruleset, Term, Verdict};

/// `NF_CT_STATE_BIT(IP_CT_NEW)`.
const NEW: u32 = 8;
/// `IPS_DST_NAT`.
const TRANSLATED: u32 = 1 << 5;
/// The name of the node's link to a pod ([`common::names::host_veth`]): how each begins, and what no other link's name has.
const POD_LINK: &[u8; 16] = b"veth////////////";
/// No chain leads through more others than this (`NFT_JUMP_STACK_SIZE`).
const DEPTH: usize = 16;

/// A new connection's first packet, as far as it is known.
#[derive(Clone, Copy, Debug)]
struct Packet {
    what: &'static str,
    family: Family,
    from_pod: bool,
    pod: Option<IpAddr>,
    status: u32,
}

/// What drops such a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Obstacle {
    /// Which chain, of which table.
    place: String,
    /// Which packets it drops.
    what: String,
}

/// What the node's firewall drops of what pods send and get.
pub fn check(subnets: &[IpNet]) -> Vec<Check> {
    let cluster = state::cluster().unwrap_or_default();
    let group = Settings::resolve(&Value::Null, &cluster["settings"]).0.veth_group();
    let remedy = format!(
        "let it pass before it is dropped: `iptables -I FORWARD -m devgroup --src-group {group} -j ACCEPT`, the same with \
         --dst-group, both with ip6tables too (iptables-legacy where its table is named), and in the chain DOCKER-USER \
         beside Docker; in nftables `iifgroup {group} accept` and `oifgroup {group} accept` in that chain; in firewalld \
         `firewall-cmd --permanent --zone=trusted --add-source=SUBNET` for the subnets of underlay and overlay pods"
    );
    let check = |ok, msg| Check { name: "forward", ok, msg, remedy: remedy.clone().into() };
    let ruleset = match read() {
        Ok(ruleset) => ruleset,
        Err(error) => return vec![check(false, format!("the rules for forwarded packets cannot be read: {error}"))],
    };
    let obstacles = obstacles(&ruleset, group, subnets);
    if obstacles.is_empty() {
        return vec![check(true, "no rule for forwarded packets drops what comes from or goes to pods".to_owned())];
    }
    let failed =
        obstacles.into_iter().map(|Obstacle { place, what }| check(false, format!("{place} drops what goes {what}")));
    failed.collect()
}

/// The rules of the calling thread's network namespace.
///
/// # Errors
/// When the kernel refuses them.
fn read() -> io::Result<Ruleset> {
    let (mut ruleset, legacy) = (ruleset::read()?, xtables::read()?);
    ruleset.bases.extend(legacy.bases);
    ruleset.chains.extend(legacy.chains);
    Ok(ruleset)
}

/// The chains of the forward hook that drop packets from or to pods. `group` is the link group of the node's ends of the
/// pods' links, `subnets` are where pods get their addresses from.
fn obstacles(ruleset: &Ruleset, group: u32, subnets: &[IpNet]) -> Vec<Obstacle> {
    let mut obstacles = vec![];
    for base in &ruleset.bases {
        let packets = Family::ALL.into_iter().filter(|family| base.table.has(*family)).flat_map(|family| {
            let of_family = subnets.iter().filter(|net| Family::of(net.addr()) == family);
            let mut pods: Vec<_> = of_family.map(|net| Some(net.network())).collect();
            if pods.is_empty() {
                pods.push(None);
            }
            let packets = |what, from_pod, status| {
                pods.iter().map(|pod| Packet { what, family, from_pod, pod: *pod, status }).collect::<Vec<_>>()
            };
            [
                packets("from a pod to an overlay pod", true, 0),
                packets("to a pod from an overlay pod", false, 0),
                packets("to a pod from a client of its NodePort", false, TRANSLATED),
            ]
            .concat()
        });
        let dropped = packets.filter(|packet| Walk { ruleset, packet, group }.base(base) == Verdict::Drop);
        let mut what: Vec<_> = dropped.map(|packet| format!("{} over {}", packet.what, packet.family)).collect();
        what.dedup();
        if !what.is_empty() {
            obstacles.push(Obstacle { place: format!("chain {} of {}", base.name, base.table), what: what.join(", ") });
        }
    }
    obstacles
}

struct Walk<'a> {
    ruleset: &'a Ruleset,
    packet: &'a Packet,
    group: u32,
}

impl Walk<'_> {
    /// What becomes of the packet. A rule with a condition that cannot be decided here is taken for one that does not
    /// match.
    fn base(&self, base: &Chain) -> Verdict {
        let policy = if base.drops { Verdict::Drop } else { Verdict::Accept };
        self.chain(base, DEPTH).filter(|verdict| *verdict != Verdict::Return).unwrap_or(policy)
    }

    fn chain(&self, chain: &Chain, depth: usize) -> Option<Verdict> {
        for rule in &chain.rules {
            let next = |name: &str| self.ruleset.chain(&chain.table, name).filter(|_| depth > 0);
            match self.rule(rule) {
                Some(Verdict::Jump(name)) => match next(&name).and_then(|next| self.chain(next, depth - 1)) {
                    None | Some(Verdict::Return) => {}
                    verdict => return verdict,
                },
                Some(Verdict::Goto(name)) => return next(&name).and_then(|next| self.chain(next, depth - 1)),
                None => {}
                verdict => return verdict,
            }
        }
        None
    }

    fn rule(&self, terms: &[Term]) -> Option<Verdict> {
        let mut registers: Vec<(u32, Option<Vec<u8>>)> = vec![];
        let load = |registers: &[(u32, Option<Vec<u8>>)], register: u32| {
            registers.iter().rev().find(|(number, _)| *number == register).and_then(|(_, value)| value.clone())
        };
        for term in terms {
            match term {
                Term::Load { register, field } => registers.push((*register, self.value(*field))),
                Term::Value { register, value } => registers.push((*register, Some(value.clone()))),
                Term::Bits { from, to, mask, xor } => {
                    let bits = |value: Vec<u8>| {
                        value.iter().zip(mask).zip(xor).map(|((value, mask), xor)| value & mask ^ xor).collect()
                    };
                    registers.push((*to, load(&registers, *from).map(bits)));
                }
                Term::Compare { register, equal, value } => {
                    let found = load(&registers, *register)?;
                    let same = found.len() >= value.len() && found[..value.len()] == **value;
                    if same != *equal {
                        return None;
                    }
                }
                Term::Group { source, destination } => {
                    let is_ours = |(value, mask): &(u32, u32)| self.group & mask == *value;
                    let side = if self.packet.from_pod { source } else { destination };
                    if !side.as_ref().is_some_and(is_ours) {
                        return None;
                    }
                }
                Term::Undecided => return None,
                Term::Verdict(verdict) => return Some(verdict.clone()),
            }
        }
        None
    }

    fn value(&self, field: Field) -> Option<Vec<u8>> {
        let Packet { family, from_pod, pod, status, .. } = *self.packet;
        let number = |value: u32| Some(value.to_ne_bytes().to_vec());
        let address = |address: IpAddr| match address {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        };
        match field {
            Field::InGroup if from_pod => number(self.group),
            Field::OutGroup if !from_pod => number(self.group),
            Field::InName if from_pod => Some(POD_LINK.to_vec()),
            Field::OutName if !from_pod => Some(POD_LINK.to_vec()),
            Field::Header { offset, length } => {
                // Where an IP header has the source and the destination.
                let place = match (family, from_pod) {
                    (Family::Ipv4, true) => 12,
                    (Family::Ipv4, false) => 16,
                    (Family::Ipv6, true) => 8,
                    (Family::Ipv6, false) => 24,
                };
                part(&address(pod?), offset.checked_sub(place)?, length)
            }
            Field::Protocol => Some(vec![if family == Family::Ipv4 { 2 } else { 10 }]),
            Field::State => number(NEW),
            Field::Status => number(status),
            Field::Direction => Some(vec![0]),
            Field::Mark => number(0),
            // Nothing is known of the node's other link.
            _ => None,
        }
    }
}

fn part(address: &[u8], skip: u32, length: u32) -> Option<Vec<u8>> {
    let (skip, length) = (skip as usize, length as usize);
    address.get(skip..skip + length).map(<[u8]>::to_vec)
}

#[cfg(test)]
mod tests {
    use super::{ruleset::Table, *};

    fn chain(name: &str, drops: bool, rules: Vec<Vec<Term>>) -> Chain {
        Chain { table: Table { family: 1, name: "filter".to_owned() }, name: name.to_owned(), drops, rules }
    }

    fn found(bases: Vec<Chain>, chains: Vec<Chain>) -> usize {
        let subnets = ["10.6.0.0/16".parse().unwrap(), "fd00:6::/64".parse().unwrap()];
        obstacles(&Ruleset { bases, chains }, 85, &subnets).len()
    }

    fn group(field: Field) -> Vec<Term> {
        let value = 85u32.to_ne_bytes().to_vec();
        vec![
            Term::Load { register: 1, field },
            Term::Compare { register: 1, equal: true, value },
            Term::Verdict(Verdict::Accept),
        ]
    }

    #[test]
    fn a_policy_or_a_last_rule_that_drops_is_an_obstacle_and_a_rule_for_pods_takes_it_away() {
        let both = || vec![group(Field::InGroup), group(Field::OutGroup)];
        assert_eq!(found(vec![chain("forward", false, vec![])], vec![]), 0);
        assert_eq!(found(vec![chain("forward", true, vec![])], vec![]), 1);
        assert_eq!(found(vec![chain("forward", true, vec![group(Field::InGroup)])], vec![]), 1);
        assert_eq!(found(vec![chain("forward", true, both())], vec![]), 0);
        let last = vec![vec![Term::Verdict(Verdict::Drop)]];
        assert_eq!(found(vec![chain("forward", false, last.clone())], vec![]), 1);
        let jump = vec![vec![Term::Verdict(Verdict::Jump("pods".to_owned()))]];
        assert_eq!(found(vec![chain("forward", false, [jump, last].concat())], vec![chain("pods", false, both())]), 0);
    }

    #[test]
    fn what_cannot_be_decided_does_not_match() {
        let maybe = vec![vec![Term::Undecided, Term::Verdict(Verdict::Drop)]];
        assert_eq!(found(vec![chain("forward", false, maybe)], vec![]), 0);
    }

    #[test]
    fn a_chain_that_leads_to_itself_ends() {
        let jump = vec![vec![Term::Verdict(Verdict::Jump("forward".to_owned()))]];
        assert_eq!(found(vec![chain("forward", true, jump.clone())], vec![chain("forward", false, jump)]), 1);
    }
}
