//! Whether the node's tools are well, with kube-proxy's patience (`pkg/proxy/healthcheck`): one that has written nothing for
//! two minutes is not. An API server that is away is no reason: what was known stands.

use std::{
    fs,
    path::Path,
    time::{Duration, SystemTime},
};

use jiff::Timestamp;
use serde_json::{Value, json};

/// kube-proxy's: twice the time in which it synchronises everything.
const LIMIT: Duration = Duration::from_secs(120);

/// Which tools have to be well, and since when they are looked at.
#[derive(Clone, Debug)]
pub struct Health {
    tools: Vec<String>,
    begin: SystemTime,
}

impl Health {
    /// Of tools that may take a while to start.
    pub fn new(tools: Vec<String>, begin: SystemTime) -> Self {
        Self { tools, begin }
    }

    /// Whether each of them has written its metrics lately, and the answer that says so.
    pub fn verdict(&self, directory: &Path, now: SystemTime) -> (bool, Value) {
        let written =
            |tool: &String| fs::metadata(directory.join(format!("{tool}.prom"))).and_then(|file| file.modified());
        let seen: Vec<(&String, SystemTime)> =
            self.tools.iter().map(|tool| (tool, written(tool).unwrap_or(self.begin))).collect();
        let late: Vec<&String> =
            seen.iter().filter(|(_, time)| since(*time, now) > LIMIT).map(|(tool, _)| *tool).collect();
        let oldest = seen.iter().map(|(_, time)| *time).min().unwrap_or(now);
        let mut answer = json!({ "lastUpdated": text(oldest), "currentTime": text(now) });
        if !late.is_empty() {
            answer["late"] = json!(late);
        }
        (late.is_empty(), answer)
    }
}

fn since(time: SystemTime, now: SystemTime) -> Duration {
    now.duration_since(time).unwrap_or_default()
}

fn text(time: SystemTime) -> String {
    Timestamp::try_from(time).map(|time| time.to_string()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_just_started_is_well_and_who_is_silent_for_two_minutes_is_not() {
        let begin = SystemTime::UNIX_EPOCH;
        let health = Health::new(vec!["nobody".to_owned()], begin);
        let well = |seconds| health.verdict(Path::new("/nonexistent"), begin + Duration::from_secs(seconds));
        assert_eq!(
            well(0),
            (true, json!({ "lastUpdated": "1970-01-01T00:00:00Z", "currentTime": "1970-01-01T00:00:00Z" }))
        );
        assert!(well(120).0);
        assert!(!well(121).0);
        assert_eq!(well(121).1["late"], json!(["nobody"]));
    }

    #[test]
    fn without_anybody_to_look_at_all_is_well() {
        assert!(Health::new(vec![], SystemTime::UNIX_EPOCH).verdict(Path::new("/nonexistent"), SystemTime::now()).0);
    }
}
