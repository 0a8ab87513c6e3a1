//! memcpy() and memmove() of the tools that a CNI call starts, in place of musl's for x86-64.
//!
//! A tool copies some thousand times, most often a few bytes. musl has a `rep movsq` in every copy, whose start costs more than
//! those bytes: without it an ADD takes a twelfth less time.

#![cfg(all(target_arch = "x86_64", any(target_env = "musl", test)))]
#![no_std]
// Or a loop that copies becomes a call of the function that it is in.
#![no_builtins]
#![expect(unsafe_code, reason = "the functions are what safe copies are made of")]

#[cfg(test)]
extern crate std;

use core::ffi::c_void;

type Block = u128;
const BLOCK: usize = size_of::<Block>();

/// Copies `length` bytes.
///
/// # Safety
/// As C11 7.24.2.1 says: `from` is good for reading and `to` for writing them, and they have no byte in common.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn memcpy(to: *mut c_void, from: *const c_void, length: usize) -> *mut c_void {
    // SAFETY: as this function's.
    unsafe { copy_up(to.cast(), from.cast(), length) };
    to
}

/// Copies `length` bytes, as if by way of a third place.
///
/// # Safety
/// As C11 7.24.2.2 says: `from` is good for reading and `to` for writing them.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn memmove(to: *mut c_void, from: *const c_void, length: usize) -> *mut c_void {
    let begins_within = to.addr().wrapping_sub(from.addr()) < length;
    let copy = if begins_within { copy_down } else { copy_up };
    // SAFETY: as this function's.
    unsafe { copy(to.cast(), from.cast(), length) };
    to
}

/// From the first byte to the last one; `to` does not begin after the first byte of `from` and before its end.
unsafe fn copy_up(to: *mut u8, from: *const u8, length: usize) {
    // SAFETY: each place that is read or written begins at least a block before the end.
    unsafe {
        if length <= 2 * BLOCK {
            return copy_few(to, from, length);
        }
        let end = length - BLOCK;
        let last: Block = read(from, end);
        let mut at = 0;
        while at < end {
            write::<Block>(to, at, read(from, at));
            at += BLOCK;
        }
        write(to, end, last);
    }
}

/// From the last byte to the first one; `to` does not end after the first byte of `from` and before its end.
unsafe fn copy_down(to: *mut u8, from: *const u8, length: usize) {
    // SAFETY: as in `copy_up`.
    unsafe {
        if length <= 2 * BLOCK {
            return copy_few(to, from, length);
        }
        let first: Block = read(from, 0);
        let mut at = length;
        while at > BLOCK {
            at -= BLOCK;
            write::<Block>(to, at, read(from, at));
        }
        write(to, 0, first);
    }
}

/// At most two blocks, all of which are read before any is written.
unsafe fn copy_few(to: *mut u8, from: *const u8, length: usize) {
    // SAFETY: there are as many bytes as each arm says.
    unsafe {
        match length {
            0 => {}
            1 => *to = *from,
            2..4 => copy_ends::<u16>(to, from, length),
            4..8 => copy_ends::<u32>(to, from, length),
            8..BLOCK => copy_ends::<u64>(to, from, length),
            _ => copy_ends::<Block>(to, from, length),
        }
    }
}

/// What begins with a `T` and ends with one, and is no longer than two.
unsafe fn copy_ends<T>(to: *mut u8, from: *const u8, length: usize) {
    let end = length - size_of::<T>();
    // SAFETY: there is a `T` at both places, since there are at least as many bytes.
    unsafe {
        let (first, last): (T, T) = (read(from, 0), read(from, end));
        write(to, 0, first);
        write(to, end, last);
    }
}

unsafe fn read<T>(from: *const u8, at: usize) -> T {
    // SAFETY: the caller's; a number may have any bits.
    unsafe { from.add(at).cast::<T>().read_unaligned() }
}

unsafe fn write<T>(to: *mut u8, at: usize, value: T) {
    // SAFETY: the caller's.
    unsafe { to.add(at).cast::<T>().write_unaligned(value) }
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::{memcpy, memmove};

    const LENGTHS: std::ops::Range<usize> = 0..200;
    /// Bytes beside those that are copied.
    const MARGIN: usize = 40;

    fn bytes(count: usize) -> Vec<u8> {
        (0..=u8::MAX).cycle().take(count).collect()
    }

    #[test]
    fn bytes_are_copied_and_none_beside_them() {
        let from = bytes(LENGTHS.end);
        for length in LENGTHS {
            for at in MARGIN..MARGIN + 17 {
                let mut to = std::vec![0xee; length + at + MARGIN];
                let mut expected = to.clone();
                expected[at..at + length].copy_from_slice(&from[..length]);
                // SAFETY: both have that many bytes.
                let returned = unsafe { memcpy(to.as_mut_ptr().add(at).cast(), from.as_ptr().cast(), length) };
                assert_eq!(returned, to[at..].as_mut_ptr().cast());
                assert_eq!(to, expected, "{length} bytes to {at}");
            }
        }
    }

    #[test]
    fn bytes_are_moved_over_each_other() {
        for length in LENGTHS {
            for distance in 0..100 {
                for (from, to) in [(MARGIN, MARGIN + distance), (MARGIN + distance, MARGIN)] {
                    let mut moved = bytes(length + distance + 2 * MARGIN);
                    let mut expected = moved.clone();
                    expected.copy_within(from..from + length, to);
                    let place = moved.as_mut_ptr();
                    // SAFETY: both are in it.
                    let returned = unsafe { memmove(place.add(to).cast(), place.add(from).cast(), length) };
                    assert_eq!(returned, moved[to..].as_mut_ptr().cast());
                    assert_eq!(moved, expected, "{length} bytes from {from} to {to}");
                }
            }
        }
    }
}
