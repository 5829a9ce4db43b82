//! How much a sink is told, and the exact sum of what it is not.
//!
//! Within a window of time a sink takes so many messages in all, and so many about one attacker:
//! thousands of hijacks by one of them must not bury that of another. What is held back is told at the
//! window's end, in one summary with exact counts; nothing is left out of it, and nothing is counted
//! twice. Pure: the time is what it is told.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::time::Duration;

use detector_core::finding::Severity;
use detector_core::time::BootTime;
use serde::Serialize;

use super::report::{How, Report};

/// Attackers that a summary names; the rest are counted together.
const NAMED: usize = 20;

/// Attackers of one window that are kept apart.
const APART: usize = 10_000;

/// Keys that a summary shows of each attacker.
const SAMPLE: usize = 5;

/// The limits of a sink.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) window: Duration,
    pub(super) per_attacker: u32,
    pub(super) per_sink: u32,
}

/// So many of each sort.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Counts {
    /// Findings that are new.
    pub opened: u64,
    /// Findings of which more is known.
    pub updated: u64,
    /// Findings that still stand.
    pub repeated: u64,
    /// Findings that are over.
    pub closed: u64,
}

/// What was held back about one attacker.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Held {
    /// Who.
    pub attacker: String,
    /// How much.
    #[serde(flatten)]
    pub counts: Counts,
    /// The worst of it.
    #[serde(serialize_with = "word")]
    pub severity: Severity,
    /// Some of the findings.
    pub sample: Vec<String>,
}

/// What was held back in one window.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Batch {
    /// When the window began.
    pub since: BootTime,
    /// When it ended.
    pub until: BootTime,
    /// All of it.
    pub counts: Counts,
    /// The worst of it.
    pub severity: Severity,
    /// By attacker, the worst first, then the busiest; not all where there are many.
    pub attackers: Vec<Held>,
    /// Attackers that are not named.
    pub others: u64,
    /// What was held back about those.
    pub of_others: Counts,
    /// The numbers of what it sums up.
    pub(super) numbers: Vec<u64>,
}

/// The state of one sink's limits.
#[derive(Debug)]
pub(super) struct Limiter {
    limits: Limits,
    /// When the present window began; `None` where none is open.
    began: Option<BootTime>,
    told: u32,
    /// Ends of findings that were told.
    ended: u32,
    by_attacker: HashMap<String, u32>,
    held: BTreeMap<String, Held>,
    /// Of attackers beyond those that are kept apart: who, by the hashes of their names, and how much.
    beyond: (HashSet<u64>, Counts),
    all: Counts,
    worst: Option<Severity>,
    numbers: Vec<u64>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands a reference over")]
fn word<S: serde::Serializer>(severity: &Severity, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(severity.as_str())
}

// === impl Counts ===

impl Counts {
    /// All together.
    pub fn sum(&self) -> u64 {
        self.opened + self.updated + self.repeated + self.closed
    }

    fn add(&mut self, how: How) {
        match how {
            How::Opened => self.opened += 1,
            How::Updated => self.updated += 1,
            How::Repeated => self.repeated += 1,
            How::Closed => self.closed += 1,
        }
    }

    fn merge(&mut self, more: Self) {
        self.opened += more.opened;
        self.updated += more.updated;
        self.repeated += more.repeated;
        self.closed += more.closed;
    }
}

// === impl Limiter ===

impl Limiter {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            began: None,
            told: 0,
            ended: 0,
            by_attacker: HashMap::new(),
            held: BTreeMap::new(),
            beyond: (HashSet::new(), Counts::default()),
            all: Counts::default(),
            worst: None,
            numbers: Vec::new(),
        }
    }

    /// Whether there is room for a message about this attacker; if so it is taken.
    ///
    /// The last quarter of the room is for attackers of whom nothing was told in this window, and what
    /// is told again takes half of it at most: neither the noise of others nor reminders may bury what
    /// is new. The end of what was told by itself has room of its own.
    pub(super) fn admits(&mut self, now: BootTime, attacker: &str, how: How) -> bool {
        self.began.get_or_insert(now);
        let Limits { per_sink, per_attacker, .. } = self.limits;
        if how == How::Closed {
            let fits = self.ended < per_sink;
            self.ended += u32::from(fits);
            return fits;
        }
        let of_this = self.by_attacker.get(attacker).copied();
        let room = match (how, of_this) {
            (How::Repeated, _) => per_sink.div_ceil(2),
            (_, None) => per_sink,
            (_, Some(_)) => per_sink - per_sink / 4,
        };
        let of_this = of_this.unwrap_or_default();
        if self.told >= room || of_this >= per_attacker {
            return false;
        }
        self.told += 1;
        self.by_attacker.insert(attacker.to_owned(), of_this + 1);
        true
    }

    /// Notes a message that is held back.
    pub(super) fn hold(&mut self, now: BootTime, number: u64, report: &Report) {
        self.began.get_or_insert(now);
        let (attacker, how, severity) = (report.attacker(), report.how, report.severity());
        self.all.add(how);
        self.worst = self.worst.max(Some(severity));
        self.numbers.push(number);
        if !self.held.contains_key(&attacker) && self.held.len() >= APART {
            let mut hasher = DefaultHasher::new();
            attacker.hash(&mut hasher);
            self.beyond.0.insert(hasher.finish());
            self.beyond.1.add(how);
            return;
        }
        let held = self.held.entry(attacker.clone()).or_insert_with(|| Held {
            attacker,
            counts: Counts::default(),
            severity,
            sample: Vec::new(),
        });
        held.counts.add(how);
        held.severity = held.severity.max(severity);
        if held.sample.len() < SAMPLE {
            held.sample.push(report.key());
        }
    }

    /// When the present window ends.
    pub(super) fn next_deadline(&self) -> Option<BootTime> {
        self.began.map(|began| began.after(self.limits.window))
    }

    /// Ends the window if it is time; gives what was held back in it, if anything was.
    pub(super) fn end_window(&mut self, now: BootTime) -> Option<Batch> {
        if self.next_deadline().is_none_or(|end| now < end) {
            return None;
        }
        self.flush(now)
    }

    /// Ends the window, whatever the time.
    pub(super) fn flush(&mut self, now: BootTime) -> Option<Batch> {
        let limits = self.limits;
        let Self { began, held, beyond, all, worst, numbers, .. } =
            std::mem::replace(self, Self::new(limits));
        let (since, severity) = began.zip(worst)?;
        let mut attackers: Vec<Held> = held.into_values().collect();
        attackers.sort_by(|a, b| {
            let worst = b.severity.cmp(&a.severity);
            let busiest = b.counts.sum().cmp(&a.counts.sum());
            worst.then(busiest).then_with(|| a.attacker.cmp(&b.attacker))
        });
        let (mut others, mut of_others) = (beyond.0.len() as u64, beyond.1);
        for held in attackers.drain(attackers.len().min(NAMED)..) {
            others += 1;
            of_others.merge(held.counts);
        }
        Some(Batch {
            since,
            until: now,
            counts: all,
            severity,
            attackers,
            others,
            of_others,
            numbers,
        })
    }
}

#[cfg(test)]
mod tests;
