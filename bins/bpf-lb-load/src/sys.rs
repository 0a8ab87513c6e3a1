//! Shared memory, and the few system calls for which neither aya nor nix has a safe function.
#![expect(unsafe_code, reason = "system calls and shared memory")]

use std::{
    io,
    marker::PhantomData,
    ops::Range,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    ptr::NonNull,
};

use aya::maps::MapData;
use bpf_lb_abi::Traced;

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
