//! What was asked and answered: for tests that bound it, and for tests that wait for it.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::kind::Kind;

/// What a request does, in the words of Kubernetes' own authorization.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verb {
    /// GET of one object.
    Get,
    /// GET of a collection.
    List,
    /// GET of a collection with `watch=true`.
    Watch,
    /// POST.
    Create,
    /// PUT.
    Update,
    /// PATCH.
    Patch,
    /// DELETE.
    Delete,
}

/// Counters of one server, from its start.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    requests: BTreeMap<(Verb, &'static str), u64>,
    open_watches: BTreeMap<&'static str, u64>,
    refused: BTreeMap<u16, u64>,
    unknown_paths: Vec<String>,
    bytes: u64,
    connections: u64,
}

/// The counters of a running server.
#[derive(Debug, Default)]
pub struct Traffic {
    tally: Mutex<Tally>,
    changed: Condvar,
}

/// Counts an open watch until it is dropped.
pub(super) struct OpenWatch {
    traffic: Arc<Traffic>,
    kind: &'static Kind,
}

// === impl Tally ===

impl Tally {
    /// Requests of a verb for a kind, such as `pods`, however they were answered.
    pub fn requests(&self, verb: Verb, kind: &str) -> u64 {
        let same = |asked: &(Verb, &str)| *asked == (verb, kind);
        self.requests.iter().filter(|(asked, _)| same(asked)).map(|(_, count)| count).sum()
    }

    /// Requests of all verbs for all kinds.
    pub fn all_requests(&self) -> u64 {
        self.requests.values().sum()
    }

    /// Watches of a kind that are open now.
    pub fn open_watches(&self, kind: &str) -> u64 {
        self.open_watches.get(kind).copied().unwrap_or_default()
    }

    /// Answers with this HTTP status code, if it is 400 or more.
    pub fn refused(&self, code: u16) -> u64 {
        self.refused.get(&code).copied().unwrap_or_default()
    }

    /// Paths that were asked for and name nothing that is served.
    pub fn unknown_paths(&self) -> &[String] {
        &self.unknown_paths
    }

    /// Bytes of all bodies that were sent, those of watches included.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Connections that were accepted.
    pub fn connections(&self) -> u64 {
        self.connections
    }
}

// === impl Traffic ===

impl Traffic {
    /// The counters as they are now.
    pub fn now(&self) -> Tally {
        self.lock().clone()
    }

    /// Waits, blocking the thread, until the counters satisfy a condition; when that takes longer
    /// than `limit`, gives the counters as they were then, as an error.
    pub fn wait(&self, limit: Duration, holds: impl Fn(&Tally) -> bool) -> Result<Tally, Tally> {
        let end = Instant::now() + limit;
        let mut tally = self.lock();
        while !holds(&tally) {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(tally.clone());
            }
            let waited = self.changed.wait_timeout(tally, left);
            tally = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(tally.clone())
    }

    pub(super) fn asked(&self, verb: Verb, kind: &'static Kind) {
        self.change(|tally| *tally.requests.entry((verb, kind.plural)).or_default() += 1);
    }

    pub(super) fn unknown(&self, path: &str) {
        self.change(|tally| tally.unknown_paths.push(path.to_owned()));
    }

    pub(super) fn refused(&self, code: u16) {
        self.change(|tally| *tally.refused.entry(code).or_default() += 1);
    }

    pub(super) fn sent(&self, bytes: usize) {
        // usize is at most 64 bits wide on every target of Rust.
        self.change(|tally| tally.bytes += bytes as u64);
    }

    pub(super) fn connected(&self) {
        self.change(|tally| tally.connections += 1);
    }

    pub(super) fn opened(self: &Arc<Self>, kind: &'static Kind) -> OpenWatch {
        self.change(|tally| *tally.open_watches.entry(kind.plural).or_default() += 1);
        OpenWatch { traffic: Arc::clone(self), kind }
    }

    fn change(&self, change: impl FnOnce(&mut Tally)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl OpenWatch ===

impl Drop for OpenWatch {
    fn drop(&mut self) {
        self.traffic.change(|tally| {
            if let Some(count) = tally.open_watches.get_mut(self.kind.plural) {
                *count -= 1;
            }
        });
    }
}
