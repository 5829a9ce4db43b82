//! Claims: who says that an address is whose.
//!
//! The stronger kinds first. Calico's IPAM writes an [`Allocation`] before the pod has an interface,
//! and no right on pods reaches it (`AutoAssign` before `DoNetworking` in
//! cni-plugin/pkg/plugin/plugin.go). Addresses of nodes and the cluster addresses of Services are
//! given by those who run the cluster. The first address that a pod's status shows is the kubelet's
//! word. All else that a pod or a Service says of itself is what a tenant may write.

use std::fmt;
use std::net::IpAddr;

use crate::route::Prefix;
use crate::workload::{NodeName, PodKey};

/// Who gives pods their addresses.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Ipam {
    /// Nobody has told yet.
    #[default]
    Unknown,
    /// Calico's IPAM: there is a record of each address.
    Calico,
    /// Another: no record of Calico's says whose an address is.
    Other,
}

/// How routes to a pool's addresses get to other nodes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Spread {
    /// By BGP: BIRD exports every host route that lies in the pool and outside the node's own blocks
    /// (`calico_aggr` and the pool filter in confd's bird.cfg.template).
    Bgp,
    /// Not at all: with VXLAN each Felix computes the routes from IPAM, and `disableBGPExport` keeps
    /// them to the node.
    Contained,
}

/// An IP pool.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Pool {
    /// Its name.
    pub name: Box<str>,
    /// `spec.cidr`.
    pub cidr: Prefix,
    /// `spec.blockSize`: the length of its blocks' prefixes, from the pool's own to a host's.
    pub block_length: u8,
    /// How its routes spread.
    pub spread: Spread,
}

impl Pool {
    /// The length of blocks where nobody says anything else (libcalico-go/lib/ipam).
    pub const fn default_block_length(ipv4: bool) -> u8 {
        if ipv4 { 26 } else { 122 }
    }

    /// The block that holds an address of the pool.
    pub fn block_of(&self, address: IpAddr) -> Option<Prefix> {
        self.cidr.contains(address).then(|| Prefix::new(address, self.block_length)).flatten()
    }
}

/// A block of addresses, as IPAM recorded it.
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Block {
    /// `spec.cidr`.
    pub cidr: Prefix,
    /// The node that the block is for (`spec.affinity`); others may borrow from it.
    pub affinity: Option<NodeName>,
    /// Who has which address, in the order of the addresses; what is absent is free. An address that
    /// cools down after its release (`releasedAt`) is free.
    pub allocations: Vec<(IpAddr, Allocation)>,
}

impl Block {
    /// Who has the address.
    pub fn allocation(&self, address: IpAddr) -> Option<&Allocation> {
        let at = self.allocations.binary_search_by(|(has, _)| has.cmp(&address)).ok()?;
        self.allocations.get(at).map(|(_, allocation)| allocation)
    }
}

/// Who has an address by IPAM's record.
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Allocation {
    /// A pod.
    Pod {
        /// `secondary.namespace` and `secondary.pod`.
        owner: PodHolder,
        /// `alternateOwnerAttrs`: the pod that takes the address over in a live migration.
        heir: Option<PodHolder>,
    },
    /// A node's tunnel.
    Node {
        /// `secondary.node`.
        node: NodeName,
        /// `secondary.type`, such as `vxlanTunnelAddress`.
        kind: Box<str>,
    },
    /// A Service of type `LoadBalancer`.
    Service(ServiceKey),
    /// Somebody else, by the handle of the record: a reservation, say.
    Other(Box<str>),
}

/// A pod that has an address by IPAM's record.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct PodHolder {
    /// The pod.
    pub key: PodKey,
    /// `secondary.node`; old versions of Calico did not write it.
    pub node: Option<NodeName>,
}

/// A Service's namespace and name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct ServiceKey(PodKey);

impl ServiceKey {
    /// A Service's key; `None` where either part is nothing that the API server would allow.
    pub fn new(namespace: &str, name: &str) -> Option<Self> {
        PodKey::new(namespace, name).map(Self)
    }

    /// The namespace.
    pub fn namespace(&self) -> &str {
        self.0.namespace()
    }

    /// The Service's name.
    pub fn name(&self) -> &str {
        self.0.name()
    }
}

impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A Service and its addresses.
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Service {
    /// Namespace and name.
    pub key: ServiceKey,
    /// `spec.clusterIPs`: given by the API server.
    pub cluster_addresses: Vec<IpAddr>,
    /// `spec.externalIPs`: whatever the Service's author wrote.
    pub external_addresses: Vec<IpAddr>,
    /// `status.loadBalancer.ingress`: whatever those who may write its status wrote.
    pub balancer_addresses: Vec<IpAddr>,
    /// `spec.ports`.
    pub ports: Vec<u16>,
}
