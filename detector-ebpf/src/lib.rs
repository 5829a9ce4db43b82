//! What the programs in the kernel write, and how the agent reads it.
//!
//! A record is a header and the bytes of the netlink message as the kernel sent it. The program
//! looks into a message only as far as it must to know that it cannot matter; what it means is read
//! in one place, by the decoder that also reads dumps and plain netlink sockets, so that the three
//! can never disagree.

#![no_std]
#![forbid(unsafe_code)]

/// Bytes of the header before the message.
pub const HEADER: usize = 16;

/// Message bytes of the three sizes of record. The kernel's ring reserves fixed sizes only, and the
/// smallest holds any route of a few legs, the largest any interface seen (a veth takes about
/// 1,500).
pub const SMALL: usize = 128;
/// See [`SMALL`].
pub const MEDIUM: usize = 512;
/// See [`SMALL`].
pub const LARGE: usize = 4096;

/// What the program counts, per CPU, in the order of its map. Every message that the kernel sends
/// is seen, and becomes exactly one of the four after it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Counter {
    /// Messages that came.
    Seen = 0,
    /// Records that were written.
    Written = 1,
    /// Messages that cannot matter.
    Filtered = 2,
    /// Messages for which the ring had no room.
    Lost = 3,
    /// Messages that are no netlink messages.
    Unparsed = 4,
    /// Of those written, the ones that were cut short.
    Truncated = 5,
}

/// How many counters there are.
pub const COUNTERS: u32 = 6;

/// A record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Record<'a> {
    /// When the kernel sent the message: nanoseconds of `CLOCK_BOOTTIME`.
    pub at: u64,
    /// Whether the message was longer than any record; `message` is its beginning.
    pub truncated: bool,
    /// The message or messages, from the netlink header on.
    pub message: &'a [u8],
}

/// Why bytes are no record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RecordError {
    /// There are fewer bytes than the header has.
    NoHeader,
    /// The header tells of more bytes than there are.
    Short,
}

impl<'a> Record<'a> {
    /// Reads a record from the bytes of a ring's entry.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, RecordError> {
        let (header, rest) = bytes.split_at_checked(HEADER).ok_or(RecordError::NoHeader)?;
        let (at, lengths) = header.split_at_checked(8).ok_or(RecordError::NoHeader)?;
        let (kept, whole) = lengths.split_at_checked(4).ok_or(RecordError::NoHeader)?;
        let at = u64::from_ne_bytes(at.try_into().map_err(|_| RecordError::NoHeader)?);
        let kept = u32::from_ne_bytes(kept.try_into().map_err(|_| RecordError::NoHeader)?);
        let whole = u32::from_ne_bytes(whole.try_into().map_err(|_| RecordError::NoHeader)?);
        let message = rest.get(..kept as usize).ok_or(RecordError::Short)?;
        Ok(Self { at, truncated: whole > kept, message })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_whole_or_refused() {
        let mut bytes = [0u8; HEADER + 8];
        bytes[..8].copy_from_slice(&7u64.to_ne_bytes());
        bytes[8..12].copy_from_slice(&4u32.to_ne_bytes());
        bytes[12..16].copy_from_slice(&4u32.to_ne_bytes());
        bytes[16..20].copy_from_slice(b"abcd");
        let record = Record::parse(&bytes).unwrap();
        assert_eq!(record, Record { at: 7, truncated: false, message: b"abcd" });
        for length in 0..HEADER {
            assert_eq!(Record::parse(&bytes[..length]), Err(RecordError::NoHeader));
        }
        for length in HEADER..HEADER + 4 {
            assert_eq!(Record::parse(&bytes[..length]), Err(RecordError::Short));
        }
        bytes[12..16].copy_from_slice(&9u32.to_ne_bytes());
        assert!(Record::parse(&bytes).unwrap().truncated);
    }
}
