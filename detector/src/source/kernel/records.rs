//! Notifications as the eBPF witness records them: stamped within the system call that caused them,
//! and with a ring of its own that the agent empties.

use std::collections::BTreeSet;
use std::io;
use std::time::Duration;

use detector_core::observation::Observation;
use detector_core::route::IfIndex;
use detector_core::time::BootTime;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tracing::warn;

use super::tally::{Tally, refused};
use super::{Counters, Drained, GULP, Loss};
use crate::source::witness::{Counts, Witness};
use crate::source::writer::{WriterSight, Writers};
use detector_ebpf::{Record, What as Recorded};

/// How far apart two processors may stamp what they write one after the other, with much to spare.
const SKEW: Duration = Duration::from_millis(10);

/// What is said where the program's counters are asked for in vain.
const UNREADABLE: &str = "the counters of the eBPF program cannot be read";

/// The witness, and what has been read of its ring.
pub(super) struct Records {
    witness: AsyncFd<Witness>,
    writers: Writers,
    tally: Tally,
    /// How many records of messages were taken out of the ring.
    read: u64,
    /// What the witness had lost when it was last asked.
    lost: u64,
    /// When the last record that was read was written.
    latest: BootTime,
}

impl Records {
    pub(super) fn new(witness: Witness, writers: Writers) -> io::Result<Self> {
        // SAFETY: the witness owns the ring whose descriptor it gives, and never replaces it.
        let witness = unsafe { AsyncFd::register_with_interest(witness, Interest::READABLE)? };
        let tally = Tally::default();
        Ok(Self { witness, writers, tally, read: 0, lost: 0, latest: BootTime::ZERO })
    }

    pub(super) async fn ready(&self) -> io::Result<()> {
        self.witness.readable().await.map(drop)
    }

    pub(super) fn drain(&mut self, budget: usize, each: &mut dyn FnMut(Observation)) -> Drained {
        for _ in 0..budget {
            if !self.next(each) {
                self.witness.get_mut().flush_log();
                return Drained::Empty;
            }
        }
        Drained::More
    }

    /// Reads all that was written until `end`.
    pub(super) fn catch_up(&mut self, end: BootTime, each: &mut dyn FnMut(Observation)) {
        while self.latest <= end.after(SKEW) && self.drain(GULP, each) == Drained::More {}
    }

    pub(super) fn take_loss(&mut self) -> Option<Loss> {
        let lost = self.witness.get_ref().lost().unwrap_or_else(|error| {
            warn!(%error, UNREADABLE);
            self.lost
        });
        let new = lost.saturating_sub(std::mem::replace(&mut self.lost, lost));
        if new > 0 {
            self.tally.lose(new, || "the ring of the eBPF program was full".to_owned());
        }
        self.tally.take_loss()
    }

    pub(super) fn counters(&self) -> Counters {
        let counts = self.counts();
        let Counts { seen, written, filtered, lost, unparsed, .. } = counts;
        let told = self.tally.counters;
        // The program counts records, of which those that were read have become something else.
        let read = |count: u64| count.saturating_sub(self.read);
        Counters {
            seen: read(seen) + told.seen,
            written: read(written) + told.written,
            filtered: filtered + told.filtered,
            lost,
            unparsed: unparsed + told.unparsed,
            refusals_lost: counts.refusals_lost,
        }
    }

    pub(super) fn set_uplinks(&mut self, uplinks: &[IfIndex]) -> io::Result<()> {
        self.witness.get_mut().set_uplinks(uplinks)
    }

    pub(super) fn sight(&mut self, wait: bool) -> Option<WriterSight> {
        let witness = self.witness.get_mut();
        if wait { witness.await_sight() } else { witness.sight() }
    }

    /// Tells what the next record says, if there is one.
    fn next(&mut self, each: &mut dyn FnMut(Observation)) -> bool {
        let Self { witness, writers, tally, latest, read: messages, .. } = self;
        // The program has left out what need not be told.
        let nothing = BTreeSet::new();
        let mut read = |witness: &mut Witness| {
            let told = witness.next(|record| {
                let Ok(Record { at, task, what }) = record else {
                    *messages += 1;
                    return tally.cut_short(0);
                };
                let at = BootTime::from_nanos(at);
                *latest = at;
                match what {
                    Recorded::Message(message) => {
                        *messages += 1;
                        let mut writer = |port| writers.writer(at, &task, port);
                        tally.tell(at, message, &nothing, &mut writer, each);
                    }
                    Recorded::Truncated(message) => {
                        *messages += 1;
                        tally.cut_short(message.len());
                    }
                    Recorded::Refusal(refusal) => {
                        let process = writers.writer(at, &task, refusal.port);
                        refused(at, &refusal, process, each);
                    }
                }
            });
            told.ok_or(io::ErrorKind::WouldBlock.into())
        };
        // Only a look within `try_io` may say that there is nothing: it makes the ring not ready, and
        // that must not undo the news of a record that came after an earlier look.
        read(witness.get_mut()).is_ok() || witness.try_io_mut(Interest::READABLE, read).is_ok()
    }

    /// What the witness has counted; what cannot be read has not grown.
    fn counts(&self) -> Counts {
        self.witness.get_ref().counts().unwrap_or_else(|error| {
            warn!(%error, UNREADABLE);
            Counts { lost: self.lost, ..Counts::default() }
        })
    }
}
