//! Alertmanager, by its API v2: one alert for each finding, which lasts as long as the finding stands.
//!
//! An alert that is not sent again ends by itself, so what stands is sent again each minute. What
//! counts is what stands, not each word about it: while the server is away words are taken in, and what
//! is true then is sent when it is back. An alert is known by its labels; where one of them changes, the
//! old alert is ended and another begins. One that is over too soon for Alertmanager to tell anybody is
//! kept standing for a while.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use serde_json::{Map, Value};
use tokio::time::{Instant, sleep_until};

use super::outlet::{Delivery, Inlet, Message};
use super::remote::{Backoff, Failure, Server};
use super::report::{How, Report};
use crate::config::outlets::{self as config, Remote};

/// How often what stands is sent again.
const AGAIN: Duration = Duration::from_mins(1);

/// How long an alert lasts that is not sent again: an agent may miss four times.
const LASTS: SignedDuration = SignedDuration::from_mins(5);

/// So much is sent at once, in bytes: proxies take no more than a megabyte.
const BATCH: usize = 256 << 10;

/// Alerts that are kept; beyond them only what is known already is changed.
const MOST: usize = 50_000;

/// An alert as Alertmanager takes it.
#[derive(Clone, Serialize)]
#[serde(rename_all = "camelCase")]
struct Alert {
    labels: Map<String, Value>,
    annotations: Map<String, Value>,
    starts_at: Timestamp,
    ends_at: Timestamp,
}

/// An alert that stands, or has to be ended.
struct Standing {
    alert: Alert,
    /// Whether it is over, but for the time that it is kept standing.
    over: bool,
    /// When the server was first told of it.
    since: Option<Timestamp>,
    /// Grows with each word about it.
    version: u64,
    /// The version that the server has.
    sent: Option<u64>,
    /// Whether the server may know the alert under its labels.
    offered: bool,
    /// Alerts under other labels that have to be ended, by those labels.
    former: HashMap<String, Alert>,
    /// What it tells.
    numbers: Vec<u64>,
    /// How many words are in it.
    words: u64,
}

struct Alerts {
    standing: HashMap<String, Standing>,
    /// How long an alert is kept standing at least.
    lingers: SignedDuration,
}

/// Alerts on their way: each with the version that it was, and whether its end is sent.
struct Batch {
    body: Bytes,
    members: Vec<(String, u64, bool)>,
}

/// What came of a batch.
type Sent = (Batch, Option<Server>, Result<(), Failure>);

/// Sends until there is no more to send.
pub(super) async fn run(mut inlet: Inlet, to: config::Alertmanager) {
    let config::Alertmanager { remote, lingers } = to;
    let lingers = SignedDuration::try_from(lingers).unwrap_or(SignedDuration::ZERO);
    let mut alerts = Alerts { standing: HashMap::new(), lingers };
    let mut backoff = Backoff::new();
    let mut server = None;
    let mut again = Instant::now() + AGAIN;
    // When something may next be sent.
    let mut ready = Instant::now();
    let mut under_way: Option<BoxFuture<'static, Sent>> = None;
    loop {
        if under_way.is_none() && ready <= Instant::now() {
            under_way = alerts.batch().map(|batch| {
                let (server, remote) = (server.take(), remote.clone());
                send(batch, server, remote).boxed()
            });
        }
        if inlet.is_closed() && under_way.is_none() && !alerts.has_news() {
            return;
        }
        let next_end = alerts.next_end().unwrap_or(again);
        let paused = under_way.is_none() && alerts.has_news();
        tokio::select! {
            delivery = inlet.next(), if !inlet.is_closed() => {
                if let Some(delivery) = delivery {
                    alerts.take(&inlet, delivery);
                }
                while let Some(delivery) = inlet.try_next() {
                    alerts.take(&inlet, delivery);
                }
            }
            (batch, used, result) = arrived(&mut under_way) => {
                under_way = None;
                match result {
                    Ok(()) => {
                        server = used;
                        backoff.reset();
                        let (words, numbers) = alerts.settle(batch);
                        inlet.delivered(words, numbers);
                    }
                    Err(failure) if failure.permanent => {
                        server = used;
                        let (words, numbers) = alerts.settle(batch);
                        inlet.failed(words, &failure.why, numbers);
                    }
                    Err(failure) => {
                        // Its certificates may have been replaced.
                        server = used.filter(|_| failure.answered);
                        inlet.retrying(&failure.why);
                        ready = Instant::now() + backoff.pause();
                    }
                }
            }
            () = sleep_until(ready), if paused => {}
            () = sleep_until(next_end), if under_way.is_none() && !paused => {}
            () = sleep_until(again) => {
                again = Instant::now() + AGAIN;
                alerts.renew();
            }
        }
    }
}

async fn arrived(under_way: &mut Option<BoxFuture<'static, Sent>>) -> Sent {
    match under_way {
        Some(sending) => sending.await,
        None => std::future::pending().await,
    }
}

async fn send(batch: Batch, server: Option<Server>, remote: Remote) -> Sent {
    let server = match server {
        Some(server) => Ok(server),
        None => Server::new(remote, "/api/v2/alerts", false).await,
    };
    match server {
        Ok(server) => {
            let result = server.post(batch.body.clone(), &[]).await;
            (batch, Some(server), result)
        }
        Err(failure) => (batch, None, Err(failure)),
    }
}

// === impl Alerts ===

impl Alerts {
    fn take(&mut self, inlet: &Inlet, delivery: Delivery) {
        let Delivery { message, numbers } = delivery;
        let Message::Report(report) = &message else {
            // Nothing is held back from it.
            return;
        };
        let (key, over) = (report.key(), report.how == How::Closed);
        let alert = Alert::of_report(report);
        let new = || Standing {
            alert: alert.clone(),
            over,
            since: None,
            version: 0,
            sent: None,
            offered: false,
            former: HashMap::new(),
            numbers: Vec::new(),
            words: 0,
        };
        if self.standing.len() >= MOST && !self.standing.contains_key(&key) {
            inlet.failed(1, "more alerts stand than are kept: more than 50,000", numbers);
            return;
        }
        let standing = self.standing.entry(key).or_insert_with(new);
        if standing.over && !over {
            // The next of the same key, while the one before was kept standing.
            standing.since = None;
        }
        let (labels, before) = (labels_of(&alert), labels_of(&standing.alert));
        if labels != before && standing.offered {
            let mut former = standing.alert.clone();
            former.ends_at = Timestamp::now();
            standing.former.insert(before, former);
        }
        standing.former.remove(&labels);
        if report.past {
            // People were told when it began, by the agent before.
            standing.since = Some(Timestamp::UNIX_EPOCH);
        }
        standing.alert = alert;
        standing.over = over;
        standing.version += 1;
        standing.numbers.extend(numbers);
        standing.words += 1;
    }

    /// What the server does not have, as much as is sent at once.
    fn batch(&mut self) -> Option<Batch> {
        let mut body = vec![b'['];
        let mut members = Vec::new();
        let lingers = self.lingers;
        let news = self.standing.iter_mut().filter(|(_, standing)| standing.has_news(lingers));
        for (key, standing) in news {
            standing.offered = true;
            let current = standing.current(lingers);
            for alert in standing.former.values().chain([&current]) {
                if body.len() > 1 {
                    body.push(b',');
                }
                // All of it is text, and a Vec takes every byte.
                let _ = serde_json::to_writer(&mut body, alert);
            }
            members.push((key.clone(), standing.version, standing.is_due(lingers)));
            if body.len() >= BATCH {
                break;
            }
        }
        body.push(b']');
        (!members.is_empty()).then(|| Batch { body: body.into(), members })
    }

    /// The server has what was sent, or never will; gives how many words that were, and their numbers.
    fn settle(&mut self, batch: Batch) -> (u64, Vec<u64>) {
        let (mut words, mut numbers) = (0, Vec::new());
        for (key, version, ended) in batch.members {
            let Some(standing) = self.standing.get_mut(&key) else { continue };
            standing.since.get_or_insert_with(Timestamp::now);
            if standing.version != version {
                // There is a newer word, which is sent next; it has the numbers of this one too.
                standing.sent.get_or_insert(version);
                continue;
            }
            standing.sent = Some(version);
            standing.former.clear();
            words += std::mem::take(&mut standing.words);
            numbers.append(&mut standing.numbers);
            if ended {
                self.standing.remove(&key);
            }
        }
        (words, numbers)
    }

    fn has_news(&self) -> bool {
        self.standing.values().any(|standing| standing.has_news(self.lingers))
    }

    /// When the first of those that are over has been kept standing for long enough.
    fn next_end(&self) -> Option<Instant> {
        let over = self.standing.values().filter(|standing| standing.over);
        let left = over.filter_map(|standing| standing.left(self.lingers)).min()?;
        Some(Instant::now() + left)
    }

    /// Makes everything that stands be sent again.
    fn renew(&mut self) {
        for standing in self.standing.values_mut() {
            standing.version += 1;
        }
    }
}

// === impl Standing ===

impl Standing {
    fn has_news(&self, lingers: SignedDuration) -> bool {
        self.sent != Some(self.version) || self.is_due(lingers)
    }

    /// For how long it is still kept standing; `None` before the server has heard of it.
    fn left(&self, lingers: SignedDuration) -> Option<Duration> {
        let until = self.since?.checked_add(lingers).ok()?;
        Some(until.duration_since(Timestamp::now()).try_into().unwrap_or_default())
    }

    /// Whether it is over, and the server has had it for long enough to tell people.
    fn is_due(&self, lingers: SignedDuration) -> bool {
        self.over && self.left(lingers).is_some_and(|left| left.is_zero())
    }

    /// The alert as it is sent now. Alertmanager takes an earlier end than it has only where that is
    /// past, so until then what is over is sent as what stands.
    fn current(&self, lingers: SignedDuration) -> Alert {
        let mut alert = self.alert.clone();
        let now = Timestamp::now();
        alert.ends_at = if self.is_due(lingers) { now } else { later(now) };
        alert
    }
}

fn labels_of(alert: &Alert) -> String {
    Value::Object(alert.labels.clone()).to_string()
}

fn later(time: Timestamp) -> Timestamp {
    time.checked_add(LASTS).unwrap_or(time)
}

// === impl Alert ===

impl Alert {
    fn of_report(report: &Report) -> Self {
        let finding = &report.finding;
        let charge = &finding.charge;
        let attacker = &charge.attacker;
        let pod = attacker.pod.as_ref();
        let mut labels = Map::new();
        let name = if report.test { "RouteHijackTest" } else { "RouteHijack" };
        let mut label = |name: &str, value: String| {
            // A label without a value is no label.
            if !value.is_empty() {
                labels.insert(name.to_owned(), Value::String(value));
            }
        };
        label("alertname", name.to_owned());
        label("severity", charge.severity.as_str().to_owned());
        label("verdict", charge.certainty.as_str().to_owned());
        label("means", charge.means.as_str().to_owned());
        label("node", report.node().to_owned());
        label("key", report.key());
        label("address", finding.key.subject.prefix().map(|p| p.to_string()).unwrap_or_default());
        label("attacker", report.attacker());
        label("attacker_namespace", pod.map(|pod| pod.namespace().to_owned()).unwrap_or_default());
        label("attacker_pod", pod.map(|pod| pod.name().to_owned()).unwrap_or_default());
        label("victim", charge.victim.to_string());
        let began = report.wall(finding.began);
        let ended = finding.ended.map(|ended| report.wall(ended).max(began));
        let mut annotations = Map::new();
        let mut note = |name: &str, value: String| {
            annotations.insert(name.to_owned(), Value::String(value));
        };
        note("summary", report.summary());
        note("description", description(report));
        note("runbook", report.runbook());
        if let Some(by) = &report.acknowledged {
            note("acknowledged", format!("by {} until {}", by.by, by.until));
        }
        Self {
            labels,
            annotations,
            starts_at: began,
            ends_at: ended.unwrap_or_else(|| later(Timestamp::now())),
        }
    }
}

/// All that a person needs to begin.
fn description(report: &Report) -> String {
    let mut text = Vec::new();
    super::text::write(report, &mut text);
    String::from_utf8_lossy(&text).into_owned()
}
