//! The nodes: their addresses, and the ports of them that lead to Services.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    net::IpAddr,
    path::Path,
};

use aya::maps::{HashMap, MapData, MapError};
use bpf_lb_abi::{NODE_NAME_LEN, Node as Owner};
use service_table::{Node, Nodes};

use crate::{
    family::{Family as _, mapped_words},
    maps::{MapsError, pinned},
    spec::Frontend,
};

const MAP: &str = "nodes";

/// Which node has an address, as the programs know it.
#[derive(Debug)]
pub(crate) struct Addresses(HashMap<MapData, [u32; 4], Owner>);

impl Addresses {
    pub(crate) fn open(folder: &Path) -> Result<Self, MapsError> {
        HashMap::try_from(pinned(folder, MAP)?).map(Self).map_err(failed)
    }

    /// The node port to which an address leads that is no frontend itself, found as the programs find it. `is_per_node` says of
    /// this node's frontend what [`bpf_lb_abi::Entry::is_per_node`] does, or nothing if there is none.
    pub(crate) fn frontend(
        &self,
        asked: &Frontend,
        is_per_node: impl FnOnce(&Frontend) -> Option<bool>,
    ) -> Option<Frontend> {
        let number = self.0.get(&mapped_words(asked.address.ip()), 0).ok()?.number;
        let own = asked.of_node(0);
        let is_own = !is_per_node(&own)? || number == 0;
        Some(if is_own { own } else { asked.of_node(number) })
    }
}

fn failed(source: MapError) -> MapsError {
    MapsError::new(MAP, source)
}

/// On whose addresses node ports answer.
#[derive(Debug)]
pub(crate) struct NodeMap {
    pub(crate) addresses: Addresses,
    owners: BTreeMap<IpAddr, Owner>,
    /// Of the other nodes, by name.
    pub(crate) numbers: BTreeMap<String, u32>,
    /// No number is given to another node while a program may still know it.
    next: u32,
}

impl NodeMap {
    pub(crate) fn open(folder: &Path) -> Result<Self, MapsError> {
        let addresses = Addresses::open(folder)?;
        let owners = addresses.0.iter().map(|entry| entry.map(|(key, owner)| (key.to_ip().to_canonical(), owner)));
        let owners: BTreeMap<IpAddr, Owner> = owners.collect::<Result<_, _>>().map_err(failed)?;
        let others = owners.values().filter(|owner| owner.number != 0);
        let numbers: BTreeMap<_, _> = others.map(|owner| (name(owner), owner.number)).collect();
        let next = numbers.values().max().map_or(1, |last| last + 1);
        Ok(Self { addresses, owners, numbers, next })
    }

    /// The numbers of these nodes: as before, and the next ones for those that are new.
    pub(crate) fn numbers_of(&self, nodes: &[Node]) -> BTreeMap<String, u32> {
        let names: BTreeSet<_> =
            nodes.iter().filter(|node| !node.addresses.is_empty()).map(|node| &node.name).collect();
        let mut next = self.next..;
        let mut number = |name| self.numbers.get(name).copied().or_else(|| next.next());
        names.into_iter().filter_map(|name| Some((name.clone(), number(name)?))).collect()
    }

    /// Forgets what is not in `nodes`, and gives a number to each node that is new.
    pub(crate) fn prepare(&mut self, nodes: &Nodes) -> Result<(), MapsError> {
        self.numbers = self.numbers_of(&nodes.nodes);
        self.next = self.numbers.values().fold(self.next, |next, number| next.max(number + 1));
        let wanted: BTreeSet<_> = all(nodes).map(|(address, _)| address).collect();
        let gone: Vec<_> = self.owners.extract_if(.., |address, _| !wanted.contains(address)).collect();
        for (address, _) in gone {
            self.addresses.0.remove(&mapped_words(address)).map_err(failed)?;
        }
        Ok(())
    }

    /// Lets the addresses be known by which node has them. What several have, the first has. Returns how many found no room.
    pub(crate) fn publish(&mut self, nodes: &Nodes) -> usize {
        let (mut seen, mut left_out) = (HashSet::new(), 0);
        for (address, node) in all(nodes).filter(|(address, _)| seen.insert(*address)) {
            let number = node.map_or(Some(0), |node| self.numbers.get(&node.name).copied());
            let Some(number) = number else { continue };
            let owner = Owner { number, name: node.map_or([0; NODE_NAME_LEN], encode) };
            if self.owners.get(&address) == Some(&owner) {
                continue;
            }
            // A name that was cut would be read back as another node's.
            let has_room = node.is_none_or(|node| node.name.len() <= NODE_NAME_LEN);
            if has_room && self.addresses.0.insert(mapped_words(address), owner, 0).is_ok() {
                self.owners.insert(address, owner);
            } else {
                // It is no longer whose it was, either.
                if self.owners.remove(&address).is_some() {
                    let _goes_with_the_next_that_has_room = self.addresses.0.remove(&mapped_words(address));
                }
                left_out += 1;
            }
        }
        left_out
    }

    /// Whether node ports answer nowhere.
    pub(crate) fn is_empty(&self) -> bool {
        self.owners.is_empty()
    }

    /// As they were given.
    pub(crate) fn nodes(&self) -> Nodes {
        let mut nodes: BTreeMap<String, Vec<IpAddr>> = BTreeMap::new();
        let mut node_addresses = Vec::new();
        for (address, owner) in &self.owners {
            match owner.number {
                0 => node_addresses.push(*address),
                _ => nodes.entry(name(owner)).or_default().push(*address),
            }
        }
        let nodes = nodes.into_iter().map(|(name, addresses)| Node { name, addresses }).collect();
        Nodes { node_addresses, nodes }
    }
}

/// All addresses: this node's, then those of the others.
fn all(nodes: &Nodes) -> impl Iterator<Item = (IpAddr, Option<&Node>)> {
    let own = nodes.node_addresses.iter().map(|address| (address, None));
    let others = nodes.nodes.iter().flat_map(|node| node.addresses.iter().map(move |address| (address, Some(node))));
    own.chain(others).map(|(address, node)| (address.to_canonical(), node))
}

fn encode(node: &Node) -> [u8; NODE_NAME_LEN] {
    let mut name = [0; NODE_NAME_LEN];
    for (place, byte) in name.iter_mut().zip(node.name.bytes()) {
        *place = byte;
    }
    name
}

fn name(owner: &Owner) -> String {
    String::from_utf8_lossy(&owner.name).trim_end_matches('\0').to_owned()
}
