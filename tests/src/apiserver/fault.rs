//! Everything that can be made to go wrong.

use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::sync::{mpsc, watch};

use super::refusal::Refusal;
use super::traffic::Verb;

/// What becomes of connections, those that stand and those that are tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connections {
    /// They are served.
    Serve,
    /// Those that stand are reset; new ones are accepted and reset, as by a proxy without a server.
    Reset,
    /// Those that stand are reset; nothing listens any more, as when the server's host is up and
    /// the server is not.
    Refuse,
}

/// How open watches end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// As at their time limit: the stream ends as streams should.
    Orderly,
    /// As when the server dies: the connection breaks off within the stream.
    Abrupt,
}

/// Which requests a fault is for: all, unless narrowed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Requests {
    verb: Option<Verb>,
    kind: Option<&'static str>,
}

/// How often a fault strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Times {
    /// For the next so many requests that match.
    Next(u32),
    /// Until [`Faults::clear`].
    UntilCleared,
}

/// The faults of a running server. A call that changes one is in force when it returns.
#[derive(Debug)]
pub struct Faults {
    orders: mpsc::UnboundedSender<Order>,
    connections: watch::Sender<Connections>,
    cut: watch::Sender<Cut>,
    gate: watch::Sender<Gate>,
    planned: Mutex<Vec<Planned>>,
}

/// What the server's thread has to do about connections, and where it says how that went.
#[derive(Debug)]
pub(super) struct Order {
    pub(super) wanted: Connections,
    pub(super) done: SyncSender<Result<()>>,
}

/// What a watch's words pass on their way out.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Gate {
    pub(super) held: bool,
    /// How long after a change its watches are told.
    pub(super) delay: Duration,
}

#[derive(Debug)]
struct Planned {
    which: Requests,
    times: Times,
    what: Strike,
}

#[derive(Clone, Debug)]
enum Strike {
    Answer(Refusal),
    Delay(Duration),
}

// === impl Requests ===

impl Requests {
    /// All requests for objects.
    pub fn all() -> Self {
        Self::default()
    }

    /// Those of one verb.
    #[must_use]
    pub fn verb(self, verb: Verb) -> Self {
        Self { verb: Some(verb), ..self }
    }

    /// Those for one kind, such as `pods`.
    #[must_use]
    pub fn kind(self, kind: &'static str) -> Self {
        Self { kind: Some(kind), ..self }
    }

    fn holds(self, verb: Verb, kind: &str) -> bool {
        self.verb.is_none_or(|mine| mine == verb) && self.kind.is_none_or(|mine| mine == kind)
    }
}

// === impl Faults ===

impl Faults {
    /// `orders` go to the thread that serves.
    pub(super) fn new(orders: mpsc::UnboundedSender<Order>) -> Self {
        Self {
            orders,
            connections: watch::Sender::new(Connections::Serve),
            cut: watch::Sender::new(Cut::Orderly),
            gate: watch::Sender::new(Gate::default()),
            planned: Mutex::default(),
        }
    }

    /// Serves, resets or refuses connections from now on.
    ///
    /// The port is not held while it is refused; to serve again fails when another process has
    /// taken it in the meantime.
    pub fn connections(&self, wanted: Connections) -> Result<()> {
        // Only the thread that accepts may shut and open the socket: between two looks of its own
        // the socket must not change.
        let (done, result) = sync_channel(1);
        self.orders.send(Order { wanted, done }).context("the server has stopped")?;
        result.recv().context("the server has stopped")?
    }

    /// Ends all watches that are open now.
    pub fn cut_watches(&self, how: Cut) {
        self.cut.send_replace(how);
    }

    /// Lets no open or later watch say anything until [`Faults::release_watches`].
    pub fn hold_watches(&self) {
        self.gate.send_modify(|gate| gate.held = true);
    }

    /// Lets watches say what they were kept from saying, and all that follows.
    pub fn release_watches(&self) {
        self.gate.send_modify(|gate| gate.held = false);
    }

    /// Tells watches of a change only so long after it happened. Objects that stand when a watch
    /// opens are told at once.
    pub fn delay_watches(&self, delay: Duration) {
        self.gate.send_modify(|gate| gate.delay = delay);
    }

    /// Answers requests with a refusal instead of doing what they ask.
    pub fn answer(&self, which: Requests, times: Times, refusal: Refusal) {
        self.plan().push(Planned { which, times, what: Strike::Answer(refusal) });
    }

    /// Does what requests ask, and answers them, only after a while.
    pub fn delay(&self, which: Requests, times: Times, delay: Duration) {
        self.plan().push(Planned { which, times, what: Strike::Delay(delay) });
    }

    /// Takes back all answers and delays, and the hold and delay of watches. Connections stay as
    /// they are.
    pub fn clear(&self) {
        self.plan().clear();
        self.gate.send_replace(Gate::default());
    }

    /// Tells the connections how they are to be treated from now on.
    pub(super) fn treat_connections(&self, wanted: Connections) {
        self.connections.send_replace(wanted);
    }

    pub(super) fn watch_connections(&self) -> watch::Receiver<Connections> {
        self.connections.subscribe()
    }

    pub(super) fn watch_cuts(&self) -> watch::Receiver<Cut> {
        self.cut.subscribe()
    }

    pub(super) fn watch_gate(&self) -> watch::Receiver<Gate> {
        self.gate.subscribe()
    }

    /// What strikes this request: the sum of all delays, and the first answer.
    pub(super) fn strike(&self, verb: Verb, kind: &str) -> (Duration, Option<Refusal>) {
        let (mut delay, mut answer) = (Duration::ZERO, None);
        self.plan().retain_mut(|planned| {
            if !planned.which.holds(verb, kind) {
                return true;
            }
            match &planned.what {
                Strike::Delay(more) => delay += *more,
                Strike::Answer(_) if answer.is_some() => return true,
                Strike::Answer(refusal) => answer = Some(refusal.clone()),
            }
            match &mut planned.times {
                Times::UntilCleared => true,
                Times::Next(left) => {
                    *left = left.saturating_sub(1);
                    *left > 0
                }
            }
        });
        (delay, answer)
    }

    fn plan(&self) -> MutexGuard<'_, Vec<Planned>> {
        self.planned.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Answers that a real server gives when it will not, or cannot, serve.
impl Refusal {
    /// 401: the credentials are not, or no longer, good.
    pub fn unauthorized() -> Self {
        Self::new(401, "Unauthorized", "Unauthorized")
    }

    /// 403: the account may not do this.
    pub fn forbidden() -> Self {
        Self::new(403, "Forbidden", "forbidden: the account may not do this to this resource")
    }

    /// 429: too many at once; ask again after so many seconds.
    pub fn too_many_requests(retry_after: u32) -> Self {
        let message = "the server has received too many requests and has asked us to try later";
        let refusal = Self::new(429, "TooManyRequests", message);
        Self { retry_after: Some(retry_after), ..refusal }
    }

    /// 500: the storage behind the server failed.
    pub fn internal_error() -> Self {
        Self::new(500, "InternalError", "Internal error occurred: etcdserver: request timed out")
    }

    /// 503: the server is starting, or shutting down.
    pub fn unavailable() -> Self {
        Self::new(503, "ServiceUnavailable", "the server is currently unable to serve requests")
    }
}
