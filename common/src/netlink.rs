//! rtnetlink, one socket per network namespace: requests, dumps that retry, and messages to and from [`Object`]s.
//!
//! [`Object`]: crate::object::Object

mod entry;
mod message;
mod socket;

use std::{
    cell::RefCell,
    collections::{BTreeSet, HashMap, HashSet, hash_map::Entry},
    io,
    net::IpAddr,
};

use futures_util::StreamExt;
use ipnet::IpNet;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST,
    NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::{
    RouteNetlinkMessage,
    address::AddressMessage,
    link::{LinkAttribute, LinkExtentMask, LinkFlags, LinkMessage},
    neighbour::{NeighbourAttribute, NeighbourMessage},
    route::{RouteAttribute, RouteFlags, RouteMessage, RouteScope},
    rule::RuleMessage,
};
use netlink_sys::AsyncSocket as _;
use nix::libc;

pub use self::{
    entry::{AddressEntry, Detection, Link, RuleEntry},
    message::RouteFilter,
};
use self::{
    message::{
        Hop, UNASSIGNED_NSID, address_family, address_message, foreign_table, is_route_of, local_address,
        neighbour_message, no_link_local, nsid_message, parse_address, parse_link, parse_neighbour, parse_nsid,
        parse_rule, route_hops, route_message, route_query, rule_message, veth_message,
    },
    socket::Answered,
};
use crate::{
    mac::Mac,
    netns::NetnsFile,
    object::{Address, Family, Neighbour, PROTOCOL, Route, Rule, Veth},
};

const DUMP_ATTEMPTS: usize = 20;

/// An rtnetlink socket. It stays in the namespace in which it was opened.
#[derive(Debug)]
pub struct Netlink {
    handle: rtnetlink::Handle,
    /// Of the links that were named: a plan names the same few again and again, and each question waits for the lock of all
    /// links.
    indices: RefCell<HashMap<String, u32>>,
}

impl Netlink {
    /// Opens a socket in the calling thread's network namespace.
    ///
    /// # Errors
    /// When the kernel gives no socket. Must be called within a tokio runtime.
    pub fn open() -> io::Result<Self> {
        let (mut connection, handle, _) = rtnetlink::new_connection_with_socket::<Answered>()?;
        connection.socket_mut().socket_mut().set_netlink_get_strict_chk(true)?;
        connection.set_forward_done(true);
        tokio::spawn(connection);
        Ok(Self { handle, indices: RefCell::default() })
    }

    /// Opens a socket in another network namespace.
    ///
    /// # Errors
    /// When the namespace cannot be entered or the kernel gives no socket.
    pub fn open_in(netns: &NetnsFile) -> io::Result<Self> {
        let runtime = tokio::runtime::Handle::current();
        netns.run(|| {
            let _guard = runtime.enter();
            Self::open()
        })?
    }

    /// What `parse` makes of the answers as they come, for there may be a great many; and whether they are of a dump that was interrupted.
    #[expect(clippy::disallowed_methods, reason = "the one place where requests go out")]
    async fn exchange<T, P: IntoIterator<Item = T>>(
        &self,
        message: RouteNetlinkMessage,
        flags: u16,
        parse: impl Fn(RouteNetlinkMessage) -> P,
    ) -> io::Result<(Vec<T>, bool)> {
        let mut request = NetlinkMessage::from(message);
        request.header.flags = NLM_F_REQUEST | flags;
        let mut replies = self.handle.clone().request(request).map_err(io::Error::other)?;
        let (mut parsed, mut interrupted) = (Vec::new(), false);
        while let Some(reply) = replies.next().await {
            interrupted |= reply.header.flags & NLM_F_DUMP_INTR != 0;
            match reply.payload {
                NetlinkPayload::InnerMessage(message) => parsed.extend(parse(message)),
                NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
                // The end of a dump says what was wrong with it (`netlink_dump_done`).
                NetlinkPayload::Done(done) if done.code < 0 => return Err(io::Error::from_raw_os_error(-done.code)),
                _ => {}
            }
        }
        Ok((parsed, interrupted))
    }

    async fn act(&self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.exchange(message, NLM_F_ACK | flags, |_| None::<()>).await.map(|_| ())
    }

    async fn dump<T, P: IntoIterator<Item = T>>(
        &self,
        message: RouteNetlinkMessage,
        parse: impl Fn(RouteNetlinkMessage) -> P,
    ) -> io::Result<Vec<T>> {
        for _ in 0..DUMP_ATTEMPTS {
            let (parsed, interrupted) = self.exchange(message.clone(), NLM_F_DUMP, &parse).await?;
            if !interrupted {
                return Ok(parsed);
            }
        }
        Err(io::Error::new(io::ErrorKind::Interrupted, "the kernel's table changed during every attempt to read it"))
    }

    /// The link with this name.
    ///
    /// # Errors
    /// Any but that there is none.
    pub async fn link(&self, name: &str) -> io::Result<Option<Link>> {
        self.get_link(named(name)).await
    }

    /// The link with this index.
    ///
    /// # Errors
    /// Any but that there is none.
    pub async fn link_by_index(&self, index: u32) -> io::Result<Option<Link>> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        self.get_link(message).await
    }

    async fn get_link(&self, message: LinkMessage) -> io::Result<Option<Link>> {
        match self.exchange(link_query(message), 0, parse_link).await {
            Ok((links, _)) => Ok(links.into_iter().next()),
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// All links.
    ///
    /// # Errors
    /// What the kernel says.
    pub async fn links(&self) -> io::Result<Vec<Link>> {
        self.dump(link_query(LinkMessage::default()), parse_link).await
    }

    /// The number by which this socket's namespace knows another (`NETNSA_NSID`), which it is given if it has none.
    ///
    /// # Errors
    /// What the kernel says.
    pub async fn nsid(&self, netns: &NetnsFile) -> io::Result<i32> {
        let known = |answers: Vec<i32>| {
            answers.into_iter().next().ok_or_else(|| io::Error::other("the kernel gives no number"))
        };
        let query = || RouteNetlinkMessage::GetNsId(nsid_message(netns));
        match known(self.exchange(query(), 0, parse_nsid).await?.0)? {
            UNASSIGNED_NSID => {
                let given = self.act(RouteNetlinkMessage::NewNsId(nsid_message(netns)), 0).await;
                // Somebody else may have been faster.
                given
                    .or_else(|error| if error.kind() == io::ErrorKind::AlreadyExists { Ok(()) } else { Err(error) })?;
                known(self.exchange(query(), 0, parse_nsid).await?.0)
            }
            nsid => Ok(nsid),
        }
    }

    /// The ports of a bridge.
    ///
    /// # Errors
    /// What the kernel says.
    pub async fn ports(&self, bridge: u32) -> io::Result<Vec<Link>> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::Controller(bridge));
        self.dump(link_query(message), |message| parse_link(message).filter(|link| link.controller == Some(bridge)))
            .await
    }

    async fn index(&self, name: &str) -> io::Result<u32> {
        let known = self.indices.borrow().get(name).copied();
        if let Some(index) = known {
            return Ok(index);
        }
        let none = || io::Error::new(io::ErrorKind::NotFound, format!("there is no link {name}"));
        let index = self.link(name).await?.ok_or_else(none)?.index;
        self.indices.borrow_mut().insert(name.to_owned(), index);
        Ok(index)
    }

    /// The addresses of global scope and IPv4 link-local ones; those that are no first choice as a source (secondary,
    /// temporary, deprecated) last, and those that another host has not at all.
    ///
    /// # Errors
    /// What the kernel says.
    pub async fn addresses(&self) -> io::Result<Vec<AddressEntry>> {
        let mut addresses = self.detected_addresses().await?;
        addresses.retain(|address| address.detection != Detection::Failed);
        Ok(addresses)
    }

    /// The same with those that another host has.
    ///
    /// # Errors
    /// What the kernel says.
    pub async fn detected_addresses(&self) -> io::Result<Vec<AddressEntry>> {
        let query = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        let mut addresses = self.dump(query, parse_address).await?;
        addresses.sort_by_key(|(second_choice, _)| *second_choice);
        Ok(addresses.into_iter().map(|(_, address)| address).collect())
    }

    /// All addresses of a link, of whatever scope.
    ///
    /// # Errors
    /// What the kernel says.
    pub async fn addresses_of(&self, link: &Link) -> io::Result<Vec<IpNet>> {
        let mut query = AddressMessage::default();
        query.header.index = link.index;
        let own = |message| match message {
            RouteNetlinkMessage::NewAddress(message) if message.header.index == link.index => local_address(&message),
            _ => None,
        };
        self.dump(RouteNetlinkMessage::GetAddress(query), own).await
    }

    /// The permanent neighbours on a link.
    ///
    /// # Errors
    /// What the kernel says.
    pub async fn neighbours(&self, link: &Link) -> io::Result<Vec<Neighbour>> {
        let mut message = NeighbourMessage::default();
        message.attributes.push(NeighbourAttribute::IfIndex(link.index));
        self.dump(RouteNetlinkMessage::GetNeighbour(message), |message| parse_neighbour(message, &link.name)).await
    }

    /// The routes that pass the filter, unicast ones unless it asks for others too, of both families, multipath ones as one
    /// route per next hop.
    ///
    /// # Errors
    /// What the kernel says.
    pub async fn routes(&self, filter: RouteFilter) -> io::Result<Vec<Route>> {
        self.routes_where(filter, |_| true).await
    }

    /// The same, of those of them that `passes`, which does not see the link. What does not pass is not kept: a pod can have a great many.
    ///
    /// # Errors
    /// What the kernel says.
    pub async fn routes_where(&self, filter: RouteFilter, passes: impl Fn(&Route) -> bool) -> io::Result<Vec<Route>> {
        let mut names = HashMap::new();
        let mut routes = Vec::new();
        for Hop { oif, route } in self.hops(filter, passes).await? {
            if let Entry::Vacant(entry) = names.entry(oif) {
                let link = if oif == 0 { None } else { self.link_by_index(oif).await? };
                entry.insert(link.map(|link| link.name).unwrap_or_default());
            }
            routes.push(Route { dev: names[&oif].clone(), ..route });
        }
        Ok(routes)
    }

    /// The indices of the links by which the unicast routes that pass the filter leave. Unlike [`Netlink::routes`] it asks
    /// for no link.
    ///
    /// # Errors
    /// What the kernel says.
    pub async fn links_of_routes(&self, filter: RouteFilter) -> io::Result<HashSet<u32>> {
        Ok(self.hops(filter, |_| true).await?.into_iter().map(|hop| hop.oif).collect())
    }

    async fn hops(&self, filter: RouteFilter, also: impl Fn(&Route) -> bool) -> io::Result<Vec<Hop>> {
        let passes = |hop: &Hop| {
            filter.oif.is_none_or(|oif| hop.oif == oif)
                && filter.table.is_none_or(|table| hop.route.table == table)
                && (!filter.ours || hop.route.protocol == PROTOCOL)
                && (filter.refusing || hop.route.refusal.is_none())
                && filter.towards.is_none_or(|address| hop.route.destination.contains(&address))
                && also(&hop.route)
        };
        let hops = |message| {
            let mut hops = route_hops(message);
            hops.retain(&passes);
            hops
        };
        self.dump_routes(filter, hops).await
    }

    /// The routes of a route's destination, table and metric.
    ///
    /// # Errors
    /// What the kernel says.
    pub async fn routes_like(&self, route: &Route) -> io::Result<Vec<Route>> {
        let towards = Some(route.destination.addr());
        let filter = RouteFilter { table: Some(route.table), towards, refusing: true, ..RouteFilter::default() };
        self.routes_where(filter, |it| it.destination == route.destination && it.metric == route.metric).await
    }

    /// What `parse` makes of the routes of any type, of both families. The kernel does not apply all of the filter.
    async fn dump_routes<T, P: IntoIterator<Item = T>>(
        &self,
        filter: RouteFilter,
        parse: impl Fn(RouteNetlinkMessage) -> P,
    ) -> io::Result<Vec<T>> {
        let mut parsed = Vec::new();
        for family in Family::ALL {
            if filter.towards.is_some_and(|address| Family::of(address) != family) {
                continue;
            }
            // A kernel without IPv6 answers with the routes of all other families (`rtnl_dump_all`).
            let of_family = |message| is_route_of(&message, family).then(|| parse(message)).into_iter().flatten();
            match self.dump(RouteNetlinkMessage::GetRoute(route_query(family, filter)), of_family).await {
                // There is no such table.
                Err(error) if is_absent(&error) => {}
                routes => parsed.extend(routes?),
            }
        }
        Ok(parsed)
    }

    /// The tables that have a route of any type, local ones and those of the kernel included, that is not ours.
    ///
    /// # Errors
    /// What the kernel says.
    pub async fn foreign_tables(&self) -> io::Result<BTreeSet<u32>> {
        Ok(self.dump_routes(RouteFilter::default(), foreign_table).await?.into_iter().collect())
    }

    /// Whether a table has a route of any type that is not ours.
    ///
    /// # Errors
    /// What the kernel says.
    pub async fn is_foreign_table(&self, table: u32) -> io::Result<bool> {
        let filter = RouteFilter { table: Some(table), ..RouteFilter::default() };
        Ok(self.dump_routes(filter, foreign_table).await?.contains(&table))
    }

    /// The source address of a packet from here to `address` and the name of the link that it leaves by; `None` where
    /// there is no route.
    ///
    /// # Errors
    /// Any but that there is no route.
    pub async fn source_towards(&self, address: IpAddr) -> io::Result<Option<(IpAddr, String)>> {
        let route = self.lookup(address, RouteFlags::empty(), None).await?;
        Ok(route.and_then(|route| Some((route.source?, route.dev))))
    }

    /// The source address of a packet from here to `address` that has to leave by the link `dev`; `None` where no route leads there by it.
    ///
    /// # Errors
    /// Any but that there is no route.
    pub async fn source_by(&self, dev: &str, address: IpAddr) -> io::Result<Option<IpAddr>> {
        let index = match self.index(dev).await {
            Err(error) if is_absent(&error) => return Ok(None),
            index => index?,
        };
        Ok(self.lookup(address, RouteFlags::empty(), Some(index)).await?.and_then(|route| route.source))
    }

    /// The route that a packet from here to `address` takes, as it stands in its table (`RTM_F_FIB_MATCH`,
    /// `RTM_F_LOOKUP_TABLE`); `None` where there is none.
    ///
    /// # Errors
    /// Any but that there is no route.
    pub async fn matching_route(&self, address: IpAddr) -> io::Result<Option<Route>> {
        // IPv6 always names the table, and refuses to be asked for it.
        let table = if address.is_ipv4() { RouteFlags::LookupTable } else { RouteFlags::empty() };
        self.lookup(address, RouteFlags::FibMatch | table, None).await
    }

    async fn lookup(&self, address: IpAddr, flags: RouteFlags, oif: Option<u32>) -> io::Result<Option<Route>> {
        let mut message = RouteMessage::default();
        message.header.address_family = address_family(Family::of(address));
        message.header.destination_prefix_length = if address.is_ipv4() { 32 } else { 128 };
        message.header.flags = flags;
        message.attributes.push(RouteAttribute::Destination(address.into()));
        message.attributes.extend(oif.map(RouteAttribute::Oif));
        let hops = match self.exchange(RouteNetlinkMessage::GetRoute(message), 0, route_hops).await {
            Ok((hops, _)) => hops,
            Err(error) if is_absent(&error) || is_unreachable(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
        // IPv4 answers with an error in its place.
        let hop = hops.into_iter().next().filter(|hop| hop.route.refusal.is_none());
        let Some(Hop { oif, route }) = hop else { return Ok(None) };
        let dev = self.link_by_index(oif).await?.map(|link| link.name).unwrap_or_default();
        Ok(Some(Route { dev, ..route }))
    }

    /// The rules of both families that decide anything.
    ///
    /// # Errors
    /// What the kernel says.
    pub async fn rules(&self) -> io::Result<Vec<RuleEntry>> {
        let mut rules = Vec::new();
        for family in Family::ALL {
            let mut message = RuleMessage::default();
            message.header.family = address_family(family);
            match self.dump(RouteNetlinkMessage::GetRule(message), |message| parse_rule(message, family)).await {
                // A kernel without this family.
                Err(error) if matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EOPNOTSUPP)) => {}
                of_family => rules.extend(of_family?),
            }
        }
        Ok(rules)
    }

    /// Makes a veth pair whose pod end is in `pod`, and brings both ends up. `pod_netlink` is the pod's socket.
    ///
    /// # Errors
    /// What the kernel says. The pair may be left behind half made: deleting its name removes it.
    pub async fn add_veth(&self, veth: &Veth, pod: &NetnsFile, pod_netlink: &Self) -> io::Result<()> {
        self.act(RouteNetlinkMessage::NewLink(veth_message(veth, pod)), NLM_F_CREATE | NLM_F_EXCL).await?;
        self.start_veth(veth, pod_netlink).await
    }

    /// Gives a veth pair that is there the right MAC addresses, MTU and alias, and brings both ends up.
    ///
    /// # Errors
    /// What the kernel says, also when an end is not there.
    pub async fn set_veth(&self, veth: &Veth, pod_netlink: &Self) -> io::Result<()> {
        for (netlink, dev, mac) in [(self, &veth.name, veth.mac), (pod_netlink, &veth.peer, veth.peer_mac)] {
            netlink.set_mac(dev, mac).await?;
            netlink.set_link(dev, vec![LinkAttribute::Mtu(veth.mtu)]).await?;
        }
        self.start_veth(veth, pod_netlink).await
    }

    async fn start_veth(&self, veth: &Veth, pod_netlink: &Self) -> io::Result<()> {
        let ends = [
            (
                self,
                &veth.name,
                vec![LinkAttribute::IfAlias(veth.alias.clone()), LinkAttribute::Group(veth.group), no_link_local()],
            ),
            (pod_netlink, &veth.peer, vec![no_link_local()]),
        ];
        for (netlink, dev, mut attributes) in ends {
            // Without a link-local address of its own the link has no use for duplicate address detection or multicast
            // listener reports, and a node's address list does not grow with its pods. It must be told before it is up.
            match netlink.set_link(dev, attributes.clone()).await {
                // A link without IPv6: the kernel has none, or the link's MTU is less than IPv6 takes.
                Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => {
                    attributes.pop();
                    netlink.set_link(dev, attributes).await?;
                }
                told => told?,
            }
            let mut up = named(dev);
            up.header.flags = LinkFlags::Up;
            up.header.change_mask = LinkFlags::Up;
            netlink.act(RouteNetlinkMessage::SetLink(up), 0).await?;
        }
        Ok(())
    }

    /// Removes a link. Its routes, neighbours and addresses go with it.
    ///
    /// # Errors
    /// What the kernel says, also when there is none.
    pub async fn delete_link(&self, name: &str) -> io::Result<()> {
        self.indices.borrow_mut().clear();
        self.act(RouteNetlinkMessage::DelLink(named(name)), 0).await
    }

    /// Gives a link another MAC address.
    ///
    /// # Errors
    /// What the kernel says.
    pub async fn set_mac(&self, dev: &str, mac: Mac) -> io::Result<()> {
        self.set_link(dev, vec![LinkAttribute::Address(mac.0.to_vec())]).await
    }

    /// Sets a link's transmit queue length, in packets.
    ///
    /// # Errors
    /// What the kernel says.
    pub async fn set_queue_length(&self, dev: &str, packets: u32) -> io::Result<()> {
        self.set_link(dev, vec![LinkAttribute::TxQueueLen(packets)]).await
    }

    async fn set_link(&self, dev: &str, attributes: Vec<LinkAttribute>) -> io::Result<()> {
        let mut message = named(dev);
        message.attributes.extend(attributes);
        self.act(RouteNetlinkMessage::SetLink(message), 0).await
    }

    /// Adds an address to a link, without duplicate address detection.
    ///
    /// # Errors
    /// What the kernel says.
    pub async fn add_address(&self, address: &Address) -> io::Result<()> {
        let message = address_message(address, self.index(&address.dev).await?);
        self.act(RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_EXCL).await
    }

    /// Removes an address from a link.
    ///
    /// # Errors
    /// What the kernel says.
    pub async fn delete_address(&self, address: &Address) -> io::Result<()> {
        let message = address_message(address, self.index(&address.dev).await?);
        self.act(RouteNetlinkMessage::DelAddress(message), 0).await
    }

    /// Adds a permanent neighbour, in place of a learnt one.
    ///
    /// # Errors
    /// What the kernel says.
    pub async fn add_neighbour(&self, neighbour: &Neighbour) -> io::Result<()> {
        let message = neighbour_message(neighbour, self.index(&neighbour.dev).await?);
        self.act(RouteNetlinkMessage::NewNeighbour(message), NLM_F_CREATE | NLM_F_REPLACE).await
    }

    /// Removes a neighbour.
    ///
    /// # Errors
    /// What the kernel says.
    pub async fn delete_neighbour(&self, neighbour: &Neighbour) -> io::Result<()> {
        let message = neighbour_message(neighbour, self.index(&neighbour.dev).await?);
        self.act(RouteNetlinkMessage::DelNeighbour(message), 0).await
    }

    async fn output(&self, route: &Route) -> io::Result<Option<u32>> {
        Ok(if route.refusal.is_some() { None } else { Some(self.index(&route.dev).await?) })
    }

    /// Adds a route. One that is not ours comes back beside another of its destination, as the kernel had it.
    ///
    /// # Errors
    /// What the kernel says.
    pub async fn add_route(&self, route: &Route) -> io::Result<()> {
        if route.protocol != PROTOCOL {
            return self.append_route(route).await;
        }
        self.new_route(route, NLM_F_EXCL).await
    }

    /// Adds a route, also beside another of its destination, table and metric, which still comes first.
    ///
    /// # Errors
    /// What the kernel says.
    pub async fn append_route(&self, route: &Route) -> io::Result<()> {
        self.new_route(route, NLM_F_APPEND).await
    }

    /// Puts a route in the place of the one that there is of its destination, table and metric.
    ///
    /// # Errors
    /// What the kernel says.
    pub async fn replace_route(&self, route: &Route) -> io::Result<()> {
        self.new_route(route, NLM_F_REPLACE).await
    }

    async fn new_route(&self, route: &Route, flag: u16) -> io::Result<()> {
        let message = route_message(route, self.output(route).await?);
        self.act(RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | flag).await
    }

    /// Removes a route.
    ///
    /// # Errors
    /// What the kernel says.
    pub async fn delete_route(&self, route: &Route) -> io::Result<()> {
        let mut message = route_message(route, self.output(route).await?);
        match self.act(RouteNetlinkMessage::DelRoute(message.clone()), 0).await {
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
            done => return done,
        }
        // Of any scope (`fib_table_delete`): others' routes without a next hop need not have ours.
        message.header.scope = RouteScope::NoWhere;
        self.act(RouteNetlinkMessage::DelRoute(message), 0).await
    }

    /// Adds a rule.
    ///
    /// # Errors
    /// What the kernel says.
    pub async fn add_rule(&self, rule: &Rule) -> io::Result<()> {
        self.act(RouteNetlinkMessage::NewRule(rule_message(rule)), NLM_F_CREATE | NLM_F_EXCL).await
    }

    /// Removes a rule.
    ///
    /// # Errors
    /// What the kernel says.
    pub async fn delete_rule(&self, rule: &Rule) -> io::Result<()> {
        self.act(RouteNetlinkMessage::DelRule(rule_message(rule)), 0).await
    }
}

/// A message about the link with this name.
fn named(link: &str) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(link.to_owned()));
    message
}

/// A question for links that leaves out their counters, which are most of an answer.
fn link_query(mut message: LinkMessage) -> RouteNetlinkMessage {
    message.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    RouteNetlinkMessage::GetLink(message)
}

/// Whether the kernel says that an object is not there.
pub fn is_absent(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
        || matches!(error.raw_os_error(), Some(libc::ESRCH | libc::ENODEV | libc::EADDRNOTAVAIL))
}

/// Whether the answer to a lookup is that no packet goes there: there is no route, or one of type unreachable, blackhole
/// (EINVAL) or prohibit (EACCES; `fib_props`, `ip6_rt_type_to_error`).
fn is_unreachable(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NetworkUnreachable | io::ErrorKind::HostUnreachable)
        || matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EACCES))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::harness::block_on;

    #[test]
    fn a_dump_that_the_kernel_refuses_is_an_error_and_no_empty_list() {
        let nobodys = RouteFilter { table: Some(u32::MAX), ..RouteFilter::default() };
        let query = RouteNetlinkMessage::GetRoute(route_query(Family::Ipv4, nobodys));
        let error = block_on(async { Netlink::open().unwrap().dump(query, Some).await }).unwrap().unwrap_err();
        assert!(is_absent(&error), "{error}");
    }
}
