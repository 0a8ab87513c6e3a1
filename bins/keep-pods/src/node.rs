//! What every pod's plan takes from the node: its addresses, and its ways to the pods' networks.

use std::{collections::BTreeSet, net::IpAddr};

use common::{
    failure::{Code, Context, Failure},
    harness,
    netlink::Netlink,
};
use ipnet::IpNet;

/// The node as the plans saw it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    addresses: BTreeSet<(u32, IpNet)>,
    ways: Vec<Option<(IpAddr, String)>>,
}

impl Node {
    /// Looks at it, asking its way to these routers.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn look(gateways: &BTreeSet<IpAddr>) -> Result<Self, Failure> {
        harness::block_on(async {
            let netlink = Netlink::open().context(Code::Io, "cannot open a netlink socket on the node")?;
            let unreadable = "cannot read the node's addresses";
            let addresses = netlink.addresses().await.context(Code::Io, unreadable)?.into_iter().collect();
            let mut ways = vec![];
            for gateway in gateways {
                ways.push(netlink.source_towards(*gateway).await.context(Code::Io, unreadable)?);
            }
            Ok(Self { addresses, ways })
        })?
    }

    /// Whether it is as it was, whoever was asked the way to.
    pub fn has_addresses_of(&self, other: &Self) -> bool {
        self.addresses == other.addresses
    }
}
