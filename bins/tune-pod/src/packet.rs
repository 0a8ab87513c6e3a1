//! What goes over the wire: ARP (RFC 826, RFC 5227) and IPv6 neighbour discovery (RFC 4861, RFC 4862). Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use common::{
    mac::Mac,
    object::{Family, is_link_local},
};
use ipnet::IpNet;
use smoltcp::{
    phy::ChecksumCapabilities,
    wire::{
        ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol, EthernetRepr,
        Icmpv6Message, Icmpv6Packet, Icmpv6Repr, IpProtocol, Ipv6Packet, Ipv6Repr, NdiscNeighborFlags, NdiscRepr,
    },
};

/// Neighbour discovery is only for the link: no router has passed on a packet with this hop limit (RFC 4861, 7.1).
const HOP_LIMIT: u8 = 255;
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// That a host has an address, or is about to take it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The address.
    pub address: IpAddr,
    /// The host's MAC address.
    pub mac: Mac,
    /// Whether it does not use the address yet, but asks as we do.
    pub tentative: bool,
}

/// Asks whether anybody has an address, without saying that we have it: an ARP probe, or a neighbour solicitation as in
/// duplicate address detection.
pub fn probe(mac: Mac, address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => arp(mac, Ipv4Addr::UNSPECIFIED, address),
        IpAddr::V6(address) => solicitation(mac, Ipv6Addr::UNSPECIFIED, address),
    }
}

/// Asks for a gateway, from one of the interface's addresses, `nets`: switches that inspect ARP drop what comes from none, and a
/// router would take it for duplicate address detection. Without one IPv4 asks from none all the same, and IPv6 from the link-local
/// address that belongs to the MAC address.
pub fn question(mac: Mac, nets: &[IpNet], gateway: IpAddr) -> Vec<u8> {
    match (source(nets, gateway), gateway) {
        (Some(IpAddr::V4(source)), IpAddr::V4(gateway)) => arp(mac, source, gateway),
        (Some(IpAddr::V6(source)), IpAddr::V6(gateway)) => solicitation(mac, source, gateway),
        (_, IpAddr::V4(_)) => probe(mac, gateway),
        (_, IpAddr::V6(gateway)) => solicitation(mac, mac.link_local(), gateway),
    }
}

/// Of these addresses the one to ask a gateway from: for IPv6 the link-local one, which no other host can have been given; else one in
/// its subnet; else any of its family.
fn source(nets: &[IpNet], gateway: IpAddr) -> Option<IpAddr> {
    let of_family = nets.iter().filter(|net| Family::same(net.addr(), gateway));
    let is_own = |address: IpAddr| address.is_ipv6() && is_link_local(address);
    of_family.min_by_key(|net| (!is_own(net.addr()), !net.contains(&gateway))).map(IpNet::addr)
}

/// Tells everybody on the link, switches included, which MAC address has an address: a gratuitous ARP request, or an
/// unsolicited neighbour advertisement.
pub fn announcement(mac: Mac, address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => arp(mac, address, address),
        IpAddr::V6(address) => {
            let advertisement = NdiscRepr::NeighborAdvert {
                flags: NdiscNeighborFlags::OVERRIDE,
                target_addr: address,
                lladdr: Some(ethernet(mac).into()),
            };
            discovery(mac, address, ALL_NODES, advertisement)
        }
    }
}

/// Who says in a received frame that it has which address; `None` if nobody does.
pub fn claim(frame: &[u8]) -> Option<Claim> {
    let frame = EthernetFrame::new_checked(frame).ok()?;
    let mac = Mac(frame.src_addr().0);
    match frame.ethertype() {
        EthernetProtocol::Arp => arp_claim(frame.payload()),
        EthernetProtocol::Ipv6 => discovery_claim(mac, frame.payload()),
        _ => None,
    }
}

fn arp_claim(payload: &[u8]) -> Option<Claim> {
    let ArpRepr::EthernetIpv4 { source_hardware_addr, source_protocol_addr, target_protocol_addr, .. } =
        ArpRepr::parse(&ArpPacket::new_checked(payload).ok()?).ok()?
    else {
        return None;
    };
    let tentative = source_protocol_addr.is_unspecified();
    let address = if tentative { target_protocol_addr } else { source_protocol_addr };
    Some(Claim { address: address.into(), mac: Mac(source_hardware_addr.0), tentative })
}

/// The options are not read: the frame's source is as good as the one that they name.
fn discovery_claim(mac: Mac, payload: &[u8]) -> Option<Claim> {
    let packet = Ipv6Packet::new_checked(payload).ok()?;
    if packet.next_header() != IpProtocol::Icmpv6 || packet.hop_limit() != HOP_LIMIT {
        return None;
    }
    let message = Icmpv6Packet::new_checked(packet.payload()).ok()?;
    if !message.verify_checksum(&packet.src_addr(), &packet.dst_addr()) {
        return None;
    }
    let tentative = match message.msg_type() {
        Icmpv6Message::NeighborAdvert => false,
        Icmpv6Message::NeighborSolicit if packet.src_addr().is_unspecified() => true,
        _ => return None,
    };
    Some(Claim { address: message.target_addr().into(), mac, tentative })
}

fn ethernet(mac: Mac) -> EthernetAddress {
    EthernetAddress(mac.0)
}

/// The multicast group of all hosts whose addresses end like this one (RFC 4291, 2.7.1).
fn solicited_node(address: Ipv6Addr) -> Ipv6Addr {
    let [.., g, h] = address.segments();
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | (g & 0xff), h)
}

fn frame(mac: Mac, to: EthernetAddress, ethertype: EthernetProtocol, length: usize) -> EthernetFrame<Vec<u8>> {
    let mut frame = EthernetFrame::new_unchecked(vec![0; EthernetFrame::<&[u8]>::buffer_len(length)]);
    EthernetRepr { src_addr: ethernet(mac), dst_addr: to, ethertype }.emit(&mut frame);
    frame
}

fn arp(mac: Mac, sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let request = ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Request,
        source_hardware_addr: ethernet(mac),
        source_protocol_addr: sender,
        target_hardware_addr: EthernetAddress([0; 6]),
        target_protocol_addr: target,
    };
    let mut frame = frame(mac, EthernetAddress::BROADCAST, EthernetProtocol::Arp, request.buffer_len());
    request.emit(&mut ArpPacket::new_unchecked(frame.payload_mut()));
    frame.into_inner()
}

fn solicitation(mac: Mac, from: Ipv6Addr, target: Ipv6Addr) -> Vec<u8> {
    // RFC 4861, 4.3: without a source address there must be no source link-layer address either.
    let lladdr = (!from.is_unspecified()).then(|| ethernet(mac).into());
    discovery(mac, from, solicited_node(target), NdiscRepr::NeighborSolicit { target_addr: target, lladdr })
}

fn discovery(mac: Mac, from: Ipv6Addr, to: Ipv6Addr, message: NdiscRepr<'_>) -> Vec<u8> {
    let message = Icmpv6Repr::Ndisc(message);
    let header = Ipv6Repr {
        src_addr: from,
        dst_addr: to,
        next_header: IpProtocol::Icmpv6,
        payload_len: message.buffer_len(),
        hop_limit: HOP_LIMIT,
    };
    // RFC 2464, 7: the group's MAC address is 33:33 and its last four bytes.
    let [.., a, b, c, d] = to.octets();
    let group = EthernetAddress([0x33, 0x33, a, b, c, d]);
    let length = header.buffer_len() + message.buffer_len();
    let mut frame = frame(mac, group, EthernetProtocol::Ipv6, length);
    let mut packet = Ipv6Packet::new_unchecked(frame.payload_mut());
    header.emit(&mut packet);
    let checksums = ChecksumCapabilities::default();
    message.emit(&from, &to, &mut Icmpv6Packet::new_unchecked(packet.payload_mut()), &checksums);
    frame.into_inner()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const US: Mac = Mac([2, 0, 0, 0, 0, 1]);

    #[test]
    fn an_arp_probe_is_as_rfc_5227_has_it() {
        let frame = probe(US, "10.6.0.9".parse().unwrap());
        let expected =
            [&[0xff; 6][..], &US.0, &[8, 6], &[0, 1, 8, 0, 6, 4, 0, 1], &US.0, &[0; 4], &[0; 6], &[10, 6, 0, 9]];
        assert_eq!(frame, expected.concat());
    }

    #[test]
    fn an_announcement_claims_the_address_for_our_mac() {
        for address in ["10.6.0.9", "fd00:6::9"] {
            let address = address.parse().unwrap();
            assert_eq!(claim(&announcement(US, address)), Some(Claim { address, mac: US, tentative: false }));
        }
    }

    #[test]
    fn a_probe_of_another_host_is_a_tentative_claim_and_a_question_for_a_gateway_is_none_for_ipv6() {
        for address in ["10.6.0.9", "fd00:6::9"] {
            let address = address.parse().unwrap();
            assert_eq!(claim(&probe(US, address)), Some(Claim { address, mac: US, tentative: true }));
        }
        assert_eq!(claim(&question(US, &[], "fd00:6::1".parse().unwrap())), None);
    }

    #[test]
    fn a_gateway_is_asked_from_an_address_of_the_interface_for_ipv6_the_link_local_one() {
        let nets = ["10.9.0.9/24", "10.6.0.9/16", "fd00:6::9/64", "fe80::7/64"].map(|net| net.parse().unwrap());
        let arp_sender = |nets: &[IpNet], gateway: &str| question(US, nets, gateway.parse().unwrap())[28..32].to_vec();
        assert_eq!(arp_sender(&nets, "10.6.0.1"), [10, 6, 0, 9]);
        assert_eq!(arp_sender(&nets, "10.7.0.1"), [10, 9, 0, 9]);
        assert_eq!(arp_sender(&nets[2..], "10.6.0.1"), [0; 4]);
        let source = |nets: &[IpNet]| {
            let frame = question(US, nets, "fd00:6::1".parse().unwrap());
            Ipv6Packet::new_checked(&frame[14..]).unwrap().src_addr().to_string()
        };
        assert_eq!(source(&nets), "fe80::7");
        assert_eq!(source(&nets[..3]), "fd00:6::9");
        assert_eq!(source(&nets[..2]), "fe80::ff:fe00:1");
    }

    proptest! {
        #[test]
        fn whatever_comes_in_is_read_without_harm(bytes in prop::collection::vec(any::<u8>(), 0..128), kind in 0..3u8) {
            let mut frame = [&[0xff; 6][..], &US.0, match kind { 0 => &[8, 6], 1 => &[0x86, 0xdd], _ => &[8, 0] }].concat();
            frame.extend(bytes);
            let _ = claim(&frame);
        }

        #[test]
        fn a_damaged_answer_is_read_without_harm(at in 0..86usize, byte: u8, cut in 0..86usize) {
            let mut frame = announcement(US, "fd00:6::9".parse().unwrap());
            let at = at.min(frame.len() - 1);
            frame[at] = byte;
            let _ = claim(&frame[..cut.min(frame.len())]);
        }
    }
}
