//! A finding as it leaves the process. These types are the published shape, not the engine's: the
//! engine's can change without it.

use std::io::Write as _;
use std::sync::Arc;

use detector_core::finding::{Certainty, Diverted, Finding, Means, Severity, State, Victim, Wrote};
use detector_core::time::BootTime;
use detector_core::workload::PodKey;
use jiff::Timestamp;
use serde::Serialize;

use crate::clock::BootWall;
use crate::config::Config;

/// The name and version of the shape of a finding in JSON. A field that is added keeps it; one that
/// changes or goes makes a new one.
pub const SCHEMA: &str = "detector.finding/v1";

/// What all reports of an agent have in common.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Origin {
    /// The node that it runs on.
    pub node: Box<str>,
    /// What the address of a runbook page begins with; `None` names the command that shows it.
    pub runbooks: Option<Box<str>>,
}

/// What a sink is told of a finding.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum How {
    /// It is new.
    Opened,
    /// More is known, or it got better or worse.
    Updated,
    /// It still stands: told again after a while, or after a restart.
    Repeated,
    /// It is over.
    Closed,
}

/// A person's word that a finding is being taken care of.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, serde::Deserialize)]
pub struct Acknowledgement {
    /// Who.
    pub by: Box<str>,
    /// Until when.
    pub until: Timestamp,
    /// Why.
    pub reason: Option<Box<str>>,
}

/// A finding as it is told, with the wall clock's time for everything in it.
#[derive(Clone, Debug)]
pub struct Report {
    /// What is told.
    pub finding: Finding,
    /// What of it.
    pub how: How,
    /// When the agent had it to tell.
    pub told: BootTime,
    /// Who takes care of it.
    pub acknowledged: Option<Acknowledgement>,
    /// Whether it is only a test of the sinks.
    pub test: bool,
    /// Whether it was over before the agent began.
    pub past: bool,
    origin: Arc<Origin>,
    boot: BootWall,
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
    /// Where it says what to do.
    runbook: String,
    /// Who takes care of it; `null` where nobody said so.
    acknowledged: Option<&'a Acknowledgement>,
    /// Whether it is only a test of the sinks: nothing has happened.
    test: bool,
    partial: bool,
    /// What could not be seen.
    missing: &'a [Box<str>],
    /// The packets that were diverted; `null` where nobody counts.
    traffic: Option<TrafficJson>,
    /// Who wrote the route; left out where there is none, or nobody knows: what older recordings gave
    /// they give still, byte for byte.
    #[serde(skip_serializing_if = "Option::is_none")]
    writer: Option<WriterJson<'a>>,
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

/// A process that wrote a route.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct WriterJson<'a> {
    command: &'a str,
    pid: u32,
    /// The thread, where it is not the first.
    thread: Option<u32>,
    started: Option<Timestamp>,
    /// The container that it runs in, by the runtime's name for it.
    container: Option<&'a str>,
    pod_uid: Option<&'a str>,
    /// The pod, where it is one of this node that the agent knows.
    namespace: Option<&'a str>,
    pod: Option<&'a str>,
    cgroup: Option<&'a str>,
    network_namespace: Option<u32>,
    mount_namespace: Option<u32>,
    /// `record`: the kernel showed it while it wrote; `port`: by its netlink port, which is weaker.
    by: &'static str,
}

/// Nanoseconds of `CLOCK_BOOTTIME`.
#[derive(Serialize)]
struct BootTimeJson {
    began: u64,
    told: u64,
}

// === impl How ===

impl How {
    /// The word for it in JSON and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Opened => State::Opened.as_str(),
            Self::Updated => State::Updated.as_str(),
            Self::Repeated => "repeated",
            Self::Closed => State::Closed.as_str(),
        }
    }
}

impl From<State> for How {
    fn from(state: State) -> Self {
        match state {
            State::Opened => Self::Opened,
            State::Updated => Self::Updated,
            State::Closed => Self::Closed,
        }
    }
}

// === impl Report ===

impl Report {
    /// A finding, as the engine told it.
    pub fn new(origin: &Arc<Origin>, boot: BootWall, told: BootTime, finding: Finding) -> Self {
        let how = finding.state.into();
        let origin = Arc::clone(origin);
        Self { finding, how, told, acknowledged: None, test: false, past: false, origin, boot }
    }

    /// The same, told again.
    #[must_use]
    pub fn repeated(&self, told: BootTime) -> Self {
        Self { how: How::Repeated, told, ..self.clone() }
    }

    /// The node that tells it.
    pub fn node(&self) -> &str {
        &self.origin.node
    }

    /// What it is about, as text.
    pub fn key(&self) -> String {
        self.finding.key.to_string()
    }

    /// How bad it is.
    pub fn severity(&self) -> Severity {
        self.finding.charge.severity
    }

    /// The one line that says it all.
    pub fn summary(&self) -> String {
        let charge = &self.finding.charge;
        let test = if self.test { "TEST, nothing has happened: " } else { "" };
        let what = match (self.how, charge.certainty) {
            (How::Closed, _) => "over: ",
            (How::Repeated, _) => "still: ",
            (_, Certainty::Hijack) => "",
            (_, Certainty::Attempt) => "attempt: ",
            (_, Certainty::Unproven) => "unproven: ",
        };
        format!("{test}{what}{}", charge.reason)
    }

    /// By what the wall clock's times are told.
    pub fn boot(&self) -> BootWall {
        self.boot
    }

    /// Where it says what to do: an address, or the command that shows the page.
    pub fn runbook(&self) -> String {
        self.origin.runbook(self.finding.charge.means.as_str())
    }

    /// What goes for one attacker: findings of one are grouped by it.
    pub fn attacker(&self) -> String {
        attacker_of(&self.finding)
    }

    /// The wall clock's time for a time since boot.
    pub fn wall(&self, time: BootTime) -> Timestamp {
        self.boot.at(time)
    }

    /// Writes one line of JSON.
    pub fn write_json(&self, line: &mut Vec<u8>) {
        // All of it is strings and numbers, and a Vec takes every byte.
        if serde_json::to_writer(&mut *line, &self.json()).is_ok() {
            let _ = line.write_all(b"\n");
        }
    }

    /// The shape in JSON as a value.
    pub fn to_value(&self) -> serde_json::Value {
        serde_json::to_value(self.json()).unwrap_or_default()
    }

    fn json(&self) -> Json<'_> {
        let Finding { key, state: _, charge, began, ended, at } = &self.finding;
        let attacker = &charge.attacker;
        let duration = self.finding.duration();
        Json {
            schema: SCHEMA,
            time: self.wall(if self.how == How::Repeated { self.told } else { *at }),
            node: &self.origin.node,
            key: key.to_string(),
            state: self.how.as_str(),
            verdict: charge.certainty.as_str(),
            severity: charge.severity.as_str(),
            means: charge.means.as_str(),
            effect: charge.effect.as_str(),
            extent: charge.extent.as_str(),
            prefix: key.subject.prefix().map(|prefix| prefix.to_string()),
            table: charge.table.map(|table| table.to_string()),
            rule: charge.rule.as_ref().map(ToString::to_string),
            attacker: AttackerJson {
                namespace: attacker.pod.as_ref().map(PodKey::namespace),
                pod: attacker.pod.as_ref().map(PodKey::name),
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
            runbook: self.runbook(),
            acknowledged: self.acknowledged.as_ref(),
            test: self.test,
            partial: !charge.missing.is_empty(),
            missing: &charge.missing,
            traffic: charge.traffic.as_ref().map(|traffic| self.traffic(traffic)),
            writer: charge.writer.as_deref().map(|wrote| self.writer(wrote)),
            prevented: self.finding.prevented(),
            began: self.wall(*began),
            ended: ended.map(|ended| self.wall(ended)),
            duration_ms: duration.map(|duration| duration.as_secs_f64() * 1_000.0),
            boot_time: BootTimeJson { began: began.as_nanos(), told: self.told.as_nanos() },
        }
    }
}

impl Report {
    fn writer<'a>(&self, wrote: &'a Wrote) -> WriterJson<'a> {
        let Wrote { process, pod } = wrote;
        let container = process.containers.first();
        WriterJson {
            command: &process.command,
            pid: process.pid,
            thread: (process.thread != process.pid).then_some(process.thread),
            started: process.started.map(|started| self.wall(started)),
            container: container.map(|container| &*container.id),
            pod_uid: container.and_then(|container| container.pod.as_ref()).map(|uid| &*uid.0),
            namespace: pod.as_ref().map(PodKey::namespace),
            pod: pod.as_ref().map(PodKey::name),
            cgroup: process.cgroup.as_deref(),
            network_namespace: process.network,
            mount_namespace: process.mount,
            by: process.known.as_str(),
        }
    }

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

impl Origin {
    /// What this agent's reports have in common.
    pub fn of(config: &Config) -> Self {
        Self { node: config.node.0.clone(), runbooks: config.alerts.runbooks.clone() }
    }

    /// Where the runbook has this page.
    pub fn runbook(&self, page: &str) -> String {
        match &self.runbooks {
            Some(base) => format!("{base}/{page}.md"),
            None => format!("detector runbook {page}"),
        }
    }
}

/// What goes for one attacker: the pod, the Service, the node or the next hop, else the interface.
pub fn attacker_of(finding: &Finding) -> String {
    let attacker = &finding.charge.attacker;
    let node = attacker.node.as_ref().map(|node| format!("node {node}"));
    let gateway = attacker.gateway.map(|gateway| format!("next hop {gateway}"));
    let interface = attacker.interface.as_ref().map(|name| format!("interface {name}"));
    let service = attacker.service.as_ref().map(|key| format!("service {key}"));
    let pod = attacker.pod.as_ref().map(|key| format!("pod {key}"));
    // All together: who cannot be named must not count as many.
    pod.or(service).or(node).or(gateway).or(interface).unwrap_or_else(|| "nobody known".to_owned())
}

/// All means, in the order of the runbook's pages.
pub const MEANS: [Means; 7] = [
    Means::Route,
    Means::NextHop,
    Means::Rule,
    Means::Dnat,
    Means::Neighbour,
    Means::Spoof,
    Means::Claim,
];

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
