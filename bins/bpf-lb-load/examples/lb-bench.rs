//! The loops of `scripts/bench lb`: one client, pinned to a CPU, that connects to Services again and again.
//!
//! Runs in a network namespace and a cgroup that the script made; all traffic stays on the loopback interface.
#![expect(unsafe_code, reason = "a loop around system calls is to measure those, not a wrapper's checks")]

use std::{
    collections::BTreeMap,
    io,
    net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd},
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::Instant,
};

use anyhow::{Context as _, Result, bail, ensure};
use aya::{
    maps::MapData,
    programs::{links::PinnedLink, loaded_programs},
    sys::{Stats, enable_stats},
};
use ipnet::IpNet;
use service_table::{Algorithm, Backend, Change, Protocol, Refuse, Service, ServiceTable, SessionAffinity};

use bpf_lb_load::{apply, kernel::Kernel, pins::Pins, print};
use clap::{Args, Parser, ValueEnum};
use serde::Serialize;

const SERVICE_PORT: u16 = 80;
const BACKEND_PORT: u16 = 8080;

#[derive(Parser)]
enum Command {
    /// Print a service table
    Table(Table),
    /// Run a loop and print what it took
    Run(Run),
    /// Fill the maps, change one endpoint, and print what each took
    Fill(Fill),
    /// Attach a program that does nothing to connect4, run a loop and print what it took
    Empty(Run),
    /// Print how much memory each map takes
    Memory {
        #[arg(long)]
        pin_dir: PathBuf,
    },
}

#[derive(Args)]
struct Table {
    #[arg(long)]
    services: u32,
    #[arg(long, default_value_t = 10)]
    backends: u32,
    #[arg(long)]
    affinity: bool,
    #[arg(long)]
    least_connections: bool,
    /// TCP alone; else each service has TCP and UDP
    #[arg(long)]
    tcp_only: bool,
    /// CIDRs in which a port that no service has is refused
    #[arg(long)]
    refuse: Vec<IpNet>,
    /// The first service's, on an address of this node's that nobody asks
    #[arg(long)]
    node_port: Option<u16>,
}

#[derive(Args)]
struct Fill {
    #[arg(long)]
    pin_dir: PathBuf,
    #[command(flatten)]
    table: Table,
}

/// What filling took, in microseconds, the changes as medians of 1,000.
#[derive(Serialize)]
struct Filled {
    services: u32,
    backends: u32,
    fill_us: u128,
    same_again_us: u128,
    change_one_endpoint_us: f64,
    change_one_endpoint_worst_us: f64,
    empty_us: u128,
}

#[derive(Args)]
struct Run {
    #[arg(value_enum)]
    case: Case,
    /// To how many services the client connects in turn; 0 for an address that is none
    #[arg(long, default_value_t = 1)]
    services: u32,
    #[arg(long, default_value_t = 2_000)]
    count: u32,
    /// Of so many times the loop, the shortest counts: what else the machine does only makes it longer
    #[arg(long, default_value_t = 60)]
    repeat: u32,
    /// The client's sockets are made in this cgroup, the servers' are not
    #[arg(long)]
    cgroup: Option<PathBuf>,
    /// Reads what the kernel counts of the programs that are pinned there
    #[arg(long)]
    pin_dir: Option<PathBuf>,
    /// Has the kernel count nothing, since that takes time as well
    #[arg(long, conflicts_with = "pin_dir")]
    uncounted: bool,
}

#[derive(Clone, Copy, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Case {
    /// socket, SO_LINGER 0, connect, close
    Tcp,
    /// The same to IPv6 Services
    Tcp6,
    /// connect on one socket
    UdpSame,
    /// The same to one address that is no Service
    UdpMiss,
    /// The same to a port that no Service has, which is refused
    UdpRefused,
    /// The same through IPv4-mapped addresses
    UdpMapped,
    /// socket, connect, close
    UdpNew,
    /// sendto and recvfrom on one socket
    UdpEcho,
    /// socket, sendto, recvfrom, close
    UdpFirst,
    /// getpeername on one connected socket
    Peer,
}

/// What a loop took.
#[derive(Serialize)]
struct Report {
    case: Case,
    services: u32,
    /// Of one turn of the loop. With the kernel's counting it is longer.
    wall_ns: f64,
    /// Nanoseconds per run, as the kernel counts them.
    programs: BTreeMap<String, f64>,
}

fn main() -> Result<()> {
    match Command::parse() {
        Command::Table(table) => print::line(&table.make()),
        Command::Run(run) => print::line(&run.measure()?),
        Command::Empty(run) => {
            let _link = attach_empty(run.cgroup.as_deref().context("--cgroup")?)?;
            print::line(&run.measure()?)
        }
        Command::Fill(fill) => print::line(&fill.measure()?),
        Command::Memory { pin_dir } => print::line(&memory(&pin_dir)?),
    }
}

/// A link that holds a program `return 1`: what counting alone costs.
fn attach_empty(cgroup: &Path) -> Result<OwnedFd> {
    const BPF_PROG_LOAD: libc::c_long = 5;
    const BPF_LINK_CREATE: libc::c_long = 28;
    const CGROUP_SOCK_ADDR: u32 = 18;
    const CGROUP_INET4_CONNECT: u32 = 10;
    // r0 = 1; exit
    let program: [u64; 2] = [0x0000_0001_0000_00b7, 0x95];
    let licence = c"GPL";
    let mut load = [0_u32; 18];
    load[0] = CGROUP_SOCK_ADDR;
    load[1] = 2;
    load[2..4].copy_from_slice(&halves(program.as_ptr() as u64));
    load[4..6].copy_from_slice(&halves(licence.as_ptr() as u64));
    load[12..14].copy_from_slice(&[u32::from_le_bytes(*b"empt"), u32::from_le_bytes(*b"y\0\0\0")]);
    load[17] = CGROUP_INET4_CONNECT;
    let bpf = |command: libc::c_long, attributes: &[u32]| -> io::Result<OwnedFd> {
        // SAFETY: the kernel reads as many bytes as it is told, and what they point to outlives the call.
        let fd = unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_ptr(), 4 * attributes.len()) };
        // SAFETY: the call made it, and nobody else has it.
        check(fd as libc::c_int).map(|fd| unsafe { OwnedFd::from_raw_fd(fd) })
    };
    let loaded = bpf(BPF_PROG_LOAD, &load).context("load a program that does nothing")?;
    let cgroup = std::fs::File::open(cgroup)?;
    let link = [loaded.as_raw_fd() as u32, cgroup.as_raw_fd() as u32, CGROUP_INET4_CONNECT, 0];
    Ok(bpf(BPF_LINK_CREATE, &link)?)
}

const fn halves(word: u64) -> [u32; 2] {
    [word as u32, (word >> 32) as u32]
}

/// By map, in bytes, as the kernel charges it.
fn memory(pins: &Path) -> Result<BTreeMap<String, u64>> {
    let mut memory = BTreeMap::new();
    for entry in std::fs::read_dir(pins.join("maps")).context("--pin-dir")? {
        let entry = entry?;
        let map = MapData::from_pin(entry.path())?;
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", map.fd().as_fd().as_raw_fd()))?;
        let bytes = info.lines().find_map(|line| line.strip_prefix("memlock:")).context("no memlock in fdinfo")?;
        memory.insert(entry.file_name().to_string_lossy().into_owned(), bytes.trim().parse()?);
    }
    Ok(memory)
}

impl Fill {
    fn measure(&self) -> Result<Filled> {
        let table = self.table.make();
        let mut maps = apply::Table::new(Kernel::open(&Pins::new(&self.pin_dir))?)?;
        let mut time = |table: &ServiceTable| -> Result<u128> {
            let start = Instant::now();
            maps.apply(table)?;
            Ok(start.elapsed().as_micros())
        };
        let (fill_us, same_again_us) = (time(&table)?, time(&table)?);
        let mut changes = Vec::new();
        for turn in 0..1_000 {
            let mut service = table.services[turn % table.services.len()].clone();
            service.backends[0].port += 1 + turn as u16;
            let start = Instant::now();
            let change = Change::Set(Box::new(service));
            maps.change(&change)?;
            changes.push(start.elapsed().as_nanos() as f64 / 1e3);
        }
        changes.sort_by(f64::total_cmp);
        let start = Instant::now();
        maps.apply(&ServiceTable::default())?;
        Ok(Filled {
            services: self.table.services,
            backends: self.table.backends,
            fill_us,
            same_again_us,
            change_one_endpoint_us: changes[changes.len() / 2],
            change_one_endpoint_worst_us: changes[changes.len() - 1],
            empty_us: start.elapsed().as_micros(),
        })
    }
}

fn cluster_ip(service: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 96, 0, 0)) + service)
}

impl Table {
    fn make(&self) -> ServiceTable {
        let service = |index: u32, protocol: Protocol| Service {
            namespace: "bench".into(),
            name: format!("service-{index}"),
            port_name: format!("{protocol:?}").to_lowercase(),
            protocol,
            port: SERVICE_PORT,
            cluster_ips: vec![cluster_ip(index).into(), cluster_ip(index).to_ipv6_compatible().into()],
            node_port: self.node_port.filter(|_| index == 0),
            session_affinity: self.affinity.then_some(SessionAffinity { timeout_seconds: 10_800 }),
            lb_algorithm: if self.least_connections { Algorithm::LeastConnections } else { Algorithm::Random },
            backends: self.backends(index),
            ..Service::default()
        };
        let protocols = if self.tcp_only { &[Protocol::Tcp][..] } else { &[Protocol::Tcp, Protocol::Udp] };
        let all = |index| protocols.iter().map(move |protocol| service(index, *protocol));
        ServiceTable {
            node_addresses: self.node_port.map(|_| Ipv4Addr::new(127, 3, 0, 1).into()).into_iter().collect(),
            refuse: Refuse(self.refuse.clone()),
            services: (0..self.services).flat_map(all).collect(),
            ..ServiceTable::default()
        }
    }

    fn backends(&self, service: u32) -> Vec<Backend> {
        let address = |index: u32| u32::from(Ipv4Addr::new(127, 1, 0, 1)) + service * self.backends + index;
        let backend = |index: u32| Backend {
            address: Ipv4Addr::from(address(index)).into(),
            port: BACKEND_PORT,
            local: false,
            node: None,
            scope: None,
        };
        let six = Backend {
            address: std::net::Ipv6Addr::LOCALHOST.into(),
            port: BACKEND_PORT,
            local: false,
            node: None,
            scope: None,
        };
        (0..self.backends).map(backend).chain([six]).collect()
    }
}

impl Run {
    fn measure(&self) -> Result<Report> {
        pin_to_cpu(0)?;
        let stop = AtomicBool::new(false);
        let tcp = TcpListener::bind(("::", BACKEND_PORT))?;
        // Room for connections that the server gets round to later: else the client waits for it.
        // SAFETY: takes numbers only.
        check(unsafe { libc::listen(tcp.as_raw_fd(), 65_535) })?;
        // One for each backend of the first service, since an answer comes from the address that its socket has.
        let udp: Vec<_> = (1..=10)
            .map(|host| UdpSocket::bind((Ipv4Addr::new(127, 1, 0, host), BACKEND_PORT)))
            .collect::<Result<_, _>>()?;
        std::thread::scope(|scope| {
            let stop = &stop;
            let mut servers = vec![scope.spawn(|| serve(&tcp, stop))];
            servers.extend(udp.iter().map(|socket| scope.spawn(|| echo(socket, stop))));
            let report = self.run();
            stop.store(true, Relaxed);
            let _wakes_the_server = TcpStream::connect((Ipv4Addr::LOCALHOST, BACKEND_PORT));
            for server in servers {
                server.join().map_err(|_| io::Error::other("a server died"))??;
            }
            report
        })
    }

    fn run(&self) -> Result<Report> {
        if let Some(cgroup) = &self.cgroup {
            std::fs::write(cgroup.join("cgroup.procs"), "0").context("--cgroup")?;
        }
        let mut client = Client::new(self.case, self.services)?;
        client.times(self.count)?;
        let mut report =
            Report { case: self.case, services: self.services, wall_ns: f64::MAX, programs: BTreeMap::new() };
        for _ in 0..self.repeat {
            self.once(&mut client, &mut report)?;
        }
        Ok(report)
    }

    fn once(&self, client: &mut Client, report: &mut Report) -> Result<()> {
        let before = self.counters()?;
        let stats = (!before.is_empty()).then(|| enable_stats(Stats::RunTime)).transpose()?;
        let start = Instant::now();
        client.times(self.count)?;
        let wall = start.elapsed();
        let after = self.counters()?;
        drop(stats);
        report.wall_ns = report.wall_ns.min(wall.as_nanos() as f64 / f64::from(self.count));
        for (name, time, runs) in after {
            let Some((_, old_time, old_runs)) = before.iter().find(|(old, ..)| *old == name) else { continue };
            let runs = runs - old_runs;
            // Others than the loop's own run now and then.
            if runs >= u64::from(self.count) / 2 {
                let best = report.programs.entry(name).or_insert(f64::MAX);
                *best = best.min((time - old_time) as f64 / runs as f64);
            }
        }
        Ok(())
    }

    /// Of each pinned program the time it ran, in ns, and how often.
    fn counters(&self) -> Result<Vec<(String, u64, u64)>> {
        let mut counters = Vec::new();
        if self.uncounted {
            return Ok(counters);
        }
        let programs: Vec<_> = loaded_programs().collect::<Result<_, _>>()?;
        if let Some(empty) = programs.iter().find(|program| program.name() == b"empty") {
            counters.push(("empty".into(), empty.run_time().as_nanos() as u64, empty.run_count()));
        }
        let Some(pins) = &self.pin_dir else { return Ok(counters) };
        for entry in std::fs::read_dir(pins.join("links")).context("--pin-dir")? {
            let entry = entry?;
            let link: aya::programs::links::FdLink = PinnedLink::from_pin(entry.path())?.into();
            let id = link.info()?.program_id();
            if let Some(program) = programs.iter().find(|program| program.id() == id) {
                let name = entry.file_name().to_string_lossy().into_owned();
                counters.push((name, program.run_time().as_nanos() as u64, program.run_count()));
            }
        }
        Ok(counters)
    }
}

fn serve(listener: &TcpListener, stop: &AtomicBool) -> io::Result<()> {
    pin_to_cpu(1)?;
    while !stop.load(Relaxed) {
        // A connection that was reset before it was accepted is no connection any more.
        let _aborted = listener.accept();
    }
    Ok(())
}

fn echo(socket: &UdpSocket, stop: &AtomicBool) -> io::Result<()> {
    pin_to_cpu(1)?;
    socket.set_read_timeout(Some(std::time::Duration::from_millis(50)))?;
    let mut buffer = [0; 64];
    while !stop.load(Relaxed) {
        if let Ok((len, from)) = socket.recv_from(&mut buffer) {
            socket.send_to(&buffer[..len], from)?;
        }
    }
    Ok(())
}

fn pin_to_cpu(cpu: usize) -> io::Result<()> {
    // SAFETY: a set of CPUs is plain data.
    check(unsafe {
        let mut cpus: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut cpus);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const cpus)
    })?;
    Ok(())
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// The client of one loop.
struct Client {
    case: Case,
    addresses: Vec<Address>,
    next: usize,
    socket: libc::c_int,
}

#[derive(Clone, Copy)]
enum Address {
    Four(libc::sockaddr_in),
    Six(libc::sockaddr_in6),
}

impl Address {
    fn new(case: Case, address: Ipv4Addr) -> Self {
        let port = if matches!(case, Case::UdpRefused) { SERVICE_PORT + 1 } else { SERVICE_PORT }.to_be();
        let six = |address: std::net::Ipv6Addr| {
            // SAFETY: a socket address is plain data.
            let mut name: libc::sockaddr_in6 = unsafe { std::mem::zeroed() };
            name.sin6_family = libc::AF_INET6 as u16;
            name.sin6_port = port;
            name.sin6_addr.s6_addr = address.octets();
            Self::Six(name)
        };
        match case {
            Case::Tcp6 => six(address.to_ipv6_compatible()),
            Case::UdpMapped => six(address.to_ipv6_mapped()),
            _ => {
                // SAFETY: as above.
                let mut name: libc::sockaddr_in = unsafe { std::mem::zeroed() };
                name.sin_family = libc::AF_INET as u16;
                name.sin_port = port;
                name.sin_addr.s_addr = u32::from(address).to_be();
                Self::Four(name)
            }
        }
    }

    fn raw(&self) -> (*const libc::sockaddr, libc::socklen_t) {
        match self {
            Self::Four(name) => ((&raw const *name).cast(), size_of_val(name) as u32),
            Self::Six(name) => ((&raw const *name).cast(), size_of_val(name) as u32),
        }
    }
}

impl Client {
    fn new(case: Case, services: u32) -> Result<Self> {
        // An order in which no address is next to the one before it: a stride that is prime to the number of addresses.
        let address = |index: u32| match services {
            0 if matches!(case, Case::Tcp) => Ipv4Addr::LOCALHOST,
            0 => Ipv4Addr::from(u32::from(Ipv4Addr::new(127, 2, 0, 0)) + index * 7_919 % 10_000),
            services => cluster_ip((u64::from(index) * 7_919 % u64::from(services)) as u32),
        };
        let count = match case {
            Case::UdpMiss => 1,
            _ if services == 0 => 10_000,
            _ => services,
        };
        let mut addresses: Vec<_> = (0..count).map(|index| Address::new(case, address(index))).collect();
        if services == 0 && matches!(case, Case::Tcp) {
            for address in &mut addresses {
                if let Address::Four(name) = address {
                    name.sin_port = BACKEND_PORT.to_be();
                }
            }
        }
        let socket = match case {
            Case::UdpMapped => open(libc::AF_INET6, libc::SOCK_DGRAM)?,
            Case::UdpSame | Case::UdpMiss | Case::UdpRefused | Case::UdpEcho => open(libc::AF_INET, libc::SOCK_DGRAM)?,
            Case::Peer => open(libc::AF_INET, libc::SOCK_STREAM)?,
            Case::Tcp | Case::Tcp6 | Case::UdpNew | Case::UdpFirst => -1,
        };
        let client = Self { case, addresses, next: 0, socket };
        if matches!(case, Case::Peer) {
            connect(socket, &client.addresses[0])?;
        }
        if matches!(case, Case::UdpEcho | Case::UdpFirst) {
            ensure!(services == 1, "echo is for one service");
        }
        if matches!(case, Case::UdpEcho) {
            client.echo(socket)?;
        }
        Ok(client)
    }

    fn times(&mut self, count: u32) -> Result<()> {
        for _ in 0..count {
            self.once()?;
        }
        Ok(())
    }

    fn once(&mut self) -> Result<()> {
        let address = self.addresses[self.next];
        self.next = if self.next + 1 == self.addresses.len() { 0 } else { self.next + 1 };
        match self.case {
            Case::Tcp => connect_and_reset(libc::AF_INET, &address)?,
            Case::Tcp6 => connect_and_reset(libc::AF_INET6, &address)?,
            Case::UdpSame | Case::UdpMiss | Case::UdpMapped => connect(self.socket, &address)?,
            Case::UdpRefused => {
                let refused =
                    connect(self.socket, &address).is_err_and(|error| error.raw_os_error() == Some(libc::ECONNREFUSED));
                ensure!(refused, "it is not refused");
            }
            Case::UdpNew => {
                let socket = open(libc::AF_INET, libc::SOCK_DGRAM)?;
                connect(socket, &address)?;
                close(socket)?;
            }
            Case::UdpEcho => self.echo(self.socket)?,
            Case::UdpFirst => {
                let socket = open(libc::AF_INET, libc::SOCK_DGRAM)?;
                self.echo(socket)?;
                close(socket)?;
            }
            Case::Peer => self.peer()?,
        }
        Ok(())
    }

    fn peer(&self) -> Result<()> {
        // SAFETY: the kernel writes no more than it is told.
        let name = unsafe {
            let mut name: libc::sockaddr_in = std::mem::zeroed();
            let mut len = size_of::<libc::sockaddr_in>() as u32;
            check(libc::getpeername(self.socket, (&raw mut name).cast(), &raw mut len))?;
            name
        };
        ensure!(u16::from_be(name.sin_port) == SERVICE_PORT, "getpeername shows port {}", u16::from_be(name.sin_port));
        Ok(())
    }

    fn echo(&self, socket: libc::c_int) -> Result<()> {
        let (name, len) = self.addresses[0].raw();
        let mut buffer = *b"12345678";
        // SAFETY: the kernel reads the address and the buffer, and writes no more than it is told.
        let from = unsafe {
            let sent = libc::sendto(socket, buffer.as_ptr().cast(), buffer.len(), 0, name, len);
            ensure!(sent == 8, "sendto: {}", io::Error::last_os_error());
            let mut from: libc::sockaddr_in = std::mem::zeroed();
            let mut len = size_of::<libc::sockaddr_in>() as u32;
            let got = libc::recvfrom(
                socket,
                buffer.as_mut_ptr().cast(),
                buffer.len(),
                0,
                (&raw mut from).cast(),
                &raw mut len,
            );
            ensure!(got == 8, "recvfrom: {}", io::Error::last_os_error());
            from
        };
        if u16::from_be(from.sin_port) != SERVICE_PORT {
            bail!("an answer from port {}", u16::from_be(from.sin_port));
        }
        Ok(())
    }
}

fn open(family: libc::c_int, kind: libc::c_int) -> io::Result<libc::c_int> {
    // SAFETY: takes numbers only.
    check(unsafe { libc::socket(family, kind, 0) })
}

fn close(socket: libc::c_int) -> io::Result<()> {
    // SAFETY: takes a number only.
    check(unsafe { libc::close(socket) }).map(|_| ())
}

fn connect(socket: libc::c_int, address: &Address) -> io::Result<()> {
    let (name, len) = address.raw();
    // SAFETY: the kernel reads the address.
    check(unsafe { libc::connect(socket, name, len) }).map(|_| ())
}

fn connect_and_reset(family: libc::c_int, address: &Address) -> io::Result<()> {
    let socket = open(family, libc::SOCK_STREAM)?;
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    // SAFETY: the kernel reads the option.
    check(unsafe {
        libc::setsockopt(
            socket,
            libc::SOL_SOCKET,
            libc::SO_LINGER,
            (&raw const linger).cast(),
            size_of::<libc::linger>() as u32,
        )
    })?;
    connect(socket, address)?;
    close(socket)
}
