//! The truth: who has which address, what the API server holds, what the kernel does.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use detector_core::claim::{Allocation, Block, PodHolder, Pool, Service, ServiceKey, Spread};
use detector_core::link::{InterfaceName, Link, LinkKind};
use detector_core::observation::{KernelChange, KernelState, Node, Place};
use detector_core::policy::{AllowList, Allowance};
use detector_core::route::{Hops, IfIndex, NextHop, Prefix, Protocol, Route, RouteKind, Table};
use detector_core::workload::{NodeName, Pod, PodKey, Uid};

/// The nodes; the agent runs on the first.
pub(super) const NODES: [&str; 3] = ["node-a", "node-b", "node-c"];

const UPLINK: u32 = 2;

/// The node of this number.
pub(super) fn node(n: usize) -> NodeName {
    NodeName(NODES[n].into())
}

/// The address of a node.
pub(super) fn node_address(n: usize) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(172, 18, 0, octet(n) + 2))
}

/// The cluster address of the one Service.
pub(super) fn service_address() -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(10, 96, 0, 10))
}

/// An address that the allow-list lets service account `shop/vip` have.
pub(super) fn approved_address(n: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(203, 0, 113, n))
}

/// The pool, with one block for each node.
pub(super) fn pool() -> Pool {
    Pool {
        name: "default".into(),
        cidr: prefix(Ipv4Addr::new(10, 244, 0, 0), 16),
        block_length: 28,
        spread: Spread::Bgp,
    }
}

fn prefix(address: Ipv4Addr, length: u8) -> Prefix {
    Prefix::new(IpAddr::V4(address), length).expect("a length of IPv4")
}

fn octet(n: usize) -> u8 {
    u8::try_from(n).expect("few of them")
}

/// The block of a node.
pub(super) fn block_of(n: usize) -> Prefix {
    prefix(Ipv4Addr::new(10, 244, octet(n), 0), 28)
}

/// An address that IPAM gives to nobody by itself.
pub(super) fn reserve(here: bool) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(10, 244, u8::from(!here), 14))
}

/// All that there is.
pub(super) struct World {
    /// By address: the record, and whom it is for.
    records: BTreeMap<IpAddr, Allocation>,
    /// What the API server holds.
    pub(super) pods: BTreeMap<PodKey, Pod>,
    links: BTreeMap<IfIndex, Link>,
    routes: Vec<Route>,
    next_index: u32,
    next_uid: u32,
    /// The addresses that were freed last come last.
    freed: Vec<IpAddr>,
}

// === impl World ===

impl World {
    pub(super) fn new() -> Self {
        let uplink = Link {
            index: IfIndex::new(UPLINK).expect("not zero"),
            name: InterfaceName::new("eth0").expect("a name"),
            kind: LinkKind::Physical,
            up: true,
        };
        Self {
            records: BTreeMap::new(),
            pods: BTreeMap::new(),
            links: BTreeMap::from([(uplink.index, uplink)]),
            routes: Vec::new(),
            next_index: 10,
            next_uid: 1,
            freed: Vec::new(),
        }
    }

    pub(super) fn nodes() -> Vec<Node> {
        let all = 0..NODES.len();
        all.map(|n| Node {
            name: node(n),
            addresses: vec![node_address(n)],
            pod_prefixes: Vec::new(),
        })
        .collect()
    }

    pub(super) fn services() -> Vec<Service> {
        vec![Service {
            key: ServiceKey::new("kube-system", "dns").expect("a key"),
            cluster_addresses: vec![service_address()],
            external_addresses: Vec::new(),
            balancer_addresses: Vec::new(),
            ports: vec![53],
        }]
    }

    pub(super) fn allow_list() -> AllowList {
        AllowList::new(vec![Allowance {
            cidr: prefix(Ipv4Addr::new(203, 0, 113, 0), 28),
            namespace: "shop".into(),
            service_account: "vip".into(),
            origin: "configuration".into(),
            reason: None,
        }])
    }

    // --- IPAM

    /// A free address of a node's block, the longest free one first, as IPAM has it; of another's
    /// where it is full.
    pub(super) fn free_address(&self, n: usize) -> Option<IpAddr> {
        let order = (0..NODES.len()).map(|k| (n + k) % NODES.len());
        order.into_iter().find_map(|n| {
            // The first is the block's own, in the habit of many networks.
            let addresses = (1..14).map(|last| IpAddr::V4(Ipv4Addr::new(10, 244, octet(n), last)));
            addresses
                .filter(|address| !self.records.contains_key(address))
                .min_by_key(|address| self.freed.iter().rposition(|freed| freed == address))
        })
    }

    pub(super) fn allocate(&mut self, address: IpAddr, pod: &PodKey, n: usize) {
        let owner = PodHolder { key: pod.clone(), node: Some(node(n)) };
        self.records.insert(address, Allocation::Pod { owner, heir: None });
    }

    /// A live migration: the address will be another pod's.
    pub(super) fn announce_heir(&mut self, address: IpAddr, pod: &PodKey, n: usize) {
        if let Some(Allocation::Pod { heir, .. }) = self.records.get_mut(&address) {
            *heir = Some(PodHolder { key: pod.clone(), node: Some(node(n)) });
        }
    }

    /// Takes the record back, if it is still this pod's.
    pub(super) fn release(&mut self, address: IpAddr, pod: &PodKey) {
        if let Some(Allocation::Pod { owner, .. }) = self.records.get(&address)
            && owner.key == *pod
        {
            self.records.remove(&address);
            self.freed.push(address);
        }
    }

    /// What a quorum read of a block gives.
    pub(super) fn read_block(&self, cidr: Prefix) -> Option<Block> {
        let inside = self.records.iter().filter(|(address, _)| cidr.contains(**address));
        let affinity = (0..NODES.len()).find(|n| block_of(*n) == cidr).map(node);
        affinity.is_some().then(|| Block {
            cidr,
            affinity,
            allocations: inside.map(|(address, record)| (*address, record.clone())).collect(),
        })
    }

    // --- the API server

    pub(super) fn create(&mut self, key: &PodKey, n: usize, account: &str) -> Pod {
        self.next_uid += 1;
        let pod = Pod {
            key: key.clone(),
            uid: Uid(format!("uid-{}", self.next_uid).into()),
            node: node(n),
            service_account: account.into(),
            host_network: false,
            finished: false,
            terminating: false,
            addresses: Vec::new(),
            annotated_addresses: Vec::new(),
            floating_addresses: Vec::new(),
            annotated_prefixes: Vec::new(),
            source_prefixes: Vec::new(),
            bypassing_addresses: Vec::new(),
            sandbox: None,
        };
        self.pods.insert(key.clone(), pod.clone());
        pod
    }

    /// What a LIST by `status.podIP` gives.
    pub(super) fn claimants(&self, address: IpAddr) -> Vec<Pod> {
        let has = |pod: &&Pod| pod.addresses.first() == Some(&address);
        self.pods.values().filter(has).cloned().collect()
    }

    /// The pods of the agent's node.
    pub(super) fn local_pods(&self) -> Vec<Pod> {
        self.pods.values().filter(|pod| pod.node == node(0)).cloned().collect()
    }

    // --- the kernel

    pub(super) fn dump(&self) -> Vec<KernelState> {
        let links = self.links.values().cloned().map(KernelState::Link);
        links.chain(self.routes.iter().cloned().map(KernelState::Route)).collect()
    }

    /// The pod's interface, made anew: one of its name that was there before goes first.
    pub(super) fn link_up(&mut self, pod: &PodKey) -> Vec<KernelChange> {
        let name = pod.interface("cali").expect("a name");
        let mut changes = self.link_gone(pod);
        self.next_index += 1;
        let index = IfIndex::new(self.next_index).expect("not zero");
        let link = Link { index, name, kind: LinkKind::Container, up: true };
        self.links.insert(index, link.clone());
        changes.push(KernelChange::Link(link));
        changes
    }

    /// The pod's interface goes, and its routes with it, without a word.
    pub(super) fn link_gone(&mut self, pod: &PodKey) -> Vec<KernelChange> {
        let Some(index) = self.index(pod) else { return Vec::new() };
        self.links.remove(&index);
        self.routes
            .retain(|route| route.hops.as_slice().iter().all(|hop| hop.interface != Some(index)));
        vec![KernelChange::LinkGone(index)]
    }

    pub(super) fn has_link(&self, index: IfIndex) -> bool {
        self.links.contains_key(&index)
    }

    /// The index of the pod's interface.
    pub(super) fn index(&self, pod: &PodKey) -> Option<IfIndex> {
        let name = pod.interface("cali")?;
        self.links.values().find(|link| link.name == name).map(|link| link.index)
    }

    /// A host route to the pod's interface.
    pub(super) fn to_pod(&self, address: IpAddr, pod: &PodKey, metric: u32) -> Option<Route> {
        let hop = NextHop { interface: Some(self.index(pod)?), gateway: None };
        Some(route(Prefix::host(address), Hops::One(hop), metric))
    }

    /// A host route by another node.
    pub(super) fn via_node(address: IpAddr, n: usize, metric: u32) -> Route {
        let hop = NextHop { interface: IfIndex::new(UPLINK), gateway: Some(node_address(n)) };
        route(Prefix::host(address), Hops::One(hop), metric)
    }

    /// Adds a route, if there is none of its key (`NLM_F_EXCL`).
    pub(super) fn add(&mut self, route: Route) -> Vec<KernelChange> {
        if self.routes.iter().any(|other| same_key(other, &route)) {
            return Vec::new();
        }
        self.routes.push(route.clone());
        vec![KernelChange::Route { route, place: Place::Alone, writer: 4_242.into() }]
    }

    /// Adds a route, or puts it in the place of the one of its key.
    pub(super) fn replace(&mut self, route: Route) -> Vec<KernelChange> {
        match self.routes.iter_mut().find(|other| same_key(other, &route)) {
            Some(other) if *other == route => Vec::new(),
            Some(other) => {
                *other = route.clone();
                vec![KernelChange::Route { route, place: Place::Instead, writer: 4_242.into() }]
            }
            None => self.add(route),
        }
    }

    pub(super) fn delete(&mut self, route: &Route) -> Vec<KernelChange> {
        let Some(at) = self.routes.iter().position(|other| other == route) else {
            return Vec::new();
        };
        vec![KernelChange::RouteGone(self.routes.remove(at))]
    }

    /// The routes to interfaces of pods.
    pub(super) fn pod_routes(&self) -> Vec<Route> {
        let uplink = IfIndex::new(UPLINK);
        let to_pod =
            |route: &&Route| route.hops.as_slice().iter().any(|hop| hop.interface != uplink);
        self.routes.iter().filter(to_pod).cloned().collect()
    }
}

fn same_key(a: &Route, b: &Route) -> bool {
    a.prefix == b.prefix && a.table == b.table && a.metric == b.metric
}

/// A route of the main table as Felix, BIRD and the CNI plugin make them.
pub(super) fn route(prefix: Prefix, hops: Hops, metric: u32) -> Route {
    Route {
        prefix,
        table: Table::MAIN,
        metric,
        tos: 0,
        kind: RouteKind::Unicast,
        protocol: Protocol(3),
        hops,
        nexthop_id: None,
    }
}
