//! Kubernetes Events: on the attacker's pod, on the victim's, and on the node, so that
//! `kubectl describe` shows them to whoever looks there first.

use std::time::Duration;

use detector_core::finding::{Certainty, Victim};
use detector_core::workload::PodKey;
use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use kube::api::ListParams;
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

/// An Event that was not written.
struct Failure {
    why: String,
    temporary: bool,
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
        let recorder = recorder.get_or_insert_with(|| {
            let reporter = Reporter { controller: "detector".into(), instance: Some(node.into()) };
            Recorder::new(client.clone(), reporter)
        });
        let mut failed = None;
        for (event, about) in &events {
            while let Err(failure) = publish(recorder, event, about).await {
                if !failure.temporary {
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
            Some(why) => inlet.failed(&why, delivery.numbers),
        }
    }
}

async fn publish(
    recorder: &Recorder,
    event: &Event,
    about: &ObjectReference,
) -> Result<(), Failure> {
    let written = tokio::time::timeout(PATIENCE, recorder.publish(event, about));
    match written.await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(kube::Error::Api(status))) => {
            let temporary = status.code >= 500 || matches!(status.code, 408 | 409 | 429);
            let advice = if status.code == 403 { "; deploy/rbac.yaml has the rights" } else { "" };
            let why =
                format!("no Event can be written: {}{advice}", printable(&status.message, 200));
            // The pod may be gone, and its namespace with it.
            Err(Failure { why, temporary: temporary && status.code != 404 })
        }
        Ok(Err(error)) => {
            let why = format!("no Event can be written: {}", printable(&error.to_string(), 200));
            Err(Failure { why, temporary: true })
        }
        Err(_) => Err(Failure { why: "the API server takes too long".into(), temporary: true }),
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
