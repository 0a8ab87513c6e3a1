//! The pod's network as it is.

use std::{
    collections::{BTreeSet, HashSet},
    io,
    net::IpAddr,
    time::{Duration, Instant},
};

use common::{
    failure::{Code, Context, Failure},
    names::POD_VETH,
    netlink::{AddressEntry, Detection, Link, Netlink, RouteFilter, RuleEntry},
    object::{Family, MAIN_TABLE, PROTOCOL, Route, is_link_local},
};
use ipnet::IpNet;

/// As the CNI library's plugins have it (`SettleAddresses`).
const SETTLE_PATIENCE: Duration = Duration::from_secs(10);
const SETTLE_INTERVAL: Duration = Duration::from_millis(50);

/// What a pod has.
#[derive(Clone, Debug, Default)]
pub struct Pod {
    /// Its links.
    pub links: Vec<Link>,
    /// Its addresses, as [`Netlink::detected_addresses`] has them.
    pub addresses: Vec<AddressEntry>,
    /// The unicast routes of all tables, of routing daemons' those alone that are default ones.
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
        Ok(Self { links: netlink.links().await?, addresses: netlink.detected_addresses().await?, ..Self::default() })
    }

    /// Waits until duplicate address detection is over for the addresses of a link, as the CNI library does for plugins that
    /// set a gateway (`ip.SettleAddresses`), and for as long. Reads nothing where none is under way.
    ///
    /// # Errors
    /// When it is not over in time, or another host has one of the addresses `given`.
    pub async fn settle(&mut self, netlink: &Netlink, link: &Link, given: &[IpAddr]) -> Result<(), Failure> {
        let deadline = Instant::now() + SETTLE_PATIENCE;
        while let Some(address) = self.addresses_in(link, Detection::Underway).first() {
            if Instant::now() > deadline {
                let seconds = SETTLE_PATIENCE.as_secs();
                let msg = format!("{address} on {} is still tentative after {seconds} s", link.name);
                return Err(Failure::new(Code::TryAgainLater, msg)
                    .details("duplicate address detection has not ended: has the interface a carrier?"));
            }
            tokio::time::sleep(SETTLE_INTERVAL).await;
            self.addresses = netlink.detected_addresses().await.context(Code::Io, "cannot read the pod's addresses")?;
        }
        match self.addresses_in(link, Detection::Failed).iter().find(|address| given.contains(address)) {
            Some(address) => {
                let msg = format!("another host has {address}, which {} was given", link.name);
                Err(Failure::new(Code::AddressConflict, msg).details(
                    "duplicate address detection has failed: free the address, or take it out of the IPAM's range",
                ))
            }
            None => Ok(()),
        }
    }

    fn addresses_in(&self, link: &Link, state: Detection) -> Vec<IpAddr> {
        let on_link = |address: &&AddressEntry| address.link == link.index && address.detection == state;
        self.addresses.iter().filter(on_link).map(|address| address.net.addr()).collect()
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
        let counts = |route: &Route| !route.is_daemons() || route.destination.prefix_len() == 0;
        self.routes = netlink.routes_where(RouteFilter::default(), counts).await?;
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
    pub fn global_addresses_of(&self, name: &str) -> Vec<IpNet> {
        let index = self.link(name).map(|link| link.index);
        let mut seen = HashSet::new();
        let of_link = self.addresses.iter().filter(|address| {
            Some(address.link) == index && address.detection == Detection::Over && !is_link_local(address.net.addr())
        });
        of_link.map(|address| address.net).filter(|net| seen.insert(net.addr())).collect()
    }

    /// Takes addresses of a link for none.
    pub fn forget(&mut self, name: &str, nets: &[IpNet]) {
        let index = self.link(name).map(|link| link.index);
        self.addresses.retain(|address| Some(address.link) != index || !nets.contains(&address.net));
    }

    /// The routes of the main table, without those of routing daemons.
    pub fn main_routes(&self) -> impl Iterator<Item = &Route> {
        self.routes.iter().filter(|route| route.table == MAIN_TABLE && !route.is_daemons())
    }

    /// The default route of a link.
    pub fn default_route(&self, name: &str, family: Family) -> Option<&Route> {
        let destination = family.default_route();
        self.routes.iter().find(|route| route.dev == name && route.destination == destination)
    }

    /// The way out by a link whose default route is gone, as by Multus' `default-route` for another interface, as far as it can
    /// be told: by the next hop of its other routes, by the one host that is on the link by a route of its own, or by the
    /// first of the node's addresses on the link, `near`.
    pub fn way_out(&self, name: &str, family: Family, near: &[IpAddr]) -> Option<Route> {
        let of_link = |route: &&Route| route.dev == name && Family::of(route.destination.addr()) == family;
        let routes = || self.routes.iter().filter(of_link).filter(|route| !route.is_daemons());
        let next_hop = || {
            let routed = routes().filter(|route| route.gateway.is_some());
            routed.min_by_key(|route| route.destination.prefix_len()).map(|route| (route.gateway, Some(route)))
        };
        let host = || {
            let own = self.global_addresses_of(name);
            let is_host = |route: &&Route| {
                let destination = route.destination;
                let is_own = own.iter().any(|net| net.addr() == destination.addr());
                destination.prefix_len() == destination.max_prefix_len() && !is_own
            };
            let mut hosts =
                routes().filter(is_host).filter(|route| route.protocol != PROTOCOL && route.gateway.is_none());
            let host = hosts.next().filter(|_| hosts.next().is_none())?;
            Some((Some(host.destination.addr()), Some(host)))
        };
        let of_node = || Some((Some(family.first(near.iter().copied())?), None));
        let (gateway, like) = next_hop().or_else(host).or_else(of_node)?;
        let (onlink, mtu) = like.map_or((false, None), |route| (route.onlink, route.mtu));
        Some(Route { gateway, onlink, mtu, ..Route::new(family.default_route(), name, MAIN_TABLE) })
    }
}
