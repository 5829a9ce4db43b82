//! What was told, of whom it is not known yet whether they have it, and who takes care of it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use detector_core::finding::{Finding, FindingKey, State};
use jiff::{SignedDuration, Timestamp};

use super::super::book::{Accepted, Boot, Kept};
use super::super::report::{Acknowledgement, How, Report};

/// A finding, and what became of it on its way to people.
#[derive(Debug)]
pub(in crate::sink) struct Entry {
    n: u64,
    report: Report,
    boot: Boot,
    /// Sinks that were told of it one by one.
    pub(super) told: BTreeSet<Box<str>>,
    /// Sinks that were told of it in a summary.
    pub(super) summed: BTreeSet<Box<str>>,
    /// Sinks that may not have all that was told, and the number of the last that they have to confirm.
    awaits: BTreeMap<Box<str>, u64>,
    accepted: Option<Accepted>,
    /// When it was last told, by the wall clock: that goes on while the agent does not run.
    last: Timestamp,
}

/// All of them.
#[derive(Debug)]
pub(in crate::sink) struct Told {
    entries: HashMap<FindingKey, Entry>,
    /// The findings of numbers that some sinks have yet to confirm, and how many have to.
    numbers: HashMap<u64, (FindingKey, usize)>,
    last: u64,
    /// This boot.
    boot: Box<str>,
}

// === impl Entry ===

impl Entry {
    fn new(report: &Report, boot: Boot) -> Self {
        Self {
            n: 0,
            report: report.clone(),
            boot,
            told: BTreeSet::new(),
            summed: BTreeSet::new(),
            awaits: BTreeMap::new(),
            accepted: None,
            last: Timestamp::now(),
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

    /// Whether it is of another severity or verdict than was told last.
    pub(super) fn is_turned_by(&self, report: &Report) -> bool {
        let (old, new) = (&self.report.finding.charge, &report.finding.charge);
        old.severity != new.severity || old.certainty != new.certainty
    }

    /// Who takes care of it.
    pub(super) fn acknowledged(&self) -> Option<Acknowledgement> {
        self.accepted.as_ref().map(|accepted| accepted.by.clone())
    }

    fn is_over(&self) -> bool {
        self.report.finding.state == State::Closed && self.awaits.is_empty()
    }

    fn kept(&self) -> Kept {
        Kept {
            n: self.n,
            finding: self.report.finding.clone(),
            told: self.told.clone(),
            summed: self.summed.clone(),
            awaits: self.awaits.clone(),
            last: self.last,
            boot: self.boot.clone(),
            acknowledged: self.accepted.clone(),
        }
    }
}

// === impl Told ===

impl Told {
    /// Nothing was told yet, in this boot.
    pub(super) fn new(boot: Box<str>) -> Self {
        Self { entries: HashMap::new(), numbers: HashMap::new(), last: 0, boot }
    }

    /// The entry for a report's finding; a new one where it is new, or where the one before is over.
    pub(super) fn entry(&mut self, report: &Report) -> &Entry {
        let boot = || Boot { id: self.boot.clone(), wall: report.boot() };
        let key = report.finding.key.clone();
        let entry = self.entries.entry(key).or_insert_with(|| Entry::new(report, boot()));
        if report.how == How::Opened {
            // Who has yet to hear of the one before hears of this one after it.
            let awaits = std::mem::take(&mut entry.awaits);
            *entry = Entry { awaits, ..Entry::new(report, boot()) };
        }
        entry
    }

    /// Whether anything is known of the finding.
    pub(super) fn knows(&self, key: &FindingKey) -> bool {
        self.entries.contains_key(key)
    }

    /// Notes what is told, to whom one by one, and to whom in a summary; gives its number. What is told
    /// to some only reminds nobody else.
    pub(super) fn note(
        &mut self,
        report: &Report,
        told: BTreeSet<Box<str>>,
        summed: BTreeSet<Box<str>>,
        to_all: bool,
    ) -> u64 {
        self.last += 1;
        let n = self.last;
        let key = report.finding.key.clone();
        let Some(entry) = self.entries.get_mut(&key) else { return n };
        entry.n = n;
        entry.report = report.clone();
        if to_all {
            entry.last = Timestamp::now();
        }
        let waiting = told.len() + summed.len();
        for sink in told.iter().chain(&summed) {
            entry.awaits.insert(sink.clone(), n);
        }
        entry.told.extend(told);
        entry.summed.extend(summed);
        if waiting > 0 {
            self.numbers.insert(n, (key, waiting));
        }
        n
    }

    /// Takes over what an earlier agent had told. `known` are the sinks that there are.
    pub(super) fn restore(&mut self, kept: Kept, mut report: Report, known: &BTreeSet<Box<str>>) {
        let Kept { n, finding, told, summed, mut awaits, last, boot, acknowledged } = kept;
        if report.finding.state == State::Closed && finding.state != State::Closed {
            // What the boot took away is news to whoever was told that it began.
            awaits.extend(told.iter().map(|sink| (sink.clone(), n)));
        }
        awaits.retain(|sink, _| known.contains(sink));
        report.acknowledged = acknowledged.as_ref().map(|accepted| accepted.by.clone());
        let key = report.finding.key.clone();
        let entry = Entry { n, report, boot, told, summed, awaits, accepted: acknowledged, last };
        self.last = self.last.max(n);
        if !entry.is_over() {
            self.entries.insert(key, entry);
        }
    }

    /// Takes out what stands.
    pub(super) fn take_standing(&mut self) -> Vec<Kept> {
        let standing = |entry: &Entry| entry.report.finding.state != State::Closed;
        let taken = self.entries.extract_if(|_, entry| standing(entry));
        taken.map(|(_, entry)| entry.kept()).collect()
    }

    /// What an earlier agent may not have told, with those who wait for it; the oldest first.
    pub(super) fn to_tell(&self) -> Vec<(Report, BTreeSet<Box<str>>)> {
        let mut entries: Vec<&Entry> = self.entries.values().collect();
        entries.sort_by_key(|entry| entry.n);
        entries
            .into_iter()
            .map(|entry| (entry.report.clone(), entry.awaits.keys().cloned().collect()))
            .collect()
    }

    /// A sink has what was told by this number, and all before of the same finding.
    pub(super) fn done(&mut self, n: u64, sink: &str) {
        let Some((key, waiting)) = self.numbers.get_mut(&n) else { return };
        if let Some(entry) = self.entries.get_mut(key) {
            if entry.awaits.get(sink).is_some_and(|last| *last <= n) {
                entry.awaits.remove(sink);
            }
            if entry.is_over() {
                self.entries.remove(key);
            }
        }
        *waiting -= 1;
        if *waiting == 0 {
            self.numbers.remove(&n);
        }
    }

    /// Forgets a finding that is over and that nobody waits to hear of.
    pub(super) fn forget_if_over(&mut self, key: &FindingKey) {
        if self.entries.get(key).is_some_and(Entry::is_over) {
            self.entries.remove(key);
        }
    }

    /// Findings that are to be told again: those that stand for so long since they were told last, and
    /// those whose acknowledgement has expired, which is marked.
    pub(super) fn due(&mut self, repeat: Duration, wall: Timestamp) -> Vec<(Report, bool)> {
        let repeat = SignedDuration::try_from(repeat).unwrap_or(SignedDuration::MAX);
        let mut due = Vec::new();
        for entry in self.entries.values_mut() {
            if entry.report.finding.state == State::Closed {
                continue;
            }
            let expired = entry.accepted.as_ref().is_some_and(|accepted| accepted.by.until <= wall);
            if expired {
                entry.accepted = None;
                entry.report.acknowledged = None;
            }
            let old = !repeat.is_zero() && wall.duration_since(entry.last) >= repeat;
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
        self.reports().into_iter().map(|report| report.finding)
    }

    /// Every finding that stands, as it was told last.
    pub(super) fn reports(&self) -> Vec<Report> {
        let all = self.entries.values().map(|entry| &entry.report);
        all.filter(|report| report.finding.state != State::Closed).cloned().collect()
    }

    /// What was told of a finding last, and to whom.
    pub(super) fn report(&self, key: &FindingKey) -> Option<(&Report, &BTreeSet<Box<str>>)> {
        self.entries.get(key).map(|entry| (&entry.report, &entry.told))
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// As it is kept in the state file.
    pub(super) fn kept(&self, key: &FindingKey) -> Option<Kept> {
        self.entries.get(key).map(Entry::kept)
    }

    /// All, as they are kept in the state file.
    pub(super) fn all(&self) -> impl Iterator<Item = Kept> {
        self.entries.values().map(Entry::kept)
    }
}
