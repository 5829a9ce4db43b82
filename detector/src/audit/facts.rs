//! What an audit knows of a cluster: plain words, from wherever they were read.
//!
//! Everything here was parsed at the border, by the agent's own readers where the agent reads the same
//! kind. Names and values are those of the cluster, unsafe to print: what is shown goes through
//! [`printable`](crate::text::printable) on its way into the report.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use detector_core::claim::{Block, Pool, Service};
use detector_core::observation::Node;
use detector_core::workload::{NodeName, Pod, PodKey};
use jiff::Timestamp;

use crate::admission::Grants;
use crate::policy::Allowed;
use crate::source::cluster::Rejection;
use crate::source::cluster::cni::Switches;
use crate::source::cluster::felix::Settings;
use crate::source::cluster::version::Information;

/// How many explanations of what was not taken are kept; all are counted.
pub(super) const MOST_REFUSED: usize = 100;

/// All that was found out.
#[derive(Debug, Default)]
pub(super) struct Facts {
    /// Where it was read: a server or a folder, for people.
    pub(super) source: Box<str>,
    /// Whether that are files.
    pub(super) offline: bool,
    /// How far each kind of object could be seen.
    pub(super) sight: BTreeMap<Kind, Sight>,
    /// Pods that have a node, and those without one that bear an annotation of the family.
    pub(super) pods: Vec<Resident>,
    pub(super) nodes: Vec<Member>,
    /// The pods of calico-node.
    pub(super) agents: Vec<CalicoNode>,
    /// The DaemonSets of calico-node.
    pub(super) rollouts: Vec<Rollout>,
    pub(super) information: Option<Information>,
    pub(super) installation: Option<Installation>,
    /// FelixConfigurations by name.
    pub(super) felix: BTreeMap<Box<str>, Settings>,
    /// What stands in the places of the CNI plugin's configuration, by [`PLACES`].
    ///
    /// [`PLACES`]: crate::source::cluster::cni::PLACES
    pub(super) cni: [Option<Switches>; 2],
    pub(super) pools: Vec<Pool>,
    pub(super) blocks: Vec<Block>,
    pub(super) services: Vec<Service>,
    /// The allow-list: the configuration file's and the cluster's entries.
    pub(super) allowed: Vec<Allowed>,
    pub(super) namespaces: BTreeSet<Box<str>>,
    pub(super) roles: Vec<Role>,
    pub(super) bindings: Vec<Binding>,
    pub(super) guard: Guard,
    pub(super) refused: Refused,
    /// Lines of files that are no objects but name what matters.
    pub(super) scraps: Vec<Scrap>,
    /// Pods whose status is doubted and was not looked at a second time.
    pub(super) unconfirmed: BTreeSet<PodKey>,
    /// What the tables of the node lead to, by the engine.
    pub(super) live: Option<Live>,
}

/// A kind of object that an audit looks at.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) enum Kind {
    Pods,
    Nodes,
    DaemonSets,
    ClusterInformation,
    Installation,
    FelixConfigurations,
    CniConfig,
    IpPools,
    IpamBlocks,
    Services,
    Allowances,
    Namespaces,
    ClusterRoles,
    Roles,
    ClusterRoleBindings,
    RoleBindings,
    AdmissionPolicies,
}

/// How far a kind of object could be seen.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Sight {
    /// All there are.
    All,
    /// There is no such kind here.
    NotServed,
    /// Some, for this reason.
    Part(Box<str>),
    /// None, for this reason.
    Nothing(Box<str>),
}

/// A pod, and what beside it matters here.
#[derive(Debug)]
pub(super) struct Resident {
    /// The pod; its node's name is empty where it has none yet.
    pub(super) pod: Pod,
    /// What is only kept of pods that bear an annotation of the family, or whose status somebody
    /// else than a kubelet wrote.
    pub(super) marks: Option<Box<Marks>>,
    /// The virtual machine of `KubeVirt`'s that it runs.
    pub(super) machine: Option<Box<str>>,
}

/// What was read of a pod that says something of addresses.
#[derive(Debug, Default)]
pub(super) struct Marks {
    pub(super) created: Option<Timestamp>,
    /// The annotations of the family, as they are written.
    pub(super) annotations: Vec<Mark>,
    /// What `ipAddrs` asks for.
    pub(super) asked: Vec<IpAddr>,
    /// Who wrote `status.podIP` or `status.podIPs`, where it was no kubelet.
    pub(super) status_writer: Option<Writer>,
    /// Whether an annotation of the family is malformed.
    pub(super) malformed: Vec<Rejection>,
}

/// An annotation of the family.
#[derive(Debug)]
pub(super) struct Mark {
    pub(super) key: &'static str,
    /// Its value, printable and shortened.
    pub(super) value: Box<str>,
    pub(super) writer: Option<Writer>,
}

/// Who wrote a field last, as the object's `managedFields` have it. The name is what the client says
/// of itself; who it was by its credentials only the API server's audit log knows.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Writer {
    pub(super) manager: Box<str>,
    /// `Apply` or `Update`.
    pub(super) operation: Box<str>,
    /// `status`, or none for the object itself.
    pub(super) subresource: Option<Box<str>>,
    pub(super) time: Option<Timestamp>,
}

/// A node of the cluster.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) node: Node,
    /// Windows nodes have no Linux routes to hijack.
    pub(super) windows: bool,
}

/// A pod of calico-node.
#[derive(Debug)]
pub(super) struct CalicoNode {
    pub(super) namespace: Box<str>,
    pub(super) name: Box<str>,
    pub(super) node: NodeName,
    /// The DaemonSet that owns it.
    pub(super) owner: Option<Box<str>>,
    pub(super) image: Image,
    pub(super) switch: Environment,
}

/// A DaemonSet of calico-node.
#[derive(Debug)]
pub(super) struct Rollout {
    pub(super) namespace: Box<str>,
    pub(super) name: Box<str>,
    pub(super) image: Image,
    pub(super) switch: Environment,
}

/// The image of a container: what was asked for, and what the runtime says that it runs.
#[derive(Clone, Debug)]
pub(super) struct Image {
    pub(super) asked: Box<str>,
    pub(super) running: Option<Box<str>>,
}

/// What the environment of a container says of `FELIX_FLOATINGIPS`, which wins over all objects.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Environment {
    /// Nothing.
    Silent,
    On,
    Off,
    /// Nothing itself, but these objects may, which nobody reads here.
    Elsewhere(Box<str>),
    /// Something that cannot be read from here, or is none of Felix' words.
    Unreadable(Box<str>),
}

/// The operator's Installation.
#[derive(Debug)]
pub(super) struct Installation {
    /// `spec.variant`, as it is written.
    pub(super) variant: Box<str>,
    /// `status.calicoVersion`, as it is written.
    pub(super) version: Option<Box<str>>,
}

/// What counts of a role: those of its rules that let somebody change pods.
#[derive(Debug)]
pub(super) struct Role {
    /// `None` for a ClusterRole.
    pub(super) namespace: Option<Box<str>>,
    pub(super) name: Box<str>,
    pub(super) rules: Vec<Rule>,
    pub(super) labels: BTreeMap<Box<str>, Box<str>>,
    /// Whose rules it takes over (`aggregationRule`).
    pub(super) aggregates: Vec<Selector>,
    /// Kubernetes made it and makes it anew at each start of the API server.
    pub(super) bootstrap: bool,
}

/// One rule of a role.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Rule {
    /// Its place in `rules`.
    pub(super) index: usize,
    pub(super) verbs: Vec<Box<str>>,
    pub(super) groups: Vec<Box<str>>,
    pub(super) resources: Vec<Box<str>>,
    pub(super) names: Vec<Box<str>>,
}

/// A selector of labels.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Selector(pub(super) Vec<Requirement>);

/// One thing that a selector asks of an object's labels.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Requirement {
    pub(super) key: Box<str>,
    pub(super) asks: Asks,
}

/// What is asked of a label.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Asks {
    In(Vec<Box<str>>),
    NotIn(Vec<Box<str>>),
    Exists,
    Absent,
}

/// A RoleBinding or ClusterRoleBinding.
#[derive(Debug)]
pub(super) struct Binding {
    /// `None` for a ClusterRoleBinding.
    pub(super) namespace: Option<Box<str>>,
    pub(super) name: Box<str>,
    /// Whether it refers to a ClusterRole.
    pub(super) to_cluster_role: bool,
    pub(super) role: Box<str>,
    pub(super) subjects: Vec<Bound>,
    /// How many subjects it has, with those that are of no kind that RBAC knows.
    pub(super) all: usize,
}

/// A subject of a binding.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Bound {
    pub(super) who: Subject,
    /// Its place in `subjects`.
    pub(super) index: usize,
    /// The same as it is written.
    pub(super) written: serde_json::Value,
}

/// Somebody who is given a role.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) enum Subject {
    User(Box<str>),
    Group(Box<str>),
    /// Namespace and name.
    ServiceAccount(Box<str>, Box<str>),
}

/// Whether the admission policy of `detector policy` stands, whole and unchanged.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) enum Guard {
    /// It is not there.
    #[default]
    Absent,
    /// It is there, and refuses nothing: this is wrong with it.
    Ineffective(Box<str>),
    /// It refuses the annotations in all namespaces but these, but for what it allows.
    Stands { except: BTreeSet<Box<str>>, allows: Grants },
}

/// What was read and not taken.
#[derive(Debug, Default)]
pub(super) struct Refused {
    pub(super) count: u64,
    /// The first of them.
    pub(super) first: Vec<Box<str>>,
}

/// A line of a file that is no object, with an annotation of the family in it.
#[derive(Debug)]
pub(super) struct Scrap {
    /// The file and the line's number.
    pub(super) place: Box<str>,
    /// The pod that it seems to be about, as `namespace/name`.
    pub(super) about: Option<Box<str>>,
    pub(super) key: &'static str,
    /// The line, printable and shortened.
    pub(super) line: Box<str>,
}

/// What the engine says of the tables of the node on which the audit runs.
#[derive(Debug, Default)]
pub(super) struct Live {
    /// The node, where its name is known.
    pub(super) node: Option<NodeName>,
    pub(super) routes: usize,
    pub(super) rules: usize,
    pub(super) translations: usize,
    pub(super) findings: Vec<detector_core::finding::Finding>,
    /// What could not be read, and why.
    pub(super) blind: Vec<(&'static str, Box<str>)>,
}

// === impl Facts ===

impl Facts {
    /// Notes how far a kind could be seen. Whoever has seen less has the say.
    pub(super) fn saw(&mut self, kind: Kind, sight: Sight) {
        let rank = |sight: &Sight| match sight {
            Sight::NotServed => 0,
            Sight::All => 1,
            Sight::Part(_) => 2,
            Sight::Nothing(_) => 3,
        };
        match self.sight.get_mut(&kind) {
            Some(known) if rank(known) >= rank(&sight) => {}
            Some(known) => *known = sight,
            None => drop(self.sight.insert(kind, sight)),
        }
    }

    /// Whether all objects of a kind were seen.
    pub(super) fn sees(&self, kind: Kind) -> bool {
        matches!(self.sight.get(&kind), Some(Sight::All | Sight::NotServed))
    }
}

// === impl Refused ===

impl Refused {
    pub(super) fn note(&mut self, why: impl Into<Box<str>>) {
        self.count += 1;
        if self.first.len() < MOST_REFUSED {
            self.first.push(why.into());
        }
    }
}

// === impl Kind ===

impl Kind {
    /// All of them, in the order in which they are told of.
    pub(super) const ALL: [Self; 17] = [
        Self::Pods,
        Self::Nodes,
        Self::DaemonSets,
        Self::ClusterInformation,
        Self::Installation,
        Self::FelixConfigurations,
        Self::CniConfig,
        Self::IpPools,
        Self::IpamBlocks,
        Self::Services,
        Self::Allowances,
        Self::Namespaces,
        Self::ClusterRoles,
        Self::Roles,
        Self::ClusterRoleBindings,
        Self::RoleBindings,
        Self::AdmissionPolicies,
    ];

    /// As paths and roles name it.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Pods => "pods",
            Self::Nodes => "nodes",
            Self::DaemonSets => "daemonsets",
            Self::ClusterInformation => "clusterinformations",
            Self::Installation => "installations",
            Self::FelixConfigurations => "felixconfigurations",
            Self::CniConfig => "configmaps",
            Self::IpPools => "ippools",
            Self::IpamBlocks => "ipamblocks",
            Self::Services => "services",
            Self::Allowances => "floatingipallowances",
            Self::Namespaces => "namespaces",
            Self::ClusterRoles => "clusterroles",
            Self::Roles => "roles",
            Self::ClusterRoleBindings => "clusterrolebindings",
            Self::RoleBindings => "rolebindings",
            Self::AdmissionPolicies => "validatingadmissionpolicies",
        }
    }

    /// What cannot be said without it.
    pub(super) fn is_for(self) -> &'static str {
        match self {
            Self::Pods => "annotations, forged addresses, and calico-node's version on each node",
            Self::Nodes => "nodes without calico-node, and claims of nodes' addresses",
            Self::DaemonSets => "calico-node's version and environment where its pods are hidden",
            Self::ClusterInformation => "Calico's version where images do not tell it",
            Self::Installation => "which product the operator has installed",
            Self::FelixConfigurations => "whether floating IPs are switched on",
            Self::CniConfig => "whether pods may be made with floating IPs or past IPAM",
            Self::IpPools => "addresses outside of every pool",
            Self::IpamBlocks => "whose an address is by IPAM's record",
            Self::Services => "claims of Services' addresses",
            Self::Allowances => "which floating IPs are allowed by objects",
            Self::Namespaces => "how many namespaces a right covers",
            Self::ClusterRoles | Self::Roles => "what roles allow",
            Self::ClusterRoleBindings | Self::RoleBindings => "who has which role",
            Self::AdmissionPolicies => "whether an admission policy guards the annotations",
        }
    }
}
