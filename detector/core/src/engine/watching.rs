//! What the programs on interfaces are to count, as it was last said, and findings that wait for a
//! last count.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use crate::finding::{Diverted, Finding, FindingKey, Subject};
use crate::route::{IfIndex, Prefix};
use crate::time::BootTime;

/// What was said of whom to watch.
#[derive(Debug, Default)]
pub(super) struct Watching {
    /// Who has an interest in the packets of an address.
    by_address: BTreeMap<IpAddr, BTreeSet<Subject>>,
    /// Findings that are over, by address, and when they are told at the latest.
    closing: BTreeMap<IpAddr, (BootTime, Vec<Closing>)>,
    sources: HashMap<IfIndex, Vec<Prefix>>,
    ranges: Vec<Prefix>,
}

/// A finding that is over, and what it had diverted before the agent was last started.
pub(super) type Closing = (Finding, Option<Diverted>);

/// What is to be said when a subject has an interest, or none any more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Change {
    /// The address is watched from now on.
    Begins,
    /// Nobody has an interest any more.
    Ends,
    /// All is as before.
    Nothing,
}

/// The address whose packets tell how much a subject diverts.
pub(super) fn watched_address(subject: &Subject) -> Option<IpAddr> {
    match subject {
        // They are counted where they come out.
        Subject::Pretence(_) => None,
        subject => subject.prefix()?.host_address(),
    }
}

// === impl Watching ===

impl Watching {
    /// Notes whether a subject has an interest in an address.
    pub(super) fn set(&mut self, address: IpAddr, subject: &Subject, open: bool) -> Change {
        if open {
            let subjects = self.by_address.entry(address).or_default();
            let first = subjects.is_empty();
            if !subjects.contains(subject) {
                subjects.insert(subject.clone());
            }
            return if first { Change::Begins } else { Change::Nothing };
        }
        let Some(subjects) = self.by_address.get_mut(&address) else { return Change::Nothing };
        if !subjects.remove(subject) || !subjects.is_empty() {
            return Change::Nothing;
        }
        self.by_address.remove(&address);
        Change::Ends
    }

    /// Whether anybody has an interest in the address.
    pub(super) fn is_watched(&self, address: IpAddr) -> bool {
        self.by_address.contains_key(&address)
    }

    /// Who has an interest in the address.
    pub(super) fn subjects(&self, address: IpAddr) -> BTreeSet<Subject> {
        self.by_address.get(&address).cloned().unwrap_or_default()
    }

    /// Lets a finding that is over wait for the last count of its address; true where that has to be
    /// asked for.
    pub(super) fn close(&mut self, address: IpAddr, until: BootTime, finding: Closing) -> bool {
        let (_, waiting) = self.closing.entry(address).or_insert_with(|| (until, Vec::new()));
        waiting.push(finding);
        waiting.len() == 1
    }

    /// The findings that waited for this count.
    pub(super) fn counted(&mut self, address: IpAddr) -> Vec<Closing> {
        self.closing.remove(&address).map(|(_, findings)| findings).unwrap_or_default()
    }

    /// A finding of this key that still waits, so that it is told before the next of the same key.
    pub(super) fn take(&mut self, address: IpAddr, key: &FindingKey) -> Option<Finding> {
        let (_, waiting) = self.closing.get_mut(&address)?;
        let at = waiting.iter().position(|(finding, _)| finding.key == *key)?;
        let (finding, _) = waiting.remove(at);
        if waiting.is_empty() {
            self.closing.remove(&address);
        }
        Some(finding)
    }

    /// Addresses for whose last count nobody waits any longer; all where no time is given.
    pub(super) fn overdue(&self, now: Option<BootTime>) -> Vec<IpAddr> {
        let due = |until: BootTime| now.is_none_or(|now| until <= now);
        self.closing.iter().filter(|(_, (until, _))| due(*until)).map(|(at, _)| *at).collect()
    }

    /// When the first of them is due.
    pub(super) fn next_deadline(&self) -> Option<BootTime> {
        self.closing.values().map(|(until, _)| *until).min()
    }

    /// Whether this has to be said of an interface's sources.
    pub(super) fn set_sources(&mut self, interface: IfIndex, sources: &[Prefix]) -> bool {
        let old = self.sources.get(&interface).map_or(&[][..], Vec::as_slice);
        if old == sources {
            return false;
        }
        self.sources.insert(interface, sources.to_vec());
        true
    }

    /// Forgets an interface that is gone.
    pub(super) fn forget_interface(&mut self, interface: IfIndex) {
        self.sources.remove(&interface);
    }

    /// Whether this has to be said of the ranges of pods' addresses.
    pub(super) fn set_ranges(&mut self, ranges: &[Prefix]) -> bool {
        if self.ranges == ranges {
            return false;
        }
        self.ranges = ranges.to_vec();
        true
    }
}
