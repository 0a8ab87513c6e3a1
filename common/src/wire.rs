//! Netlink messages and attributes in bytes (linux/netlink.h), for those that no library has types for. Pure.

use std::iter;

use nix::libc;

/// The length of `struct nlmsghdr`, in bytes.
pub const HEADER: usize = size_of::<libc::nlmsghdr>();
/// That of `struct nlattr`.
const ATTRIBUTE: usize = size_of::<libc::nlattr>();
/// What both are aligned to.
const ALIGNMENT: usize = 4;

/// Type and body of each message in a datagram, up to one that is cut off.
pub fn messages(mut datagram: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    iter::from_fn(move || {
        let length = u32_at(datagram, 0)? as usize;
        let message = (u16_at(datagram, 4)?, datagram.get(HEADER..length)?);
        datagram = datagram.get(length.next_multiple_of(ALIGNMENT)..).unwrap_or_default();
        Some(message)
    })
}

/// Type, without flags, and value of each attribute, up to one that is cut off.
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    iter::from_fn(move || {
        let length = usize::from(u16_at(bytes, 0)?);
        let attribute = (u16_at(bytes, 2)? & libc::NLA_TYPE_MASK as u16, bytes.get(ATTRIBUTE..length)?);
        bytes = bytes.get(length.next_multiple_of(ALIGNMENT)..).unwrap_or_default();
        Some(attribute)
    })
}

/// The value of the first attribute of a type.
pub fn attribute(bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(kind, _)| *kind == wanted).map(|(_, value)| value)
}

/// The number at a place, in the machine's byte order.
pub fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// As [`u16_at`].
pub fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_and_attributes_are_read_up_to_one_that_is_cut_off() {
        let part = |length: u16, kind: u16, value: &[u8]| [&length.to_ne_bytes(), &kind.to_ne_bytes(), value].concat();
        let nested = libc::NLA_F_NESTED as u16;
        let body = [part(6, 1 | nested, &[7, 8, 0, 0]), part(4, 2, &[]), part(9, 3, &[1])].concat();
        assert_eq!(attributes(&body).collect::<Vec<_>>(), [(1, &[7, 8][..]), (2, &[])]);
        assert_eq!((attribute(&body, 2), attribute(&body, 3)), (Some(&[][..]), None));

        let message = |length: u32, kind: u16, body: &[u8]| {
            [&length.to_ne_bytes(), &kind.to_ne_bytes()[..], &[0; 10], body].concat()
        };
        let datagram = [message(17, 3, &[5, 0, 0, 0]), message(16, 4, &[]), message(15, 5, &[0; 4])].concat();
        assert_eq!(messages(&datagram).collect::<Vec<_>>(), [(3, &[5][..]), (4, &[])]);
        assert_eq!(messages(&datagram[..16]).next(), None);
    }
}
