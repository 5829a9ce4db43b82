//! What the selftest overhears of the API server's words on their way to the engine, and the victim
//! that it chooses by them.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use detector_core::observation::{Node, Observation, Question, Reply, What};
use detector_core::route::Prefix;
use detector_core::workload::NodeName;
use tokio::sync::mpsc;

use crate::agent::{CLUSTER_QUEUE, World};

/// A prefix for documentation, which nobody uses (RFC 5737, TEST-NET-2). A whole prefix by a pod's
/// interface is a hijack by its route alone: the engine needs to know nobody's addresses.
const DOCUMENTATION: ([u8; 4], u8) = ([198, 51, 100, 0], 24);

/// Nodes whose addresses are kept.
const MOST: usize = 64;

/// What was overheard so far.
#[derive(Clone, Default)]
pub(super) struct Overheard(Arc<Mutex<Known>>);

#[derive(Default)]
struct Known {
    /// How many nodes there are.
    nodes: usize,
    /// Addresses of nodes, of not too many.
    addresses: HashMap<NodeName, Vec<IpAddr>>,
    /// A block of the first IP pool.
    block: Option<Prefix>,
}

/// Whose traffic the canary seems to take.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Victim {
    /// That of a node, as only the API server can tell.
    Node(NodeName, IpAddr),
    /// That of whoever has an address in a prefix that is for documentation.
    Prefix(Prefix),
}

// === impl Victim ===

impl Victim {
    /// What the route is for.
    pub(super) fn prefix(&self) -> Prefix {
        match self {
            Self::Node(_, address) => Prefix::host(*address),
            Self::Prefix(prefix) => *prefix,
        }
    }

    /// The victim for whom nobody has to be asked.
    pub(super) fn of_nobody() -> Option<Self> {
        let (address, length) = DOCUMENTATION;
        Prefix::new(address.into(), length).map(Self::Prefix)
    }
}

// === impl Overheard ===

impl Overheard {
    /// Overhears what is said in a world, from now on. Answers are told too.
    pub(super) fn listen(&self, world: &mut World, node: &NodeName) -> mpsc::Receiver<Reply> {
        let (pass, passed) = mpsc::channel(CLUSTER_QUEUE);
        let (answer, answers) = mpsc::channel(CLUSTER_QUEUE);
        let mut said = std::mem::replace(&mut world.said, passed);
        let (known, own) = (self.clone(), node.clone());
        let listening = async move {
            while let Some(observation) = said.recv().await {
                known.hear(&own, &observation);
                if let What::Answer(told) = &observation.what {
                    // Where nobody has asked for so long, nobody wants to know.
                    let _ = answer.try_send(told.reply.clone());
                }
                if pass.send(observation).await.is_err() {
                    return;
                }
            }
        };
        drop(tokio::spawn(listening));
        answers
    }

    /// How many nodes there are.
    pub(super) fn nodes(&self) -> usize {
        self.lock().nodes
    }

    /// The addresses of a node, where there is such a node.
    pub(super) fn addresses(&self, node: &NodeName) -> Option<Vec<IpAddr>> {
        self.lock().addresses.get(node).cloned()
    }

    /// An address of this node, or else of another, that is not in use; IPv4 if there is any.
    pub(super) fn victim(&self, own: &NodeName, used: &BTreeSet<IpAddr>) -> Option<Victim> {
        let known = self.lock();
        let all = known
            .addresses
            .iter()
            .flat_map(|(node, addresses)| addresses.iter().map(move |address| (node, address)));
        let free = all.filter(|(_, address)| !used.contains(address));
        let best = free.min_by_key(|(node, address)| {
            (*node != own, !address.is_ipv4(), (*node).clone(), **address)
        });
        best.map(|(node, address)| Victim::Node(node.clone(), *address))
    }

    /// What the engine asks when it doubts: who has this address, and what IPAM has written down.
    pub(super) fn questions(&self, address: IpAddr) -> Vec<Question> {
        let block = self.lock().block.map(Question::Block);
        block.into_iter().chain([Question::Claimants(address)]).collect()
    }

    fn hear(&self, own: &NodeName, observation: &Observation) {
        let mut known = self.lock();
        match &observation.what {
            What::NodesReset(nodes) => {
                known.addresses.clear();
                known.nodes = nodes.len();
                // Its own first, whatever there is room for.
                let (here, others): (Vec<&Node>, Vec<&Node>) =
                    nodes.iter().partition(|node| node.name == *own);
                for node in here.into_iter().chain(others).take(MOST) {
                    known.addresses.insert(node.name.clone(), node.addresses.clone());
                }
            }
            What::NodeApplied(node) if node.name == *own => {
                known.addresses.insert(node.name.clone(), node.addresses.clone());
            }
            What::Pools(pools) => {
                let of_pool =
                    |pool: &detector_core::claim::Pool| pool.block_of(pool.cidr.address());
                known.block = pools.first().and_then(of_pool);
            }
            _ => {}
        }
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        // Whoever panicked holding it left a map that is whole: each change is one call.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use detector_core::time::BootTime;

    use super::*;

    fn overheard(nodes: &[(&str, &[&str])]) -> Overheard {
        let node = |(name, addresses): &(&str, &[&str])| Node {
            name: NodeName((*name).into()),
            addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
            pod_prefixes: vec![],
        };
        let overheard = Overheard::default();
        let what = What::NodesReset(nodes.iter().map(node).collect());
        let observation = Observation { at: BootTime::ZERO, what };
        overheard.hear(&NodeName("a".into()), &observation);
        overheard
    }

    #[test]
    fn the_victim_is_this_node_unless_its_address_is_in_use() {
        let own = NodeName("a".into());
        let all = overheard(&[("b", &["10.0.0.2"]), ("a", &["fd00::1", "10.0.0.1"])]);
        let victim = |used: &[&str]| {
            let used = used.iter().map(|address| address.parse().unwrap()).collect();
            all.victim(&own, &used).map(|victim| victim.prefix().to_string())
        };
        assert_eq!(victim(&[]).as_deref(), Some("10.0.0.1/32"));
        assert_eq!(victim(&["10.0.0.1"]).as_deref(), Some("fd00::1/128"));
        assert_eq!(victim(&["10.0.0.1", "fd00::1"]).as_deref(), Some("10.0.0.2/32"));
        assert_eq!(victim(&["10.0.0.1", "fd00::1", "10.0.0.2"]), None);
        assert_eq!(all.nodes(), 2);
        assert!(all.addresses(&own).is_some() && all.addresses(&NodeName("c".into())).is_none());
    }

    #[test]
    fn its_own_node_is_kept_however_many_there_are() {
        let names: Vec<String> = (0..200).map(|n| format!("n{n}")).collect();
        let mut nodes: Vec<(&str, &[&str])> =
            names.iter().map(|name| (name.as_str(), &["10.0.0.2"][..])).collect();
        nodes.push(("a", &["10.0.0.1"]));
        let all = overheard(&nodes);
        assert!(all.addresses(&NodeName("a".into())).is_some());
        assert_eq!((all.nodes(), all.lock().addresses.len()), (201, MOST));
    }
}
