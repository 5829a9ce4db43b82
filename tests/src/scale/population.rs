//! The pods of the pretended cluster: by number, those of the agent's node first.

use std::net::Ipv4Addr;

use anyhow::{Result, ensure};
use serde_json::json;

use super::Plan;
use crate::cluster::Cluster;
use crate::cluster::crowd::{Crowd, Write};
use crate::pretend::{self, BLOCK, Block};

/// Where the pods live.
const NAMESPACE: &str = "shop";
/// Addresses that a node has: two blocks.
const ROOM: u32 = 2 * 64;

/// The pods so far.
pub(super) struct Population {
    nodes: u32,
    own: u32,
    pods: u32,
}

/// The name of a node.
pub(super) fn node(n: u32) -> String {
    format!("node-{n:03}")
}

// === impl Population ===

impl Population {
    pub(super) fn new(plan: &Plan) -> Result<Self> {
        ensure!((2..=256).contains(&plan.nodes), "between 2 and 256 nodes");
        ensure!(plan.own <= plan.few && plan.few <= plan.many, "own, few and many pods, in order");
        let fullest = plan.own.max((plan.many - plan.own).div_ceil(plan.nodes - 1));
        ensure!(fullest <= ROOM, "a node has room for {ROOM} pods");
        ensure!(plan.own > 0 && plan.churn <= plan.many - plan.own, "churn is of far pods");
        Ok(Self { nodes: plan.nodes, own: plan.own, pods: 0 })
    }

    /// The node of a pod, and its place there.
    fn place(&self, pod: u32) -> (u32, u32) {
        match pod.checked_sub(self.own) {
            None => (0, pod),
            Some(far) => (1 + far % (self.nodes - 1), far / (self.nodes - 1)),
        }
    }

    /// A pod's address.
    pub(super) fn address(&self, pod: u32) -> Ipv4Addr {
        let (node, place) = self.place(pod);
        Ipv4Addr::from(u32::from(first(node)) + place)
    }

    /// A pod's name, with its namespace.
    pub(super) fn name(&self, pod: u32) -> String {
        format!("{NAMESPACE}/{}", self.short(pod))
    }

    fn short(&self, pod: u32) -> String {
        let (node, place) = self.place(pod);
        format!("pod-{node:03}-{place:03}")
    }

    /// So many far pods, on different nodes as long as there are any.
    pub(super) fn spread(&self, count: u32) -> impl Iterator<Item = u32> + use<> {
        // Neighbours by number are on different nodes.
        let (own, far, nodes) = (self.own, self.pods - self.own, self.nodes - 1);
        let step = (far / nodes / count.max(1)).max(1) * nodes + 1;
        (0..count).map(move |n| own + n * step % far)
    }

    /// Writes what there is before any pod: nodes and Calico's settings.
    pub(super) fn found(&self, cluster: &Cluster, crowd: &Crowd) -> Result<()> {
        cluster.objects().make_namespace(NAMESPACE)?;
        for object in pretend::calico("10.244.0.0/16") {
            cluster.objects().apply(object)?;
        }
        let nodes = (0..self.nodes).map(|n| {
            let name = node(n);
            let [_, _, third, _] = first(n).octets();
            let address = Ipv4Addr::new(172, 18, 1, third);
            let object = pretend::node(&name, address, &format!("{}/25", first(n)));
            let status = Write::status("nodes", "", &name, &object["status"])?;
            Ok(vec![Write::create(object)?, status])
        });
        crowd.write(nodes.collect::<Result<Vec<_>>>()?)
    }

    /// Makes pods until there are so many, with IPAM's record of them.
    pub(super) fn grow(&mut self, crowd: &Crowd, pods: u32) -> Result<()> {
        let before = std::mem::replace(&mut self.pods, pods);
        let blocks = self.blocks().into_iter().map(|block| {
            let spec = json!({ "spec": block.spec() });
            Ok(vec![if before == 0 {
                Write::create(block.object())?
            } else {
                Write::patch("ipamblocks", "", &block.name(), spec)?
            }])
        });
        crowd.write(blocks.collect::<Result<Vec<_>>>()?)?;
        crowd.write((before..pods).map(|pod| self.make(pod)).collect::<Result<Vec<_>>>()?)
    }

    /// Writes to the last so many pods, deletes them and makes them anew.
    pub(super) fn churn(&self, crowd: &Crowd, count: u32) -> Result<()> {
        let changes = (self.pods - count..self.pods).map(|pod| {
            let name = self.short(pod);
            let label = json!({"metadata": {"labels": {"app": "changed"}}});
            let mut list = vec![
                Write::patch("pods", NAMESPACE, &name, label)?,
                Write::remove("pods", NAMESPACE, &name)?,
            ];
            list.extend(self.make(pod)?);
            Ok(list)
        });
        crowd.write(changes.collect::<Result<Vec<_>>>()?)
    }

    fn make(&self, pod: u32) -> Result<Vec<Write>> {
        let (name, address) = (self.short(pod), self.address(pod));
        let mut object = pretend::pod(NAMESPACE, &name, &node(self.place(pod).0));
        object["metadata"]["annotations"] = pretend::annotations(Some(address));
        let status = Write::status("pods", NAMESPACE, &name, &pretend::running(address))?;
        Ok(vec![Write::create(object)?, status])
    }

    /// IPAM's record of all pods.
    fn blocks(&self) -> Vec<Block> {
        let size = u32::try_from(BLOCK).unwrap_or_default();
        let mut blocks: Vec<Block> = (0..self.nodes * 2)
            .map(|n| {
                Block::new(Ipv4Addr::from(u32::from(first(n / 2)) + n % 2 * size), &node(n / 2))
            })
            .collect();
        for pod in 0..self.pods {
            let (node, place) = self.place(pod);
            let block = usize::try_from(node * 2 + place / size).unwrap_or(usize::MAX);
            let at = usize::try_from(place % size).unwrap_or(usize::MAX);
            blocks[block].owners[at] = Some(self.name(pod));
        }
        blocks
    }
}

/// A node's first address.
fn first(node: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 244, 0, 0)) + node * 256)
}
