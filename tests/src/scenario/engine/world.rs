//! The pretended world: a kernel, a cluster of pods, IPAM, and an API server that tells of them.

use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::{Context as _, Result};
use detector_core::claim::{Block, Pool, Service, ServiceKey};
use detector_core::observation::{KernelState, What};
use detector_core::policy::{Feature, Felix};
use detector_core::route::{IfIndex, Prefix};
use detector_core::workload::{NodeName, Pod, PodKey, Uid};

use super::kernel::Kernel;
use crate::scenario::FeatureState;
use crate::scenario::cluster::{ServiceEntry, Spoofing, heeds_switch};
use crate::scenario::ipam::Ipam;
use crate::scenario::pod::{self, Annotations};
use crate::scenario::step::{FelixStep, PodStep, Step};
use crate::scenario::words::{Words, interface, pod_key};

/// All that there is outside of the agent.
pub(super) struct World<'a> {
    words: Words<'a>,
    kernel: Kernel,
    pods: BTreeMap<PodKey, Standing>,
    uids: u32,
    ipam: Ipam<'a>,
    services: BTreeMap<ServiceKey, Service>,
    felix: FelixStep,
}

/// A pod in the API.
struct Standing {
    pod: Pod,
    annotations: Annotations,
}

impl<'a> World<'a> {
    pub(super) fn new(words: Words<'a>) -> Result<Self> {
        let scenario = words.scenario;
        let mut world = Self {
            words,
            kernel: Kernel::new(),
            pods: BTreeMap::new(),
            uids: 0,
            ipam: Ipam::new(words)?,
            services: BTreeMap::new(),
            felix: FelixStep {
                version: scenario.calico_version.clone(),
                spoofing: Some(scenario.spoofing),
                bypass: scenario.bypass,
                feature: Some(scenario.feature),
            },
        };
        for entry in &scenario.services {
            world.service(entry)?;
        }
        Ok(world)
    }

    /// Makes a step happen; gives what can be observed of it.
    pub(super) fn apply(&mut self, step: &Step) -> Result<Vec<What>> {
        match step {
            Step::Pod(pod) => self.pod(pod),
            Step::Annotate(step) => {
                let annotations = self.expand(&step.annotations)?;
                self.change_pod(&step.pod, |standing| standing.annotations.extend(annotations))
            }
            Step::Status(step) => {
                let addresses = self.addresses(&step.addresses)?;
                self.change_pod(&step.pod, |standing| standing.pod.addresses = addresses)
            }
            Step::Terminate(name) => {
                self.change_pod(name, |standing| standing.pod.terminating = true)
            }
            Step::Gone(name) => {
                let key = pod_key(name)?;
                let gone = self.pods.remove(&key).with_context(|| format!("no pod {key}"))?;
                self.ipam.forget(&key);
                let here = self.is_here(&gone.pod);
                Ok(here.then_some(What::PodDeleted(key, gone.pod.uid)).into_iter().collect())
            }
            Step::Link(pod) => self.kernel.link(&interface(pod)?),
            Step::Unlink(pod) => self.kernel.unlink(&interface(pod)?),
            Step::Ip(arguments) => {
                self.kernel.ip(self.words.family, &self.words.expand(arguments)?)
            }
            Step::Refused(arguments) => {
                self.kernel.refuse(self.words.family, &self.words.expand(arguments)?)
            }
            Step::Flood(step) => {
                let amid = step.amid.as_deref().map(|text| self.words.expand(text)).transpose()?;
                self.kernel.flood(self.words.family, step, amid.as_deref())
            }
            Step::Allocate(step) => self.ipam.allocate(step).map(|_| Vec::new()),
            Step::Release(name) => self.ipam.release(name).map(|_| Vec::new()),
            Step::Service(entry) => {
                let service = self.service(entry)?;
                Ok(vec![What::ServiceApplied(service)])
            }
            Step::ServiceGone(name) => {
                let key = service_key(name)?;
                self.services.remove(&key).with_context(|| format!("no service {key}"))?;
                Ok(vec![What::ServiceDeleted(key)])
            }
            Step::Felix(step) => {
                self.felix.change(step);
                Ok(vec![What::Felix(self.felix()), What::Feature(self.feature())])
            }
            // What becomes of packets is not the world's but the counters' to say.
            Step::Send(_)
            | Step::Translate(_)
            | Step::Untranslate(_)
            | Step::Pretend(_)
            | Step::Wait(_)
            | Step::Api(_)
            | Step::Say(_) => Ok(Vec::new()),
        }
    }

    /// The index of an interface.
    pub(super) fn index(&self, name: &str) -> Result<IfIndex> {
        self.kernel.index(name)
    }

    /// The interface by which a packet for this address leaves.
    pub(super) fn way_to(&self, address: IpAddr) -> Option<IfIndex> {
        self.kernel.way_to(address)
    }

    /// The address of a pod that is of the family of another address.
    pub(super) fn first_address(&self, pod: &str, like: IpAddr) -> Result<Option<IpAddr>> {
        let key = pod_key(pod)?;
        let standing = self.pods.get(&key).with_context(|| format!("no pod {key}"))?;
        let mut addresses = standing.pod.annotated_addresses.iter();
        Ok(addresses.find(|address| address.is_ipv4() == like.is_ipv4()).copied())
    }

    /// All that a dump of the kernel's tables shows.
    pub(super) fn dump(&self) -> Vec<KernelState> {
        self.kernel.dump()
    }

    /// The pods that run on the agent's node.
    pub(super) fn local_pods(&self) -> Vec<Pod> {
        self.pods().filter(|pod| self.is_here(pod)).cloned().collect()
    }

    /// The pods that the API server finds by `status.podIP`, which is the first address only.
    pub(super) fn claimants(&self, address: IpAddr) -> Vec<Pod> {
        self.pods().filter(|pod| pod.addresses.first() == Some(&address)).cloned().collect()
    }

    /// The record of an IPAM block.
    pub(super) fn block(&self, cidr: Prefix) -> Option<Block> {
        self.ipam.block(cidr)
    }

    /// The IP pools.
    pub(super) fn pools(&self) -> Vec<Pool> {
        self.ipam.pools().to_vec()
    }

    /// The Services.
    pub(super) fn services(&self) -> Vec<Service> {
        self.services.values().cloned().collect()
    }

    /// What can be known of Felix.
    pub(super) fn felix(&self) -> Felix {
        Felix {
            version: self.felix.version.as_deref().map(Into::into),
            heeds_switch: self.felix.version.as_deref().and_then(heeds_switch),
            spoofing: self.felix.spoofing.map(|spoofing| spoofing == Spoofing::Any),
            bypass: self.felix.bypass,
        }
    }

    /// Whether floating IPs are on.
    pub(super) fn feature(&self) -> Feature {
        let by = "FelixConfiguration default".into();
        match self.felix.feature {
            Some(FeatureState::Enabled) => Feature::Enabled { by },
            _ => Feature::Disabled { by },
        }
    }

    fn pods(&self) -> impl Iterator<Item = &Pod> {
        self.pods.values().map(|standing| &standing.pod)
    }

    fn is_here(&self, pod: &Pod) -> bool {
        *pod.node.0 == *self.words.scenario.node
    }

    fn addresses(&self, names: &[String]) -> Result<Vec<IpAddr>> {
        names.iter().map(|name| self.words.address(name)).collect()
    }

    fn expand(&self, annotations: &Annotations) -> Result<Annotations> {
        annotations
            .iter()
            .map(|(name, value)| Ok((name.clone(), self.words.expand(value)?)))
            .collect()
    }

    fn change_pod(&mut self, name: &str, change: impl FnOnce(&mut Standing)) -> Result<Vec<What>> {
        let key = pod_key(name)?;
        let standing = self.pods.get_mut(&key).with_context(|| format!("no pod {key}"))?;
        change(standing);
        pod::read(&mut standing.pod, &standing.annotations);
        let pod = standing.pod.clone();
        Ok(self.is_here(&pod).then_some(What::PodApplied(pod)).into_iter().collect())
    }

    fn pod(&mut self, step: &PodStep) -> Result<Vec<What>> {
        self.ipam.pod(step)?;
        let key = pod_key(&step.name)?;
        let node = step.node.as_deref().unwrap_or(&self.words.scenario.node);
        let here = *node == *self.words.scenario.node;
        let addresses = self.addresses(&step.addresses)?;
        let mut observed = Vec::new();
        if here && step.wired && !step.host_network {
            let name = interface(&step.name)?;
            observed.extend(self.kernel.link(&name)?);
            for address in &addresses {
                observed.extend(self.kernel.pod_route(*address, &name)?);
            }
        }
        if !self.pods.contains_key(&key) {
            self.uids += 1;
            let pod = empty_pod(key.clone(), Uid(format!("uid-{}", self.uids).into()));
            self.pods.insert(key.clone(), Standing { pod, annotations: Annotations::new() });
        }
        let written = pod::written_by_cni(&key, &addresses);
        let annotations = self.expand(&step.annotations)?;
        let node = NodeName(node.into());
        observed.extend(self.change_pod(&step.name, |standing| {
            standing.annotations.extend(written);
            standing.annotations.extend(annotations);
            let pod = &mut standing.pod;
            pod.node = node;
            pod.service_account = step.service_account.as_str().into();
            pod.host_network = step.host_network;
            pod.finished = step.finished();
            pod.addresses = addresses;
        })?);
        Ok(observed)
    }

    fn service(&mut self, entry: &ServiceEntry) -> Result<Service> {
        let key = service_key(&entry.name)?;
        let service = Service {
            key: key.clone(),
            cluster_addresses: self.addresses(&entry.cluster_ips)?,
            external_addresses: self.addresses(&entry.external_ips)?,
            balancer_addresses: self.addresses(&entry.load_balancer)?,
            ports: entry.ports.clone(),
        };
        self.services.insert(key, service.clone());
        Ok(service)
    }
}

fn service_key(text: &str) -> Result<ServiceKey> {
    let parts = text.split_once('/');
    parts
        .and_then(|(namespace, name)| ServiceKey::new(namespace, name))
        .with_context(|| format!("{text:?} is no Service: write namespace/name"))
}

fn empty_pod(key: PodKey, uid: Uid) -> Pod {
    Pod {
        key,
        uid,
        node: NodeName("".into()),
        service_account: "".into(),
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
    }
}
