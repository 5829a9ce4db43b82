//! A pretended cluster of many nodes and pods: its objects as Kubernetes and Calico write them, and
//! the interfaces of those pods that are on the agent's node.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::Result;
use serde_json::{Value, json};

use crate::netns::Namespace;
use crate::scenario::words::interface;

const CALICO: &str = "crd.projectcalico.org/v1";

/// Addresses in a block of Calico's default size.
pub const BLOCK: usize = 64;

/// Images that a node's status names: by default the kubelet tells of the 50 largest.
const IMAGES: usize = 50;

/// A block of Calico's IPAM: which pod has which of its addresses.
#[derive(Clone, Debug)]
pub struct Block {
    /// Its first address.
    pub first: Ipv4Addr,
    /// The node that it belongs to.
    pub node: String,
    /// By ordinal; a pod as `namespace/name`.
    pub owners: Vec<Option<String>>,
}

/// The network of a node: a namespace, and another in which the far ends of its pods' interfaces
/// are.
#[derive(Debug)]
pub struct Wires {
    namespace: Namespace,
    far: Namespace,
    made: AtomicU32,
}

// === impl Block ===

impl Block {
    /// A block without owners.
    pub fn new(first: Ipv4Addr, node: &str) -> Self {
        Self { first, node: node.to_owned(), owners: vec![None; BLOCK] }
    }

    /// Its prefix.
    pub fn cidr(&self) -> String {
        format!("{}/26", self.first)
    }

    /// Its object's name.
    pub fn name(&self) -> String {
        self.cidr().replace(['.', '/'], "-")
    }

    /// Its object's spec.
    pub fn spec(&self) -> Value {
        let mut attributes = Vec::new();
        let mut allocations = vec![Value::Null; self.owners.len()];
        let mut unallocated = Vec::new();
        for (at, owner) in self.owners.iter().enumerate() {
            let Some((namespace, name)) = owner.as_deref().and_then(|o| o.split_once('/')) else {
                unallocated.push(at);
                continue;
            };
            allocations[at] = json!(attributes.len());
            attributes.push(json!({
                "handle_id": format!("k8s-pod-network.sandbox-of-{namespace}.{name}"),
                "secondary": {"namespace": namespace, "pod": name, "node": self.node},
            }));
        }
        json!({
            "cidr": self.cidr(), "affinity": format!("host:{}", self.node),
            "allocations": allocations, "attributes": attributes, "unallocated": unallocated,
            "strictAffinity": false, "deleted": false,
        })
    }

    /// Its object.
    pub fn object(&self) -> Value {
        json!({
            "apiVersion": CALICO, "kind": "IPAMBlock",
            "metadata": {"name": self.name()}, "spec": self.spec(),
        })
    }
}

// === impl Wires ===

impl Wires {
    /// A node without pods.
    pub fn new() -> Result<Self> {
        let wires =
            Self { namespace: Namespace::new()?, far: Namespace::new()?, made: AtomicU32::new(0) };
        wires.namespace.ip("link add eth0 type bridge")?;
        wires.namespace.ip("link set eth0 up")?;
        Ok(wires)
    }

    /// The node's namespace.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Makes the interface of a pod, `namespace/name`, and its route, as the CNI plugin does; gives
    /// the interface's name.
    pub fn attach(&self, pod: &str, address: Ipv4Addr) -> Result<String> {
        let name = interface(pod)?;
        let peer = format!("pod{}", self.made.fetch_add(1, Ordering::Relaxed));
        let far = self.far.path();
        self.namespace.ip(&format!("link add {name} type veth peer name {peer} netns {far}"))?;
        self.far.ip(&format!("link set {peer} up"))?;
        self.namespace.ip(&format!("link set {name} up"))?;
        self.namespace.ip(&format!("route add {address}/32 dev {name} scope link"))?;
        Ok(name)
    }

    /// Takes the interface of a pod away, and with it its routes.
    pub fn detach(&self, pod: &str) -> Result<()> {
        self.namespace.ip(&format!("link del {}", interface(pod)?))
    }
}

/// A node, as large as real ones are.
pub fn node(name: &str, address: Ipv4Addr, pods: &str) -> Value {
    let images: Vec<Value> = (0..IMAGES)
        .map(|n| {
            json!({
                "names": [format!("registry.example/team-{n}/service-{n}@sha256:{n:064x}"),
                          format!("registry.example/team-{n}/service-{n}:v1.{n}.0")],
                "sizeBytes": 10_000_000 + n,
            })
        })
        .collect();
    let conditions: Vec<Value> =
        ["NetworkUnavailable", "MemoryPressure", "DiskPressure", "PIDPressure", "Ready"]
            .into_iter()
            .map(|kind| {
                json!({
                    "type": kind, "status": if kind == "Ready" { "True" } else { "False" },
                    "lastHeartbeatTime": "2026-01-01T00:00:00Z",
                    "lastTransitionTime": "2026-01-01T00:00:00Z",
                    "reason": format!("KubeletHas{kind}"), "message": "all is as it should be",
                })
            })
            .collect();
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {
            "name": name,
            "labels": {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux",
                       "kubernetes.io/arch": "amd64", "topology.kubernetes.io/zone": "zone-a"},
            "annotations": {"projectcalico.org/IPv4Address": format!("{address}/16"),
                            "volumes.kubernetes.io/controller-managed-attach-detach": "true"},
        },
        "spec": {"podCIDR": pods, "podCIDRs": [pods]},
        "status": {
            "addresses": [{"type": "InternalIP", "address": address},
                          {"type": "Hostname", "address": name}],
            "capacity": {"cpu": "8", "memory": "32Gi", "pods": "110"},
            "allocatable": {"cpu": "8", "memory": "31Gi", "pods": "110"},
            "conditions": conditions,
            "images": images,
        },
    })
}

/// A pod that a node was found for, before it has an address.
pub fn pod(namespace: &str, name: &str, node: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": namespace, "name": name, "labels": {"app": "pretended"}},
        "spec": {
            "nodeName": node, "serviceAccountName": "default",
            "containers": [{"name": "main", "image": "example"}],
        },
    })
}

/// What the CNI plugin writes into the annotations of a pod with this address; nothing where its
/// interface is gone.
pub fn annotations(address: Option<Ipv4Addr>) -> Value {
    let address = address.map(|address| format!("{address}/32")).unwrap_or_default();
    json!({
        "cni.projectcalico.org/podIP": address,
        "cni.projectcalico.org/podIPs": address,
    })
}

/// What the kubelet writes into the status of a pod that runs with this address.
pub fn running(address: Ipv4Addr) -> Value {
    json!({"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]})
}

/// Calico's own objects: a pool, floating IPs off, a version that heeds that.
pub fn calico(pool: &str) -> [Value; 3] {
    let object = |kind: &str, name: &str, spec: Value| json!({"apiVersion": CALICO, "kind": kind, "metadata": {"name": name}, "spec": spec});
    let pool = json!({
        "cidr": pool, "blockSize": 26, "ipipMode": "Never", "vxlanMode": "Never",
        "natOutgoing": true, "nodeSelector": "all()", "allowedUses": ["Workload", "Tunnel"],
    });
    let version = json!({
        "calicoVersion": "v3.30.2", "clusterType": "k8s,kdd", "datastoreReady": true,
    });
    [
        object("IPPool", "default", pool),
        object("FelixConfiguration", "default", json!({"floatingIPs": "Disabled"})),
        object("ClusterInformation", "default", version),
    ]
}
