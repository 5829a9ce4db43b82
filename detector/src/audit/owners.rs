//! Whose an address is, by the strongest evidence that was read (pure).
//!
//! The order is the agent's: addresses of nodes and cluster addresses of Services, then IPAM's record,
//! then what pods show in their status, then what Services ask for.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use detector_core::claim::{Allocation, Pool};
use detector_core::workload::{Pod, PodKey};

use super::facts::Facts;

/// An index over the facts.
pub(super) struct Owners<'a> {
    nodes: HashMap<IpAddr, &'a str>,
    services: HashMap<IpAddr, (String, bool)>,
    allocations: HashMap<IpAddr, &'a Allocation>,
    pods: HashMap<IpAddr, Vec<&'a Pod>>,
    pools: &'a [Pool],
    /// Whether IPAM's records can be held against pods.
    pub(super) recorded: bool,
}

/// Somebody who has an address.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Owner {
    pub(super) kind: &'static str,
    pub(super) namespace: Option<Box<str>>,
    pub(super) name: Box<str>,
    /// By what that is known.
    pub(super) by: &'static str,
}

// === impl Owners ===

impl<'a> Owners<'a> {
    pub(super) fn of(facts: &'a Facts) -> Self {
        let mut nodes = HashMap::new();
        for member in &facts.nodes {
            nodes.extend(member.node.addresses.iter().map(|a| (*a, &*member.node.name.0)));
        }
        let mut services = HashMap::new();
        for service in &facts.services {
            let key = service.key.to_string();
            let asked = service.external_addresses.iter().chain(&service.balancer_addresses);
            for address in asked {
                services.entry(*address).or_insert_with(|| (key.clone(), false));
            }
            for address in &service.cluster_addresses {
                services.insert(*address, (key.clone(), true));
            }
        }
        let mut allocations = HashMap::new();
        for block in &facts.blocks {
            allocations.extend(block.allocations.iter().map(|(a, allocation)| (*a, allocation)));
        }
        let mut pods: HashMap<IpAddr, Vec<&Pod>> = HashMap::new();
        for resident in &facts.pods {
            let pod = &resident.pod;
            if owns_addresses(pod) {
                for address in &pod.addresses {
                    pods.entry(*address).or_default().push(pod);
                }
            }
        }
        let mut owners =
            Self { nodes, services, allocations, pods, pools: &facts.pools, recorded: false };
        owners.recorded = owners.are_recorded(facts);
        owners
    }

    /// Whether IPAM's blocks are those by which pods have their addresses: another IPAM may be in use
    /// beside what is left of Calico's.
    fn are_recorded(&self, facts: &Facts) -> bool {
        if facts.blocks.is_empty() {
            return false;
        }
        // A record that was read counts whatever else was not.
        let (mut shown, mut agreed) = (0_usize, 0_usize);
        for resident in facts.pods.iter().filter(|resident| owns_addresses(&resident.pod)) {
            for address in &resident.pod.addresses {
                shown += 1;
                agreed += usize::from(self.has_by_record(*address, &resident.pod.key));
            }
        }
        agreed * 2 >= shown
    }

    /// Who shows an address in a status, pods that hold none any more left out.
    pub(super) fn shown_by(&self, address: IpAddr) -> &[&'a Pod] {
        self.pods.get(&address).map_or(&[], Vec::as_slice)
    }

    /// All addresses that pods show, with who shows them.
    pub(super) fn shown(&self) -> impl Iterator<Item = (IpAddr, &[&'a Pod])> {
        self.pods.iter().map(|(address, pods)| (*address, pods.as_slice()))
    }

    /// IPAM's record of an address.
    pub(super) fn record(&self, address: IpAddr) -> Option<&'a Allocation> {
        self.allocations.get(&address).copied()
    }

    /// Whether IPAM gave an address to a pod, or gives it to it in a live migration.
    pub(super) fn has_by_record(&self, address: IpAddr, pod: &PodKey) -> bool {
        matches!(self.record(address), Some(Allocation::Pod { owner, heir })
            if owner.key == *pod || heir.as_ref().is_some_and(|heir| heir.key == *pod))
    }

    /// Whether an address lies in a pool.
    pub(super) fn is_in_a_pool(&self, address: IpAddr) -> bool {
        self.pools.iter().any(|pool| pool.cidr.contains(address))
    }

    /// Whether there is any pool of the address' family.
    pub(super) fn has_pools_like(&self, address: IpAddr) -> bool {
        self.pools.iter().any(|pool| pool.cidr.is_ipv4() == address.is_ipv4())
    }

    /// Who has an address; `None` where nobody is known to have it.
    pub(super) fn owner(&self, address: IpAddr, but: &PodKey) -> Option<Owner> {
        let named = |kind, namespace: Option<&str>, name: &str, by| Owner {
            kind,
            namespace: namespace.map(Into::into),
            name: name.into(),
            by,
        };
        if let Some(node) = self.nodes.get(&address) {
            return Some(named("node", None, node, "the node's addresses"));
        }
        let service = self.services.get(&address);
        let of = |service: &str, by| {
            let (namespace, name) = service.split_once('/').unwrap_or_default();
            named("service", Some(namespace), name, by)
        };
        if let Some((service, true)) = service {
            return Some(of(service, "spec.clusterIPs"));
        }
        match self.record(address) {
            Some(Allocation::Pod { owner, .. }) => {
                let key = &owner.key;
                return Some(named("pod", Some(key.namespace()), key.name(), "IPAM's record"));
            }
            Some(Allocation::Node { node, .. }) => {
                return Some(named("node", None, &node.0, "IPAM's record of its tunnel"));
            }
            Some(Allocation::Service(key)) => {
                return Some(named(
                    "service",
                    Some(key.namespace()),
                    key.name(),
                    "IPAM's record of its load balancer",
                ));
            }
            Some(Allocation::Other(handle)) => {
                return Some(named("reservation", None, handle, "IPAM's record"));
            }
            None => {}
        }
        let shown = self.shown_by(address);
        // Whoever claims it shows it himself, if he forged that too.
        let pod = shown.iter().find(|pod| pod.key != *but).or_else(|| shown.first());
        if let Some(pod) = pod {
            let key = &pod.key;
            return Some(named("pod", Some(key.namespace()), key.name(), "its status"));
        }
        if let Some((service, false)) = service {
            return Some(of(service, "spec.externalIPs or its load balancer"));
        }
        let metadata = [IpAddr::from([169, 254, 169, 254])];
        metadata.contains(&address).then(|| {
            named("metadata", None, "the cloud's metadata service", "its well-known address")
        })
    }

    /// Whose addresses a prefix of more than one covers: some of them, for people.
    pub(super) fn covered(&self, prefix: detector_core::route::Prefix, but: &PodKey) -> Vec<Owner> {
        let all = self.nodes.keys().chain(self.services.keys());
        let all = all.chain(self.allocations.keys()).chain(self.pods.keys());
        let mut seen = HashSet::new();
        let mut covered: Vec<IpAddr> =
            all.filter(|a| prefix.contains(**a)).copied().filter(|a| seen.insert(*a)).collect();
        covered.sort_unstable();
        let owners = covered.into_iter().filter_map(|address| self.owner(address, but));
        owners.filter(|owner| !owner.is(but)).take(8).collect()
    }
}

// === impl Owner ===

impl Owner {
    /// Whether it is this pod.
    pub(super) fn is(&self, pod: &PodKey) -> bool {
        self.kind == "pod"
            && self.namespace.as_deref() == Some(pod.namespace())
            && *self.name == *pod.name()
    }
}

/// Whether what a pod shows is its own to show: not the node's, and not given back (`IsFinished` in
/// Calico's libcalico-go/lib/backend/k8s/conversion/conversion.go).
pub(super) fn owns_addresses(pod: &Pod) -> bool {
    let released = pod.terminating && pod.annotated_addresses.is_empty();
    !pod.host_network && !pod.finished && !released
}
