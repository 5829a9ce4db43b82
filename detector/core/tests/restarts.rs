//! A restart of the agent changes nothing about what stands: nothing is opened twice, nothing is
//! forgotten, and what ended meanwhile is closed once.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use common::{Ask, Cluster, Harness, How, Kernel, LOCAL_PODS, address, any_ask, any_cluster};
use detector_core::claim::Ipam;
use detector_core::finding::{Finding, State};
use detector_core::observation::{Sense, What};
use detector_core::route::{Prefix, Table};
use detector_core::traffic::{Count, Side, Tally, Traffic};
use proptest::prelude::*;

/// What is told at a start, beside the kernel's tables, in this order.
fn words(cluster: &Cluster, order: &[usize]) -> Vec<What> {
    let mut words = Harness::cluster_told();
    words.push(What::PodsReset(cluster.local()));
    words.push(What::ServicesReset(Vec::new()));
    words.push(What::Ipam(Ipam::Other));
    words.push(What::Blind(Sense::Allowances, None));
    let mut ordered: Vec<(usize, What)> =
        words.into_iter().enumerate().map(|(at, what)| (order[at % order.len()], what)).collect();
    ordered.sort_by_key(|(rank, _)| *rank);
    ordered.into_iter().map(|(_, what)| what).collect()
}

/// An agent that starts with these findings in its state file.
fn start(
    kernel: &Kernel,
    cluster: &Cluster,
    order: &[usize],
    kernel_at: usize,
    stood: Vec<Finding>,
) -> Harness {
    let mut harness = Harness::new(cluster.clone());
    harness.engine.restore(harness.now, stood);
    let words = words(cluster, order);
    let kernel_at = kernel_at % (words.len() + 1);
    for (at, what) in words.into_iter().enumerate() {
        if at == kernel_at {
            harness.snapshot(kernel);
        }
        harness.observe(what);
    }
    if kernel_at == 6 {
        harness.snapshot(kernel);
    }
    harness.settle();
    harness
}

fn keys(harness: &Harness) -> BTreeSet<String> {
    harness.engine.standing().iter().map(|finding| finding.key.to_string()).collect()
}

fn stood(harness: &Harness) -> Vec<Finding> {
    harness.engine.standing().into_iter().cloned().collect()
}

/// How often each key was told in each state.
fn told(harness: &Harness) -> BTreeMap<(String, State), usize> {
    let mut told = BTreeMap::new();
    for finding in &harness.findings {
        *told.entry((finding.key.to_string(), finding.state)).or_default() += 1;
    }
    told
}

/// One pod here is robbed by another.
fn robbed() -> (Kernel, Cluster) {
    let pods = (0..LOCAL_PODS + 2).map(|n| common::pod(n, Some(u8::try_from(n).unwrap())));
    let mut kernel = Kernel::with_links();
    let victim = u8::try_from(LOCAL_PODS).unwrap();
    let (length, metric, table, how) = (32, 0, Table::MAIN, How::Exclusive);
    kernel.ask(Ask::Add { to: victim, length, by: 0, metric, table, how });
    (kernel, Cluster { pods: pods.collect() })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4_000))]

    #[test]
    fn nothing_is_opened_twice_and_nothing_is_forgotten(
        cluster in any_cluster(),
        before in proptest::collection::vec(any_ask(), 0..20),
        meanwhile in proptest::collection::vec(any_ask(), 0..4),
        order in proptest::collection::vec(0_usize..100, 6),
        kernel_at in 0_usize..7,
    ) {
        let mut kernel = Kernel::with_links();
        for ask in before {
            kernel.ask(ask);
        }
        let earlier = start(&kernel, &cluster, &[0], 6, Vec::new());
        let stood = stood(&earlier);
        for ask in meanwhile {
            kernel.ask(ask);
        }
        let again = start(&kernel, &cluster, &order, kernel_at, stood.clone());
        let fresh = start(&kernel, &cluster, &order, kernel_at, Vec::new());
        prop_assert_eq!(keys(&again), keys(&fresh));
        let told = told(&again);
        let known: BTreeSet<String> = stood.iter().map(|f| f.key.to_string()).collect();
        let count = |key: &String, state| told.get(&(key.clone(), state)).copied().unwrap_or(0);
        for key in &known {
            prop_assert_eq!(count(key, State::Opened), 0, "{} is opened again", key);
            let over = usize::from(!keys(&again).contains(key));
            prop_assert_eq!(count(key, State::Closed), over, "{} ends otherwise than once", key);
        }
        for key in keys(&again).difference(&known) {
            prop_assert_eq!(count(key, State::Opened), 1, "{} is not told of", key);
        }

        // With an API server that says nothing, what stands is not closed, and not opened again when
        // the server is back.
        let mut blind = Harness::new(cluster.clone());
        blind.now = earlier.now;
        blind.engine.restore(blind.now, stood);
        for sense in [Sense::Pods, Sense::Nodes, Sense::Services, Sense::Feature, Sense::Pools] {
            blind.observe(What::Blind(sense, Some("the API server is down".into())));
        }
        blind.snapshot(&kernel);
        blind.settle();
        let stand = keys(&fresh);
        // What cannot be judged is not looked at again and again.
        let (end, mut ticks) = (blind.now.after(Duration::from_secs(10)), 0);
        while let Some(next) = blind.engine.next_deadline().filter(|next| *next <= end) {
            blind.now = blind.now.max(next);
            blind.engine.tick(blind.now);
            blind.listen();
            ticks += 1;
            prop_assert!(ticks < 1_000, "it ticks without end");
        }
        for finding in &blind.findings {
            let key = finding.key.to_string();
            prop_assert!(
                !(known.contains(&key) && stand.contains(&key)),
                "{} is {:?} by an agent that sees nothing", key, finding.state
            );
        }
        for sense in [Sense::Pods, Sense::Nodes, Sense::Services, Sense::Feature, Sense::Pools] {
            blind.observe(What::Blind(sense, None));
        }
        blind.observe_all(words(&cluster, &order));
        blind.settle();
        prop_assert_eq!(keys(&blind), stand);
        for finding in blind.findings.iter().filter(|finding| finding.state == State::Opened) {
            prop_assert!(!known.contains(&finding.key.to_string()), "{} is opened again", finding.key);
        }
    }
}

#[test]
fn a_cut_api_closes_nothing_and_takes_nothing_back() {
    let (kernel, cluster) = robbed();
    let earlier = start(&kernel, &cluster, &[0], 6, Vec::new());
    let stood = stood(&earlier);
    assert_eq!(stood.len(), 1, "{:?}", earlier.standing());
    let mut again = Harness::new(cluster.clone());
    again.now = earlier.now;
    again.engine.restore(again.now, stood.clone());
    for sense in [Sense::Pods, Sense::Nodes, Sense::Services, Sense::Feature, Sense::Pools] {
        again.observe(What::Blind(sense, Some("the API server is down".into())));
    }
    again.snapshot(&kernel);
    again.settle();
    assert_eq!(again.findings, []);
    assert_eq!(again.engine.standing()[0].charge.certainty, stood[0].charge.certainty);
    // What the kernel has taken away is over, whoever is down.
    let gone = Prefix::host(address(u8::try_from(LOCAL_PODS).unwrap()));
    let gone = kernel.routes.iter().find(|route| route.prefix == gone).unwrap().clone();
    again.observe(What::Kernel(detector_core::observation::KernelChange::RouteGone(gone)));
    assert_eq!(again.findings.len(), 1);
    assert_eq!(again.findings[0].state, State::Closed);
    assert_eq!(again.findings[0].began, stood[0].began);
}

#[test]
fn packets_before_and_after_a_restart_are_added_up() {
    let (kernel, cluster) = robbed();
    let victim = address(u8::try_from(LOCAL_PODS).unwrap());
    let count = |harness: &mut Harness, packets| {
        let (first, last) = (harness.now, harness.now);
        let tally = Tally { packets, bytes: packets * 100, first, last };
        let side = Side::Reached(common::index(0));
        let counts = vec![Count { side, flow: None, tally }];
        harness.observe(What::Traffic(Traffic { address: victim, counts }));
    };
    let mut earlier = start(&kernel, &cluster, &[0], 6, Vec::new());
    earlier.observe(What::Counting(true));
    count(&mut earlier, 40);
    let stood = stood(&earlier);
    assert_eq!(stood[0].charge.traffic.as_ref().unwrap().packets, 40);

    let mut again = start(&kernel, &cluster, &[0], 6, stood);
    again.observe(What::Counting(true));
    again.pass(Duration::from_secs(1));
    count(&mut again, 2);
    let traffic = again.engine.standing()[0].charge.traffic.clone().unwrap();
    assert_eq!((traffic.packets, traffic.bytes), (42, 4_200));
    assert!(again.findings.iter().all(|finding| finding.state != State::Opened));
}
