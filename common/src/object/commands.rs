//! The commands of iproute2, nftables and procps that a person would type for an operation.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use super::{
    Address, LinkAddress, Mark, Marks, NFT_TABLE, Netns, Object, Operation, PROTOCOL, Placed, QueueLength, Sysctl,
    Transit, Veth,
};

impl Operation {
    /// The commands of iproute2, nftables and procps that do the same, to be run on the node.
    pub fn commands(&self, pod: Option<&Path>) -> Vec<String> {
        let render = |placed: &Placed, verb| {
            let netns = pod.map_or_else(|| PathBuf::from("$CNI_NETNS"), Path::to_path_buf);
            let prefix = match placed.netns {
                Netns::Node => String::new(),
                Netns::Pod => format!("nsenter --net={} ", netns.display()),
            };
            let commands = placed.object.commands(verb, &netns);
            commands.into_iter().map(move |command| format!("{prefix}{command}"))
        };
        match self {
            Self::Add(placed) => render(placed, Verb::Add).collect(),
            Self::Delete(placed) => render(placed, Verb::Delete).collect(),
            Self::Replace { from, to } if to.object.is_value() || from.object.is_same_pair(&to.object) => {
                render(to, Verb::Set).collect()
            }
            Self::Replace { from, to } => render(from, Verb::Delete).chain(render(to, Verb::Add)).collect(),
        }
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Verb {
    Add,
    Delete,
    Set,
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Add => "add",
            Self::Delete => "del",
            Self::Set => "set",
        })
    }
}

impl Object {
    fn commands(&self, verb: Verb, pod: &Path) -> Vec<String> {
        match (self, verb) {
            (Self::Veth(veth), Verb::Add) => [veth.creation(pod), veth.start(pod)].concat(),
            (Self::Veth(veth), Verb::Set) => [veth.properties(pod), veth.start(pod)].concat(),
            (Self::Veth(veth), Verb::Delete) => vec![format!("ip link del dev {}", veth.name)],
            (Self::Address(Address { dev, address }), _) => vec![format!("ip address {verb} {address} dev {dev}")],
            (Self::Neighbour(neighbour), Verb::Add | Verb::Set) => vec![format!("ip neighbour replace {neighbour}")],
            (Self::Neighbour(n), Verb::Delete) => vec![format!("ip neighbour del {} dev {}", n.address, n.dev)],
            (Self::Route(route), _) => vec![format!("ip route {verb} {route} proto {}", route.protocol)],
            (Self::Rule(rule), _) => vec![format!("ip {}rule {verb} {rule} protocol {PROTOCOL}", rule.option())],
            (Self::Marks(marks), Verb::Add | Verb::Set) => marks.creation(),
            (Self::Marks(_), Verb::Delete) => vec![format!("nft delete table inet {NFT_TABLE}")],
            (Self::Transit(rule), Verb::Add | Verb::Set) => rule.creation(),
            (Self::Transit(rule), Verb::Delete) => rule.removal(),
            (Self::Sysctl(Sysctl { path, value }), _) => {
                vec![format!("sysctl -w {path}={value}")]
            }
            (Self::QueueLength(QueueLength { dev, packets }), _) => {
                vec![format!("ip link set dev {dev} txqueuelen {packets}")]
            }
            (Self::LinkAddress(LinkAddress { dev, mac }), _) => vec![format!("ip link set dev {dev} address {mac}")],
        }
    }
}

impl Veth {
    fn creation(&self, pod: &Path) -> Vec<String> {
        let Self { name, mac, peer, peer_mac, mtu, .. } = self;
        vec![format!(
            "ip link add {name} mtu {mtu} address {mac} numtxqueues 1 numrxqueues 1 type veth \
             peer name {peer} mtu {mtu} address {peer_mac} numtxqueues 1 numrxqueues 1 netns {}",
            pod.display()
        )]
    }

    fn properties(&self, pod: &Path) -> Vec<String> {
        let Self { name, mac, peer, peer_mac, mtu, .. } = self;
        vec![
            format!("ip link set dev {name} address {mac} mtu {mtu}"),
            format!("nsenter --net={} ip link set dev {peer} address {peer_mac} mtu {mtu}", pod.display()),
        ]
    }

    fn start(&self, pod: &Path) -> Vec<String> {
        let Self { name, peer, alias, group, .. } = self;
        let pod = pod.display();
        vec![
            format!("ip link set dev {name} alias '{alias}' group {group} addrgenmode none"),
            format!("ip link set dev {name} up"),
            format!("nsenter --net={pod} ip link set dev {peer} addrgenmode none"),
            format!("nsenter --net={pod} ip link set dev {peer} up"),
        ]
    }
}

impl Marks {
    fn creation(&self) -> Vec<String> {
        let Self { dev, mark: Mark { value, mask }, .. } = self;
        let (rest, whole) = (!mask, *mask == u32::MAX);
        let is = if whole { format!("ct mark {value:#x}") } else { format!("ct mark and {mask:#x} == {value:#x}") };
        let set = |what: &str| {
            let kept = if whole { String::new() } else { format!("{what} and {rest:#x} or ") };
            format!("{what} set {kept}{value:#x}")
        };
        let reply = format!("ct direction reply {is} {}", set("meta mark"));
        [
            format!("add table inet {NFT_TABLE}"),
            format!("add chain inet {NFT_TABLE} prerouting '{{ type filter hook prerouting priority mangle; }}'"),
            format!("add chain inet {NFT_TABLE} output '{{ type route hook output priority mangle; }}'"),
            format!("add rule inet {NFT_TABLE} prerouting iifname {dev} ct state new {}", set("ct mark")),
            format!("add rule inet {NFT_TABLE} prerouting {reply}"),
            format!("add rule inet {NFT_TABLE} output {reply}"),
        ]
        .map(|command| format!("nft {command}"))
        .to_vec()
    }
}

impl Transit {
    /// The rule in nft's syntax, and the chain that it is in.
    fn rule(&self) -> (&'static str, String) {
        let Self { group, destination, masquerade } = self;
        let ip = if destination.addr().is_ipv4() { "ip" } else { "ip6" };
        let packets = format!("iifgroup {group} {ip} daddr {destination}");
        if *masquerade {
            ("postrouting", format!("{packets} masquerade"))
        } else {
            ("prerouting", format!("{packets} ct state invalid notrack"))
        }
    }

    fn creation(&self) -> Vec<String> {
        let (chain, rule) = self.rule();
        let hook = match chain {
            "postrouting" => "type nat hook postrouting priority srcnat",
            _ => "type filter hook prerouting priority mangle",
        };
        vec![
            format!("nft add table inet {NFT_TABLE}"),
            format!("nft add chain inet {NFT_TABLE} {chain} '{{ {hook}; }}'"),
            format!("nft add rule inet {NFT_TABLE} {chain} {rule}"),
        ]
    }

    /// Removes the rule, and with the last one the table.
    fn removal(&self) -> Vec<String> {
        let (chain, rule) = self.rule();
        let handle = format!("nft -a list chain inet {NFT_TABLE} {chain} | sed -n 's|.*{rule} # handle ||p'");
        vec![
            format!("nft delete rule inet {NFT_TABLE} {chain} handle \"$({handle})\""),
            format!("nft list table inet {NFT_TABLE} | grep -q iifgroup || nft delete table inet {NFT_TABLE}"),
        ]
    }
}
