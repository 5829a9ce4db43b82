//! The kernel's tables as a test keeps them: by dumps, and by what the kernel is known to do at each
//! change. Written for being plain, not for being quick.

use std::collections::{BTreeMap, BTreeSet};

use detector::source::kernel::{Dump, DumpOptions, DumpStep, DumpTotals};
use detector_core::link::Link;
use detector_core::observation::{KernelChange, KernelState, Place};
use detector_core::route::{Hops, IfIndex, NextHop, NextHopId, NextHopObject, Route, Rule};

/// Links, routes, rules and next hops.
#[derive(Clone, PartialEq, Debug, Default)]
pub(crate) struct Tables {
    pub(crate) links: BTreeMap<IfIndex, Link>,
    pub(crate) routes: Vec<Route>,
    pub(crate) rules: BTreeSet<Rule>,
    pub(crate) nexthops: BTreeMap<NextHopId, NextHopObject>,
}

impl Tables {
    /// What a dump says.
    pub(crate) async fn dump(options: DumpOptions) -> (Self, DumpTotals) {
        let mut tables = Self::default();
        let mut dump = Dump::start(options).unwrap();
        loop {
            match dump.next().await {
                DumpStep::Part(states) => states.into_iter().for_each(|state| tables.add(state)),
                DumpStep::Ended(totals) => return (tables.sorted(), totals.unwrap()),
            }
        }
    }

    /// Adds what a dump says is there.
    pub(crate) fn add(&mut self, state: KernelState) {
        match state {
            KernelState::Link(link) => {
                self.links.insert(link.index, link);
            }
            KernelState::Route(route) => self.routes.push(route),
            KernelState::Rule(rule) => {
                self.rules.insert(rule);
            }
            KernelState::NextHop(id, object) => {
                self.nexthops.insert(id, object);
            }
            KernelState::Neighbour(_) => {}
        }
    }

    /// Does what the kernel did.
    pub(crate) fn apply(&mut self, change: KernelChange) {
        match change {
            KernelChange::Link(link) => {
                if !link.up {
                    self.flush(link.index);
                }
                self.links.insert(link.index, link);
            }
            KernelChange::LinkGone(index) => {
                self.flush(index);
                self.links.remove(&index);
            }
            KernelChange::Route { route, place, .. } => self.install(route, place),
            KernelChange::RouteGone(route) => self.remove(&route),
            KernelChange::Rule(rule) => {
                self.rules.insert(rule);
            }
            KernelChange::RuleGone(rule) => {
                self.rules.remove(&rule);
            }
            KernelChange::NextHop(id, object) => {
                self.nexthops.insert(id, object);
            }
            KernelChange::NextHopGone(id) => {
                self.nexthops.remove(&id);
                self.routes.retain(|route| route.nexthop_id != Some(id));
            }
            KernelChange::Neighbour(_) | KernelChange::NeighbourGone(_) => {}
        }
    }

    /// The same for a change that may be older than the dump: what it makes may be there already.
    pub(crate) fn replay(&mut self, change: KernelChange) {
        if let KernelChange::Route { route, .. } = &change
            && self.routes.contains(route)
        {
            return;
        }
        self.apply(change);
    }

    /// The same with the routes in an order that does not tell how they came, and without the legs
    /// of those by a next-hop object: they are the object's, and change with it in silence.
    pub(crate) fn sorted(mut self) -> Self {
        for route in self.routes.iter_mut().filter(|route| route.nexthop_id.is_some()) {
            route.hops = Hops::None;
        }
        self.routes.sort_by_key(|route| format!("{route:?}"));
        self
    }

    fn install(&mut self, route: Route, place: Place) {
        let peer = |known: &Route| {
            (known.prefix, known.table, known.tos, known.metric)
                == (route.prefix, route.table, route.tos, route.metric)
        };
        let first = self.routes.iter().position(peer);
        match first {
            Some(first) if place == Place::Instead => self.routes[first] = route,
            // An IPv6 route of several legs is announced again with each that joins it.
            Some(first) if !route.prefix.is_ipv4() => self.routes[first] = route,
            _ => self.routes.push(route),
        }
    }

    /// Takes a route away, or of an IPv6 route the leg that is gone.
    fn remove(&mut self, gone: &Route) {
        if let Some(at) = self.routes.iter().position(|known| known == gone) {
            self.routes.remove(at);
            return;
        }
        let Route { hops: legs, .. } = gone;
        let without_legs = |route: &Route| Route { hops: Hops::None, ..route.clone() };
        let same = |known: &&mut Route| without_legs(known) == without_legs(gone);
        let whole =
            self.routes.iter_mut().filter(same).find(|known| {
                legs.as_slice().iter().all(|leg| known.hops.as_slice().contains(leg))
            });
        if let Some(whole) = whole {
            let stays = |leg: &&NextHop| !legs.as_slice().contains(leg);
            whole.hops = whole.hops.as_slice().iter().filter(stays).copied().collect();
        }
    }

    /// IPv4 routes go in silence when the last interface that they leave by goes.
    fn flush(&mut self, index: IfIndex) {
        self.routes.retain(|route| {
            let legs = route.hops.as_slice();
            legs.is_empty() || legs.iter().any(|leg| leg.interface != Some(index))
        });
    }
}
