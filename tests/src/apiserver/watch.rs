//! Watches: a stream of lines that misses nothing and says nothing twice.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::Stream;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::Frame;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

use super::World;
use super::fault::{Cut, Gate};
use super::options::{Options, Version};
use super::refusal::Refusal;
use super::shape::Shape;
use super::store::{Change, Delivery, Start, at_version};
use super::target::Target;
use super::traffic::OpenWatch;

/// The body of an answer; its error breaks the connection off.
pub(super) type Body = UnsyncBoxBody<Bytes, BrokenOff>;

/// The server stops in the middle of an answer.
#[derive(Debug, thiserror::Error)]
#[error("the server broke the answer off")]
pub(super) struct BrokenOff;

/// How long a watch lasts that does not say. A real server takes 30 to 60 minutes.
const LONGEST: Duration = Duration::from_mins(30);

/// How often a watch is told that nothing happened.
const BOOKMARK_EVERY: Duration = Duration::from_mins(1);

/// One open watch.
struct Watch {
    world: Arc<World>,
    target: Target,
    options: Options,
    shape: Shape,
    queue: mpsc::UnboundedReceiver<Delivery>,
    /// Taken from the queue and not yet told.
    next: Option<Delivery>,
    cuts: watch::Receiver<Cut>,
    gate: watch::Receiver<Gate>,
    end: Instant,
    bookmark: Instant,
    ended: bool,
    _open: OpenWatch,
}

/// Opens a watch. A version that is too old is no refusal but an event in the stream.
pub(super) fn open(
    world: &Arc<World>,
    target: Target,
    options: Options,
    shape: Shape,
) -> Result<Body, Refusal> {
    // Taken first: what is cut or held from here on is this watch too.
    let (cuts, gate) = (world.faults.watch_cuts(), world.faults.watch_gate());
    let mut store = world.store();
    if options.initial_events && !store.watch_list {
        return Err(Refusal::invalid_options(
            "sendInitialEvents: Forbidden: sendInitialEvents is forbidden for watch unless the \
             WatchList feature gate is enabled",
        ));
    }
    let start = match options.version {
        Version::NotOlderThan(version) if options.initial_events && version > store.version() => {
            return Err(Refusal::version_ahead(version, store.version()));
        }
        _ if options.initial_events && options.bookmarks => Start::StandingThenBookmark,
        _ if options.initial_events => Start::Standing,
        Version::Newest | Version::Any => Start::Standing,
        Version::NotOlderThan(version) | Version::Exact(version) => Start::After(version),
    };
    let queue = match store.watch(target.kind, start) {
        Ok(queue) => queue,
        Err(refusal) => {
            let line = line("ERROR", &refusal.to_status());
            world.traffic.sent(line.len());
            return Ok(whole(line));
        }
    };
    let now = Instant::now();
    let timeout = options.timeout.filter(|seconds| *seconds > 0).map(Duration::from_secs);
    let watch = Watch {
        world: Arc::clone(world),
        queue,
        next: None,
        cuts,
        gate,
        end: now + timeout.unwrap_or(LONGEST).min(LONGEST),
        bookmark: now + BOOKMARK_EVERY,
        ended: false,
        _open: world.traffic.opened(target.kind),
        target,
        options,
        shape,
    };
    Ok(StreamBody::new(watch.into_stream()).boxed_unsync())
}

/// A body that is there at once.
pub(super) fn whole(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(|never: Infallible| match never {}).boxed_unsync()
}

// === impl Watch ===

impl Watch {
    fn into_stream(self) -> impl Stream<Item = Result<Frame<Bytes>, BrokenOff>> + Send {
        futures::stream::unfold(self, |mut watch| async move {
            let item = watch.step().await?;
            if let Ok(line) = &item {
                watch.world.traffic.sent(line.len());
            }
            Some((item.map(Frame::data), watch))
        })
    }

    /// The next line, or the end.
    async fn step(&mut self) -> Option<Result<Bytes, BrokenOff>> {
        while !self.ended {
            tokio::select! {
                biased;
                // The sender lives in the world, which this watch keeps alive.
                Ok(()) = self.cuts.changed() => {
                    self.ended = true;
                    match *self.cuts.borrow() {
                        Cut::Abrupt => return Some(Err(BrokenOff)),
                        Cut::Orderly => return None,
                    }
                }
                () = sleep_until(self.end) => {
                    self.ended = true;
                    return self.last_bookmark().map(Ok);
                }
                () = sleep_until(self.bookmark) => {
                    self.bookmark += BOOKMARK_EVERY;
                    if let Some(line) = self.last_bookmark() {
                        return Some(Ok(line));
                    }
                }
                Some(delivery) = due(&mut self.queue, &mut self.next, &mut self.gate) => {
                    if let Some(line) = self.tell(delivery) {
                        return Some(Ok(line));
                    }
                }
            }
        }
        None
    }

    /// A bookmark for a watch that has been told everything.
    fn last_bookmark(&self) -> Option<Bytes> {
        let store = self.world.store();
        let told_all = self.next.is_none() && self.queue.is_empty() && !self.gate.borrow().held;
        (told_all && self.options.bookmarks).then(|| self.bookmark_at(store.version(), false))
    }

    /// What is to be said of a delivery; nothing when it is none of this watch's business.
    fn tell(&self, delivery: Delivery) -> Option<Bytes> {
        match delivery {
            Delivery::Standing(object) => {
                // A kind that was watched as a whole is narrowed here, as with changes.
                let here = self.target.namespace.as_deref();
                let inside = here.is_none_or(|here| object["metadata"]["namespace"] == here);
                (inside && self.options.selector.matches(&object))
                    .then(|| line("ADDED", &self.shape.object(&object)))
            }
            Delivery::StandingEnds(version) => Some(self.bookmark_at(version, true)),
            Delivery::Change(change) => self.change(&change),
            Delivery::Bookmark(version) => {
                self.options.bookmarks.then(|| self.bookmark_at(version, false))
            }
            Delivery::Line(text) => Some(Bytes::from(text + "\n")),
        }
    }

    /// A change as the selector sees it: an object that begins to match is ADDED, one that no
    /// longer does is DELETED, in its last matching state but with the version of the change.
    fn change(&self, change: &Change) -> Option<Bytes> {
        if !self.target.holds(&change.key) {
            return None;
        }
        let matching = |object: &Option<Arc<Value>>| {
            object.clone().filter(|object| self.options.selector.matches(object))
        };
        match (matching(&change.before), matching(&change.after)) {
            (None, Some(after)) => Some(line("ADDED", &self.shape.object(&after))),
            (Some(_), Some(after)) => Some(line("MODIFIED", &self.shape.object(&after))),
            (Some(before), None) => {
                let last = at_version(before.as_ref().clone(), change.version);
                Some(line("DELETED", &self.shape.object(&last)))
            }
            (None, None) => None,
        }
    }

    fn bookmark_at(&self, version: u64, initial_end: bool) -> Bytes {
        let (kind, api_version) = self.shape.names(self.target.kind);
        let mut metadata = json!({ "resourceVersion": version.to_string() });
        // Null where a real server has it null: clients must bear it.
        metadata["creationTimestamp"] = Value::Null;
        if initial_end {
            metadata["annotations"] = json!({ "k8s.io/initial-events-end": "true" });
        }
        let object = json!({ "kind": kind, "apiVersion": api_version, "metadata": metadata });
        line("BOOKMARK", &object)
    }
}

/// Waits for the next delivery and until it may be told. It stays in `next` when the waiting is
/// given up.
async fn due(
    queue: &mut mpsc::UnboundedReceiver<Delivery>,
    next: &mut Option<Delivery>,
    gate: &mut watch::Receiver<Gate>,
) -> Option<Delivery> {
    if next.is_none() {
        *next = Some(queue.recv().await?);
    }
    loop {
        let Gate { held, delay } = *gate.borrow_and_update();
        let due = match next {
            Some(Delivery::Change(change)) => Instant::from_std(change.at + delay),
            _ => Instant::now(),
        };
        if held {
            gate.changed().await.ok()?;
        } else if due <= Instant::now() {
            return next.take();
        } else {
            tokio::select! {
                () = sleep_until(due) => {}
                changed = gate.changed() => changed.ok()?,
            }
        }
    }
}

fn line(what: &str, object: &Value) -> Bytes {
    Bytes::from(format!("{{\"type\":\"{what}\",\"object\":{object}}}\n"))
}
