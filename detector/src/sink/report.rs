//! A finding as it leaves the process. These types are the published shape, not the engine's: the
//! engine's can change without it.

use std::io::Write as _;

use detector_core::finding::{Diverted, Finding, Victim};
use detector_core::time::BootTime;
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

use crate::clock;

/// The name and version of the shape of a finding in JSON. A field that is added keeps it; one that
/// changes or goes makes a new one.
pub const SCHEMA: &str = "detector.finding/v1";

/// A finding, with the wall clock's time for everything in it.
pub struct Report {
    /// What is written.
    pub(super) finding: Finding,
    /// The wall clock at boot, as of now: steps of the clock move what is written later, never the
    /// distance between two times of one report.
    boot: Timestamp,
}

/// The shape in JSON.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Json<'a> {
    schema: &'static str,
    time: Timestamp,
    node: &'a str,
    key: String,
    state: &'static str,
    verdict: &'static str,
    severity: &'static str,
    means: &'static str,
    effect: &'static str,
    extent: &'static str,
    prefix: Option<String>,
    table: Option<String>,
    rule: Option<String>,
    attacker: AttackerJson<'a>,
    victim: VictimJson<'a>,
    reason: &'a str,
    reach: ReachJson<'a>,
    evidence: Vec<EvidenceJson<'a>>,
    partial: bool,
    /// What could not be seen.
    missing: &'a [Box<str>],
    /// The packets that were diverted; `null` where nobody counts.
    traffic: Option<TrafficJson>,
    /// Whether it was over before any packet was diverted; `null` while it is not over.
    prevented: Option<bool>,
    /// When the kernel began to divert.
    began: Timestamp,
    ended: Option<Timestamp>,
    duration_ms: Option<f64>,
    /// The same times on the kernel's boot clock, for those who join them with other records.
    boot_time: BootTimeJson,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct AttackerJson<'a> {
    namespace: Option<&'a str>,
    pod: Option<&'a str>,
    uid: Option<&'a str>,
    service_account: Option<&'a str>,
    interface: Option<&'a str>,
    gateway: Option<String>,
    node: Option<&'a str>,
    /// The Service, as `namespace/name`.
    service: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct VictimJson<'a> {
    kind: &'static str,
    namespace: Option<&'a str>,
    name: Option<String>,
    node: Option<&'a str>,
}

/// Which nodes it bears on.
#[derive(Serialize)]
struct ReachJson<'a> {
    scope: &'static str,
    why: &'a str,
}

#[derive(Serialize)]
struct EvidenceJson<'a> {
    time: Timestamp,
    source: &'static str,
    text: &'a str,
}

/// The packets that were diverted.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct TrafficJson {
    packets: u64,
    /// From the IP header on.
    bytes: u64,
    clients: u64,
    /// Whether there are more clients than could be told apart.
    more_clients: bool,
    first: Option<Timestamp>,
    last: Option<Timestamp>,
    /// The largest flows.
    sample: Vec<FlowJson>,
}

/// A client's packets of one sort.
#[derive(Serialize)]
struct FlowJson {
    client: String,
    protocol: String,
    port: Option<u16>,
    packets: u64,
    bytes: u64,
    first: Timestamp,
    last: Timestamp,
}

/// Nanoseconds of `CLOCK_BOOTTIME`.
#[derive(Serialize)]
struct BootTimeJson {
    began: u64,
    told: u64,
}

// === impl Report ===

impl Report {
    /// A finding as of now.
    pub fn new(finding: &Finding) -> Self {
        let since_boot = clock::now().as_nanos();
        let since_boot = SignedDuration::from_nanos(i64::try_from(since_boot).unwrap_or(i64::MAX));
        let now = Timestamp::now();
        let boot = now.checked_sub(since_boot).unwrap_or(now);
        Self { finding: finding.clone(), boot }
    }

    /// The wall clock's time for a time since boot.
    pub(super) fn wall(&self, time: BootTime) -> Timestamp {
        let nanos = i64::try_from(time.as_nanos()).unwrap_or(i64::MAX);
        self.boot.checked_add(SignedDuration::from_nanos(nanos)).unwrap_or(self.boot)
    }

    /// Writes one line of JSON.
    pub(super) fn write_json(&self, node: &str, line: &mut Vec<u8>) {
        // All of it is strings and numbers, and a Vec takes every byte.
        if serde_json::to_writer(&mut *line, &self.json(node)).is_ok() {
            let _ = line.write_all(b"\n");
        }
    }

    fn json<'a>(&'a self, node: &'a str) -> Json<'a> {
        let Finding { key, state, charge, began, ended, at } = &self.finding;
        let attacker = &charge.attacker;
        let duration = self.finding.duration();
        Json {
            schema: SCHEMA,
            time: self.wall(*at),
            node,
            key: key.to_string(),
            state: state.as_str(),
            verdict: charge.certainty.as_str(),
            severity: charge.severity.as_str(),
            means: charge.means.as_str(),
            effect: charge.effect.as_str(),
            extent: charge.extent.as_str(),
            prefix: key.subject.prefix().map(|prefix| prefix.to_string()),
            table: charge.table.map(|table| table.to_string()),
            rule: charge.rule.as_ref().map(ToString::to_string),
            attacker: AttackerJson {
                namespace: attacker.pod.as_ref().map(detector_core::workload::PodKey::namespace),
                pod: attacker.pod.as_ref().map(detector_core::workload::PodKey::name),
                uid: attacker.uid.as_ref().map(|uid| &*uid.0),
                service_account: attacker.service_account.as_deref(),
                interface: attacker
                    .interface
                    .as_ref()
                    .map(detector_core::link::InterfaceName::as_str),
                gateway: attacker.gateway.map(|gateway| gateway.to_string()),
                node: attacker.node.as_ref().map(|node| &*node.0),
                service: attacker.service.as_ref().map(ToString::to_string),
            },
            victim: victim(&charge.victim),
            reason: &charge.reason,
            reach: ReachJson { scope: charge.reach.scope.as_str(), why: &charge.reach.why },
            evidence: charge
                .evidence
                .iter()
                .map(|evidence| EvidenceJson {
                    time: self.wall(evidence.at),
                    source: evidence.witness.as_str(),
                    text: &evidence.text,
                })
                .collect(),
            partial: !charge.missing.is_empty(),
            missing: &charge.missing,
            traffic: charge.traffic.as_ref().map(|traffic| self.traffic(traffic)),
            prevented: self.finding.prevented(),
            began: self.wall(*began),
            ended: ended.map(|ended| self.wall(ended)),
            duration_ms: duration.map(|duration| duration.as_secs_f64() * 1_000.0),
            boot_time: BootTimeJson { began: began.as_nanos(), told: clock::now().as_nanos() },
        }
    }
}

impl Report {
    fn traffic(&self, traffic: &Diverted) -> TrafficJson {
        let Diverted { packets, bytes, clients, more, span, sample } = traffic;
        let sample = sample.iter().map(|(flow, tally)| FlowJson {
            client: flow.client.to_string(),
            protocol: flow.protocol.to_string(),
            port: flow.port,
            packets: tally.packets,
            bytes: tally.bytes,
            first: self.wall(tally.first),
            last: self.wall(tally.last),
        });
        TrafficJson {
            packets: *packets,
            bytes: *bytes,
            clients: *clients,
            more_clients: *more,
            first: span.map(|(first, _)| self.wall(first)),
            last: span.map(|(_, last)| self.wall(last)),
            sample: sample.collect(),
        }
    }
}

fn victim(victim: &Victim) -> VictimJson<'_> {
    let nobody = VictimJson { kind: "nobody", namespace: None, name: None, node: None };
    match victim {
        Victim::Pod { key, node } => VictimJson {
            kind: "pod",
            namespace: Some(key.namespace()),
            name: Some(key.name().to_owned()),
            node: node.as_ref().map(|node| &*node.0),
        },
        Victim::Node(node) => {
            VictimJson { kind: "node", name: Some(node.to_string()), node: Some(&node.0), ..nobody }
        }
        Victim::Service(key) => VictimJson {
            kind: "service",
            namespace: Some(key.namespace()),
            name: Some(key.name().to_owned()),
            ..nobody
        },
        Victim::Metadata => VictimJson { kind: "metadata", ..nobody },
        Victim::Allowance { namespace, service_account } => VictimJson {
            kind: "serviceAccount",
            namespace: Some(namespace),
            name: Some(service_account.to_string()),
            ..nobody
        },
        Victim::Everyone(prefix) => {
            VictimJson { kind: "prefix", name: Some(prefix.to_string()), ..nobody }
        }
        Victim::Nobody => nobody,
    }
}
