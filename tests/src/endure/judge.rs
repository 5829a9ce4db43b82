//! Holds what the agents said against what was.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use detector_core::time::BootTime;
use serde_json::Value;

use super::attack::Attack;
use super::director::Life;
use super::world::{Outage, World};
use crate::agent::Heard;

/// What stood for so long while an agent was ready must have been found by it, even with the API
/// server down all the time.
const FOUND: Duration = Duration::from_secs(5);
/// For so long with the API server up, however long it was down before: with its victim, too.
/// Nobody is asked again for five seconds after a question failed.
const NAMED: Duration = Duration::from_secs(7);
/// What an agent could see when the API server had been up for so long, or ever since that agent was
/// ready, must be found with its victim however short it was, if both stayed for a while.
const SETTLED: Duration = Duration::from_secs(15);
const AFTER: Duration = Duration::from_secs(3);
/// What was undone so long before an agent ended must have been closed.
const CLOSED: Duration = Duration::from_secs(30);
/// How much later than the truth a claim may be taken to begin: after an outage a watch is resumed
/// late.
const LATE: Duration = Duration::from_secs(45);

/// Something that is wrong.
#[derive(Clone, Debug)]
pub(super) struct Wrong {
    pub(super) at: BootTime,
    pub(super) what: String,
}

/// What came of it all.
#[derive(Default, Debug)]
pub(super) struct Verdict {
    pub(super) wrongs: Vec<Wrong>,
    /// How agents ended.
    pub(super) kills: BTreeMap<&'static str, usize>,
    /// Attacks that an agent had to find; whose victims it had to name; that it did not.
    pub(super) due_found: usize,
    pub(super) due_named: usize,
    pub(super) missed: usize,
    /// Findings opened; those of them that an earlier agent had opened; that the same agent had
    /// opened and closed before, while the attack went on; that had no victim's name at first.
    pub(super) opened: usize,
    pub(super) opened_by_later: usize,
    pub(super) opened_again: usize,
    pub(super) unnamed: usize,
    /// From the route to the finding, and to the victim's name, where all were there from before.
    pub(super) to_open: Vec<Duration>,
    pub(super) to_name: Vec<Duration>,
}

/// The findings that are open, by their keys.
pub(super) struct Open<'a>(BTreeMap<&'a str, &'a Heard>);

impl<'a> Open<'a> {
    /// Those that are open after these lines.
    pub(super) fn of(heard: &'a [Heard]) -> Self {
        let mut open = Self(BTreeMap::new());
        for heard in heard {
            open.hear(heard);
        }
        open
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes a line; what is wrong with it after those before it.
    fn hear(&mut self, heard: &'a Heard) -> Option<&'static str> {
        let key = key(heard);
        match heard.finding["state"].as_str() {
            Some("opened") => self.0.insert(key, heard).map(|_| "opened twice"),
            Some("updated") => self.0.insert(key, heard).is_none().then_some("updated, not open"),
            Some("closed") => self.0.remove(key).is_none().then_some("closed, not open"),
            _ => Some("no finding"),
        }
    }
}

// === impl Attack ===

impl Attack {
    /// Whether a line is about this attack's route, or its claims, at a time when it may be.
    fn is_told(&self, heard: &Heard) -> bool {
        let after =
            |end: Option<BootTime>, slack| end.is_some_and(|end| began(heard) > end.after(slack));
        let key = key(heard);
        heard.at >= self.begun
            && if key == self.key {
                self.from.is_some() && !after(self.until, Duration::ZERO)
            } else {
                self.claims.iter().any(|claim| claim == key) && !after(self.gone, LATE)
            }
    }

    /// Whether a line is about its route, and what it found began while it stood.
    fn is_found(&self, heard: &Heard) -> bool {
        key(heard) == self.key
            && self.is_told(heard)
            && self.from.is_some_and(|from| heard.at >= from)
    }

    /// Whether a line names its victim.
    pub(super) fn is_named(&self, heard: &Heard) -> bool {
        self.is_found(heard) && victim(heard).as_ref() == Some(&self.victim)
    }
}

/// Judges.
pub(super) fn judge(world: &World, lives: &[Life]) -> Verdict {
    let (attacks, outages) = (world.attacks(), world.outages());
    let mut verdict = Verdict::default();
    let mut known = BTreeSet::new();
    for (number, life) in lives.iter().enumerate() {
        *verdict.kills.entry(life.how).or_default() += 1;
        verdict.lines(number, life, &attacks, &mut known);
        for (attack, truth) in attacks.iter().enumerate() {
            verdict.due((number, life), (attack, truth), &outages);
        }
    }
    verdict.to_open.sort_unstable();
    verdict.to_name.sort_unstable();
    verdict.wrongs.sort_by_key(|wrong| wrong.at);
    verdict
}

// === impl Verdict ===

impl Verdict {
    fn wrong(&mut self, at: BootTime, what: String) {
        self.wrongs.push(Wrong { at, what });
    }

    /// Each line of an agent for itself: about an attack, opened once, closed in the end.
    fn lines<'a>(
        &mut self,
        number: usize,
        life: &'a Life,
        attacks: &'a [Attack],
        known: &mut BTreeSet<(usize, &'a str)>,
    ) {
        let mut open = Open::of(&[]);
        let mut own = BTreeSet::new();
        for heard in &life.heard {
            if let Some(why) = open.hear(heard) {
                self.wrong(heard.at, format!("agent {number}: {why}: {}", heard.finding));
            }
            let about = attacks.iter().enumerate().rev().find(|(_, a)| a.is_told(heard));
            let Some((attack, truth)) = about else {
                // What ends is told late, and about nothing but what was opened.
                if heard.finding["state"] != "closed" {
                    self.wrong(heard.at, format!("agent {number}: false: {}", heard.finding));
                }
                continue;
            };
            let named = victim(heard);
            if attacker(heard).as_ref() != Some(&truth.attacker)
                || named.as_ref().is_some_and(|named| *named != truth.victim)
            {
                self.wrong(heard.at, format!("agent {number}: the wrong ones: {}", heard.finding));
            }
            if heard.finding["state"] == "opened" {
                let finding = (attack, key(heard));
                self.opened += 1;
                self.unnamed += usize::from(named.is_none());
                let again = !own.insert(finding);
                self.opened_again += usize::from(again);
                self.opened_by_later += usize::from(!known.insert(finding) && !again);
            }
        }
        for (key, heard) in open.0 {
            let about = attacks.iter().rev().find(|attack| attack.is_told(heard));
            let over = about.and_then(|attack| attack.gone);
            if over.is_some_and(|over| life.ended.since(over) > CLOSED) {
                let what = format!("agent {number}: never closed, {key}: {}", heard.finding);
                self.wrong(life.ended, what);
            }
        }
    }

    /// Whether an agent had to find an attack, and whether it did.
    fn due(
        &mut self,
        (number, life): (usize, &Life),
        (n, attack): (usize, &Attack),
        outages: &[Outage],
    ) {
        let (Some(ready), Some(from)) = (life.ready, attack.from) else { return };
        let until = attack.until.unwrap_or(life.ended);
        let (start, end) = (from.max(ready), until.min(life.ended));
        if start >= end {
            return;
        }
        let undisturbed = (ready.max(start.before(SETTLED)), start.after(AFTER));
        let settled = undisturbed.1 <= life.ended
            && up(outages, undisturbed.0, undisturbed.1) == [undisturbed];
        let up_for = up(outages, start, end).into_iter().map(|(from, to)| to.since(from)).max();
        let due_named = settled || up_for.is_some_and(|time| time >= NAMED);
        let due_found = due_named || end.since(start) >= FOUND;
        let first = |told: &dyn Fn(&Heard) -> bool| life.heard.iter().find(|heard| told(heard));
        let found = first(&|heard| attack.is_found(heard));
        let named = first(&|heard| attack.is_named(heard));
        self.due_found += usize::from(due_found);
        self.due_named += usize::from(due_named);
        if (due_found && found.is_none()) || (due_named && named.is_none()) {
            self.missed += 1;
            let what = if found.is_none() { "not found" } else { "not named" };
            let stood = end.since(start);
            let text = format!(
                "agent {number}: attack {n} is {what}, which stood for {stood:.1?} before it, with \
                 the API server up for {:.1?} of them without a break: {attack:?}",
                up_for.unwrap_or_default()
            );
            self.wrong(end, text);
        }
        if settled && ready <= from {
            self.to_open.extend(found.map(|heard| heard.at.since(from)));
            self.to_name.extend(named.map(|heard| heard.at.since(from)));
        }
    }
}

/// The parts of a time in which the API server was up.
fn up(outages: &[Outage], from: BootTime, to: BootTime) -> Vec<(BootTime, BootTime)> {
    let mut parts = Vec::new();
    let mut start = from;
    for outage in outages {
        let down = outage.down.min(to);
        if start < down {
            parts.push((start, down));
        }
        start = start.max(outage.up.unwrap_or(to));
    }
    if start < to {
        parts.push((start, to));
    }
    parts
}

fn key(heard: &Heard) -> &str {
    heard.finding["key"].as_str().unwrap_or_default()
}

fn began(heard: &Heard) -> BootTime {
    BootTime::from_nanos(heard.finding["bootTime"]["began"].as_u64().unwrap_or_default())
}

fn attacker(heard: &Heard) -> Option<String> {
    let attacker = &heard.finding["attacker"];
    pod(&attacker["namespace"], &attacker["pod"])
}

/// The pod that is the victim; nothing where it is none, or not known.
fn victim(heard: &Heard) -> Option<String> {
    let victim = &heard.finding["victim"];
    (victim["kind"] == "pod").then(|| pod(&victim["namespace"], &victim["name"]))?
}

fn pod(namespace: &Value, name: &Value) -> Option<String> {
    Some(format!("{}/{}", namespace.as_str()?, name.as_str()?))
}
