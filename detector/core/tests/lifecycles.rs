//! The lives of legitimate pods raise nothing, whatever the interleaving.
//!
//! Each case is a minute of a node: pods are made, restarted under their names, finished and
//! deleted, addresses go from one to the next at once, Felix starts anew, and the API's watches lag
//! behind by up to a second and a half, kubelet's status by up to eight.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use common::{Harness, address};
use detector_core::engine::Output;
use detector_core::finding::{Finding, State, Victim};
use detector_core::link::{Link, LinkKind};
use detector_core::observation::{
    Answer, KernelChange, KernelState, Observation, Place, Question, Reply, What,
};
use detector_core::route::{Hops, IfIndex, NextHop, Prefix, Route, RouteKind, Table};
use detector_core::time::BootTime;
use detector_core::workload::{Pod, PodKey, Uid};
use proptest::prelude::*;

const NAMES: usize = 4;
const POOL: u8 = 5;

/// How long after it was shown a claim has reached the engine and has settled.
const SETTLED: u64 = 1_500 + 2_000 + 100;

/// When the name of a finished Job's pod is free again: its object stays.
const NEVER: u64 = u64::MAX;

/// How one pod lives. Times are in milliseconds.
#[derive(Clone, Debug)]
struct Life {
    name: usize,
    start: u64,
    /// From the pod's object to its interface: images, volumes.
    setup: u64,
    annotated_after: u64,
    status_after: u64,
    lasts: u64,
    metric_flap: bool,
    felix_restart: Option<u64>,
    /// A Job's pod: its phase says so this long after its interface is gone, and its object stays.
    finishes: Option<u64>,
    grace: u64,
    deleted_after: u64,
    eager_reuse: bool,
    route_goes_first: bool,
}

fn any_life() -> impl Strategy<Value = Life> {
    let times = (0..NAMES, 0..20_000u64, 0..3_000u64, 1..200u64, 0..8_000u64, 500..20_000u64);
    let ends = (
        any::<bool>(),
        proptest::option::of(0..400u64),
        proptest::option::weighted(0.2, 0..500u64),
        0..3_000u64,
        0..2_000u64,
    );
    (times, ends, any::<bool>(), any::<bool>()).prop_map(|(times, ends, eager, first)| {
        let (name, start, setup, annotated_after, status_after, lasts) = times;
        let (metric_flap, felix_restart, finishes, grace, deleted_after) = ends;
        Life {
            name,
            start,
            setup,
            annotated_after,
            status_after,
            lasts,
            metric_flap,
            felix_restart,
            finishes,
            grace,
            deleted_after,
            eager_reuse: eager,
            route_goes_first: first,
        }
    })
}

/// All that happens on the node and in the API, by time.
#[derive(Default)]
struct Story {
    kernel: Vec<(u64, KernelChange)>,
    /// What the API server holds from then on; `None` where the object is gone.
    api: Vec<(u64, PodKey, Option<Pod>, Uid)>,
    spans: Vec<Span>,
}

/// From when until when a pod was there for all to see.
struct Span {
    shown: u64,
    ends: u64,
    address: IpAddr,
    key: PodKey,
}

impl Story {
    fn tell(lives: &[Life]) -> Self {
        let mut story = Self::default();
        let mut free: Vec<(u64, IpAddr)> = (0..POOL).map(|n| (0, address(n))).collect();
        let mut name_free = [0u64; NAMES];
        let mut lives = lives.to_vec();
        lives.sort_by_key(|life| life.start);
        for (n, life) in lives.iter().enumerate() {
            if name_free[life.name] == NEVER {
                continue;
            }
            let start = life.start.max(name_free[life.name]);
            let plugged = start + life.setup;
            free.sort_unstable();
            let usable: Vec<usize> = (0..free.len()).filter(|at| free[*at].0 <= plugged).collect();
            let Some(pick) = (if life.eager_reuse { usable.last() } else { usable.first() }) else {
                continue;
            };
            let (_, address) = free.remove(*pick);
            let gone = story.live(n, life, start, plugged, address);
            free.push((gone + 1, address));
            name_free[life.name] = gone + life.deleted_after + 10;
            if life.finishes.is_some() {
                name_free[life.name] = NEVER;
            }
        }
        story.kernel.sort_by_key(|(at, _)| *at);
        story.api.sort_by_key(|(at, ..)| *at);
        story
    }

    /// One life; gives when its interface was gone.
    fn live(&mut self, n: usize, life: &Life, start: u64, plugged: u64, address: IpAddr) -> u64 {
        let uid = Uid(format!("uid-{n}").into());
        let mut pod = common::pod(life.name, None);
        pod.uid = uid.clone();
        let key = pod.key.clone();
        let mut api = |at: u64, pod: &Pod| {
            self.api.push((at, key.clone(), Some(pod.clone()), uid.clone()));
        };
        api(start, &pod);
        pod.annotated_addresses = vec![address];
        pod.sandbox = Some(format!("sandbox-{n}").into());
        api(plugged + life.annotated_after, &pod);
        pod.addresses = vec![address];
        let shown = plugged + life.annotated_after + life.status_after;
        api(shown, &pod);
        let end = (plugged + life.lasts).max(shown + 1);
        let gone = end + life.grace;
        if let Some(late) = life.finishes {
            pod.finished = true;
            api(gone + late, &pod);
        } else {
            pod.terminating = true;
            api(end, &pod);
            pod.annotated_addresses = Vec::new();
            api(gone, &pod);
            self.api.push((gone + life.deleted_after + 1, key.clone(), None, uid));
        }

        self.spans.push(Span { shown, ends: end, address, key: key.clone() });
        let index = IfIndex::new(u32::try_from(n).unwrap() + 100).unwrap();
        let name = key.interface("cali").unwrap();
        let link = Link { index, name, kind: LinkKind::Container, up: true };
        self.kernel.push((plugged, KernelChange::Link(link)));
        let route = |metric| route(address, index, metric);
        let add = |metric| KernelChange::Route {
            route: route(metric),
            place: Place::Alone,
            writer: 7.into(),
        };
        let metric = if life.metric_flap { 1024 } else { 0 };
        self.kernel.push((plugged, add(0)));
        if life.metric_flap {
            self.kernel.push((plugged + 3, KernelChange::RouteGone(route(0))));
            self.kernel.push((plugged + 4, add(metric)));
        }
        if let Some(after) = life.felix_restart.filter(|after| plugged + 10 + after + 50 < gone) {
            self.kernel.push((plugged + 10 + after, KernelChange::RouteGone(route(metric))));
            self.kernel.push((plugged + 10 + after + 50, add(metric)));
        }
        if life.route_goes_first {
            self.kernel.push((gone, KernelChange::RouteGone(route(metric))));
        }
        self.kernel.push((gone, KernelChange::LinkGone(index)));
        gone
    }

    /// Has the pod that is always there take the address of one of the others, in the middle of its
    /// life and for a while; gives the address. `None` where none lives long enough to be told of.
    fn attack(&mut self, pick: usize, lasts: u64) -> Option<(IpAddr, PodKey)> {
        // Told of at the latest a lag after it was shown, settled by then, and no longer than its
        // interface stands.
        let long_enough = |span: &&Span| span.shown + SETTLED + lasts < span.ends;
        let victims: Vec<&Span> = self.spans.iter().filter(long_enough).collect();
        let victim = *victims.get(pick % victims.len().max(1))?;
        let (from, address, key) = (victim.shown + SETTLED, victim.address, victim.key.clone());
        let route = route(address, evil_index(), 9);
        let add =
            KernelChange::Route { route: route.clone(), place: Place::Alone, writer: 7.into() };
        self.kernel.push((from, add));
        self.kernel.push((from + lasts, KernelChange::RouteGone(route)));
        self.kernel.sort_by_key(|(at, _)| *at);
        Some((address, key))
    }

    /// The API server's pods with an address at a time.
    fn claimants(&self, at: u64, address: IpAddr) -> Vec<Pod> {
        let mut now: BTreeMap<&PodKey, &Option<Pod>> = BTreeMap::new();
        for (_, key, pod, _) in self.api.iter().filter(|(since, ..)| *since <= at) {
            now.insert(key, pod);
        }
        let pods = now.into_values().flatten();
        pods.filter(|pod| pod.addresses.first() == Some(&address)).cloned().collect()
    }
}

fn route(to: IpAddr, by: IfIndex, metric: u32) -> Route {
    let hops = Hops::One(NextHop { interface: Some(by), gateway: None });
    common::route(Prefix::host(to), Table::MAIN, metric, RouteKind::Unicast, hops)
}

fn evil_index() -> IfIndex {
    IfIndex::new(50).unwrap()
}

/// A pod that is there from the first.
fn evil() -> Pod {
    let key = PodKey::new("default", "evil").unwrap();
    Pod { key, uid: Uid("evil".into()), ..common::pod(0, Some(66)) }
}

/// Plays the story to an engine; gives all that it found.
fn play(story: &Story, lags: &[u64]) -> Vec<Finding> {
    let mut harness = Harness::new(common::Cluster { pods: Vec::new() });
    harness.observe_all(Harness::cluster_told());
    let name = evil().key.interface("cali").unwrap();
    let link = Link { index: evil_index(), name, kind: LinkKind::Container, up: true };
    harness.observe_all(vec![
        What::SnapshotBegin,
        What::SnapshotPart(KernelState::Link(link)),
        What::SnapshotEnd,
        What::PodsReset(vec![evil()]),
    ]);
    let origin = harness.now;
    let at = |ms: u64| origin.after(Duration::from_millis(ms + 1));
    let mut coming: Vec<(BootTime, What)> = Vec::new();
    let mut last = 0;
    for (n, (since, key, pod, uid)) in story.api.iter().enumerate() {
        last = last.max(since + lags[n % lags.len()]);
        let what = match pod {
            Some(pod) => What::PodApplied(pod.clone()),
            None => What::PodDeleted(key.clone(), uid.clone()),
        };
        coming.push((at(last), what));
    }
    coming.extend(
        story.kernel.iter().map(|(since, change)| (at(*since), What::Kernel(change.clone()))),
    );
    // Stable: the kernel's order, and the API's, stay what they are.
    coming.sort_by_key(|(at, _)| *at);
    let end = coming.last().map_or(origin, |(at, _)| *at).after(Duration::from_mins(1));
    let mut coming = std::collections::VecDeque::from(coming);
    let mut answers: Vec<(BootTime, Answer)> = Vec::new();
    let mut found = Vec::new();
    loop {
        let engine = &mut harness.engine;
        let news = coming.front().map(|(at, _)| *at);
        let answer = answers.iter().map(|(at, _)| *at).min();
        let deadline = engine.next_deadline();
        let Some(now) =
            [news, answer, deadline].into_iter().flatten().min().filter(|at| *at <= end)
        else {
            return found;
        };
        if answer == Some(now) {
            let ready = answers.iter().position(|(at, _)| *at == now).unwrap();
            let (_, answer) = answers.swap_remove(ready);
            engine.observe(now, Observation { at: now, what: What::Answer(answer) });
        } else if news == Some(now) {
            let (_, what) = coming.pop_front().unwrap();
            engine.observe(now, Observation { at: now, what });
        } else {
            engine.tick(now);
        }
        while let Some(output) = engine.poll() {
            match output {
                Output::Finding(finding) => found.push(*finding),
                Output::Question(question) => {
                    let Question::Claimants(address) = question else {
                        panic!("this world has no IPAM, but {question:?} was asked");
                    };
                    let ms = now.since(origin).as_millis().saturating_sub(1);
                    let claimants = Ok(story.claimants(u64::try_from(ms).unwrap(), address));
                    let due = now.after(Duration::from_millis(5));
                    let reply = Reply::Claimants(address, claimants);
                    answers.push((due, Answer { asked: now, reply }));
                }
                _ => {}
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 10_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn legitimate_pods_raise_nothing(
        lives in proptest::collection::vec(any_life(), 1..8),
        lags in proptest::collection::vec(0..1_500u64, 1..6),
    ) {
        let story = Story::tell(&lives);
        let found: Vec<_> = play(&story, &lags).into_iter().map(|finding| finding.charge).collect();
        prop_assert_eq!(found, vec![]);
    }

    #[test]
    fn one_hijack_among_them_is_found_and_nothing_else(
        lives in proptest::collection::vec(any_life(), 1..8),
        lags in proptest::collection::vec(0..1_500u64, 1..6),
        pick in any::<usize>(),
        lasts in 1..3_000u64,
    ) {
        let mut story = Story::tell(&lives);
        let Some((address, victim)) = story.attack(pick, lasts) else { return Ok(()) };
        let found = play(&story, &lags);
        let opened: Vec<_> = found.iter().filter(|f| f.state == State::Opened).collect();
        prop_assert_eq!(opened.len(), 1, "{:?}", found);
        prop_assert_eq!(opened[0].key.subject.prefix(), Some(Prefix::host(address)));
        prop_assert_eq!(opened[0].charge.attacker.pod.as_ref(), Some(&evil().key));
        let named = matches!(&opened[0].charge.victim, Victim::Pod { key, .. } if *key == victim);
        prop_assert!(named, "{:?}", opened[0].charge.victim);
        prop_assert_eq!(found.last().map(|f| f.state), Some(State::Closed));
    }
}
