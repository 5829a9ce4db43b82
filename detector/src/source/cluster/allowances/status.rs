//! What agents write into an object: whether it is accepted, and why not.
//!
//! All agents of the cluster see the same object and would all say the same. Each waits for a random
//! time first and writes only if nobody else has written it by then; of those that write at the same
//! moment one wins, since each names the version that it has seen. So an object costs the API server
//! a few small writes, however many nodes there are.
//!
//! Nothing is ever read back from a status but whether it says the right thing: an agent may write
//! statuses, so whoever takes over one node could write them too, and must gain nothing by it.

use std::collections::HashMap;
use std::time::Duration;

use jiff::{Timestamp, Unit};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::object::Object;

/// The one condition.
const ACCEPTED: &str = "Accepted";
/// How long to wait before a write, in milliseconds.
const SPREAD: std::ops::Range<u64> = 500..10_000;
/// How long to wait after a failure, in milliseconds: every agent of a large cluster may wait so.
const AGAIN: std::ops::Range<u64> = 120_000..600_000;
/// Nobody writes the same thing into the same object twice in this time: agents whose clocks differ
/// may disagree on what has expired.
const HOLD: Duration = Duration::from_mins(10);

/// What an object's status says, as far as it matters here.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Status {
    observed: Option<i64>,
    conditions: Vec<Value>,
}

/// What an object's status should say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Verdict {
    Accepted,
    Expired,
    Invalid,
}

/// What is to be written, and when.
#[derive(Default)]
pub(super) struct Desk {
    plans: HashMap<Box<str>, Plan>,
    /// Nothing is written before.
    rest: Option<Instant>,
}

struct Plan {
    uid: Box<str>,
    generation: i64,
    verdict: Verdict,
    due: Instant,
    written: bool,
}

/// A status to be written.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Note {
    pub(super) name: Box<str>,
    /// A merge patch for the status subresource.
    pub(super) patch: Value,
}

/// How a write ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Outcome {
    Written,
    /// Somebody else has written meanwhile: the watch tells.
    Outdated,
    /// The object is gone, or its kind has no status.
    Absent,
    Forbidden,
    Failed,
}

// === impl Verdict ===

impl Verdict {
    /// What is to be said of an object.
    pub(super) fn of(object: &Object, now: Timestamp) -> Self {
        match &object.meaning {
            Err(_) => Self::Invalid,
            Ok(allowed) if allowed.is_in_force(now) => Self::Accepted,
            Ok(_) => Self::Expired,
        }
    }

    fn status(self) -> &'static str {
        if self == Self::Accepted { "True" } else { "False" }
    }

    fn reason(self) -> &'static str {
        match self {
            Self::Accepted => "Accepted",
            Self::Expired => "Expired",
            Self::Invalid => "Invalid",
        }
    }

    /// For people. It must depend on the object only, not on what this agent alone knows.
    fn message(self, object: &Object) -> String {
        match (self, &object.meaning) {
            (_, Err(problem)) => format!(
                "{} {}; an earlier valid version stays in force where an agent has seen one, until \
                 this one is corrected or deleted",
                problem.field, problem.text
            ),
            (Self::Expired, _) => {
                "not in force: spec.expires has passed; set a later one or delete the object".into()
            }
            (_, Ok(allowed)) => match allowed.expires {
                Some(expires) => format!("in force until {expires}"),
                None => "in force".into(),
            },
        }
    }
}

// === impl Status ===

impl Status {
    pub(super) fn read(status: &Value) -> Self {
        Self {
            observed: status["observedGeneration"].as_i64(),
            conditions: status["conditions"].as_array().cloned().unwrap_or_default(),
        }
    }

    fn accepted(&self) -> Option<&Value> {
        self.conditions.iter().find(|condition| condition["type"] == ACCEPTED)
    }

    /// Whether it says so of this generation. The words of the message are free.
    fn says(&self, verdict: Verdict, generation: i64) -> bool {
        self.observed == Some(generation)
            && self.accepted().is_some_and(|condition| {
                condition["status"] == verdict.status() && condition["reason"] == verdict.reason()
            })
    }
}

/// The patch that makes the status say `verdict`, for the version of the object that was seen only.
pub(super) fn patch(object: &Object, verdict: Verdict, now: Timestamp) -> Value {
    let since = object.status.accepted().filter(|old| old["status"] == verdict.status());
    let since = since.map(|old| old["lastTransitionTime"].clone()).filter(Value::is_string);
    let now = now.round(Unit::Second).unwrap_or(now);
    let own = json!({
        "type": ACCEPTED,
        "status": verdict.status(),
        "reason": verdict.reason(),
        "message": verdict.message(object),
        "observedGeneration": object.generation,
        "lastTransitionTime": since.unwrap_or_else(|| json!(now.to_string())),
    });
    // A merge patch replaces the list as a whole, and others may have conditions of their own.
    let others = object.status.conditions.iter().filter(|old| old["type"] != ACCEPTED).cloned();
    let conditions: Vec<Value> = others.chain([own]).collect();
    json!({
        "metadata": {"resourceVersion": &*object.version},
        "status": {"observedGeneration": object.generation, "conditions": conditions},
    })
}

// === impl Desk ===

impl Desk {
    /// Plans what `objects` need; plans that are no longer needed are dropped.
    pub(super) fn plan<'a>(
        &mut self,
        objects: impl Iterator<Item = &'a Object>,
        now: Timestamp,
        clock: Instant,
    ) {
        let mut plans = HashMap::new();
        for object in objects.filter(|object| !object.going) {
            let verdict = Verdict::of(object, now);
            let right = object.status.says(verdict, object.generation);
            let earlier = self.plans.remove(&object.name).filter(|plan| {
                plan.uid == object.uid
                    && plan.generation == object.generation
                    && plan.verdict == verdict
            });
            let plan = match earlier {
                // Kept while its time runs, though all is well: so that nothing is written twice.
                Some(plan) if plan.written && (!right || plan.due > clock) => plan,
                Some(plan) if !right => plan,
                _ if right => continue,
                _ => Plan {
                    uid: object.uid.clone(),
                    generation: object.generation,
                    verdict,
                    due: clock + random(SPREAD),
                    written: false,
                },
            };
            plans.insert(object.name.clone(), plan);
        }
        self.plans = plans;
    }

    /// How long until something is to be written.
    pub(super) fn pause(&self, clock: Instant) -> Option<Duration> {
        let due = self.plans.values().map(|plan| plan.due).filter(|due| *due > clock).min();
        let waiting = self.plans.values().any(|plan| plan.due <= clock && !plan.written);
        let due = if waiting { Some(clock) } else { due };
        due.map(|due| due.max(self.rest.unwrap_or(due)).duration_since(clock))
    }

    /// What is to be written now, if anything, to one of `objects`.
    pub(super) fn due<'a>(
        &mut self,
        objects: impl Iterator<Item = &'a Object>,
        now: Timestamp,
        clock: Instant,
    ) -> Option<Note> {
        if self.rest.is_some_and(|rest| rest > clock) {
            return None;
        }
        for object in objects {
            let Some(plan) = self.plans.get_mut(&object.name) else { continue };
            let right = object.status.says(plan.verdict, object.generation);
            if plan.due <= clock && !right {
                plan.written = true;
                plan.due = clock + HOLD;
                let patch = patch(object, plan.verdict, now);
                return Some(Note { name: object.name.clone(), patch });
            }
        }
        None
    }

    /// Takes note of how a write ended.
    pub(super) fn done(&mut self, name: &str, outcome: Outcome, clock: Instant) {
        let again = match outcome {
            Outcome::Written | Outcome::Absent => return,
            Outcome::Forbidden => {
                self.rest = Some(clock + HOLD);
                AGAIN
            }
            Outcome::Outdated => SPREAD,
            Outcome::Failed => AGAIN,
        };
        if let Some(plan) = self.plans.get_mut(name) {
            plan.due = clock + random(again);
        }
    }
}

fn random(millis: std::ops::Range<u64>) -> Duration {
    Duration::from_millis(fastrand::u64(millis))
}

#[cfg(test)]
mod tests;
