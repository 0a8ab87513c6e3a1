//! Frames out of and into an interface of the calling thread's network namespace (packet(7)).

use std::{
    io::{self, ErrorKind, Read},
    time::{Duration, Instant},
};

use common::{failure::Failure, settings::DetectOptions};
use nix::libc;
use socket2::{Domain, SockAddr, SockAddrStorage, SockFilter, Socket, Type};

use crate::{packet, probe::Inquiry};

/// Longer than any ARP or neighbour discovery packet that is read.
const FRAME: usize = 512;

/// No more frames are in a socket's queue (`net.core.rmem_default` by the least that the kernel charges for a frame).
const QUEUE: usize = 512;

/// What of an interface's traffic is kept (bpf(4), linux/filter.h): ARP, neighbour solicitations and advertisements, of no VLAN but the
/// interface's own. The parent of IPvlan interfaces has all that its node sends and receives. A jump says how many lines it passes over.
const ASKED: [SockFilter; 12] = [
    SockFilter::new(LOAD_WORD, 0, 0, VLAN_TAG),
    SockFilter::new(IF_BITS, 9, 0, 0x0fff),
    SockFilter::new(LOAD_HALF, 0, 0, ETHERTYPE),
    SockFilter::new(IF_EQUAL, 6, 0, libc::ETH_P_ARP as u32),
    SockFilter::new(IF_EQUAL, 0, 6, libc::ETH_P_IPV6 as u32),
    SockFilter::new(LOAD_BYTE, 0, 0, NEXT_HEADER),
    SockFilter::new(IF_EQUAL, 0, 4, libc::IPPROTO_ICMPV6 as u32),
    SockFilter::new(LOAD_BYTE, 0, 0, ICMPV6_TYPE),
    SockFilter::new(IF_EQUAL, 1, 0, SOLICITATION),
    SockFilter::new(IF_EQUAL, 0, 1, ADVERTISEMENT),
    SockFilter::new(RETURN, 0, 0, FRAME as u32),
    SockFilter::new(RETURN, 0, 0, 0),
];
const LOAD_WORD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const LOAD_HALF: u16 = (libc::BPF_LD | libc::BPF_H | libc::BPF_ABS) as u16;
const LOAD_BYTE: u16 = (libc::BPF_LD | libc::BPF_B | libc::BPF_ABS) as u16;
const IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const IF_BITS: u16 = (libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
/// Places in a frame, in bytes; that of the VLAN's tag is the kernel's name for what it has taken out of the frame.
const VLAN_TAG: u32 = (libc::SKF_AD_OFF + libc::SKF_AD_VLAN_TAG) as u32;
const ETHERTYPE: u32 = 12;
const NEXT_HEADER: u32 = 20;
const ICMPV6_TYPE: u32 = 54;
/// Types of ICMPv6 (RFC 4861).
const SOLICITATION: u32 = 135;
const ADVERTISEMENT: u32 = 136;

/// A socket for one interface.
#[derive(Debug)]
pub struct Wire(Socket);

impl Wire {
    /// Opens the interface with an index.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn open(index: u32) -> io::Result<Self> {
        // Until it is bound it receives nothing.
        let socket = Socket::new(Domain::PACKET, Type::RAW, None)?;
        socket.attach_filter(&ASKED)?;
        // Network byte order, as the kernel wants it.
        let protocol = (libc::ETH_P_ALL as u16).to_be();
        socket.bind(&link_address(index, protocol)?)?;
        Ok(Self(socket))
    }

    /// Sends a frame.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        self.0.send(frame).map(|_| ())
    }

    /// The next frame, cut to [`FRAME`] bytes; `None` if none comes in time. Once the time is over, what has come is read all the
    /// same: this process may have had to wait for the processor.
    fn receive(&self, buffer: &mut [u8; FRAME], end: Instant) -> io::Result<Option<usize>> {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            self.0.set_nonblocking(true)?;
        }
        // Zero would mean for ever; the kernel counts microseconds.
        self.0.set_read_timeout(Some(left.max(Duration::from_micros(1))))?;
        match (&self.0).read(buffer) {
            Ok(length) => Ok(Some(length)),
            Err(error) if error.kind() == ErrorKind::WouldBlock && left.is_zero() => Ok(None),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(Some(0)),
            Err(error) => Err(error),
        }
    }

    /// Asks as often and as long as the options say, and no longer than there is something to wait for.
    ///
    /// # Errors
    /// The outer one is the kernel's, the inner one the verdict.
    pub fn inquire(&self, inquiry: &mut Inquiry, options: &DetectOptions) -> io::Result<Result<(), Failure>> {
        let mut buffer = [0; FRAME];
        for attempt in 1..=options.retries {
            self.0.set_nonblocking(false)?;
            for frame in inquiry.frames() {
                self.send(&frame)?;
            }
            let wait = if attempt == options.retries { options.timeout } else { options.interval };
            let (end, mut late) = (Instant::now() + wait, 0);
            while late < QUEUE
                && let Some(length) = self.receive(&mut buffer, end)?
            {
                late += usize::from(Instant::now() >= end);
                if let Some(Err(conflict)) = packet::claim(&buffer[..length]).map(|claim| inquiry.hear(claim)) {
                    return Ok(Err(conflict));
                }
                if inquiry.is_over() {
                    return Ok(Ok(()));
                }
            }
        }
        Ok(inquiry.verdict())
    }
}

#[expect(unsafe_code, reason = "no library makes a sockaddr_ll from its parts; all bytes of it are set here")]
fn link_address(index: u32, protocol: u16) -> io::Result<SockAddr> {
    let address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: protocol,
        sll_ifindex: i32::try_from(index).map_err(io::Error::other)?,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: the storage is larger than any address and aligned for each, and the family says which one it is.
    unsafe {
        *storage.view_as::<libc::sockaddr_ll>() = address;
        Ok(SockAddr::new(storage, size_of::<libc::sockaddr_ll>() as libc::socklen_t))
    }
}

#[cfg(test)]
mod tests {
    use common::mac::Mac;

    use super::*;

    #[test]
    fn of_what_an_interface_hears_arp_and_neighbour_discovery_are_kept_and_nothing_else() {
        // A filter sees what comes into any socket.
        let (sender, receiver) = Socket::pair(Domain::UNIX, Type::DGRAM, None).unwrap();
        receiver.attach_filter(&ASKED).unwrap();
        let mac = Mac([2, 0, 0, 0, 0, 1]);
        let [arp, solicitation] = ["10.6.0.9", "fd00:6::9"].map(|address| packet::probe(mac, address.parse().unwrap()));
        let advertisement = packet::announcement(mac, "fd00:6::9".parse().unwrap());
        let changed = |frame: &[u8], at: u32, value: u8| {
            let mut frame = frame.to_vec();
            frame[at as usize] = value;
            frame
        };
        let others = [
            changed(&arp, ETHERTYPE + 1, 0),
            changed(&advertisement, NEXT_HEADER, 6),
            changed(&advertisement, ICMPV6_TYPE, 128),
            advertisement[..40].to_vec(),
        ];
        let kept = [arp, solicitation, advertisement];
        for frame in others.iter().chain(&kept) {
            sender.send(frame).unwrap();
        }
        for frame in kept {
            let mut buffer = [0; FRAME];
            let length = (&receiver).read(&mut buffer).unwrap();
            assert_eq!(buffer[..length], frame);
        }
    }
}
