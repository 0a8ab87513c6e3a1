//! Frames out of and into an interface of the calling thread's network namespace (packet(7)).

use std::{
    io::{self, ErrorKind, Read},
    time::{Duration, Instant},
};

use common::{failure::Failure, settings::DetectOptions};
use nix::libc;
use socket2::{Domain, Protocol, SockAddr, SockAddrStorage, Socket, Type};

use crate::{packet, probe::Inquiry};

/// Longer than any ARP or neighbour discovery packet that is read.
const FRAME: usize = 512;

/// No more frames are in a socket's queue (`net.core.rmem_default` by the least that the kernel charges for a frame).
const QUEUE: usize = 512;

/// A socket for one interface.
#[derive(Debug)]
pub struct Wire(Socket);

impl Wire {
    /// Opens the interface with an index.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn open(index: u32) -> io::Result<Self> {
        // Network byte order, as the kernel wants it.
        let protocol = (libc::ETH_P_ALL as u16).to_be();
        let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(i32::from(protocol))))?;
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
