//! The values of settings, as plugin configurations write them: `None` where one is not allowed. Pure.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use ipnet::IpNet;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{mac::Mac, object::Family};

/// The setting `mode`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ModeSetting {
    /// Find out.
    #[default]
    Auto,
    /// Always a veth pair.
    Underlay,
    /// Always the overlay interface.
    Overlay,
    /// Leave the pod alone.
    Disable,
}

/// One entry of `policyRoutes`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PolicyRoute {
    /// The destination.
    #[schemars(with = "String")]
    pub dst: IpNet,
    /// The next hop.
    pub gw: IpAddr,
}

/// `detectOptions`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DetectOptions {
    /// How many probes.
    pub retries: u32,
    /// Between two probes.
    pub interval: Duration,
    /// From the last probe to giving up.
    pub timeout: Duration,
}

/// `logOptions`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LogOptions {
    /// The least severe messages to write.
    pub log_level: String,
    /// A file to append to, besides standard error.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_file: Option<String>,
}

impl Default for DetectOptions {
    fn default() -> Self {
        Self { retries: 3, interval: Duration::from_millis(10), timeout: Duration::from_millis(100) }
    }
}

impl Default for LogOptions {
    fn default() -> Self {
        Self { log_level: "info".to_owned(), log_file: None }
    }
}

/// Spiderpool's configurations write what is not set as null, as an empty string or as an empty list.
pub(super) fn is_unset(value: &Value) -> bool {
    value.is_null() || value.as_str() == Some("") || value.as_array().is_some_and(Vec::is_empty)
}

pub(super) fn list<T>(value: &Value, parse: impl Fn(&Value) -> Option<T>) -> Option<Vec<T>> {
    value.as_array()?.iter().map(parse).collect()
}

pub(super) fn mode(value: &Value) -> Option<ModeSetting> {
    match value.as_str()? {
        "auto" => Some(ModeSetting::Auto),
        "underlay" => Some(ModeSetting::Underlay),
        "overlay" => Some(ModeSetting::Overlay),
        "disable" | "disabled" => Some(ModeSetting::Disable),
        _ => None,
    }
}

/// Whether the kernel and CNI take a name for an interface (`dev_valid_name`; CNI's `ValidateInterfaceName`).
pub fn is_interface_name(name: &str) -> bool {
    let forbidden = |c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control();
    (1..=15).contains(&name.len()) && name != "." && name != ".." && !name.contains(forbidden)
}

pub(super) fn interface_name(value: &Value) -> Option<String> {
    value.as_str().filter(|name| is_interface_name(name)).map(str::to_owned)
}

/// Host bits are masked, as in Kubernetes and in Spiderpool's plugin.
fn network(text: &str) -> Option<IpNet> {
    let net: IpNet = text.trim().parse().ok()?;
    if net.trunc() != net {
        log::warn!("{net} has host bits, and is taken for {}", net.trunc());
    }
    Some(net.trunc())
}

pub(super) fn cidr(value: &Value) -> Option<IpNet> {
    network(value.as_str()?).filter(|net| net.prefix_len() > 0)
}

fn network_or_address(value: &Value) -> Option<IpNet> {
    let text = value.as_str()?;
    text.trim().parse::<IpAddr>().ok().map(IpNet::from).or_else(|| network(text))
}

pub(super) fn cidr_or_address(value: &Value) -> Option<IpNet> {
    network_or_address(value).filter(|net| net.prefix_len() > 0)
}

pub(super) fn policy_route(value: &Value) -> Option<PolicyRoute> {
    let dst = network_or_address(value.get("dst")?)?;
    let gw: IpAddr = value.get("gw")?.as_str()?.trim().parse().ok()?;
    Family::same(dst.addr(), gw).then_some(PolicyRoute { dst, gw })
}

fn unsigned(value: &Value) -> Option<u32> {
    value.as_u64()?.try_into().ok()
}

pub(super) fn routing_table(value: &Value) -> Option<u32> {
    unsigned(value).filter(|table| !matches!(table, 0 | 253..=255))
}

pub(super) fn rule_priority(value: &Value) -> Option<u32> {
    unsigned(value).filter(|priority| (1..=32765).contains(priority))
}

pub(super) fn link_group(value: &Value) -> Option<u32> {
    unsigned(value).filter(|group| !matches!(group, 0 | &u32::MAX))
}

pub(super) fn rp_filter(value: &Value) -> Option<Option<u8>> {
    match value.as_i64()? {
        ..0 => Some(None),
        value @ 0..=2 => Some(u8::try_from(value).ok()),
        _ => None,
    }
}

pub(super) fn queue_length(value: &Value) -> Option<Option<u32>> {
    match value.as_i64()? {
        ..=0 => Some(None),
        packets => u32::try_from(packets).ok().map(Some),
    }
}

pub(super) fn mark_bit(value: &Value) -> Option<u32> {
    let hexadecimal = || u32::from_str_radix(value.as_str()?.strip_prefix("0x")?, 16).ok();
    unsigned(value).or_else(hexadecimal).filter(|mark| mark.is_power_of_two())
}

pub(super) fn mac_prefix(value: &Value) -> Option<[u8; 2]> {
    let text = value.as_str()?.replace('-', ":");
    let Mac([first, second, ..]) = format!("{text}:00:00:00:00").parse().ok()?;
    (first & 1 == 0).then_some([first, second])
}

pub(super) fn link_local(value: &Value) -> Option<Option<IpAddr>> {
    match value.as_str()? {
        "none" => Some(None),
        text => text.parse().ok().filter(Ipv4Addr::is_link_local).map(|address| Some(IpAddr::V4(address))),
    }
}

pub(super) fn mtu(value: &Value) -> Option<Option<u32>> {
    match unsigned(value)? {
        0 => Some(None),
        mtu @ 68..=65535 => Some(Some(mtu)),
        _ => None,
    }
}

/// A duration as Go's `time.ParseDuration` takes it: numbers with units, one after another.
fn duration(value: &Value) -> Option<Duration> {
    let text = value.as_str()?.trim_start_matches('+');
    let (mut rest, mut seconds) = (text, 0.0);
    while !rest.is_empty() && text != "0" {
        let (number, after) = rest.split_at(rest.find(|c: char| !c.is_ascii_digit() && c != '.')?);
        let (unit, after) = after.split_at(after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len()));
        let unit = match unit {
            "ns" => 1e-9,
            "us" | "\u{b5}s" | "\u{3bc}s" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        seconds += number.parse::<f64>().ok()? * unit;
        rest = after;
    }
    let duration = Duration::try_from_secs_f64(seconds).ok().filter(|_| !text.is_empty())?;
    (duration <= Duration::from_secs(60)).then_some(duration)
}

pub(super) fn detect_options(value: &Value) -> Option<DetectOptions> {
    let mut options = DetectOptions::default();
    for (key, value) in value.as_object()?.iter().filter(|(_, value)| !is_unset(value)) {
        match key.as_str() {
            // Spiderpool's configurations write 0 for what is not set.
            "retries" | "retry" if value.as_u64() == Some(0) => {}
            "retries" | "retry" => options.retries = unsigned(value).filter(|n| *n <= 100)?,
            "interval" => options.interval = duration(value)?,
            "timeout" => options.timeout = duration(value)?,
            _ => {}
        }
    }
    Some(options)
}

pub(super) fn log_options(value: &Value) -> Option<LogOptions> {
    let mut options = LogOptions::default();
    let fields: BTreeMap<_, _> = value.as_object()?.iter().filter(|(_, value)| !is_unset(value)).collect();
    for (key, value) in fields {
        match key.as_str() {
            "logLevel" => {
                let level = value.as_str()?.to_ascii_lowercase();
                options.log_level = match level.as_str() {
                    "warning" => "warn".to_owned(),
                    "fatal" | "panic" => "error".to_owned(),
                    "error" | "warn" | "info" | "debug" => level,
                    _ => return None,
                };
            }
            "logFile" => options.log_file = Some(value.as_str().filter(|path| path.starts_with('/'))?.to_owned()),
            // Spiderpool's rotation settings: who reads the file rotates it.
            "logMaxSize" | "logMaxAge" | "logMaxCount" => {
                unsigned(value)?;
            }
            _ => {}
        }
    }
    Some(options)
}
