//! The engine's invariants, each over ten thousand random worlds.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use std::collections::BTreeSet;
use std::time::Duration;

use common::*;
use detector_core::observation::{KernelChange, Place, What};
use detector_core::route::{Hops, NextHop, Prefix, Route, RouteKind, RuleAction, Table};
use proptest::prelude::*;

fn cases() -> ProptestConfig {
    ProptestConfig { cases: 10_000, failure_persistence: None, ..ProptestConfig::default() }
}

fn asks() -> impl Strategy<Value = Vec<Ask>> {
    proptest::collection::vec(any_ask(), 0..24)
}

/// All that the kernel announces when it is asked for these things one after the other.
fn announced(kernel: &mut Kernel, asks: &[Ask]) -> Vec<What> {
    asks.iter().flat_map(|ask| kernel.ask(*ask)).map(What::Kernel).collect()
}

/// All that the cluster's sources say.
fn told(cluster: &Cluster) -> Vec<What> {
    let mut told = Harness::cluster_told();
    told.push(What::PodsReset(cluster.local()));
    told
}

/// Two sources' words in one order out of many.
fn interleave(a: Vec<What>, b: Vec<What>, picks: &[bool]) -> Vec<What> {
    let (mut a, mut b) = (a.into_iter(), b.into_iter());
    let mut merged = Vec::new();
    for pick in picks.iter().copied().chain(std::iter::repeat(true)) {
        let next = if pick { a.next().or_else(|| b.next()) } else { b.next().or_else(|| a.next()) };
        match next {
            Some(what) => merged.push(what),
            None => return merged,
        }
    }
    merged
}

fn run(cluster: &Cluster, start: &Kernel, words: Vec<What>) -> Harness {
    let mut harness = Harness::new(cluster.clone());
    harness.snapshot(start);
    for what in words {
        harness.observe(what);
    }
    harness.settle();
    harness
}

/// What ought to stand, said as slowly and plainly as possible.
fn oracle(kernel: &Kernel, cluster: &Cluster) -> BTreeSet<(String, &'static str)> {
    let link = |n| kernel.links.iter().find(|l| l.index == index(n));
    let local = |n: usize| cluster.pods.iter().find(|p| n < LOCAL_PODS && p.key == key(n));
    let mut wrong = BTreeSet::new();
    let owner_here = |to: Prefix, but: Option<usize>| {
        (0..LOCAL_PODS).any(|n| {
            but != Some(n)
                && link(n).is_some()
                && local(n).is_some_and(|p| p.addresses.iter().any(|a| to.contains(*a)))
        })
    };
    let owner = |to: Prefix, but: Option<usize>| {
        let claims = |n: usize| {
            but != Some(n)
                && cluster
                    .pods
                    .iter()
                    .any(|p| p.key == key(n) && p.addresses.iter().any(|a| Prefix::host(*a) == to))
        };
        (0..LOCAL_PODS + 2).any(claims)
    };
    let ruled = kernel.rules.iter().any(|r| r.action == RuleAction::Lookup(Table(100)));
    for Route { table, prefix, kind, hops, .. } in &kernel.routes {
        if *table == Table(100) && !ruled {
            continue;
        }
        if *kind == RouteKind::Blackhole {
            if owner(*prefix, None) {
                wrong.insert((format!("{prefix} blackhole"), "hijack"));
            }
            continue;
        }
        let on = hops.as_slice()[0].interface;
        let n = (0..LOCAL_PODS + 2).find(|n| Some(index(*n)) == on).unwrap();
        let at = format!("{prefix} dev {}", name(n));
        if n > LOCAL_PODS {
            if prefix.is_host() && owner_here(*prefix, None) {
                wrong.insert((at, "hijack"));
            }
        } else if !prefix.is_host() {
            wrong.insert((at, "hijack"));
        } else if local(n).is_some_and(|p| p.addresses.iter().any(|a| prefix.contains(*a))) {
            // Its own.
        } else if owner(*prefix, (n < LOCAL_PODS).then_some(n)) {
            wrong.insert((at, "hijack"));
        } else {
            match local(n) {
                Some(pod) if pod.addresses.is_empty() => {}
                Some(_) => drop(wrong.insert((at, "hijack"))),
                None => drop(wrong.insert((at, "unproven"))),
            }
        }
    }
    // Rules past a pod's own route, by the uplink.
    for rule in &kernel.rules {
        let to = rule.to.unwrap();
        let covers = |r: &&Route| r.table == Table(100) && r.prefix.covers(&to);
        let best =
            kernel.routes.iter().filter(covers).min_by_key(|r| (32 - r.prefix.length(), r.metric));
        let by_uplink = |r: &Route| r.hops.as_slice()[0].interface == Some(index(LOCAL_PODS + 1));
        if owner_here(to, None) && best.is_some_and(by_uplink) {
            wrong.insert((format!("rule {rule} dev uplink0"), "hijack"));
        }
    }
    wrong
}

#[test]
fn a_dump_that_is_outrun_is_void_but_not_for_ever() {
    // Each dump misses more changes than are kept: three are void, the fourth counts.
    let mut harness = Harness::new(Cluster { pods: Vec::new() });
    let cluster = harness.cluster.clone();
    harness.observe_all(told(&cluster));
    harness.snapshot(&Kernel::with_links());
    let mut kernel = Kernel::with_links();
    let lost = Ask::Add {
        to: 1,
        length: 32,
        by: LOCAL_PODS + 1,
        metric: 0,
        table: Table::MAIN,
        how: How::Exclusive,
    };
    kernel.ask(lost);
    let noise = Ask::Add {
        to: 2,
        length: 32,
        by: LOCAL_PODS + 1,
        metric: 0,
        table: Table::MAIN,
        how: How::Exclusive,
    };
    for round in 1..=4 {
        harness.resync = false;
        harness.observe(What::SnapshotBegin);
        for _ in 0..33_000 {
            for change in kernel.ask(noise).into_iter().chain(kernel.ask(Ask::Delete { pick: 1 })) {
                harness.observe(What::Kernel(change));
            }
        }
        for state in kernel.dump() {
            harness.observe(What::SnapshotPart(state));
        }
        harness.observe(What::SnapshotEnd);
        assert!(harness.resync, "each asks for another");
        let routes = harness.engine.holdings().routes;
        assert_eq!(routes, usize::from(round == 4), "round {round}");
    }
    harness.snapshot(&kernel);
    assert_eq!(harness.engine.holdings().routes, 1);
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn the_judge_agrees_with_a_slow_oracle(cluster in any_cluster(), asks in asks()) {
        let start = Kernel::with_links();
        let mut kernel = start.clone();
        let mut words = told(&cluster);
        words.extend(announced(&mut kernel, &asks));
        let harness = run(&cluster, &start, words);
        let standing: BTreeSet<(String, &str)> =
            harness.standing().into_iter().map(|(key, certainty, _)| (key, certainty)).collect();
        prop_assert_eq!(standing, oracle(&kernel, &cluster));
        prop_assert!(harness.lives_are_whole());
    }

    #[test]
    fn the_order_of_independent_sources_does_not_matter(
        cluster in any_cluster(),
        asks in asks(),
        one in proptest::collection::vec(any::<bool>(), 24),
        other in proptest::collection::vec(any::<bool>(), 24),
    ) {
        let start = Kernel::with_links();
        let words = announced(&mut start.clone(), &asks);
        let a = run(&cluster, &start, interleave(words.clone(), told(&cluster), &one));
        let b = run(&cluster, &start, interleave(words, told(&cluster), &other));
        prop_assert_eq!(a.standing(), b.standing());
    }

    #[test]
    fn an_observation_made_twice_equals_one(cluster in any_cluster(), asks in asks()) {
        let start = Kernel::with_links();
        let mut words = told(&cluster);
        words.extend(announced(&mut start.clone(), &asks));
        let once = run(&cluster, &start, words.clone());
        let twice = words.into_iter().flat_map(|what| [what.clone(), what]);
        let twice = run(&cluster, &start, twice.collect());
        prop_assert_eq!(once.standing(), twice.standing());
        prop_assert_eq!(once.engine.holdings().routes, twice.engine.holdings().routes);
    }

    #[test]
    fn a_dump_equals_the_changes_that_led_to_it(cluster in any_cluster(), asks in asks()) {
        let start = Kernel::with_links();
        let mut kernel = start.clone();
        let mut words = told(&cluster);
        words.extend(announced(&mut kernel, &asks));
        let changes = run(&cluster, &start, words);
        let dump = run(&cluster, &kernel, told(&cluster));
        prop_assert_eq!(changes.standing(), dump.standing());
        prop_assert_eq!(changes.engine.holdings().routes, kernel.routes.len());
        prop_assert_eq!(dump.engine.holdings().routes, kernel.routes.len());
    }

    #[test]
    fn a_dump_read_while_changes_go_on_still_tells_the_truth(
        cluster in any_cluster(),
        before in asks(),
        during in asks(),
        reads in proptest::collection::vec(0..24usize, 3),
        loses in any::<bool>(),
    ) {
        // What happened before may be lost altogether: a dump is how losses heal.
        let mut kernel = Kernel::with_links();
        let lost = announced(&mut kernel, &before);
        let mut harness = Harness::new(cluster.clone());
        for what in told(&cluster) {
            harness.observe(what);
        }
        harness.snapshot(&Kernel::with_links());
        if !loses {
            harness.observe_all(lost);
        }
        harness.observe(What::SnapshotBegin);
        // Links, rules and routes are read at different moments.
        let mut parts = reads;
        parts.sort_unstable();
        let mut words = Vec::new();
        for (at, ask) in during.iter().enumerate() {
            words.extend(announced(&mut kernel, &[*ask]));
            for (part, _) in parts.iter().enumerate().filter(|(_, read)| **read == at) {
                let wanted = kernel.dump().into_iter().filter(|state| match state {
                    detector_core::observation::KernelState::Link(_) => part == 0,
                    detector_core::observation::KernelState::Rule(_) => part == 1,
                    _ => part == 2,
                });
                words.extend(wanted.map(What::SnapshotPart));
            }
        }
        for (part, _) in parts.iter().enumerate().filter(|(_, read)| **read >= during.len()) {
            let wanted = kernel.dump().into_iter().filter(|state| match state {
                detector_core::observation::KernelState::Link(_) => part == 0,
                detector_core::observation::KernelState::Rule(_) => part == 1,
                _ => part == 2,
            });
            words.extend(wanted.map(What::SnapshotPart));
        }
        harness.observe_all(words);
        harness.observe(What::SnapshotEnd);
        let superset = |harness: &Harness| harness.engine.holdings().routes >= kernel.routes.len();
        prop_assert!(superset(&harness), "a route is missing after the first dump");
        if std::mem::take(&mut harness.resync) {
            harness.snapshot(&kernel);
        }
        harness.settle();
        let truth = run(&cluster, &kernel, told(&cluster));
        prop_assert_eq!(harness.standing(), truth.standing());
        prop_assert_eq!(harness.engine.holdings().routes, kernel.routes.len());
    }

    #[test]
    fn when_all_is_torn_down_nothing_stands(cluster in any_cluster(), asks in asks()) {
        let start = Kernel::with_links();
        let mut kernel = start.clone();
        let mut words = told(&cluster);
        words.extend(announced(&mut kernel, &asks));
        while !kernel.routes.is_empty() {
            words.extend(announced(&mut kernel, &[Ask::Delete { pick: 0 }]));
        }
        for to in 0..ADDRESSES {
            words.extend(announced(&mut kernel, &[Ask::Rule { to, present: false }]));
        }
        let harness = run(&cluster, &start, words);
        prop_assert_eq!(harness.standing(), vec![]);
        prop_assert_eq!(harness.engine.holdings().routes, 0);
        prop_assert_eq!(harness.engine.holdings().waiting, 0);
        prop_assert_eq!(harness.engine.next_deadline(), None);
        prop_assert!(harness.lives_are_whole());
    }

    #[test]
    fn a_tick_at_the_deadline_moves_the_deadline(cluster in any_cluster(), asks in asks()) {
        let mut kernel = Kernel::with_links();
        let mut harness = Harness::new(cluster.clone());
        harness.snapshot(&kernel);
        for what in announced(&mut kernel, &asks).into_iter().chain(told(&cluster)) {
            harness.observe(what);
        }
        for _ in 0..200 {
            let Some(next) = harness.engine.next_deadline() else { break };
            harness.now = harness.now.max(next);
            harness.engine.tick(harness.now);
            harness.listen();
            if let Some(after) = harness.engine.next_deadline() {
                prop_assert!(after > harness.now, "{after:?} is not after {:?}", harness.now);
            }
        }
    }

    #[test]
    fn what_waits_never_exceeds_its_cap_and_nothing_is_lost(
        cluster in any_cluster(),
        routes in 60..200u32,
    ) {
        // More doubtful routes at once than may wait: each is judged all the same, in its turn.
        let mut harness = Harness::new(cluster.clone());
        harness.snapshot(&Kernel::with_links());
        harness.observe_all(told(&cluster));
        let nobody = index(LOCAL_PODS);
        for n in 0..routes {
            let to = std::net::Ipv4Addr::from(0x0a63_0000 + n);
            let hops = Hops::One(NextHop { interface: Some(nobody), gateway: None });
            let prefix = Prefix::host(to.into());
            let route = route(prefix, Table::MAIN, 0, RouteKind::Unicast, hops);
            harness.observe(What::Kernel(KernelChange::Route {
                route,
                place: Place::Alone,
                writer: 7.into(),
            }));
            prop_assert!(harness.engine.holdings().waiting <= 64);
        }
        harness.pass(Duration::from_mins(2));
        prop_assert_eq!(harness.engine.standing().len(), routes as usize);
    }
}
