//! What was told, of whom it is not known yet whether they have it, and who takes care of it.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use detector_core::finding::{Finding, FindingKey, State};
use detector_core::time::BootTime;
use jiff::Timestamp;

use super::super::book::{Accepted, Kept};
use super::super::report::{Acknowledgement, How, Report};

/// A finding, and what became of it on its way to people.
#[derive(Debug)]
pub(in crate::sink) struct Entry {
    n: u64,
    report: Report,
    /// Sinks that were told of it one by one.
    pub(super) told: BTreeSet<Box<str>>,
    awaits: BTreeSet<Box<str>>,
    accepted: Option<Accepted>,
    last: BootTime,
}

/// All of them.
#[derive(Debug, Default)]
pub(in crate::sink) struct Told {
    entries: HashMap<FindingKey, Entry>,
    by_number: HashMap<u64, FindingKey>,
    last: u64,
}

// === impl Entry ===

impl Entry {
    fn new(report: &Report) -> Self {
        Self {
            n: 0,
            report: report.clone(),
            told: BTreeSet::new(),
            awaits: BTreeSet::new(),
            accepted: None,
            last: report.told,
        }
    }

    /// Whether people need not be told this, since somebody takes care of it and it is no worse.
    pub(super) fn is_quiet(&self, report: &Report) -> bool {
        let Some(accepted) = &self.accepted else { return false };
        let charge = &report.finding.charge;
        matches!(report.how, How::Updated | How::Repeated)
            && charge.severity <= accepted.severity
            && charge.certainty <= accepted.certainty
    }

    /// Who takes care of it.
    pub(super) fn acknowledged(&self) -> Option<Acknowledgement> {
        self.accepted.as_ref().map(|accepted| accepted.by.clone())
    }
}

// === impl Told ===

impl Told {
    /// The entry for a report's finding; a new one where it is new, or where the one before is over.
    pub(super) fn entry(&mut self, report: &Report) -> &Entry {
        let entry =
            self.entries.entry(report.finding.key.clone()).or_insert_with(|| Entry::new(report));
        if report.how == How::Opened {
            self.by_number.remove(&entry.n);
            *entry = Entry::new(report);
        }
        entry
    }

    /// Notes what is told, to whom, and to whom one by one; gives its number.
    pub(super) fn note(
        &mut self,
        report: &Report,
        awaits: BTreeSet<Box<str>>,
        told: BTreeSet<Box<str>>,
    ) -> u64 {
        self.last += 1;
        let n = self.last;
        let key = report.finding.key.clone();
        let entry = self.entries.entry(key.clone()).or_insert_with(|| Entry::new(report));
        self.by_number.remove(&entry.n);
        entry.n = n;
        entry.report = report.clone();
        // Who has not confirmed what was told before gets this behind it.
        entry.awaits.extend(awaits);
        entry.told.extend(told);
        entry.last = report.told;
        self.by_number.insert(n, key);
        n
    }

    /// Takes over what an earlier agent had told.
    pub(super) fn restore(&mut self, kept: Kept, mut report: Report) {
        let Kept { n, finding: _, told, awaits, acknowledged } = kept;
        report.acknowledged = acknowledged.as_ref().map(|accepted| accepted.by.clone());
        let key = report.finding.key.clone();
        let now = report.told;
        // What is over by the boot is news to whoever was told that it began.
        let awaits = if report.finding.state == State::Closed && awaits.is_empty() {
            told.clone()
        } else {
            awaits
        };
        let entry = Entry { n, report, told, awaits, accepted: acknowledged, last: now };
        self.last = self.last.max(n);
        self.by_number.insert(n, key.clone());
        self.entries.insert(key, entry);
    }

    /// What an earlier agent may not have told, with those who wait for it; the oldest first.
    pub(super) fn to_tell(&self) -> Vec<(Report, BTreeSet<Box<str>>)> {
        let mut entries: Vec<&Entry> = self.entries.values().collect();
        entries.sort_by_key(|entry| entry.n);
        entries.into_iter().map(|entry| (entry.report.clone(), entry.awaits.clone())).collect()
    }

    /// Forgets that anybody waits: there is no such sink any more.
    pub(super) fn nobody_waits(&mut self, key: &FindingKey) {
        let Some(entry) = self.entries.get_mut(key) else { return };
        entry.awaits.clear();
        let n = entry.n;
        self.forget_if_over(n);
    }

    /// A sink has what was told.
    pub(super) fn done(&mut self, n: u64, sink: &str) {
        let entry = self.by_number.get(&n).and_then(|key| self.entries.get_mut(key));
        if let Some(entry) = entry {
            entry.awaits.remove(sink);
        }
    }

    /// Forgets a finding that is over and that everybody knows to be.
    pub(super) fn forget_if_over(&mut self, n: u64) {
        let Some(key) = self.by_number.get(&n) else { return };
        let over = self.entries.get(key).is_some_and(|entry| {
            entry.report.finding.state == State::Closed && entry.awaits.is_empty()
        });
        if over {
            self.entries.remove(key);
            self.by_number.remove(&n);
        }
    }

    /// Findings that are to be told again: those that stand for so long since they were told last, and
    /// those whose acknowledgement has expired, which is marked.
    pub(super) fn due(
        &mut self,
        now: BootTime,
        repeat: Duration,
        wall: Timestamp,
    ) -> Vec<(Report, bool)> {
        let mut due = Vec::new();
        for entry in self.entries.values_mut() {
            if entry.report.finding.state == State::Closed {
                continue;
            }
            let expired = entry.accepted.as_ref().is_some_and(|accepted| accepted.by.until <= wall);
            if expired {
                entry.accepted = None;
            }
            let old = !repeat.is_zero() && now.since(entry.last) >= repeat;
            if expired || (old && entry.accepted.is_none()) {
                due.push((entry.report.clone(), expired));
            }
        }
        due
    }

    /// Notes that somebody takes care of a finding, or nobody any more; `None` where none has the key.
    pub(super) fn acknowledge(
        &mut self,
        key: &str,
        by: Option<&Acknowledgement>,
    ) -> Option<(FindingKey, Option<Accepted>)> {
        let entry = self.entries.values_mut().find(|entry| {
            entry.report.finding.state != State::Closed && entry.report.key() == key
        })?;
        let charge = &entry.report.finding.charge;
        entry.accepted = by.map(|by| Accepted {
            by: by.clone(),
            severity: charge.severity,
            certainty: charge.certainty,
        });
        entry.report.acknowledged = by.cloned();
        Some((entry.report.finding.key.clone(), entry.accepted.clone()))
    }

    /// What was told of a finding last, if it stands.
    pub(super) fn says(&self, key: &FindingKey) -> Option<&Finding> {
        let finding = &self.entries.get(key)?.report.finding;
        (finding.state != State::Closed).then_some(finding)
    }

    /// Every finding that stands.
    pub(super) fn standing(&self) -> impl Iterator<Item = Finding> {
        let all = self.entries.values().map(|entry| &entry.report.finding);
        all.filter(|finding| finding.state != State::Closed).cloned()
    }

    /// Who takes care of which.
    pub(super) fn reports(&self) -> Vec<Report> {
        let standing = self.entries.values().map(|entry| &entry.report);
        standing.filter(|report| report.finding.state != State::Closed).cloned().collect()
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// As it is kept in the state file.
    pub(super) fn kept(&self, n: u64) -> Option<Kept> {
        self.by_number.get(&n).and_then(|key| self.entries.get(key)).map(kept)
    }

    /// All, as they are kept in the state file.
    pub(super) fn all(&self) -> impl Iterator<Item = Kept> {
        self.entries.values().map(kept)
    }
}

fn kept(entry: &Entry) -> Kept {
    Kept {
        n: entry.n,
        finding: entry.report.finding.clone(),
        told: entry.told.clone(),
        awaits: entry.awaits.clone(),
        acknowledged: entry.accepted.clone(),
    }
}
