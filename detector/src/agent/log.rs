//! Findings in the agent's own log, for those who read only that: not more than anybody reads.

use std::time::{Duration, Instant};

use detector_core::finding::{Finding, Severity, State};
use tracing::{debug, warn};

/// So many findings are logged in so long; of the rest, how many they were.
const MOST: u32 = 20;
const WINDOW: Duration = Duration::from_secs(10);

/// What was logged of findings.
#[derive(Debug)]
pub(super) struct FindingLog {
    began: Instant,
    logged: u32,
    held_back: u64,
}

impl FindingLog {
    pub(super) fn new() -> Self {
        Self { began: Instant::now(), logged: 0, held_back: 0 }
    }

    /// A word about a finding.
    pub(super) fn finding(&mut self, finding: &Finding) {
        let serious = finding.state == State::Opened && finding.charge.severity >= Severity::High;
        if serious {
            self.logged += 1;
            if self.logged > MOST {
                self.held_back += 1;
                return;
            }
        }
        let (key, reason) = (finding.key.to_string(), &*finding.charge.reason);
        let state = finding.state.as_str();
        if serious {
            warn!(key, state, reason, "finding");
        } else {
            debug!(key, state, reason, "finding");
        }
    }

    /// To be called now and then: says how many were held back, when their time is over.
    pub(super) fn end_window(&mut self) {
        if self.began.elapsed() < WINDOW {
            return;
        }
        if self.held_back > 0 {
            warn!(
                count = self.held_back,
                "more findings than are logged one by one; `detector findings` has them all"
            );
        }
        *self = Self::new();
    }
}
