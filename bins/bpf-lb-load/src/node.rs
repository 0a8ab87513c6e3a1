//! The node: its addresses, and the ports of it that lead to Services.

use std::net::IpAddr;

use bpf_lb_abi::{Word, node_port_bit};

use crate::{
    family::{Family as _, mapped_words, number},
    kernel::Kernel,
};

impl Kernel {
    /// The addresses on which node ports answer.
    pub fn node_addresses(&self) -> Vec<IpAddr> {
        let Some(config) = self.config() else { return Vec::new() };
        let count = config.node_address_count.load() as usize;
        let address = |words: &[Word; 4]| words.each_ref().map(Word::load).to_ip().to_canonical();
        config.node_addresses.iter().take(count).map(address).collect()
    }

    /// Sets the addresses on which node ports answer, for the services that are set from now on.
    pub fn set_node_addresses(&self, addresses: &[IpAddr]) {
        let Some(config) = self.config() else { return };
        for (place, address) in config.node_addresses.iter().zip(addresses) {
            for (place, word) in place.iter().zip(mapped_words(*address)) {
                place.store(word);
            }
        }
        config.node_address_count.store(u32::try_from(addresses.len()).unwrap_or_default());
    }

    pub(crate) fn write_node_ports(&self) {
        let mut words = vec![0; self.node_ports.capacity() as usize];
        for service in self.services.values() {
            if let Some(port) = service.spec.node_port {
                let (word, bit) = node_port_bit(port, number(service.spec.protocol));
                if let Some(word) = words.get_mut(word as usize) {
                    *word |= bit;
                }
            }
        }
        for (index, value) in (0..).zip(words) {
            if let Some(word) = self.node_ports.get(index) {
                word.store(value);
            }
        }
    }
}
