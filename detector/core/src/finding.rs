//! Findings: what the engine tells people.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use crate::claim::ServiceKey;
use crate::link::InterfaceName;
use crate::observation::{Neighbour, NeighbourKind};
use crate::route::{IfIndex, Prefix, RouteKind, Rule, Table};
use crate::time::BootTime;
use crate::traffic::{Flow, Pretence, Tally};
use crate::workload::{NodeName, PodKey, Uid};
use crate::writer::Process;

/// Where a diverted packet ends up.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Target {
    /// Behind this interface of the node; by the name under which it was first seen.
    Interface(InterfaceName),
    /// At another host.
    Gateway(IpAddr),
    /// At this host itself.
    Host,
    /// Nowhere: the kernel drops it.
    Nowhere(RouteKind),
    /// At whoever makes the claim that the finding is about.
    Claimant,
    /// At whoever has this address, to which destinations are translated.
    Address(IpAddr),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Interface(name) => write!(f, "dev {name}"),
            Self::Gateway(gateway) => write!(f, "via {gateway}"),
            Self::Host => f.write_str("local"),
            Self::Nowhere(kind) => write!(f, "{kind}"),
            Self::Claimant => f.write_str("claimant"),
            Self::Address(address) => write!(f, "translated to {address}"),
        }
    }
}

/// What a finding is about: one diversion, however many routes it is made of. The same diversion
/// has the same key as long as the node lives, and in every agent that sees it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct FindingKey {
    /// The destination, by its route or by its rule.
    pub subject: Subject,
    /// Where its packets end up.
    pub target: Target,
}

/// What the kernel decides by, and so what is judged.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Subject {
    /// The routes of a prefix, in all tables.
    Prefix(Prefix),
    /// A policy rule for a destination.
    Rule(Rule),
    /// What somebody says in the API that an address is, whatever the kernel does.
    Claim(Claim),
    /// A translation of destinations, by whatever rules there are and connections show.
    Translation(Translation),
    /// A neighbour entry that somebody made.
    Neighbour(Neighbour),
    /// Packets that come out of a pod's interface and pretend to be another's.
    Pretence(Pretending),
}

/// Destinations that are translated, and what to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Translation {
    /// The destinations.
    pub prefix: Prefix,
    /// The first of the addresses that they are translated to.
    pub to: IpAddr,
}

/// Who pretends to have which address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Pretending {
    /// The address; the unspecified one stands for more than are kept apart.
    pub address: IpAddr,
    /// The interface that the packets come out of.
    pub interface: IfIndex,
    /// In what way.
    pub pretence: Pretence,
}

/// A claim on a prefix that is no route, or not yet.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Claim {
    /// What is claimed.
    pub prefix: Prefix,
    /// Who claims it.
    pub claimant: Claimant,
    /// Where it is claimed.
    pub field: Field,
}

/// Who makes a claim.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Claimant {
    /// A pod of this node.
    Pod(PodKey),
    /// A Service.
    Service(ServiceKey),
}

impl fmt::Display for Claimant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pod(key) => write!(f, "pod {key}"),
            Self::Service(key) => write!(f, "service {key}"),
        }
    }
}

/// Where a claim is written.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Field {
    /// Annotation `floatingIPs` of a pod.
    FloatingIps,
    /// Annotations `podIPs` and `podIP` of a pod.
    PodIps,
    /// A pod's status.
    Status,
    /// Annotation `allowedSourcePrefixes` of a pod.
    SourcePrefixes,
    /// `spec.externalIPs` of a Service.
    ExternalIps,
    /// `status.loadBalancer` of a Service.
    LoadBalancer,
}

impl Field {
    /// The word for it in keys, JSON and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::FloatingIps => "floatingIPs",
            Self::PodIps => "podIPs",
            Self::Status => "status",
            Self::SourcePrefixes => "allowedSourcePrefixes",
            Self::ExternalIps => "externalIPs",
            Self::LoadBalancer => "loadBalancer",
        }
    }
}

impl Subject {
    /// The destination.
    pub fn prefix(&self) -> Option<Prefix> {
        match self {
            Self::Prefix(prefix) => Some(*prefix),
            Self::Rule(rule) => rule.to,
            Self::Claim(claim) => Some(claim.prefix),
            Self::Translation(translation) => Some(translation.prefix),
            Self::Neighbour(neighbour) => Some(Prefix::host(neighbour.address)),
            Self::Pretence(pretending) => Some(Prefix::host(pretending.address)),
        }
    }
}

impl fmt::Display for FindingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.subject {
            Subject::Prefix(prefix) | Subject::Translation(Translation { prefix, .. }) => {
                write!(f, "{prefix} {}", self.target)
            }
            Subject::Rule(rule) => write!(f, "rule {rule} {}", self.target),
            Subject::Claim(Claim { prefix, claimant, field }) => {
                write!(f, "{prefix} claimed by {claimant} in {}", field.as_str())
            }
            Subject::Neighbour(Neighbour { address, kind, .. }) => {
                let kind = match kind {
                    NeighbourKind::Permanent => "neighbour",
                    NeighbourKind::Proxy => "neighbour proxy",
                };
                write!(f, "{address} {kind} {}", self.target)
            }
            Subject::Pretence(Pretending { address, pretence, .. }) => {
                write!(f, "{address} pretended as {} from {}", pretence.as_str(), self.target)
            }
        }
    }
}

/// How sure the engine is, after RFC 6811. What is entitled makes no finding.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Certainty {
    /// Nobody could show a right to the route, and nobody could show that it is somebody else's.
    Unproven,
    /// Somebody claims what is not theirs, but nothing was seen to follow from it.
    Attempt,
    /// The address is somebody else's, or set aside for others, or nobody may claim it this way.
    Hijack,
}

impl Certainty {
    /// The word for it in JSON and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unproven => "unproven",
            Self::Attempt => "attempt",
            Self::Hijack => "hijack",
        }
    }
}

/// How bad it is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Severity {
    /// Worth a look.
    Low,
    /// Against the rules, but nobody is known to be hit.
    Medium,
    /// Somebody is hit.
    High,
    /// Somebody's traffic goes to a pod that has no right to it.
    Critical,
}

impl Severity {
    /// The word for it in JSON and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
            Self::Critical => "critical",
        }
    }
}

/// By what the traffic is diverted.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Means {
    /// A route in a table that the kernel looks up anyway.
    Route,
    /// A route through a next-hop object.
    NextHop,
    /// A policy rule, with the table that it leads to.
    Rule,
    /// A translation of destinations, which needs no route.
    Dnat,
    /// Nothing but a claim.
    Claim,
    /// A neighbour entry, or a message that makes one.
    Neighbour,
    /// Packets that bear somebody else's source address.
    Spoof,
}

impl Means {
    /// The word for it in JSON and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Route => "route",
            Self::NextHop => "nexthop",
            Self::Rule => "rule",
            Self::Dnat => "dnat",
            Self::Claim => "claim",
            Self::Neighbour => "neighbour",
            Self::Spoof => "spoof",
        }
    }
}

/// What becomes of the traffic.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Effect {
    /// Somebody else receives it.
    Intercept,
    /// Nobody receives it.
    Blackhole,
}

impl Effect {
    /// The word for it in JSON and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Intercept => "intercept",
            Self::Blackhole => "blackhole",
        }
    }
}

/// How much of the address space is taken, after ARTEMIS.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Extent {
    /// An address that somebody owns.
    Exact,
    /// A prefix of many addresses.
    Prefix,
    /// An address that nobody is known to own.
    Squat,
}

impl Extent {
    /// The word for it in JSON and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::Prefix => "prefix",
            Self::Squat => "squat",
        }
    }
}

/// Who receives the traffic, or takes it away.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Attacker {
    /// The pod, where the interface tells.
    pub pod: Option<PodKey>,
    /// Its uid.
    pub uid: Option<Uid>,
    /// Its service account.
    pub service_account: Option<Box<str>>,
    /// The interface that the traffic leaves by, by its present name.
    pub interface: Option<InterfaceName>,
    /// The next hop's address, where the traffic leaves the node.
    pub gateway: Option<IpAddr>,
    /// The node that the next hop is.
    pub node: Option<NodeName>,
    /// The Service, where that is who claims.
    pub service: Option<ServiceKey>,
}

/// Whose the traffic is.
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Victim {
    /// A pod's.
    Pod {
        /// Its namespace and name.
        key: PodKey,
        /// The node that it runs on, where that is known.
        node: Option<NodeName>,
    },
    /// A node's own.
    Node(NodeName),
    /// A Service's.
    Service(ServiceKey),
    /// The cloud's metadata service, which hands out the node's credentials.
    Metadata,
    /// That of whoever the allow-list sets the address aside for.
    Allowance {
        /// The namespace.
        namespace: Box<str>,
        /// The service account.
        service_account: Box<str>,
    },
    /// Everybody's with an address in the prefix.
    Everyone(Prefix),
    /// Nobody is known to own the address.
    Nobody,
}

impl fmt::Display for Victim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pod { key, node: Some(node) } => write!(f, "pod {key} on node {node}"),
            Self::Pod { key, node: None } => write!(f, "pod {key}"),
            Self::Node(node) => write!(f, "node {node}"),
            Self::Service(key) => write!(f, "service {key}"),
            Self::Metadata => f.write_str("the cloud's metadata service"),
            Self::Allowance { namespace, service_account } => {
                write!(f, "service account {namespace}/{service_account} by the allow-list")
            }
            Self::Everyone(prefix) => write!(f, "everyone in {prefix}"),
            Self::Nobody => f.write_str("nobody known"),
        }
    }
}

/// Where a piece of evidence comes from.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Witness {
    /// Routes, rules, links and next hops.
    Kernel,
    /// Pods, nodes, annotations and answers.
    Api,
    /// IPAM's record of who has which address.
    Ipam,
    /// The configuration.
    Policy,
    /// Packets on the node's interfaces.
    Packets,
    /// The kernel's connection tracking.
    Connections,
    /// Rules of netfilter.
    Rules,
}

impl Witness {
    /// The word for it in JSON and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Api => "api",
            Self::Ipam => "ipam",
            Self::Policy => "policy",
            Self::Packets => "packets",
            Self::Connections => "connections",
            Self::Rules => "rules",
        }
    }
}

/// One thing that a verdict rests on.
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Evidence {
    /// When it was so, or was learnt.
    pub at: BootTime,
    /// Who says so.
    pub witness: Witness,
    /// What.
    pub text: Box<str>,
}

/// Which nodes' traffic a diversion bears on.
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Reach {
    /// How far.
    pub scope: Scope,
    /// Why, as half a sentence.
    pub why: Box<str>,
}

/// How far a diversion reaches.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Scope {
    /// Nobody could say.
    Unknown,
    /// This node's traffic only.
    Node,
    /// Other nodes' too: the route is exported by BGP.
    Cluster,
}

impl Scope {
    /// The word for it in JSON and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Node => "node",
            Self::Cluster => "cluster",
        }
    }
}

/// What a diversion is charged with: a verdict other than "entitled", with all that it rests on.
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Charge {
    /// How sure it is.
    pub certainty: Certainty,
    /// How bad it is.
    pub severity: Severity,
    /// By what.
    pub means: Means,
    /// To what effect.
    pub effect: Effect,
    /// How far it reaches.
    pub extent: Extent,
    /// The table that the route stands in.
    pub table: Option<Table>,
    /// The rule that makes the kernel look there, where it takes one.
    pub rule: Option<Rule>,
    /// Who gains.
    pub attacker: Attacker,
    /// Who loses.
    pub victim: Victim,
    /// One sentence that a tired person understands.
    pub reason: Box<str>,
    /// Which nodes it bears on.
    pub reach: Reach,
    /// What it rests on.
    pub evidence: Vec<Evidence>,
    /// What could not be seen when it was judged; empty where nothing was missing.
    pub missing: Vec<Box<str>>,
    /// The packets that were diverted; `None` where nobody counts them.
    pub traffic: Option<Diverted>,
    /// Who wrote the route, where there is one and that is known.
    #[cfg_attr(feature = "serde", serde(default))]
    pub writer: Option<Box<Wrote>>,
}

/// Who wrote a route.
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Wrote {
    /// The process.
    pub process: Process,
    /// The pod of this node that it runs in.
    pub pod: Option<PodKey>,
}

/// Packets that were diverted, as far as they were counted: from the moment at which somebody may be
/// taking the address's traffic.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Diverted {
    /// Packets as they are on a wire.
    pub packets: u64,
    /// Their bytes, from the IP header on.
    pub bytes: u64,
    /// Different clients among the flows that were kept apart.
    pub clients: u64,
    /// Whether there were more flows than were kept apart, so that `clients` is the least.
    pub more: bool,
    /// When the first came and when the last did; `None` where none came.
    pub span: Option<(BootTime, BootTime)>,
    /// The largest flows.
    pub sample: Vec<(Flow, Tally)>,
}

impl Diverted {
    /// The sum of what was counted before and what was counted anew, from zero. Clients that were
    /// there both times are not known to be the same, so the number is the least there can be.
    #[must_use]
    pub fn after(mut self, earlier: &Self) -> Self {
        self.more |= earlier.more || (self.clients > 0 && earlier.clients > 0);
        self.packets = self.packets.saturating_add(earlier.packets);
        self.bytes = self.bytes.saturating_add(earlier.bytes);
        self.clients = self.clients.max(earlier.clients);
        self.span = match (earlier.span, self.span) {
            (Some((first, _)), Some((_, last))) => Some((first, last)),
            (one, other) => one.or(other),
        };
        if self.sample.is_empty() {
            self.sample.clone_from(&earlier.sample);
        }
        self
    }
}

/// Where a finding is in its life.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum State {
    /// It is new.
    Opened,
    /// More is known, or it got better or worse.
    Updated,
    /// The diversion is over.
    Closed,
}

impl State {
    /// The word for it in JSON and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Opened => "opened",
            Self::Updated => "updated",
            Self::Closed => "closed",
        }
    }
}

/// A diversion and its life.
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Finding {
    /// What it is about.
    pub key: FindingKey,
    /// Where it is in its life.
    pub state: State,
    /// The charge.
    pub charge: Charge,
    /// When the diversion began, by the kernel's clock.
    pub began: BootTime,
    /// When it was over.
    pub ended: Option<BootTime>,
    /// When this state was reached.
    pub at: BootTime,
}

impl Finding {
    /// Whether it was over before any packet was diverted; `None` where nobody counted, or it is not
    /// over.
    pub fn prevented(&self) -> Option<bool> {
        self.ended.and(self.charge.traffic.as_ref()).map(|traffic| traffic.packets == 0)
    }

    /// How long the diversion lasted, once it is over.
    pub fn duration(&self) -> Option<Duration> {
        self.ended.map(|ended| ended.since(self.began))
    }
}
