//! The pretended world: a kernel that does what `ip` tells it, and a cluster of pods.

use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::{Context as _, Result};
use detector_core::link::{Link, LinkKind};
use detector_core::observation::{KernelChange, KernelState, Place, What};
use detector_core::route::{
    Hops, IfIndex, NextHop, NextHopId, NextHopObject, Prefix, Route, Rule, Table,
};
use detector_core::workload::{NodeName, Pod, PodKey, Uid};

use crate::scenario::words::{Words, interface, pod_key};
use crate::scenario::{PodStep, Step, ip};

/// All that there is outside of the agent.
pub(super) struct World<'a> {
    words: Words<'a>,
    names: ip::Links,
    links: BTreeMap<IfIndex, Link>,
    routes: Vec<Route>,
    rules: Vec<Rule>,
    nexthops: BTreeMap<NextHopId, NextHopObject>,
    pods: BTreeMap<PodKey, Pod>,
    uids: u32,
}

impl<'a> World<'a> {
    pub(super) fn new(words: Words<'a>) -> Self {
        let mut world = Self {
            words,
            names: ip::Links::default(),
            links: BTreeMap::new(),
            routes: Vec::new(),
            rules: Vec::new(),
            nexthops: BTreeMap::new(),
            pods: BTreeMap::new(),
            uids: 0,
        };
        for (name, kind) in
            [("lo", LinkKind::Physical), (crate::scenario::UPLINK, LinkKind::Infrastructure)]
        {
            // Both names are valid.
            if let Ok(KernelChange::Link(link)) = world.names.add(name, kind, true) {
                world.links.insert(link.index, link);
            }
        }
        world
    }

    /// Makes a step happen; gives what can be observed of it.
    pub(super) fn apply(&mut self, step: &Step) -> Result<Vec<What>> {
        match step {
            Step::Pod(pod) => self.pod(pod),
            Step::Annotate(step) => {
                let key = pod_key(&step.pod)?;
                let mut annotations = Vec::new();
                for (name, value) in &step.annotations {
                    annotations.push((name.as_str(), self.words.expand(value)?));
                }
                let pod = self.pods.get_mut(&key).with_context(|| format!("no pod {key}"))?;
                for (name, value) in annotations {
                    annotate(pod, name, &value)?;
                }
                Ok(vec![What::PodApplied(pod.clone())])
            }
            Step::Status(step) => {
                let key = pod_key(&step.pod)?;
                let addresses = step.addresses.iter().map(|name| self.words.address(name));
                let addresses = addresses.collect::<Result<_>>()?;
                let pod = self.pods.get_mut(&key).with_context(|| format!("no pod {key}"))?;
                pod.addresses = addresses;
                Ok(vec![What::PodApplied(pod.clone())])
            }
            Step::Terminate(name) => {
                let key = pod_key(name)?;
                let pod = self.pods.get_mut(&key).with_context(|| format!("no pod {key}"))?;
                pod.terminating = true;
                Ok(vec![What::PodApplied(pod.clone())])
            }
            Step::Gone(name) => {
                let key = pod_key(name)?;
                let pod = self.pods.remove(&key).with_context(|| format!("no pod {key}"))?;
                Ok(vec![What::PodDeleted(key, pod.uid)])
            }
            Step::Link(pod) => self.link(&interface(pod)?),
            Step::Unlink(pod) => {
                let change = self.names.remove(&interface(pod)?)?;
                Ok(self.change(change))
            }
            Step::Ip(arguments) => {
                let arguments = self.words.expand(arguments)?;
                let changes = ip::interpret(&mut self.names, self.words.family, &arguments)
                    .with_context(|| format!("ip {arguments}"))?;
                Ok(changes.into_iter().flat_map(|change| self.change(change)).collect())
            }
            Step::Wait(_) | Step::Api(_) | Step::Say(_) => Ok(Vec::new()),
        }
    }

    /// All that a dump of the kernel's tables shows.
    pub(super) fn dump(&self) -> Vec<KernelState> {
        let links = self.links.values().cloned().map(KernelState::Link);
        let nexthops =
            self.nexthops.iter().map(|(id, object)| KernelState::NextHop(*id, object.clone()));
        let rules = self.rules.iter().cloned().map(KernelState::Rule);
        let routes = self.routes.iter().cloned().map(KernelState::Route);
        links.chain(nexthops).chain(rules).chain(routes).collect()
    }

    /// The pods that run on the agent's node.
    pub(super) fn local_pods(&self) -> Vec<Pod> {
        let here = |pod: &&Pod| *pod.node.0 == *self.words.scenario.node;
        self.pods.values().filter(here).cloned().collect()
    }

    /// The pods that the API server finds by `status.podIP`, which is the first address only.
    pub(super) fn claimants(&self, address: IpAddr) -> Vec<Pod> {
        self.pods.values().filter(|pod| pod.addresses.first() == Some(&address)).cloned().collect()
    }

    fn pod(&mut self, step: &PodStep) -> Result<Vec<What>> {
        let key = pod_key(&step.name)?;
        let node = step.node.clone().unwrap_or_else(|| self.words.scenario.node.clone());
        let addresses: Vec<IpAddr> =
            step.addresses.iter().map(|name| self.words.address(name)).collect::<Result<_>>()?;
        let uid = if let Some(pod) = self.pods.get(&key) {
            pod.uid.clone()
        } else {
            self.uids += 1;
            Uid(format!("uid-{}", self.uids).into())
        };
        let mut pod = Pod {
            key: key.clone(),
            uid,
            node: NodeName(node.as_str().into()),
            service_account: step.service_account.as_str().into(),
            host_network: step.host_network,
            finished: matches!(step.phase.as_str(), "Succeeded" | "Failed"),
            terminating: false,
            addresses: addresses.clone(),
            annotated_addresses: addresses.clone(),
            floating_addresses: Vec::new(),
            sandbox: (!addresses.is_empty()).then(|| format!("sandbox of {key}").into()),
        };
        for (name, value) in &step.annotations {
            annotate(&mut pod, name, &self.words.expand(value)?)?;
        }
        let here = *node == *self.words.scenario.node;
        let mut observed = Vec::new();
        if here && step.wired && !step.host_network {
            let name = interface(&step.name)?;
            observed.extend(self.link(&name)?);
            for address in addresses {
                let arguments =
                    format!("route add {} dev {name} scope link", Prefix::host(address));
                for change in ip::interpret(&mut self.names, self.words.family, &arguments)? {
                    observed.extend(self.change(change));
                }
            }
        }
        if here {
            observed.push(What::PodApplied(pod.clone()));
        }
        self.pods.insert(key, pod);
        Ok(observed)
    }

    fn link(&mut self, name: &str) -> Result<Vec<What>> {
        let change = self.names.add(name, LinkKind::Container, true)?;
        Ok(self.change(change))
    }

    /// Does a change as the kernel would; gives what it would announce.
    fn change(&mut self, change: KernelChange) -> Vec<What> {
        let mut announced = Vec::new();
        match change {
            KernelChange::Link(link) => {
                if !link.up {
                    self.flush(link.index);
                }
                self.links.insert(link.index, link.clone());
                announced.push(KernelChange::Link(link));
            }
            KernelChange::LinkGone(index) => {
                self.flush(index);
                self.links.remove(&index);
                announced.push(KernelChange::LinkGone(index));
            }
            KernelChange::Route { mut route, place, writer } => {
                if let Some(id) = route.nexthop_id {
                    route.hops = self.legs(id);
                }
                let same = |r: &Route| {
                    (r.prefix, r.table, r.metric) == (route.prefix, route.table, route.metric)
                };
                let first = self.routes.iter().position(same);
                match first {
                    Some(at) if place == Place::Instead => self.routes[at] = route.clone(),
                    Some(at) if place == Place::Before => self.routes.insert(at, route.clone()),
                    _ => self.routes.push(route.clone()),
                }
                let place = if first.is_some() { place } else { Place::Alone };
                announced.push(KernelChange::Route { route, place, writer });
            }
            KernelChange::RouteGone(asked) => {
                let found = self.routes.iter().position(|route| answers(route, &asked));
                if let Some(at) = found {
                    announced.push(KernelChange::RouteGone(self.routes.remove(at)));
                }
            }
            KernelChange::Rule(rule) => {
                self.rules.push(rule.clone());
                announced.push(KernelChange::Rule(rule));
            }
            KernelChange::RuleGone(rule) => {
                self.rules.retain(|standing| *standing != rule);
                announced.push(KernelChange::RuleGone(rule));
            }
            KernelChange::NextHop(id, object) => {
                self.nexthops.insert(id, object.clone());
                announced.push(KernelChange::NextHop(id, object));
                let users: Vec<NextHopId> = self
                    .nexthops
                    .iter()
                    .filter(|(_, object)| matches!(object, NextHopObject::Group(of) if of.contains(&id)))
                    .map(|(group, _)| *group)
                    .chain([id])
                    .collect();
                for at in 0..self.routes.len() {
                    let Some(id) = self.routes[at].nexthop_id.filter(|id| users.contains(id))
                    else {
                        continue;
                    };
                    self.routes[at].hops = self.legs(id);
                    announced.push(KernelChange::Route {
                        route: self.routes[at].clone(),
                        place: Place::Instead,
                        writer: 4242,
                    });
                }
            }
            KernelChange::NextHopGone(id) => {
                self.routes.retain(|route| route.nexthop_id != Some(id));
                self.nexthops.remove(&id);
                announced.push(KernelChange::NextHopGone(id));
            }
        }
        announced.into_iter().map(What::Kernel).collect()
    }

    /// IPv4 routes vanish without a word when their interface goes down, and so does this.
    fn flush(&mut self, index: IfIndex) {
        self.routes.retain(|route| {
            let hops = route.hops.as_slice();
            hops.is_empty() || hops.iter().any(|hop| hop.interface != Some(index))
        });
    }

    fn legs(&self, id: NextHopId) -> Hops {
        match self.nexthops.get(&id) {
            Some(NextHopObject::Leg(hop)) => Hops::One(*hop),
            Some(NextHopObject::Group(members)) => {
                members.iter().flat_map(|id| self.legs(*id).as_slice().to_vec()).collect()
            }
            _ => Hops::None,
        }
    }
}

/// Whether `ip route del` with these options would take the route.
fn answers(route: &Route, asked: &Route) -> bool {
    let legs: &[NextHop] = asked.hops.as_slice();
    let table =
        asked.table == route.table || (asked.table == Table::MAIN && route.table == Table::MAIN);
    table
        && asked.prefix == route.prefix
        && asked.kind == route.kind
        && (legs.is_empty() || legs == route.hops.as_slice())
        && (asked.metric == route.metric || matches!(asked.metric, 0 | 1024))
}

fn annotate(pod: &mut Pod, name: &str, value: &str) -> Result<()> {
    let list = |text: &str| -> Result<Vec<IpAddr>> {
        text.trim_matches(|c| c == '[' || c == ']')
            .split(',')
            .map(|part| part.trim().trim_matches('"'))
            .filter(|part| !part.is_empty())
            .map(|part| Ok(part.split('/').next().unwrap_or(part).parse()?))
            .collect()
    };
    match name {
        "floatingIPs" => pod.floating_addresses = list(value)?,
        "podIPs" | "podIP" => pod.annotated_addresses = list(value)?,
        "containerID" => pod.sandbox = (!value.is_empty()).then(|| value.into()),
        _ => {}
    }
    Ok(())
}
