//! Who wrote a route: evidence, a word, and never a right.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use detector_core::engine::{Engine, Output};
use detector_core::finding::{Certainty, Finding};
use detector_core::link::{InterfaceName, Link, LinkKind};
use detector_core::observation::{KernelChange, Observation, Place, What};
use detector_core::route::{Hops, IfIndex, NextHop, Prefix, Protocol, Route, RouteKind, Table};
use detector_core::settings::Settings;
use detector_core::time::BootTime;
use detector_core::workload::{NodeName, Pod, PodKey, Uid};
use detector_core::writer::{Container, Known, Process, Stranger, Writer};

const AT: BootTime = BootTime::from_nanos(60_000_000_000);
const FELIX: &str = "12345678-1234-1234-1234-123456789abc";

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn pod(name: &str, uid: &str, at: &str, host_network: bool) -> Pod {
    Pod {
        key: PodKey::new("default", name).unwrap(),
        uid: Uid(uid.into()),
        node: NodeName("node-a".into()),
        service_account: "default".into(),
        host_network,
        finished: false,
        terminating: false,
        addresses: vec![address(at)],
        annotated_addresses: Vec::new(),
        floating_addresses: Vec::new(),
        annotated_prefixes: Vec::new(),
        source_prefixes: Vec::new(),
        bypassing_addresses: Vec::new(),
        sandbox: None,
    }
}

fn process(command: &str, uid: Option<&str>) -> Writer {
    let containers =
        uid.map(|uid| Container { id: "c".repeat(64).into(), pod: Some(Uid(uid.into())) });
    let process = Process {
        pid: 42,
        thread: 43,
        started: Some(BootTime::ZERO),
        command: command.into(),
        network: Some(1),
        mount: Some(2),
        cgroup: Some("/".into()),
        containers: containers.into_iter().collect(),
        known: Known::Record,
    };
    Writer { port: 42, process: Some(Arc::new(process)) }
}

/// A node with pods cart and evil, and Felix in a pod of the host's network.
struct World {
    engine: Engine,
    findings: Vec<Finding>,
    strangers: Vec<Stranger>,
}

impl World {
    fn new() -> Self {
        let engine = Engine::new(Settings::for_node(NodeName("node-a".into())));
        let mut world = Self { engine, findings: Vec::new(), strangers: Vec::new() };
        world.tell(What::SnapshotBegin);
        world.tell(What::SnapshotEnd);
        world.tell(What::NodesReset(Vec::new()));
        world.tell(What::ServicesReset(Vec::new()));
        for (index, name) in [(2, "cart"), (3, "evil")] {
            world.tell(What::Kernel(KernelChange::Link(Link {
                index: IfIndex::new(index).unwrap(),
                name: interface(name),
                kind: LinkKind::Container,
                up: true,
            })));
        }
        let pods = vec![
            pod("cart", "cart-uid", "10.244.1.5", false),
            pod("evil", "evil-uid", "10.244.1.66", false),
            pod("calico-node", FELIX, "192.0.2.1", true),
        ];
        world.tell(What::PodsReset(pods));
        world
    }

    fn tell(&mut self, what: What) {
        self.engine.observe(AT, Observation { at: AT, what });
        self.listen();
    }

    /// Nobody has more to say, and whatever waits for it waits no longer.
    fn pass(&mut self) {
        self.engine.tick(AT.after(Duration::from_mins(1)));
        self.listen();
    }

    fn listen(&mut self) {
        while let Some(output) = self.engine.poll() {
            match output {
                Output::Finding(finding) => self.findings.push(*finding),
                Output::Stranger(stranger) => self.strangers.push(*stranger),
                _ => {}
            }
        }
    }

    fn route(&mut self, to: &str, index: u32, protocol: u8, writer: Writer) {
        let hop = NextHop { interface: IfIndex::new(index), gateway: None };
        let route = Route {
            prefix: Prefix::host(address(to)),
            table: Table::MAIN,
            metric: index,
            tos: 0,
            kind: RouteKind::Unicast,
            protocol: Protocol(protocol),
            nexthop_id: None,
            hops: Hops::One(hop),
        };
        self.tell(What::Kernel(KernelChange::Route { route, place: Place::Alone, writer }));
    }

    fn evidence(&mut self) -> String {
        self.pass();
        let finding = self.findings.last().expect("something is found");
        let all: Vec<&str> = finding.charge.evidence.iter().map(|one| &*one.text).collect();
        all.join("\n")
    }
}

fn interface(pod: &str) -> InterfaceName {
    PodKey::new("default", pod).unwrap().interface("cali").unwrap()
}

#[test]
fn felix_is_named_and_excuses_nothing() {
    let mut world = World::new();
    world.route("10.244.1.5", 3, 3, process("calico-node", Some(FELIX)));
    world.pass();
    let finding = world.findings.last().expect("a hijack is one, whoever was made to write it");
    assert_eq!(finding.charge.certainty, Certainty::Hijack);
    let wrote = finding.charge.writer.as_deref().unwrap();
    assert_eq!(wrote.process.pid, 42);
    assert_eq!(wrote.pod, PodKey::new("default", "calico-node"));
    let evidence = world.evidence();
    assert!(
        evidence.contains("written by calico-node (pid 42) in container cccccccccccc"),
        "{evidence}"
    );
    assert!(!evidence.contains("the route says"), "{evidence}");
}

#[test]
fn a_protocol_that_the_writer_contradicts_is_evidence() {
    for (protocol, command, port, says) in [
        (12, "ip", 42, Some("BIRD")),
        (12, "bird", 42, None),
        (80, "ip", 42, Some("Felix")),
        (80, "calico-node", 42, None),
        (2, "ip", 42, Some("the kernel itself")),
        (9, "ip", 42, Some("the kernel itself")),
        (3, "ip", 42, None),
    ] {
        let mut world = World::new();
        world.route("10.244.1.5", 3, protocol, Writer { port, ..process(command, None) });
        let evidence = world.evidence();
        match says {
            Some(says) => {
                let wanted = format!("the route says that {says} made it");
                assert!(evidence.contains(&wanted), "{protocol} by {command}: {evidence}");
            }
            None => assert!(!evidence.contains("the route says"), "{command}: {evidence}"),
        }
    }
}

#[test]
fn a_stranger_who_writes_a_pods_own_route_is_worth_one_word() {
    let mut world = World::new();
    world.route("10.244.1.5", 2, 3, process("calico", None));
    world.route("10.244.1.5", 2, 3, process("calico-node", Some(FELIX)));
    assert_eq!(world.strangers, []);
    world.route("10.244.1.5", 2, 3, process("ip", None));
    world.route("10.244.1.66", 3, 3, process("ip", None));
    let [stranger] = &*world.strangers else { panic!("{:?}", world.strangers) };
    assert_eq!(stranger.pod, PodKey::new("default", "cart").unwrap());
    assert_eq!(&*stranger.process.command, "ip");
    world.pass();
    assert_eq!(world.findings, [], "nothing is wrong with the routes");
    // However many names somebody invents, the words end.
    for number in 0..1_000 {
        world.route("10.244.1.5", 2, 3, process(&format!("x{number}"), None));
    }
    assert_eq!(world.strangers.len(), 64);
}

#[test]
fn without_a_writer_nothing_is_said_of_one() {
    let mut world = World::new();
    world.route("10.244.1.5", 3, 3, 4_242.into());
    assert!(world.evidence().contains("made through netlink port 4242"));
    assert!(world.findings.last().unwrap().charge.writer.is_none());
    assert_eq!(world.strangers, []);
}
