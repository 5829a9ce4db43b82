//! Findings from an earlier life of the agent: they stand until it is known again what they rest on.
//!
//! After a restart nothing is known at first, and what cannot be seen yet must not close a finding,
//! nor take anything of it back. So a restored finding is left as it is until the senses that it rests
//! on have told all there is, or time is up for those that may never. As long as the cluster has told
//! nothing in this life, it ends only where the kernel has taken away what leads there. What else
//! happens to the same destination is judged as ever.

use std::collections::BTreeSet;

use super::Engine;
use crate::facts::translations::CONNECTION_SPEAKS;
use crate::finding::{Claim, Claimant, Finding, State, Subject, Target};
use crate::judge;
use crate::ledger::Blinded;
use crate::observation::Sense;
use crate::time::BootTime;
use crate::traffic::{Pretended, Tally};

/// What a verdict can rest on and the API server tells.
const CLUSTER: [Sense; 4] = [Sense::Pods, Sense::Nodes, Sense::Services, Sense::Allowances];

/// The subjects of restored findings that were not judged yet.
#[derive(Debug, Default)]
pub(super) struct Restoring {
    held: BTreeSet<Subject>,
    /// Until when senses are waited for that may stay silent.
    until: Option<BootTime>,
    /// What was in sight when it was looked last: how many senses, whether the pools, whether time
    /// is up.
    sight: Option<(usize, bool, bool)>,
}

// === impl Restoring ===

impl Restoring {
    /// Lets time pass.
    pub(super) fn pass(&mut self, now: BootTime) {
        self.until = self.until.filter(|until| now < *until);
    }

    /// When time is up for senses that stay silent.
    pub(super) fn next_deadline(&self) -> Option<BootTime> {
        self.until
    }
}

impl Engine {
    /// Takes over the findings that stood when the agent last ended, before anything is observed.
    /// Each is judged anew once what it rests on is in sight: one that still stands is not told
    /// again, one that is over is closed. Those that are closed already are left out.
    pub fn restore(&mut self, now: BootTime, findings: Vec<Finding>) {
        for mut finding in findings.into_iter().filter(|finding| finding.state != State::Closed) {
            let subject = finding.key.subject.clone();
            let traffic = finding.charge.traffic.clone();
            match (&subject, traffic) {
                // What was counted of it before is what is known of it now.
                (Subject::Pretence(key), traffic) => {
                    let traffic = traffic.unwrap_or_default();
                    let (first, last) = traffic.span.unwrap_or((finding.began, finding.at));
                    let pretended = Pretended {
                        interface: key.interface,
                        address: key.address,
                        pretence: key.pretence,
                        destination: None,
                        tally: Tally {
                            packets: traffic.packets,
                            bytes: traffic.bytes,
                            first,
                            last,
                        },
                    };
                    self.facts.packets.pretend(pretended, false);
                }
                (_, Some(traffic)) if traffic.packets > 0 => {
                    self.facts.earlier.insert(finding.key.clone(), traffic);
                }
                _ => {}
            }
            // It may have been written by a clock that ran ahead of this one.
            finding.began = finding.began.min(now);
            finding.at = finding.at.min(now);
            self.ledger.restore(finding);
            self.watch(&subject);
            self.restoring.held.insert(subject);
        }
        if !self.restoring.held.is_empty() {
            self.restoring.until = Some(now.after(self.facts.settings.sync));
            self.restoring.sight = None;
        }
    }

    /// Judges the restored findings of which all is in sight that they rest on.
    pub(super) fn release(&mut self, now: BootTime) {
        if self.restoring.held.is_empty() {
            return;
        }
        let overdue = self.restoring.until.is_none();
        let sight = Some((self.facts.synced.len(), self.facts.pools.is_told(), overdue));
        if std::mem::replace(&mut self.restoring.sight, sight) == sight {
            return;
        }
        let ready = self.restoring.held.iter().filter(|subject| self.is_in_sight(subject));
        let ready: BTreeSet<Subject> = ready.cloned().collect();
        if ready.is_empty() {
            return;
        }
        self.restoring.held.retain(|subject| !ready.contains(subject));
        if self.restoring.held.is_empty() {
            self.restoring.until = None;
        }
        self.judge_all(now, now, ready);
    }

    /// What of a subject's restored findings cannot be judged now.
    pub(super) fn blinded(&self, now: BootTime, subject: &Subject) -> Blinded {
        if !self.ledger.has_restored(subject) {
            return Blinded::Not;
        }
        if self.restoring.held.contains(subject) {
            return Blinded::Whole;
        }
        if self.has_heard_of_cluster() {
            return Blinded::Not;
        }
        let tables = &self.facts.kernel;
        let all = || {
            let targets = self.ledger.targets(subject);
            targets.cloned().collect::<BTreeSet<Target>>()
        };
        Blinded::Cluster(match subject {
            Subject::Prefix(prefix) => tables
                .fib
                .get(*prefix)
                .iter()
                .filter(|entry| {
                    let table = entry.route.table;
                    table.is_builtin() || tables.rule_for(table).is_some()
                })
                .flat_map(|entry| judge::targets(&self.facts, entry))
                .collect(),
            Subject::Rule(rule) if tables.rule_since(rule).is_some() => all(),
            Subject::Neighbour(neighbour) if tables.neighbour_since(neighbour).is_some() => all(),
            Subject::Translation(translation) => {
                let translations = &self.facts.translations;
                let connected = translations.connected(translation);
                let speaks = connected
                    .is_some_and(|connected| now < connected.last.after(CONNECTION_SPEAKS));
                let stands = speaks || translations.rules(translation).next().is_some();
                if stands { all() } else { BTreeSet::new() }
            }
            // They rest on what is seen here, and end by themselves.
            _ => BTreeSet::new(),
        })
    }

    /// Whether the API server has told all there is at least once in this life, or all that it will.
    fn has_heard_of_cluster(&self) -> bool {
        let told = |sense: &Sense| self.facts.synced.contains(sense);
        // A sense that never comes, for want of a right, say, is not waited for longer than elsewhere.
        let pods = told(&Sense::Pods) && !self.facts.blind.contains_key(&Sense::Pods);
        (self.facts.pools.is_told() && CLUSTER.iter().all(told))
            || (self.restoring.until.is_none() && pods)
    }

    fn is_in_sight(&self, subject: &Subject) -> bool {
        let told = |sense: &Sense| self.facts.synced.contains(sense);
        let overdue = self.restoring.until.is_none();
        if !told(&Sense::Kernel) || !(self.has_heard_of_cluster() || overdue) {
            return false;
        }
        match subject {
            // Nobody can say that a claim was taken back but who told of it.
            Subject::Claim(Claim { claimant: Claimant::Pod(_), .. }) => told(&Sense::Pods),
            Subject::Claim(Claim { claimant: Claimant::Service(_), .. }) => told(&Sense::Services),
            Subject::Translation(_) => {
                (told(&Sense::Translations) && told(&Sense::Connections)) || overdue
            }
            Subject::Prefix(_)
            | Subject::Rule(_)
            | Subject::Neighbour(_)
            | Subject::Pretence(_) => true,
        }
    }
}
