//! Who translates Services at connect(), by eBPF programs on the same cgroup.

use std::{collections::BTreeSet, fs::File, io};

use crate::bpf;

/// What to do where two translate.
pub const REMEDY: &str = "let one of the two translate: without kube-proxy theirs, which then serves other pods too (install with \
                          paths=host, or set socketPath false); beside kube-proxy ours, which ends sockets when a backend goes \
                          (Cilium: socketLB.enabled=false and kubeProxyReplacement=false; Calico: BPFConnectTimeLoadBalancing \
                          Disabled). Until then whoever is attached first translates, and the other finds no Service in what it \
                          is given";

/// Who is known by which beginnings of programs' names.
const BALANCERS: [(&str, &[&str]); 2] = [
    ("Cilium's", &["cil_sock4_", "cil_sock6_", "sock4_", "sock6_"]),
    ("Calico's", &["calico_connect", "calico_sendmsg"]),
];

/// What the socket path's own program at the first hook is called.
const OURS: &str = "connect4";

/// Who translates for the processes in a cgroup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Balancers {
    /// Whether the socket path does.
    pub ours: bool,
    /// Whoever else does, each with its programs.
    pub others: Vec<String>,
}

/// Looks for those whose programs run when the processes in a cgroup connect: those at its ancestors too. Takes CAP_NET_ADMIN
/// and CAP_SYS_ADMIN.
///
/// # Errors
/// What the kernel says.
pub fn find(cgroup: &File) -> io::Result<Balancers> {
    let mut programs = BTreeSet::new();
    for hook in bpf::HOOKS {
        programs.extend(bpf::attached(cgroup, hook)?);
    }
    let names = programs.into_iter().filter_map(|id| bpf::name(id).transpose()).collect::<io::Result<_>>()?;
    Ok(known(&names))
}

/// Whose programs these are.
fn known(names: &BTreeSet<String>) -> Balancers {
    let of = |(whose, beginnings): &(&str, &[&str])| {
        let known = |name: &&String| beginnings.iter().any(|beginning| name.starts_with(beginning));
        let theirs: Vec<&str> = names.iter().filter(known).map(String::as_str).collect();
        (!theirs.is_empty()).then(|| format!("{whose} ({})", theirs.join(", ")))
    };
    Balancers { ours: names.contains(OURS), others: BALANCERS.iter().filter_map(of).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_known_by_their_names() {
        let known = |names: &[&str]| {
            let Balancers { ours, others } = known(&names.iter().map(|name| (*name).to_owned()).collect());
            (ours, others.join(" and "))
        };
        assert_eq!(known(&["connect4", "sd_devices"]), (true, String::new()));
        // The kernel keeps 15 bytes of a name.
        assert_eq!(known(&["cil_sock4_conne", "connect4"]), (true, "Cilium's (cil_sock4_conne)".to_owned()));
        assert_eq!(
            known(&["sock6_connect", "calico_connect_"]),
            (false, "Cilium's (sock6_connect) and Calico's (calico_connect_)".to_owned())
        );
    }
}
