//! What the agent cannot do at present, and why: never silently blind.
//!
//! A capability is a sense, a better way of seeing, a sink, or a door. Each is in order, or degraded
//! for a reason; the log says when that changes, not at every attempt, and metrics and `status` show
//! what is degraded now and for how long it was.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde::Serialize;
use tracing::{info, warn};

use crate::telemetry::{Capability, Telemetry};

/// A capability that is degraded.
#[derive(Clone, Debug, Serialize)]
pub struct Degraded {
    /// Which.
    pub capability: String,
    /// Why, in one line.
    pub why: String,
    /// Since when.
    pub since: Timestamp,
}

/// What is degraded, shared by all parts of the agent.
#[derive(Clone, Debug)]
pub struct Health {
    inner: Arc<Mutex<Inner>>,
    telemetry: Arc<Telemetry>,
}

#[derive(Debug)]
struct Inner {
    degraded: BTreeMap<String, (String, Timestamp)>,
    /// When blind time was counted last.
    counted: Instant,
}

// === impl Health ===

impl Health {
    /// All is in order.
    pub fn new(telemetry: Arc<Telemetry>) -> Self {
        let inner = Inner { degraded: BTreeMap::new(), counted: Instant::now() };
        Self { inner: Arc::new(Mutex::new(inner)), telemetry }
    }

    /// The metrics that show it.
    pub fn telemetry(&self) -> &Arc<Telemetry> {
        &self.telemetry
    }

    /// Makes a capability known, so that metrics show it before anything happens to it.
    pub fn expect(&self, capability: &str) {
        drop(self.telemetry.degraded.get_or_create(&Capability::new(capability)));
        drop(self.telemetry.blind.get_or_create(&Capability::new(capability)));
    }

    /// Notes that a capability is degraded; true where that is news. The caller logs it.
    pub fn mark(&self, capability: &str, why: &str) -> bool {
        let mut inner = self.lock();
        self.count(&mut inner);
        let since = inner.degraded.get(capability).map_or_else(Timestamp::now, |(_, since)| *since);
        let former = inner.degraded.insert(capability.to_owned(), (why.to_owned(), since));
        self.telemetry.degraded.get_or_create(&Capability::new(capability)).set(1);
        former.is_none()
    }

    /// Notes that a capability is in order; true where that is news.
    pub fn clear(&self, capability: &str) -> bool {
        let mut inner = self.lock();
        self.count(&mut inner);
        self.telemetry.degraded.get_or_create(&Capability::new(capability)).set(0);
        inner.degraded.remove(capability).is_some()
    }

    /// The same as [`Self::mark`], and the log says so where it is news.
    pub fn degrade(&self, capability: &str, why: &str) {
        if self.mark(capability, why) {
            warn!(capability, why, "degraded");
        }
    }

    /// The same as [`Self::clear`], and the log says so where it is news.
    pub fn restore(&self, capability: &str) {
        if self.clear(capability) {
            info!(capability, "in order again");
        }
    }

    /// What is degraded now.
    pub fn degraded(&self) -> Vec<Degraded> {
        let inner = self.lock();
        let degraded = inner.degraded.iter();
        degraded
            .map(|(capability, (why, since))| Degraded {
                capability: capability.clone(),
                why: why.clone(),
                since: *since,
            })
            .collect()
    }

    /// Counts the time for which something was degraded, up to now.
    pub fn tick(&self) {
        let mut inner = self.lock();
        self.count(&mut inner);
    }

    fn count(&self, inner: &mut Inner) {
        let now = Instant::now();
        let passed: Duration = now.saturating_duration_since(inner.counted);
        inner.counted = now;
        for capability in inner.degraded.keys() {
            let blind = self.telemetry.blind.get_or_create(&Capability::new(capability));
            blind.inc_by(passed.as_secs_f64());
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Whoever panicked holding it left a map that is whole: each change is one call.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::Exposition;

    #[test]
    fn what_is_degraded_is_shown_until_it_is_not() {
        let telemetry = Arc::new(Telemetry::default());
        let health = Health::new(Arc::clone(&telemetry));
        health.expect("pods");
        assert!(health.mark("pods", "the API server is down"));
        assert!(!health.mark("pods", "it still is"));
        assert_eq!(health.degraded()[0].why, "it still is");
        let shown = telemetry.expose(Exposition::Text);
        assert!(shown.contains("detector_degraded{capability=\"pods\"} 1"), "{shown}");
        assert!(health.clear("pods") && !health.clear("pods"));
        assert!(health.degraded().is_empty());
        let shown = telemetry.expose(Exposition::Text);
        assert!(shown.contains("detector_degraded{capability=\"pods\"} 0"), "{shown}");
        assert!(shown.contains("detector_blind_seconds_total{capability=\"pods\"}"), "{shown}");
    }
}
