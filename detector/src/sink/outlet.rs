//! The way from the desk to one sink: a bounded queue, and the way back on which the sink says what it
//! has delivered.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::Sender;

use detector_core::finding::Severity;
use tokio::sync::mpsc;

use super::In;
use super::rehearsal::Heard;
use super::report::Report;
use super::summary::Summary;
use crate::clock;
use crate::health::Health;
use crate::telemetry::{Sink, Telemetry};

/// What a sink is told.
#[derive(Clone, Debug)]
pub(super) enum Message {
    Report(Arc<Report>),
    Summary(Arc<Summary>),
}

/// A message, with the numbers of what it tells.
#[derive(Clone, Debug)]
pub(super) struct Delivery {
    pub(super) message: Message,
    pub(super) numbers: Vec<u64>,
}

/// A sink has what these numbers told, or never will.
#[derive(Debug)]
pub(super) struct Confirmed {
    pub(super) sink: usize,
    pub(super) numbers: Vec<u64>,
}

/// How a sink wants to be told.
#[derive(Clone, Debug)]
pub(super) struct Manner {
    pub(super) name: Box<str>,
    /// What is less severe is not told.
    pub(super) least: Severity,
    /// It is told everything that happens, whoever takes care of it.
    pub(super) record: bool,
    /// It is told now and then what still stands.
    pub(super) repeats: bool,
    /// It keeps what stands by itself, and has to be told of it after a restart.
    pub(super) level: bool,
}

/// The desk's end.
#[derive(Debug)]
pub(super) struct Outlet {
    pub(super) name: Box<str>,
    pub(super) least: Severity,
    pub(super) record: bool,
    pub(super) repeats: bool,
    pub(super) level: bool,
    queue: Option<mpsc::Sender<Delivery>>,
    queued: Arc<AtomicUsize>,
    ended: Arc<AtomicBool>,
}

/// The sink's end. The desk knows that the sink has ended when this is dropped.
#[derive(Debug)]
pub(super) struct Inlet {
    pub(super) name: Box<str>,
    queue: mpsc::Receiver<Delivery>,
    queued: Arc<AtomicUsize>,
    ended: Arc<AtomicBool>,
    sink: usize,
    desk: Sender<In>,
    health: Health,
    telemetry: Arc<Telemetry>,
    /// Who else wants to know, in a rehearsal.
    pub(super) heard: Option<mpsc::UnboundedSender<Heard>>,
}

/// Makes both ends of a sink's queue, with room for so many messages.
pub(super) fn pipe(
    manner: Manner,
    room: usize,
    sink: usize,
    desk: Sender<In>,
    health: Health,
    telemetry: Arc<Telemetry>,
) -> (Outlet, Inlet) {
    let (to, from) = mpsc::channel(room);
    let queued = Arc::new(AtomicUsize::new(0));
    let ended = Arc::new(AtomicBool::new(false));
    let Manner { name, least, record, repeats, level } = manner;
    let outlet = Outlet {
        name: name.clone(),
        least,
        record,
        repeats,
        level,
        queue: Some(to),
        queued: Arc::clone(&queued),
        ended: Arc::clone(&ended),
    };
    health.expect(&outlet.capability());
    telemetry.expect_sink(&name);
    let inlet =
        Inlet { name, queue: from, queued, ended, sink, desk, health, telemetry, heard: None };
    (outlet, inlet)
}

fn capability(name: &str) -> String {
    format!("sink:{name}")
}

// === impl Outlet ===

impl Outlet {
    /// The name of the capability that the sink is.
    pub(super) fn capability(&self) -> String {
        capability(&self.name)
    }

    /// Hands a message over; an error says why it never will be.
    pub(super) fn send(&self, delivery: Delivery) -> Result<(), &'static str> {
        let Some(queue) = &self.queue else { return Err("it has ended") };
        self.queued.fetch_add(1, Ordering::Relaxed);
        queue.try_send(delivery).map_err(|error| {
            self.queued.fetch_sub(1, Ordering::Relaxed);
            match error {
                mpsc::error::TrySendError::Full(_) => {
                    "it takes messages too slowly: its queue is full, and they are dropped"
                }
                mpsc::error::TrySendError::Closed(_) => "it has ended",
            }
        })
    }

    /// Lets the sink end when it has sent what it has.
    pub(super) fn close(&mut self) {
        self.queue = None;
    }

    /// Whether the sink has ended.
    pub(super) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// Shows how many messages wait.
    pub(super) fn measure(&self, telemetry: &Telemetry) {
        let queued = i64::try_from(self.queued.load(Ordering::Relaxed)).unwrap_or(i64::MAX);
        telemetry.sink_queue.get_or_create(&Sink::new(&self.name)).set(queued);
    }
}

// === impl Inlet ===

impl Inlet {
    /// The next message; `None` when there will be no more.
    pub(super) async fn next(&mut self) -> Option<Delivery> {
        let delivery = self.queue.recv().await;
        self.taken(delivery)
    }

    /// The same, for threads.
    pub(super) fn blocking_next(&mut self) -> Option<Delivery> {
        let delivery = self.queue.blocking_recv();
        self.taken(delivery)
    }

    /// The next message if there is one already.
    pub(super) fn try_next(&mut self) -> Option<Delivery> {
        let delivery = self.queue.try_recv().ok();
        self.taken(delivery)
    }

    /// Whether the agent is ending, and what cannot be delivered now never will be.
    pub(super) fn is_abandoned(&self) -> bool {
        self.queue.is_closed()
    }

    /// Whether no more will come.
    pub(super) fn is_closed(&self) -> bool {
        self.queue.is_closed() && self.queue.is_empty()
    }

    fn taken(&self, delivery: Option<Delivery>) -> Option<Delivery> {
        if delivery.is_some() {
            self.queued.fetch_sub(1, Ordering::Relaxed);
        }
        delivery
    }

    /// Says that so many messages were delivered that tell these numbers.
    pub(super) fn delivered(&self, messages: u64, numbers: Vec<u64>) {
        let labels = crate::telemetry::Delivery::new(&self.name, "delivered");
        self.telemetry.sink_messages.get_or_create(&labels).inc_by(messages);
        self.hear(|sink| Heard::Taken { sink, at: clock::now() });
        // As long as more waits, it may be too slow still.
        if self.queue.is_empty() {
            self.health.restore(&capability(&self.name));
        }
        self.confirm(numbers);
    }

    /// Says that so many messages cannot be delivered and will not be tried again.
    pub(super) fn failed(&self, messages: u64, why: &str, numbers: Vec<u64>) {
        let labels = crate::telemetry::Delivery::new(&self.name, "failed");
        self.telemetry.sink_messages.get_or_create(&labels).inc_by(messages);
        self.health.degrade(&capability(&self.name), why);
        self.hear(|sink| Heard::Refused { sink, why: why.into() });
        self.confirm(numbers);
    }

    /// Says that a message could not be delivered yet.
    pub(super) fn retrying(&self, why: &str) {
        self.telemetry.count_message(&self.name, "retried");
        self.health.degrade(&capability(&self.name), why);
        self.hear(|sink| Heard::Delayed { sink, why: why.into() });
    }

    fn hear(&self, word: impl FnOnce(Box<str>) -> Heard) {
        if let Some(heard) = &self.heard {
            // Whoever wanted to know may have gone.
            let _ = heard.send(word(self.name.clone()));
        }
    }

    fn confirm(&self, numbers: Vec<u64>) {
        if !numbers.is_empty() {
            // At the end the desk may have gone.
            let _ = self.desk.send(In::Confirmed(Confirmed { sink: self.sink, numbers }));
        }
    }
}

impl Drop for Inlet {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Release);
    }
}
