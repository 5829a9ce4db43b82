//! The routes that stand, in the kernel's own order.
//!
//! Replaying notifications gives what the kernel has only if the kernel's rules are followed to the
//! letter (`fib_table_insert` and `fib_table_delete` in net/ipv4/fib_trie.c, `fib6_add_rt2node` and
//! `ip6_route_del` in net/ipv6): a replace takes the place of the *first* route of its table, TOS
//! and metric and leaves those behind it; an append stands behind them, anything else before them;
//! IPv6 merges equal-cost legs into one route and takes them out one by one.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use smallvec::SmallVec;

use crate::observation::Place;
use crate::route::{Hops, IfIndex, NextHop, NextHopId, Prefix, Route, Table};
use crate::time::BootTime;
use crate::writer::{Process, Writer};

/// A route that stands, with what is known of its making.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Entry {
    pub(crate) route: Route,
    /// When it was made, or first seen in a dump.
    pub(crate) since: BootTime,
    /// The netlink port of the writer, where it was seen being made.
    pub(crate) port: Option<u32>,
    /// The process that wrote it, where that is known.
    pub(crate) process: Option<Arc<Process>>,
    /// The interface of the route whose place it took.
    pub(crate) displaced: Option<IfIndex>,
}

type Entries = SmallVec<[Entry; 1]>;

/// All routes of all tables, by prefix.
#[derive(Clone, Debug, Default)]
pub(crate) struct Fib {
    routes: HashMap<Prefix, Entries>,
    count: usize,
    /// Prefixes by interface, but for `unindexed` ones.
    by_interface: HashMap<IfIndex, HashSet<Prefix>>,
    /// Uplinks: they may carry a million routes, and nobody asks for those but when one goes down.
    unindexed: HashSet<IfIndex>,
    by_nexthop: HashMap<NextHopId, HashSet<Prefix>>,
    /// Prefixes in tables that only a rule makes the kernel look up.
    by_table: HashMap<Table, HashSet<Prefix>>,
}

impl Fib {
    pub(crate) fn get(&self, prefix: Prefix) -> &[Entry] {
        self.routes.get(&prefix).map_or(&[], SmallVec::as_slice)
    }

    pub(crate) fn len(&self) -> usize {
        self.count
    }

    pub(crate) fn prefixes(&self) -> impl Iterator<Item = Prefix> {
        self.routes.keys().copied()
    }

    /// Prefixes that may have a leg on this interface. Complete but for uplinks.
    pub(crate) fn on_interface(&self, index: IfIndex) -> Vec<Prefix> {
        self.by_interface.get(&index).into_iter().flatten().copied().collect()
    }

    /// All prefixes of one address, by whatever interface.
    pub(crate) fn hosts(&self) -> impl Iterator<Item = (Prefix, IpAddr)> {
        self.routes.keys().filter_map(|prefix| Some((*prefix, prefix.host_address()?)))
    }

    pub(crate) fn on_nexthop(&self, id: NextHopId) -> Vec<Prefix> {
        self.by_nexthop.get(&id).into_iter().flatten().copied().collect()
    }

    /// Notes that the routes by a next-hop object lead elsewhere from now on.
    pub(crate) fn turn_nexthop(&mut self, id: NextHopId, at: BootTime) {
        for prefix in self.on_nexthop(id) {
            for entry in self.routes.get_mut(&prefix).into_iter().flatten() {
                if entry.route.nexthop_id == Some(id) {
                    entry.since = at;
                    // Who wrote the route is not who made it lead there.
                    (entry.port, entry.process) = (None, None);
                }
            }
        }
    }

    pub(crate) fn in_table(&self, table: Table) -> Vec<Prefix> {
        self.by_table.get(&table).into_iter().flatten().copied().collect()
    }

    /// The prefixes that have routes and that `address` lies in.
    pub(crate) fn covering(&self, address: IpAddr) -> impl Iterator<Item = Prefix> {
        let bits = if address.is_ipv4() { 32 } else { 128 };
        let prefixes = (0..=bits).filter_map(move |length| Prefix::new(address, length));
        prefixes.filter(|prefix| self.routes.contains_key(prefix))
    }

    /// Stops or starts keeping the interface's prefixes at hand.
    pub(crate) fn index_interface(&mut self, index: IfIndex, wanted: bool) {
        if !wanted {
            if self.unindexed.insert(index) {
                self.by_interface.remove(&index);
            }
        } else if self.unindexed.remove(&index) {
            let prefixes: HashSet<Prefix> = self.scan_interface(index).collect();
            self.by_interface.insert(index, prefixes);
        }
    }

    /// Makes room for as many routes as `other` has.
    pub(crate) fn expect(&mut self, other: &Self) {
        self.routes.reserve(other.routes.len());
    }

    /// Forgets that there was such an interface.
    pub(crate) fn forget_interface(&mut self, index: IfIndex) {
        self.unindexed.remove(&index);
        self.by_interface.remove(&index);
    }

    /// Takes a route that the kernel announced.
    pub(crate) fn add(&mut self, at: BootTime, route: Route, place: Place, writer: Option<Writer>) {
        let prefix = route.prefix;
        self.index(&route);
        let replace = place == Place::Instead;
        let entries = self.routes.entry(prefix).or_default();
        let port = writer.as_ref().map(|writer| writer.port);
        let process = writer.and_then(|writer| writer.process);
        let mut entry = Entry { route, since: at, port, process, displaced: None };
        if place == Place::Alone {
            // A peer that we know of comes from a dump that was read after this change.
            let before = entries.len();
            entries.retain(|e| {
                !is_peer(&e.route, &entry.route) || is_same_path(&e.route, &entry.route)
            });
            self.count -= before - entries.len();
        }
        let peers = |e: &Entry| is_peer(&e.route, &entry.route);
        let first = entries.iter().position(peers);
        if let Some(same) = position_of_same(entries, &entry.route, replace) {
            let old = &entries[same];
            let by_object = entry.route.nexthop_id.is_some();
            if by_object || is_same_path(&old.route, &entry.route) {
                entry.since = old.since;
                entry.displaced = old.displaced;
                // A route that is only told again keeps its writer.
                if old.port.is_some() && old.route.protocol == entry.route.protocol {
                    (entry.port, entry.process) = (old.port, old.process.clone());
                }
            } else {
                entry.displaced = first_interface(&old.route);
            }
            entries[same] = entry;
            return;
        }
        match (first, place) {
            (Some(first), Place::Instead) => {
                entry.displaced = first_interface(&entries[first].route);
                entries[first] = entry;
                return;
            }
            (Some(first), Place::Behind) => {
                let last = entries.iter().rposition(peers).unwrap_or(first);
                entries.insert(last + 1, entry);
            }
            (Some(first), Place::Before | Place::Alone) => entries.insert(first, entry),
            (None, _) => entries.push(entry),
        }
        self.count += 1;
    }

    /// Takes a route away that the kernel said is gone; gives what stood there, if it was known.
    pub(crate) fn remove(&mut self, route: &Route) -> Option<Entry> {
        let entries = self.routes.get_mut(&route.prefix)?;
        let found = entries
            .iter()
            .position(|e| e.route == *route)
            .or_else(|| entries.iter().position(|e| is_same_path(&e.route, route)))
            .or_else(|| entries.iter().position(|e| holds_legs(&e.route, route)))?;
        let left: Hops = if entries[found].route.prefix.is_ipv4() {
            Hops::None
        } else {
            let gone = route.hops.as_slice();
            let stays = |hop: &&NextHop| !gone.contains(hop);
            entries[found].route.hops.as_slice().iter().filter(stays).copied().collect()
        };
        if left == Hops::None {
            return Some(self.take(route.prefix, found));
        }
        let mut removed = entries[found].clone();
        removed.route.hops = route.hops.clone();
        entries[found].route.hops = left;
        Some(removed)
    }

    /// Takes away what the kernel flushes when an interface goes down or away: every route whose
    /// last live leg it was. Says nothing about IPv4, and IPv6 messages may follow.
    pub(crate) fn flush_interface(
        &mut self,
        index: IfIndex,
        is_dead: impl Fn(IfIndex) -> bool,
    ) -> Vec<Entry> {
        let prefixes: Vec<Prefix> = if self.unindexed.contains(&index) {
            self.scan_interface(index).collect()
        } else {
            self.on_interface(index)
        };
        self.take_where(&prefixes, |route| {
            let mut interfaces = route.hops.as_slice().iter().filter_map(|hop| hop.interface);
            interfaces.clone().any(|on| on == index)
                && interfaces.all(|on| on == index || is_dead(on))
        })
    }

    /// Takes away what used a next-hop object that is gone.
    pub(crate) fn flush_nexthop(&mut self, id: NextHopId) -> Vec<Entry> {
        let prefixes = self.on_nexthop(id);
        self.by_nexthop.remove(&id);
        self.take_where(&prefixes, |route| route.nexthop_id == Some(id))
    }

    /// Whether another route than this one stands in the same place.
    pub(crate) fn has_peer(&self, route: &Route) -> bool {
        let other = |e: &Entry| is_peer(&e.route, route) && !is_same_path(&e.route, route);
        self.get(route.prefix).iter().any(other)
    }

    /// Takes over the past of an older view of the same routes.
    pub(crate) fn remember(&mut self, older: &Self) {
        for (prefix, entries) in &mut self.routes {
            let Some(past) = older.routes.get(prefix) else { continue };
            for entry in entries {
                if let Some(same) = past.iter().find(|p| p.route == entry.route) {
                    *entry = same.clone();
                }
            }
        }
    }

    /// Whether both views hold the same routes for a prefix.
    pub(crate) fn agrees(&self, other: &Self, prefix: Prefix) -> bool {
        let (ours, theirs) = (self.get(prefix), other.get(prefix));
        ours.iter().map(|e| &e.route).eq(theirs.iter().map(|e| &e.route))
    }

    fn scan_interface(&self, index: IfIndex) -> impl Iterator<Item = Prefix> {
        let uses =
            move |e: &Entry| e.route.hops.as_slice().iter().any(|hop| hop.interface == Some(index));
        self.routes.iter().filter(move |(_, es)| es.iter().any(uses)).map(|(prefix, _)| *prefix)
    }

    fn take_where(&mut self, prefixes: &[Prefix], gone: impl Fn(&Route) -> bool) -> Vec<Entry> {
        let mut taken = Vec::new();
        for prefix in prefixes {
            while let Some(at) = self.get(*prefix).iter().position(|e| gone(&e.route)) {
                taken.push(self.take(*prefix, at));
            }
        }
        taken
    }

    fn take(&mut self, prefix: Prefix, at: usize) -> Entry {
        // Both callers found `at` in the entries of `prefix`.
        let entries = self.routes.get_mut(&prefix).expect("the prefix was just looked up");
        let entry = entries.remove(at);
        self.count -= 1;
        if entries.is_empty() {
            self.routes.remove(&prefix);
            self.unindex(&entry.route);
        }
        entry
    }

    fn index(&mut self, route: &Route) {
        for hop in route.hops.as_slice() {
            if let Some(index) = hop.interface.filter(|index| !self.unindexed.contains(index)) {
                self.by_interface.entry(index).or_default().insert(route.prefix);
            }
        }
        if let Some(id) = route.nexthop_id {
            self.by_nexthop.entry(id).or_default().insert(route.prefix);
        }
        if !route.table.is_builtin() {
            self.by_table.entry(route.table).or_default().insert(route.prefix);
        }
    }

    /// Drops a prefix from the indexes that its last route was in. An index may name a prefix too
    /// many (another of its routes was there); it never lacks one.
    fn unindex(&mut self, route: &Route) {
        fn drop_from<K: std::hash::Hash + Eq>(
            map: &mut HashMap<K, HashSet<Prefix>>,
            key: K,
            prefix: Prefix,
        ) {
            if let std::collections::hash_map::Entry::Occupied(mut set) = map.entry(key) {
                set.get_mut().remove(&prefix);
                if set.get().is_empty() {
                    set.remove();
                }
            }
        }
        for index in route.hops.as_slice().iter().filter_map(|hop| hop.interface) {
            drop_from(&mut self.by_interface, index, route.prefix);
        }
        if let Some(id) = route.nexthop_id {
            drop_from(&mut self.by_nexthop, id, route.prefix);
        }
        drop_from(&mut self.by_table, route.table, route.prefix);
    }
}

/// Routes among which `replace`, `append` and order act.
fn is_peer(a: &Route, b: &Route) -> bool {
    a.table == b.table && a.tos == b.tos && a.metric == b.metric
}

fn is_same_path(a: &Route, b: &Route) -> bool {
    is_peer(a, b) && a.kind == b.kind && a.nexthop_id == b.nexthop_id && a.hops == b.hops
}

/// Whether `whole` is an IPv6 route that has all legs of `part`.
fn holds_legs(whole: &Route, part: &Route) -> bool {
    let hops = whole.hops.as_slice();
    !whole.prefix.is_ipv4()
        && is_peer(whole, part)
        && whole.kind == part.kind
        && part.hops.as_slice().iter().all(|hop| hops.contains(hop))
}

/// Which of the standing routes an announcement speaks of again rather than adds to.
fn position_of_same(entries: &[Entry], route: &Route, replace: bool) -> Option<usize> {
    entries.iter().position(|e| {
        is_same_path(&e.route, route)
            // `ip nexthop replace` announces the routes that use the object as replaced, each in
            // its own place (`fib_info_notify_update`).
            || (route.nexthop_id.is_some()
                && e.route.nexthop_id == route.nexthop_id
                && is_peer(&e.route, route))
            // Another leg joined an IPv6 route: it is announced with all its legs.
            || (!replace && e.route.hops != Hops::None && holds_legs(route, &e.route))
    })
}

fn first_interface(route: &Route) -> Option<IfIndex> {
    route.hops.as_slice().iter().find_map(|hop| hop.interface)
}
