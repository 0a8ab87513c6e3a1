//! The pod's network as it is.

use std::{
    collections::{BTreeSet, HashSet},
    io,
    net::IpAddr,
};

use common::{
    names::POD_VETH,
    netlink::{Link, Netlink, RouteFilter, RuleEntry, is_link_local},
    object::{MAIN_TABLE, Route},
};
use ipnet::IpNet;

/// What a pod has.
#[derive(Clone, Debug, Default)]
pub struct Pod {
    /// Its links.
    pub links: Vec<Link>,
    /// The addresses of global scope, with the index of the link that each is on.
    pub addresses: Vec<(u32, IpNet)>,
    /// The unicast routes of all tables.
    pub routes: Vec<Route>,
    /// The rules, whoever made them.
    pub rules: Vec<RuleEntry>,
    /// The tables that have a route that is not ours.
    pub foreign_tables: BTreeSet<u32>,
}

impl Pod {
    /// Reads the links and addresses.
    ///
    /// # Errors
    /// What the kernel says.
    pub async fn read(netlink: &Netlink) -> io::Result<Self> {
        Ok(Self { links: netlink.links().await?, addresses: netlink.addresses().await?, ..Self::default() })
    }

    /// Reads the rules, and which tables others use.
    ///
    /// # Errors
    /// What the kernel says.
    pub async fn survey(&mut self, netlink: &Netlink) -> io::Result<()> {
        self.rules = netlink.rules().await?;
        self.foreign_tables = netlink.foreign_tables().await?;
        Ok(())
    }

    /// Reads the rest, which only a pod with several interfaces needs.
    ///
    /// # Errors
    /// What the kernel says.
    pub async fn complete(&mut self, netlink: &Netlink) -> io::Result<()> {
        self.routes = netlink.routes(RouteFilter::default()).await?;
        self.survey(netlink).await
    }

    /// Whether a table is somebody else's: it has a route that is not ours, or a rule that is not ours looks it up.
    pub fn is_foreign_table(&self, table: u32) -> bool {
        self.foreign_tables.contains(&table) || self.rules.iter().any(|entry| !entry.ours && entry.rule.table == table)
    }

    /// The link with this name.
    pub fn link(&self, name: &str) -> Option<&Link> {
        self.links.iter().find(|link| link.name == name)
    }

    /// The names of the pod's interfaces: of all links but the loopback and ours.
    pub fn interfaces(&self) -> Vec<&str> {
        self.links.iter().map(|link| link.name.as_str()).filter(|name| !["lo", POD_VETH].contains(name)).collect()
    }

    /// The addresses of a link that a packet can have as its source anywhere, each once, the best source first.
    pub fn addresses_of(&self, name: &str) -> Vec<IpNet> {
        let index = self.link(name).map(|link| link.index);
        let mut seen = HashSet::new();
        let of_link = self.addresses.iter().filter(|(on, net)| Some(*on) == index && !is_link_local(net.addr()));
        of_link.map(|(_, net)| *net).filter(|net| seen.insert(net.addr())).collect()
    }

    /// The routes of the main table, without those of routing daemons.
    pub fn main_routes(&self) -> impl Iterator<Item = &Route> {
        self.routes.iter().filter(|route| route.table == MAIN_TABLE && !route.is_daemons())
    }

    /// The next hops of a link's default routes.
    pub fn gateways_of(&self, name: &str) -> Vec<IpAddr> {
        let default = |route: &&Route| route.dev == name && route.destination.prefix_len() == 0;
        self.routes.iter().filter(default).filter_map(|route| route.gateway).collect()
    }
}
