//! Which plugin the node's default network has, read from the CNI configuration directory as the kubelet's runtime reads
//! it: the first file by name that ends in .conf, .conflist or .json and is a network configuration.

use std::{
    fs,
    io::{self, ErrorKind},
    path::Path,
};

use serde_json::Value;

/// A configuration file: its name, and its text or why there is none.
pub type File = (String, Result<String, String>);

/// The files of a CNI configuration directory that count, by name. None where there is no such directory; where it cannot be
/// read, one without a name.
pub fn read(directory: &Path) -> Vec<File> {
    let entries = match there(fs::read_dir(directory), directory) {
        Some(Ok(entries)) => entries.flatten(),
        Some(Err(problem)) => return vec![(String::new(), Err(problem))],
        None => return vec![],
    };
    let mut files: Vec<File> = entries
        .filter_map(|entry| {
            let (name, path) = (entry.file_name().into_string().ok()?, entry.path());
            let counts = [".conf", ".conflist", ".json"].iter().any(|suffix| name.ends_with(suffix));
            if counts { Some((name, there(fs::read_to_string(&path), &path)?)) } else { None }
        })
        .collect();
    files.sort();
    files
}

/// What was read, or why it was not; nothing where there is no such thing.
fn there<T>(read: io::Result<T>, path: &Path) -> Option<Result<T, String>> {
    let absent = |error: &io::Error| matches!(error.kind(), ErrorKind::NotFound | ErrorKind::IsADirectory);
    let why = |error| format!("{} cannot be read: {error}; podCIDRType auto goes without it", path.display());
    if read.as_ref().is_err_and(absent) { None } else { Some(read.map_err(why)) }
}

/// The default network's first plugin.
#[derive(Clone, Debug, PartialEq)]
pub struct Plugin {
    /// Its type.
    pub name: String,
    /// The type of its IPAM plugin; empty where it has none.
    pub ipam: String,
    /// The file that says so.
    pub file: String,
}

/// The default network's first plugin. The delegate of multus counts in its place.
pub fn default_plugin(files: &[File]) -> Option<Plugin> {
    let networks: Vec<(&str, Value)> = files.iter().filter_map(network).collect();
    let (file, first) = networks.first()?;
    match first_plugin(first)? {
        multus if is_multus(multus) => delegate(first, &networks),
        _ => plugin(first, file),
    }
}

fn plugin(network: &Value, file: &str) -> Option<Plugin> {
    let ipam = first_entry(network)["ipam"]["type"].as_str().unwrap_or_default();
    Some(Plugin { name: first_plugin(network)?.to_owned(), ipam: ipam.to_owned(), file: file.to_owned() })
}

/// A file that the runtime would take: one that does not parse, or has no plugin, is passed over.
fn network((name, text): &File) -> Option<(&str, Value)> {
    let value: Value = serde_json::from_str(text.as_ref().ok()?).ok()?;
    first_plugin(&value)?;
    Some((name, value))
}

fn first_entry(network: &Value) -> &Value {
    network["plugins"].as_array().map_or(network, |plugins| plugins.first().unwrap_or(&Value::Null))
}

fn first_plugin(network: &Value) -> Option<&str> {
    first_entry(network)["type"].as_str()
}

fn is_multus(plugin: &str) -> bool {
    plugin == "multus" || plugin == "multus-shim"
}

/// What multus hands the default network to: the first of its delegates, or its clusterNetwork, which is a path as
/// multus' own pod sees it, or a network's name; else what it would choose itself, the first network that is not multus.
fn delegate(multus: &Value, networks: &[(&str, Value)]) -> Option<Plugin> {
    let own = networks.first().map(|(file, _)| *file)?;
    let entry = multus["plugins"].get(0).unwrap_or(multus);
    if let Some(delegate) = entry["delegates"].get(0).and_then(|delegate| plugin(delegate, own)) {
        return Some(delegate);
    }
    let wanted = entry["clusterNetwork"].as_str();
    let base = wanted.and_then(|path| path.rsplit('/').next());
    let named = |(file, network): &&(&str, Value)| Some(*file) == base || network["name"].as_str() == wanted;
    let others = || networks.iter().filter(|(_, network)| first_plugin(network).is_some_and(|p| !is_multus(p)));
    let (file, network) = others().find(named).or_else(|| others().next())?;
    plugin(network, file)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(list: &[(&str, &str)]) -> Vec<File> {
        list.iter().map(|(name, text)| ((*name).to_owned(), Ok((*text).to_owned()))).collect()
    }

    fn plugin(list: &[(&str, &str)]) -> Option<(String, String)> {
        default_plugin(&files(list)).map(|plugin| (plugin.name, plugin.file))
    }

    const CALICO: &str = r#"{"name": "k8s-pod-network", "cniVersion": "0.3.1", "plugins": [{"type": "calico"}]}"#;
    const CILIUM: &str = r#"{"cniVersion": "0.3.1", "name": "cilium", "type": "cilium-cni"}"#;

    #[test]
    fn the_first_file_by_name_that_is_a_network_counts() {
        let list = [("00-broken.conf", "{"), ("05-cilium.conf", CILIUM), ("10-calico.conflist", CALICO)];
        assert_eq!(plugin(&list), Some(("cilium-cni".to_owned(), "05-cilium.conf".to_owned())));
        assert_eq!(plugin(&[("00-empty.conflist", r#"{"name": "a", "plugins": []}"#)]), None);
    }

    #[test]
    fn only_conf_conflist_and_json_files_count() {
        let directory = std::env::temp_dir().join(format!("underpass-cni-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        for name in ["20.json", "10.conflist", "05.conf.bak", "30.conf", "00.yaml"] {
            fs::write(directory.join(name), CALICO).unwrap();
        }
        fs::create_dir_all(directory.join("00.conf")).unwrap();
        let names: Vec<_> = read(&directory).into_iter().map(|(name, _)| name).collect();
        fs::remove_dir_all(&directory).unwrap();
        assert_eq!(names, ["10.conflist", "20.json", "30.conf"]);
    }

    #[test]
    fn the_delegate_of_multus_is_followed_whichever_way_it_is_named() {
        let inline = r#"{"type": "multus", "name": "multus", "delegates": [{"plugins": [{"type": "calico"}]}]}"#;
        assert_eq!(plugin(&[("00-multus.conf", inline)]).unwrap().0, "calico");
        for wanted in ["/host/etc/cni/net.d/10-calico.conflist", "k8s-pod-network"] {
            let shim = format!(r#"{{"type": "multus-shim", "name": "m", "clusterNetwork": "{wanted}"}}"#);
            let list = [("00-multus.conf", &*shim), ("05-cilium.conf", CILIUM), ("10-calico.conflist", CALICO)];
            assert_eq!(plugin(&list), Some(("calico".to_owned(), "10-calico.conflist".to_owned())));
        }
        let chained = r#"{"name": "m", "plugins": [{"type": "multus-shim", "clusterNetwork": "cilium"}]}"#;
        let list = [("00-multus.conflist", chained), ("05-calico.conflist", CALICO), ("10-cilium.conf", CILIUM)];
        assert_eq!(plugin(&list).unwrap().0, "cilium-cni");
        let silent = r#"{"type": "multus-shim", "name": "m"}"#;
        assert_eq!(plugin(&[("00-multus.conf", silent), ("10-cilium.conf", CILIUM)]).unwrap().0, "cilium-cni");
    }
}
