//! The rules for forwarded packets that `iptables-legacy` writes: the kernel keeps them beside nf_tables, and both have their
//! say. Laid out in `linux/netfilter_ipv4/ip_tables.h`, `linux/netfilter_ipv6/ip6_tables.h` and `linux/netfilter/x_tables.h`.

use std::{
    collections::BTreeMap,
    fs, io,
    net::{Ipv4Addr, Ipv6Addr, UdpSocket},
    os::fd::AsRawFd,
};

use common::wire::{u16_at, u32_at};
use nix::libc;

use super::ruleset::{Chain, Field, Ruleset, Table, Term, Verdict, devgroup};

/// `IPT_SO_GET_INFO`, `IP6T_SO_GET_INFO`; and `..._GET_ENTRIES`.
const GET_INFO: i32 = 64;
const GET_ENTRIES: i32 = 65;
/// `XT_TABLE_MAXNAMELEN`.
const TABLE_NAME: usize = 32;
/// `struct ipt_getinfo`; and where the entries begin in `struct ipt_get_entries`.
const INFO: usize = 84;
const ENTRIES: usize = 40;
/// `NF_INET_FORWARD`.
const FORWARD: usize = 2;
const HOOKS: usize = 5;
/// `struct xt_entry_match` and `struct xt_entry_target` before their data: size, name of 29 bytes, revision.
const EXTENSION: usize = 32;

/// What differs between the families.
#[derive(Clone, Copy, Debug)]
struct Layout {
    /// `NFPROTO_`.
    family: u8,
    /// `SOL_`.
    level: i32,
    /// Lists the tables that there are.
    names: &'static str,
    /// Bytes of an address.
    address: usize,
    /// `sizeof(struct ipt_ip)`, `ip6t_ip6`; and of the whole entry before its matches.
    ip: usize,
    entry: usize,
    /// Where the flags are after the addresses and links, `IPT_F_GOTO`, and where an IP header has the source and destination.
    flags: usize,
    goto: u8,
    places: [u32; 2],
}

const IPV4: Layout = Layout {
    family: 2,
    level: libc::SOL_IP,
    names: "/proc/thread-self/net/ip_tables_names",
    address: 4,
    ip: 84,
    entry: 112,
    flags: 66,
    goto: 2,
    places: [12, 16],
};
const IPV6: Layout = Layout {
    family: 10,
    level: libc::SOL_IPV6,
    names: "/proc/thread-self/net/ip6_tables_names",
    address: 16,
    ip: 136,
    entry: 168,
    flags: 67,
    goto: 4,
    places: [8, 24],
};

/// The rules of the calling thread's network namespace. A table that is not there is not made by looking.
///
/// # Errors
/// When the kernel does not give a table's rules, or gives what is none.
pub fn read() -> io::Result<Ruleset> {
    let mut ruleset = Ruleset::default();
    for layout in [IPV4, IPV6] {
        for name in fs::read_to_string(layout.names).unwrap_or_default().lines() {
            let (info, entries) = table(layout, name)?;
            let chains = chains(layout, name, &info, &entries)
                .ok_or_else(|| io::Error::other(format!("the table {name} of iptables-legacy cannot be read")))?;
            ruleset.bases.extend(chains.iter().filter(|chain| chain.name == "FORWARD").cloned());
            ruleset.chains.extend(chains);
        }
    }
    Ok(ruleset)
}

/// What the kernel says of a table: its description and its entries.
fn table(layout: Layout, name: &str) -> io::Result<(Vec<u8>, Vec<u8>)> {
    let socket = match layout.family {
        2 => UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)),
        _ => UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)),
    }?;
    // Somebody may change it in between: the length no longer fits then.
    for _ in 0..10 {
        let mut info = request(name, INFO);
        option(&socket, layout.level, GET_INFO, &mut info)?;
        let size = u32_at(&info, INFO - 4).unwrap_or_default();
        let mut entries = request(name, ENTRIES + size as usize);
        entries[TABLE_NAME..TABLE_NAME + 4].copy_from_slice(&size.to_ne_bytes());
        match option(&socket, layout.level, GET_ENTRIES, &mut entries) {
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => {}
            result => return result.map(|()| (info, entries.split_off(ENTRIES))),
        }
    }
    Err(io::Error::from(io::ErrorKind::ResourceBusy))
}

fn request(name: &str, length: usize) -> Vec<u8> {
    let mut request = vec![0; length];
    let name = &name.as_bytes()[..name.len().min(TABLE_NAME - 1)];
    request[..name.len()].copy_from_slice(name);
    request
}

#[expect(unsafe_code, reason = "neither std nor nix has options that they do not know by name")]
fn option(socket: &UdpSocket, level: i32, name: i32, value: &mut [u8]) -> io::Result<()> {
    let mut length = libc::socklen_t::try_from(value.len()).map_err(io::Error::other)?;
    match unsafe { libc::getsockopt(socket.as_raw_fd(), level, name, value.as_mut_ptr().cast(), &raw mut length) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A table's chains; `None` if this is no table.
fn chains(layout: Layout, name: &str, info: &[u8], entries: &[u8]) -> Option<Vec<Chain>> {
    let table = Table { family: layout.family, name: format!("{name} (iptables-legacy)") };
    let valid = u32_at(info, TABLE_NAME)?;
    let mut names: BTreeMap<usize, String> = BTreeMap::new();
    for hook in (0..HOOKS).filter(|hook| valid & 1 << hook != 0) {
        let offset = u32_at(info, TABLE_NAME + 4 + 4 * hook)? as usize;
        names.insert(offset, if hook == FORWARD { "FORWARD".to_owned() } else { format!("hook {hook}") });
    }
    let all = split(layout, entries)?;
    for (offset, entry) in &all {
        // A chain of its own begins after an entry that has its name.
        if let ("ERROR", data) = extension(entry, target(layout, entry)?)? {
            names.insert(offset + entry.len(), text(data)?.to_owned());
        }
    }
    let mut chains: Vec<Chain> = vec![];
    for (offset, entry) in &all {
        if let Some(name) = names.get(offset) {
            chains.push(Chain { table: table.clone(), name: name.clone(), drops: false, rules: vec![] });
        }
        let rule = terms(layout, entry, offset + entry.len(), &names)?;
        // A base chain's policy is its last rule.
        chains.last_mut()?.rules.push(rule);
    }
    Some(chains)
}

/// The entries, with where each begins.
fn split(layout: Layout, entries: &[u8]) -> Option<Vec<(usize, &[u8])>> {
    let (mut all, mut offset) = (vec![], 0);
    while offset < entries.len() {
        let length = usize::from(u16_at(entries, offset + layout.ip + 6)?);
        if length < layout.entry {
            return None;
        }
        all.push((offset, entries.get(offset..offset + length)?));
        offset += length;
    }
    Some(all)
}

/// Where an entry's target is.
fn target(layout: Layout, entry: &[u8]) -> Option<usize> {
    u16_at(entry, layout.ip + 4).map(usize::from)
}

/// That what the mask leaves of a field is the value, or is not; nothing where the mask is empty.
fn masked(field: Field, mask: &[u8], equal: bool, value: Vec<u8>) -> Vec<Term> {
    if mask.iter().all(|byte| *byte == 0) {
        return vec![];
    }
    vec![
        Term::Load { register: 1, field },
        Term::Bits { from: 1, to: 1, mask: mask.to_vec(), xor: vec![0; mask.len()] },
        Term::Compare { register: 1, equal, value },
    ]
}

/// What an entry says. `end` is where the next one begins.
fn terms(layout: Layout, entry: &[u8], end: usize, names: &BTreeMap<usize, String>) -> Option<Vec<Term>> {
    let size = layout.address;
    let at = |index: usize, length: usize| entry.get(index..index + length);
    // Source, destination and their masks; names of the links and their masks; protocol and flags.
    let links = 4 * size;
    let (flags, inverted) = (*entry.get(links + layout.flags)?, *entry.get(links + layout.flags + 1)?);
    let mut terms = vec![];
    for (side, place) in layout.places.into_iter().enumerate() {
        let (address, mask) = (at(side * size, size)?, at((2 + side) * size, size)?);
        let field = Field::Header { offset: place, length: u32::try_from(size).ok()? };
        terms.extend(masked(field, mask, inverted & 8 << side == 0, address.to_vec()));
    }
    for (side, field) in [Field::InName, Field::OutName].into_iter().enumerate() {
        let (name, mask) = (at(links + side * 16, 16)?, at(links + 32 + side * 16, 16)?);
        // Of a name for all that begin like it, the sign for that comes after the mask.
        let name = name.iter().zip(mask).map(|(name, mask)| name & mask).collect();
        terms.extend(masked(field, mask, inverted & 1 << side == 0, name));
    }
    let other = flags & !layout.goto != 0 || at(links + 64, 2)?.iter().any(|byte| *byte != 0);
    terms.extend(other.then_some(Term::Undecided));
    let (mut offset, target) = (layout.entry, target(layout, entry)?);
    while offset < target {
        let (name, data) = extension(entry, offset)?;
        terms.extend(match name {
            "comment" => None,
            "devgroup" => Some(devgroup(data).unwrap_or(Term::Undecided)),
            _ => Some(Term::Undecided),
        });
        offset += usize::from(u16_at(entry, offset)?).max(EXTENSION);
    }
    let (name, data) = extension(entry, target)?;
    terms.extend(match name {
        "" => verdict(u32_at(data, 0)?.cast_signed(), flags & layout.goto != 0, end, names)?,
        "REJECT" => Some(Term::Verdict(Verdict::Drop)),
        _ => None,
    });
    Some(terms)
}

/// The name and the data of a match or target.
fn extension(entry: &[u8], offset: usize) -> Option<(&str, &[u8])> {
    let length = usize::from(u16_at(entry, offset)?);
    let extension = entry.get(offset..offset + length)?;
    Some((text(extension.get(2..EXTENSION - 1)?)?, extension.get(EXTENSION..)?))
}

/// The verdict of a standard target: `-NF_DROP - 1`, `-NF_ACCEPT - 1`, `XT_RETURN`, or where a chain begins; none for the next
/// entry. The outer `None` is for a place where no chain begins.
#[expect(clippy::option_option, reason = "a rule without a verdict is not one that cannot be read")]
fn verdict(value: i32, goto: bool, end: usize, names: &BTreeMap<usize, String>) -> Option<Option<Term>> {
    let verdict = match value {
        -1 => Verdict::Drop,
        -2 => Verdict::Accept,
        -5 => Verdict::Return,
        value => match usize::try_from(value) {
            Err(_) => return Some(None),
            Ok(offset) if offset == end && !names.contains_key(&offset) => return Some(None),
            Ok(offset) if goto => Verdict::Goto(names.get(&offset)?.clone()),
            Ok(offset) => Verdict::Jump(names.get(&offset)?.clone()),
        },
    };
    Some(Some(Term::Verdict(verdict)))
}

fn text(bytes: &[u8]) -> Option<&str> {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    std::str::from_utf8(&bytes[..end]).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An entry without conditions and with one target.
    fn entry(layout: Layout, name: &str, data: &[u8]) -> Vec<u8> {
        let target = EXTENSION + data.len();
        let mut entry = vec![0; layout.entry + target];
        let number = |value: usize| u16::try_from(value).unwrap().to_ne_bytes();
        let length = entry.len();
        entry[layout.ip + 4..layout.ip + 6].copy_from_slice(&number(layout.entry));
        entry[layout.ip + 6..layout.ip + 8].copy_from_slice(&number(length));
        let extension = &mut entry[layout.entry..];
        extension[..2].copy_from_slice(&number(target));
        extension[2..2 + name.len()].copy_from_slice(name.as_bytes());
        extension[EXTENSION..].copy_from_slice(data);
        entry
    }

    /// A table that only forwards, and drops.
    fn drops(layout: Layout) -> (Vec<u8>, Vec<u8>) {
        let mut info = request("filter", INFO);
        info[TABLE_NAME..TABLE_NAME + 4].copy_from_slice(&(1u32 << FORWARD).to_ne_bytes());
        let policy = entry(layout, "", &(-1i32).to_ne_bytes());
        (info, [policy, entry(layout, "ERROR", b"ERROR\0\0\0")].concat())
    }

    #[test]
    fn a_chains_policy_is_its_last_rule() {
        for layout in [IPV4, IPV6] {
            let (info, entries) = drops(layout);
            let chains = chains(layout, "filter", &info, &entries).unwrap();
            let [chain] = chains.as_slice() else { panic!("{chains:?}") };
            assert_eq!(chain.name, "FORWARD");
            assert!(matches!(chain.rules[0].as_slice(), [Term::Verdict(Verdict::Drop)]), "{chain:?}");
        }
    }

    #[test]
    fn what_is_cut_off_or_jumps_to_nowhere_is_no_table() {
        let (info, mut entries) = drops(IPV4);
        let first = usize::from(u16_at(&entries, IPV4.ip + 6).unwrap());
        for length in (1..entries.len()).filter(|length| *length != first) {
            assert!(chains(IPV4, "filter", &info, &entries[..length]).is_none(), "{length}");
        }
        assert!(chains(IPV4, "filter", &info[..40], &entries).is_none());
        entries[IPV4.entry + EXTENSION..][..4].copy_from_slice(&8i32.to_ne_bytes());
        assert!(chains(IPV4, "filter", &info, &entries).is_none());
    }
}
