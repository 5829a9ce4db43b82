//! The nodes of the cluster, as far as their addresses go.
//!
//! A kubelet writes its node's status every few minutes, and a cluster has thousands of nodes: what
//! does not change an address is not told.

use std::collections::HashMap;
use std::sync::Arc;

use detector_core::observation::{Node, Observation, Sense, What};
use detector_core::workload::NodeName;
use futures::StreamExt as _;
use kube::{Api, Client};
use tokio::sync::mpsc;

use super::counters::Counters;
use super::lean::LeanNode;
use super::watch::{Scope, Word, follow};
use super::{SLOW_PATIENCE, parse, tell};

/// Tells of the nodes until nobody listens.
pub(super) async fn run(client: Client, counters: Arc<Counters>, tx: mpsc::Sender<Observation>) {
    let scope = Scope {
        what: "list and watch nodes".into(),
        fields: None,
        // From the cache they would all come in one page, however many there are.
        cached: false,
        optional: false,
        patience: SLOW_PATIENCE,
    };
    let read = {
        let counters = Arc::clone(&counters);
        move |object: LeanNode| counters.rejections.take(parse::node(&object))
    };
    let words = follow(vec![Api::all(client)], scope, counters, read);
    let mut words = std::pin::pin!(words);
    let mut known = Known::default();
    while let Some(word) = words.next().await {
        if let Some(what) = known.hear(word)
            && tell(&tx, what).await.is_err()
        {
            return;
        }
    }
}

/// What was told of each node.
#[derive(Default)]
struct Known(HashMap<NodeName, Node>);

// === impl Known ===

impl Known {
    /// What is to be told of a word, if anything.
    fn hear(&mut self, word: Word<Node>) -> Option<What> {
        match word {
            Word::Reset(nodes) => {
                self.0 = nodes.iter().map(|node| (node.name.clone(), node.clone())).collect();
                Some(What::NodesReset(nodes))
            }
            Word::Applied(node) if self.0.get(&node.name) == Some(&node) => None,
            Word::Applied(node) => {
                self.0.insert(node.name.clone(), node.clone());
                Some(What::NodeApplied(node))
            }
            Word::Deleted(node) => {
                self.0.remove(&node.name);
                Some(What::NodeDeleted(node.name))
            }
            Word::Blind(reason) => Some(What::Blind(Sense::Nodes, Some(reason))),
            Word::Seeing => Some(What::Blind(Sense::Nodes, None)),
            // Said of optional kinds only.
            Word::NotServed => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_heartbeat_is_not_told() {
        let node = |name: &str, address: &str| Node {
            name: NodeName(name.into()),
            addresses: vec![address.parse().unwrap()],
            pod_prefixes: vec![],
        };
        let (a, b, moved) = (node("a", "10.0.0.1"), node("b", "10.0.0.2"), node("a", "10.0.0.3"));
        let mut known = Known::default();
        let reset = What::NodesReset(vec![a.clone()]);
        assert_eq!(known.hear(Word::Reset(vec![a.clone()])), Some(reset));
        assert_eq!(known.hear(Word::Applied(a.clone())), None);
        assert_eq!(known.hear(Word::Applied(b.clone())), Some(What::NodeApplied(b.clone())));
        assert_eq!(known.hear(Word::Applied(b.clone())), None);
        assert_eq!(known.hear(Word::Applied(moved.clone())), Some(What::NodeApplied(moved)));
        assert_eq!(known.hear(Word::Applied(a.clone())), Some(What::NodeApplied(a.clone())));
        let gone = What::NodeDeleted(a.name.clone());
        assert_eq!(known.hear(Word::Deleted(a.clone())), Some(gone));
        assert_eq!(known.hear(Word::Applied(a.clone())), Some(What::NodeApplied(a)));
        // After a listing only what it held is known.
        assert_eq!(known.hear(Word::Reset(vec![])), Some(What::NodesReset(vec![])));
        assert_eq!(known.hear(Word::Applied(b.clone())), Some(What::NodeApplied(b)));
    }
}
