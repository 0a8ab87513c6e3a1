//! systemd-networkd, which by default takes away the rules and routes that it did not make itself, whenever it starts.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use crate::check::Check;

/// Where its configuration is. A file takes the place of one of the same name in a directory before (networkd.conf(5)).
const DIRECTORIES: [&str; 4] = ["usr/lib/systemd", "usr/local/lib/systemd", "run/systemd", "etc/systemd"];
/// The settings that keep it from that, where their value is a no.
const SETTINGS: [&str; 2] = ["ManageForeignRoutes", "ManageForeignRoutingPolicyRules"];

const REMEDY: &str = "in the section [Network] of /etc/systemd/networkd.conf.d/underpass.conf set ManageForeignRoutes=no and \
     ManageForeignRoutingPolicyRules=no; until then the node agent has to put right what is taken away";

/// What systemd-networkd, where it runs, does to what is ours.
pub fn check() -> Option<Check> {
    let (ok, msg) = match harmful(&process()?) {
        Ok(harmful) if harmful.is_empty() => {
            (true, "systemd-networkd leaves other programs' rules and routes alone".to_owned())
        }
        Ok(harmful) => {
            let harmful = harmful.join(", ");
            (false, format!("systemd-networkd takes other programs' rules and routes away when it starts: {harmful}"))
        }
        Err(error) => (false, format!("what systemd-networkd does to other programs' rules is not known: {error}")),
    };
    Some(Check { name: "networkd", ok, msg, remedy: REMEDY.into() })
}

/// Its process, if it runs on this machine, as far as this process can see.
fn process() -> Option<PathBuf> {
    let mut processes = fs::read_dir("/proc").into_iter().flatten().flatten().map(|entry| entry.path());
    let name = |process: &Path| fs::read_to_string(process.join("comm")).unwrap_or_default();
    // A process's name has 15 bytes (`TASK_COMM_LEN`).
    processes.find(|process| name(process).trim_end() == "systemd-network")
}

/// The settings by which it takes away what is ours.
///
/// # Errors
/// When its file system, which this process may not have, is not to be seen.
fn harmful(process: &Path) -> io::Result<Vec<&'static str>> {
    let root = process.join("root");
    fs::read_dir(&root)?;
    Ok(harmful_in(&configuration(&root)))
}

/// The main file, then the drop-ins in the order of their names.
fn configuration(root: &Path) -> Vec<String> {
    let directories = DIRECTORIES.map(|directory| root.join(directory));
    let main = directories.iter().rev().find_map(|directory| fs::read_to_string(directory.join("networkd.conf")).ok());
    let files = directories.iter().flat_map(|directory| fs::read_dir(directory.join("networkd.conf.d")));
    let drop_ins: BTreeMap<_, _> = files.flatten().flatten().map(|file| (file.file_name(), file.path())).collect();
    let is_drop_in = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "conf");
    let drop_ins = drop_ins.into_values().filter(is_drop_in).filter_map(|path| fs::read_to_string(path).ok());
    main.into_iter().chain(drop_ins).collect()
}

fn harmful_in(files: &[String]) -> Vec<&'static str> {
    let lines: Vec<_> = files.iter().flat_map(|file| file.lines()).filter_map(|line| line.split_once('=')).collect();
    let last = |name: &str| lines.iter().rev().find(|(key, _)| key.trim() == name).map(|(_, value)| value.trim());
    let is_no = |value: &str| ["no", "false", "off", "0", "n", "f"].contains(&value.to_ascii_lowercase().as_str());
    SETTINGS.into_iter().filter(|name| !last(name).is_some_and(is_no)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_settings_are_harmful_by_default_and_the_last_value_counts() {
        let harmful = |files: &[&str]| harmful_in(&files.iter().map(|file| (*file).to_owned()).collect::<Vec<_>>());
        assert_eq!(harmful(&[]), SETTINGS);
        assert_eq!(
            harmful(&["[Network]\n#ManageForeignRoutes=no\nManageForeignRoutingPolicyRules = No\n"]),
            SETTINGS[..1]
        );
        let (no, yes) = ("ManageForeignRoutes=no\nManageForeignRoutingPolicyRules=0", "ManageForeignRoutes=yes");
        assert!(harmful(&[yes, no]).is_empty());
        assert_eq!(harmful(&[no, yes]), SETTINGS[..1]);
    }
}
