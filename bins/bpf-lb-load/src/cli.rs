//! The command line.

use std::{
    io::{BufRead as _, IsTerminal as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use aya::maps::{HashMap, MapError};
use bpf_lb_abi::Participation;
use clap::{Args, Parser, Subcommand, ValueEnum};
use serde::Serialize;
use service_table::{Change, ServiceTable};

use crate::{
    apply::{self, ApplyError, Summary},
    kernel::Kernel,
    layout,
    load::{self, Request, Sizes},
    maps::pinned,
    netns,
    pins::Pins,
    print, show, stats,
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
    Apply,
    /// Make one change for each line on stdin, and print a line about each
    Follow,
    /// Print the service table as the kernel has it
    Show {
        /// As JSON even on a terminal
        #[arg(long)]
        json: bool,
    },
    /// Print counters per service and backend
    Stats {
        /// In which format
        #[arg(long, value_enum, default_value_t = Format::Json)]
        format: Format,
    },
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
    /// Detach everything and remove the pins
    Unload,
    /// Print the JSON Schema of what apply (table) or follow (change) reads, or of what stats prints
    Schema {
        /// Of which document
        #[arg(value_enum, default_value_t = Document::Table)]
        document: Document,
    },
}

#[derive(Debug, Args)]
struct Load {
    /// The directory of the cgroup v2 whose processes are served; the root of the hierarchy by default
    #[arg(long)]
    cgroup: Option<PathBuf>,
    /// Which network namespaces take part; as before by default, and all of them at first
    #[arg(long, value_enum)]
    scope: Option<NetnsScope>,
    /// The node's network namespace, as a file, in which node ports are kept free; the loader's own by default
    #[arg(long)]
    node_netns: Option<PathBuf>,
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
    Table,
    Change,
    Stats,
}

/// Does what the command line says.
pub fn run(cli: Cli) -> Result<()> {
    let pins = Pins::new(&cli.pin_dir);
    match cli.command {
        Command::Load(load) => load_programs(pins, load),
        Command::Apply => apply_table(&pins),
        Command::Follow => follow(&pins),
        Command::Show { json } => {
            let kernel = Kernel::open(&pins)?;
            if !json && std::io::stdout().is_terminal() {
                print::text(&show::text(&kernel))
            } else {
                print::pretty(&show::table(&kernel))
            }
        }
        Command::Stats { format } => {
            let stats = stats::stats(&Kernel::open(&pins)?);
            match format {
                Format::Json => print::pretty(&stats),
                Format::Prometheus => print::text(&stats::prometheus(&stats)),
            }
        }
        Command::Register { path } => register(&pins, &path, true),
        Command::Unregister { path } => register(&pins, &path, false),
        Command::Unload => {
            let _lock = pins.lock()?;
            pins.remove()
        }
        Command::Schema { document } => match document {
            Document::Table => print::pretty(&schemars::schema_for!(ServiceTable)),
            Document::Change => print::pretty(&schemars::schema_for!(Change)),
            Document::Stats => print::pretty(&schemars::schema_for!(Vec<stats::ServiceStats>)),
        },
    }
}

fn load_programs(pins: Pins, load: Load) -> Result<()> {
    let participation = load.scope.map(|scope| match scope {
        NetnsScope::All => Participation::All,
        NetnsScope::AllBut => Participation::AllBut,
        NetnsScope::Only => Participation::Only,
    });
    let cgroup = match load.cgroup {
        Some(cgroup) => cgroup,
        None => cgroup_root()?,
    };
    let Load { node_netns, object, sizes, .. } = load;
    let request = Request { pins, cgroup, participation, node_netns, sizes, object };
    for missing in load::load(&request)? {
        eprintln!("bpf-lb-load: this kernel lacks {missing}");
    }
    Ok(())
}

/// The mount point of cgroup v2, which is not the same on every system.
fn cgroup_root() -> Result<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").context("/proc/self/mounts")?;
    let mount = mounts.lines().map(|line| line.split(' ')).find_map(|mut fields| {
        let path = fields.nth(1)?;
        (fields.next()? == "cgroup2").then(|| PathBuf::from(path))
    });
    mount.context("no cgroup v2 is mounted; mount one, or name one with --cgroup")
}

fn apply_table(pins: &Pins) -> Result<()> {
    let table: ServiceTable = serde_json::from_reader(std::io::stdin().lock()).context("the service table on stdin")?;
    let _lock = pins.lock()?;
    let mut kernel = Kernel::open(pins)?;
    kernel.recover()?;
    print::line(&apply::apply(&mut kernel, &table)?)
}

/// What `follow` says of a line.
#[derive(Serialize)]
struct Answer {
    line: usize,
    #[serde(flatten)]
    done: Option<Summary>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

fn follow(pins: &Pins) -> Result<()> {
    let _lock = pins.lock()?;
    let mut kernel = Kernel::open(pins)?;
    kernel.recover()?;
    for (line, text) in (1..).zip(std::io::stdin().lock().lines()) {
        let text = text.context("stdin")?;
        let done = match serde_json::from_str::<Change>(&text) {
            Ok(change) => apply::change(&mut kernel, &change),
            Err(error) => {
                print::line(&Answer { line, done: None, error: Some(error.to_string()) })?;
                continue;
            }
        };
        match done {
            Ok(done) => print::line(&Answer { line, done: Some(done), error: None })?,
            // The maps cannot be written: what is known of them may no longer be so.
            Err(ApplyError::Update(crate::room::UpdateError::Maps(error))) => return Err(error.into()),
            Err(error) => print::line(&Answer { line, done: None, error: Some(error.to_string()) })?,
        }
    }
    Ok(())
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
