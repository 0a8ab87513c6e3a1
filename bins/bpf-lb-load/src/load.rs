//! Loads the programs, attaches them to a cgroup and pins them; or replaces those that are there.

use std::{
    borrow::Cow,
    fs::File,
    ops::RangeInclusive,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, anyhow, bail};
use aya::{
    Ebpf, EbpfLoader,
    programs::{CgroupAttachMode, Program, links::FdLink},
};
use bpf_lb_abi::{Config, LAYOUT, Participation};

use crate::{
    attach::{self, Served},
    layout,
    maps::{mapped, pinned_data},
    netns,
    pins::Pins,
    probe::{self, HOOKS, Hook},
    reserve,
    sys::{self, Mapped},
};

/// The maps that are pinned.
const MAPS: [&str; 18] = [
    "frontends4",
    "frontends6",
    "names",
    "slots4",
    "slots6",
    "backends",
    "owners4",
    "owners6",
    "peers4",
    "peers6",
    "affinity",
    "overflow",
    "namespaces",
    "node_ports",
    "nodes",
    "reserved",
    "config",
    "grace",
];

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/bpf-lb"));

/// How much the maps hold. Taken when they are made, and kept from then on.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Sizes {
    /// How many service addresses of each family
    #[arg(long, default_value_t = 32_768, value_parser = clap::value_parser!(u32).range(1..=1 << 24))]
    pub max_services: u32,
    /// How many backends, of all services together
    #[arg(long, default_value_t = 131_072, value_parser = clap::value_parser!(u32).range(1..=1 << 26))]
    pub max_backends: u32,
    /// How many translated sockets of each family are remembered in the fast way; rounded up to a power of two
    #[arg(long, default_value_t = 65_536, value_parser = clap::value_parser!(u32).range(1..=1 << 24))]
    pub max_sockets: u32,
    /// How many pairs of a pod and a service with session affinity are remembered
    #[arg(long, default_value_t = 61_440, value_parser = clap::value_parser!(u32).range(1..=1 << 24))]
    pub max_clients: u32,
}

/// What `load` is asked for.
#[derive(Clone, Debug)]
pub struct Request {
    /// Where to pin.
    pub pins: Pins,
    /// The directory of a cgroup v2; as before if nothing is said, and the root of the hierarchy at first.
    pub cgroup: Option<PathBuf>,
    /// Which network namespaces take part; as before if nothing is said, and all of them at first.
    pub participation: Option<Participation>,
    /// The node's own network namespace; the loader's if nothing is said.
    pub node_netns: Option<PathBuf>,
    /// On which ports processes in that namespace are kept off node ports; none by default.
    pub protect: Option<RangeInclusive<u16>>,
    /// For maps that are to be made.
    pub sizes: Sizes,
    /// The programs, as an ELF object, instead of those that were built into the loader.
    pub object: Option<PathBuf>,
}

/// What there is to say of what was loaded.
#[derive(Debug, Default)]
pub struct Loaded {
    /// The features that the kernel lacks.
    pub missing: Vec<String>,
    /// The ports that were reserved, as the sysctl has them.
    pub reserved: String,
}

/// Loads, attaches and pins. Run again, it replaces the programs and keeps what the maps hold.
pub fn load(request: &Request) -> Result<Loaded> {
    if let Some(missing) = option_env!("BPF_LB_MISSING")
        && request.object.is_none()
    {
        bail!("this bpf-lb-load was built without its kernel side ({missing}); install that and build again");
    }
    let pins = &request.pins;
    let cgroup = match (&request.cgroup, attach::served(pins)) {
        (None, Served::Cgroup(_)) => None,
        (Some(path), _) => Some(open_cgroup(path)?),
        (None, _) => Some(open_cgroup(&attach::root()?)?),
    };
    pins.create()?;
    let _lock = pins.lock()?;
    let fresh = !pins.is_loaded();
    if !fresh {
        layout::check(pins)?;
    }
    let result = load_and_attach(request, cgroup.as_ref(), fresh);
    if result.is_err() && fresh {
        // What went wrong first is what matters.
        let _also_failed = reserve::give_back(request.node_netns.as_deref(), &pins.maps());
        let _also_failed = pins.remove();
    }
    result
}

fn load_and_attach(request: &Request, cgroup: Option<&File>, fresh: bool) -> Result<Loaded> {
    let pins = &request.pins;
    // Nobody sees maps that are not whole.
    let folder = if fresh { pins.new_maps() } else { pins.maps() };
    let mut missing = Vec::new();
    let set_retval = probe::has_set_retval()?;
    if !set_retval {
        missing.push("bpf_set_retval (Linux 5.18): a Service without backends gives EPERM, not ECONNREFUSED".into());
    }
    let multipath = probe::has_multipath()?;
    if !multipath {
        missing.push(
            "bpf_skc_to_mptcp_sock (Linux 5.19, CAP_PERFMON): getpeername of a Multipath TCP socket shows the backend, which \
             counts as open for ever"
                .into(),
        );
    }
    if fresh {
        pins.begin()?;
    }
    let mut object = open_object(request, &folder, fresh, set_retval, multipath)?;
    configure(request, &folder, fresh)?;
    if fresh {
        pins.publish()?;
    }
    let reserved = reserve::reserve(request.node_netns.as_deref(), &pins.maps(), request.protect.as_ref())
        .context("net.ipv4.ip_local_reserved_ports in the node's network namespace")?;
    let wanted = |hook: &&Hook| request.protect.is_some() || !hook.protects;
    for hook in HOOKS.iter().filter(wanted) {
        if let Err(error) = install(&mut object, hook, cgroup, pins) {
            if hook.required {
                return Err(error);
            }
            missing.push(format!("{} (Linux {}): {}: {error:#}", hook.program, hook.since, hook.without));
        }
    }
    for obsolete in
        pins.links().iter().filter(|link| HOOKS.iter().filter(wanted).all(|hook| hook.program != link.as_str()))
    {
        std::fs::remove_file(pins.link(obsolete)).with_context(|| format!("unpin {obsolete}"))?;
    }
    Ok(Loaded { missing, reserved })
}

fn open_object(request: &Request, folder: &Path, fresh: bool, set_retval: bool, multipath: bool) -> Result<Ebpf> {
    let Sizes { max_services, max_backends, max_sockets, max_clients } = request.sizes;
    let sockets = if fresh { max_sockets.next_power_of_two() } else { capacity(folder, "peers4")? };
    let buckets = if fresh { max_services.next_power_of_two() } else { capacity(folder, "frontends4")? };
    // Half of the slots are for the run that takes the place of another; each run has one that is about the run.
    let slots = max_backends.saturating_add(max_services).saturating_mul(2);
    let sizes = [
        ("frontends4", buckets),
        ("frontends6", buckets),
        ("names", max_services),
        ("slots4", slots),
        ("slots6", slots),
        ("backends", max_backends),
        ("owners4", sockets),
        ("owners6", sockets),
        ("peers4", sockets),
        ("peers6", sockets),
        ("affinity", max_clients),
    ];
    let (peer_mask, frontend_mask) = (sockets - 1, buckets - 1);
    let (retval, multipath) = (u32::from(set_retval), u32::from(multipath));
    let globals = [
        ("PEER_MASK", &peer_mask),
        ("FRONTEND_MASK", &frontend_mask),
        ("SET_RETVAL", &retval),
        ("MULTIPATH", &multipath),
    ];
    let mut loader = loader(folder, &globals);
    let protected = request.protect.as_ref().map_or([0, 0], |ports| [*ports.start(), *ports.end()]);
    loader.override_global("PROTECTED", &protected, true);
    for (map, size) in sizes {
        loader.map_max_entries(map, size);
    }
    let object = match &request.object {
        Some(path) => Cow::Owned(std::fs::read(path).with_context(|| path.display().to_string())?),
        None => Cow::Borrowed(OBJECT),
    };
    loader.load(&object).context("make the maps; this takes CAP_BPF and CAP_NET_ADMIN, and Linux 5.12")
}

/// What makes the maps in `folder`, or takes those that are there, and gives the programs these values.
fn loader<'a>(folder: &Path, globals: &[(&'a str, &'a u32)]) -> EbpfLoader<'a> {
    let mut loader = EbpfLoader::new();
    for (name, value) in globals {
        loader.override_global(name, *value, true);
    }
    for map in MAPS {
        loader.map_pin_path(map, folder.join(map));
    }
    loader
}

/// Loads the programs of `trace` from the object, for the load balancer whose maps are in `folder`: with a ring buffer of
/// `ring` bytes, telling of addresses that are no Service's too if `others` is set, and using `bpf_get_retval` if the kernel
/// has it (`get_retval`).
///
/// # Errors
/// When the maps or the object cannot be opened.
pub fn open_tracer(folder: &Path, ring: u32, others: bool, get_retval: bool) -> Result<Ebpf> {
    let (peer_mask, frontend_mask) = (capacity(folder, "peers4")? - 1, capacity(folder, "frontends4")? - 1);
    let multipath = u32::from(probe::has_multipath()?);
    let (retval, others) = (u32::from(get_retval), u32::from(others));
    let globals = [
        ("PEER_MASK", &peer_mask),
        ("FRONTEND_MASK", &frontend_mask),
        ("MULTIPATH", &multipath),
        ("GET_RETVAL", &retval),
        ("TRACE_OTHERS", &others),
    ];
    let mut loader = loader(folder, &globals);
    loader.map_max_entries("trace_ring", ring);
    loader.load(OBJECT).context("open the maps; this takes CAP_BPF and CAP_NET_ADMIN")
}

fn capacity(folder: &Path, map: &str) -> Result<u32> {
    let info = pinned_data(folder, map)?.info().with_context(|| map.to_owned())?;
    Ok(info.max_entries())
}

fn configure(request: &Request, folder: &Path, fresh: bool) -> Result<()> {
    let config: Mapped<Config> = mapped(folder, "config")?;
    let config = config.get(0).context("the map config is empty")?;
    if fresh {
        config.layout.store(LAYOUT);
    }
    if let Some(participation) = request.participation {
        config.participation.store(participation as u32);
    }
    let node_netns = match &request.node_netns {
        Some(path) => netns::cookie(path).with_context(|| path.display().to_string()),
        None => netns::own_cookie().context("the loader's network namespace"),
    };
    config.node_netns.store(node_netns.context("SO_NETNS_COOKIE (Linux 5.14)")?);
    Ok(())
}

fn open_cgroup(path: &Path) -> Result<File> {
    File::open(path).with_context(|| format!("cgroup {}", path.display()))
}

/// Attaches a program: in the place of the one that is there, or to another cgroup, and then that one goes.
fn install(object: &mut Ebpf, hook: &Hook, cgroup: Option<&File>, pins: &Pins) -> Result<()> {
    let program = object.program_mut(hook.program).with_context(|| format!("no program {}", hook.program))?;
    let pin = pins.link(hook.program);
    let found = attach::cgroup_of(&pin);
    let elsewhere = match cgroup {
        Some(cgroup) if found != Some(attach::number(cgroup)?) => Some(cgroup),
        // One that was removed, or that is not known to a kernel before 5.8.
        None if !pin.exists() => return Err(anyhow!("{} is not attached anywhere; name the cgroup", hook.program)),
        _ => None,
    };
    // The error's text has the verifier's log.
    let what = || format!("load {}", hook.program);
    match program {
        Program::CgroupSockAddr(program) => {
            program.load().with_context(what)?;
            let Some(cgroup) = elsewhere else { return replace(&pin, program.fd()?.as_fd()) };
            let link = program.attach(cgroup, CgroupAttachMode::Single).with_context(|| attach(hook))?;
            pin_link(program.take_link(link)?.try_into()?, &pin)
        }
        Program::CgroupSock(program) => {
            program.load().with_context(what)?;
            let Some(cgroup) = elsewhere else { return replace(&pin, program.fd()?.as_fd()) };
            let link = program.attach(cgroup, CgroupAttachMode::Single).with_context(|| attach(hook))?;
            pin_link(program.take_link(link)?.try_into()?, &pin)
        }
        _ => Err(anyhow!("{} is of another kind than it should be", hook.program)),
    }
}

fn attach(hook: &Hook) -> String {
    format!("attach {} to the cgroup; is it one of cgroup v2?", hook.program)
}

fn replace(pin: &Path, program: std::os::fd::BorrowedFd<'_>) -> Result<()> {
    let link = sys::open_pinned(pin).with_context(|| pin.display().to_string())?;
    sys::replace_program(link.as_fd(), program).with_context(|| format!("replace the program of {}", pin.display()))
}

/// What the name of a link's pin ends with until it takes the place of another one. (No dots in this file system.)
const NEW: &str = "_new";

fn pin_link(link: FdLink, pin: &Path) -> Result<()> {
    // What was there goes with its pin; a program is attached to this cgroup at every moment.
    let mut new = pin.as_os_str().to_owned();
    new.push(NEW);
    let new = PathBuf::from(new);
    let _left_by_one_that_was_killed = std::fs::remove_file(&new);
    link.pin(&new).with_context(|| format!("pin {}", new.display()))?;
    std::fs::rename(&new, pin).with_context(|| format!("pin {}", pin.display()))
}
