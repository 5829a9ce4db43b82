//! What the engine makes of packets, connections and translations, and whom it wants watched.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use detector_core::engine::{Engine, Output};
use detector_core::finding::{Certainty, Finding, Means, Severity, State};
use detector_core::observation::{
    Answer, KernelChange, KernelState, Observation, Place, Question, Reply, What,
};
use detector_core::policy::Feature;
use detector_core::route::{Hops, NextHop, Prefix, Protocol, Route, RouteKind, Table};
use detector_core::settings::Settings;
use detector_core::time::BootTime;
use detector_core::traffic::{
    Count, Flow, IpProtocol, Pretence, Pretended, Side, Tally, Traffic, Translated, TranslationRule,
};
use detector_core::workload::NodeName;
use proptest::prelude::*;

use common::{HERE, address, index, key, link, pod};

/// A node with two pods, 0 and 1, whose addresses are 10.244.1.1 and 10.244.1.2.
struct Node {
    engine: Engine,
    now: BootTime,
    findings: Vec<Finding>,
    watched: BTreeSet<IpAddr>,
    wanted: Vec<IpAddr>,
    questions: usize,
}

impl Node {
    fn new(counting: bool) -> Self {
        let mut node = Self {
            engine: Engine::new(Settings::for_node(NodeName(HERE.into()))),
            now: BootTime::from_millis(1_000),
            findings: Vec::new(),
            watched: BTreeSet::new(),
            wanted: Vec::new(),
            questions: 0,
        };
        node.tell(What::Counting(counting));
        node.tell(What::SnapshotBegin);
        for n in 0..2 {
            node.tell(What::SnapshotPart(KernelState::Link(link(n, true))));
            let own = route(u8::try_from(n).unwrap() + 1, n);
            node.tell(What::SnapshotPart(KernelState::Route(own)));
        }
        node.tell(What::SnapshotEnd);
        node.tell(What::Feature(Feature::Disabled { by: "a test".into() }));
        node.tell(What::NodesReset(Vec::new()));
        node.tell(What::PodsReset(vec![pod(0, Some(1)), pod(1, Some(2))]));
        node.pass(Duration::from_mins(1));
        assert!(node.findings.is_empty() && node.watched.is_empty(), "{:?}", node.findings);
        node
    }

    fn tell(&mut self, what: What) {
        self.engine.observe(self.now, Observation { at: self.now, what });
        self.listen();
    }

    fn pass(&mut self, duration: Duration) {
        let end = self.now.after(duration);
        while let Some(due) = self.engine.next_deadline().filter(|due| *due <= end) {
            self.now = due.max(self.now);
            self.engine.tick(self.now);
            self.listen();
        }
        self.now = end;
    }

    fn listen(&mut self) {
        while let Some(output) = self.engine.poll() {
            match output {
                Output::Finding(finding) => self.findings.push(*finding),
                Output::Question(question) => {
                    self.questions += 1;
                    let reply = match question {
                        Question::Claimants(of) => Reply::Claimants(of, Ok(Vec::new())),
                        Question::Block(of) => Reply::Block(of, Ok(None)),
                    };
                    let what = What::Answer(Answer { asked: self.now, reply });
                    self.engine.observe(self.now, Observation { at: self.now, what });
                }
                Output::Watch(address) => assert!(self.watched.insert(address), "{address} twice"),
                Output::Unwatch(address) => assert!(self.watched.remove(&address), "{address}"),
                Output::Count(address) => self.wanted.push(address),
                Output::Resync(_)
                | Output::Sources(..)
                | Output::Ranges(_)
                | Output::Stranger(_) => {}
            }
        }
    }

    /// Pod 1 takes the address of pod 0.
    fn hijack(&mut self) {
        let route = Route { metric: 7, ..route(1, 1) };
        self.tell(What::Kernel(KernelChange::Route {
            route,
            place: Place::Alone,
            writer: 1.into(),
        }));
    }

    fn stop(&mut self) {
        self.tell(What::Kernel(KernelChange::RouteGone(Route { metric: 7, ..route(1, 1) })));
    }

    fn counted(&mut self, packets: u64, clients: u8) {
        let tally =
            |packets| Tally { packets, bytes: packets * 100, first: self.now, last: self.now };
        let side = Side::Reached(index(1));
        let mut counts = vec![Count { side, flow: None, tally: tally(packets) }];
        for client in 0..clients {
            let client = IpAddr::V4(Ipv4Addr::new(192, 0, 2, client));
            let flow = Flow { client, protocol: IpProtocol::UDP, port: Some(53) };
            let tally = tally(packets / u64::from(clients));
            counts.push(Count { side, flow: Some(flow), tally });
        }
        self.tell(What::Traffic(Traffic { address: address(1), counts }));
    }

    fn states(&self) -> Vec<State> {
        self.findings.iter().map(|finding| finding.state).collect()
    }

    fn last(&self) -> &Finding {
        self.findings.last().unwrap()
    }
}

fn route(to: u8, by: usize) -> Route {
    Route {
        table: Table::MAIN,
        prefix: Prefix::host(address(to)),
        tos: 0,
        metric: 0,
        kind: RouteKind::Unicast,
        protocol: Protocol(3),
        nexthop_id: None,
        hops: Hops::One(NextHop { interface: Some(index(by)), gateway: None }),
    }
}

fn pretended(from: IpAddr, at: BootTime) -> What {
    What::Pretended(Pretended {
        interface: index(1),
        address: from,
        pretence: Pretence::Source,
        destination: Some(address(1)),
        tally: Tally { packets: 1, bytes: 100, first: at, last: at },
    })
}

#[test]
fn a_finding_that_is_over_waits_for_the_last_count() {
    let mut node = Node::new(true);
    node.hijack();
    assert_eq!(node.states(), [State::Opened]);
    assert_eq!(node.watched, BTreeSet::from([address(1)]));
    node.counted(10, 2);
    assert_eq!(node.states(), [State::Opened, State::Updated]);
    // Not twice as many: no word of it.
    node.counted(12, 2);
    node.stop();
    assert_eq!(node.states(), [State::Opened, State::Updated]);
    assert_eq!(node.wanted, [address(1)]);
    node.counted(14, 2);
    assert_eq!(node.states(), [State::Opened, State::Updated, State::Closed]);
    let traffic = node.last().charge.traffic.clone().unwrap();
    assert_eq!((traffic.packets, traffic.bytes, traffic.clients), (14, 1_400, 2));
    assert!(!traffic.more);
    assert_eq!(node.last().prevented(), Some(false));
    assert!(node.watched.is_empty());
}

#[test]
fn nobody_waits_for_a_count_for_ever() {
    let mut node = Node::new(true);
    node.hijack();
    node.stop();
    assert_eq!(node.states(), [State::Opened]);
    node.pass(Duration::from_secs(10));
    assert_eq!(node.states(), [State::Opened, State::Closed]);
    // And not at all where nobody counts.
    let mut node = Node::new(false);
    node.hijack();
    node.stop();
    assert_eq!(node.states(), [State::Opened, State::Closed]);
    assert_eq!((node.last().charge.traffic.clone(), node.last().prevented()), (None, None));
}

#[test]
fn the_next_diversion_does_not_overtake_the_end_of_the_last() {
    let mut node = Node::new(true);
    node.hijack();
    node.stop();
    node.hijack();
    assert_eq!(node.states(), [State::Opened, State::Closed, State::Opened]);
    node.counted(0, 0);
    assert_eq!(node.states(), [State::Opened, State::Closed, State::Opened]);
}

#[test]
fn where_there_is_no_room_to_count_nothing_is_said_to_be_prevented() {
    let mut node = Node::new(true);
    node.hijack();
    node.tell(What::Uncounted(address(1)));
    node.stop();
    node.tell(What::Uncounted(address(1)));
    assert_eq!(node.states(), [State::Opened, State::Closed]);
    assert_eq!(node.last().prevented(), None);
}

#[test]
fn more_flows_than_are_kept_apart_are_told_as_such() {
    let mut node = Node::new(true);
    node.hijack();
    node.counted(101, 2);
    let traffic = node.last().charge.traffic.clone().unwrap();
    assert_eq!((traffic.packets, traffic.clients, traffic.more), (101, 2, true));
}

#[test]
fn ever_new_sources_are_one_finding_and_few_questions() {
    let mut node = Node::new(true);
    for n in 0..5_000u32 {
        let from = IpAddr::V4(Ipv4Addr::from(0xc612_0000 + n));
        node.tell(pretended(from, node.now));
        node.pass(Duration::from_millis(1));
    }
    let opened = |node: &Node| node.states().iter().filter(|s| **s == State::Opened).count();
    assert_eq!(opened(&node), 1);
    // Told again whenever they are twice as many.
    assert!(node.findings.len() <= 14, "told {} times", node.findings.len());
    let charge = &node.last().charge;
    assert_eq!(charge.certainty, Certainty::Unproven);
    assert_eq!(charge.attacker.pod, Some(key(1)));
    assert!(node.questions <= 64, "{} questions", node.questions);
    // The address of a pod that is known is found among them all the same.
    node.tell(pretended(address(1), node.now));
    let Finding { state, charge, .. } = node.last();
    assert_eq!(
        (*state, charge.means, charge.severity),
        (State::Opened, Means::Spoof, Severity::High)
    );
    // What has been quiet for long enough is over, and forgotten.
    node.pass(Duration::from_mins(2));
    assert_eq!(node.engine.standing().len(), 0);
    assert_eq!(opened(&node), 2);
    assert_eq!(node.states().iter().filter(|state| **state == State::Closed).count(), 2);
}

#[test]
fn a_translation_is_over_with_its_rule() {
    let mut node = Node::new(true);
    let rule = TranslationRule {
        prefix: Prefix::host(address(1)),
        to: address(2),
        to_last: address(2),
        origin: "nft".into(),
    };
    node.tell(What::TranslationRules(vec![rule]));
    node.pass(Duration::from_secs(3));
    assert_eq!(node.states(), [State::Opened]);
    assert_eq!(node.last().charge.means, Means::Dnat);
    assert_eq!(node.last().charge.attacker.pod, Some(key(1)));
    let client = address(77);
    let flow = Flow { client, protocol: IpProtocol::TCP, port: Some(80) };
    node.tell(What::Translated(Translated { flow, address: address(1), to: address(2) }));
    let tally = Tally { packets: 9, bytes: 900, first: node.now, last: node.now };
    let other = Flow { client: address(78), ..flow };
    let counts = [None, Some(flow), Some(other)];
    let counts = counts.map(|flow| Count { side: Side::Sent, flow, tally }).to_vec();
    node.tell(What::Traffic(Traffic { address: address(1), counts: counts.clone() }));
    // Only the flow that the attacker answers counts.
    assert_eq!(node.last().charge.traffic.clone().unwrap().packets, 9);
    assert_eq!(node.last().charge.traffic.clone().unwrap().clients, 1);
    node.tell(What::TranslationRules(Vec::new()));
    node.tell(What::Traffic(Traffic { address: address(1), counts }));
    assert_eq!(node.last().state, State::Closed);
    assert_eq!(node.last().charge.traffic.clone().unwrap().packets, 9);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10_000, ..ProptestConfig::default() })]

    /// Whatever comes and goes, an address is watched exactly as long as something about it is open,
    /// and each finding is opened and closed in turn.
    #[test]
    fn what_is_watched_is_what_is_open(acts in prop::collection::vec(0u8..8, 1..40)) {
        let mut node = Node::new(true);
        for act in acts {
            match act {
                0 => node.hijack(),
                1 => node.stop(),
                2 => node.counted(u64::from(act) * 3, 1),
                3 => node.pass(Duration::from_secs(3)),
                4 => node.tell(pretended(address(1), node.now)),
                5 => node.tell(What::TranslationRules(vec![TranslationRule {
                    prefix: Prefix::host(address(1)),
                    to: address(2),
                    to_last: address(2),
                    origin: "nft".into(),
                }])),
                6 => node.tell(What::TranslationRules(Vec::new())),
                _ => node.tell(What::Uncounted(address(1))),
            }
            let open = node.engine.standing();
            let about = open.iter().any(|finding| {
                finding.charge.means != Means::Spoof
                    && finding.key.subject.prefix() == Some(Prefix::host(address(1)))
            });
            if about {
                prop_assert!(node.watched.contains(&address(1)));
            }
        }
        node.stop();
        node.tell(What::TranslationRules(Vec::new()));
        node.pass(Duration::from_mins(10));
        prop_assert!(node.watched.is_empty(), "{:?}", node.watched);
        prop_assert_eq!(node.engine.standing().len(), 0);
        let mut keys: Vec<_> = node.findings.iter().map(|f| f.key.clone()).collect();
        keys.sort();
        keys.dedup();
        for key in keys {
            let of_it = node.findings.iter().filter(|finding| finding.key == key);
            let states: Vec<State> =
                of_it.map(|f| f.state).filter(|state| *state != State::Updated).collect();
            let in_turn = states.chunks(2).all(|pair| pair == [State::Opened, State::Closed]);
            prop_assert!(in_turn, "{}: {:?}", key, states);
        }
    }
}
