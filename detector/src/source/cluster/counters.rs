//! What the cluster source has done, in numbers that only grow.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::rejection::Rejections;

/// The numbers, shared by all tasks.
#[derive(Default)]
pub struct Counters {
    pub(super) requests: AtomicU64,
    pub(super) listings: AtomicU64,
    pub(super) failures: AtomicU64,
    pub(super) questions: AtomicU64,
    pub(super) block_questions: AtomicU64,
    pub(super) unanswered: AtomicU64,
    pub(super) statuses: AtomicU64,
    pub(super) unwritten: AtomicU64,
    pub(super) rejections: Rejections,
    /// When each watch last said something.
    heard: Mutex<BTreeMap<String, Instant>>,
}

/// The numbers at one moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    /// Requests sent to the API server.
    pub requests: u64,
    /// Complete listings that a watch began with or fell back to.
    pub listings: u64,
    /// Listings and watches that failed and were begun again.
    pub failures: u64,
    /// Questions that were asked, of all kinds.
    pub questions: u64,
    /// Questions for IPAM blocks among them.
    pub block_questions: u64,
    /// Questions that nobody could answer.
    pub unanswered: u64,
    /// Statuses of allowances that were written.
    pub statuses: u64,
    /// Statuses of allowances that could not be written; another agent's being faster is no failure.
    pub unwritten: u64,
    /// Parts of objects that were not taken.
    pub rejections: u64,
}

// === impl Counters ===

impl Counters {
    /// The numbers now.
    pub fn counts(&self) -> Counts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            requests: read(&self.requests),
            listings: read(&self.listings),
            failures: read(&self.failures),
            questions: read(&self.questions),
            block_questions: read(&self.block_questions),
            unanswered: read(&self.unanswered),
            statuses: read(&self.statuses),
            unwritten: read(&self.unwritten),
            rejections: self.rejections.count(),
        }
    }

    /// For how long each watch has said nothing, by what it watches.
    pub fn silences(&self) -> Vec<(String, Duration)> {
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        heard.iter().map(|(what, at)| (what.clone(), at.elapsed())).collect()
    }

    /// Notes that a watch has said something. `what` is as in "cannot list and watch ...".
    pub(super) fn hear(&self, what: &str) {
        let what = what.strip_prefix("list and watch ").unwrap_or(what);
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        match heard.get_mut(what) {
            Some(at) => *at = Instant::now(),
            None => drop(heard.insert(what.to_owned(), Instant::now())),
        }
    }

    /// Adds one; gives what it was.
    pub(super) fn increment(counter: &AtomicU64) -> u64 {
        counter.fetch_add(1, Ordering::Relaxed)
    }
}
