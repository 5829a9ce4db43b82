//! The judge: total and stateless.
//!
//! It looks at one destination against the facts and says for each place where its packets may end
//! up whether that is right. It keeps no state and cannot fail; what it does not know yet it calls
//! a [`Doubt`], with the question that would settle it and the time at which it decides anyway.
//!
//! The order of trust: what the kernel does is a fact; the pod behind an interface follows from the
//! interface's first name; a pod's first address is its own; what a tenant can write later (status,
//! annotations) is a claim, and claims give no right against somebody who has the address already.

mod claim;
mod diverted;
mod neighbour;
mod orphan;
mod ownership;
mod pretence;
mod remote;
mod translation;
mod words;
mod workload;
mod writer;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::facts::fib::Entry;
use crate::facts::links::KnownLink;
use crate::facts::{Facts, Identity};
use crate::finding::{
    Attacker, Certainty, Charge, Effect, Evidence, Extent, Means, Severity, Subject, Target,
    Victim, Witness,
};
use crate::observation::Question;
use crate::route::{NextHop, Prefix, RouteKind, Rule, RuleAction, Table};
use crate::time::BootTime;

pub(crate) use self::diverted::diverted;
use self::ownership::Ownership;
pub(crate) use self::pretence::QUIET;
use self::words::victim_of;
pub(crate) use self::writer::is_calicos;

/// What the judge thinks of one place where packets end up.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Verdict {
    /// Nobody's traffic is diverted by it.
    Irrelevant,
    /// Whoever is there has a right to it. Where the right rests on something that can change
    /// unseen, it is looked at again at the given time.
    Entitled(Option<BootTime>),
    /// Not known yet.
    Doubt(Doubt),
    /// It should not be. Looked at again at the given time, where more may be known by then.
    Charged(Box<Charge>, Option<BootTime>),
}

/// What the judge waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Doubt {
    /// When it is decided anyway; `None` where only news can help.
    pub(crate) until: Option<BootTime>,
}

/// What became of judging a subject.
#[derive(Debug, Default)]
pub(crate) struct Judgement {
    /// The verdict for each place, and since when the kernel sends packets there.
    pub(crate) verdicts: BTreeMap<Target, (Verdict, BootTime)>,
    /// What should be asked.
    pub(crate) asks: BTreeSet<Question>,
    /// The questions that the verdicts rest on, asked or not.
    pub(crate) rests: BTreeSet<Question>,
}

/// One look at the facts at one moment.
pub(crate) struct Judge<'a> {
    pub(crate) facts: &'a Facts,
    pub(crate) now: BootTime,
    asks: BTreeSet<Question>,
    rests: BTreeSet<Question>,
    /// When what it is about went, where it is gone already.
    over: Option<BootTime>,
    /// When to look again at the latest, since better evidence is awaited.
    soonest: Option<BootTime>,
    /// What could not be read for this verdict.
    unread: BTreeSet<Box<str>>,
}

/// A route's leg under judgement.
#[derive(Clone, Copy)]
pub(crate) struct Leg<'a> {
    pub(crate) entry: &'a Entry,
    /// Since when it is in question: since it stands, or since what spoke for it went.
    pub(crate) since: BootTime,
    pub(crate) hop: Option<NextHop>,
    pub(crate) rule: Option<&'a Rule>,
}

/// Judges a subject: for a prefix the routes that stand, or those given instead, which stood once,
/// each with the time when it went.
pub(crate) fn judge(
    facts: &Facts,
    now: BootTime,
    subject: &Subject,
    instead: Option<&[(Entry, BootTime)]>,
) -> Judgement {
    let mut judge = Judge {
        facts,
        now,
        asks: BTreeSet::new(),
        rests: BTreeSet::new(),
        over: None,
        soonest: None,
        unread: BTreeSet::new(),
    };
    let mut verdicts = BTreeMap::new();
    match subject {
        Subject::Prefix(prefix) => {
            let live = if instead.is_none() { facts.kernel.fib.get(*prefix) } else { &[] };
            for entry in live {
                judge.entry(entry, &mut verdicts);
            }
            for (entry, ended) in instead.unwrap_or_default() {
                judge.over = Some(*ended);
                judge.entry(entry, &mut verdicts);
            }
        }
        Subject::Claim(claim) => {
            if let Some((verdict, since)) = judge.claim(claim) {
                verdicts.insert(Target::Claimant, (verdict, since));
            }
        }
        Subject::Rule(rule) => {
            if let Some((target, verdict)) = judge.rule(rule) {
                verdicts.insert(target, verdict);
            }
        }
        Subject::Translation(translation) => {
            if let Some(verdict) = judge.translation(translation) {
                verdicts.insert(Target::Address(translation.to), verdict);
            }
        }
        Subject::Neighbour(neighbour) => {
            if let Some((target, verdict)) = judge.neighbour(neighbour) {
                verdicts.insert(target, verdict);
            }
        }
        Subject::Pretence(pretending) => {
            if let Some((target, verdict)) = judge.pretence(pretending) {
                verdicts.insert(target, verdict);
            }
        }
    }
    for (target, (verdict, _)) in &mut verdicts {
        if let Verdict::Charged(charge, _) = verdict {
            diverted::weigh(facts, subject, target, charge);
        }
    }
    Judgement { verdicts, asks: judge.asks, rests: judge.rests }
}

/// The places where the packets of a route end up.
pub(crate) fn targets(facts: &Facts, entry: &Entry) -> Vec<Target> {
    match entry.route.kind {
        RouteKind::Unicast => facts
            .kernel
            .legs(&entry.route)
            .as_slice()
            .iter()
            .map(|hop| leg_target(facts, *hop).0)
            .collect(),
        RouteKind::Local | RouteKind::Other(_) => vec![Target::Host],
        kind => vec![Target::Nowhere(kind)],
    }
}

fn leg_target(facts: &Facts, hop: NextHop) -> (Target, Option<&KnownLink>) {
    let link = hop.interface.and_then(|index| facts.kernel.links.get(index));
    let target = match (link, hop.gateway) {
        (Some(link), Some(gateway)) if matches!(facts.identity(link), Identity::Uplink) => {
            Target::Gateway(gateway)
        }
        (Some(link), _) => Target::Interface(link.first_name.clone()),
        (None, Some(gateway)) => Target::Gateway(gateway),
        (None, None) => Target::Host,
    };
    (target, link)
}

// === impl Judge ===

impl<'a> Judge<'a> {
    fn entry(&mut self, entry: &Entry, verdicts: &mut BTreeMap<Target, (Verdict, BootTime)>) {
        let route = &entry.route;
        if route.prefix.is_link_scoped() {
            return;
        }
        let rule = self.facts.kernel.rule_for(route.table);
        if !route.table.is_builtin() && rule.is_none() {
            return;
        }
        let rule = rule.filter(|_| !route.table.is_builtin());
        // Packets go there since there is both the route and the rule that leads to it.
        let ruled = rule.and_then(|rule| self.facts.kernel.rule_since(rule));
        let since = ruled.map_or(entry.since, |ruled| ruled.max(entry.since));
        let mut add = |target: Target, verdict: Verdict| {
            if verdict != Verdict::Irrelevant {
                merge(verdicts, target, verdict, since);
            }
        };
        match route.kind {
            RouteKind::Unicast => {
                for hop in self.facts.kernel.legs(route).as_slice() {
                    let leg = Leg { entry, since: entry.since, hop: Some(*hop), rule };
                    let (target, link) = leg_target(self.facts, *hop);
                    let verdict = match link.map(|link| (link, self.facts.identity(link))) {
                        None => self.unknown_link(entry),
                        Some((_, Identity::Uplink)) => self.uplink(leg),
                        Some((link, identity)) => self.workload(leg, link, identity),
                    };
                    add(target, verdict);
                }
            }
            RouteKind::Local | RouteKind::Other(_) => {
                add(Target::Host, self.local(Leg { entry, since: entry.since, hop: None, rule }));
            }
            RouteKind::Throw if !route.table.is_builtin() => {}
            kind => add(
                Target::Nowhere(kind),
                self.nowhere(Leg { entry, since: entry.since, hop: None, rule }),
            ),
        }
    }

    /// The two witnesses of links and routes may be apart for a moment.
    fn unknown_link(&self, entry: &Entry) -> Verdict {
        let until = entry.since.after(self.facts.settings.settle);
        if self.now < until {
            Verdict::Doubt(Doubt { until: Some(until) })
        } else {
            Verdict::Irrelevant
        }
    }

    /// A route that drops: wrong if it takes an address away that is somebody's. Wider prefixes do
    /// not win against a pod's own route, but for the table that is looked up before all others.
    fn nowhere(&mut self, leg: Leg<'_>) -> Verdict {
        let prefix = leg.entry.route.prefix;
        let Some(address) = prefix.host_address() else {
            if leg.entry.route.table != Table::LOCAL {
                return Verdict::Irrelevant;
            }
            return match self.attached_owner_within(prefix, None) {
                Some(pod) => {
                    let charge = self.denial(leg, victim_of(pod), Extent::Prefix);
                    Verdict::Charged(Box::new(charge), None)
                }
                None => Verdict::Irrelevant,
            };
        };
        match self.ownership(address, leg.since, &|_, _| false) {
            Ownership::Owned { victim, evidence, .. } => {
                let mut charge = self.denial(leg, victim, Extent::Exact);
                charge.evidence.push(evidence);
                Verdict::Charged(Box::new(charge), Some(self.review()))
            }
            Ownership::Pending(until) => Verdict::Doubt(Doubt { until: Some(until) }),
            Ownership::Unanswered { again, .. } => Verdict::Doubt(Doubt { until: Some(again) }),
            // Nobody is hit now, but the address may get an owner.
            Ownership::Own(_) | Ownership::Unowned { .. } => {
                let pooled = self.facts.pools.of(address).is_some();
                if pooled { Verdict::Entitled(Some(self.review())) } else { Verdict::Irrelevant }
            }
        }
    }

    fn denial(&self, leg: Leg<'_>, victim: Victim, extent: Extent) -> Charge {
        let route = &leg.entry.route;
        let reason = format!(
            "traffic for {} ({victim}) is dropped on this node by a {} route",
            route.prefix, route.kind
        );
        let mut charge = self.charge(leg, victim, Effect::Blackhole, extent);
        charge.severity = Severity::High;
        charge.reason = reason.into();
        charge
    }

    /// A rule for a destination: wrong if it leads the traffic of a pod of this node past the
    /// pod's own route.
    fn rule(&mut self, rule: &Rule) -> Option<(Target, (Verdict, BootTime))> {
        let since = self.facts.kernel.rule_since(rule)?;
        let prefix = rule.to?;
        let address = prefix.host_address()?;
        let pod = self.attached_owner(address)?;
        let (target, effect) = match rule.action {
            RuleAction::Lookup(table) if !table.is_builtin() => {
                let entry = self.best_route(table, address)?;
                // Legs at pods' interfaces are judged as routes of their own, and more exactly.
                let hop = *self.facts.kernel.legs(&entry.route).as_slice().first()?;
                let (target, link) = leg_target(self.facts, hop);
                if !link.is_some_and(|link| matches!(self.facts.identity(link), Identity::Uplink)) {
                    return None;
                }
                (target, Effect::Intercept)
            }
            RuleAction::Blackhole => (Target::Nowhere(RouteKind::Blackhole), Effect::Blackhole),
            RuleAction::Unreachable => (Target::Nowhere(RouteKind::Unreachable), Effect::Blackhole),
            RuleAction::Prohibit => (Target::Nowhere(RouteKind::Prohibit), Effect::Blackhole),
            _ => return None,
        };
        let gateway = match target {
            Target::Gateway(gateway) => Some(gateway),
            _ => None,
        };
        let charge = Charge {
            certainty: Certainty::Hijack,
            severity: Severity::High,
            means: Means::Rule,
            effect,
            extent: Extent::Exact,
            table: match rule.action {
                RuleAction::Lookup(table) => Some(table),
                _ => None,
            },
            rule: Some(rule.clone()),
            attacker: Attacker { gateway, ..Attacker::default() },
            victim: victim_of(pod),
            reason: format!(
                "a routing rule takes traffic for pod {} ({address}) past the pod's own route: \
                 {rule}",
                pod.pod.key
            )
            .into(),
            reach: self.reach(prefix, None),
            evidence: vec![
                Evidence {
                    at: since,
                    witness: Witness::Kernel,
                    text: format!("rule {rule}").into(),
                },
                self.first_address_evidence(pod, address),
            ],
            missing: self.missing(),
            traffic: None,
            writer: None,
        };
        Some((target, (Verdict::Charged(Box::new(charge), None), since)))
    }

    /// What is missing for a full verdict.
    fn missing(&self) -> Vec<Box<str>> {
        let mut missing = self.facts.missing();
        missing.extend(self.unread.iter().cloned());
        missing
    }

    /// The route that wins for an address within one table.
    fn best_route(&self, table: Table, address: IpAddr) -> Option<&'a Entry> {
        let bits = if address.is_ipv4() { 32 } else { 128 };
        (0..=bits).rev().filter_map(|length| Prefix::new(address, length)).find_map(|prefix| {
            let entries = self.facts.kernel.fib.get(prefix).iter();
            entries.filter(|entry| entry.route.table == table).min_by_key(|e| e.route.metric)
        })
    }
}

impl Leg<'_> {
    pub(crate) fn address(&self) -> Option<IpAddr> {
        self.entry.route.prefix.host_address()
    }
}

/// Which of two charges for one place has the say: the lesser.
fn precedence(charge: &Charge) -> impl Ord + use<> {
    let Charge { certainty, severity, table, rule, .. } = charge;
    (std::cmp::Reverse((*certainty, *severity)), rule.is_some(), *table)
}

/// Adds a verdict for a place; the worst one stands, and the earliest start.
fn merge(
    verdicts: &mut BTreeMap<Target, (Verdict, BootTime)>,
    target: Target,
    verdict: Verdict,
    since: BootTime,
) {
    fn rank(verdict: &Verdict) -> u8 {
        match verdict {
            Verdict::Irrelevant => 0,
            Verdict::Entitled(_) => 1,
            Verdict::Doubt(_) => 2,
            Verdict::Charged(..) => 3,
        }
    }
    match verdicts.entry(target) {
        std::collections::btree_map::Entry::Vacant(place) => {
            place.insert((verdict, since));
        }
        std::collections::btree_map::Entry::Occupied(mut place) => {
            let (standing, began) = place.get_mut();
            let mut verdict = verdict;
            if let (Verdict::Charged(charge, _), Verdict::Charged(more, _)) =
                (&mut *standing, &mut verdict)
            {
                // Routes of several tables stand in no order that means anything: which charge has
                // the say must not depend on it.
                if precedence(more) < precedence(charge) {
                    std::mem::swap(charge, more);
                }
                charge.severity = charge.severity.max(more.severity);
                for evidence in &more.evidence {
                    if !charge.evidence.contains(evidence) {
                        charge.evidence.push(evidence.clone());
                    }
                }
                *began = (*began).min(since);
                return;
            }
            match rank(&verdict).cmp(&rank(standing)) {
                std::cmp::Ordering::Greater => (*standing, *began) = (verdict, since),
                std::cmp::Ordering::Equal => *began = (*began).min(since),
                std::cmp::Ordering::Less => {}
            }
        }
    }
}
