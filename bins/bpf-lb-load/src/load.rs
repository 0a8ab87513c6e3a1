//! Loads the programs, attaches them to a cgroup and pins them; or replaces those that are there.

use std::{
    borrow::Cow,
    fs::File,
    hash::{BuildHasher as _, Hasher as _, RandomState},
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
use common::bpf;

use crate::{
    attach::{self, Served},
    btf::Sockets,
    buckets::FIRST_BUCKETS,
    grow::Grown,
    layout,
    maps::{capacity, hash_key, mapped},
    netns,
    pins::Pins,
    probe::{self, HOOKS, Hook, LINUX},
    reserve,
    sys::Mapped,
};

/// The maps that are pinned.
pub const MAPS: [&str; 18] = [
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

/// The programs that were built in, as an ELF object; empty where they were not built.
pub(crate) static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/bpf-lb"));

/// How much the maps hold. Without a number, as before; those for services and backends grow and do not shrink, the others
/// stay as they were made.
#[derive(Clone, Copy, Debug, Default, clap::Args)]
pub struct Sizes {
    /// How many service addresses of each family; as before by default, and 32768 at first
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1 << 24))]
    pub max_services: Option<u32>,
    /// How many backends, of all services together; as before by default, and 131072 at first
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1 << 26))]
    pub max_backends: Option<u32>,
    /// How many translated sockets of each family are remembered in the fast way, rounded up to a power of two; kept from the
    /// first load on, and 65536 by default
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1 << 24))]
    pub max_sockets: Option<u32>,
    /// How many pairs of a pod and a service with session affinity are remembered; kept from the first load on, and 61440 by
    /// default
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1 << 24))]
    pub max_clients: Option<u32>,
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
    /// Whether there is another path to Services, to which UDP is left where there is no backend.
    pub host_path: bool,
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
    /// Sizes that are not as they were asked for.
    pub kept: Vec<String>,
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
    let cgroup = cgroup(request)?;
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
    } else if result.is_err() {
        let _also_failed = pins.forget_new();
    }
    result
}

fn load_and_attach(request: &Request, cgroup: Option<&File>, fresh: bool) -> Result<Loaded> {
    let pins = &request.pins;
    let mut missing = Vec::new();
    let abilities = Abilities::of_kernel(&mut missing)?;
    if fresh {
        pins.begin()?;
    } else {
        pins.forget_new()?;
        if let Some(left) = Grown::left(pins.clone()) {
            let (entries, _) = sizes(pins, Sizes::default(), false)?;
            let mut object = open_object(request, &pins.maps(), &entries, &left, hash_key(&pins.maps())?, &abilities)?;
            let loaded = load_programs(request, &mut object, &mut Vec::new())?;
            take_over(request, object, &loaded, cgroup, &left, &mut Vec::new())?;
        }
    }
    let (entries, kept) = sizes(pins, request.sizes, fresh)?;
    let grown = if fresh { Grown::none(pins.clone()) } else { Grown::begin(pins.clone(), &entries)? };
    // Nobody sees maps that are not whole.
    let folder = if fresh { pins.new_maps() } else { pins.maps() };
    let key = if fresh { random() } else { hash_key(&folder)? };
    let mut object = open_object(request, &folder, &entries, &grown, key, &abilities)?;
    grown.fill()?;
    // Before anything changes for those that are attached.
    let loaded = load_programs(request, &mut object, &mut missing)?;
    configure(request, &folder, fresh.then_some(key))?;
    if fresh {
        pins.publish()?;
    }
    let reserved = reserve::reserve(request.node_netns.as_deref(), &pins.maps(), request.protect.as_ref())
        .context("net.ipv4.ip_local_reserved_ports in the node's network namespace")?;
    take_over(request, object, &loaded, cgroup, &grown, &mut missing)?;
    Ok(Loaded { missing, kept, reserved })
}

fn wanted(request: &Request) -> impl Iterator<Item = &'static Hook> {
    let protects = request.protect.is_some();
    HOOKS.iter().filter(move |hook| protects || !hook.protects)
}

/// Gives the object's programs to the kernel. Of those that need not work it returns those that do, and notes the others as missing.
fn load_programs(request: &Request, object: &mut Ebpf, missing: &mut Vec<String>) -> Result<Vec<&'static Hook>> {
    let mut loaded = Vec::new();
    for hook in wanted(request) {
        if worked(hook, load_program(object, hook), missing)? {
            loaded.push(hook);
        }
    }
    Ok(loaded)
}

/// Puts the programs that were loaded in the place of those that are attached, and then the maps that have grown in that of the
/// old ones. What need not work, and does not, is noted as missing.
fn take_over(
    request: &Request,
    mut object: Ebpf,
    loaded: &[&Hook],
    cgroup: Option<&File>,
    grown: &Grown,
    missing: &mut Vec<String>,
) -> Result<()> {
    let pins = &request.pins;
    grown.begin_use()?;
    for hook in loaded {
        worked(hook, install(&mut object, hook, cgroup, pins), missing)?;
    }
    grown.publish()?;
    for obsolete in pins.links().iter().filter(|link| wanted(request).all(|hook| hook.program != link.as_str())) {
        std::fs::remove_file(pins.link(obsolete)).with_context(|| format!("unpin {obsolete}"))?;
    }
    Ok(())
}

/// Whether it was done; what need not be is noted as missing.
fn worked(hook: &Hook, done: Result<()>, missing: &mut Vec<String>) -> Result<bool> {
    match done {
        Err(error) if hook.required => Err(error),
        Err(error) => {
            missing.push(format!("{}: {}: {error:#}", hook.program, hook.without));
            Ok(false)
        }
        Ok(()) => Ok(true),
    }
}

/// What the kernel lets the programs do.
struct Abilities {
    set_retval: bool,
    kernel_sockets: bool,
    sockets: Option<Sockets>,
}

impl Abilities {
    /// What it does not is noted as missing.
    fn of_kernel(missing: &mut Vec<String>) -> Result<Self> {
        let set_retval = probe::has_set_retval()?;
        if !set_retval {
            missing
                .push("bpf_set_retval (Linux 5.18): a Service without backends gives EPERM, not ECONNREFUSED".into());
        }
        let kernel_sockets = probe::has_kernel_sockets()?;
        if !kernel_sockets {
            missing.push(
                "bpf_skc_to_mptcp_sock (Linux 5.19, CAP_PERFMON): getpeername of a Multipath TCP socket shows the backend, \
                 which counts as open for ever; a socket for IPv6 alone gets ECONNREFUSED for an IPv4-mapped Service without \
                 backends"
                    .into(),
            );
        }
        let sockets = Sockets::find();
        if let Err(error) = &sockets {
            missing.push(format!("bpf_rdonly_cast (Linux 6.2, CAP_PERFMON): the programs take longer: {error:#}"));
        }
        Ok(Self { set_retval, kernel_sockets, sockets: sockets.ok() })
    }
}

/// How many entries maps have, by name.
type Entries = Vec<(&'static str, u32)>;

/// How many entries each map of a size of its own is to have, and which sizes that were asked for are not to be had.
fn sizes(pins: &Pins, asked: Sizes, fresh: bool) -> Result<(Entries, Vec<String>)> {
    let found = |map| match pins.next_maps() {
        _ if fresh => Ok(0),
        next if next.join(map).exists() => capacity(&next, map),
        _ => capacity(&pins.maps(), map),
    };
    let mut kept = Vec::new();
    let mut keep = |option: &str, asked: Option<u32>, has: u32| {
        if let Some(asked) = asked.filter(|asked| *asked != has) {
            kept.push(format!("{option} is {has}, and {asked} only after unload"));
        }
        has
    };
    let Sizes { max_services, max_backends, max_sockets, max_clients } = asked;
    let mut at_least = |option, asked: Option<u32>, has, first| match (fresh, asked) {
        (true, asked) => asked.unwrap_or(first),
        (false, Some(asked)) if asked > has => asked,
        (false, asked) => keep(option, asked, has),
    };
    let services = at_least("--max-services", max_services, found("names")?, 32_768);
    let backends = at_least("--max-backends", max_backends, found("backends")?, 131_072);
    let sockets = max_sockets.map(u32::next_power_of_two);
    let (sockets, clients) = if fresh {
        (sockets.unwrap_or(65_536), max_clients.unwrap_or(61_440))
    } else {
        (keep("--max-sockets", sockets, found("peers4")?), keep("--max-clients", max_clients, found("affinity")?))
    };
    let buckets = services.next_power_of_two().max(found("frontends4")?).max(found("frontends6")?);
    // Half of the slots are for the run that takes the place of another; each run has one that is about the run.
    let slots = backends.saturating_add(services).saturating_mul(2);
    let entries = [
        ("names", services),
        ("backends", backends),
        ("slots4", slots),
        ("slots6", slots),
        ("frontends4", buckets),
        ("frontends6", buckets),
        ("owners4", sockets),
        ("owners6", sockets),
        ("peers4", sockets),
        ("peers6", sockets),
        ("affinity", clients),
    ];
    Ok((entries.into(), kept))
}

/// A random number: the standard library's own keys for a hash map are.
fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

fn open_object(
    request: &Request,
    folder: &Path,
    entries: &[(&'static str, u32)],
    grown: &Grown,
    key: u64,
    abilities: &Abilities,
) -> Result<Ebpf> {
    let of = |name| entries.iter().find(|(map, _)| *map == name).map_or(0, |(_, entries)| *entries);
    let peer_mask = of("peers4") - 1;
    let (retval, kernel_sockets) = (u32::from(abilities.set_retval), u32::from(abilities.kernel_sockets));
    let (seed, host_path) = (random() as u32, u32::from(request.host_path));
    let globals = [
        ("PEER_MASK", &peer_mask),
        ("SET_RETVAL", &retval),
        ("KERNEL_SOCKETS", &kernel_sockets),
        ("SEED", &seed),
        ("HOST_PATH", &host_path),
    ];
    let mut loader = loader(folder, &globals, &key);
    let protected = request.protect.as_ref().map_or([0, 0], |ports| [*ports.start(), *ports.end()]);
    loader.override_global("PROTECTED", &protected, true);
    for (map, entries) in entries {
        loader.map_max_entries(map, *entries);
    }
    for (map, path) in grown.paths() {
        loader.map_pin_path(map, path);
    }
    let mut object = match &request.object {
        Some(path) => Cow::Owned(std::fs::read(path).with_context(|| path.display().to_string())?),
        None => Cow::Borrowed(OBJECT),
    };
    if let Some(sockets) = &abilities.sockets {
        sockets.put(object.to_mut());
        loader.override_global("SOCK_TYPES", &sockets.types, true);
    }
    loader.load(&object).with_context(|| format!("make the maps; this takes CAP_BPF and CAP_NET_ADMIN, and {LINUX}"))
}

/// What makes the maps in `folder`, or takes those that are there, and gives the programs these values.
fn loader<'a>(folder: &Path, globals: &[(&'a str, &'a u32)], hash_key: &'a u64) -> EbpfLoader<'a> {
    let mut loader = EbpfLoader::new();
    loader.override_global("FRONTEND_KEY", hash_key, true);
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
    let peer_mask = capacity(folder, "peers4")? - 1;
    let kernel_sockets = u32::from(probe::has_kernel_sockets()?);
    let (retval, others) = (u32::from(get_retval), u32::from(others));
    let globals = [
        ("PEER_MASK", &peer_mask),
        ("KERNEL_SOCKETS", &kernel_sockets),
        ("GET_RETVAL", &retval),
        ("TRACE_OTHERS", &others),
    ];
    let key = hash_key(folder)?;
    let mut loader = loader(folder, &globals, &key);
    loader.map_max_entries("trace_ring", ring);
    loader.load(OBJECT).context("open the maps; this takes CAP_BPF and CAP_NET_ADMIN")
}

fn configure(request: &Request, folder: &Path, fresh: Option<u64>) -> Result<()> {
    let config: Mapped<Config> = mapped(folder, "config")?;
    let config = config.get(0).context("the map config is empty")?;
    let node_netns = match &request.node_netns {
        Some(path) => netns::cookie(path).with_context(|| path.display().to_string()),
        None => netns::own_cookie().context("the loader's network namespace"),
    };
    config.node_netns.store(node_netns.context("SO_NETNS_COOKIE (Linux 5.14)")?);
    if let Some(key) = fresh {
        config.hash_key.store(key);
        let mask = capacity(folder, "frontends4")?.min(FIRST_BUCKETS) - 1;
        config.frontend_masks.iter().for_each(|place| place.store(mask));
        config.layout.store(LAYOUT);
    }
    if let Some(participation) = request.participation {
        config.participation.store(participation as u32);
    }
    Ok(())
}

/// The cgroup that is to be served: as before if the request names none. Nothing if it is, and is not mounted here.
fn cgroup(request: &Request) -> Result<Option<File>> {
    let path = match (&request.cgroup, attach::served(&request.pins)) {
        (Some(path), _) => Some(path.clone()),
        (None, Served::Cgroup(id)) => attach::path_of(id),
        (None, Served::InPart(id)) => Some(attach::path_of(id).with_context(|| {
            format!("the cgroup with number {id}, to which some programs are attached, is not mounted here; name one with --cgroup")
        })?),
        (None, Served::Nobody | Served::Removed) => Some(attach::root()?),
    };
    path.map(|path| attach::open(&path)).transpose()
}

fn load_program(object: &mut Ebpf, hook: &Hook) -> Result<()> {
    let program = object.program_mut(hook.program).with_context(|| format!("no program {}", hook.program))?;
    match program {
        Program::CgroupSockAddr(program) => program.load(),
        Program::CgroupSock(program) => program.load(),
        _ => bail!("{} is of another kind than it should be", hook.program),
    }
    // The error's text has the verifier's log.
    .with_context(|| {
        format!(
            "load {}; this takes {LINUX}, and CAP_PERFMON where the verifier asks for it, as in Linux 6.1",
            hook.program
        )
    })
}

/// Attaches a program: in the place of the one that is there, or to another cgroup, and then that one goes.
fn install(object: &mut Ebpf, hook: &Hook, cgroup: Option<&File>, pins: &Pins) -> Result<()> {
    let program = object.program_mut(hook.program).with_context(|| format!("no program {}", hook.program))?;
    let pin = pins.link(hook.program);
    let found = attach::cgroup_of(&pin);
    let elsewhere = match cgroup {
        Some(cgroup) if found != Some(attach::number(cgroup)?) => Some(cgroup),
        None if !pin.exists() => return Err(anyhow!("{} is not attached anywhere; name the cgroup", hook.program)),
        _ => None,
    };
    match program {
        Program::CgroupSockAddr(program) => {
            let Some(cgroup) = elsewhere else { return replace(&pin, program.fd()?.as_fd()) };
            let link = program.attach(cgroup, CgroupAttachMode::Single).with_context(|| attach(hook))?;
            pin_link(program.take_link(link)?.try_into()?, &pin)
        }
        Program::CgroupSock(program) => {
            let Some(cgroup) = elsewhere else { return replace(&pin, program.fd()?.as_fd()) };
            let link = program.attach(cgroup, CgroupAttachMode::Single).with_context(|| attach(hook))?;
            pin_link(program.take_link(link)?.try_into()?, &pin)
        }
        _ => Err(anyhow!("{} is of another kind than it should be", hook.program)),
    }
}

fn attach(hook: &Hook) -> String {
    format!("attach {} to the cgroup", hook.program)
}

fn replace(pin: &Path, program: std::os::fd::BorrowedFd<'_>) -> Result<()> {
    let link = bpf::open_pinned(pin).with_context(|| pin.display().to_string())?;
    bpf::replace_program(link.as_fd(), program).with_context(|| format!("replace the program of {}", pin.display()))
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
