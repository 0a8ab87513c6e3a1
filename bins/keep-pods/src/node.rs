//! What every pod's plan takes from the node: its addresses, and its ways to the pods' networks.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use common::{
    failure::{Code, Context, Failure},
    harness,
    netlink::Netlink,
};
use ipnet::IpNet;

/// The node as the plans saw it.
#[derive(Clone, Debug, Default)]
pub struct Node {
    addresses: BTreeSet<(u32, IpNet)>,
    ways: BTreeMap<IpAddr, Option<(IpAddr, String)>>,
}

impl Node {
    /// Looks at it, asking its way to these routers.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn look(routers: &BTreeSet<IpAddr>) -> Result<Self, Failure> {
        harness::block_on(async {
            let netlink = Netlink::open().context(Code::Io, "cannot open a netlink socket on the node")?;
            let unreadable = "cannot read the node's addresses";
            let addresses = netlink.addresses().await.context(Code::Io, unreadable)?.into_iter();
            let mut ways = BTreeMap::new();
            for router in routers {
                ways.insert(*router, netlink.source_towards(*router).await.context(Code::Io, unreadable)?);
            }
            Ok(Self { addresses: addresses.map(|address| (address.link, address.net)).collect(), ways })
        })?
    }

    /// Whether what both looked at is the same.
    pub fn agrees(&self, other: &Self) -> bool {
        let is_other = |(router, way)| other.ways.get(router).is_some_and(|other| other != way);
        self.addresses == other.addresses && !self.ways.iter().any(is_other)
    }
}
