//! The ledger: what became of each diversion.
//!
//! One diversion is one finding: opened once, updated when more is known, closed when it is over.
//! A diversion that is over before it could be judged stays here until it is, so that an attack of
//! a few milliseconds is found all the same.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::facts::fib::Entry;
use crate::finding::{Certainty, Charge, Evidence, Finding, FindingKey, State, Subject, Target};
use crate::judge::{Doubt, Verdict};
use crate::time::BootTime;

/// Pieces of evidence that one finding keeps.
const EVIDENCE_CAP: usize = 32;

/// Routes of one prefix that are remembered for judgement after they are gone.
const GONE_CAP: usize = 64;

/// All diversions under judgement, and all findings that stand.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    cases: HashMap<Subject, Cases>,
    waiting: usize,
    standing: usize,
    /// Diversions that were not waited for, since too many were.
    pub(crate) overflowed: u64,
}

#[derive(Debug, Default)]
struct Cases {
    targets: BTreeMap<Target, Case>,
    gone: Vec<(Entry, BootTime)>,
    /// When the last of the gone routes went.
    ended: BootTime,
}

#[derive(Debug)]
struct Case {
    began: BootTime,
    status: Status,
    /// When it is to be looked at again.
    next: Option<BootTime>,
    /// Whether it is known from an earlier life of the agent, and was not judged in this one with
    /// all that matters in sight.
    restored: bool,
}

#[derive(Debug)]
enum Status {
    Waiting,
    Entitled,
    /// With the packets that were told of.
    Standing(Box<Finding>, u64),
}

/// What of a finding that was told in an earlier life cannot be judged now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Blinded {
    /// Nothing of it: all that it rests on is in sight.
    Not,
    /// Whose the address is. What leads to these places stands; what does not is over.
    Cluster(BTreeSet<Target>),
    /// Anything.
    Whole,
}

/// Verdicts on one subject, for routes that stand and for those that are gone.
pub(crate) struct Verdicts {
    pub(crate) live: BTreeMap<Target, (Verdict, BootTime)>,
    pub(crate) gone: BTreeMap<Target, (Verdict, BootTime)>,
    /// What restored findings are spared.
    pub(crate) blinded: Blinded,
}

impl Ledger {
    pub(crate) fn waiting(&self) -> usize {
        self.waiting
    }

    pub(crate) fn standing_count(&self) -> usize {
        self.standing
    }

    /// Every finding that stands, in the order of its key.
    pub(crate) fn standing(&self) -> Vec<&Finding> {
        let mut findings: Vec<&Finding> = self
            .cases
            .values()
            .flat_map(|cases| cases.targets.values())
            .filter_map(|case| match &case.status {
                Status::Standing(finding, _) => Some(&**finding),
                _ => None,
            })
            .collect();
        findings.sort_by(|a, b| a.key.cmp(&b.key));
        findings
    }

    /// Whether something about the subject is charged, or yet to be decided.
    pub(crate) fn is_open(&self, subject: &Subject) -> bool {
        self.cases.get(subject).is_some_and(|cases| {
            cases.targets.values().any(|case| !matches!(case.status, Status::Entitled))
        })
    }

    pub(crate) fn subjects(&self) -> impl Iterator<Item = &Subject> {
        self.cases.keys()
    }

    /// The routes of a subject that went before they were judged, and when each of them did.
    pub(crate) fn gone(&self, subject: &Subject) -> Option<&[(Entry, BootTime)]> {
        self.cases.get(subject).map(|cases| &*cases.gone).filter(|gone| !gone.is_empty())
    }

    pub(crate) fn knows(&self, subject: &Subject) -> bool {
        self.cases.contains_key(subject)
    }

    /// Whether a finding about the subject was told in an earlier life and not judged in this one.
    pub(crate) fn has_restored(&self, subject: &Subject) -> bool {
        let restored = |cases: &Cases| cases.targets.values().any(|case| case.restored);
        self.cases.get(subject).is_some_and(restored)
    }

    /// The places that a subject's cases are about.
    pub(crate) fn targets(&self, subject: &Subject) -> impl Iterator<Item = &Target> {
        self.cases.get(subject).into_iter().flat_map(|cases| cases.targets.keys())
    }

    /// Takes a finding over that was told in an earlier life of the agent.
    pub(crate) fn restore(&mut self, finding: Finding) {
        let FindingKey { subject, target } = finding.key.clone();
        let cases = self.cases.entry(subject).or_default();
        let packets = packets_of(&finding.charge);
        let case = Case {
            began: finding.began,
            status: Status::Standing(Box::new(finding), packets),
            next: None,
            restored: true,
        };
        if cases.targets.insert(target, case).is_none() {
            self.standing += 1;
        }
    }

    /// Remembers a route that went before it was judged.
    pub(crate) fn remember(
        &mut self,
        at: BootTime,
        subject: &Subject,
        targets: &[Target],
        entry: Entry,
    ) {
        let Some(cases) = self.cases.get_mut(subject) else { return };
        if cases.gone.len() < GONE_CAP && targets.iter().any(|target| cases.waits(target)) {
            cases.gone.push((entry, at));
            cases.ended = at;
        }
    }

    /// Takes the verdicts on a subject; gives what has to be told, and when to look again.
    pub(crate) fn settle(
        &mut self,
        now: BootTime,
        at: BootTime,
        cap: usize,
        subject: &Subject,
        verdicts: Verdicts,
        told: &mut Vec<Finding>,
    ) -> Option<BootTime> {
        if verdicts.live.is_empty() && !self.cases.contains_key(subject) {
            return None;
        }
        let Verdicts { live, gone, blinded } = verdicts;
        let mut cases = self.cases.remove(subject).unwrap_or_default();
        let (mut old_waiting, mut old_standing) = (0, 0);
        cases.count(&mut old_waiting, &mut old_standing);
        self.waiting -= old_waiting;
        self.standing -= old_standing;

        let absent: Vec<Target> =
            cases.targets.keys().filter(|target| !live.contains_key(target)).cloned().collect();
        for target in absent {
            if cases.is_spared(&target, &blinded) {
                if let Some(case) = cases.targets.get_mut(&target) {
                    // Only news can help: a time that has passed would be met for ever.
                    case.next = None;
                }
                continue;
            }
            let ended = cases.ended;
            cases.over(now, at, ended, subject, &target, gone.get(&target), told);
        }
        for (target, (verdict, began)) in live {
            let full = self.waiting >= cap;
            if blinded != Blinded::Not && cases.is_restored(&target) {
                cases.spare(&target, &verdict);
                continue;
            }
            if !cases.judged(now, subject, target, verdict, began, full, told) {
                self.overflowed += 1;
            }
        }
        if !gone.keys().any(|target| cases.waits(target)) {
            cases.gone.clear();
        }

        let next = cases.targets.values().filter_map(|case| case.next).min();
        if !cases.targets.is_empty() {
            cases.count(&mut self.waiting, &mut self.standing);
            self.cases.insert(subject.clone(), cases);
        }
        next
    }
}

impl Cases {
    fn is_restored(&self, target: &Target) -> bool {
        self.targets.get(target).is_some_and(|case| case.restored)
    }

    /// Whether the finding must not be closed although nothing is known to lead there.
    fn is_spared(&self, target: &Target, blinded: &Blinded) -> bool {
        self.is_restored(target)
            && match blinded {
                Blinded::Not => false,
                Blinded::Cluster(standing) => standing.contains(target),
                Blinded::Whole => true,
            }
    }

    /// Leaves a finding as it is; when to look again follows from the verdict.
    fn spare(&mut self, target: &Target, verdict: &Verdict) {
        if let Some(case) = self.targets.get_mut(target) {
            case.next = match verdict {
                Verdict::Charged(_, review) | Verdict::Entitled(review) => *review,
                Verdict::Doubt(doubt) => doubt.until,
                Verdict::Irrelevant => None,
            };
        }
    }

    fn waits(&self, target: &Target) -> bool {
        self.targets.get(target).is_some_and(|case| matches!(case.status, Status::Waiting))
    }

    fn count(&self, waiting: &mut usize, standing: &mut usize) {
        for case in self.targets.values() {
            match case.status {
                Status::Waiting => *waiting += 1,
                Status::Standing(..) => *standing += 1,
                Status::Entitled => {}
            }
        }
    }

    /// Nothing leads to the target any more.
    #[expect(clippy::too_many_arguments, reason = "one call, and each argument is of its own kind")]
    fn over(
        &mut self,
        now: BootTime,
        at: BootTime,
        ended: BootTime,
        subject: &Subject,
        target: &Target,
        gone: Option<&(Verdict, BootTime)>,
        told: &mut Vec<Finding>,
    ) {
        let Some(case) = self.targets.get_mut(target) else { return };
        match &mut case.status {
            Status::Standing(finding, _) => {
                finding.state = State::Closed;
                finding.ended = Some(at);
                finding.at = now;
                told.push((**finding).clone());
            }
            Status::Waiting => match gone {
                Some((Verdict::Doubt(Doubt { until: until @ Some(_) }), _)) => {
                    case.next = *until;
                    return;
                }
                // A doubt about what is over helps nobody.
                Some((Verdict::Charged(charge, _), began))
                    if charge.certainty >= Certainty::Hijack =>
                {
                    let began = case.began.min(*began);
                    let key = FindingKey { subject: subject.clone(), target: target.clone() };
                    let mut finding = open(now, key, (**charge).clone(), began);
                    told.push(finding.clone());
                    finding.state = State::Closed;
                    finding.ended = Some(ended);
                    told.push(finding);
                }
                _ => {}
            },
            Status::Entitled => {}
        }
        self.targets.remove(target);
    }

    /// A route leads to the target. False where it should have waited but too many do.
    #[expect(clippy::too_many_arguments, reason = "one call, and each argument is of its own kind")]
    fn judged(
        &mut self,
        now: BootTime,
        subject: &Subject,
        target: Target,
        verdict: Verdict,
        began: BootTime,
        full: bool,
        told: &mut Vec<Finding>,
    ) -> bool {
        let case = self.targets.remove(&target);
        let began = case.as_ref().map_or(began, |case| case.began.min(began));
        let mut restored = case.as_ref().is_some_and(|case| case.restored);
        let standing = case.and_then(|case| match case.status {
            Status::Standing(finding, packets) => Some((finding, packets)),
            _ => None,
        });
        let (status, next) = match (verdict, standing) {
            (Verdict::Charged(charge, review), Some((finding, packets)))
                if restored && is_weaker(&charge, &finding.charge) =>
            {
                (Status::Standing(finding, packets), review)
            }
            (Verdict::Charged(charge, review), Some((mut finding, packets)))
                if restored && is_same(&charge, &finding.charge) =>
            {
                restored = !charge.missing.is_empty();
                take(&mut finding, *charge);
                (Status::Standing(finding, packets), review)
            }
            (Verdict::Charged(charge, review), Some((mut finding, mut packets))) => {
                restored = false;
                if update(now, &mut finding, packets, *charge) {
                    packets = packets_of(&finding.charge);
                    told.push((*finding).clone());
                }
                (Status::Standing(finding, packets), review)
            }
            (Verdict::Charged(charge, review), None) => {
                let key = FindingKey { subject: subject.clone(), target: target.clone() };
                let finding = open(now, key, *charge, began);
                told.push(finding.clone());
                let packets = packets_of(&finding.charge);
                (Status::Standing(Box::new(finding), packets), review)
            }
            // Doubt does not take back what was said: only a verdict does.
            (Verdict::Doubt(doubt), Some((finding, packets))) => {
                (Status::Standing(finding, packets), doubt.until)
            }
            (Verdict::Doubt(_), None) if full => return false,
            (Verdict::Doubt(doubt), None) => (Status::Waiting, doubt.until),
            (Verdict::Entitled(review), standing) => {
                close(now, standing, told);
                if review.is_none() {
                    return true;
                }
                (Status::Entitled, review)
            }
            (Verdict::Irrelevant, standing) => {
                close(now, standing, told);
                return true;
            }
        };
        self.targets.insert(target, Case { began, status, next, restored });
        true
    }
}

fn open(now: BootTime, key: FindingKey, charge: Charge, began: BootTime) -> Finding {
    Finding { key, state: State::Opened, charge, began, ended: None, at: now }
}

fn close(now: BootTime, standing: Option<(Box<Finding>, u64)>, told: &mut Vec<Finding>) {
    if let Some((mut finding, _)) = standing {
        finding.state = State::Closed;
        finding.ended = Some(now);
        finding.at = now;
        told.push(*finding);
    }
}

/// Whether so many packets are news where so many were told of.
fn is_worth_telling(told: u64, packets: u64) -> bool {
    packets > 0 && packets >= told.saturating_mul(2)
}

/// The packets that were seen to be diverted.
fn packets_of(charge: &Charge) -> u64 {
    charge.traffic.as_ref().map_or(0, |traffic| traffic.packets)
}

/// Whether a charge says less than an earlier one, made when something cannot be seen. What was said
/// with open eyes is not taken back with closed ones.
fn is_weaker(charge: &Charge, earlier: &Charge) -> bool {
    charge.certainty < earlier.certainty && !charge.missing.is_empty()
}

/// Whether a charge says what an earlier one said, evidence aside: after a restart the same is known
/// from other places.
fn is_same(charge: &Charge, earlier: &Charge) -> bool {
    charge.certainty == earlier.certainty
        && charge.severity == earlier.severity
        && charge.means == earlier.means
        && charge.effect == earlier.effect
        && charge.extent == earlier.extent
        && charge.attacker == earlier.attacker
        && charge.victim == earlier.victim
}

/// Takes a new charge into a standing finding; true where somebody would want to know.
fn update(now: BootTime, finding: &mut Finding, told_packets: u64, charge: Charge) -> bool {
    let old = &finding.charge;
    let more = has_news(old, &charge);
    let same = !more
        && is_same(&charge, old)
        && old.missing.is_empty() == charge.missing.is_empty()
        && !is_worth_telling(told_packets, packets_of(&charge));
    if same {
        // Nobody wants to be told of each packet, but of the first, and when they are twice as many;
        // the last word has all of them.
        finding.charge.traffic = charge.traffic;
        if charge.writer.is_some() {
            finding.charge.writer = charge.writer;
        }
        return false;
    }
    take(finding, charge);
    finding.state = State::Updated;
    finding.at = now;
    true
}

/// Whether a charge has evidence that an earlier one had not.
fn has_news(earlier: &Charge, charge: &Charge) -> bool {
    // What there is no room for would be news for ever.
    earlier.evidence.len() < EVIDENCE_CAP
        && charge.evidence.iter().any(|evidence| !is_known(earlier, evidence))
}

fn is_known(charge: &Charge, evidence: &Evidence) -> bool {
    charge.evidence.iter().any(|e| e.witness == evidence.witness && e.text == evidence.text)
}

/// Takes a new charge over; evidence is only ever added.
fn take(finding: &mut Finding, mut charge: Charge) {
    let mut evidence = std::mem::take(&mut finding.charge.evidence);
    let new = std::mem::take(&mut charge.evidence);
    for one in new {
        if !evidence.iter().any(|e| e.witness == one.witness && e.text == one.text) {
            evidence.push(one);
        }
    }
    evidence.truncate(EVIDENCE_CAP);
    charge.evidence = evidence;
    // After a restart the route is known by a dump, which does not say who wrote it.
    charge.writer = charge.writer.or_else(|| finding.charge.writer.take());
    finding.charge = charge;
}
