//! What goes to standard error, and to a file.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, IsTerminal, Write},
    path::Path,
    sync::Mutex,
};

use serde_json::json;

use crate::{settings::LogOptions, table::one_line};

struct Logger {
    tool: &'static str,
    attachment: String,
    file: Option<Mutex<File>>,
}

impl log::Log for Logger {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        // The netlink crates describe every packet at debug level; a Kubernetes client's errors come back to who asked.
        let from = |part: &str| metadata.target().starts_with(part);
        !from("tower") && !from("kube") && !from("aya") && (!from("netlink") || metadata.level() <= log::Level::Warn)
    }

    fn log(&self, record: &log::Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let (level, msg) = (record.level().as_str().to_ascii_lowercase(), record.args().to_string());
        let line = json!({ "level": level, "tool": self.tool, "attachment": self.attachment, "msg": msg });
        let line = format!("{line}\n");
        // Each line is one write: several tools have the same log, and pieces of two lines would mix there. One that cannot be
        // written must not fail the pod.
        let mut stderr = io::stderr();
        let _ = if stderr.is_terminal() {
            stderr.write_all(format!("{}: {level}: {}\n", self.tool, one_line(&msg)).as_bytes())
        } else {
            stderr.write_all(line.as_bytes())
        };
        if let Some(Ok(mut file)) = self.file.as_ref().map(Mutex::lock) {
            let _ = file.write_all(line.as_bytes());
        }
    }

    fn flush(&self) {}
}

/// Sends log messages to standard error, one JSON object a line or, to a terminal, as text; and to the file that the configuration asks for.
pub fn init_log(tool: &'static str, options: &LogOptions, attachment: &str) {
    let open = |path: &String| {
        let made = Path::new(path).parent().map_or(Ok(()), fs::create_dir_all);
        made.and_then(|()| OpenOptions::new().create(true).append(true).open(path))
    };
    let (file, refused) = match options.log_file.as_ref().map(open) {
        Some(Ok(file)) => (Some(Mutex::new(file)), None),
        Some(Err(error)) => (None, Some(error)),
        None => (None, None),
    };
    let logger = Logger { tool, attachment: attachment.to_owned(), file };
    if log::set_boxed_logger(Box::new(logger)).is_ok() {
        log::set_max_level(options.log_level.parse().unwrap_or(log::LevelFilter::Info));
    }
    if let (Some(error), Some(path)) = (refused, &options.log_file) {
        log::warn!("cannot write messages to {path}: {error}");
    }
}
