//! What becomes of a socket that was ended: a program that connected it once and only ever writes to it would not be heard again
//! (`udp_sendmsg`: EDESTADDRREQ), where behind a connection tracker its next datagram goes to another backend. Pure.

use std::net::SocketAddr;

use bpf_lb_load::peers::Flow;
use common::netns::NetnsId;
use service_table::Protocol;

use crate::diag::Found;

/// A socket that is to be connected anew to what it was connected to by its process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Anew {
    /// Its network namespace.
    pub netns: NetnsId,
    /// By which `/proc/PID/fd` names it.
    pub inode: u32,
    /// By which no other socket ever goes.
    pub cookie: u64,
    /// The address, in the socket's own family.
    pub to: SocketAddr,
}

impl Anew {
    /// For a socket of that namespace, as it was `found` before it was ended. Nothing for one of TCP, for one that was not
    /// connected, and for one that was bound to an interface, which it no longer is (`__udp_disconnect`).
    pub fn of(netns: NetnsId, found: &Found, flow: &Flow) -> Option<Self> {
        let was_connected = flow.service.protocol == Protocol::Udp && found.remote.port() != 0;
        let to = match flow.service.address {
            SocketAddr::V4(address) if found.is_ipv6() => (address.ip().to_ipv6_mapped(), address.port()).into(),
            address => address,
        };
        let anew = Self { netns, inode: found.inode, cookie: found.cookie, to };
        (was_connected && found.inode != 0 && found.interface == 0).then_some(anew)
    }
}

#[cfg(test)]
mod tests {
    use bpf_lb_load::spec::Frontend;

    use super::*;
    use crate::diag::parse;

    const NETNS: NetnsId = NetnsId { device: 4, inode: 4026531840 };
    const COOKIE: u64 = 1 << 32 | 2;

    /// What the kernel says of a socket of that family: on this interface, connected to that port.
    fn found(family: i32, interface: u32, port: u16, inode: u32) -> Found {
        let mut message = [0; 72];
        message[0] = family as u8;
        message[6..8].copy_from_slice(&port.to_be_bytes());
        message[40..44].copy_from_slice(&interface.to_ne_bytes());
        message[44..48].copy_from_slice(&2_u32.to_ne_bytes());
        message[48..52].copy_from_slice(&1_u32.to_ne_bytes());
        message[68..72].copy_from_slice(&inode.to_ne_bytes());
        parse(&message).unwrap()
    }

    fn anew(found: &Found, protocol: Protocol, service: &str) -> Option<Anew> {
        let service = Frontend::new(service.parse().unwrap(), protocol);
        Anew::of(NETNS, found, &Flow { service, backend: "10.0.0.1:8080".parse().unwrap() })
    }

    #[test]
    fn a_socket_is_connected_to_what_was_asked_for_in_its_own_family() {
        let to = |family, service| anew(&found(family, 0, 8080, 7), Protocol::Udp, service);
        let wanted = |to: &str| Some(Anew { netns: NETNS, inode: 7, cookie: COOKIE, to: to.parse().unwrap() });
        assert_eq!(to(libc::AF_INET, "10.96.0.1:53"), wanted("10.96.0.1:53"));
        assert_eq!(to(libc::AF_INET6, "[fd02::1]:53"), wanted("[fd02::1]:53"));
        assert_eq!(to(libc::AF_INET6, "10.96.0.1:53"), wanted("[::ffff:10.96.0.1]:53"));
    }

    #[test]
    fn tcp_stays_ended_and_so_does_what_was_not_connected_or_was_bound_to_an_interface() {
        let inet = |interface, port, inode| found(libc::AF_INET, interface, port, inode);
        assert!(anew(&inet(0, 8080, 7), Protocol::Udp, "10.96.0.1:53").is_some());
        assert_eq!(anew(&inet(0, 8080, 7), Protocol::Tcp, "10.96.0.1:53"), None);
        for other in [inet(0, 0, 7), inet(3, 8080, 7), inet(0, 8080, 0)] {
            assert_eq!(anew(&other, Protocol::Udp, "10.96.0.1:53"), None);
        }
    }
}
