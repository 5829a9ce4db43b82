//! Netlink on the wire: messages in a datagram, attributes in a message.
//!
//! Written here rather than taken from a library for three reasons. A route must never be overlooked
//! because of an attribute that has nothing to do with where it leads: `netlink-packet-route` refuses
//! a whole message for one encapsulation or metric that it cannot read, and whoever may install
//! routes may choose those. It has no next-hop objects (`RTM_NEWNEXTHOP`). And a dump of a hundred
//! thousand routes should cost no allocation for what nobody looks at.
//!
//! All readers are total: any bytes give a value or a [`DecodeError`].

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use thiserror::Error;

/// Why bytes are no message that the detector can use. Whoever meets one has missed a change, and
/// asks for the tables anew.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum DecodeError {
    /// Fewer bytes than the thing has.
    #[error("{what} needs {needed} bytes, {got} are there")]
    Short {
        /// What was being read.
        what: &'static str,
        /// What it takes.
        needed: usize,
        /// What there was.
        got: usize,
    },
    /// A length field that points before its own header or beyond the bytes that hold it.
    #[error("{what} says it has {length} bytes, {room} are there")]
    Length {
        /// What was being read.
        what: &'static str,
        /// What the field says.
        length: usize,
        /// What there is.
        room: usize,
    },
    /// An address of a length that its family does not have.
    #[error("{what} of {got} bytes in a message of family {family}")]
    Address {
        /// Which address.
        what: &'static str,
        /// Its length.
        got: usize,
        /// `AF_…`.
        family: u8,
    },
    /// More prefix bits than the family has.
    #[error("a prefix of {length} bits in a message of family {family}")]
    PrefixLength {
        /// The bits.
        length: u8,
        /// `AF_…`.
        family: u8,
    },
    /// Something that cannot do without it is not there.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// An interface name that the kernel's own rules forbid.
    #[error("an interface name that no interface can have")]
    Name,
}

/// `AF_INET`.
pub(in crate::source) const AF_INET: u8 = 2;
/// `AF_INET6`.
pub(in crate::source) const AF_INET6: u8 = 10;

/// `sizeof(struct nlmsghdr)`.
pub(in crate::source) const HEADER: usize = 16;

/// Lengths are rounded up to this in messages, attributes and next hops alike.
const ALIGNMENT: usize = 4;

/// A netlink message, taken apart as far as its header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Message<'a> {
    /// `nlmsg_type`.
    pub kind: u16,
    /// `nlmsg_flags`.
    pub flags: u16,
    /// `nlmsg_seq`.
    pub sequence: u32,
    /// `nlmsg_pid`: the port id of whoever asked for the change, often a process id; 0 is the kernel.
    pub port: u32,
    /// What follows the header.
    pub body: &'a [u8],
}

impl<'a> Message<'a> {
    /// The messages of a datagram in their order. A broken one is told and ends the walk, since
    /// nothing says where the next begins.
    pub fn all(datagram: &'a [u8]) -> impl Iterator<Item = Result<Self, DecodeError>> {
        let mut rest = datagram;
        std::iter::from_fn(move || {
            if rest.is_empty() {
                return None;
            }
            let read = Self::first(rest);
            rest = read.map_or(&[], |message| beyond(rest, HEADER + message.body.len()));
            Some(read)
        })
    }

    /// The first message of a datagram.
    pub fn first(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let header: &[u8; HEADER] = array(bytes, "a netlink header")?;
        let length = u32_at(header, 0) as usize;
        let body = bytes.get(HEADER..length).ok_or(DecodeError::Length {
            what: "a netlink message",
            length,
            room: bytes.len(),
        })?;
        Ok(Self {
            kind: u16_at(header, 4),
            flags: u16_at(header, 6),
            sequence: u32_at(header, 8),
            port: u32_at(header, 12),
            body,
        })
    }
}

/// One attribute (`struct nlattr`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::source) struct Attribute<'a> {
    /// Its type, without the flags for nesting and byte order.
    pub(in crate::source) kind: u16,
    /// What it holds.
    pub(in crate::source) value: &'a [u8],
}

/// The attributes in `bytes`, in their order; the first broken one ends the walk.
pub(in crate::source) fn attributes(
    bytes: &[u8],
) -> impl Iterator<Item = Result<Attribute<'_>, DecodeError>> {
    const HEADER: usize = 4;
    const KIND: u16 = 0x3fff;
    let mut rest = bytes;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let whole = rest;
        // Until the end is reached in good order.
        rest = &[];
        let header: &[u8; HEADER] = match array(whole, "an attribute's header") {
            Ok(header) => header,
            Err(error) => return Some(Err(error)),
        };
        let length = usize::from(u16_at(header, 0));
        let Some(value) = whole.get(HEADER..length) else {
            let room = whole.len();
            return Some(Err(DecodeError::Length { what: "an attribute", length, room }));
        };
        rest = beyond(whole, length);
        Some(Ok(Attribute { kind: u16_at(header, 2) & KIND, value }))
    })
}

impl Attribute<'_> {
    /// A number of 32 bits.
    pub(in crate::source) fn u32(&self, what: &'static str) -> Result<u32, DecodeError> {
        array(self.value, what).map(|bytes| u32::from_ne_bytes(*bytes))
    }

    /// A number of 8 bits.
    pub(in crate::source) fn u8(&self, what: &'static str) -> Result<u8, DecodeError> {
        array(self.value, what).map(|[byte]| *byte)
    }

    /// An address of the family of its message.
    pub(in crate::source) fn address(
        &self,
        what: &'static str,
        family: u8,
    ) -> Result<IpAddr, DecodeError> {
        address(self.value, what, family)
    }
}

/// The address that `bytes` are, no more and no less.
pub(in crate::source) fn address(
    bytes: &[u8],
    what: &'static str,
    family: u8,
) -> Result<IpAddr, DecodeError> {
    let read = match family {
        AF_INET => <[u8; 4]>::try_from(bytes).ok().map(|octets| Ipv4Addr::from(octets).into()),
        AF_INET6 => <[u8; 16]>::try_from(bytes).ok().map(|octets| Ipv6Addr::from(octets).into()),
        _ => None,
    };
    read.ok_or(DecodeError::Address { what, got: bytes.len(), family })
}

/// The first `N` bytes.
pub(in crate::source) fn array<'a, const N: usize>(
    bytes: &'a [u8],
    what: &'static str,
) -> Result<&'a [u8; N], DecodeError> {
    let short = DecodeError::Short { what, needed: N, got: bytes.len() };
    bytes.first_chunk().ok_or(short)
}

/// What follows the first `length` bytes and their padding. The last of its kind may lack its
/// padding.
pub(in crate::source) fn beyond(bytes: &[u8], length: usize) -> &[u8] {
    bytes.get(length.next_multiple_of(ALIGNMENT)..).unwrap_or(&[])
}

/// The 16 bits at `at`, which is within a header of a known size.
pub(in crate::source) fn u16_at<const N: usize>(header: &[u8; N], at: usize) -> u16 {
    u16::from_ne_bytes([header[at], header[at + 1]])
}

/// The 32 bits at `at`, which is within a header of a known size.
pub(in crate::source) fn u32_at<const N: usize>(header: &[u8; N], at: usize) -> u32 {
    u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
}
