//! The socket that requests go out by.

use std::{
    cell::Cell,
    io,
    task::{Context, Poll},
};

use bytes::BufMut;
use netlink_sys::{AsyncSocket, Socket, SocketAddr};
use nix::libc::MSG_DONTWAIT;

/// A socket whose answers nobody waits for: the kernel gives them while the request is sent (`netlink_unicast_kernel`), and the
/// next part of a dump while the one before it is received (`netlink_recvmsg`). So whoever has sent is to look at once.
#[derive(Debug)]
pub(super) struct Answered {
    socket: Socket,
    /// Whether the last look has found something: it is taken before the next look, for a dump may be longer than there is memory.
    found: Cell<bool>,
}

/// What there is; where nothing is, nothing was asked.
fn queued<T>(received: io::Result<T>) -> Poll<io::Result<T>> {
    match received {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Poll::Pending,
        received => Poll::Ready(received),
    }
}

impl AsyncSocket for Answered {
    fn socket_ref(&self) -> &Socket {
        &self.socket
    }

    fn socket_mut(&mut self) -> &mut Socket {
        &mut self.socket
    }

    fn new(protocol: isize) -> io::Result<Self> {
        Ok(Self { socket: Socket::new(protocol)?, found: Cell::new(false) })
    }

    fn poll_send(&self, context: &mut Context<'_>, message: &[u8]) -> Poll<io::Result<usize>> {
        context.waker().wake_by_ref();
        Poll::Ready(self.socket.send(message, 0))
    }

    fn poll_send_to(&self, context: &mut Context<'_>, message: &[u8], to: &SocketAddr) -> Poll<io::Result<usize>> {
        context.waker().wake_by_ref();
        Poll::Ready(self.socket.send_to(message, to, 0))
    }

    fn poll_recv<B: BufMut>(&self, _: &mut Context<'_>, buffer: &mut B) -> Poll<io::Result<()>> {
        queued(self.socket.recv(buffer, MSG_DONTWAIT).map(|_| ()))
    }

    fn poll_recv_from<B: BufMut>(&self, context: &mut Context<'_>, buffer: &mut B) -> Poll<io::Result<SocketAddr>> {
        if self.found.take() {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let received = queued(self.socket.recv_from(buffer, MSG_DONTWAIT).map(|(_, from)| from));
        self.found.set(received.is_ready());
        received
    }

    fn poll_recv_from_full(&self, _: &mut Context<'_>) -> Poll<io::Result<(Vec<u8>, SocketAddr)>> {
        Poll::Ready(self.socket.recv_from_full())
    }
}
