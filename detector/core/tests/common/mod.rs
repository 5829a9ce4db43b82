//! A small world with ground truth, for the properties: a kernel whose tables follow the rules of
//! net/ipv4/fib_trie.c written down once more in the plainest way, and a cluster.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![allow(dead_code, reason = "each test file uses its own part of the world")]

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use detector_core::engine::{Engine, Output};
use detector_core::finding::{Finding, State};
use detector_core::link::{InterfaceName, Link, LinkKind};
use detector_core::observation::{
    Answer, KernelChange, KernelState, Observation, Place, Question, Reply, What,
};
use detector_core::policy::Feature;
use detector_core::route::{
    Hops, IfIndex, NextHop, Prefix, Protocol, Route, RouteKind, Rule, RuleAction, Table,
};
use detector_core::settings::Settings;
use detector_core::time::BootTime;
use detector_core::workload::{NodeName, Pod, PodKey, Uid};
use proptest::prelude::*;

pub(crate) const HERE: &str = "node-a";
pub(crate) const LOCAL_PODS: usize = 4;
pub(crate) const ADDRESSES: u8 = 8;

pub(crate) fn address(n: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(10, 244, 1, n))
}

pub(crate) fn key(n: usize) -> PodKey {
    PodKey::new("ns", &format!("pod-{n}")).unwrap()
}

pub(crate) fn index(n: usize) -> IfIndex {
    IfIndex::new(u32::try_from(n).unwrap() + 10).unwrap()
}

pub(crate) fn name(n: usize) -> InterfaceName {
    if n < LOCAL_PODS + 1 {
        // One more than there are pods: an interface that is nobody's.
        key(n).interface("cali").unwrap()
    } else {
        InterfaceName::new("uplink0").unwrap()
    }
}

pub(crate) fn link(n: usize, up: bool) -> Link {
    let kind = if n > LOCAL_PODS { LinkKind::Infrastructure } else { LinkKind::Container };
    Link { index: index(n), name: name(n), kind, up }
}

/// A pod; those of `LOCAL_PODS` and above run elsewhere.
pub(crate) fn pod(n: usize, address_of: Option<u8>) -> Pod {
    let addresses: Vec<IpAddr> = address_of.map(address).into_iter().collect();
    Pod {
        key: key(n),
        uid: Uid(format!("uid-{n}").into()),
        node: NodeName(if n < LOCAL_PODS { HERE } else { "node-b" }.into()),
        service_account: "default".into(),
        host_network: false,
        finished: false,
        terminating: false,
        annotated_addresses: addresses.clone(),
        addresses,
        floating_addresses: Vec::new(),
        annotated_prefixes: Vec::new(),
        source_prefixes: Vec::new(),
        bypassing_addresses: Vec::new(),
        sandbox: None,
    }
}

/// A change that somebody asks the kernel for; it may refuse.
#[derive(Clone, Copy)]
pub(crate) enum Ask {
    Add { to: u8, length: u8, by: usize, metric: u32, table: Table, how: How },
    Delete { pick: usize },
    Drop { to: u8 },
    LinkUp(usize),
    LinkDown(usize),
    LinkDelete(usize),
    Rule { to: u8, present: bool },
}

// A failing case is read by people: one line for each thing asked.
impl fmt::Debug for Ask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Add { to, length, by, metric, table, how } => {
                let (to, by) = (address(to), name(by));
                write!(f, "{how:?} {to}/{length} dev {by} metric {metric} table {table}")
            }
            Self::Delete { pick } => write!(f, "delete #{pick}"),
            Self::Drop { to } => write!(f, "blackhole {}", address(to)),
            Self::LinkUp(n) => write!(f, "{} up", name(n)),
            Self::LinkDown(n) => write!(f, "{} down", name(n)),
            Self::LinkDelete(n) => write!(f, "{} deleted", name(n)),
            Self::Rule { to, present } => write!(f, "rule to {}: {present}", address(to)),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum How {
    Exclusive,
    Prepend,
    Append,
    Replace,
}

/// The kernel's tables, in the plainest way.
#[derive(Clone, Debug, Default)]
pub(crate) struct Kernel {
    pub(crate) links: Vec<Link>,
    pub(crate) routes: Vec<Route>,
    pub(crate) rules: Vec<Rule>,
}

impl Kernel {
    pub(crate) fn with_links() -> Self {
        let links = (0..LOCAL_PODS + 2).map(|n| link(n, true)).collect();
        Self { links, ..Self::default() }
    }

    pub(crate) fn dump(&self) -> Vec<KernelState> {
        let links = self.links.iter().cloned().map(KernelState::Link);
        let rules = self.rules.iter().cloned().map(KernelState::Rule);
        links.chain(rules).chain(self.routes.iter().cloned().map(KernelState::Route)).collect()
    }

    /// Does what is asked, or refuses; gives what it announces.
    pub(crate) fn ask(&mut self, ask: Ask) -> Vec<KernelChange> {
        match ask {
            Ask::Add { to, length, by, metric, table, how } => {
                if !self.links.iter().any(|l| l.index == index(by) && l.up) {
                    return Vec::new();
                }
                let hop = NextHop { interface: Some(index(by)), gateway: None };
                let prefix = Prefix::new(address(to), length).unwrap();
                self.add(route(prefix, table, metric, RouteKind::Unicast, Hops::One(hop)), how)
            }
            Ask::Drop { to } => {
                let prefix = Prefix::host(address(to));
                let blackhole = route(prefix, Table::MAIN, 50, RouteKind::Blackhole, Hops::None);
                self.add(blackhole, How::Exclusive)
            }
            Ask::Delete { pick } => {
                if self.routes.is_empty() {
                    return Vec::new();
                }
                let at = pick % self.routes.len();
                vec![KernelChange::RouteGone(self.routes.remove(at))]
            }
            Ask::LinkUp(n) => {
                // One that was deleted and made again would be another interface.
                if !self.links.iter().any(|l| l.index == index(n)) {
                    return Vec::new();
                }
                self.links.retain(|l| l.index != index(n));
                self.links.push(link(n, true));
                vec![KernelChange::Link(link(n, true))]
            }
            Ask::LinkDown(n) => {
                let Some(found) = self.links.iter_mut().find(|l| l.index == index(n)) else {
                    return Vec::new();
                };
                found.up = false;
                self.flush(n);
                vec![KernelChange::Link(link(n, false))]
            }
            Ask::LinkDelete(n) => {
                if !self.links.iter().any(|l| l.index == index(n)) {
                    return Vec::new();
                }
                self.links.retain(|l| l.index != index(n));
                self.flush(n);
                vec![KernelChange::LinkGone(index(n))]
            }
            Ask::Rule { to, present } => {
                let rule = Rule {
                    ipv4: true,
                    priority: 100 + u32::from(to),
                    from: None,
                    to: Some(Prefix::host(address(to))),
                    mark: 0,
                    narrowed: 0,
                    action: RuleAction::Lookup(Table(100)),
                };
                let stands = self.rules.contains(&rule);
                match (stands, present) {
                    (false, true) => {
                        self.rules.push(rule.clone());
                        vec![KernelChange::Rule(rule)]
                    }
                    (true, false) => {
                        self.rules.retain(|r| *r != rule);
                        vec![KernelChange::RuleGone(rule)]
                    }
                    _ => Vec::new(),
                }
            }
        }
    }

    fn add(&mut self, route: Route, how: How) -> Vec<KernelChange> {
        let peer = |r: &Route| {
            (r.prefix, r.table, r.tos, r.metric)
                == (route.prefix, route.table, route.tos, route.metric)
        };
        let first = self.routes.iter().position(peer);
        let same = self.routes.contains(&route);
        match (first, how) {
            (Some(_), How::Exclusive) => return Vec::new(),
            (Some(_), _) if same => return Vec::new(),
            (Some(at), How::Replace) => self.routes[at] = route.clone(),
            (Some(at), How::Prepend) => self.routes.insert(at, route.clone()),
            (Some(_), How::Append) => {
                let last = self.routes.iter().rposition(peer).unwrap();
                self.routes.insert(last + 1, route.clone());
            }
            (None, _) => self.routes.push(route.clone()),
        }
        vec![KernelChange::Route {
            route,
            place: match how {
                _ if first.is_none() => Place::Alone,
                How::Replace => Place::Instead,
                How::Append => Place::Behind,
                _ => Place::Before,
            },
            writer: 7.into(),
        }]
    }

    /// In silence, as for IPv4.
    fn flush(&mut self, n: usize) {
        self.routes.retain(|r| r.hops.as_slice().iter().all(|hop| hop.interface != Some(index(n))));
    }
}

pub(crate) fn route(
    prefix: Prefix,
    table: Table,
    metric: u32,
    kind: RouteKind,
    hops: Hops,
) -> Route {
    Route { table, prefix, tos: 0, metric, kind, protocol: Protocol(3), nexthop_id: None, hops }
}

pub(crate) fn any_ask() -> impl Strategy<Value = Ask> {
    let table = prop_oneof![
        8 => Just(Table::MAIN),
        1 => Just(Table::LOCAL),
        2 => Just(Table(100)),
    ];
    let how = prop_oneof![
        Just(How::Exclusive),
        Just(How::Prepend),
        Just(How::Append),
        Just(How::Replace)
    ];
    let length = prop_oneof![12 => Just(32u8), 1 => Just(31u8), 1 => Just(24u8)];
    let links = 0..LOCAL_PODS + 2;
    let metric = prop_oneof![Just(0u32), Just(10)];
    prop_oneof![
        12 => (0..ADDRESSES, length, links.clone(), metric, table, how)
            .prop_map(|(to, length, by, metric, table, how)| Ask::Add { to, length, by, metric, table, how }),
        5 => any::<usize>().prop_map(|pick| Ask::Delete { pick }),
        1 => (0..ADDRESSES).prop_map(|to| Ask::Drop { to }),
        1 => links.clone().prop_map(Ask::LinkUp),
        1 => links.clone().prop_map(Ask::LinkDown),
        1 => links.prop_map(Ask::LinkDelete),
        2 => (0..ADDRESSES, any::<bool>()).prop_map(|(to, present)| Ask::Rule { to, present }),
    ]
}

/// Which pods there are, here and elsewhere, each with an address of its own or none yet.
#[derive(Clone)]
pub(crate) struct Cluster {
    pub(crate) pods: Vec<Pod>,
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pods = self.pods.iter().map(|pod| {
            let name = pod.key.interface("cali").map(|name| name.to_string()).unwrap_or_default();
            format!("{} on {} ({name}) has {:?}", pod.key, pod.node, pod.addresses)
        });
        write!(f, "{}", pods.collect::<Vec<_>>().join(", "))
    }
}

impl Cluster {
    pub(crate) fn local(&self) -> Vec<Pod> {
        self.pods.iter().filter(|pod| *pod.node.0 == *HERE).cloned().collect()
    }

    pub(crate) fn claimants(&self, address: IpAddr) -> Vec<Pod> {
        self.pods.iter().filter(|pod| pod.addresses.contains(&address)).cloned().collect()
    }
}

/// Pods `0..LOCAL_PODS` here and two elsewhere. Pod `n` has address `n`, no address, or is not
/// there at all.
pub(crate) fn any_cluster() -> impl Strategy<Value = Cluster> {
    let presence = prop_oneof![5 => Just(Some(true)), 1 => Just(Some(false)), 1 => Just(None)];
    proptest::collection::vec(presence, LOCAL_PODS + 2).prop_map(|presences| {
        let pods = presences.into_iter().enumerate().filter_map(|(n, presence)| {
            presence.map(|has| pod(n, has.then(|| u8::try_from(n).unwrap())))
        });
        Cluster { pods: pods.collect() }
    })
}

/// An engine, its clock, and a cluster that answers at once.
pub(crate) struct Harness {
    pub(crate) engine: Engine,
    pub(crate) now: BootTime,
    pub(crate) cluster: Cluster,
    pub(crate) findings: Vec<Finding>,
    pub(crate) resync: bool,
}

impl Harness {
    pub(crate) fn new(cluster: Cluster) -> Self {
        let mut settings = Settings::for_node(NodeName(HERE.into()));
        settings.waiting_cap = 64;
        Self {
            engine: Engine::new(settings),
            now: BootTime::from_millis(1_000_000),
            cluster,
            findings: Vec::new(),
            resync: false,
        }
    }

    pub(crate) fn observe(&mut self, what: What) {
        self.engine.observe(self.now, Observation { at: self.now, what });
        self.listen();
        self.now = self.now.after(Duration::from_micros(10));
    }

    pub(crate) fn observe_all(&mut self, words: Vec<What>) {
        for what in words {
            self.observe(what);
        }
    }

    pub(crate) fn listen(&mut self) {
        while let Some(output) = self.engine.poll() {
            match output {
                Output::Finding(finding) => self.findings.push(*finding),
                Output::Question(question) => {
                    let Question::Claimants(address) = question else {
                        panic!("this world has no IPAM, but {question:?} was asked");
                    };
                    let reply = Reply::Claimants(address, Ok(self.cluster.claimants(address)));
                    let answer = Answer { asked: self.now, reply };
                    let what = What::Answer(answer);
                    self.engine.observe(self.now, Observation { at: self.now, what });
                }
                Output::Resync(_) => self.resync = true,
                _ => {}
            }
        }
    }

    pub(crate) fn snapshot(&mut self, kernel: &Kernel) {
        self.observe(What::SnapshotBegin);
        for state in kernel.dump() {
            self.observe(What::SnapshotPart(state));
        }
        self.observe(What::SnapshotEnd);
    }

    /// What the cluster tells at the start.
    pub(crate) fn cluster_told() -> Vec<What> {
        vec![
            What::Feature(Feature::Disabled { by: "default".into() }),
            What::NodesReset(Vec::new()),
        ]
    }

    /// Lets time pass, deadline by deadline.
    pub(crate) fn pass(&mut self, duration: Duration) {
        let end = self.now.after(duration);
        while let Some(next) = self.engine.next_deadline().filter(|next| *next <= end) {
            self.now = self.now.max(next);
            self.engine.tick(self.now);
            self.listen();
        }
        self.now = end;
    }

    /// Lets every grace run out.
    pub(crate) fn settle(&mut self) {
        self.pass(Duration::from_mins(2));
    }

    /// What stands, in a form that does not depend on when it was found.
    pub(crate) fn standing(&self) -> Vec<(String, &'static str, String)> {
        let form = |finding: &&Finding| {
            let charge = &finding.charge;
            (finding.key.to_string(), charge.certainty.as_str(), charge.victim.to_string())
        };
        self.engine.standing().iter().map(form).collect()
    }

    /// Whether every finding that was told went from opened to closed without a repeat.
    pub(crate) fn lives_are_whole(&self) -> bool {
        let mut open = std::collections::HashSet::new();
        self.findings.iter().all(|finding| match finding.state {
            State::Opened => open.insert(finding.key.clone()),
            State::Updated => open.contains(&finding.key),
            State::Closed => open.remove(&finding.key),
        })
    }
}
