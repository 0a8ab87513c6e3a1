//! The command line.

use std::{
    io::{IsTerminal as _, Read as _},
    ops::RangeInclusive,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, Result};
use aya::maps::{HashMap, MapError};
use bpf_lb_abi::Participation;
use clap::{Args, Parser, Subcommand, ValueEnum};
use service_table::{Line, ServiceTable};

use crate::{
    apply::{self, Refused, Summary, Table},
    attach::{self, Served},
    claims::Conflict,
    diff, follow,
    kernel::Kernel,
    layout,
    lease::Lease,
    load::{self, Loaded, Request, Sizes},
    maps::pinned,
    metrics::Metrics,
    netns,
    peers::Peers,
    pins::Pins,
    print, reserve, show, stats, trace,
};

/// Translates Services to backends at connect(), by eBPF programs on the cgroup socket hooks
#[derive(Debug, Parser)]
#[command(version)]
pub struct Cli {
    /// The directory that keeps links and maps, on a BPF file system
    #[arg(long, global = true, default_value = "/sys/fs/bpf/underpass")]
    pin_dir: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Load the programs, attach and pin them; run again, replace them and keep the maps
    Load(Load),
    /// Make the maps equal to the service table on stdin
    Apply {
        /// Print what would change, and change nothing
        #[arg(long)]
        dry_run: bool,
    },
    /// Make one change for each line on stdin, and print a line about each
    Follow {
        /// Have the table expire so long after this has ended, so that Services take the host path; renewed each 2 seconds. 0, the
        /// default, is never
        #[arg(long, value_name = "SECONDS", default_value = "0", hide_default_value = true, overrides_with = "lease")]
        lease: Lease,
    },
    /// Print the service table as the kernel has it
    Show {
        /// As JSON even on a terminal
        #[arg(long)]
        json: bool,
    },
    /// Print counters per service and backend
    Stats {
        /// In which format [default: a table at a terminal, else json]
        #[arg(long, value_enum)]
        format: Option<Format>,
    },
    /// Print each translation as it happens, until it is ended; attaches programs of its own for that time
    Trace(trace::Args),
    /// Have the network namespace at PATH in the list that the scopes all-but and only go by
    Register {
        /// The network namespace, as a file
        path: PathBuf,
    },
    /// Take the network namespace at PATH off that list
    Unregister {
        /// The network namespace, as a file
        path: PathBuf,
    },
    /// Detach everything, remove the pins and give back the ports that load reserved
    Unload {
        /// The node's network namespace, as load was told
        #[arg(long)]
        node_netns: Option<PathBuf>,
    },
    /// Print the JSON Schema of a document
    Schema {
        /// Of which document
        #[arg(value_enum, default_value_t = Document::Table)]
        document: Document,
    },
}

#[derive(Debug, Args)]
struct Load {
    /// The directory of the cgroup v2 whose processes are served, and no others; as before by default, and the root of the
    /// hierarchy at first
    #[arg(long)]
    cgroup: Option<PathBuf>,
    /// Which network namespaces take part; as before by default, and all of them at first
    #[arg(long, value_enum)]
    scope: Option<NetnsScope>,
    /// The node's network namespace, as a file; the loader's own by default
    #[arg(long)]
    node_netns: Option<PathBuf>,
    /// Keep the node's own processes from binding a node port among these ports on its addresses, which would never be reached
    /// there; the ports are reserved in ip_local_reserved_ports until unload. Not protected by default, as with kube-proxy
    #[arg(long, value_name = "FIRST-LAST", value_parser = reserve::ports, num_args = 0..=1, default_missing_value = "30000-32767")]
    protect_node_ports: Option<RangeInclusive<u16>>,
    /// There is another path to Services (kube-proxy's): UDP to one that has no backends is left to it, which serves the same socket as soon as
    /// there are some. By default connect() and sendto() are refused
    #[arg(long)]
    host_path: bool,
    /// An ELF object with the programs, instead of those that were built in
    #[arg(long)]
    object: Option<PathBuf>,
    #[command(flatten)]
    sizes: Sizes,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum NetnsScope {
    /// All of them
    All,
    /// All but the registered ones
    AllBut,
    /// Only the registered ones
    Only,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    Json,
    Prometheus,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Document {
    /// What apply reads
    Table,
    /// A line of what follow reads
    #[value(alias = "change")]
    Line,
    /// A line of what follow prints
    Answer,
    /// What stats prints
    Stats,
    /// A line of what trace prints
    Trace,
}

/// Does what the command line says.
pub fn run(cli: Cli) -> ExitCode {
    match execute(cli) {
        Ok(code) => code,
        Err(error) => {
            log::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn execute(cli: Cli) -> Result<ExitCode> {
    let pins = Pins::new(&cli.pin_dir);
    match cli.command {
        Command::Load(load) => load_programs(pins, load)?,
        Command::Apply { dry_run } => return apply_table(&pins, dry_run),
        Command::Follow { lease } => {
            let _lock = pins.lock_table()?;
            let table = Table::new(Kernel::open(&pins)?)?.resume(&Peers::open(&pins.maps())?)?;
            follow::follow(table, Metrics::new(&pins), lease)?;
        }
        Command::Show { json } => show(&pins, json)?,
        Command::Stats { format } => {
            let kernel = Kernel::open(&pins)?;
            let (stats, is_served) = (stats::stats(&kernel), attach::served(&pins).is_somebody());
            let has_expired = kernel.has_expired();
            match format {
                None if std::io::stdout().is_terminal() => print::text(&(stats::table(&stats) + "\n"))?,
                None | Some(Format::Json) => print::pretty(&stats)?,
                Some(Format::Prometheus) => print::text(&stats::prometheus(stats, is_served, has_expired)?)?,
            }
        }
        Command::Trace(asked) => trace::trace(&pins, &asked)?,
        Command::Register { path } => register(&pins, &path, true)?,
        Command::Unregister { path } => register(&pins, &path, false)?,
        Command::Unload { node_netns } => {
            let _lock = pins.lock()?;
            reserve::give_back(node_netns.as_deref(), &pins.maps()).context("net.ipv4.ip_local_reserved_ports")?;
            pins.remove()?;
        }
        Command::Schema { document } => print::pretty(&match document {
            Document::Table => schemars::schema_for!(ServiceTable),
            Document::Line => schemars::schema_for!(Line),
            Document::Answer => schemars::schema_for!(follow::Answer),
            Document::Stats => schemars::schema_for!(Vec<stats::ServiceStats>),
            Document::Trace => schemars::schema_for!(trace::Line),
        })?,
    }
    Ok(ExitCode::SUCCESS)
}

/// What there is to say of a table that has.
const EXPIRED: &str = "the table has expired, since nobody follows: connections to Services take the host path until somebody \
                       follows, or applies a table";

fn show(pins: &Pins, json: bool) -> Result<()> {
    let (kernel, served) = (Kernel::open(pins)?, attach::served(pins));
    let expired = kernel.has_expired().then_some(EXPIRED);
    if !json && std::io::stdout().is_terminal() {
        let expired = expired.map(|expired| format!("{expired}\n")).unwrap_or_default();
        return print::text(&format!("{served}\n{expired}{}", show::text(&kernel)));
    }
    warn_if_idle(&served);
    expired.into_iter().for_each(|expired| log::warn!("{expired}"));
    print::pretty(&show::table(&kernel))
}

fn warn_if_idle(served: &Served) {
    if !served.is_somebody() {
        log::warn!("{served}");
    }
}

fn load_programs(pins: Pins, load: Load) -> Result<()> {
    let participation = load.scope.map(|scope| match scope {
        NetnsScope::All => Participation::All,
        NetnsScope::AllBut => Participation::AllBut,
        NetnsScope::Only => Participation::Only,
    });
    let Load { cgroup, node_netns, object, sizes, protect_node_ports: protect, host_path, .. } = load;
    let request = Request { pins, cgroup, participation, node_netns, protect, host_path, sizes, object };
    let Loaded { missing, kept, reserved } = load::load(&request)?;
    if !reserved.is_empty() {
        let sysctl = "net.ipv4.ip_local_reserved_ports of the node's network namespace";
        log::info!("added {reserved} to {sysctl}; unload takes it away");
    }
    for missing in missing {
        log::warn!("this kernel lacks {missing}");
    }
    for kept in kept {
        log::warn!("{kept}");
    }
    Ok(())
}

fn apply_table(pins: &Pins, dry_run: bool) -> Result<ExitCode> {
    let mut text = Vec::new();
    std::io::stdin().lock().read_to_end(&mut text).context("stdin")?;
    let table: ServiceTable = serde_json::from_slice(&text).context("the service table on stdin")?;
    if dry_run {
        return print_plan(&Kernel::open(pins)?, &table);
    }
    let _lock = pins.lock_table()?;
    let mut installed = Table::new(Kernel::open(pins)?)?;
    let summary = installed.apply(&table)?;
    // Nobody is there who would renew it.
    installed.renew(Lease::FOR_EVER);
    // The process ends soon: to give back every node of these trees would only take time.
    std::mem::forget((installed, table));
    warn_if_idle(&attach::served(pins));
    print::line(&summary)?;
    Ok(complain(&summary))
}

/// Names what is not as it was to be.
fn complain(summary: &Summary) -> ExitCode {
    for Refused { service, error, .. } in &summary.refused {
        log::error!("{service}: {error}");
    }
    for Conflict { frontend, service, owner } in &summary.conflicts {
        log::error!("{service} does not get {frontend}, which belongs to {owner}");
    }
    if summary.is_complete() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn print_plan(kernel: &Kernel, table: &ServiceTable) -> Result<ExitCode> {
    let (differences, summary) = apply::plan(kernel, table)?;
    if std::io::stdout().is_terminal() {
        print::text(&diff::text(&differences))?;
    } else {
        print::line(&differences)?;
    }
    Ok(complain(&summary))
}

fn register(pins: &Pins, path: &Path, is_in: bool) -> Result<()> {
    let cookie = netns::cookie(path).with_context(|| format!("network namespace {}", path.display()))?;
    layout::check(pins)?;
    let mut namespaces: HashMap<_, u64, u32> = HashMap::try_from(pinned(&pins.maps(), "namespaces")?)?;
    if is_in {
        return namespaces.insert(cookie, 1, 0).context("map namespaces");
    }
    match namespaces.remove(&cookie) {
        Err(MapError::SyscallError(error)) if error.io_error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        result => result.context("map namespaces"),
    }
}
