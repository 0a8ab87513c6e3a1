//! What the tools measure, as one page.

use std::{fs, path::Path};

/// All files `*.prom` of a directory, one after the other: each tool's names are its own, so they need no merging. A file
/// that goes, or cannot be read, is left out.
pub fn metrics(directory: &Path) -> String {
    let files = fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut files: Vec<_> = files.filter(|path| path.extension().is_some_and(|kind| kind == "prom")).collect();
    files.sort();
    files.iter().map(|file| fs::read_to_string(file).unwrap_or_default()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_tools_metrics_are_on_the_page_whole_and_once() {
        let directory = std::env::temp_dir().join(format!("serve-metrics-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join("b.prom"), "# TYPE b gauge\nb 1\n").unwrap();
        fs::write(directory.join("a.prom"), "a 1\n").unwrap();
        fs::write(directory.join("a.prom.new"), "unfinished 1\n").unwrap();
        let page = metrics(&directory);
        fs::remove_dir_all(&directory).unwrap();
        assert_eq!(page, "a 1\n# TYPE b gauge\nb 1\n");
    }
}
