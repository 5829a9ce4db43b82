//! What the programs in the kernel write, and how the agent reads it.
//!
//! A record is a header and the bytes of the netlink message as the kernel sent it. The program
//! looks into a message only as far as it must to know that it cannot matter; what it means is read
//! in one place, by the decoder that also reads dumps and plain netlink sockets, so that the three
//! can never disagree.

#![no_std]
#![forbid(unsafe_code)]

pub mod latest;
pub mod traffic;
pub mod writer;

use core::fmt;
use core::mem::offset_of;

use crate::writer::{Refusal, Task};

/// What each object for the kernel ends with: a licence, and a place to go for what cannot happen. For
/// any other target an empty program, so that the whole workspace can be checked at once.
#[macro_export]
macro_rules! object {
    () => {
        #[cfg(target_arch = "bpf")]
        #[panic_handler]
        fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
            // The verifier would refuse a program that can get here.
            loop {}
        }

        /// Lets the kernel lend the helpers that it keeps for programs under the GPL.
        #[cfg(target_arch = "bpf")]
        #[unsafe(link_section = "license")]
        #[unsafe(no_mangle)]
        static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

        #[cfg(not(target_arch = "bpf"))]
        fn main() {}
    };
}

/// What stands before the message in every record, in the machine's byte order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Header {
    /// When the kernel sent the message: nanoseconds of `CLOCK_BOOTTIME`.
    pub at: u64,
    /// How many bytes of the message follow; what lies after them in the ring means nothing.
    pub kept: u32,
    /// How many bytes the message has.
    pub whole: u32,
    /// The netlink port that the message came from: 0 is the kernel itself. Means something only
    /// where the agent has found out that the program can tell, and else is anything.
    pub sender: u32,
    /// What follows: one of the constants below.
    pub kind: u32,
    /// Who runs. The message was caused by it, unless the kernel itself is the sender.
    pub task: Task,
}

/// [`Header::kind`]: a message, or several.
pub const MESSAGE: u32 = 0;
/// [`Header::kind`]: a [`Refusal`].
pub const REFUSAL: u32 = 1;

impl Header {
    /// Reads the header; the rest of the bytes is the message and what lies behind it.
    pub fn parse(bytes: &[u8]) -> Result<(Self, &[u8]), RecordError> {
        let (at, rest) = bytes.split_first_chunk().ok_or(RecordError::NoHeader)?;
        let mut rest = rest;
        let mut word = || {
            let (word, behind) = rest.split_first_chunk().ok_or(RecordError::NoHeader)?;
            rest = behind;
            Ok(u32::from_ne_bytes(*word))
        };
        let at = u64::from_ne_bytes(*at);
        let (kept, whole, sender, kind) = (word()?, word()?, word()?, word()?);
        let (task, rest) = rest.split_first_chunk().ok_or(RecordError::NoHeader)?;
        Ok((Self { at, kept, whole, sender, kind, task: Task::parse(task) }, rest))
    }
}

/// Bytes of the header before the message.
pub const HEADER: usize = size_of::<Header>();

// The program writes a `Header`, `Header::parse` reads it byte by byte: both must mean the same.
const _: () = {
    assert!(offset_of!(Header, at) == 0);
    assert!(offset_of!(Header, kept) == 8);
    assert!(offset_of!(Header, whole) == 12);
    assert!(offset_of!(Header, sender) == 16);
    assert!(offset_of!(Header, kind) == 20);
    assert!(offset_of!(Header, task) == 24);
    assert!(HEADER == 72 && align_of::<Header>() == 8);
    assert!(size_of::<Refusal>() <= SMALL);
    // The program masks a length to the room that there is.
    assert!(SMALL.is_power_of_two() && MEDIUM.is_power_of_two() && LARGE.is_power_of_two());
    assert!(SMALL < MEDIUM && MEDIUM < LARGE);
    assert!(Counter::RefusalsLost as u32 + 1 == COUNTERS);
};

/// Message bytes of the three sizes of record. The kernel's ring reserves fixed sizes only, and the
/// smallest holds any route of a few legs, the largest any interface seen (a veth takes about
/// 1,500).
pub const SMALL: usize = 128;
/// See [`SMALL`].
pub const MEDIUM: usize = 512;
/// See [`SMALL`].
pub const LARGE: usize = 4096;

/// What the program counts, per CPU, in the order of its map. Every message that the kernel sends
/// becomes exactly one of the first four.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Counter {
    /// Records that were written.
    Written = 0,
    /// Messages that cannot matter.
    Filtered = 1,
    /// Messages for which the ring had no room.
    Lost = 2,
    /// Messages that are no netlink messages.
    Unparsed = 3,
    /// Of those written, the ones that were cut short.
    Truncated = 4,
    /// Refused writes that were recorded; none of them is a message.
    Refusals = 5,
    /// Refused writes for which the ring had no room.
    RefusalsLost = 6,
}

/// How many counters there are.
pub const COUNTERS: u32 = 7;

/// A record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Record<'a> {
    /// When the kernel sent the message, or refused: nanoseconds of `CLOCK_BOOTTIME`.
    pub at: u64,
    /// Who ran then.
    pub task: Task,
    /// What was recorded.
    pub what: What<'a>,
}

/// What was recorded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum What<'a> {
    /// A message or messages, from the netlink header on.
    Message(&'a [u8]),
    /// The beginning of a message that was longer than any record.
    Truncated(&'a [u8]),
    /// A write of a route was refused.
    Refusal(Refusal),
}

/// Why bytes are no record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RecordError {
    /// There are fewer bytes than the header has.
    NoHeader,
    /// The header tells of more bytes than there are.
    Short,
    /// The header tells of something else than is known.
    Kind(u32),
}

impl fmt::Display for RecordError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoHeader => f.write_str("a record shorter than its header"),
            Self::Short => f.write_str("a record shorter than its header says"),
            Self::Kind(kind) => write!(f, "a record of an unknown kind, {kind}"),
        }
    }
}

impl core::error::Error for RecordError {}

impl<'a> Record<'a> {
    /// Reads a record from the bytes of a ring's entry.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, RecordError> {
        let (header, rest) = Header::parse(bytes)?;
        let kept = rest.get(..header.kept as usize).ok_or(RecordError::Short)?;
        let what = match header.kind {
            MESSAGE if header.whole > header.kept => What::Truncated(kept),
            MESSAGE => What::Message(kept),
            REFUSAL => What::Refusal(Refusal::parse(kept.first_chunk().ok_or(RecordError::Short)?)),
            kind => return Err(RecordError::Kind(kind)),
        };
        Ok(Self { at: header.at, task: header.task, what })
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
        bytes[16..20].copy_from_slice(&6u32.to_ne_bytes());
        bytes[24..32].copy_from_slice(&8u64.to_ne_bytes());
        bytes[HEADER..HEADER + 4].copy_from_slice(b"abcd");
        let task = Task { started: 8, ..Task::default() };
        let (header, _) = Header::parse(&bytes).unwrap();
        assert_eq!(header, Header { at: 7, kept: 4, whole: 4, sender: 6, kind: MESSAGE, task });
        let record = Record::parse(&bytes).unwrap();
        assert_eq!(record, Record { at: 7, task, what: What::Message(b"abcd") });
        for length in 0..HEADER {
            assert_eq!(Record::parse(&bytes[..length]), Err(RecordError::NoHeader));
        }
        for length in HEADER..HEADER + 4 {
            assert_eq!(Record::parse(&bytes[..length]), Err(RecordError::Short));
        }
        bytes[12..16].copy_from_slice(&9u32.to_ne_bytes());
        assert_eq!(Record::parse(&bytes).unwrap().what, What::Truncated(b"abcd"));
        bytes[20..24].copy_from_slice(&REFUSAL.to_ne_bytes());
        assert_eq!(Record::parse(&bytes), Err(RecordError::Short), "a refusal is longer");
        bytes[20..24].copy_from_slice(&9u32.to_ne_bytes());
        assert_eq!(Record::parse(&bytes), Err(RecordError::Kind(9)));
    }

    #[test]
    fn a_refusal_is_told_from_a_message() {
        let mut bytes = [0u8; HEADER + size_of::<Refusal>()];
        bytes[8..12].copy_from_slice(&36u32.to_ne_bytes());
        bytes[12..16].copy_from_slice(&36u32.to_ne_bytes());
        bytes[20..24].copy_from_slice(&REFUSAL.to_ne_bytes());
        bytes[HEADER + 32..].copy_from_slice(&[2, 32, 3, 1]);
        let What::Refusal(refusal) = Record::parse(&bytes).unwrap().what else {
            panic!("it is a refusal");
        };
        assert_eq!((refusal.family, refusal.length), (2, 32));
    }
}
