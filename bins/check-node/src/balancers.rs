//! Whether somebody else translates Services at connect() too, by eBPF programs on the same cgroup.

use std::{collections::BTreeSet, fs::File, io, path::Path};

use common::cgroup;

use crate::{Check, bpf};

/// Who is known by which beginnings of programs' names.
const BALANCERS: [(&str, &[&str]); 2] = [
    ("Cilium's", &["cil_sock4_", "cil_sock6_", "sock4_", "sock6_"]),
    ("Calico's", &["calico_connect", "calico_sendmsg"]),
];

/// What the socket path's own program at the first hook is called.
const OURS: &str = "connect4";

/// Nothing to say where there is no cgroup v2, or where this process may not look.
pub fn check(cgroup: Option<&Path>) -> Vec<Check> {
    let Some(cgroup) = cgroup.map(Path::to_owned).or_else(cgroup::mount) else { return vec![] };
    let check = |ok, msg| {
        vec![Check {
            name: "balancers",
            ok,
            msg,
            remedy: "let one of the two translate: without kube-proxy theirs, which then serves other pods too (install with \
                     paths=host, or set socketPath false); beside kube-proxy ours, which ends sockets when a backend goes (Cilium: \
                     socketLB.enabled=false and kubeProxyReplacement=false; Calico: BPFConnectTimeLoadBalancing Disabled). Until \
                     then whoever is attached first translates, and the other finds no Service in what it is given",
        }]
    };
    match programs(&cgroup) {
        Ok(names) => {
            let place = cgroup.display();
            match (names.contains(OURS), others(&names).join(" and ")) {
                (true, others) if !others.is_empty() => {
                    check(false, format!("at {place} two translate Services at connect(): ours and {others}"))
                }
                (true, _) => check(true, format!("at {place} ours alone translates Services at connect()")),
                (false, others) if !others.is_empty() => {
                    check(true, format!("at {place} {others} translates Services at connect(), and ours does not"))
                }
                (false, _) => vec![],
            }
        }
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => vec![],
        Err(error) => check(false, format!("the programs at {} cannot be listed: {error}", cgroup.display())),
    }
}

/// The names of the programs that run for processes in a cgroup when they connect: those of its ancestors too.
fn programs(cgroup: &Path) -> io::Result<BTreeSet<String>> {
    let cgroup = File::open(cgroup)?;
    let mut names = BTreeSet::new();
    for hook in bpf::HOOKS {
        for id in bpf::attached(&cgroup, hook)? {
            names.extend(bpf::name(id)?);
        }
    }
    Ok(names)
}

/// Whose programs these are, each with its programs.
fn others(names: &BTreeSet<String>) -> Vec<String> {
    let of = |(whose, beginnings): &(&str, &[&str])| {
        let known = |name: &&String| beginnings.iter().any(|beginning| name.starts_with(beginning));
        let theirs: Vec<&str> = names.iter().filter(known).map(String::as_str).collect();
        (!theirs.is_empty()).then(|| format!("{whose} ({})", theirs.join(", ")))
    };
    BALANCERS.iter().filter_map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_known_by_their_names() {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        assert_eq!(others(&names(&["connect4", "sd_devices"])), Vec::<String>::new());
        // The kernel keeps 15 bytes of a name.
        assert_eq!(others(&names(&["cil_sock4_conne", "connect4"])), ["Cilium's (cil_sock4_conne)"]);
        assert_eq!(
            others(&names(&["sock6_connect", "calico_connect_"])),
            ["Cilium's (sock6_connect)", "Calico's (calico_connect_)"]
        );
    }
}
