//! The pretended kernel: links, routes, rules and next hops, and what it announces of them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use detector_core::link::{Link, LinkKind};
use detector_core::observation::{KernelChange, KernelState, Neighbour, Place, What};
use detector_core::route::{
    Hops, IfIndex, NextHop, NextHopId, NextHopObject, Prefix, Route, Rule, Table,
};
use detector_core::writer::{Known, Process, Refusal, Writer};

use crate::scenario::step::FloodStep;
use crate::scenario::{Family, flood, ip};

/// A kernel that does what `ip` tells it.
#[derive(Default)]
pub(super) struct Kernel {
    names: ip::Links,
    links: BTreeMap<IfIndex, Link>,
    routes: Vec<Route>,
    rules: Vec<Rule>,
    nexthops: BTreeMap<NextHopId, NextHopObject>,
    neighbours: BTreeSet<Neighbour>,
}

impl Kernel {
    /// A kernel with a loopback interface and an uplink.
    pub(super) fn new() -> Self {
        let mut kernel = Self::default();
        for (name, kind) in
            [("lo", LinkKind::Physical), (crate::scenario::UPLINK, LinkKind::Infrastructure)]
        {
            // Both names are valid.
            if let Ok(KernelChange::Link(link)) = kernel.names.add(name, kind, true) {
                kernel.links.insert(link.index, link);
            }
        }
        kernel
    }

    /// All that a dump of the tables shows.
    pub(super) fn dump(&self) -> Vec<KernelState> {
        let links = self.links.values().cloned().map(KernelState::Link);
        let nexthops =
            self.nexthops.iter().map(|(id, object)| KernelState::NextHop(*id, object.clone()));
        let rules = self.rules.iter().cloned().map(KernelState::Rule);
        let routes = self.routes.iter().cloned().map(KernelState::Route);
        let neighbours = self.neighbours.iter().copied().map(KernelState::Neighbour);
        links.chain(nexthops).chain(rules).chain(routes).chain(neighbours).collect()
    }

    /// Does what `ip` with these arguments would; gives what is announced.
    pub(super) fn ip(&mut self, family: Family, arguments: &str) -> Result<Vec<What>> {
        let changes = ip::interpret(&mut self.names, family, arguments)
            .with_context(|| format!("ip {arguments}"))?;
        Ok(changes.into_iter().flat_map(|change| self.change(change)).collect())
    }

    /// Makes a pod's interface.
    pub(super) fn link(&mut self, name: &str) -> Result<Vec<What>> {
        let change = self.names.add(name, LinkKind::Container, true)?;
        Ok(self.change(change))
    }

    /// Takes an interface away.
    pub(super) fn unlink(&mut self, name: &str) -> Result<Vec<What>> {
        let change = self.names.remove(name)?;
        Ok(self.change(change))
    }

    /// Makes the route of a pod's own address.
    pub(super) fn pod_route(&mut self, address: IpAddr, name: &str) -> Result<Vec<What>> {
        let family = if address.is_ipv4() { Family::Ipv4 } else { Family::Ipv6 };
        self.ip(family, &format!("route add {} dev {name} scope link", Prefix::host(address)))
    }

    /// Felix tries to write a route that is there already.
    pub(super) fn refuse(&mut self, family: Family, arguments: &str) -> Result<Vec<What>> {
        const EXISTS: u32 = 17;
        let felix = Process {
            pid: 4_242,
            thread: 4_242,
            started: None,
            command: "calico-node".into(),
            network: None,
            mount: None,
            cgroup: None,
            containers: [].into(),
            known: Known::Record,
        };
        let tried = ip::interpret(&mut self.names, family, arguments)?;
        let refused = tried.into_iter().map(|change| match change {
            KernelChange::Route { route, .. } => Ok(What::Refused(Refusal {
                prefix: route.prefix,
                table: route.table,
                interface: route.hops.as_slice().first().and_then(|hop| hop.interface),
                protocol: route.protocol,
                error: EXISTS,
                writer: Writer { port: 4_242, process: Some(Arc::new(felix.clone())) },
            })),
            other => bail!("only routes are refused, not {other:?}"),
        });
        refused.collect()
    }

    /// The index of an interface.
    pub(super) fn index(&self, name: &str) -> Result<IfIndex> {
        self.names.index(name)
    }

    /// The interface by which a packet for this address leaves: the longest prefix of the main table,
    /// then the lowest metric, then the first.
    pub(super) fn way_to(&self, address: IpAddr) -> Option<IfIndex> {
        let matches = |route: &&Route| route.table == Table::MAIN && route.prefix.contains(address);
        // Of several that are best, `min_by_key` takes the first.
        let best = self
            .routes
            .iter()
            .filter(matches)
            .min_by_key(|route| (std::cmp::Reverse(route.prefix.length()), route.metric))?;
        best.hops.as_slice().first()?.interface
    }

    /// Makes and unmakes many routes at once.
    pub(super) fn flood(
        &mut self,
        family: Family,
        step: &FloodStep,
        amid: Option<&str>,
    ) -> Result<Vec<What>> {
        let mut announced = Vec::new();
        for arguments in flood::commands(family, step, amid) {
            announced.extend(self.ip(family, &arguments)?);
        }
        Ok(announced)
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
                        writer: 4242.into(),
                    });
                }
            }
            KernelChange::NextHopGone(id) => {
                self.routes.retain(|route| route.nexthop_id != Some(id));
                self.nexthops.remove(&id);
                announced.push(KernelChange::NextHopGone(id));
            }
            KernelChange::Neighbour(neighbour) => {
                self.neighbours.insert(neighbour);
                announced.push(KernelChange::Neighbour(neighbour));
            }
            KernelChange::NeighbourGone(neighbour) => {
                self.neighbours.remove(&neighbour);
                announced.push(KernelChange::NeighbourGone(neighbour));
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
