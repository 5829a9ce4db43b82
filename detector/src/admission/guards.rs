//! What is refused, in CEL (pure).
//!
//! Ways by which an annotation gets onto a pod, by Kubernetes' pkg/registry/core/pod: create and update
//! of `pods`, update of `pods/status`, and create of `pods/binding` or the older `bindings`, whose
//! annotations the API server copies onto the pod (`setPodNodeAndMetadata` in storage/storage.go).
//! Updates of `pods/ephemeralcontainers` and `pods/resize` leave annotations as they are
//! (strategy.go); they are matched all the same, since nothing promises that.
//!
//! The server calls a policy with what it is about to store: whatever else an update of a status says of
//! the spec is gone by then, so `spec.serviceAccountName` is the pod's.

use std::fmt::Write as _;

use super::grants::{Grants, VARIABLE};
use super::{Part, Trusted};
use crate::source::cluster::parse::{
    ADDRESSES, ADDRESSES_WITHOUT_IPAM, CONTAINER_ID, FLOATING_IPS, POD_IP, POD_IPS, SOURCE_PREFIXES,
};

/// The annotations that nobody but the allowed may set.
const CLAIMS: [&str; 4] = [FLOATING_IPS, ADDRESSES, ADDRESSES_WITHOUT_IPAM, SOURCE_PREFIXES];

/// What Calico believes of a pod whose status shows no address yet (`getPodIPs` in
/// libcalico-go/lib/backend/k8s/conversion/conversion.go), and the sandbox by which its CNI plugin knows
/// what to take back.
const RECORDS: [&str; 4] = [POD_IP, POD_IPS, CONTAINER_ID, "vpc.amazonaws.com/pod-ips"];

/// Who writes records: the service accounts of Calico's installations, and of the AWS VPC CNI, whose
/// annotation is the last. No tenant makes accounts in these namespaces.
const WRITERS: &str =
    "^system:serviceaccount:(kube-system|calico-system):(calico|canal|aws-node)[-.a-z0-9]*$";

/// How the kubelets' user names begin.
const NODES: &str = "system:node:";

/// A JSON list of at least one address or prefix, and nothing that JSON could write in two ways: what
/// Calico reads otherwise than the policy does is refused.
const LIST: &str = "^[ \\t\\r\\n]*\\[[ \\t\\r\\n]*\"[0-9A-Fa-f:./]{2,49}\"\
                               ([ \\t\\r\\n]*,[ \\t\\r\\n]*\"[0-9A-Fa-f:./]{2,49}\")*\
                               [ \\t\\r\\n]*\\][ \\t\\r\\n]*$";

/// One of its entries.
const ENTRY: &str = "[0-9A-Fa-f:./]+";

/// Writes that a policy looks at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Writes {
    /// `operations`.
    pub(crate) operations: &'static [&'static str],
    /// `resources`.
    pub(crate) resources: &'static [&'static str],
    /// The same as Kyverno calls them.
    pub(super) kinds: &'static [&'static str],
}

/// One policy.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Guard {
    pub(crate) part: Part,
    pub(crate) writes: Writes,
    /// By name, in the order in which they build on each other.
    pub(crate) variables: Vec<(String, String)>,
    /// What must hold.
    pub(crate) expression: String,
    /// What is said where it does not; in CEL, then where that fails.
    pub(crate) message_expression: String,
    pub(crate) message: &'static str,
}

/// What a policy is for, line by line.
pub(super) fn about(part: Part) -> &'static [&'static str] {
    match part {
        Part::Claims => &[
            "Refuses annotations by which a pod claims addresses (CVE-2022-28224), by whatever way they",
            "come: on pods, pods/status, and in bindings, which are copied onto pods. What a pod bears",
            "already may stay as it is and may go, so kubelets and controllers can write to it.",
            "A value that is no plain JSON list of addresses (of prefixes, for allowedSourcePrefixes) is",
            "refused: Calico might read it otherwise.",
        ],
        Part::Records => &[
            "Lets nobody but Calico's CNI plugin write the annotations that Calico believes while a pod's",
            "status shows no address yet. By default its accounts are those of kube-system and",
            "calico-system whose names begin with calico or canal (aws-node for the VPC CNI), and nodes.",
            "Where the plugin has another account, pods could not start: name it by --cni-user, and apply",
            "it with --action audit first.",
        ],
        Part::Statuses => &[
            "Lets nobody but kubelets change the addresses in a pod's status, which Calico routes to the pod",
            "whether floating IPs are on or off. Other accounts in place of kubelets, such as a virtual",
            "kubelet's, are named by --node-user.",
        ],
    }
}

// === impl Guard ===

impl Guard {
    /// The policy of claims with an allow-list as these variables write it.
    pub(crate) fn claims(allowed: Vec<(String, String)>) -> Self {
        claims(allowed)
    }

    /// The policy, with these exceptions.
    pub(crate) fn new(part: Part, grants: &Grants, trusted: &Trusted) -> Self {
        match part {
            Part::Claims => Self::claims(grants.variables()),
            Part::Records => records(trusted),
            Part::Statuses => statuses(trusted),
        }
    }
}

const POD_WRITES: Writes = Writes {
    operations: &["CREATE", "UPDATE"],
    resources: &[
        "pods",
        "pods/status",
        "pods/ephemeralcontainers",
        "pods/resize",
        "pods/binding",
        "bindings",
    ],
    kinds: &[
        "Pod",
        "Pod/status",
        "Pod/ephemeralcontainers",
        "Pod/resize",
        "Pod/binding",
        "Binding",
    ],
};

const STATUS_WRITES: Writes =
    Writes { operations: &["UPDATE"], resources: &["pods/status"], kinds: &["Pod/status"] };

fn claims(allowed: Vec<(String, String)>) -> Guard {
    let mut variables = annotations();
    variables.push((
        "claims".into(),
        format!(
            "[{}].filter(key, key in variables.annotations &&\n  !(key in variables.before && \
             variables.before[key] == variables.annotations[key]))",
            list(&CLAIMS)
        ),
    ));
    variables.push((
        "account".into(),
        // A binding has no spec: nothing is allowed by one.
        "request.namespace + '/' + (has(dyn(object).spec) && has(dyn(object).spec.serviceAccountName)\n  \
         ? dyn(object).spec.serviceAccountName : '')"
            .into(),
    ));
    let mine: Vec<String> = (0..allowed.len())
        .map(|number| {
            let map = format!("variables.{VARIABLE}{number}");
            format!("(variables.account in {map} ? {map}[variables.account] : [])")
        })
        .collect();
    variables.extend(allowed);
    variables.push(("mine".into(), mine.join(" +\n")));
    Guard {
        part: Part::Claims,
        writes: POD_WRITES,
        variables,
        // Not by containsCIDR, which says no to a part of the range on v1.31 and v1.32
        // (kubernetes/kubernetes#130450).
        expression: format!(
            "variables.claims.all(key,\n  variables.annotations[key].matches(r'{LIST}') &&\n  \
             variables.annotations[key].findAll(r'{ENTRY}').all(claimed,\n    \
             variables.mine.exists(range, key == '{SOURCE_PREFIXES}'\n      \
             ? isCIDR(claimed) && cidr(range).containsIP(cidr(claimed).ip()) && \
             cidr(claimed).prefixLength() >= cidr(range).prefixLength()\n      \
             : isIP(claimed) && cidr(range).containsIP(claimed))))"
        ),
        message_expression:
            "variables.claims.join(', ') + ' claims addresses that no allowance gives \
                             to pods of service account ' + variables.account + ' (CVE-2022-28224)'"
                .into(),
        message: "the annotation claims addresses that no allowance gives to this pod (CVE-2022-28224)",
    }
}

fn records(trusted: &Trusted) -> Guard {
    let mut variables = annotations();
    variables.push((
        "changed".into(),
        format!(
            "[{}].filter(key, key in variables.annotations\n  ? !(key in variables.before && \
             variables.before[key] == variables.annotations[key])\n  : oldObject != null && key in \
             variables.before)",
            list(&RECORDS)
        ),
    ));
    variables.push(("writer".into(), {
        let own = format!("request.userInfo.username.matches(r'{WRITERS}')");
        format!("{own} ||\n{}", nodes(&trusted.cni))
    }));
    Guard {
        part: Part::Records,
        writes: POD_WRITES,
        variables,
        expression: "variables.changed.size() == 0 || variables.writer".into(),
        message_expression:
            "variables.changed.join(', ') + ' is for the CNI plugin to write, not for ' + \
                             request.userInfo.username"
                .into(),
        message: "the annotation is for the CNI plugin to write",
    }
}

fn statuses(trusted: &Trusted) -> Guard {
    let addresses = |of: &str, there: &str| {
        format!(
            "({there}has({of}.status) && has({of}.status.podIPs)\n  ? {of}.status.podIPs.map(entry, \
             has(entry.ip) ? entry.ip : '') : []) +\n({there}has({of}.status) && \
             has({of}.status.podIP) ? [{of}.status.podIP] : [])"
        )
    };
    Guard {
        part: Part::Statuses,
        writes: STATUS_WRITES,
        variables: vec![
            ("shown".into(), addresses("object", "")),
            ("before".into(), addresses("oldObject", "oldObject != null && ")),
            ("kubelet".into(), nodes(&trusted.nodes)),
        ],
        expression: "variables.shown == variables.before || variables.kubelet".into(),
        message_expression: "'the addresses of a pod are for its kubelet to write, not for ' + \
                             request.userInfo.username"
            .into(),
        message: "the addresses of a pod are for its kubelet to write",
    }
}

/// What is written, and what was there before.
fn annotations() -> Vec<(String, String)> {
    vec![
        (
            "annotations".into(),
            "has(object.metadata.annotations) ? object.metadata.annotations : {}".into(),
        ),
        (
            "before".into(),
            "oldObject != null && has(oldObject.metadata.annotations) ?\n  \
             oldObject.metadata.annotations : {}"
                .into(),
        ),
    ]
}

/// Whether a node writes, or one of these.
fn nodes(others: &[String]) -> String {
    let mut asked = format!("request.userInfo.username.startsWith('{NODES}')");
    if !others.is_empty() {
        let others: Vec<&str> = others.iter().map(String::as_str).collect();
        let _ = write!(asked, " ||\nrequest.userInfo.username in [{}]", list(&others));
    }
    asked
}

fn list(words: &[&str]) -> String {
    let quoted: Vec<String> = words.iter().map(|word| format!("'{word}'")).collect();
    quoted.join(", ")
}
