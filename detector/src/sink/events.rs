//! Kubernetes Events: on the attacker's pod, on the victim's, and on the node, so that
//! `kubectl describe` shows them to whoever looks there first.

use std::time::Duration;

use detector_core::finding::{Certainty, Victim};
use detector_core::workload::PodKey;
use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::{ListParams, PostParams};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Api, Client};

use super::outlet::{Inlet, Message};
use super::remote::Backoff;
use super::report::{How, Report};
use super::summary::Summary;
use crate::text::printable;

/// How long the API server may take for one Event.
const PATIENCE: Duration = Duration::from_secs(10);

/// The longest note that the API server takes, in bytes (`NoteLengthLimit` in
/// pkg/apis/core/validation/events.go).
const NOTE: usize = 1_024;

/// The longest action, in bytes (`ActionLengthLimit` there).
const ACTION: usize = 128;

/// The longest name of who reports, in bytes (`ReportingInstanceLengthLimit` there).
const INSTANCE: usize = 128;

/// The longest name of an object for which kube makes a valid name of an Event: it puts a dot and a
/// time of 16 digits behind it, and the API server takes 253 characters.
const NAME: usize = 236;

/// How often the API server may refuse an Event before the next gets its turn.
const ANSWERS: u32 = 12;

/// Why an Event was not written.
struct Failure {
    why: String,
    /// Whether the server has answered.
    answered: bool,
    /// Whether it will never be taken.
    permanent: bool,
}

/// Writes Events until there are no more to write.
pub(super) async fn run(mut inlet: Inlet, client: Client) {
    let mut recorder = None;
    let mut backoff = Backoff::new();
    while let Some(delivery) = inlet.next().await {
        let (node, events) = match &delivery.message {
            Message::Report(report) => (report.node(), of_report(&client, report).await),
            Message::Summary(summary) => (summary.node(), of_summary(summary)),
        };
        let mut failed = None;
        for (event, about) in &events {
            let mut answers = 0;
            loop {
                let recorder = recorder.get_or_insert_with(|| reporting(&client, node));
                let Err(failure) = publish(recorder, &client, node, event, about).await else {
                    break;
                };
                answers += u32::from(failure.answered);
                if failure.permanent || answers == ANSWERS {
                    failed = Some(failure.why);
                    break;
                }
                inlet.retrying(&failure.why);
                tokio::time::sleep(backoff.pause()).await;
            }
            backoff.reset();
        }
        match failed {
            None => inlet.delivered(1, delivery.numbers),
            Some(why) => inlet.failed(1, &why, delivery.numbers),
        }
    }
}

async fn publish(
    recorder: &mut Recorder,
    client: &Client,
    node: &str,
    event: &Event,
    about: &ObjectReference,
) -> Result<(), Failure> {
    let long = about.name.as_ref().is_some_and(|name| name.len() > NAME);
    let write = async {
        if long {
            let events: Api<k8s_openapi::api::events::v1::Event> =
                Api::namespaced(client.clone(), about.namespace.as_deref().unwrap_or("default"));
            let event = with_short_name(node, event, about);
            return events.create(&PostParams::default(), &event).await.map(drop);
        }
        recorder.publish(event, about).await
    };
    match tokio::time::timeout(PATIENCE, write).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(kube::Error::Api(status))) => {
            if status.code == 404 {
                // The Event that it would have added to is gone, if not the whole namespace.
                *recorder = reporting(client, node);
            }
            // What is wrong with it, or too much for ever; a namespace that ends takes none.
            let permanent = matches!(status.code, 400 | 403 | 404 | 413 | 422);
            let said = printable(&status.message, 200);
            let advice = if said.contains("cannot create") || said.contains("cannot patch") {
                "; deploy/base/rbac.yaml has the rights"
            } else {
                ""
            };
            let why = format!("no Event can be written: {said}{advice}");
            Err(Failure { why, answered: true, permanent })
        }
        Ok(Err(error)) => {
            let why = format!("no Event can be written: {}", printable(&error.to_string(), 200));
            Err(Failure { why, answered: false, permanent: false })
        }
        Err(_) => {
            let why = "the API server takes too long".into();
            Err(Failure { why, answered: false, permanent: false })
        }
    }
}

fn reporting(client: &Client, node: &str) -> Recorder {
    let reporter = Reporter { controller: "detector".into(), instance: Some(cut(node, INSTANCE)) };
    Recorder::new(client.clone(), reporter)
}

/// An Event on an object whose name is too long to begin the Event's own with.
fn with_short_name(
    node: &str,
    event: &Event,
    about: &ObjectReference,
) -> k8s_openapi::api::events::v1::Event {
    let type_ = if event.type_ == EventType::Normal { "Normal" } else { "Warning" };
    k8s_openapi::api::events::v1::Event {
        metadata: ObjectMeta {
            namespace: about.namespace.clone(),
            generate_name: Some("detector-".into()),
            ..ObjectMeta::default()
        },
        action: Some(event.action.clone()),
        reason: Some(event.reason.clone()),
        note: event.note.clone(),
        type_: Some(type_.into()),
        event_time: Some(MicroTime(jiff::Timestamp::now())),
        regarding: Some(about.clone()),
        related: event.secondary.clone(),
        reporting_controller: Some("detector".into()),
        reporting_instance: Some(cut(node, INSTANCE)),
        ..k8s_openapi::api::events::v1::Event::default()
    }
}

async fn of_report(client: &Client, report: &Report) -> Vec<(Event, ObjectReference)> {
    let charge = &report.finding.charge;
    let attacker = &charge.attacker;
    let pod = |key: &PodKey, uid: Option<String>| ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Pod".into()),
        namespace: Some(key.namespace().into()),
        name: Some(key.name().into()),
        uid,
        ..ObjectReference::default()
    };
    let here = node(report.node());
    let attacker =
        attacker.pod.as_ref().map(|key| pod(key, attacker.uid.as_ref().map(|u| u.0.to_string())));
    let victim = match &charge.victim {
        Victim::Pod { key, .. } => Some(pod(key, uid_of(client, key).await)),
        _ => None,
    };
    let over = report.how == How::Closed;
    let reason = |what: &str| match (over, charge.certainty) {
        (true, _) => format!("{what}Over"),
        (false, Certainty::Hijack) => what.to_owned(),
        (false, Certainty::Attempt) => format!("{what}Attempt"),
        (false, Certainty::Unproven) => format!("{what}Suspected"),
    };
    let note = format!("{} What to do: {}", sentence(&report.summary()), report.runbook());
    let address = report.finding.key.subject.prefix();
    let action = address.map_or_else(|| report.key(), |address| format!("divert {address}"));
    let event = |what: &str, secondary: Option<&ObjectReference>| Event {
        type_: if over { EventType::Normal } else { EventType::Warning },
        reason: reason(what),
        note: Some(cut(&note, NOTE)),
        action: cut(&action, ACTION),
        secondary: secondary.cloned(),
    };
    let mut events = vec![(event("RouteHijack", attacker.as_ref()), here)];
    if let Some(attacker) = &attacker {
        events.push((event("RouteHijack", victim.as_ref()), attacker.clone()));
    }
    if let Some(victim) = &victim {
        events.push((event("RouteHijacked", attacker.as_ref()), victim.clone()));
    }
    events
}

fn of_summary(summary: &Summary) -> Vec<(Event, ObjectReference)> {
    let note = format!("{}. What to do: {}", summary.text(), summary.runbook());
    let event = Event {
        type_: EventType::Warning,
        reason: "RouteHijackFlood".into(),
        note: Some(cut(&note, NOTE)),
        action: cut(&format!("hold back since {}", summary.since()), ACTION),
        secondary: None,
    };
    vec![(event, node(summary.node()))]
}

/// A node as the kubelet refers to it: its name is its uid, which `kubectl describe node` looks for.
fn node(name: &str) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Node".into()),
        name: Some(name.into()),
        uid: Some(name.into()),
        ..ObjectReference::default()
    }
}

/// The uid of a pod, without which `kubectl describe pod` does not show the Event. By a listing of one,
/// for which the agent has the right anyway.
async fn uid_of(client: &Client, key: &PodKey) -> Option<String> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), key.namespace());
    let one = ListParams::default().fields(&format!("metadata.name={}", key.name()));
    let listed = tokio::time::timeout(PATIENCE, pods.list_metadata(&one)).await.ok()?.ok()?;
    listed.items.into_iter().next()?.metadata.uid
}

fn sentence(text: &str) -> String {
    if text.ends_with('.') { text.to_owned() } else { format!("{text}.") }
}

/// At most so many bytes of a text, in whole characters.
fn cut(text: &str, most: usize) -> String {
    if text.len() <= most {
        return text.to_owned();
    }
    let end = (0..=most - 3).rev().find(|at| text.is_char_boundary(*at)).unwrap_or_default();
    format!("{}...", &text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_cut_between_characters() {
        assert_eq!(cut("abc", 3), "abc");
        assert_eq!(cut("abcdef", 5), "ab...");
        assert_eq!(cut("aäöü", 6), "aä...");
    }
}
