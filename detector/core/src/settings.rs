//! What an operator can set about the engine.

use std::time::Duration;

use crate::link::{InterfaceName, Link, LinkKind};
use crate::workload::NodeName;

/// The engine's settings. Every duration is a trade of patience against speed, and each says for
/// whom it waits.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Settings {
    /// The node that the agent runs on.
    pub node: NodeName,
    /// What names of pods' interfaces begin with (FelixConfiguration `interfacePrefix`).
    pub interface_prefixes: Vec<Box<str>>,
    /// Interfaces that are uplinks whatever their kind, such as the veth `eth0` of a nested node.
    pub uplinks: Vec<InterfaceName>,
    /// For a pod that the API does not show yet, or not with an address: the CNI plugin installs
    /// the route before anybody else hears of the address.
    pub newborn: Duration,
    /// For news that travels two ways, such as an annotation that Felix read before we did.
    pub settle: Duration,
    /// For a route by another node to the address of a pod that still runs here: live migration
    /// and slow withdrawals of BGP.
    pub remote: Duration,
    /// For a route by a node to an address that IPAM gave to another: BGP withdraws a route within
    /// seconds of the record's change.
    pub withdraw: Duration,
    /// For the first listing of pods after the start.
    pub sync: Duration,
    /// For the answer to a question.
    pub answer: Duration,
    /// How many diversions may be waiting for evidence at once.
    pub waiting_cap: usize,
}

impl Settings {
    /// The defaults, for this node.
    pub fn for_node(node: NodeName) -> Self {
        Self {
            node,
            interface_prefixes: vec!["cali".into()],
            uplinks: Vec::new(),
            newborn: Duration::from_secs(10),
            settle: Duration::from_secs(2),
            remote: Duration::from_secs(30),
            withdraw: Duration::from_secs(10),
            sync: Duration::from_secs(15),
            answer: Duration::from_secs(5),
            waiting_cap: 16_384,
        }
    }

    /// Whether an interface of this name is one that Calico made for a pod.
    pub fn is_workload_name(&self, name: &InterfaceName) -> bool {
        self.interface_prefixes.iter().any(|prefix| name.as_str().starts_with(&**prefix))
    }

    /// Whether the interface carries the node's own traffic: no pod is behind it.
    pub fn is_uplink(&self, link: &Link) -> bool {
        !self.is_workload_name(&link.name)
            && (matches!(link.kind, LinkKind::Physical | LinkKind::Infrastructure)
                || self.uplinks.contains(&link.name))
    }
}
