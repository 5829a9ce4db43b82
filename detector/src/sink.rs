//! Where findings go.
//!
//! The agent's loop hands each finding to the desk, a thread of its own that never holds it up; the
//! desk hands it to the sinks, each over a bounded queue. A slow sink drops what its queue has no room
//! for, counts it and says so.

mod alertmanager;
mod book;
mod desk;
mod events;
mod journald;
mod limit;
mod outlet;
mod rehearsal;
mod remote;
pub mod report;
pub mod shape;
mod stdout;
pub mod summary;
pub mod test;
mod text;
mod webhook;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel, sync_channel};
use std::time::Duration;

use detector_core::finding::{Finding, Severity};
use detector_core::time::BootTime;
use kube::Client;
use tokio::sync::oneshot;
use tracing::warn;

use self::desk::Desk;
use self::limit::{Limiter, Limits};
use self::outlet::{Confirmed, Inlet, Manner, Outlet, pipe};
pub(crate) use self::rehearsal::{Heard, Rehearsal};
pub use self::report::{Acknowledgement, How, Origin, Report, SCHEMA};
pub use self::summary::{SUMMARY_SCHEMA, Summary};
pub use self::text::write as write_text;
use crate::clock::BootWall;
use crate::config::Config;
use crate::health::Health;
use crate::telemetry::Telemetry;

/// Findings that wait for the desk. It is never slow, unless the disk with the state file is; what
/// there is no room for it learns when it goes on.
const BACKLOG: usize = 8_192;

/// Messages that wait for standard output. One is some 2 KiB.
const STDOUT: usize = 4_096;

/// Messages that wait for any other sink: what a minute of the highest limits can bring.
const QUEUE: usize = 1_024;

/// The name of the capability that telling in time is.
pub(crate) const DESK: &str = "desk";

/// Messages that wait for a sink that keeps what stands: it takes them at once, and has to have all.
const LEVEL: usize = 65_536;

/// How long the state file may take to be read: another agent, which is ending, may have it for a while.
const OPENING: Duration = Duration::from_secs(5);

/// How long the sinks may take for what is still queued when the agent ends.
const FAREWELL: Duration = Duration::from_secs(2);

/// What the desk is told.
enum In {
    /// A finding, when the agent had it, and by which wall clock.
    Finding { finding: Box<Finding>, told: BootTime, boot: BootWall },
    /// All that stands, where findings were lost on their way.
    Standing { findings: Vec<Finding>, told: BootTime, boot: BootWall },
    /// A sink has something.
    Confirmed(Confirmed),
    /// Somebody wants to know or to say something.
    Ask(Ask),
    /// No more will come; the sinks may take so long for what they have.
    End(Duration),
}

/// What somebody wants to know or to say.
enum Ask {
    /// Somebody takes care of a finding, or nobody any more.
    Acknowledge {
        key: String,
        by: Option<Acknowledgement>,
        answer: oneshot::Sender<Result<(), String>>,
    },
    /// What stands, as it was told.
    Findings(oneshot::Sender<Vec<Report>>),
    /// Every sink is to be told this.
    Test(Box<Report>),
}

/// All sinks.
pub struct Sinks {
    to: Sender<In>,
    /// Findings that the desk has not begun with.
    backlog: Arc<AtomicUsize>,
    /// Whether findings were lost since all that stands was told last.
    lost: bool,
    /// Tells when the desk has ended.
    ended: Receiver<()>,
    telemetry: Arc<Telemetry>,
    health: Health,
    told: u64,
    rehearsal: Option<Rehearsal>,
}

/// The way to the desk for others than the loop.
#[derive(Clone)]
pub struct Counter {
    to: Sender<In>,
}

/// The sinks while they are made.
struct Making<'a> {
    config: &'a Config,
    to: Sender<In>,
    health: Health,
    telemetry: Arc<Telemetry>,
    rehearsal: Option<Rehearsal>,
    outlets: Vec<(Outlet, Option<Limiter>)>,
}

// === impl Sinks ===

impl Sinks {
    /// Starts the desk and the sinks that the configuration names. Gives the findings that stood when
    /// the agent last ended. `client` is for Kubernetes Events. In a rehearsal nothing else is told.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub(crate) fn start(
        config: &Config,
        client: Option<Client>,
        health: &Health,
        telemetry: &Arc<Telemetry>,
        rehearsal: Option<Rehearsal>,
    ) -> io::Result<(Self, Vec<Finding>)> {
        let (to, inbox) = channel::<In>();
        let origin = Arc::new(Origin::of(config));
        let mut making = Making {
            config,
            to: to.clone(),
            health: health.clone(),
            telemetry: Arc::clone(telemetry),
            rehearsal: rehearsal.clone(),
            outlets: Vec::new(),
        };
        making.start_all(client)?;
        let options = desk::Options {
            origin,
            test: rehearsal.is_some(),
            repeat: config.alerts.repeat,
            state: config.doors.state.clone(),
            backlog: Arc::new(AtomicUsize::new(0)),
            health: health.clone(),
            telemetry: Arc::clone(telemetry),
        };
        let backlog = Arc::clone(&options.backlog);
        health.expect(DESK);
        telemetry.expect_sink(DESK);
        let (outlets, (end, ended), (tell, told)) =
            (making.outlets, sync_channel(1), sync_channel(0));
        // In its thread: the disk may hang.
        spawn("desk", move || {
            let (desk, standing) = Desk::open(options, outlets);
            let known = tell.send(standing).is_ok();
            desk.run(&inbox, known);
            // Nobody listens any more where the agent did not wait.
            let _ = end.send(());
        })?;
        let standing = told.recv_timeout(OPENING).unwrap_or_else(|_| {
            let why = "the state file cannot be read in time: findings that stand are told anew";
            health.degrade(desk::STATE, why);
            Vec::new()
        });
        drop(told);
        let sinks = Self {
            to,
            backlog,
            lost: false,
            ended,
            telemetry: Arc::clone(telemetry),
            health: health.clone(),
            told: 0,
            rehearsal,
        };
        Ok((sinks, standing))
    }

    /// Takes a finding. It never waits: what there is no room for is told later, by
    /// [`Self::reconcile`].
    pub fn take(&mut self, finding: Finding, told: BootTime, boot: BootWall) {
        if self.rehearsal.as_ref().is_some_and(|rehearsal| !rehearsal.takes(&finding, told)) {
            return;
        }
        self.told += 1;
        if self.backlog.load(Ordering::Relaxed) >= BACKLOG {
            self.lost = true;
            self.telemetry.count_message(DESK, "dropped");
            self.health.degrade(DESK, "findings are told too slowly: is the disk stuck?");
            return;
        }
        self.backlog.fetch_add(1, Ordering::Relaxed);
        self.send(In::Finding { finding: Box::new(finding), told, boot });
    }

    /// Whether findings were lost on the way to the desk, and it has room again: it then wants to know
    /// all that stands.
    pub fn wants_all(&self) -> bool {
        self.lost && self.backlog.load(Ordering::Relaxed) < BACKLOG / 2
    }

    /// Tells the desk all that stands, so that nothing is missing there.
    pub fn reconcile(&mut self, findings: Vec<Finding>, told: BootTime, boot: BootWall) {
        self.lost = false;
        self.send(In::Standing { findings, told, boot });
    }

    /// Findings that were taken.
    pub fn told(&self) -> u64 {
        self.told
    }

    /// The way to the desk for those who ask.
    pub fn counter(&self) -> Counter {
        Counter { to: self.to.clone() }
    }

    /// Lets the sinks deliver what is queued, and ends them; gives up where somebody does not take it.
    pub fn end(self) {
        self.end_within(FAREWELL);
    }

    fn end_within(self, patience: Duration) {
        self.send(In::End(patience));
        // It may hang in a disk that does: nobody waits for it longer than for the sinks.
        match self.ended.recv_timeout(patience + FAREWELL) {
            Ok(()) => {}
            Err(RecvTimeoutError::Disconnected) => {
                warn!("the desk has failed: some findings were not told");
            }
            Err(RecvTimeoutError::Timeout) => {
                warn!("findings cannot be written down: giving up, some were not told");
            }
        }
    }

    fn send(&self, what: In) {
        // The desk ends when told to, and not before.
        let _ = self.to.send(what);
    }
}

// === impl Counter ===

impl Counter {
    /// Says that somebody takes care of the finding of this key, or that nobody does any more; an error
    /// says why that cannot be.
    pub async fn acknowledge(
        &self,
        key: String,
        by: Option<Acknowledgement>,
    ) -> Result<(), String> {
        let (answer, answered) = oneshot::channel();
        let gone = || "the agent is ending".to_owned();
        self.to.send(In::Ask(Ask::Acknowledge { key, by, answer })).map_err(|_| gone())?;
        answered.await.map_err(|_| gone())?
    }

    /// The findings that stand, as they were told last.
    pub async fn findings(&self) -> Vec<Report> {
        let (answer, answered) = oneshot::channel();
        if self.to.send(In::Ask(Ask::Findings(answer))).is_err() {
            return Vec::new();
        }
        answered.await.unwrap_or_default()
    }
}

// === impl Making ===

impl Making<'_> {
    fn start_all(&mut self, client: Option<Client>) -> io::Result<()> {
        let config = self.config;
        let manner = |name: &str| Manner {
            name: name.into(),
            least: Severity::Low,
            record: false,
            repeats: true,
            level: false,
        };
        if !self.rehearsal.as_ref().is_some_and(|rehearsal| rehearsal.silent) {
            let record = Manner { record: true, repeats: false, ..manner("stdout") };
            let inlet = self.pipe(record, STDOUT, None);
            let output = config.output;
            spawn("stdout", move || stdout::run(inlet, output))?;
        }
        if let Some(socket) = config.outlets.journald.clone() {
            let inlet = self.pipe(manner("journald"), QUEUE, Some(self.limits()));
            spawn("journald", move || journald::run(inlet, &socket))?;
        }
        if config.outlets.events {
            let inlet = self.pipe(manner("events"), QUEUE, Some(self.limits()));
            match client {
                Some(client) => drop(tokio::spawn(events::run(inlet, client))),
                None => drop(tokio::spawn(refuse(inlet, "no API server is asked (--no-api)"))),
            }
        }
        for alertmanager in &config.outlets.alertmanagers {
            let (name, least) = (&alertmanager.remote.name, alertmanager.remote.least);
            let manner = Manner { least, repeats: false, level: true, ..manner(name) };
            // Alertmanager groups by itself, and what it is not told to stand does not.
            let inlet = self.pipe(manner, LEVEL, None);
            drop(tokio::spawn(alertmanager::run(inlet, alertmanager.clone())));
        }
        for webhook in &config.outlets.webhooks {
            let manner = Manner { least: webhook.remote.least, ..manner(&webhook.remote.name) };
            let inlet = self.pipe(manner, QUEUE, Some(self.limits()));
            drop(tokio::spawn(webhook::run(inlet, webhook.clone())));
        }
        Ok(())
    }

    fn pipe(&mut self, manner: Manner, room: usize, limits: Option<Limits>) -> Inlet {
        let (to, health) = (self.to.clone(), self.health.clone());
        let (outlet, mut inlet) =
            pipe(manner, room, self.outlets.len(), to, health, Arc::clone(&self.telemetry));
        inlet.heard = self.rehearsal.as_ref().map(|rehearsal| rehearsal.heard.clone());
        self.outlets.push((outlet, limits.map(Limiter::new)));
        inlet
    }

    fn limits(&self) -> Limits {
        let alerts = &self.config.alerts;
        Limits {
            window: alerts.window,
            per_attacker: alerts.per_attacker,
            per_sink: alerts.per_sink,
        }
    }
}

/// A sink that cannot take anything, for this reason.
async fn refuse(mut inlet: Inlet, why: &'static str) {
    while let Some(delivery) = inlet.next().await {
        inlet.failed(1, why, delivery.numbers);
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    std::thread::Builder::new().name(name.to_owned()).spawn(work).map(drop)
}
