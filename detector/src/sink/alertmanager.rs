//! Alertmanager, by its API v2: one alert for each finding, which lasts as long as the finding stands.
//!
//! An alert that is not sent again ends by itself, so what stands is sent again each minute. What
//! counts is what stands, not each word about it: while the server is away words are taken in, and what
//! is true then is sent when it is back. An alert is known by its labels; where one of them changes, the
//! old alert is ended and another begins.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use serde_json::{Map, Value, json};
use tokio::time::{Instant, sleep_until};

use super::outlet::{Delivery, Inlet, Message};
use super::remote::{Backoff, Server};
use super::report::{How, Report};
use super::summary::Summary;
use crate::config::outlets::Remote;

/// How often what stands is sent again.
const AGAIN: Duration = Duration::from_mins(1);

/// How long an alert lasts that is not sent again: an agent may miss four times.
const LASTS: SignedDuration = SignedDuration::from_mins(5);

/// Alerts that are sent at once.
const BATCH: usize = 512;

/// Alerts that are kept; beyond them only what is known already is changed.
const MOST: usize = 20_000;

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
    /// Whether it is over.
    over: bool,
    /// Whether the server does not know it as it is now.
    news: bool,
    /// Alerts under other labels that have to be ended.
    former: Vec<Alert>,
    /// What it tells.
    numbers: Vec<u64>,
    /// How many words are in it.
    words: u64,
}

#[derive(Default)]
struct Alerts(HashMap<String, Standing>);

/// Sends until there is no more to send.
pub(super) async fn run(mut inlet: Inlet, remote: Remote) {
    let mut alerts = Alerts::default();
    let mut backoff = Backoff::new();
    let mut server = None;
    let mut again = Instant::now() + AGAIN;
    let mut next = None;
    loop {
        if inlet.is_closed() && next.is_none() {
            return;
        }
        let due = next.unwrap_or(again);
        tokio::select! {
            delivery = inlet.next(), if !inlet.is_closed() => {
                let Some(delivery) = delivery else { continue };
                alerts.take(&inlet, delivery);
                while let Some(delivery) = inlet.try_next() {
                    alerts.take(&inlet, delivery);
                }
                next.get_or_insert_with(Instant::now);
            }
            () = sleep_until(due) => {
                if Instant::now() >= again {
                    again = Instant::now() + AGAIN;
                    alerts.renew();
                }
                next = match send(&mut server, &remote, &inlet, &mut alerts).await {
                    Ok(true) => Some(Instant::now()),
                    Ok(false) => {
                        backoff.reset();
                        None
                    }
                    Err(()) => Some(Instant::now() + backoff.pause()),
                };
            }
        }
    }
}

/// Sends what the server does not know; true where there is more.
async fn send(
    server: &mut Option<Server>,
    remote: &Remote,
    inlet: &Inlet,
    alerts: &mut Alerts,
) -> Result<bool, ()> {
    let keys: Vec<String> =
        alerts.0.iter().filter(|(_, s)| s.news).take(BATCH).map(|(key, _)| key.clone()).collect();
    if keys.is_empty() {
        return Ok(false);
    }
    let batch: Vec<Alert> = keys
        .iter()
        .filter_map(|key| alerts.0.get(key))
        .flat_map(|standing| standing.former.iter().cloned().chain([standing.current()]))
        .collect();
    let body = serde_json::to_vec(&batch).unwrap_or_default();
    if server.is_none() {
        match Server::new(remote.clone(), "/api/v2/alerts") {
            Ok(made) => *server = Some(made),
            Err(failure) => {
                inlet.retrying(&failure.why);
                return Err(());
            }
        }
    }
    let Some(server) = server else { return Err(()) };
    let answer = server.post(Bytes::from(body), &[]).await;
    if let Err(failure) = &answer
        && failure.temporary
    {
        inlet.retrying(&failure.why);
        return Err(());
    }
    let (mut numbers, mut words) = (Vec::new(), 0);
    for key in keys {
        let Some(standing) = alerts.0.get_mut(&key) else { continue };
        numbers.append(&mut standing.numbers);
        words += std::mem::take(&mut standing.words);
        standing.news = false;
        standing.former.clear();
        if standing.over {
            alerts.0.remove(&key);
        }
    }
    match answer {
        Ok(()) => inlet.delivered(words, numbers),
        Err(failure) => inlet.failed(&failure.why, numbers),
    }
    Ok(alerts.0.values().any(|standing| standing.news))
}

// === impl Alerts ===

impl Alerts {
    fn take(&mut self, inlet: &Inlet, delivery: Delivery) {
        let Delivery { message, numbers } = delivery;
        let (key, alert, over) = match &message {
            Message::Report(report) => {
                (report.key(), Alert::of_report(report), report.how == How::Closed)
            }
            Message::Summary(summary) => {
                (format!("flood {}", summary.since()), Alert::of_summary(summary), true)
            }
        };
        if !self.0.contains_key(&key) && self.0.len() >= MOST {
            inlet.failed("more alerts stand than are kept: more than 20,000", numbers);
            return;
        }
        let standing = self.0.entry(key).or_insert_with(|| Standing {
            alert: alert.clone(),
            over,
            news: true,
            former: Vec::new(),
            numbers: Vec::new(),
            words: 0,
        });
        if standing.alert.labels != alert.labels {
            let mut former = standing.alert.clone();
            former.ends_at = Timestamp::now();
            standing.former.push(former);
        }
        standing.alert = alert;
        standing.over = over;
        standing.news = true;
        standing.numbers.extend(numbers);
        standing.words += 1;
    }

    /// Makes everything that stands be sent again.
    fn renew(&mut self) {
        for standing in self.0.values_mut() {
            standing.news = true;
        }
    }
}

impl Standing {
    /// The alert as it is now: what stands lasts a while from now.
    fn current(&self) -> Alert {
        let mut alert = self.alert.clone();
        if !self.over {
            alert.ends_at = later(Timestamp::now());
        }
        alert
    }
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

    /// What was held back is over by itself: it stands as long as it takes a person to see it.
    fn of_summary(summary: &Summary) -> Self {
        let labels = json!({
            "alertname": "RouteHijackFlood",
            "severity": summary.batch.severity.as_str(),
            "node": summary.node(),
        });
        let annotations = json!({
            "summary": summary.text(),
            "description": summary.to_value().to_string(),
            "runbook": summary.runbook(),
        });
        let map = |value: Value| value.as_object().cloned().unwrap_or_default();
        Self {
            labels: map(labels),
            annotations: map(annotations),
            starts_at: summary.since(),
            ends_at: later(summary.until()),
        }
    }
}

/// All that a person needs to begin.
fn description(report: &Report) -> String {
    let mut text = Vec::new();
    super::text::write(report, &mut text);
    String::from_utf8_lossy(&text).into_owned()
}
