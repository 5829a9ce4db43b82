//! The kernel's tables, kept true by changes and by dumps.
//!
//! A dump is read while changes go on. What the changes say in the meantime is applied at once and
//! also written down; when the dump is complete the same changes are replayed over it, and what
//! comes out is the truth: a change that the dump already held is idempotent, one that it lacked is
//! added, and one made before its part was read is overruled by the later ones that follow it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use super::fib::{Entry, Fib};
use super::links::Links;
use crate::link::LinkKind;
use crate::observation::{KernelChange, KernelState, Neighbour, Place};
use crate::route::{
    Hops, IfIndex, NextHop, NextHopId, NextHopObject, Prefix, Route, Rule, RuleAction, Table,
};
use crate::settings::Settings;
use crate::time::BootTime;

/// How deep groups of next hops are followed. The kernel allows no group within a group but for
/// resilient ones, so two would do.
const GROUP_DEPTH: u8 = 4;

/// Changes that are kept during one dump, at 80 bytes each: three times what a writer can make while
/// a hundred thousand routes are dumped. With more than this the dump is void, and another follows.
const LOG_CAP: usize = 65_536;

/// Dumps in a row that may be void for that. The next one counts with what was kept, so that nobody
/// can keep the tables from being read by changing them without end.
const OUTRUN_CAP: u8 = 3;

/// Links, routes, rules and next hops of the node.
#[derive(Clone, Debug, Default)]
pub(crate) struct KernelTables {
    pub(crate) links: Links,
    pub(crate) fib: Fib,
    /// Each with the time from which it has stood.
    rules: HashMap<Rule, BootTime>,
    rules_by_table: HashMap<Table, BTreeSet<Rule>>,
    rules_by_destination: HashMap<IpAddr, BTreeSet<Rule>>,
    nexthops: HashMap<NextHopId, NextHopObject>,
    /// Each with the time from which it has stood.
    neighbours: BTreeMap<Neighbour, BootTime>,
    dump: Option<Box<Dump>>,
    /// Whether a dump was ever complete.
    complete: bool,
    /// How many dumps in a row were void since too much changed meanwhile.
    outrun: u8,
}

/// A dump in progress.
#[derive(Clone, Debug)]
struct Dump {
    began: BootTime,
    tables: KernelTables,
    log: Vec<(BootTime, KernelChange)>,
    overflowed: bool,
}

/// What a change may have changed verdicts of.
#[derive(Debug, Default)]
pub(crate) struct Affected {
    pub(crate) prefixes: Vec<Prefix>,
    pub(crate) links: Vec<IfIndex>,
    pub(crate) rules: Vec<Rule>,
    pub(crate) neighbours: Vec<Neighbour>,
    /// Routes that are gone, with the legs that they had.
    pub(crate) removed: Vec<Entry>,
}

/// How a dump ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum DumpEnd {
    /// The tables are true.
    Complete,
    /// The tables hold all that stands, and perhaps some that does not: a new dump is needed.
    Unsure,
    /// More changed meanwhile than was kept, and the tables are as before: a new dump is needed.
    Outrun,
    /// There was no dump.
    NotBegun,
}

impl KernelTables {
    pub(crate) fn apply(
        &mut self,
        settings: &Settings,
        at: BootTime,
        change: KernelChange,
    ) -> Affected {
        if let Some(dump) = &mut self.dump {
            if dump.log.len() < LOG_CAP && !dump.overflowed {
                dump.log.push((at, change.clone()));
            } else if !dump.overflowed {
                dump.overflowed = true;
                if self.outrun < OUTRUN_CAP {
                    dump.log = Vec::new();
                    dump.tables = Self::default();
                }
            }
        }
        let mut affected = Affected::default();
        match change {
            KernelChange::Link(link) => {
                let index = link.index;
                let up = link.up;
                self.fib.index_interface(index, !settings.is_uplink(&link));
                let vrf_changed = matches!(link.kind, LinkKind::Vrf(_));
                self.links.apply(at, link);
                // Not only when it was up before: a change that is replayed over a dump may find it
                // down already, with a route from in between.
                if !up {
                    self.flush_interface(index, &mut affected);
                }
                if vrf_changed {
                    self.touch_vrf_tables(&mut affected);
                }
                affected.links.push(index);
            }
            KernelChange::LinkGone(index) => {
                self.flush_interface(index, &mut affected);
                self.fib.forget_interface(index);
                self.links.remove(index);
                // They go with it, and not each of them is told.
                let gone =
                    self.neighbours.extract_if(.., |neighbour, _| neighbour.interface == index);
                affected.neighbours.extend(gone.map(|(neighbour, _)| neighbour));
                affected.links.push(index);
            }
            KernelChange::Route { route, place, writer } => {
                affected.prefixes.push(route.prefix);
                self.fib.add(at, route, place, Some(writer));
            }
            KernelChange::RouteGone(route) => {
                affected.prefixes.push(route.prefix);
                if let Some(entry) = self.fib.remove(&route) {
                    self.bury(entry, &mut affected);
                }
            }
            KernelChange::Rule(rule) => self.add_rule(at, rule, &mut affected),
            KernelChange::RuleGone(rule) => self.remove_rule(&rule, &mut affected),
            KernelChange::NextHop(id, object) => {
                let former = self.nexthops.insert(id, object.clone());
                if former.is_some_and(|former| former != object) {
                    for id in self.users_of(id) {
                        self.fib.turn_nexthop(id, at);
                    }
                }
                self.touch_nexthop(id, &mut affected);
            }
            KernelChange::NextHopGone(id) => {
                self.touch_nexthop(id, &mut affected);
                for entry in self.fib.flush_nexthop(id) {
                    self.bury(entry, &mut affected);
                }
                self.nexthops.remove(&id);
            }
            KernelChange::Neighbour(neighbour) => {
                self.neighbours.entry(neighbour).or_insert(at);
                affected.neighbours.push(neighbour);
            }
            KernelChange::NeighbourGone(neighbour) => {
                if self.neighbours.remove(&neighbour).is_some() {
                    affected.neighbours.push(neighbour);
                }
            }
        }
        affected
    }

    pub(crate) fn begin_dump(&mut self, at: BootTime) {
        let mut tables = Self::default();
        // It will hold about as many, and growing step by step would take half as much again.
        tables.fib.expect(&self.fib);
        self.dump = Some(Box::new(Dump { began: at, tables, log: Vec::new(), overflowed: false }));
    }

    pub(crate) fn dump_part(&mut self, settings: &Settings, part: KernelState) {
        let Some(dump) = &mut self.dump else { return };
        if dump.overflowed && self.outrun < OUTRUN_CAP {
            return;
        }
        let at = dump.began;
        let tables = &mut dump.tables;
        match part {
            KernelState::Link(link) => {
                tables.fib.index_interface(link.index, !settings.is_uplink(&link));
                // What stood before anybody looked has stood for ever.
                let since = if self.complete { at } else { BootTime::ZERO };
                tables.links.apply(since, link);
            }
            KernelState::Route(route) => tables.fib.add(at, route, Place::Behind, None),
            KernelState::Rule(rule) => tables.add_rule(at, rule, &mut Affected::default()),
            KernelState::NextHop(id, object) => {
                tables.nexthops.insert(id, object);
            }
            KernelState::Neighbour(neighbour) => {
                tables.neighbours.insert(neighbour, at);
            }
        }
    }

    pub(crate) fn abort_dump(&mut self) {
        self.dump = None;
    }

    pub(crate) fn end_dump(&mut self, settings: &Settings, affected: &mut Affected) -> DumpEnd {
        let Some(dump) = self.dump.take() else { return DumpEnd::NotBegun };
        let Dump { mut tables, log, overflowed, .. } = *dump;
        if overflowed && self.outrun < OUTRUN_CAP {
            self.outrun += 1;
            return DumpEnd::Outrun;
        }
        self.outrun = 0;
        let mut unsure = overflowed;
        for (at, mut change) in log {
            if let KernelChange::Route { route, place: place @ Place::Instead, .. } = &mut change {
                // It does not say whose place it took, and the dump may have been read after it.
                // To take away too little is put right by the next dump; too much is a route that
                // nobody watches.
                unsure |= tables.fib.has_peer(route);
                *place = Place::Before;
            }
            tables.apply(settings, at, change);
        }
        tables.links.remember(&self.links);
        for (rule, since) in &mut tables.rules {
            *since = self.rules.get(rule).copied().unwrap_or(*since);
        }
        for (neighbour, since) in &mut tables.neighbours {
            *since = self.neighbours.get(neighbour).copied().unwrap_or(*since);
        }
        tables.fib.remember(&self.fib);
        tables.complete = true;
        let older = std::mem::replace(self, tables);
        self.compare(&older, affected);
        if unsure { DumpEnd::Unsure } else { DumpEnd::Complete }
    }

    /// The legs of a route: those of its next-hop object where that is known, since the object can
    /// change under a route that stands.
    pub(crate) fn legs(&self, route: &Route) -> Hops {
        match route.nexthop_id {
            Some(id) if self.nexthops.contains_key(&id) => {
                let mut hops = Vec::new();
                self.collect_legs(id, GROUP_DEPTH, &mut hops);
                hops.into_iter().collect()
            }
            _ => route.hops.clone(),
        }
    }

    /// A rule by which the kernel comes to look `table` up, if there is one.
    pub(crate) fn rule_for(&self, table: Table) -> Option<&Rule> {
        let direct = self.rules_by_table.get(&table).and_then(|rules| rules.first());
        direct.or_else(|| {
            let vrf = |kind| matches!(kind, LinkKind::Vrf(of) if of.is_none_or(|of| of == table));
            let has_vrf = self.links.iter().any(|known| vrf(known.link.kind));
            has_vrf
                .then(|| {
                    self.rules.keys().filter(|rule| rule.action == RuleAction::LookupVrf).min()
                })
                .flatten()
        })
    }

    /// The rules that look `table` up for certain destinations only.
    pub(crate) fn rules_to(&self, table: Table) -> impl Iterator<Item = &Rule> {
        self.rules_by_table.get(&table).into_iter().flatten().filter(|rule| rule.to.is_some())
    }

    /// All rules of a family in the order in which the kernel tries them.
    pub(crate) fn rules(&self, ipv4: bool) -> Vec<&Rule> {
        let mut rules: Vec<&Rule> = self.rules.keys().filter(|rule| rule.ipv4 == ipv4).collect();
        rules.sort();
        rules.sort_by_key(|rule| rule.priority);
        rules
    }

    /// Since when a rule has stood, if it does.
    pub(crate) fn rule_since(&self, rule: &Rule) -> Option<BootTime> {
        self.rules.get(rule).copied()
    }

    /// Since when a neighbour entry has stood, if it does.
    pub(crate) fn neighbour_since(&self, neighbour: &Neighbour) -> Option<BootTime> {
        self.neighbours.get(neighbour).copied()
    }

    /// All neighbour entries that somebody made.
    pub(crate) fn neighbours(&self) -> impl Iterator<Item = &Neighbour> {
        self.neighbours.keys()
    }

    /// Those for this one address.
    pub(crate) fn neighbours_for(&self, address: IpAddr) -> impl Iterator<Item = &Neighbour> {
        self.neighbours.keys().filter(move |neighbour| neighbour.address == address)
    }

    /// The rules for this one destination.
    pub(crate) fn rules_for(&self, address: IpAddr) -> impl Iterator<Item = &Rule> {
        self.rules_by_destination.get(&address).into_iter().flatten()
    }

    fn collect_legs(&self, id: NextHopId, depth: u8, hops: &mut Vec<NextHop>) {
        match self.nexthops.get(&id) {
            Some(NextHopObject::Leg(hop)) => hops.push(*hop),
            Some(NextHopObject::Group(members)) if depth > 0 => {
                for member in members {
                    self.collect_legs(*member, depth - 1, hops);
                }
            }
            _ => {}
        }
    }

    fn flush_interface(&mut self, index: IfIndex, affected: &mut Affected) {
        let links = &self.links;
        let dead = |on: IfIndex| links.standing(on).is_none_or(|known| !known.link.up);
        for entry in self.fib.flush_interface(index, dead) {
            affected.prefixes.push(entry.route.prefix);
            self.bury(entry, affected);
        }
    }

    /// Hands a removed route over with its legs spelt out, since what they rested on may go too.
    fn bury(&self, mut entry: Entry, affected: &mut Affected) {
        entry.route.hops = self.legs(&entry.route);
        affected.removed.push(entry);
    }

    fn touch_nexthop(&self, id: NextHopId, affected: &mut Affected) {
        for id in self.users_of(id) {
            affected.prefixes.extend(self.fib.on_nexthop(id));
        }
    }

    /// The object and the groups that it is a member of.
    fn users_of(&self, id: NextHopId) -> Vec<NextHopId> {
        let has = |object: &NextHopObject| matches!(object, NextHopObject::Group(members) if members.contains(&id));
        let groups =
            self.nexthops.iter().filter(|(_, object)| has(object)).map(|(group, _)| *group);
        std::iter::once(id).chain(groups).collect()
    }

    fn add_rule(&mut self, at: BootTime, rule: Rule, affected: &mut Affected) {
        if let RuleAction::Lookup(table) = rule.action {
            self.rules_by_table.entry(table).or_default().insert(rule.clone());
        }
        if let Some(address) = rule.to.and_then(|to| to.host_address()) {
            self.rules_by_destination.entry(address).or_default().insert(rule.clone());
        }
        self.touch_rule(&rule, affected);
        self.rules.entry(rule).or_insert(at);
    }

    fn remove_rule(&mut self, rule: &Rule, affected: &mut Affected) {
        if self.rules.remove(rule).is_none() {
            return;
        }
        if let Some(address) = rule.to.and_then(|to| to.host_address())
            && let Some(rules) = self.rules_by_destination.get_mut(&address)
        {
            rules.remove(rule);
            if rules.is_empty() {
                self.rules_by_destination.remove(&address);
            }
        }
        if let RuleAction::Lookup(table) = rule.action
            && let Some(rules) = self.rules_by_table.get_mut(&table)
        {
            rules.remove(rule);
        }
        self.touch_rule(rule, affected);
    }

    /// What a rule's coming or going bears on: itself, and the routes that it leads to.
    fn touch_rule(&self, rule: &Rule, affected: &mut Affected) {
        match rule.action {
            RuleAction::Lookup(table) => affected.prefixes.extend(self.fib.in_table(table)),
            RuleAction::LookupVrf => self.touch_vrf_tables(affected),
            _ => {}
        }
        affected.rules.push(rule.clone());
    }

    fn touch_vrf_tables(&self, affected: &mut Affected) {
        for known in self.links.iter() {
            if let LinkKind::Vrf(Some(table)) = known.link.kind {
                affected.prefixes.extend(self.fib.in_table(table));
            }
        }
    }

    /// Finds what differs from an older view.
    fn compare(&self, older: &Self, affected: &mut Affected) {
        for prefix in self.fib.prefixes() {
            if !self.fib.agrees(&older.fib, prefix) {
                affected.prefixes.push(prefix);
            }
        }
        for prefix in older.fib.prefixes() {
            if self.fib.agrees(&older.fib, prefix) {
                continue;
            }
            affected.prefixes.push(prefix);
            for entry in older.fib.get(prefix) {
                if !self.fib.get(prefix).iter().any(|e| e.route == entry.route) {
                    older.bury(entry.clone(), affected);
                }
            }
        }
        for known in self.links.iter() {
            let same = older.links.standing(known.link.index);
            if same.is_none_or(|old| old.link != known.link) {
                affected.links.push(known.link.index);
            }
        }
        for known in older.links.iter() {
            if self.links.standing(known.link.index).is_none() {
                affected.links.push(known.link.index);
            }
        }
        let new = self.rules.keys().filter(|rule| !older.rules.contains_key(rule));
        let gone = older.rules.keys().filter(|rule| !self.rules.contains_key(rule));
        for rule in new.chain(gone) {
            self.touch_rule(rule, affected);
        }
        for (id, object) in &self.nexthops {
            if older.nexthops.get(id) != Some(object) {
                self.touch_nexthop(*id, affected);
            }
        }
    }
}
