//! The few system calls for which neither aya nor nix has a safe function.
#![expect(unsafe_code, reason = "system calls and shared memory")]

use std::{
    io,
    marker::PhantomData,
    ops::Range,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    ptr::NonNull,
};

use aya::maps::MapData;
use bpf_lb_abi::Traced;

use crate::btf::Instruction;

/// The values of a memory-mapped array map. The kernel counts all that is mapped to the process, whether it is read or not.
#[derive(Debug)]
pub struct Values<T> {
    map: MapData,
    len: u32,
    of: PhantomData<fn() -> T>,
}

impl<T> Values<T> {
    /// Those of `map`, which must be an array of `T`, or of arrays of `T`, made with `BPF_F_MMAPABLE`.
    pub fn new(map: MapData) -> io::Result<Self> {
        let info = map.info().map_err(io::Error::other)?;
        let value = info.value_size() as usize;
        // The kernel rounds the size of a value up to eight bytes.
        if !value.is_multiple_of(size_of::<T>()) || !value.is_multiple_of(8) {
            let form = format!("values of {value} bytes, not {}", size_of::<T>());
            return Err(io::Error::new(io::ErrorKind::InvalidData, form));
        }
        let per_value = u32::try_from(value / size_of::<T>()).map_err(io::Error::other)?;
        let len = info.max_entries().saturating_mul(per_value);
        Ok(Self { map, len, of: PhantomData })
    }

    /// How many there are.
    pub const fn capacity(&self) -> u32 {
        self.len
    }

    /// Maps all of them.
    pub fn all(&self) -> io::Result<Mapped<T>> {
        self.window(0..self.len)
    }

    /// Maps some of them.
    pub fn window(&self, values: Range<u32>) -> io::Result<Mapped<T>> {
        // The largest page that any machine has.
        const PAGE: usize = 1 << 16;
        if values.is_empty() || values.end > self.len {
            return Err(io::Error::other(format!("values {values:?} of {}", self.len)));
        }
        let at = |index: u32| index as usize * size_of::<T>();
        let offset = at(values.start) / PAGE * PAGE;
        let bytes = at(values.end) - offset;
        // SAFETY: a new mapping, of no more than the map's own size.
        let mapping = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                self.map.fd().as_fd().as_raw_fd(),
                libc::off_t::try_from(offset).map_err(io::Error::other)?,
            )
        };
        if mapping == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let mapping: NonNull<u8> = NonNull::new(mapping.cast()).ok_or_else(|| io::Error::other("mapped at 0"))?;
        // SAFETY: inside the mapping.
        let start = unsafe { mapping.add(at(values.start) - offset) }.cast();
        Ok(Mapped { mapping, bytes, start, values })
    }
}

/// Values of an array map that are mapped, shared with the programs that use it.
#[derive(Debug)]
pub struct Mapped<T> {
    mapping: NonNull<u8>,
    bytes: usize,
    start: NonNull<T>,
    values: Range<u32>,
}

impl<T> Mapped<T> {
    /// How many there are, with those before the first that is mapped.
    pub const fn capacity(&self) -> u32 {
        self.values.end
    }

    fn place(&self, index: u32) -> Option<NonNull<T>> {
        // SAFETY: inside the mapping.
        self.values.contains(&index).then(|| unsafe { self.start.add((index - self.values.start) as usize) })
    }

    /// The one at `index`.
    pub fn get(&self, index: u32) -> Option<&T> {
        // SAFETY: inside the mapping. What changes while it is borrowed is made of atomic words.
        self.place(index).map(|place| unsafe { place.as_ref() })
    }

    /// A copy of the one at `index`, byte by byte. While a program writes it, parts of it may be from before and others from
    /// after.
    pub fn copy(&self, index: u32) -> Option<T> {
        // SAFETY: inside the mapping, and any bytes are a value of the types that maps have.
        self.place(index).map(|place| unsafe { place.read_volatile() })
    }

    /// Writes a value that no program reads yet. Out of bounds it does nothing.
    pub fn put(&self, index: u32, value: T) {
        if let Some(place) = self.place(index) {
            // SAFETY: inside the mapping, and nobody else reads or writes it.
            unsafe { place.write_volatile(value) }
        }
    }
}

// SAFETY: what others change while it is borrowed is made of atomic words, or copied.
unsafe impl<T: Sync> Sync for Mapped<T> {}

impl<T> Drop for Mapped<T> {
    fn drop(&mut self) {
        // SAFETY: it was mapped for this alone, and every reference to it is gone.
        unsafe { libc::munmap(self.mapping.as_ptr().cast(), self.bytes) };
    }
}

/// The part of the kernel's `union bpf_attr` that `BPF_LINK_UPDATE` reads.
#[repr(C)]
struct LinkUpdate {
    link_fd: u32,
    new_prog_fd: u32,
    flags: u32,
    old_prog_fd: u32,
}

/// Replaces the program of a link in one step. Needs Linux 5.7.
pub fn replace_program(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    const BPF_LINK_UPDATE: libc::c_long = 29;
    let attr = LinkUpdate {
        link_fd: link.as_raw_fd().cast_unsigned(),
        new_prog_fd: program.as_raw_fd().cast_unsigned(),
        flags: 0,
        old_prog_fd: 0,
    };
    // SAFETY: the kernel reads as much of the attribute as its size says.
    let result = unsafe { libc::syscall(libc::SYS_bpf, BPF_LINK_UPDATE, &raw const attr, size_of::<LinkUpdate>()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The kind of a program, and where it is attached: `BPF_PROG_TYPE_CGROUP_SOCK_ADDR` on `BPF_CGROUP_INET4_CONNECT`.
pub const CONNECT: (u32, u32) = (18, 10);
/// `BPF_PROG_TYPE_CGROUP_SOCK` on `BPF_CGROUP_INET_SOCK_RELEASE`.
pub const SOCK_RELEASE: (u32, u32) = (9, 34);

/// Whether the kernel takes such a program.
pub fn verify((prog_type, expected_attach_type): (u32, u32), program: &[Instruction]) -> io::Result<()> {
    const BPF_PROG_LOAD: libc::c_long = 5;

    /// The part of the kernel's `union bpf_attr` that `BPF_PROG_LOAD` reads.
    #[repr(C)]
    #[derive(Default)]
    struct ProgramLoad {
        prog_type: u32,
        insn_cnt: u32,
        insns: u64,
        license: u64,
        log: [u32; 4],
        kern_version: u32,
        prog_flags: u32,
        prog_name: [u8; 16],
        prog_ifindex: u32,
        expected_attach_type: u32,
    }
    let attr = ProgramLoad {
        prog_type,
        insn_cnt: u32::try_from(program.len()).unwrap_or(u32::MAX),
        insns: program.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        expected_attach_type,
        ..ProgramLoad::default()
    };
    // SAFETY: the kernel reads as much of the attribute as its size says, and what it points to outlives the call.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const attr, size_of::<ProgramLoad>()) };
    opened(fd).map(drop)
}

/// The number of the cgroup that a link is attached to, 0 if that was removed. Needs Linux 5.8.
pub fn link_cgroup(link: BorrowedFd<'_>) -> io::Result<u64> {
    const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;

    /// The part of the kernel's `struct bpf_link_info` that cgroups' links fill.
    #[repr(C)]
    #[derive(Default)]
    struct LinkInfo {
        kind: u32,
        id: u32,
        prog_id: u32,
        pad: u32,
        cgroup_id: u64,
        attach_type: u32,
        pad2: u32,
    }
    #[repr(C)]
    struct InfoByFd {
        bpf_fd: u32,
        info_len: u32,
        info: u64,
    }
    let mut info = LinkInfo::default();
    let attr = InfoByFd {
        bpf_fd: link.as_raw_fd().cast_unsigned(),
        info_len: u32::try_from(size_of::<LinkInfo>()).unwrap_or_default(),
        info: (&raw mut info) as u64,
    };
    // SAFETY: as above, and the kernel writes no more than `info_len` bytes.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_OBJ_GET_INFO_BY_FD, &raw const attr, size_of::<InfoByFd>()) };
    if result == 0 { Ok(info.cgroup_id) } else { Err(io::Error::last_os_error()) }
}

/// Opens what is pinned at `path`.
pub fn open_pinned(path: &std::path::Path) -> io::Result<OwnedFd> {
    use std::os::unix::ffi::OsStrExt as _;

    #[repr(C)]
    struct ObjectGet {
        pathname: u64,
        bpf_fd: u32,
        file_flags: u32,
    }
    const BPF_OBJ_GET: libc::c_long = 7;
    let path = std::ffi::CString::new(path.as_os_str().as_bytes())?;
    let attr = ObjectGet { pathname: path.as_ptr() as u64, bpf_fd: 0, file_flags: 0 };
    // SAFETY: as above, and the path outlives the call.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, BPF_OBJ_GET, &raw const attr, size_of::<ObjectGet>()) };
    opened(fd)
}

/// The file that a system call returned, or its error.
fn opened(fd: libc::c_long) -> io::Result<OwnedFd> {
    let fd = i32::try_from(fd).unwrap_or(-1);
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call made it, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The cookie of the network namespace in which `socket` was made. Needs Linux 5.14.
pub fn netns_cookie(socket: BorrowedFd<'_>) -> io::Result<u64> {
    let mut cookie = 0_u64;
    let mut len = libc::socklen_t::try_from(size_of::<u64>()).unwrap_or_default();
    // SAFETY: the kernel writes eight bytes at most.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut len,
        )
    };
    if result == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}

/// A record of the ring buffer of `trace`. Nothing if it is of another size.
pub fn traced(bytes: &[u8]) -> Option<Traced> {
    // SAFETY: as many bytes as a record has, and any bytes are one.
    (bytes.len() == size_of::<Traced>()).then(|| unsafe { bytes.as_ptr().cast::<Traced>().read_unaligned() })
}
