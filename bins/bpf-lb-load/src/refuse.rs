//! Ports that no Service has, on addresses that are some Service's ClusterIP.

use std::{collections::HashSet, net::IpAddr};

use bpf_lb_abi::{Kind, Prefix, Word};
use ipnet::IpNet;
use service_table::canonical;

use crate::{
    family::{Family as _, mapped_words},
    kernel::{Kernel, tables},
    maps::MapsError,
    room::by_family,
    spec::Frontend,
};

impl Kernel {
    /// The Service CIDRs in which they are refused.
    pub fn refuse(&self) -> Vec<IpNet> {
        let Some(config) = self.config() else { return Vec::new() };
        config.refuse.iter().take(config.refuse_count.load() as usize).filter_map(cidr).collect()
    }

    /// Sets these; no more than [`bpf_lb_abi::REFUSE`].
    pub fn set_refuse(&mut self, cidrs: &[IpNet]) {
        if let Some(config) = self.config() {
            for (place, cidr) in config.refuse.iter().zip(cidrs) {
                let (address, mask) = words(cidr);
                for (place, word) in place.address.iter().zip(address).chain(place.mask.iter().zip(mask)) {
                    place.store(word);
                }
            }
            config.refuse_count.store(u32::try_from(cidrs.len()).unwrap_or_default());
        }
        self.frontends_changed = true;
    }

    /// The ClusterIPs among these frontends that are in those CIDRs.
    pub(crate) fn refusing<'a>(&self, frontends: impl Iterator<Item = (&'a Frontend, &'a Kind)>) -> HashSet<IpAddr> {
        let cidrs = self.refuse();
        let addresses =
            frontends.filter(|(_, kind)| **kind == Kind::ClusterIp).map(|(frontend, _)| frontend.address.ip());
        addresses.filter(|address| cidrs.iter().any(|cidr| cidr.contains(address))).collect()
    }

    /// Those of the addresses that have no entry for any port yet.
    pub(crate) fn new_wildcards(&self, addresses: &HashSet<IpAddr>) -> impl Iterator<Item = IpAddr> {
        addresses.iter().copied().filter(|address| !self.wildcards.contains_key(address))
    }

    /// Gives each ClusterIP in these CIDRs but the `spared` an entry for any port, and no other address.
    pub fn write_wildcards(&mut self, spared: HashSet<IpAddr>) -> Result<(), MapsError> {
        if !std::mem::take(&mut self.frontends_changed) && self.spared == spared {
            return Ok(());
        }
        self.spared = spared;
        let wanted = self.refusing(self.services.values().flat_map(|service| &service.spec.frontends));
        let wanted = &wanted - &self.spared;
        let gone: Vec<_> = self.wildcards.extract_if(|address, _| !wanted.contains(address)).collect();
        for (address, cell) in gone {
            tables!(self, address.is_ipv6(), tables => tables.remove(cell));
        }
        let new: Vec<_> = self.new_wildcards(&wanted).collect();
        self.spread(by_family(new.iter().copied()))?;
        for address in new {
            // Without room for it, such a port is as one that no frontend has: it is not translated.
            let cell = tables!(self, address.is_ipv6(), tables => tables.insert_wildcard(address));
            self.wildcards.extend(cell.map(|cell| (address, cell)));
        }
        Ok(())
    }
}

fn words(cidr: &IpNet) -> ([u32; 4], [u32; 4]) {
    let bits = u32::from(cidr.prefix_len()) + if cidr.addr().is_ipv4() { 96 } else { 0 };
    let mask = u128::MAX.checked_shl(128 - bits).unwrap_or(0);
    let mask = std::net::Ipv6Addr::from(mask);
    (mapped_words(cidr.network()), mapped_words(IpAddr::V6(mask)))
}

fn cidr(prefix: &Prefix) -> Option<IpNet> {
    let read = |words: &[Word; 4]| words.each_ref().map(Word::load).to_ip();
    let IpAddr::V6(mask) = read(&prefix.mask) else { return None };
    let bits = u8::try_from(u128::from(mask).leading_ones()).ok()?;
    IpNet::new(read(&prefix.address), bits).ok().map(canonical)
}

#[cfg(test)]
mod tests {
    use service_table::Refuse;

    use super::*;

    #[test]
    fn a_cidr_is_read_as_it_was_written() {
        for text in ["10.96.0.0/12", "10.0.0.0/8", "0.0.0.0/0", "10.96.0.1/32", "fd00::/108", "::/0", "fd00::1/128"] {
            let (address, mask) = words(&text.parse().unwrap());
            let prefix = Prefix { address: address.map(Word::new), mask: mask.map(Word::new) };
            assert_eq!(cidr(&prefix), Some(text.parse().unwrap()));
        }
    }

    #[test]
    fn a_cidr_of_the_table_is_the_same_as_it_is_read_back_however_it_was_written() {
        let texts = r#"["10.96.0.5/12", "::ffff:10.96.0.5/108", "::ffff:10.96.0.5/90", "fd00::1/108"]"#;
        let Refuse(cidrs) = serde_json::from_str(texts).unwrap();
        for wanted in cidrs {
            let (address, mask) = words(&wanted);
            let prefix = Prefix { address: address.map(Word::new), mask: mask.map(Word::new) };
            assert_eq!(cidr(&prefix), Some(wanted));
        }
    }
}
