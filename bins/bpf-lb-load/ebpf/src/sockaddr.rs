//! The address that a hook is about, and its place in the context.

use aya_ebpf::bindings::{bpf_sock, bpf_sock_addr};
use bpf_lb_abi::{Address, Endpoint, is_mapped};

use crate::maps::Tables;

/// A `sockaddr` that a hook may read and rewrite.
pub(crate) trait Sockaddr: Copy {
    /// The family in whose tables it is looked up.
    type Address: Tables;
    /// The address family of which such an address is given to a call.
    const FAMILY: u32;

    fn context(self) -> *mut bpf_sock_addr;
    fn address(self) -> Self::Address;
    /// By reference, since a copy of four words would be a call of `memmove`.
    fn set_address(self, address: &Self::Address);

    #[inline(always)]
    fn endpoint(self) -> Endpoint<Self::Address> {
        let context = self.context();
        // SAFETY: the context is valid while the program runs. Volatile, since only loads of the field's size are let through.
        let (port, protocol) = unsafe {
            ((&raw const (*context).user_port).read_volatile(), (&raw const (*context).protocol).read_volatile())
        };
        Endpoint { address: self.address(), port: port as u16, protocol: protocol as u16 }
    }

    #[inline(always)]
    fn rewrite(self, endpoint: &Endpoint<Self::Address>) {
        self.set_address(&endpoint.address);
        // SAFETY: as above.
        unsafe { (&raw mut (*self.context()).user_port).write_volatile(endpoint.port.into()) }
    }

    /// Whether the call takes the address for one of this kind: what it gets is not looked at before connect() runs the hook.
    #[inline(always)]
    fn is_right(self) -> bool {
        // SAFETY: as above.
        unsafe { (&raw const (*self.context()).user_family).read_volatile() == Self::FAMILY }
    }

    /// Whether the socket is an IPv6 one, which can have addresses of both families.
    #[inline(always)]
    fn is_dual(self) -> bool {
        // SAFETY: as above.
        unsafe { (&raw const (*self.context()).family).read_volatile() == <[u32; 4] as Address>::FAMILY }
    }

    #[inline(always)]
    fn socket(self) -> *mut bpf_sock {
        // SAFETY: as above.
        unsafe { (*self.context()).__bindgen_anon_1.sk }
    }
}

/// An IPv4 address.
#[derive(Clone, Copy)]
pub(crate) struct Inet(pub(crate) *mut bpf_sock_addr);

impl Sockaddr for Inet {
    type Address = u32;
    const FAMILY: u32 = <u32 as Address>::FAMILY;

    #[inline(always)]
    fn context(self) -> *mut bpf_sock_addr {
        self.0
    }
    #[inline(always)]
    fn address(self) -> u32 {
        // SAFETY: the context is valid while the program runs.
        unsafe { (&raw const (*self.0).user_ip4).read_volatile() }
    }
    #[inline(always)]
    fn set_address(self, address: &u32) {
        // SAFETY: as above.
        unsafe { (&raw mut (*self.0).user_ip4).write_volatile(*address) }
    }
}

#[inline(always)]
fn word(context: *mut bpf_sock_addr, index: usize) -> *mut u32 {
    // SAFETY: the field has four words, and no caller asks for a fifth.
    unsafe { (&raw mut (*context).user_ip6).cast::<u32>().add(index) }
}

/// An IPv6 address.
#[derive(Clone, Copy)]
pub(crate) struct Inet6(pub(crate) *mut bpf_sock_addr);

impl Inet6 {
    /// The same address as an IPv4 one, if it is IPv4-mapped.
    #[inline(always)]
    pub(crate) fn mapped(self) -> Option<Mapped> {
        is_mapped(&self.address()).then_some(Mapped(self.0))
    }
}

impl Sockaddr for Inet6 {
    type Address = [u32; 4];
    const FAMILY: u32 = <[u32; 4] as Address>::FAMILY;

    #[inline(always)]
    fn context(self) -> *mut bpf_sock_addr {
        self.0
    }
    #[inline(always)]
    fn address(self) -> [u32; 4] {
        // SAFETY: the context is valid while the program runs.
        [0, 1, 2, 3].map(|index| unsafe { word(self.0, index).read_volatile() })
    }
    #[inline(always)]
    fn set_address(self, address: &[u32; 4]) {
        // SAFETY: as above.
        unsafe {
            word(self.0, 0).write_volatile(address[0]);
            word(self.0, 1).write_volatile(address[1]);
            word(self.0, 2).write_volatile(address[2]);
            word(self.0, 3).write_volatile(address[3]);
        }
    }
}

/// An IPv4 address in an IPv6 socket, `::ffff:a.b.c.d`.
#[derive(Clone, Copy)]
pub(crate) struct Mapped(*mut bpf_sock_addr);

impl Sockaddr for Mapped {
    type Address = u32;
    const FAMILY: u32 = <[u32; 4] as Address>::FAMILY;

    #[inline(always)]
    fn context(self) -> *mut bpf_sock_addr {
        self.0
    }
    #[inline(always)]
    fn address(self) -> u32 {
        // SAFETY: the context is valid while the program runs.
        unsafe { word(self.0, 3).read_volatile() }
    }
    #[inline(always)]
    fn set_address(self, address: &u32) {
        // SAFETY: as above.
        unsafe { word(self.0, 3).write_volatile(*address) }
    }
}

/// Defines a hook's program for each family, HOOK NAME: what `$verb` does with the address.
macro_rules! sockaddr_programs {
    ($verb:ident, $hook4:ident $four:ident, $hook6:ident $six:ident) => {
        #[aya_ebpf::macros::cgroup_sock_addr($hook4)]
        pub fn $four(context: aya_ebpf::programs::SockAddrContext) -> i32 {
            $verb($crate::sockaddr::Inet(context.sock_addr))
        }

        #[aya_ebpf::macros::cgroup_sock_addr($hook6)]
        #[inline(always)]
        pub fn $six(context: aya_ebpf::programs::SockAddrContext) -> i32 {
            let sockaddr = $crate::sockaddr::Inet6(context.sock_addr);
            match sockaddr.mapped() {
                Some(mapped) => $verb(mapped),
                None => $verb(sockaddr),
            }
        }
    };
}
pub(crate) use sockaddr_programs;
