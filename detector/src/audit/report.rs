//! What an audit comes to: the published shape (`docs/schema/audit.v1.json`).
//!
//! Every text here is printable: what others wrote was escaped on its way in.

use jiff::Timestamp;
use serde::Serialize;

/// The name and version of the shape in JSON. A field that is added keeps it; one that changes or goes
/// makes a new one.
pub(super) const SCHEMA: &str = "detector.audit/v1";

/// All that an audit says.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Report {
    pub(super) schema: &'static str,
    pub(super) version: &'static str,
    pub(super) time: Timestamp,
    /// The server or the files.
    pub(super) source: Box<str>,
    pub(super) verdict: Verdict,
    /// Why, each reason a sentence.
    pub(super) reasons: Vec<String>,
    /// The next command to type.
    pub(super) next: String,
    pub(super) exit_code: u8,
    pub(super) calico: Calico,
    pub(super) findings: Vec<Finding>,
    pub(super) reach: Reach,
    /// What could not be seen, and so what this does not say.
    pub(super) missing: Vec<Missing>,
    pub(super) refused: RefusedInput,
    pub(super) counts: Counts,
    /// What to do, in order. Nothing of it was done.
    pub(super) plan: Vec<Step>,
    /// What the node's own tables say, where they were read.
    pub(super) live: Option<LiveTables>,
}

/// How it stands with the cluster.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Verdict {
    /// Somebody's traffic is diverted, or somebody tried with success.
    Compromised,
    /// Whoever may write annotations can divert traffic.
    Exposed,
    /// Something stands between the two.
    Guarded,
    /// There is no Calico.
    NotAffected,
    /// Not enough could be seen.
    Undetermined,
}

/// Calico, node by node.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Calico {
    /// `true`, `false`, or `null` where it cannot be told.
    pub(super) present: Option<bool>,
    /// What the CNI plugin's configuration says of `feature_control.floating_ips`.
    pub(super) cni_floating_ips: Option<bool>,
    pub(super) cni_by: Box<str>,
    pub(super) nodes: Vec<NodeLine>,
    /// Linux nodes on which no calico-node runs.
    pub(super) without: Vec<Box<str>>,
}

/// A node, its version and its switch.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct NodeLine {
    pub(super) node: Box<str>,
    pub(super) product: &'static str,
    pub(super) version: Option<Box<str>>,
    pub(super) version_by: Box<str>,
    /// `affected`, `fixed`, `uncertain` or `unknown`.
    pub(super) range: &'static str,
    /// `missing`, `on`, `off` or `unknown`.
    pub(super) switch: &'static str,
    pub(super) switch_by: Box<str>,
}

/// How bad a finding is. From `low` on it counts for the exit code.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Level {
    /// Worth knowing, not worth an alarm.
    Note,
    Low,
    Medium,
    High,
    Critical,
}

/// What a finding is about; the names are the rules' ids in SARIF.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Rule {
    AffectedVersion,
    SwitchedOn,
    UncertainVersion,
    UnknownSwitch,
    FloatingIps,
    IpAddrs,
    IpAddrsNoIpam,
    AllowedSourcePrefixes,
    AnnotatedPodIps,
    MalformedAnnotation,
    SharedAddress,
    AgainstIpam,
    OutsideRanges,
    Scrap,
    MayPatchPods,
    LiveDiversion,
}

/// One thing that was found.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Finding {
    pub(super) rule: Rule,
    pub(super) level: Level,
    /// Whether traffic can be diverted by it now, as far as can be told from here.
    pub(super) in_force: bool,
    pub(super) object: Object,
    /// The field of the object.
    pub(super) field: Box<str>,
    /// What stands there.
    pub(super) value: Option<Box<str>>,
    /// What it means, in a sentence.
    pub(super) message: String,
    /// Whose the addresses are.
    pub(super) addresses: Vec<AddressLine>,
    pub(super) written: Option<Written>,
    pub(super) created: Option<Timestamp>,
    /// The next command to type.
    pub(super) next: String,
}

/// An object of the cluster, or a line of a file.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Object {
    pub(super) kind: &'static str,
    pub(super) namespace: Option<Box<str>>,
    pub(super) name: Box<str>,
    pub(super) node: Option<Box<str>>,
}

/// An address, and whose it is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct AddressLine {
    /// An address or a prefix.
    pub(super) address: Box<str>,
    /// Its owner for people, such as `pod shop/db`; `null` where nobody has it.
    pub(super) owner: Option<Box<str>>,
    /// By what that is known.
    pub(super) by: Option<&'static str>,
    /// The entry of the allow-list that lets this pod have it.
    pub(super) allowed_by: Option<Box<str>>,
}

/// Who wrote a field, and when: what the client said of itself.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Written {
    pub(super) manager: Box<str>,
    pub(super) operation: Box<str>,
    pub(super) subresource: Option<Box<str>>,
    pub(super) time: Option<Timestamp>,
}

/// Who may write what the attack needs.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Reach {
    /// Whether all roles and bindings were seen.
    pub(super) complete: bool,
    /// The most dangerous first.
    pub(super) holders: Vec<Holder>,
}

/// Somebody who may, by one binding.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Holder {
    /// `User`, `Group` or `ServiceAccount`.
    pub(super) kind: &'static str,
    /// Such as `alice` or `shop/deployer`.
    pub(super) subject: Box<str>,
    /// Such as `patch pods`.
    pub(super) rights: Vec<&'static str>,
    /// The namespace, or none where it is all of them.
    pub(super) namespace: Option<Box<str>>,
    /// How many namespaces there are to it, where that is known.
    pub(super) namespaces: Option<usize>,
    /// Names of pods that the rights are limited to.
    pub(super) only_pods: Vec<Box<str>>,
    /// Such as `ClusterRoleBinding devs`.
    pub(super) binding: Box<str>,
    /// Such as `ClusterRole edit`.
    pub(super) role: Box<str>,
    /// The ClusterRole that the rule comes from by aggregation.
    pub(super) aggregated_from: Vec<Box<str>>,
    /// Of 100.
    pub(super) danger: u8,
    /// Why the cluster itself needs it, where it does: then it is no finding.
    pub(super) system: Option<Box<str>>,
    /// The command that closes it.
    pub(super) close: Option<String>,
    /// The binding, for findings.
    #[serde(skip)]
    pub(super) object: Object,
}

/// A kind of object that could not be seen, wholly or in part.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Missing {
    pub(super) what: &'static str,
    pub(super) why: Box<str>,
    /// What this does not say for want of it.
    pub(super) without: &'static str,
}

/// Input that was not taken.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct RefusedInput {
    pub(super) count: u64,
    pub(super) first: Vec<Box<str>>,
}

/// How much was looked at.
#[derive(Clone, Copy, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Counts {
    pub(super) pods: usize,
    pub(super) nodes: usize,
    pub(super) services: usize,
    pub(super) pools: usize,
    pub(super) blocks: usize,
    /// Roles that let somebody change pods.
    pub(super) roles: usize,
    pub(super) bindings: usize,
    /// Entries of the allow-list that are in force.
    pub(super) allowed: usize,
}

/// A step of the plan.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Step {
    pub(super) title: String,
    pub(super) why: String,
    /// For a shell, each to be read before it is run.
    pub(super) commands: Vec<String>,
}

/// What the tables of the node on which the audit ran hold.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct LiveTables {
    pub(super) node: Option<Box<str>>,
    pub(super) routes: usize,
    pub(super) rules: usize,
    pub(super) translations: usize,
}

// === impl Verdict ===

impl Verdict {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Compromised => "compromised",
            Self::Exposed => "exposed",
            Self::Guarded => "guarded",
            Self::NotAffected => "not affected",
            Self::Undetermined => "undetermined",
        }
    }
}

// === impl Level ===

impl Level {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Note => "note",
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
            Self::Critical => "critical",
        }
    }
}

// === impl Rule ===

impl Rule {
    /// All rules, in the order in which SARIF lists them.
    pub(super) const ALL: [Self; 16] = [
        Self::AffectedVersion,
        Self::SwitchedOn,
        Self::UncertainVersion,
        Self::UnknownSwitch,
        Self::FloatingIps,
        Self::IpAddrs,
        Self::IpAddrsNoIpam,
        Self::AllowedSourcePrefixes,
        Self::AnnotatedPodIps,
        Self::MalformedAnnotation,
        Self::SharedAddress,
        Self::AgainstIpam,
        Self::OutsideRanges,
        Self::Scrap,
        Self::MayPatchPods,
        Self::LiveDiversion,
    ];

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::AffectedVersion => "affected-version",
            Self::SwitchedOn => "switched-on",
            Self::UncertainVersion => "uncertain-version",
            Self::UnknownSwitch => "unknown-switch",
            Self::FloatingIps => "floating-ips",
            Self::IpAddrs => "ip-addrs",
            Self::IpAddrsNoIpam => "ip-addrs-no-ipam",
            Self::AllowedSourcePrefixes => "allowed-source-prefixes",
            Self::AnnotatedPodIps => "annotated-pod-ips",
            Self::MalformedAnnotation => "malformed-annotation",
            Self::SharedAddress => "shared-address",
            Self::AgainstIpam => "against-ipam",
            Self::OutsideRanges => "outside-ranges",
            Self::Scrap => "scrap",
            Self::MayPatchPods => "may-patch-pods",
            Self::LiveDiversion => "live-diversion",
        }
    }

    /// What the rule looks for, in a sentence.
    pub(super) fn describes(self) -> &'static str {
        match self {
            Self::AffectedVersion => {
                "A node runs a Calico that acts on floating IP annotations although the feature is \
                 off (CVE-2022-28224, TTA-2022-001)."
            }
            Self::SwitchedOn => {
                "Floating IPs are switched on: whoever may annotate pods may claim any address."
            }
            Self::UncertainVersion => {
                "A node runs a build whose version does not tell whether it has the fix."
            }
            Self::UnknownSwitch => "Whether floating IPs are on could not be read.",
            Self::FloatingIps => "A pod's annotation floatingIPs claims addresses.",
            Self::IpAddrs => {
                "A pod's annotation ipAddrs asks IPAM for an address that is another's."
            }
            Self::IpAddrsNoIpam => "A pod's annotation ipAddrsNoIpam takes addresses past IPAM.",
            Self::AllowedSourcePrefixes => {
                "A pod's annotation allowedSourcePrefixes asks to send with addresses of others."
            }
            Self::AnnotatedPodIps => {
                "A pod's annotation podIP or podIPs names other addresses than its status."
            }
            Self::MalformedAnnotation => {
                "An annotation of the family cannot be read; Felix may refuse the pod as a whole."
            }
            Self::SharedAddress => "Two pods show one address in their statuses.",
            Self::AgainstIpam => "A pod's status shows an address that IPAM did not give it.",
            Self::OutsideRanges => {
                "A pod's status shows an address outside of every IP pool, or of its node's podCIDRs."
            }
            Self::Scrap => "A line that is no complete object names an annotation of the family.",
            Self::MayPatchPods => {
                "Somebody may write what the attack needs: patch pods, patch or update pods/status."
            }
            Self::LiveDiversion => "The tables of this node divert somebody's traffic.",
        }
    }
}

// === impl Object ===

impl Object {
    /// As people write it: `pod shop/evil`.
    pub(super) fn shown(&self) -> String {
        match &self.namespace {
            Some(namespace) => format!("{} {namespace}/{}", self.kind, self.name),
            None => format!("{} {}", self.kind, self.name),
        }
    }
}
