//! Input that was not taken: counted, and explained to the log without letting it flood the log.

use std::collections::HashSet;
use std::fmt;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::warn;

use super::parse::Parsed;
use crate::text::printable;

/// A part of an object that was not taken, and why. The rest of the object was.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rejection {
    /// The object: kind, namespace and name.
    pub object: Box<str>,
    /// The field or annotation.
    pub field: &'static str,
    /// Why it was not taken.
    pub reason: Reason,
    /// What stood there, printable and shortened.
    pub value: Box<str>,
}

/// Why something was not taken.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Reason {
    /// It is not there, and without it the object cannot be placed.
    Missing,
    /// It is not the JSON list that it must be. Felix then refuses the pod as a whole.
    NotAJsonList,
    /// An entry of the list is not a string. Felix then refuses the pod as a whole.
    NotAString,
    /// It is not an IP address.
    NotAnAddress,
    /// An octet has a leading zero: Go 1.17 and later refuse it, earlier ones read it as decimal.
    LeadingZeros,
    /// The address has a zone, which neither Go's `net.ParseIP` nor a route takes.
    Zone,
    /// The list is longer than what is read of it.
    TooMany,
    /// It holds what no API server would let through here: control characters, or too much text.
    Malformed,
    /// It is none of the words that are known.
    UnknownWord,
    /// What stands in [`Rejection::value`] says it, the value included.
    InWords,
    /// It is a number beyond what it can be.
    OutOfRange,
    /// The list is not as long as the block has addresses.
    WrongLength,
    /// It is the record of other addresses than those that were asked for.
    AnotherBlock,
    /// It is no version of Calico, such as `v3.22.2`.
    NotAVersion,
}

// === impl Reason ===

impl Reason {
    /// The reason as half a sentence.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Missing => "is missing",
            Self::NotAJsonList => "is not a JSON list of strings",
            Self::NotAString => "has an entry that is not a string",
            Self::NotAnAddress => "is not an IP address",
            Self::LeadingZeros => "has leading zeros",
            Self::Zone => "has a zone",
            Self::TooMany => "has more entries than are read",
            Self::Malformed => "is malformed",
            Self::UnknownWord => "is not a known word",
            Self::InWords => "is refused",
            Self::OutOfRange => "is out of range",
            Self::WrongLength => "has not one entry for each address",
            Self::AnotherBlock => "is not what was asked for",
            Self::NotAVersion => "is not a version",
        }
    }
}

// === impl Rejection ===

impl Rejection {
    /// A rejection; `object` and `value` may hold anything.
    pub(crate) fn new(object: &str, field: &'static str, reason: Reason, value: &str) -> Self {
        let (object, value) = (printable(object, 400).into(), printable(value, 64).into());
        Self { object, field, reason, value }
    }

    /// A rejection whose `problem` is the rest of the sentence that the field begins.
    pub(super) fn in_words(object: &str, field: &'static str, problem: &str) -> Self {
        let (object, value) = (printable(object, 400).into(), printable(problem, 400).into());
        Self { object, field, reason: Reason::InWords, value }
    }
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { object, field, reason, value } = self;
        if *reason == Reason::InWords {
            return write!(f, "{object}: {field} {value}");
        }
        write!(f, "{object}: {field} {}: \"{value}\"", reason.as_str())
    }
}

/// Where rejections go: each is counted; each is logged the first time, and not more of them in a
/// minute than a person would read.
#[derive(Default)]
pub(super) struct Rejections {
    count: AtomicU64,
    memory: Mutex<Memory>,
}

#[derive(Default)]
struct Memory {
    /// Hashes of what was logged, under a key that nobody outside can know.
    seen: HashSet<u64>,
    keys: RandomState,
    /// When the present minute began, how much it has logged and how much it has not.
    minute: Option<(Instant, u32, u64)>,
}

/// What was logged is remembered up to here, then forgotten as a whole: bounded for good.
const MOST_REMEMBERED: usize = 4096;
const MOST_A_MINUTE: u32 = 60;

/// What to do about one rejection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Notice {
    Say,
    /// Say it, and that so many were not said before it.
    SayAfter(u64),
    Count,
}

// === impl Rejections ===

impl Rejections {
    /// Counts each, and logs those that are new.
    pub(super) fn report(&self, rejections: impl IntoIterator<Item = Rejection>) {
        for rejection in rejections {
            self.count.fetch_add(1, Ordering::Relaxed);
            let notice = {
                let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
                memory.notice(&rejection, Instant::now())
            };
            match notice {
                Notice::Count => {}
                Notice::Say => warn!("not taken: {rejection}"),
                Notice::SayAfter(unsaid) => {
                    warn!(unsaid, "not taken, after {unsaid} others too many to log: {rejection}");
                }
            }
        }
    }

    /// What could be taken of an object; the rest is reported.
    pub(super) fn take<T>(&self, parsed: Result<Parsed<T>, Rejection>) -> Option<T> {
        match parsed {
            Ok(Parsed { value, rejections }) => {
                self.report(rejections);
                Some(value)
            }
            Err(rejection) => {
                self.report([rejection]);
                None
            }
        }
    }

    /// How many there were.
    pub(super) fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }
}

// === impl Memory ===

impl Memory {
    fn notice(&mut self, rejection: &Rejection, now: Instant) -> Notice {
        let Rejection { object, field, reason, value } = rejection;
        let key = self.keys.hash_one((object, field, reason, value));
        if self.seen.contains(&key) {
            return Notice::Count;
        }
        if self.minute.is_none_or(|(began, ..)| now - began >= Duration::from_mins(1)) {
            let unsaid = self.minute.map_or(0, |(.., unsaid)| unsaid);
            self.minute = Some((now, 0, 0));
            self.remember(key);
            return if unsaid == 0 { Notice::Say } else { Notice::SayAfter(unsaid) };
        }
        match &mut self.minute {
            Some((_, said, _)) if *said < MOST_A_MINUTE - 1 => {
                *said += 1;
                self.remember(key);
                Notice::Say
            }
            // Not remembered: it is said when it is met again in a quieter minute.
            Some((.., unsaid)) => {
                *unsaid += 1;
                Notice::Count
            }
            None => Notice::Count,
        }
    }

    fn remember(&mut self, key: u64) {
        if self.seen.len() >= MOST_REMEMBERED {
            self.seen.clear();
        }
        self.seen.insert(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rejection(value: &str) -> Rejection {
        Rejection::new("pod a/b", "annotation c", Reason::NotAnAddress, value)
    }

    #[test]
    fn a_rejection_is_one_line_whatever_it_is_about() {
        let rejection = rejection("10.0.0.1\nERROR all is lost \u{1b}[2J");
        assert_eq!(
            rejection.to_string(),
            "pod a/b: annotation c is not an IP address: \
             \"10.0.0.1\\nERROR all is lost \\u{1b}[2J\""
        );
        assert!(Rejection::new("a", "b", Reason::TooMany, &"x".repeat(1 << 20)).value.len() < 100);
    }

    #[test]
    fn each_is_said_once_and_no_more_than_can_be_read() {
        let mut memory = Memory::default();
        let start = Instant::now();
        assert_eq!(memory.notice(&rejection("0"), start), Notice::Say);
        assert_eq!(memory.notice(&rejection("0"), start), Notice::Count);
        for value in 1..MOST_A_MINUTE {
            assert_eq!(memory.notice(&rejection(&value.to_string()), start), Notice::Say);
        }
        for value in 100..107 {
            assert_eq!(memory.notice(&rejection(&value.to_string()), start), Notice::Count);
        }
        let later = start + Duration::from_mins(1);
        assert_eq!(memory.notice(&rejection("0"), later), Notice::Count);
        assert_eq!(memory.notice(&rejection("100"), later), Notice::SayAfter(7));
        assert_eq!(memory.notice(&rejection("101"), later), Notice::Say);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut memory = Memory::default();
        let mut now = Instant::now();
        for value in 0..10_000 {
            now += Duration::from_secs(1);
            memory.notice(&rejection(&value.to_string()), now);
            assert!(memory.seen.len() <= MOST_REMEMBERED);
        }
        let rejections = Rejections::default();
        rejections.report((0..1000).map(|value| rejection(&value.to_string())));
        assert_eq!(rejections.count(), 1000);
    }
}
