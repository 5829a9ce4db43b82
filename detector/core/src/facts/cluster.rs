//! What the cluster's own objects say of addresses: nodes, pools and Services.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use crate::claim::{Ipam, Pool, Service, ServiceKey, Spread};
use crate::finding::{Claim, Claimant, Field};
use crate::observation::Node;
use crate::route::Prefix;
use crate::time::BootTime;
use crate::workload::NodeName;

/// Nodes of the cluster.
#[derive(Debug, Default)]
pub(crate) struct Nodes {
    by_name: HashMap<NodeName, Node>,
    by_address: HashMap<IpAddr, NodeName>,
}

/// Pools that are remembered after they are gone.
const FORMER_CAP: usize = 64;

/// IP pools, and who gives addresses at all.
#[derive(Debug, Default)]
pub(crate) struct Pools {
    pub(crate) ipam: Ipam,
    /// `None` before they were listed.
    listed: Option<Vec<Pool>>,
    /// Pools that are gone: pods may have their addresses still.
    former: Vec<Pool>,
}

/// Services of the cluster.
#[derive(Debug, Default)]
pub(crate) struct Services {
    by_key: HashMap<ServiceKey, (Service, BootTime)>,
    cluster: HashMap<IpAddr, ServiceKey>,
    /// Addresses that Services say are theirs, with who says so and where.
    claimed: HashMap<IpAddr, Vec<(ServiceKey, Field)>>,
}

// === impl Nodes ===

impl Nodes {
    pub(crate) fn owner(&self, address: IpAddr) -> Option<&NodeName> {
        self.by_address.get(&address)
    }

    /// Whether the address is in the range that the node has for its pods.
    pub(crate) fn has_in_pod_prefixes(&self, node: &NodeName, address: IpAddr) -> Option<bool> {
        let prefixes = &self.by_name.get(node)?.pod_prefixes;
        let mut family = prefixes.iter().filter(|p| p.is_ipv4() == address.is_ipv4()).peekable();
        family.peek()?;
        Some(family.any(|prefix| prefix.contains(address)))
    }

    /// A node with an address in the prefix: the first by name.
    pub(crate) fn within(&self, prefix: Prefix) -> Option<&NodeName> {
        let inside = self.by_address.iter().filter(|(address, _)| prefix.contains(**address));
        inside.map(|(_, node)| node).min()
    }

    /// The ranges that nodes have for their pods.
    pub(crate) fn pod_prefixes(&self) -> impl Iterator<Item = Prefix> {
        self.by_name.values().flat_map(|node| node.pod_prefixes.iter().copied())
    }

    /// Takes a node's addresses; gives those that changed hands.
    pub(crate) fn apply(&mut self, node: Node) -> Vec<IpAddr> {
        let mut touched = self.delete(&node.name);
        for address in &node.addresses {
            self.by_address.insert(*address, node.name.clone());
        }
        touched.extend(&node.addresses);
        self.by_name.insert(node.name.clone(), node);
        touched
    }

    /// Forgets a node; gives the addresses that are free now.
    pub(crate) fn delete(&mut self, name: &NodeName) -> Vec<IpAddr> {
        let addresses = self.by_name.remove(name).map(|node| node.addresses).unwrap_or_default();
        for address in &addresses {
            if self.by_address.get(address) == Some(name) {
                self.by_address.remove(address);
            }
        }
        addresses
    }

    /// Takes a full listing; gives every address that was or is a node's.
    pub(crate) fn reset(&mut self, nodes: Vec<Node>) -> Vec<IpAddr> {
        let mut touched: Vec<IpAddr> =
            self.by_address.drain().map(|(address, _)| address).collect();
        self.by_name.clear();
        for node in nodes {
            touched.extend(self.apply(node));
        }
        touched
    }
}

// === impl Pools ===

impl Pools {
    /// Takes all pools; true where that is news.
    pub(crate) fn reset(&mut self, mut pools: Vec<Pool>) -> bool {
        pools.sort();
        if self.listed.as_ref() == Some(&pools) {
            return false;
        }
        let old = self.listed.replace(pools.clone()).unwrap_or_default();
        self.former.extend(old);
        self.former.retain(|pool| !pools.contains(pool));
        let surplus = self.former.len().saturating_sub(FORMER_CAP);
        self.former.drain(..surplus);
        true
    }

    /// Whether it is known who gives addresses, and from which pools if that is Calico.
    pub(crate) fn is_told(&self) -> bool {
        self.ipam == Ipam::Other || (self.ipam == Ipam::Calico && self.listed.is_some())
    }

    /// The pool that the address is in: the smallest, where pools overlap against the rules.
    pub(crate) fn of(&self, address: IpAddr) -> Option<&Pool> {
        let smallest = |pools: &'_ [Pool]| {
            let holding = pools.iter().enumerate().filter(|(_, pool)| pool.cidr.contains(address));
            holding.max_by_key(|(_, pool)| pool.cidr.length()).map(|(at, _)| at)
        };
        let pools = self.listed.as_deref().unwrap_or_default();
        smallest(pools)
            .map(|at| &pools[at])
            .or_else(|| smallest(&self.former).map(|at| &self.former[at]))
    }

    /// The block whose record would say whose the address is; `None` where IPAM is not Calico's.
    /// Of an address in no pool, which may be what is left of a pool that was deleted, it is the
    /// block of the usual size.
    pub(crate) fn block_of(&self, address: IpAddr) -> Option<Prefix> {
        if self.ipam == Ipam::Other || self.listed.is_none() {
            return None;
        }
        match self.of(address) {
            Some(pool) => pool.block_of(address),
            None if self.ipam == Ipam::Calico => {
                Prefix::new(address, Pool::default_block_length(address.is_ipv4()))
            }
            None => None,
        }
    }

    /// The prefixes of all pools.
    pub(crate) fn prefixes(&self) -> impl Iterator<Item = Prefix> {
        self.listed.iter().flatten().map(|pool| pool.cidr)
    }

    /// Whether any address of the prefix is in a pool.
    pub(crate) fn touch(&self, prefix: Prefix) -> bool {
        let pools = self.listed.iter().flatten();
        pools.into_iter().any(|pool| pool.cidr.covers(&prefix) || prefix.covers(&pool.cidr))
    }

    /// How a route to the address would spread, where it is in a pool.
    pub(crate) fn spread(&self, address: IpAddr) -> Option<Spread> {
        self.of(address).map(|pool| pool.spread)
    }
}

// === impl Services ===

impl Services {
    pub(crate) fn len(&self) -> usize {
        self.by_key.len()
    }

    /// The Service that the API server gave the address to.
    pub(crate) fn owner(&self, address: IpAddr) -> Option<&ServiceKey> {
        self.cluster.get(&address)
    }

    pub(crate) fn get(&self, key: &ServiceKey) -> Option<&Service> {
        self.by_key.get(key).map(|(service, _)| service)
    }

    /// Since when the Service has been what it is.
    pub(crate) fn since(&self, key: &ServiceKey) -> Option<BootTime> {
        self.by_key.get(key).map(|(_, since)| *since)
    }

    /// A Service with a cluster address in the prefix: the first by name.
    pub(crate) fn within(&self, prefix: Prefix) -> Option<&ServiceKey> {
        let inside = self.cluster.iter().filter(|(address, _)| prefix.contains(**address));
        inside.map(|(_, service)| service).min()
    }

    /// The Services that say that the address is theirs without its having been given to them.
    pub(crate) fn claimants(&self, address: IpAddr) -> &[(ServiceKey, Field)] {
        self.claimed.get(&address).map_or(&[], Vec::as_slice)
    }

    /// What Services say of the address without its having been given to them.
    pub(crate) fn claims_on(&self, address: IpAddr) -> impl Iterator<Item = Claim> {
        self.claimants(address).iter().map(move |claim| claim_of(address, claim))
    }

    /// What this Service says is its own without its having been given to it.
    pub(crate) fn claims_of(&self, key: &ServiceKey) -> Vec<Claim> {
        let Some((service, _)) = self.by_key.get(key) else { return Vec::new() };
        claims(service).map(|(address, field)| claim_of(address, &(key.clone(), field))).collect()
    }

    /// All that Services say is theirs without its having been given to them.
    pub(crate) fn claims(&self) -> impl Iterator<Item = Claim> {
        let all = self.claimed.iter();
        all.flat_map(|(address, claims)| claims.iter().map(|claim| claim_of(*address, claim)))
    }

    /// Takes a Service; gives the addresses that it has something to do with.
    pub(crate) fn apply(&mut self, heard: BootTime, service: Service) -> Vec<IpAddr> {
        let since = match self.by_key.get(&service.key) {
            Some((old, since)) if *old == service => *since,
            _ => heard,
        };
        let mut touched = self.delete(&service.key);
        for address in &service.cluster_addresses {
            self.cluster.insert(*address, service.key.clone());
            touched.push(*address);
        }
        for (address, field) in claims(&service) {
            let claimants = self.claimed.entry(address).or_default();
            let claim = (service.key.clone(), field);
            if let Err(at) = claimants.binary_search(&claim) {
                claimants.insert(at, claim);
            }
            touched.push(address);
        }
        self.by_key.insert(service.key.clone(), (service, since));
        touched
    }

    /// Forgets a Service; gives the addresses that it had something to do with.
    pub(crate) fn delete(&mut self, key: &ServiceKey) -> Vec<IpAddr> {
        let Some((service, _)) = self.by_key.remove(key) else { return Vec::new() };
        let mut touched = Vec::new();
        for address in &service.cluster_addresses {
            if self.cluster.get(address) == Some(key) {
                self.cluster.remove(address);
            }
            touched.push(*address);
        }
        for (address, _) in claims(&service) {
            if let Some(claimants) = self.claimed.get_mut(&address) {
                claimants.retain(|(claimant, _)| claimant != key);
                if claimants.is_empty() {
                    self.claimed.remove(&address);
                }
            }
            touched.push(address);
        }
        touched
    }

    /// Takes a full listing; gives every address that a Service had or has something to do with.
    pub(crate) fn reset(&mut self, heard: BootTime, services: Vec<Service>) -> Vec<IpAddr> {
        let listed: HashSet<&ServiceKey> = services.iter().map(|service| &service.key).collect();
        let gone: Vec<ServiceKey> =
            self.by_key.keys().filter(|key| !listed.contains(key)).cloned().collect();
        let mut touched: Vec<IpAddr> = gone.iter().flat_map(|key| self.delete(key)).collect();
        for service in services {
            touched.extend(self.apply(heard, service));
        }
        touched
    }
}

fn claim_of(address: IpAddr, (service, field): &(ServiceKey, Field)) -> Claim {
    let claimant = Claimant::Service(service.clone());
    Claim { prefix: Prefix::host(address), claimant, field: *field }
}

/// What a Service says is its own, and where.
fn claims(service: &Service) -> impl Iterator<Item = (IpAddr, Field)> {
    let external = service.external_addresses.iter().map(|a| (*a, Field::ExternalIps));
    let balancer = service.balancer_addresses.iter().map(|a| (*a, Field::LoadBalancer));
    external.chain(balancer)
}
