//! Says whether a node is fit for underlay pods, and what to change.

mod balancers;
mod forward;
mod networkd;
mod processes;
mod proxy;
mod rules;

use std::{collections::BTreeSet, env, fs, path::PathBuf, process::ExitCode};

use clap::{Arg, ArgAction};
use common::{
    harness::{self, About},
    marks,
    settings::Settings,
    state,
    table::table,
};
use ipnet::IpNet;
use proxy::Masquerade;
use serde::Serialize;
use serde_json::{Value, json};

const ABOUT: About = About {
    name: "check-node",
    does: "Looks at the node that it runs on and prints what underlay pods need of it: whether that is so, and what to \
           change; a table at a terminal, else JSON. Changes nothing. Exits 1 when something is to be changed.",
    example: "  check-node --subnet 10.6.0.0/16 | jq -r '.checks[] | select(.ok | not) | .msg + \": \" + .remedy'",
};

/// One thing that pods need of their node.
#[derive(Debug, Serialize)]
struct Check {
    name: &'static str,
    ok: bool,
    msg: String,
    #[serde(skip_serializing_if = "str::is_empty")]
    remedy: &'static str,
}

fn main() -> ExitCode {
    let cli = harness::cli(ABOUT)
        .arg(
            Arg::new("subnet")
                .long("subnet")
                .action(ArgAction::Append)
                .value_parser(clap::value_parser!(IpNet))
                .help("A subnet of the underlay from which pods get their addresses; may be repeated [default: those of the pods that \
                       run]"),
        )
        .arg(Arg::new("cgroup").long("cgroup").value_parser(clap::value_parser!(PathBuf)).help(
            "The cgroup v2 at which to look for programs that translate Services (the root of those that are mounted)",
        ));
    let flags = harness::matches(cli);
    let subnets: Vec<IpNet> = flags.get_many("subnet").into_iter().flatten().copied().collect();
    let pods = rules::pods();
    let running: Vec<IpNet> = pods.iter().flatten().copied().map(IpNet::from).collect();
    let mut checks = vec![forwarding("net/ipv4/ip_forward")];
    if has_ipv6(&fs::read_to_string("/proc/net/if_inet6").unwrap_or_default())
        || running.iter().chain(&subnets).any(|net| net.addr().is_ipv6())
    {
        checks.push(forwarding("net/ipv6/conf/all/forwarding"));
    }
    checks.extend([nftables(), state_directory()]);
    checks.extend(networkd());
    checks.extend(forwarded(&subnets));
    if sockets_alone() {
        checks.push(no_proxy_needed());
    } else {
        checks.extend(masquerade(&processes::proxies(), if subnets.is_empty() { &running } else { &subnets }));
    }
    checks.extend(rules::check(pods));
    checks.extend(balancers::check(flags.get_one::<PathBuf>("cgroup").map(PathBuf::as_path)));
    let code = if checks.iter().all(|check| check.ok) { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    harness::answer(&json!({ "checks": checks }), || for_people(&checks), code)
}

/// A row for each check and, where something is to be changed, a second one that says what.
fn for_people(checks: &[Check]) -> String {
    let row = |name: &str, ok: &str, text: &str| vec![name.to_owned(), ok.to_owned(), text.to_owned()];
    let rows = checks.iter().flat_map(|check| {
        let remedy = (!check.ok).then(|| row("", "", &format!("-> {}", check.remedy)));
        [row(check.name, if check.ok { "yes" } else { "NO" }, &check.msg)].into_iter().chain(remedy)
    });
    table(&["CHECK", "OK", "WHAT"], &rows.collect::<Vec<_>>())
}

fn forwarding(path: &str) -> Check {
    let value = fs::read_to_string(format!("/proc/sys/{path}")).unwrap_or_default();
    Check {
        name: "forwarding",
        ok: value.trim() == "1",
        msg: format!("{path} is {}", if value.is_empty() { "not there" } else { value.trim() }),
        remedy: "the node forwards pods' packets to Services: set it to 1, or do without pods of that address family",
    }
}

/// Whether the node has a global IPv6 address, by `/proc/net/if_inet6`: address, index, prefix length, scope, flags and name.
fn has_ipv6(addresses: &str) -> bool {
    addresses.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).any(|words| words.get(3) == Some(&"00"))
}

fn nftables() -> Check {
    let found = marks::find();
    Check {
        name: "nftables",
        ok: found.is_ok(),
        msg: match found {
            Ok(_) => "the kernel has nf_tables".to_owned(),
            Err(error) => format!("the kernel has no nf_tables: {error}"),
        },
        remedy: "replies find their way by an nftables mark: load the module nf_tables (Linux 5.2: route chains of the family inet)",
    }
}

/// What systemd-networkd, where it runs, does to what is ours.
fn networkd() -> Option<Check> {
    let (ok, msg) = match networkd::harmful(&networkd::process()?) {
        Ok(harmful) if harmful.is_empty() => {
            (true, "systemd-networkd leaves other programs' rules and routes alone".to_owned())
        }
        Ok(harmful) => {
            let harmful = harmful.join(", ");
            (false, format!("systemd-networkd takes other programs' rules and routes away when it starts: {harmful}"))
        }
        Err(error) => (false, format!("what systemd-networkd does to other programs' rules is not known: {error}")),
    };
    Some(Check {
        name: "networkd",
        ok,
        msg,
        remedy: "in the section [Network] of /etc/systemd/networkd.conf.d/underpass.conf set ManageForeignRoutes=no and \
                 ManageForeignRoutingPolicyRules=no; until then the node agent has to put right what is taken away",
    })
}

/// What the node's firewall drops of what pods send and get.
fn forwarded(subnets: &[IpNet]) -> Vec<Check> {
    let check = |ok, msg| Check {
        name: "forward",
        ok,
        msg,
        remedy: "let it pass before it is dropped (85 stands for linkGroup): `iptables -I FORWARD -m devgroup --src-group 85 \
                 -j ACCEPT`, the same with --dst-group, both with ip6tables too (iptables-legacy where its table is named), and in the \
                 chain DOCKER-USER beside Docker; \
                 in nftables `iifgroup 85 accept` and `oifgroup 85 accept` in that chain; in firewalld `firewall-cmd \
                 --permanent --zone=trusted --add-source=SUBNET` for the subnets of underlay and overlay pods",
    };
    let ruleset = match forward::read() {
        Ok(ruleset) => ruleset,
        Err(error) => return vec![check(false, format!("the rules for forwarded packets cannot be read: {error}"))],
    };
    let cluster = state::cluster().unwrap_or_default();
    let (settings, _) = Settings::resolve(&Value::Null, &cluster["settings"]);
    let obstacles = forward::obstacles(&ruleset, settings.link_group, subnets);
    if obstacles.is_empty() {
        return vec![check(true, "no rule for forwarded packets drops what comes from or goes to pods".to_owned())];
    }
    let failed = obstacles
        .into_iter()
        .map(|forward::Obstacle { place, what }| check(false, format!("{place} drops what goes {what}")));
    failed.collect()
}

fn state_directory() -> Check {
    let directory = state::directory();
    let made = fs::create_dir_all(&directory);
    Check {
        name: "state",
        ok: made.is_ok(),
        msg: match made {
            Ok(()) => format!("{} is there", directory.display()),
            Err(error) => format!("{} cannot be made: {error}", directory.display()),
        },
        remedy: "the plugin keeps locks and documents there: make it writable for root",
    }
}

/// Whether no pod takes the host path: by `UNDERPASS_PATHS`, else as the agent was told that was started last on this node.
fn sockets_alone() -> bool {
    let noted = || fs::read_to_string(state::directory().join("node-agent.parts")).unwrap_or_default();
    env::var("UNDERPASS_PATHS")
        .map_or_else(|_| noted().split_whitespace().any(|word| word == "paths=socket"), |paths| paths == "socket")
}

fn no_proxy_needed() -> Check {
    Check {
        name: "kube-proxy",
        ok: true,
        msg: "pods reach Services by their sockets alone, for which no kube-proxy is needed".to_owned(),
        remedy: "",
    }
}

/// Without masquerade, a backend in the pod's own subnet answers the pod directly, from an address that the pod has never
/// talked to, and the pod resets the connection.
fn masquerade(proxies: &BTreeSet<Masquerade>, subnets: &[IpNet]) -> Vec<Check> {
    if proxies.is_empty() {
        return vec![Check {
            name: "kube-proxy",
            ok: false,
            msg: "no kube-proxy runs in this network namespace".to_owned(),
            remedy: "the host path needs kube-proxy, or whatever translates Services on the node in its place",
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
    Check {
        name: "masquerade",
        ok,
        msg,
        remedy: "set masqueradeAll (iptables.masqueradeAll or nftables.masqueradeAll in kube-proxy's configuration, or \
                 --masquerade-all), or let clusterCIDR be the overlay pods' only; the socket path does not need it",
    }
}

const CANNOT_ANSWER: &str = "a Service's backend on the pods' own network cannot answer";

/// Whether connections from a subnet keep their source: it overlaps a cluster CIDR, or its family has none.
fn is_spared(cidrs: &[IpNet], subnet: IpNet) -> bool {
    let mut family = cidrs.iter().filter(|cidr| cidr.addr().is_ipv4() == subnet.addr().is_ipv4()).peekable();
    family.peek().is_none() || family.any(|cidr| cidr.contains(&subnet) || subnet.contains(cidr))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_has_ipv6_by_an_address_that_is_neither_its_loopback_nor_its_links() {
        let lo = "00000000000000000000000000000001 01 80 10 80       lo\n";
        let link = "fe80000000000000d0b4aafffe000001 02 40 20 80     eth0\n";
        assert!(!has_ipv6(&format!("{lo}{link}")));
        assert!(has_ipv6(&format!("{link}fd000006000000000000000000000101 02 40 00 80     eth0\n")));
    }

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
        let ok = |subnet: &str| masquerade(&v4, &[subnet.parse().unwrap()])[0].ok;
        assert_eq!([ok("10.6.0.0/16"), ok("fd00:6::/64")], [true, false]);
    }
}
