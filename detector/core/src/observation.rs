//! All that the engine can be told, and all that it can ask.

use std::net::IpAddr;

use crate::claim::{Block, Ipam, Pool, Service, ServiceKey};
use crate::link::Link;
use crate::policy::{AllowList, Feature, Felix};
use crate::route::{IfIndex, NextHopId, NextHopObject, Prefix, Route, Rule};
use crate::time::BootTime;
use crate::traffic::{Pretended, Traffic, Translated, TranslationRule};
use crate::workload::{NodeName, Pod, PodKey, Uid};
use crate::writer::{Refusal, Writer};

/// Something that a source saw, and when.
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Observation {
    /// When it happened: the kernel's own stamp where there is one, else when it was read.
    pub at: BootTime,
    /// What.
    pub what: What,
}

/// What was seen.
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum What {
    /// A change in the kernel's tables, in the order in which the kernel made them.
    Kernel(KernelChange),
    /// A dump of the kernel's tables begins. Changes go on being reported; the dump is asked for
    /// after this observation was made, so each change that it may lack follows it.
    SnapshotBegin,
    /// A part of the dump.
    SnapshotPart(KernelState),
    /// The dump is complete, and every change made before its end has been reported.
    SnapshotEnd,
    /// The dump could not be finished (interrupted, refused); what it said so far is void.
    SnapshotAborted,
    /// A pod of this node came or changed.
    PodApplied(Pod),
    /// A pod of this node is gone. The uid guards against a late word about an earlier pod of the
    /// same name.
    PodDeleted(PodKey, Uid),
    /// These are all pods of this node: the first listing, or one after a cut watch.
    PodsReset(Vec<Pod>),
    /// These are all nodes of the cluster.
    NodesReset(Vec<Node>),
    /// A node came or changed.
    NodeApplied(Node),
    /// A node is gone.
    NodeDeleted(NodeName),
    /// Who gives pods their addresses.
    Ipam(Ipam),
    /// These are all IP pools of the cluster, now.
    Pools(Vec<Pool>),
    /// These are all Services of the cluster.
    ServicesReset(Vec<Service>),
    /// A Service came or changed.
    ServiceApplied(Service),
    /// A Service is gone.
    ServiceDeleted(ServiceKey),
    /// What is known about the floating IP feature on this node.
    Feature(Feature),
    /// What is known about Felix on this node.
    Felix(Felix),
    /// The allow-list in force.
    AllowList(AllowList),
    /// The answer to a question.
    Answer(Answer),
    /// Packets of watched addresses are counted from now on, or no longer: whether the engine may
    /// wait for a last count when a finding closes.
    Counting(bool),
    /// What was counted for a watched address, all of it.
    Traffic(Traffic),
    /// There is no room to count packets for an address that was to be watched.
    Uncounted(IpAddr),
    /// Packets that came out of a pod's interface pretend to be another's: so many more than were
    /// told before.
    Pretended(Pretended),
    /// The kernel refused to write a route.
    Refused(Refusal),
    /// The destination of a connection was translated.
    Translated(Translated),
    /// These are all rules that translate destinations, now.
    TranslationRules(Vec<TranslationRule>),
    /// A source has lost something, or cannot see; `None` when it sees all again.
    Blind(Sense, Option<Box<str>>),
}

/// One change in the kernel's tables.
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum KernelChange {
    /// `RTM_NEWLINK`.
    Link(Link),
    /// `RTM_DELLINK`.
    LinkGone(IfIndex),
    /// `RTM_NEWROUTE`.
    Route {
        /// The route.
        route: Route,
        /// Where it stands among the routes of its prefix, table, TOS and metric.
        place: Place,
        /// Who wrote it.
        writer: Writer,
    },
    /// `RTM_DELROUTE`.
    RouteGone(Route),
    /// `RTM_NEWRULE`.
    Rule(Rule),
    /// `RTM_DELRULE`.
    RuleGone(Rule),
    /// `RTM_NEWNEXTHOP`.
    NextHop(NextHopId, NextHopObject),
    /// `RTM_DELNEXTHOP`. IPv4 routes that used it vanish without a message of their own.
    NextHopGone(NextHopId),
    /// `RTM_NEWNEIGH` of an entry that somebody made: the kernel's own come and go untold.
    Neighbour(Neighbour),
    /// `RTM_DELNEIGH`, or an entry that is the kernel's own from now on.
    NeighbourGone(Neighbour),
}

/// Where a new route stands among its peers, the routes of the same prefix, table, TOS and metric.
/// The kernel says so in the flags of the announcement (`fib_table_insert` in net/ipv4/fib_trie.c,
/// `fib6_add_rt2node` in net/ipv6/ip6_fib.c).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Place {
    /// There was no peer (`NLM_F_EXCL`).
    Alone,
    /// Before all peers (none of the flags).
    Before,
    /// Behind all peers (`NLM_F_APPEND`).
    Behind,
    /// In the place of the first peer (`NLM_F_REPLACE`).
    Instead,
}

impl Place {
    /// The place by the flags of the announcement's netlink header.
    pub fn from_flags(flags: u16) -> Self {
        const REPLACE: u16 = 0x100;
        const EXCL: u16 = 0x200;
        const APPEND: u16 = 0x800;
        match flags {
            flags if flags & REPLACE != 0 => Self::Instead,
            flags if flags & APPEND != 0 => Self::Behind,
            flags if flags & EXCL != 0 => Self::Alone,
            _ => Self::Before,
        }
    }
}

/// One thing that a dump of the kernel's tables shows.
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum KernelState {
    /// An interface.
    Link(Link),
    /// A route; routes of one prefix come in the kernel's order.
    Route(Route),
    /// A rule.
    Rule(Rule),
    /// A next-hop object.
    NextHop(NextHopId, NextHopObject),
    /// A neighbour entry that somebody made.
    Neighbour(Neighbour),
}

/// A neighbour entry that somebody made, so that it stays until somebody takes it away.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Neighbour {
    /// The address.
    pub address: IpAddr,
    /// The interface.
    pub interface: IfIndex,
    /// What the entry does.
    pub kind: NeighbourKind,
}

/// What a neighbour entry does.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum NeighbourKind {
    /// Packets for the address are handed to a fixed link address (`NUD_PERMANENT`).
    Permanent,
    /// The node answers for the address on the interface (`NTF_PROXY`).
    Proxy,
}

/// A node and the addresses that are its own.
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Node {
    /// Its name.
    pub name: NodeName,
    /// `status.addresses` and Calico's annotations: the node's own and its tunnels' addresses.
    pub addresses: Vec<IpAddr>,
    /// `spec.podCIDRs`: where its pods' addresses are, if the IPAM keeps to them.
    pub pod_prefixes: Vec<Prefix>,
}

/// What the engine can be blind in.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Sense {
    /// The kernel's tables.
    Kernel,
    /// Pods of this node.
    Pods,
    /// Nodes of the cluster.
    Nodes,
    /// The floating IP feature, and Felix' other settings.
    Feature,
    /// IP pools, and who gives addresses at all.
    Pools,
    /// Services of the cluster.
    Services,
    /// The part of the allow-list that is kept in the cluster.
    Allowances,
    /// Packets on pods' interfaces and uplinks.
    Packets,
    /// Connections whose destination was translated.
    Connections,
    /// Rules that translate destinations.
    Translations,
}

impl Sense {
    /// The word for it in findings, logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Pods => "pods",
            Self::Nodes => "nodes",
            Self::Feature => "feature",
            Self::Pools => "pools",
            Self::Services => "services",
            Self::Allowances => "allowances",
            Self::Packets => "packets",
            Self::Connections => "connections",
            Self::Translations => "translations",
        }
    }
}

/// What the engine wants to know, each by a read that no cache answers.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Question {
    /// Who has which address of this IPAM block.
    Block(Prefix),
    /// Which pods of the cluster say that this address is theirs.
    Claimants(IpAddr),
}

/// The answer to a [`Question`].
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Answer {
    /// When the question was sent: what the answer is known to be no older than.
    pub asked: BootTime,
    /// The answer itself.
    pub reply: Reply,
}

/// What was answered, or why nobody could say.
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Reply {
    /// The block; `None` where there is none, so that all of its addresses are free.
    Block(Prefix, Result<Option<Block>, Box<str>>),
    /// All pods that show the address, finished ones included.
    Claimants(IpAddr, Result<Vec<Pod>, Box<str>>),
}

impl Reply {
    /// The reply that nobody could say.
    pub fn failed(question: Question, why: Box<str>) -> Self {
        match question {
            Question::Block(block) => Self::Block(block, Err(why)),
            Question::Claimants(address) => Self::Claimants(address, Err(why)),
        }
    }

    /// What was asked.
    pub fn question(&self) -> Question {
        match self {
            Self::Block(block, _) => Question::Block(*block),
            Self::Claimants(address, _) => Question::Claimants(*address),
        }
    }
}
