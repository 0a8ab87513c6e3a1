//! The pod's network as it is.

use std::{io, net::IpAddr};

use common::{
    netlink::{Link, Netlink, RouteFilter},
    object::{Route, Rule},
};
use ipnet::IpNet;

/// What a pod has.
#[derive(Clone, Debug, Default)]
pub struct Pod {
    links: Vec<Link>,
    addresses: Vec<(u32, IpNet)>,
    /// The unicast routes of all tables.
    pub routes: Vec<Route>,
    /// The rules, whoever made them.
    pub rules: Vec<Rule>,
}

impl Pod {
    /// Reads it.
    ///
    /// # Errors
    /// What the kernel says.
    pub async fn read(netlink: &Netlink) -> io::Result<Self> {
        Ok(Self {
            links: netlink.links().await?,
            addresses: netlink.addresses().await?,
            routes: netlink.routes(RouteFilter::default()).await?,
            rules: netlink.rules().await?.into_iter().map(|(rule, _)| rule).collect(),
        })
    }

    /// The link with this name.
    pub fn link(&self, name: &str) -> Option<&Link> {
        self.links.iter().find(|link| link.name == name)
    }

    /// The names of all links but the loopback.
    pub fn interfaces(&self) -> Vec<String> {
        self.links.iter().map(|link| link.name.clone()).filter(|name| name != "lo").collect()
    }

    /// The addresses of global scope on a link.
    pub fn addresses_of(&self, name: &str) -> Vec<IpNet> {
        let index = self.link(name).map(|link| link.index);
        self.addresses.iter().filter(|(on, _)| Some(*on) == index).map(|(_, net)| *net).collect()
    }

    /// The next hops of a link's default routes.
    pub fn gateways_of(&self, name: &str) -> Vec<IpAddr> {
        let default = |route: &&Route| route.dev == name && route.destination.prefix_len() == 0;
        self.routes.iter().filter(default).filter_map(|route| route.gateway).collect()
    }
}
