//! When the tables are read: a function of what happened and when, with no clock of its own.

use std::time::Duration;

use tokio::time::Instant;

use super::Reason;

/// The least time from the beginning of one dump to the next: whoever can cause losses must not be
/// able to keep the agent busy with dumps.
const GAP: Duration = Duration::from_secs(1);

/// The longest wait after failures, and after a dump that was only good enough.
const PATIENCE: Duration = Duration::from_secs(30);

/// After so many interrupted dumps in a row, the next is taken as it is.
const INTERRUPTIONS: u32 = 3;

/// When the next dump is due, and why.
#[derive(Debug)]
pub(super) struct Schedule {
    interval: Duration,
    wanted: Option<Reason>,
    /// No dump begins before this.
    not_before: Instant,
    /// When one is due although nobody asked.
    regular: Instant,
    /// Failures in a row, interruptions aside.
    failures: u32,
    /// Interruptions in a row.
    interruptions: u32,
}

impl Schedule {
    /// The first is due now.
    pub(super) fn new(interval: Duration, now: Instant) -> Self {
        let wanted = Some(Reason::Start);
        Self { interval, wanted, not_before: now, regular: now, failures: 0, interruptions: 0 }
    }

    /// Wants a dump. The first reason is the one that is told.
    pub(super) fn request(&mut self, reason: Reason) {
        self.wanted.get_or_insert(reason);
    }

    /// Whether a dump is wanted, other than because it is time.
    pub(super) fn is_wanted(&self) -> bool {
        self.wanted.is_some()
    }

    /// When the next dump is due, and why.
    pub(super) fn next(&self) -> (Instant, Reason) {
        match self.wanted {
            Some(reason) => (self.not_before, reason),
            None => (self.regular.max(self.not_before), Reason::Interval),
        }
    }

    /// A dump has begun: what was wanted is being done.
    pub(super) fn begun(&mut self, now: Instant) {
        self.wanted = None;
        self.not_before = now + GAP;
        self.regular = now + self.interval;
    }

    /// It is complete, be it that interruptions were accepted.
    pub(super) fn ended(&mut self, interrupted: bool, now: Instant) {
        self.failures = 0;
        if interrupted {
            // Not so soon, since it can be expected to be no better. Who has a reason to doubt the
            // tables does not wait for it.
            self.regular = self.regular.min(now + PATIENCE);
        } else {
            self.interruptions = 0;
        }
    }

    /// It was interrupted: the next may have more luck.
    pub(super) fn interrupted(&mut self) {
        self.interruptions += 1;
        self.request(Reason::Retry);
    }

    /// It failed.
    pub(super) fn failed(&mut self, now: Instant) {
        let wait = GAP.saturating_mul(1 << self.failures.min(5)).min(PATIENCE);
        self.failures += 1;
        self.not_before = self.not_before.max(now + wait);
        self.request(Reason::Retry);
    }

    /// Whether the next dump is to be taken though it be interrupted.
    pub(super) fn accepts_interrupted(&self) -> bool {
        self.interruptions >= INTERRUPTIONS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_mins(5);

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn the_first_is_due_at_once_and_then_by_the_interval() {
        let start = Instant::now();
        let mut schedule = Schedule::new(INTERVAL, start);
        assert_eq!(schedule.next(), (start, Reason::Start));
        schedule.begun(start);
        assert!(!schedule.is_wanted());
        schedule.ended(false, start + seconds(2));
        assert_eq!(schedule.next(), (start + INTERVAL, Reason::Interval));
    }

    #[test]
    fn requests_during_a_dump_make_one_more_after_the_gap() {
        let start = Instant::now();
        let mut schedule = Schedule::new(INTERVAL, start);
        schedule.begun(start);
        schedule.request(Reason::Loss);
        schedule.request(Reason::Uplinks);
        schedule.request(Reason::Loss);
        schedule.ended(false, start + Duration::from_millis(100));
        assert_eq!(schedule.next(), (start + GAP, Reason::Loss));
        schedule.begun(start + GAP);
        schedule.ended(false, start + seconds(2));
        assert_eq!(schedule.next(), (start + GAP + INTERVAL, Reason::Interval));
        // Long after the last, it is due at once.
        schedule.request(Reason::Loss);
        let (at, reason) = schedule.next();
        assert!(at <= start + seconds(2) && reason == Reason::Loss);
    }

    #[test]
    fn failures_make_it_patient_and_success_eager_again() {
        let mut now = Instant::now();
        let mut schedule = Schedule::new(INTERVAL, now);
        let mut waits = Vec::new();
        for _ in 0..8 {
            schedule.begun(now);
            schedule.failed(now);
            let (at, reason) = schedule.next();
            assert_eq!(reason, Reason::Retry);
            // A request does not make it less patient.
            schedule.request(Reason::Loss);
            assert_eq!(schedule.next().0, at);
            waits.push((at - now).as_secs());
            now = at;
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 30, 30, 30]);
        schedule.begun(now);
        schedule.ended(false, now);
        schedule.begun(now);
        schedule.failed(now);
        assert_eq!(schedule.next().0, now + GAP);
    }

    #[test]
    fn interruptions_are_accepted_in_the_end() {
        let start = Instant::now();
        let mut schedule = Schedule::new(INTERVAL, start);
        for attempt in 0..INTERRUPTIONS {
            assert!(!schedule.accepts_interrupted(), "attempt {attempt}");
            schedule.begun(start);
            schedule.interrupted();
            assert_eq!(schedule.next(), (start + GAP, Reason::Retry));
        }
        assert!(schedule.accepts_interrupted());
        schedule.begun(start);
        schedule.ended(true, start);
        // Tried again before the interval, and accepted again.
        assert_eq!(schedule.next(), (start + PATIENCE, Reason::Interval));
        assert!(schedule.accepts_interrupted());
        schedule.begun(start);
        schedule.ended(false, start);
        assert!(!schedule.accepts_interrupted());
    }
}
