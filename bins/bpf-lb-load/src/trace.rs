//! Each translation as it happens.
//!
//! The programs that tell of it are attached to the cgroup only while somebody reads, after those that translate: nobody pays
//! for them otherwise. Their links are this process' own, so nothing is left of them however it ends.

use std::{
    fmt,
    fs::File,
    io::{self, IsTerminal as _},
    net::{IpAddr, SocketAddr},
    os::fd::AsFd as _,
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, bail};
use aya::{
    Ebpf,
    maps::{Array, MapData, RingBuf},
    programs::{CgroupAttachMode, CgroupSockAddr},
};
use bpf_lb_abi::{Call, NO_SERVICE, Name, Traced, Verdict};
use common::table::one_line;
use nix::{
    poll::{PollFd, PollFlags, poll},
    time::{ClockId, clock_gettime},
};
use schemars::JsonSchema;
use serde::Serialize;
use service_table::{Protocol, rfc3339};

use crate::{
    attach::{self, Served},
    family::{canonical, protocol},
    layout, load,
    maps::{mapped, pinned_data},
    name,
    pins::Pins,
    pods::{NetnsName, Pods},
    print, probe,
    spec::Frontend,
    sys::{self, Mapped},
};

/// In the order in which they are attached.
const PROGRAMS: [&str; 4] = ["trace_connect4", "trace_connect6", "trace_sendmsg4", "trace_sendmsg6"];
/// So long a translation waits for others with which it is read, in ms.
const BATCH_MS: u16 = 100;
/// Whether the load balancer is still there is looked at so often.
const LOOK: Duration = Duration::from_secs(1);
/// What the node's own network namespace is called.
const NODE: &str = "node";

/// What `trace` is asked for. Of several values of one filter one has to fit, and of several filters all.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only of this pod: NAMESPACE/NAME, the name alone, its network namespace's name in /run/netns, or its cookie; "node" for the
    /// node's own
    #[arg(long)]
    pod: Vec<String>,
    /// Only to this Service: NAMESPACE/NAME, or NAMESPACE/NAME:PORT NAME
    #[arg(long)]
    service: Vec<String>,
    /// Only to or from this address, asked for or chosen: an address, or an address and port; also if it is no Service's
    #[arg(long, value_parser = wanted)]
    address: Vec<Wanted>,
    /// As JSON lines even on a terminal
    #[arg(long)]
    json: bool,
    /// How much is kept until it is read, in KiB; rounded up to a power of two
    #[arg(long, value_name = "KIB", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(4..=65_536))]
    buffer: u32,
}

/// An address, with or without a port.
#[derive(Clone, Copy, Debug)]
struct Wanted(IpAddr, Option<u16>);

fn wanted(text: &str) -> Result<Wanted, String> {
    let whole = text.parse::<SocketAddr>().map(|address| Wanted(address.ip(), Some(address.port())));
    whole
        .or_else(|_| text.parse().map(|address| Wanted(address, None)))
        .map_err(|_| "no address, and no address and port".into())
}

impl Wanted {
    fn fits(self, address: SocketAddr) -> bool {
        self.0 == address.ip() && self.1.is_none_or(|port| port == address.port())
    }
}

const fn text(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Translated => "translated",
        Verdict::NoBackends => "refused: the Service has no backends",
        Verdict::NoSuchPort => "refused: no Service has this port there",
        Verdict::NoRoom => "not translated: this socket asks more Services than can be remembered",
        Verdict::TakesNoPart => "not translated: its network namespace takes no part",
        Verdict::NoService => "not translated: no Service has this address and port",
        Verdict::Ipv6Only => "not translated: the socket is for IPv6 alone, and the kernel refuses it",
        Verdict::HostPath => "not translated: there is no backend, and UDP takes the host path",
        Verdict::Expired => "not translated: nobody follows, and the table has expired",
    }
}

/// A call of a process.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Translation {
    /// When, to the microsecond.
    time: String,
    /// `namespace/name`, if the pod is one that the CNI plugin made a way for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pod: Option<String>,
    /// The network namespace's name in /run/netns, or "node" for the node's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    netns: Option<String>,
    /// The network namespace's cookie.
    netns_cookie: u64,
    /// The process, in the host's PID namespace.
    pid: u32,
    /// What the thread is called.
    process: String,
    /// The number of the process' cgroup.
    cgroup: u64,
    /// `connect` or `sendmsg`.
    call: &'static str,
    /// The socket's family, `IPv4` or `IPv6`.
    family: &'static str,
    /// Of the socket.
    protocol: Protocol,
    /// What the process asked for.
    frontend: SocketAddr,
    /// `namespace/name:port name` of the Service that answers there.
    #[serde(skip_serializing_if = "Option::is_none")]
    service: Option<String>,
    /// What it got.
    #[serde(skip_serializing_if = "Option::is_none")]
    backend: Option<SocketAddr>,
    /// What became of it.
    outcome: Verdict,
    /// The number of the error with which the call fails at this point; some other program's, if it was translated.
    #[serde(skip_serializing_if = "Option::is_none")]
    errno: Option<u32>,
}

/// A line of what `trace` prints.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum Line {
    /// A call.
    Translation(Box<Translation>),
    /// Calls came faster than they were read.
    Lost {
        /// So many are not told of.
        lost: u64,
    },
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let translation = match self {
            Self::Lost { lost } => {
                return write!(f, "{lost} calls are not shown: they came faster than they were read");
            }
            Self::Translation(translation) => translation,
        };
        let Translation { time, pod, netns, netns_cookie, process, pid, .. } = translation.as_ref();
        let frontend = Frontend::new(translation.frontend, translation.protocol);
        let clock = time.split_once('T').map_or(time.as_str(), |(_, clock)| clock.trim_end_matches('Z'));
        let cookie = || format!("netns {netns_cookie}");
        let place = pod.clone().or_else(|| netns.clone()).unwrap_or_else(cookie);
        // Whoever it is may call itself anything.
        write!(f, "{clock} {place} {}[{pid}] {} {frontend}", one_line(process), translation.call)?;
        if let Some(service) = &translation.service {
            write!(f, " ({service})")?;
        }
        match translation.backend {
            Some(backend) => write!(f, " -> {backend}")?,
            None => write!(f, " {}", text(translation.outcome))?,
        }
        match translation.errno {
            Some(errno) => write!(f, ": {}", io::Error::from_raw_os_error(errno.cast_signed())),
            None => Ok(()),
        }
    }
}

impl Args {
    fn fits(&self, translation: &Translation) -> bool {
        let any =
            |wanted: &[String], fits: &dyn Fn(&str) -> bool| wanted.is_empty() || wanted.iter().any(|text| fits(text));
        let Translation { pod, netns, netns_cookie, service, frontend, backend, .. } = translation;
        let is_pod = |text: &str| {
            let named = pod.as_deref().is_some_and(|pod| pod == text || pod.split('/').nth(1) == Some(text));
            named || netns.as_deref() == Some(text) || netns_cookie.to_string() == text
        };
        let is_service = |text: &str| {
            service.as_deref().is_some_and(|service| service == text || service.split(':').next() == Some(text))
        };
        let is_there = |wanted: &Wanted| wanted.fits(*frontend) || backend.is_some_and(|backend| wanted.fits(backend));
        any(&self.pod, &is_pod)
            && any(&self.service, &is_service)
            && (self.address.is_empty() || self.address.iter().any(is_there))
    }
}

/// What turns the numbers of a record into names.
struct Names {
    services: Mapped<Name>,
    pods: Pods,
    node: Option<u64>,
    /// From `CLOCK_MONOTONIC` to the time of day.
    since_1970: Duration,
}

impl Names {
    fn translation(&mut self, traced: &Traced) -> Translation {
        let outcome = Verdict::of(traced.verdict);
        let record = (traced.service != NO_SERVICE).then(|| self.services.copy(traced.service)).flatten();
        let NetnsName { pod, netns } = self.pods.name(traced.netns);
        let comm: Vec<u8> = traced.comm.iter().copied().take_while(|byte| *byte != 0).collect();
        Translation {
            time: time(self.since_1970 + Duration::from_nanos(traced.time_ns)),
            pod,
            netns: if self.node == Some(traced.netns) { Some(NODE.into()) } else { netns },
            netns_cookie: traced.netns,
            pid: traced.pid,
            process: String::from_utf8_lossy(&comm).into_owned(),
            cgroup: traced.cgroup,
            call: if traced.call == Call::Connect as u32 { "connect" } else { "sendmsg" },
            family: if traced.is_ipv6_socket == 0 { "IPv4" } else { "IPv6" },
            protocol: protocol(traced.asked.protocol),
            frontend: canonical(&traced.asked),
            service: record.as_ref().and_then(name::decode).map(|(key, _)| key.to_string()),
            backend: (outcome == Verdict::Translated).then(|| canonical(&traced.got)),
            outcome,
            errno: (traced.errno != 0).then_some(traced.errno),
        }
    }
}

fn time(since_1970: Duration) -> String {
    let seconds = rfc3339(i64::try_from(since_1970.as_secs()).unwrap_or(i64::MAX));
    format!("{}.{:06}Z", seconds.trim_end_matches('Z'), since_1970.subsec_micros())
}

/// Prints the calls that `asked` asks for, until nobody reads any more; anew where the load balancer is another one than before.
///
/// # Errors
/// When no load balancer is loaded or attached, now or at some later moment, and when nobody reads what is printed.
pub fn trace(pins: &Pins, asked: &Args) -> Result<()> {
    let get_retval = probe::has_get_retval()?;
    if !get_retval {
        log::warn!("this kernel lacks bpf_get_retval (Linux 5.18): what other programs refuse is not shown");
    }
    loop {
        let mut tracer = Tracer::begin(pins, asked, get_retval)?;
        log::info!("tracing; {}", tracer.of.served);
        if !tracer.print(pins, asked)? {
            return Ok(());
        }
    }
}

/// The load balancer whose calls are told of: to whom the programs are attached, and the numbers of the maps that they use. Each
/// map that is made gets another.
#[derive(PartialEq)]
struct Balancer {
    served: Served,
    maps: Vec<u32>,
}

impl Balancer {
    fn of(pins: &Pins) -> Result<Self> {
        let number = |map: &&str| Ok(pinned_data(&pins.maps(), map).map_err(|error| pins.explain(error))?.info()?.id());
        Ok(Self { served: attach::served(pins), maps: load::MAPS.iter().map(number).collect::<Result<_>>()? })
    }
}

/// One load balancer, while it is traced.
struct Tracer {
    of: Balancer,
    /// Has the programs and their links.
    _object: Ebpf,
    ring: RingBuf<MapData>,
    lost: Array<MapData, u64>,
    names: Names,
}

impl Tracer {
    fn begin(pins: &Pins, asked: &Args, get_retval: bool) -> Result<Self> {
        // Before anything is opened: what takes its place meanwhile is noticed then.
        let mut of = Balancer::of(pins)?;
        layout::check(pins)?;
        if matches!(of.served, Served::InPart(_)) {
            // It may be on its way to another cgroup.
            thread::sleep(LOOK);
            of = Balancer::of(pins)?;
        }
        let Served::Cgroup(cgroup) = of.served else { bail!("{}", of.served) };
        let cgroup =
            attach::path_of(cgroup).with_context(|| format!("the cgroup with number {cgroup} is not mounted here"))?;
        let cgroup = File::open(&cgroup).with_context(|| cgroup.display().to_string())?;
        let ring = asked.buffer.next_power_of_two() * 1024;
        let mut object = load::open_tracer(&pins.maps(), ring, !asked.address.is_empty(), get_retval)?;
        let lost = Array::try_from(object.take_map("trace_lost").context("no map trace_lost")?)?;
        let ring = RingBuf::try_from(object.take_map("trace_ring").context("no map trace_ring")?)?;
        let monotonic = Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC)?);
        let config: Mapped<bpf_lb_abi::Config> = mapped(&pins.maps(), "config")?;
        let names = Names {
            services: mapped(&pins.maps(), "names")?,
            pods: Pods::default(),
            node: config.get(0).map(|config| config.node_netns.load()),
            since_1970: SystemTime::now().duration_since(UNIX_EPOCH)?.saturating_sub(monotonic),
        };
        for name in PROGRAMS {
            let program: &mut CgroupSockAddr =
                object.program_mut(name).with_context(|| format!("no program {name}"))?.try_into()?;
            program.load().with_context(|| format!("load {name}"))?;
            program.attach(&cgroup, CgroupAttachMode::Single).with_context(|| format!("attach {name}"))?;
        }
        Ok(Self { of, _object: object, ring, lost, names })
    }

    /// Prints its calls. Says whether anybody reads, since it ends too when this is not the load balancer any more.
    fn print(&mut self, pins: &Pins, asked: &Args) -> Result<bool> {
        let text = !asked.json && io::stdout().is_terminal();
        let (mut told, mut looked) = (0, Instant::now());
        loop {
            let mut lines = String::new();
            while let Some(item) = self.ring.next() {
                let Some(traced) = sys::traced(&item) else { continue };
                let translation = self.names.translation(&traced);
                if asked.fits(&translation) {
                    write(&mut lines, &Line::Translation(Box::new(translation)), text)?;
                }
            }
            let missed = self.lost.get(&0, 0)?;
            if missed > told {
                write(&mut lines, &Line::Lost { lost: missed - told }, text)?;
                told = missed;
            }
            if !lines.is_empty() {
                print::text(&lines)?;
            }
            if looked.elapsed() >= LOOK {
                let now = Balancer::of(pins).context("the load balancer was unloaded")?;
                match now.served {
                    Served::Nobody | Served::Removed => bail!("the load balancer was unloaded: {}", now.served),
                    Served::Cgroup(_) if now != self.of => return Ok(true),
                    // One that is in part there may be on its way to another cgroup.
                    Served::Cgroup(_) | Served::InPart(_) => looked = Instant::now(),
                }
            }
            let stdout = io::stdout();
            if poll(&mut [PollFd::new(stdout.as_fd(), PollFlags::empty())], BATCH_MS)? > 0 {
                return Ok(false);
            }
        }
    }
}

fn write(lines: &mut String, line: &Line, text: bool) -> Result<()> {
    if text {
        lines.push_str(&line.to_string());
    } else {
        lines.push_str(&serde_json::to_string(line)?);
    }
    lines.push('\n');
    Ok(())
}
