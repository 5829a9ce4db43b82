//! Calico's IPAM, as far as its record of who has which address goes: the same in both rungs.

use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::{Context as _, Result, bail, ensure};
use detector_core::claim::{Allocation, Block, PodHolder, Pool, Spread};
use detector_core::route::Prefix;
use detector_core::workload::{NodeName, PodKey};

use super::Scenario;
use super::cluster::IpamKind;
use super::step::{AllocateStep, PodStep};
use super::words::{Words, pod_key};

/// Pools, and the blocks in them.
#[derive(Clone, Debug)]
pub struct Ipam<'a> {
    words: Words<'a>,
    pools: Vec<Pool>,
    blocks: BTreeMap<Prefix, Record>,
}

/// A block.
#[derive(Clone, Debug)]
struct Record {
    affinity: NodeName,
    allocations: BTreeMap<IpAddr, Allocation>,
}

/// Who gives pods their addresses in this scenario.
pub fn kind(scenario: &Scenario) -> IpamKind {
    let pools = if scenario.pools.is_empty() { IpamKind::Other } else { IpamKind::Calico };
    scenario.ipam.unwrap_or(pools)
}

/// The blocks that changed, by their prefixes.
pub type Changed = Vec<Prefix>;

impl<'a> Ipam<'a> {
    /// An IPAM with the scenario's pools, of both families, and no block yet.
    pub fn new(words: Words<'a>) -> Result<Self> {
        let mut pools = Vec::new();
        for (name, entry) in &words.scenario.pools {
            let spread = if entry.vxlan { Spread::Contained } else { Spread::Bgp };
            let families = [
                ("ipv4", &entry.cidr.0, entry.block_size.0),
                ("ipv6", &entry.cidr.1, entry.block_size.1),
            ];
            for (family, cidr, block_length) in families {
                let cidr = words.prefix(cidr).with_context(|| format!("pool {name}"))?;
                ensure!(
                    block_length >= cidr.length(),
                    "pool {name}: a block is larger than the pool"
                );
                let name = format!("{name}-{family}").into();
                pools.push(Pool { name, cidr, block_length, spread });
            }
        }
        Ok(Self { words, pools, blocks: BTreeMap::new() })
    }

    /// The pools.
    pub fn pools(&self) -> &[Pool] {
        &self.pools
    }

    /// A block, if there is one.
    pub fn block(&self, cidr: Prefix) -> Option<Block> {
        let record = self.blocks.get(&cidr)?;
        Some(Block {
            cidr,
            affinity: Some(record.affinity.clone()),
            allocations: record.allocations.clone().into_iter().collect(),
        })
    }

    /// Does what IPAM does before a pod's interface is made; gives the blocks that changed.
    pub fn pod(&mut self, step: &PodStep) -> Result<Changed> {
        if kind(self.words.scenario) == IpamKind::Other {
            return Ok(Changed::new());
        }
        let key = pod_key(&step.name)?;
        if step.finished() {
            return Ok(self.forget(&key));
        }
        if !step.asks_ipam() {
            return Ok(Changed::new());
        }
        let node = self.node(step.node.as_deref());
        let mut changed = Changed::new();
        for name in &step.addresses {
            let address = self.words.address(name)?;
            let owner = PodHolder { key: key.clone(), node: Some(node.clone()) };
            match self.allocation(address) {
                None => {
                    let allocation = Allocation::Pod { owner, heir: None };
                    changed.push(self.put(address, &node, allocation)?);
                }
                // It has been told before: an address is given once.
                Some(Allocation::Pod { owner: has, heir })
                    if has.key == key || heir.as_ref().is_some_and(|heir| heir.key == key) => {}
                Some(other) => bail!(
                    "IPAM has given {address} to {other:?}: say `ipam: false`, or release it first"
                ),
            }
        }
        Ok(changed)
    }

    /// Gives an address to somebody, whoever had it before.
    pub fn allocate(&mut self, step: &AllocateStep) -> Result<Changed> {
        let address = self.words.address(&step.address)?;
        let node = self.node(step.tunnel.as_deref().or(step.node.as_deref()));
        let allocation = match (&step.pod, &step.tunnel) {
            (Some(pod), None) => Allocation::Pod {
                owner: PodHolder { key: pod_key(pod)?, node: Some(node.clone()) },
                heir: match &step.heir {
                    Some(heir) => Some(PodHolder {
                        key: pod_key(heir)?,
                        node: Some(self.node(step.heir_node.as_deref())),
                    }),
                    None => None,
                },
            },
            (None, Some(_)) => {
                let kind =
                    if address.is_ipv4() { "vxlanTunnelAddress" } else { "vxlanV6TunnelAddress" };
                Allocation::Node { node: node.clone(), kind: kind.into() }
            }
            _ => bail!("allocate: say either pod or tunnel"),
        };
        Ok(vec![self.put(address, &node, allocation)?])
    }

    /// Takes an address back.
    pub fn release(&mut self, name: &str) -> Result<Changed> {
        let address = self.words.address(name)?;
        let block = self.block_of(address)?;
        let record = self.blocks.get_mut(&block);
        record
            .and_then(|record| record.allocations.remove(&address))
            .with_context(|| format!("IPAM has given {address} to nobody"))?;
        Ok(vec![block])
    }

    /// Takes back all that a pod has.
    pub fn forget(&mut self, pod: &PodKey) -> Changed {
        let mut changed = Changed::new();
        for (block, record) in &mut self.blocks {
            let mut touched = false;
            record.allocations.retain(|_, allocation| match allocation {
                Allocation::Pod { owner, heir } if owner.key == *pod => {
                    touched = true;
                    // After a live migration the address is the heir's.
                    heir.take().is_some_and(|heir| {
                        *owner = heir;
                        true
                    })
                }
                _ => true,
            });
            if touched {
                changed.push(*block);
            }
        }
        changed
    }

    fn allocation(&self, address: IpAddr) -> Option<&Allocation> {
        let block = self.block_of(address).ok()?;
        self.blocks.get(&block)?.allocations.get(&address)
    }

    fn put(&mut self, address: IpAddr, node: &NodeName, allocation: Allocation) -> Result<Prefix> {
        let block = self.block_of(address)?;
        let fresh = || Record { affinity: node.clone(), allocations: BTreeMap::new() };
        let record = self.blocks.entry(block).or_insert_with(fresh);
        record.allocations.insert(address, allocation);
        Ok(block)
    }

    fn block_of(&self, address: IpAddr) -> Result<Prefix> {
        self.pools
            .iter()
            .find_map(|pool| pool.block_of(address))
            .with_context(|| format!("{address} is in no pool: say `ipam: false`"))
    }

    fn node(&self, name: Option<&str>) -> NodeName {
        NodeName(name.unwrap_or(&self.words.scenario.node).into())
    }
}
