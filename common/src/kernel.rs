//! Do: operations applied to the kernel, in the node's namespace and the pod's.

use std::{env, fs, io, iter, ops::Range, path::PathBuf};

use crate::{
    document::{ModeKind, PodDocument, Request},
    failure::{Code, Context, Failure},
    marks, names,
    netlink::{Link, Netlink, is_absent},
    netns::{NetnsError, NetnsFile},
    object::{LinkAddress, Netns, Object, Operation, Placed, QueueLength, Sysctl, Transit},
    plan::Found,
    transit,
};

/// The kernel as seen from the node, and from the pod if its namespace is there.
#[derive(Debug)]
pub struct Kernel {
    /// The node's rtnetlink.
    pub node: Netlink,
    /// The pod's namespace; `None` in a teardown after it has gone.
    pub pod: Option<Pod>,
}

/// A pod's network namespace and the rtnetlink in it.
#[derive(Debug)]
pub struct Pod {
    /// The namespace.
    pub netns: NetnsFile,
    /// Its rtnetlink.
    pub netlink: Netlink,
}

impl Kernel {
    /// Opens what a document needs beside the node's rtnetlink.
    ///
    /// # Errors
    /// When `CNI_NETNS` is not a pod's namespace, or not the one of ADD, except in a teardown, where the pod is then taken for gone.
    pub fn open(node: Netlink, document: &PodDocument) -> Result<Self, Failure> {
        let open = |path: &PathBuf| {
            let netns = NetnsFile::open(path)?;
            match document.is_of_another(netns.id()) {
                true => Err(NetnsError::Another(path.display().to_string())),
                false => Ok(netns),
            }
        };
        let Request { netns, command, .. } = &document.request;
        let pod = match (netns, command.tears_down()) {
            (None, _) => None,
            (Some(path), true) => open(path).ok().and_then(|netns| Pod::new(netns).ok()),
            (Some(path), false) => {
                let hint = "CNI_NETNS must be the path of a pod's network namespace";
                let netns = open(path).map_err(|error| {
                    let code = if error.is_there() { Code::Io } else { Code::InvalidNetns };
                    Failure::new(code, error).details(hint)
                })?;
                Some(Pod::new(netns).context(Code::Io, "cannot open a netlink socket in the pod")?)
            }
        };
        Ok(Self { node, pod })
    }

    /// The pod, or an error that says that there is none.
    ///
    /// # Errors
    /// When the request named no namespace.
    pub fn pod(&self) -> Result<&Pod, Failure> {
        self.pod.as_ref().ok_or_else(|| Failure::new(Code::InvalidEnvironment, "CNI_NETNS is not set"))
    }

    /// The node's end of a container's veth pair. Where none has its name, somebody may have renamed it: then it is the one whose
    /// alias names the container. In overlay mode there is none.
    ///
    /// # Errors
    /// What the kernel says.
    pub async fn host_veth(&self, document: &PodDocument) -> io::Result<Option<Link>> {
        let container_id = &document.request.container_id;
        let link = self.node.link(&names::host_veth(container_id)).await?;
        if link.is_some() || document.mode.as_ref().is_some_and(|mode| mode.kind == ModeKind::Overlay) {
            return Ok(link);
        }
        let is_its = |link: &Link| {
            let container = names::parse_alias(&link.alias).and_then(|(attachment, _)| attachment.split_once('/'));
            container.is_some_and(|(container, _)| container == container_id)
        };
        Ok(self.node.links().await?.into_iter().find(is_its))
    }

    /// Applies operations in order. When one fails, those before it are undone, last first.
    ///
    /// # Errors
    /// The operation that failed and the kernel's reason; and what could not be undone, if anything.
    pub async fn apply(&self, operations: &[Operation]) -> Result<(), Failure> {
        let mut done = 0;
        for run in operations.chunk_by(is_one_stroke) {
            let Err(error) = self.attempt(run).await else {
                done += run.len();
                continue;
            };
            let failure = refusal(&run[0], &error);
            let undo: Vec<_> = operations[..done].iter().rev().map(Operation::inverse).collect();
            return Err(self.apply_all(&undo).await.into_iter().fold(failure, |failure, later| failure.and(&later)));
        }
        Ok(())
    }

    /// Applies every operation, whatever becomes of the others. What belongs to something that is gone already is
    /// no failure.
    pub async fn apply_all(&self, operations: &[Operation]) -> Vec<Failure> {
        let failures = self.apply_each(operations).await.into_iter();
        failures
            .filter(|(_, error)| !is_absent(error))
            .map(|(run, error)| refusal(&operations[run.start], &error))
            .collect()
    }

    /// Applies every operation, whatever becomes of the others. Returns those that failed.
    pub async fn apply_each(&self, operations: &[Operation]) -> Vec<(Range<usize>, io::Error)> {
        let (mut failures, mut done) = (vec![], 0);
        for run in operations.chunk_by(is_one_stroke) {
            let range = done..done + run.len();
            done = range.end;
            if let Err(error) = self.attempt(run).await {
                failures.push((range, error));
            }
        }
        failures
    }

    /// Applies operations that are one stroke.
    async fn attempt(&self, run: &[Operation]) -> io::Result<()> {
        log::debug!("{run:?}");
        match &run[0] {
            Operation::Add(Placed { netns, object: Object::Transit(_) }) => {
                self.within(*netns, || transit::create(run.iter().filter_map(transit)))
            }
            Operation::Delete(Placed { netns, object: Object::Transit(_) }) => {
                absent_is_fine(self.within(*netns, || transit::delete(run.iter().filter_map(transit))))
            }
            Operation::Add(placed) => self.add(placed).await,
            Operation::Delete(placed) => self.delete(placed).await,
            Operation::Replace { from, to } => self.replace(from, to).await,
        }
    }

    /// A route comes beside the old one, which goes then, or in its place: no packet is without. Only where others' routes of its
    /// destination keep the kernel from both, the old one goes first.
    async fn replace(&self, from: &Placed, to: &Placed) -> io::Result<()> {
        if let (Object::Veth(veth), true) = (&to.object, from.object.is_same_pair(&to.object)) {
            return self.node.set_veth(veth, &self.sandbox()?.netlink).await;
        }
        if let (Object::Route(old), Object::Route(route)) = (&from.object, &to.object) {
            let netlink = self.netlink(to.netns)?;
            match netlink.append_route(route).await {
                // IPv6 has no two by one next hop (`rt6_duplicate_nexthop`). Of those that a new one can take the place of, the kernel
                // chooses the first, whosever it is (`fib6_add_rt2node`).
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    if netlink.routes_like(route).await? == [old.clone()] {
                        return netlink.replace_route(route).await;
                    }
                }
                done => {
                    done?;
                    return self.delete(from).await;
                }
            }
        }
        if !to.object.is_value() {
            self.delete(from).await?;
        }
        self.add(to).await
    }

    fn sandbox(&self) -> io::Result<&Pod> {
        self.pod.as_ref().ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the pod's network namespace is gone"))
    }

    fn netlink(&self, netns: Netns) -> io::Result<&Netlink> {
        match netns {
            Netns::Node => Ok(&self.node),
            Netns::Pod => self.sandbox().map(|pod| &pod.netlink),
        }
    }

    /// Runs `work` in a namespace.
    ///
    /// # Errors
    /// Its own, and that the namespace is gone.
    pub fn within<T>(&self, netns: Netns, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        match netns {
            Netns::Node => work(),
            Netns::Pod => self.sandbox()?.netns.run(work)?,
        }
    }

    async fn add(&self, placed: &Placed) -> io::Result<()> {
        let netlink = self.netlink(placed.netns)?;
        match &placed.object {
            Object::Veth(veth) => {
                let pod = self.sandbox()?;
                let made = netlink.add_veth(veth, &pod.netns, &pod.netlink).await;
                if made.as_ref().is_err_and(|error| error.kind() != io::ErrorKind::AlreadyExists) {
                    absent_is_fine(netlink.delete_link(&veth.name).await)?;
                }
                made
            }
            Object::Address(address) => netlink.add_address(address).await,
            Object::Neighbour(neighbour) => netlink.add_neighbour(neighbour).await,
            Object::Route(route) => netlink.add_route(route).await,
            Object::Rule(rule) => netlink.add_rule(rule).await,
            Object::Marks(marks) => self.within(placed.netns, || marks::create(marks)),
            Object::Transit(rule) => self.within(placed.netns, || transit::create(iter::once(rule))),
            Object::Sysctl(sysctl) => self.within(placed.netns, || write_sysctl(sysctl)),
            Object::QueueLength(QueueLength { dev, packets }) => netlink.set_queue_length(dev, *packets).await,
            Object::LinkAddress(LinkAddress { dev, mac }) => netlink.set_mac(dev, *mac).await,
        }
    }

    async fn delete(&self, placed: &Placed) -> io::Result<()> {
        let netlink = self.netlink(placed.netns)?;
        absent_is_fine(match &placed.object {
            Object::Veth(veth) => netlink.delete_link(&veth.name).await,
            Object::Address(address) => netlink.delete_address(address).await,
            Object::Neighbour(neighbour) => netlink.delete_neighbour(neighbour).await,
            Object::Route(route) => netlink.delete_route(route).await,
            Object::Rule(rule) => netlink.delete_rule(rule).await,
            Object::Marks(_) => self.within(placed.netns, marks::delete),
            Object::Transit(rule) => self.within(placed.netns, || transit::delete(iter::once(rule))),
            Object::Sysctl(_) | Object::QueueLength(_) | Object::LinkAddress(_) => Ok(()),
        })
    }

    /// The sysctls among `wanted` as they are now, each in its namespace; one that the kernel does not have is left out.
    ///
    /// # Errors
    /// When a namespace of one is gone.
    pub fn sysctls(&self, wanted: &[Placed]) -> io::Result<Vec<Found>> {
        let of = |netns: Netns| {
            let paths =
                wanted.iter().filter(|placed| placed.netns == netns).filter_map(|placed| match &placed.object {
                    Object::Sysctl(Sysctl { path, .. }) => Some(path),
                    _ => None,
                });
            let now = |path: &String| {
                let sysctl = Sysctl { path: path.clone(), value: read_sysctl(path).ok()? };
                Some(Found::foreign(Placed { netns, object: Object::Sysctl(sysctl) }))
            };
            match paths.collect::<Vec<_>>() {
                paths if paths.is_empty() => Ok(vec![]),
                paths => self.within(netns, || Ok(paths.into_iter().filter_map(now).collect())),
            }
        };
        Ok([of(Netns::Node)?, of(Netns::Pod)?].concat())
    }
}

/// Where sysctls are: `UNDERPASS_SYSCTL`, else `/proc/sys`, which is read-only in a container. Whatever the mount, `net/`
/// is the calling thread's namespace's (`net_ctl_root`).
pub fn sysctl_file(path: &str) -> PathBuf {
    env::var_os("UNDERPASS_SYSCTL").map_or_else(|| PathBuf::from("/proc/sys"), PathBuf::from).join(path)
}

/// A sysctl of the calling thread's network namespace, without the newline.
fn read_sysctl(path: &str) -> io::Result<String> {
    Ok(fs::read_to_string(sysctl_file(path))?.trim_end().to_owned())
}

/// Some of them take the lock of all links even where nothing changes (`rtnl_lock`).
fn write_sysctl(Sysctl { path, value }: &Sysctl) -> io::Result<()> {
    if read_sysctl(path)? == *value { Ok(()) } else { fs::write(sysctl_file(path), value) }
}

impl Pod {
    fn new(netns: NetnsFile) -> io::Result<Self> {
        Ok(Self { netlink: Netlink::open_in(&netns)?, netns })
    }
}

/// Whether two operations, one after the other, are one transaction: rules of the node's nftables table that come, or go.
fn is_one_stroke(a: &Operation, b: &Operation) -> bool {
    matches!((a, b), (Operation::Add(_), Operation::Add(_)) | (Operation::Delete(_), Operation::Delete(_)))
        && transit(a).is_some()
        && transit(b).is_some()
}

fn transit(operation: &Operation) -> Option<&Transit> {
    match operation {
        Operation::Add(Placed { object: Object::Transit(rule), .. })
        | Operation::Delete(Placed { object: Object::Transit(rule), .. }) => Some(rule),
        _ => None,
    }
}

/// That the kernel refuses an operation.
pub fn refusal(operation: &Operation, error: &io::Error) -> Failure {
    let (verb, placed) = match operation {
        Operation::Add(placed) => ("add", placed),
        Operation::Delete(placed) => ("delete", placed),
        Operation::Replace { to, .. } => ("replace", to),
    };
    Failure::new(Code::Kernel, format!("cannot {verb} {placed}")).details(error)
}

fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if is_absent(&error) => Ok(()),
        result => result,
    }
}
