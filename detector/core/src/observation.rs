//! All that the engine can be told, and all that it can ask.

use std::net::IpAddr;

use crate::link::Link;
use crate::policy::{AllowList, Feature};
use crate::route::{IfIndex, NextHopId, NextHopObject, Route, Rule};
use crate::time::BootTime;
use crate::workload::{NodeName, Pod, PodKey, Uid};

/// Something that a source saw, and when.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Observation {
    /// When it happened: the kernel's own stamp where there is one, else when it was read.
    pub at: BootTime,
    /// What.
    pub what: What,
}

/// What was seen.
#[derive(Clone, PartialEq, Eq, Debug)]
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
    /// What is known about the floating IP feature on this node.
    Feature(Feature),
    /// The allow-list in force.
    AllowList(AllowList),
    /// The answer to a question.
    Answer(Answer),
    /// A source has lost something, or cannot see; `None` when it sees all again.
    Blind(Sense, Option<Box<str>>),
}

/// One change in the kernel's tables.
#[derive(Clone, PartialEq, Eq, Debug)]
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
        /// The netlink port id of the writer, often its process id; 0 is the kernel.
        writer: u32,
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
}

/// Where a new route stands among its peers, the routes of the same prefix, table, TOS and metric.
/// The kernel says so in the flags of the announcement (`fib_table_insert` in net/ipv4/fib_trie.c,
/// `fib6_add_rt2node` in net/ipv6/ip6_fib.c).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
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
pub enum KernelState {
    /// An interface.
    Link(Link),
    /// A route; routes of one prefix come in the kernel's order.
    Route(Route),
    /// A rule.
    Rule(Rule),
    /// A next-hop object.
    NextHop(NextHopId, NextHopObject),
}

/// A node and the addresses that are its own.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Node {
    /// Its name.
    pub name: NodeName,
    /// `status.addresses` and Calico's annotations: the node's own and its tunnels' addresses.
    pub addresses: Vec<IpAddr>,
}

/// What the engine can be blind in.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Sense {
    /// The kernel's tables.
    Kernel,
    /// Pods of this node.
    Pods,
    /// Nodes of the cluster.
    Nodes,
    /// The floating IP feature.
    Feature,
}

impl Sense {
    /// The word for it in findings, logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Pods => "pods",
            Self::Nodes => "nodes",
            Self::Feature => "feature",
        }
    }
}

/// What the engine wants to know: which pods of the cluster say that this address is theirs, by a
/// read that no cache answers.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Question {
    /// The address.
    pub address: IpAddr,
}

/// The answer to a [`Question`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Answer {
    /// The address that was asked for.
    pub address: IpAddr,
    /// When the question was sent: what the answer is known to be no older than.
    pub asked: BootTime,
    /// All pods that show the address, finished ones included, or why nobody could say.
    pub claimants: Result<Vec<Pod>, Box<str>>,
}
