//! Ports that the kernel gives to nobody who asks for any port: `ip_local_reserved_ports` of a network namespace.
//!
//! The ports that this program added are noted in a map, so that it takes away just these.

use std::{
    collections::BTreeSet,
    fs,
    io::{self, Write as _},
    ops::RangeInclusive,
    path::Path,
};

use bpf_lb_abi::Long;
use common::kernel::sysctl_file;

use crate::{maps::MapsError, netns, sys::Mapped};

/// The map in which the ports are noted.
const MAP: &str = "reserved";
const SYSCTL: &str = "net/ipv4/ip_local_reserved_ports";

/// Reserves the ports in `range`, beside those that are, in the network namespace at `netns`, or in the caller's own; those that
/// were reserved here before are given back. Returns those that are new, as the sysctl has them.
///
/// # Errors
/// When the namespace, the sysctl or the map cannot be used.
pub fn reserve(netns: Option<&Path>, maps: &Path, range: Option<&RangeInclusive<u16>>) -> io::Result<String> {
    let noted = noted(maps)?;
    let ours = read_noted(&noted);
    let wanted: BTreeSet<_> = range.cloned().into_iter().flatten().collect();
    if ours.is_empty() && wanted.is_empty() {
        return Ok(String::new());
    }
    let file = sysctl_file(SYSCTL);
    let found = parse(&netns::within(netns, || fs::read_to_string(&file))?);
    let (all, added) = plan(&found, &ours, &wanted);
    // Noted first: should this be the end, then what is noted and not there does no harm.
    note(&noted, &ours.union(&added).copied().collect());
    if all != found {
        // The kernel takes a list in one write only.
        let list = format!("{}\n", format(&all));
        netns::within(netns, || fs::OpenOptions::new().write(true).open(&file)?.write_all(list.as_bytes()))?;
    }
    note(&noted, &added);
    Ok(format(&added))
}

/// A range of ports on the command line: `30000-32767`.
///
/// # Errors
/// When it is none.
pub fn ports(text: &str) -> Result<RangeInclusive<u16>, String> {
    let range = text.split_once('-').and_then(|(first, last)| Some((first.parse().ok()?, last.parse().ok()?)));
    match range {
        Some((first, last)) if 0 < first && first <= last => Ok(first..=last),
        _ => Err("ports are two numbers from 1 to 65535, as in 30000-32767".into()),
    }
}

/// Gives back what was reserved here.
///
/// # Errors
/// As for [`reserve`].
pub fn give_back(netns: Option<&Path>, maps: &Path) -> io::Result<()> {
    // Maps of another version have no such note.
    if !maps.join(MAP).exists() {
        return Ok(());
    }
    reserve(netns, maps, None).map(drop)
}

fn noted(maps: &Path) -> io::Result<Mapped<Long>> {
    crate::maps::mapped(maps, MAP).map_err(|error: MapsError| io::Error::other(error))
}

fn read_noted(noted: &Mapped<Long>) -> BTreeSet<u16> {
    let set = |port: &u16| noted.get(u32::from(*port) / 64).is_some_and(|word| word.load() >> (port % 64) & 1 == 1);
    (0..=u16::MAX).filter(set).collect()
}

fn note(noted: &Mapped<Long>, ports: &BTreeSet<u16>) {
    for index in 0..noted.capacity() {
        let bit = |bit: &u32| u16::try_from(index * 64 + bit).is_ok_and(|port| ports.contains(&port));
        let word = (0..64).filter(bit).fold(0, |word, bit| word | 1 << bit);
        if let Some(place) = noted.get(index) {
            place.store(word);
        }
    }
}

/// Of the ports that are reserved, those that were reserved here, and those that are to be: all that are then, and those of
/// them that nobody else reserved.
fn plan(found: &BTreeSet<u16>, ours: &BTreeSet<u16>, wanted: &BTreeSet<u16>) -> (BTreeSet<u16>, BTreeSet<u16>) {
    let others: BTreeSet<_> = found.difference(ours).copied().collect();
    let added = wanted.difference(&others).copied().collect();
    (others.union(&added).copied().collect(), added)
}

/// A list as the sysctl has it: `30000-32767,40000`.
fn parse(text: &str) -> BTreeSet<u16> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.parse().ok()?..=last.parse::<u16>().ok()?)
    };
    text.trim().split(',').filter_map(range).flatten().collect()
}

/// The inverse of [`parse`].
fn format(ports: &BTreeSet<u16>) -> String {
    let mut ranges: Vec<(u16, u16)> = Vec::new();
    for port in ports {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == *port => *last = *port,
            _ => ranges.push((*port, *port)),
        }
    }
    let text = |(first, last): &(u16, u16)| if first == last { first.to_string() } else { format!("{first}-{last}") };
    ranges.iter().map(text).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_read_and_written_as_the_kernel_writes_it() {
        for text in ["", "8080", "30000-32767", "1,3-5,7,65534-65535"] {
            assert_eq!(format(&parse(&format!("{text}\n"))), text);
        }
    }

    #[test]
    fn what_others_reserved_stays_and_what_was_ours_goes() {
        let (all, added) = plan(&parse("100,30000-30005"), &parse(""), &parse("30004-30010"));
        assert_eq!((format(&all), format(&added)), ("100,30000-30010".into(), "30006-30010".into()));
        let (all, added) = plan(&all, &added, &parse("40000"));
        assert_eq!((format(&all), format(&added)), ("100,30000-30005,40000".into(), "40000".into()));
        let (all, added) = plan(&all, &added, &parse(""));
        assert_eq!((format(&all), format(&added)), ("100,30000-30005".into(), String::new()));
    }
}
