//! What keeps the engine's tables true: when the kernel's tables are read anew, and what comes of it.

mod schedule;

use std::sync::Arc;
use std::time::Duration;

use detector_core::observation::KernelState;
use detector_core::settings::Settings;
use tokio::time::{Instant, sleep_until};

use self::schedule::Schedule;
use super::dump::{Dump, DumpError, DumpOptions, DumpStep, DumpTotals};

/// Why the tables are read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reason {
    /// The agent has started.
    Start,
    /// The source has lost something.
    Loss,
    /// Other interfaces are uplinks now.
    Uplinks,
    /// The engine could not keep up with the changes during a dump.
    Outrun,
    /// The last attempt failed, or was only good enough.
    Retry,
    /// It is time.
    Interval,
}

impl Reason {
    /// The word for it in logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Loss => "loss",
            Self::Uplinks => "uplinks",
            Self::Outrun => "outrun",
            Self::Retry => "retry",
            Self::Interval => "interval",
        }
    }
}

/// When and how to read.
#[derive(Clone, Debug)]
pub struct ResyncOptions {
    /// By which uplinks are known.
    pub settings: Arc<Settings>,
    /// How often the tables are read although nothing was lost.
    pub interval: Duration,
    /// How long one dump may take.
    pub timeout: Duration,
}

/// What the agent must do next.
#[derive(Debug)]
pub enum ResyncStep {
    /// Observe `SnapshotBegin`. The kernel is asked only by the following call of
    /// [`Resync::next`], so each change that the dump may lack is observed after it.
    Begin(Reason),
    /// Observe each as `SnapshotPart`.
    Part(Vec<KernelState>),
    /// Catch up with the source ([`KernelSource::catch_up`] with [`DumpTotals::ended`]), request
    /// another resync if that shows a loss, and then observe `SnapshotEnd`.
    ///
    /// [`KernelSource::catch_up`]: super::KernelSource::catch_up
    End(DumpTotals),
    /// Observe `SnapshotAborted`. It is tried again by itself, and later each time.
    Aborted(DumpError),
}

/// Reads the kernel's tables at the start, when asked to, at an interval, and again after a failure;
/// one dump at a time, and at least a second from one to the next. However often it is asked while
/// a dump is going on, one more follows it.
///
/// The agent's loop interleaves it with the source like this:
///
/// ```ignore
/// loop {
///     tokio::select! {
///         biased;
///         ready = source.ready() => {
///             ready?;
///             source.drain(1024, &mut |observation| engine.observe(now, observation));
///             if let Some(loss) = source.take_loss() {
///                 resync.request(Reason::Loss); // and observe Blind(Kernel, Some(loss))
///             }
///         }
///         step = resync.next() => match step {
///             ResyncStep::Begin(_) => observe(What::SnapshotBegin),
///             ResyncStep::Part(states) => states.into_iter().map(What::SnapshotPart).for_each(observe),
///             ResyncStep::End(totals) => {
///                 source.catch_up(totals.ended, &mut |observation| engine.observe(now, observation));
///                 if source.take_loss().is_some() {
///                     resync.request(Reason::Loss);
///                 }
///                 observe(What::SnapshotEnd);
///                 if !resync.is_wanted() {
///                     observe(What::Blind(Sense::Kernel, None));
///                 }
///             }
///             ResyncStep::Aborted(error) => observe(What::SnapshotAborted), // and Blind
///         },
///     }
/// }
/// ```
///
/// The source goes first: during a dump its changes are told as they come, and between two parts
/// at the latest. A loss does not end a dump that is going on. What it gives is nearer the truth than
/// what was there before, and whoever can cause losses all the time must not be able to keep the
/// tables from being read at all.
#[derive(Debug)]
pub struct Resync {
    options: ResyncOptions,
    schedule: Schedule,
    state: State,
}

#[derive(Debug)]
enum State {
    Idle,
    /// The agent was told, the kernel not yet asked.
    Begun,
    Reading(Dump),
}

impl Resync {
    /// The first dump is due at once.
    pub fn new(options: ResyncOptions) -> Self {
        let schedule = Schedule::new(options.interval, Instant::now());
        Self { options, schedule, state: State::Idle }
    }

    /// Asks for the tables to be read anew, from a time after this call.
    pub fn request(&mut self, reason: Reason) {
        self.schedule.request(reason);
    }

    /// Whether the tables are to be read because there is reason to doubt what is known of them, be
    /// it that this is going on or yet to come.
    pub fn is_wanted(&self) -> bool {
        self.schedule.is_wanted() || !matches!(self.state, State::Idle)
    }

    /// Waits for the next step. Safe to cancel: what was not returned comes at the next call.
    pub async fn next(&mut self) -> ResyncStep {
        if matches!(self.state, State::Idle) {
            let (at, reason) = self.schedule.next();
            sleep_until(at).await;
            self.schedule.begun(Instant::now());
            self.state = State::Begun;
            return ResyncStep::Begin(reason);
        }
        if matches!(self.state, State::Begun) {
            match Dump::start(self.dump_options()) {
                Ok(dump) => self.state = State::Reading(dump),
                Err(error) => return self.end(Err(error)),
            }
        }
        let State::Reading(dump) = &mut self.state else {
            return self.end(Err(DumpError::BrokeOff));
        };
        match dump.next().await {
            DumpStep::Part(states) => ResyncStep::Part(states),
            DumpStep::Ended(end) => self.end(end),
        }
    }

    fn dump_options(&self) -> DumpOptions {
        DumpOptions {
            settings: Arc::clone(&self.options.settings),
            timeout: self.options.timeout,
            accept_interrupted: self.schedule.accepts_interrupted(),
        }
    }

    fn end(&mut self, end: Result<DumpTotals, DumpError>) -> ResyncStep {
        let now = Instant::now();
        self.state = State::Idle;
        match end {
            Ok(totals) => {
                self.schedule.ended(totals.interrupted, now);
                ResyncStep::End(totals)
            }
            Err(error) => {
                match error {
                    DumpError::Interrupted(_) => self.schedule.interrupted(),
                    _ => self.schedule.failed(now),
                }
                ResyncStep::Aborted(error)
            }
        }
    }
}
