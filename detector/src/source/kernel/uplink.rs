//! Which interfaces are the node's own ways out, and which of their routes need not be told.
//!
//! A node can carry a full BGP table: a million routes by its uplinks, none of which leads to a pod
//! of this node, and none of which names a single address. They are left out where they are read,
//! by the eBPF program and here by the same rule.

use std::collections::BTreeSet;

use detector_core::link::Link;
use detector_core::observation::{KernelChange, KernelState, Place};
use detector_core::route::{IfIndex, Route, RouteKind, Table};
use detector_core::settings::Settings;

/// The index of the loopback device of every network namespace (`LOOPBACK_IFINDEX` in the kernel's
/// include/net/flow.h).
const LOOPBACK: u32 = 1;

/// Whether routes by this interface may be left out: it carries the node's own traffic, or the
/// operator said so. The loopback device is hardware by its kind, but leads nowhere.
pub fn is_uplink(settings: &Settings, link: &Link) -> bool {
    settings.is_uplink(link) && link.index.get() != LOOPBACK
}

/// Whether a route need not be told: a plain way to a network by uplinks only. What is not known to
/// be such a route is told.
///
/// Routes to one address are always told (each may name a pod), and so are those by a next-hop
/// object, which can be pointed elsewhere while the route stands.
pub(super) fn is_transit(route: &Route, uplinks: &BTreeSet<IfIndex>) -> bool {
    let legs = route.hops.as_slice();
    let by_uplink =
        |interface: Option<IfIndex>| interface.is_some_and(|index| uplinks.contains(&index));
    route.kind == RouteKind::Unicast
        && route.table == Table::MAIN
        && !route.prefix.is_host()
        && route.nexthop_id.is_none()
        && !legs.is_empty()
        && legs.iter().all(|leg| by_uplink(leg.interface))
}

/// Whether a change need not be told. One by which a route takes the place of another is told in
/// any case: the other may be known.
pub(super) fn is_transit_change(change: &KernelChange, uplinks: &BTreeSet<IfIndex>) -> bool {
    match change {
        KernelChange::Route { route, place, .. } => {
            *place != Place::Instead && is_transit(route, uplinks)
        }
        KernelChange::RouteGone(route) => is_transit(route, uplinks),
        _ => false,
    }
}

/// The uplinks as observed, so that the source can be told when they change.
///
/// The agent shows it every link that it observes. It takes what it needs of them and no more, so
/// that showing it the same link twice, or an old one late, does no harm that the next does not mend.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Uplinks(BTreeSet<IfIndex>);

impl Uplinks {
    /// Takes a change; whether the uplinks are others now. Then the source must be given the new
    /// ones ([`KernelSource::set_uplinks`]), and a resync be requested: routes that were left out
    /// must be told now, and of those told before, their end will be left out.
    ///
    /// [`KernelSource::set_uplinks`]: super::KernelSource::set_uplinks
    #[must_use]
    pub fn observe(&mut self, settings: &Settings, change: &KernelChange) -> bool {
        match change {
            KernelChange::Link(link) => self.take(settings, link),
            // Its routes went with it, so nothing has to be read anew; but its index may come again.
            KernelChange::LinkGone(index) => self.0.remove(index),
            _ => false,
        }
    }

    /// The same for a part of a dump.
    #[must_use]
    pub fn observe_state(&mut self, settings: &Settings, state: &KernelState) -> bool {
        matches!(state, KernelState::Link(link) if self.take(settings, link))
    }

    /// The indexes.
    pub fn iter(&self) -> impl Iterator<Item = IfIndex> {
        self.0.iter().copied()
    }

    /// The indexes as a set.
    pub(super) fn indexes(&self) -> &BTreeSet<IfIndex> {
        &self.0
    }

    fn take(&mut self, settings: &Settings, link: &Link) -> bool {
        if is_uplink(settings, link) {
            self.0.insert(link.index)
        } else {
            self.0.remove(&link.index)
        }
    }
}

#[cfg(test)]
mod tests {
    use detector_core::link::{InterfaceName, LinkKind};
    use detector_core::route::{Hops, NextHop, NextHopId, Prefix, Protocol};
    use detector_core::workload::NodeName;

    use super::*;

    fn index(index: u32) -> IfIndex {
        IfIndex::new(index).unwrap()
    }

    fn link(number: u32, name: &str, kind: LinkKind) -> Link {
        Link { index: index(number), name: InterfaceName::new(name).unwrap(), kind, up: true }
    }

    fn settings() -> Settings {
        let uplinks = vec![InterfaceName::new("eth0").unwrap()];
        Settings { uplinks, ..Settings::for_node(NodeName("node".into())) }
    }

    fn by(prefix: &str, interfaces: &[u32]) -> Route {
        let leg = |interface: &u32| NextHop { interface: IfIndex::new(*interface), gateway: None };
        Route {
            table: Table::MAIN,
            prefix: Prefix::from(prefix.parse::<ipnet::IpNet>().unwrap()),
            tos: 0,
            metric: 0,
            kind: RouteKind::Unicast,
            protocol: Protocol(3),
            nexthop_id: None,
            hops: interfaces.iter().map(leg).collect(),
        }
    }

    #[test]
    fn an_uplink_is_known_by_its_kind_or_by_the_operator() {
        let is = |link: Link| is_uplink(&settings(), &link);
        assert!(is(link(2, "ens3", LinkKind::Physical)));
        assert!(is(link(3, "bond0", LinkKind::Infrastructure)));
        assert!(is(link(4, "eth0", LinkKind::Container)));
        assert!(!is(link(5, "eth1", LinkKind::Container)));
        assert!(!is(link(1, "lo", LinkKind::Physical)));
        // A pod's interface by its name is none, whatever made it.
        assert!(!is(link(6, "cali0123456789a", LinkKind::Physical)));
    }

    #[test]
    fn only_a_plain_way_to_a_network_by_uplinks_is_left_out() {
        let uplinks = BTreeSet::from([index(2), index(3)]);
        let transit = |route: &Route| is_transit(route, &uplinks);
        let plain = by("10.0.0.0/8", &[2, 3]);
        assert!(transit(&plain));
        assert!(transit(&by("2001:db8::/64", &[2])));
        for (why, route) in [
            ("one leg elsewhere", by("10.0.0.0/8", &[2, 4])),
            ("one address", by("10.0.0.1/32", &[2])),
            ("one IPv6 address", by("2001:db8::1/128", &[2])),
            ("no leg", by("10.0.0.0/8", &[])),
            ("another table", Route { table: Table(100), ..plain.clone() }),
            ("another kind", Route { kind: RouteKind::Throw, ..plain.clone() }),
            ("a next-hop object", Route { nexthop_id: NextHopId::new(1), ..plain.clone() }),
            (
                "a leg without interface",
                Route {
                    hops: Hops::One(NextHop { interface: None, gateway: None }),
                    ..plain.clone()
                },
            ),
        ] {
            assert!(!transit(&route), "{why}");
        }
    }

    #[test]
    fn a_route_that_takes_the_place_of_another_is_told() {
        let uplinks = BTreeSet::from([index(2)]);
        let change =
            |place| KernelChange::Route { route: by("10.0.0.0/8", &[2]), place, writer: 0.into() };
        assert!(is_transit_change(&change(Place::Alone), &uplinks));
        assert!(is_transit_change(&change(Place::Behind), &uplinks));
        assert!(!is_transit_change(&change(Place::Instead), &uplinks));
        let gone = |interface| KernelChange::RouteGone(by("10.0.0.0/8", &[interface]));
        assert!(is_transit_change(&gone(2), &uplinks));
        assert!(!is_transit_change(&gone(4), &uplinks));
    }

    #[test]
    fn the_uplinks_say_when_they_change() {
        let mut uplinks = Uplinks::default();
        let settings = settings();
        let mut observe = |link| uplinks.observe(&settings, &KernelChange::Link(link));
        assert!(observe(link(4, "eth0", LinkKind::Container)));
        assert!(!observe(link(4, "eth0", LinkKind::Container)));
        assert!(!observe(link(5, "cali1", LinkKind::Container)));
        // Renamed, and no longer what the operator named.
        assert!(observe(link(4, "eth9", LinkKind::Container)));
        assert!(observe(link(2, "ens3", LinkKind::Physical)));
        assert!(uplinks.observe(&settings, &KernelChange::LinkGone(index(2))));
        assert!(!uplinks.observe(&settings, &KernelChange::LinkGone(index(2))));
        assert_eq!(uplinks.iter().count(), 0);
    }
}
