//! Whether another host has the pod's addresses, and whether its gateways are there: what is asked, and what an answer
//! means. Pure.

use std::net::IpAddr;

use common::{
    document::PodDocument,
    failure::{Code, Failure},
    mac::Mac,
    result::CniResult,
};
use ipnet::IpNet;

use crate::packet::{self, Claim};

/// Who asks: the interface of the CNI call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asker {
    /// Its name.
    pub nic: String,
    /// Its MAC address.
    pub mac: Mac,
    /// All its addresses.
    pub nets: Vec<IpNet>,
    /// The MAC addresses of all the pod's interfaces: on one network with this one, another of them answers for its
    /// addresses too.
    pub own: Vec<Mac>,
}

/// What is not known yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inquiry<'a> {
    asker: &'a Asker,
    addresses: Vec<IpAddr>,
    gateways: Vec<IpAddr>,
}

fn conflict(msg: String) -> Failure {
    Failure::new(Code::AddressConflict, msg)
        .details("give one of the two another address, or set detectIPConflict to false")
}

/// That the node itself, which has the addresses `node`, has one of the pod's. Nobody need be asked: behind a macvlan
/// interface the node would not hear it (`macvlan_queue_xmit`).
///
/// # Errors
/// When it has.
pub fn refuse_the_nodes(document: &PodDocument, node: &[IpAddr]) -> Result<(), Failure> {
    let nic = &document.request.ifname;
    match document.nic_addresses().iter().map(IpNet::addr).find(|address| node.contains(address)) {
        Some(address) => Err(conflict(format!("the node itself has the address {address} of {nic}"))),
        None => Ok(()),
    }
}

impl<'a> Inquiry<'a> {
    /// What the configuration wants to know, one after the other: who asks a gateway from an address takes it from a host that has it.
    pub fn all(document: &PodDocument, asker: &'a Asker) -> Vec<Self> {
        let settings = &document.settings;
        let (mut addresses, mut gateways) = (vec![], vec![]);
        if settings.detect_ip_conflict {
            addresses = document.nic_addresses().iter().map(|net| net.addr()).collect();
        }
        if settings.detect_gateway {
            let result = CniResult::previous(&document.request.config).unwrap_or_default();
            gateways = result.routers_of(&document.request.ifname);
        }
        let of_addresses = Self { asker, addresses, gateways: vec![] };
        let of_gateways = Self { asker, addresses: vec![], gateways };
        [of_addresses, of_gateways].into_iter().filter(|inquiry| !inquiry.is_over()).collect()
    }

    /// The frames to send: for each address, and each gateway that has not answered yet.
    pub fn frames(&self) -> Vec<Vec<u8>> {
        let Asker { mac, nets, .. } = self.asker;
        let probes = self.addresses.iter().map(|address| packet::probe(*mac, *address));
        probes.chain(self.gateways.iter().map(|gateway| packet::question(*mac, nets, *gateway))).collect()
    }

    /// Takes note of what a host says.
    ///
    /// # Errors
    /// When another host has one of the addresses.
    pub fn hear(&mut self, claim: Claim) -> Result<(), Failure> {
        if self.asker.own.contains(&claim.mac) {
            return Ok(());
        }
        if self.addresses.contains(&claim.address) {
            let (Claim { address, mac, .. }, nic) = (claim, &self.asker.nic);
            return Err(conflict(format!("another host has the address {address} of {nic}: its MAC address is {mac}")));
        }
        if !claim.tentative {
            self.gateways.retain(|gateway| *gateway != claim.address);
        }
        Ok(())
    }

    /// Whether nothing is left to wait for. That nobody has an address shows in silence alone.
    pub fn is_over(&self) -> bool {
        self.addresses.is_empty() && self.gateways.is_empty()
    }

    /// The verdict when the time is over.
    ///
    /// # Errors
    /// When a gateway has not answered.
    pub fn verdict(&self) -> Result<(), Failure> {
        if self.gateways.is_empty() {
            return Ok(());
        }
        let list: Vec<_> = self.gateways.iter().map(ToString::to_string).collect();
        let msg = format!("no answer from the gateway of {}: {}", self.asker.nic, list.join(", "));
        Err(Failure::new(Code::GatewayUnreachable, msg)
            .details("see to it that it answers ARP or neighbour solicitations, raise detectOptions, or set detectGateway to false"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asker() -> Asker {
        Asker { nic: "eth0".to_owned(), mac: Mac([2; 6]), nets: vec![], own: vec![Mac([2; 6]), Mac([6; 6])] }
    }

    fn inquiry<'a>(asker: &'a Asker, addresses: &[&str], gateways: &[&str]) -> Inquiry<'a> {
        let parse = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        Inquiry { asker, addresses: parse(addresses), gateways: parse(gateways) }
    }

    fn claim(address: &str, mac: u8, tentative: bool) -> Claim {
        Claim { address: address.parse().unwrap(), mac: Mac([mac; 6]), tentative }
    }

    #[test]
    fn another_host_with_an_address_or_about_to_take_it_is_a_conflict_that_names_its_mac() {
        for tentative in [false, true] {
            let failure = inquiry(&asker(), &["10.0.0.2"], &[]).hear(claim("10.0.0.2", 4, tentative)).unwrap_err();
            assert_eq!(failure.code, Code::AddressConflict as u32);
            assert!(failure.msg.contains("04:04:04:04:04:04"), "{failure}");
        }
    }

    #[test]
    fn what_we_say_ourselves_and_what_others_say_of_other_addresses_is_no_conflict() {
        let asker = asker();
        let mut inquiry = inquiry(&asker, &["10.0.0.2"], &[]);
        assert_eq!(inquiry.hear(claim("10.0.0.2", 2, true)), Ok(()));
        assert_eq!(inquiry.hear(claim("10.0.0.2", 6, false)), Ok(()));
        assert_eq!(inquiry.hear(claim("10.0.0.3", 4, false)), Ok(()));
        assert!(!inquiry.is_over());
        assert_eq!(inquiry.verdict(), Ok(()));
    }

    #[test]
    fn it_is_over_when_all_gateways_have_answered_and_one_that_has_not_is_named() {
        let asker = asker();
        let mut inquiry = inquiry(&asker, &[], &["10.0.0.1", "fd00::1"]);
        inquiry.hear(claim("10.0.0.1", 4, false)).unwrap();
        inquiry.hear(claim("fd00::1", 4, true)).unwrap();
        assert_eq!(inquiry.frames().len(), 1);
        let failure = inquiry.verdict().unwrap_err();
        assert_eq!(failure.code, Code::GatewayUnreachable as u32);
        assert!(failure.msg.ends_with(": fd00::1"), "{failure}");
        inquiry.hear(claim("fd00::1", 4, false)).unwrap();
        assert!(inquiry.is_over());
    }
}
