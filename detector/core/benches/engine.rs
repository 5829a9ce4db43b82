//! The engine's cost per observation, by how much it holds. All sizes are measured in one run, so
//! their ratio is what counts.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use detector_core::engine::Engine;
use detector_core::link::{InterfaceName, Link, LinkKind};
use detector_core::observation::{KernelChange, Node, Observation, Place, What};
use detector_core::policy::Feature;
use detector_core::route::{Hops, IfIndex, NextHop, Prefix, Protocol, Route, RouteKind, Table};
use detector_core::settings::Settings;
use detector_core::time::BootTime;
use detector_core::workload::{NodeName, Pod, PodKey, Uid};

/// Routes and claims that stand while it is measured.
const SIZES: [u32; 4] = [1_000, 10_000, 100_000, 1_000_000];

/// Rounds over all sizes; the median of each size is told.
const ROUNDS: usize = 5;

/// Observations of one kind that are timed at a time.
const BATCH: u32 = 20_000;

/// Times a batch of observations.
type Measure = fn(&mut World) -> Duration;

fn main() {
    let mut worlds: Vec<World> = SIZES.iter().map(|size| World::new(*size)).collect();
    let kinds: [(&str, Measure); 3] = [
        ("a route by an uplink comes or goes", World::routes),
        ("a pod's own route comes or goes", World::own_routes),
        ("a hijack comes or goes", World::hijacks),
    ];
    print!("{:<40}", "ns per observation, by routes and claims");
    for name in ["1k", "10k", "100k", "1M"] {
        print!(" {name:>10}");
    }
    println!(" {:>8}", "ratio");
    for (name, measure) in kinds {
        let mut times = vec![Vec::new(); worlds.len()];
        for _ in 0..ROUNDS {
            for (world, times) in worlds.iter_mut().zip(&mut times) {
                times.push(measure(world));
            }
        }
        let medians: Vec<f64> = times
            .iter_mut()
            .map(|times| {
                times.sort_unstable();
                times[times.len() / 2].as_secs_f64() * 1e9 / f64::from(BATCH)
            })
            .collect();
        print!("{name:<40}");
        for median in &medians {
            print!(" {median:>10.0}");
        }
        println!(" {:>8.2}", medians[medians.len() - 1] / medians[0]);
    }
}

struct World {
    engine: Engine,
    size: u32,
    now: BootTime,
    random: u32,
}

impl World {
    /// A node with so many host routes by its uplink, so many claims, and two pods.
    fn new(size: u32) -> Self {
        let engine = Engine::new(Settings::for_node(NodeName("node-a".into())));
        let mut world = Self { engine, size, now: BootTime::from_millis(1_000_000), random: 1 };
        world.observe(What::SnapshotBegin);
        world.observe(What::SnapshotEnd);
        world.observe(What::Feature(Feature::Disabled { by: "default".into() }));
        for (n, name) in
            ["uplink0", interface(0).as_str(), interface(1).as_str()].iter().enumerate()
        {
            let kind = if n == 0 { LinkKind::Infrastructure } else { LinkKind::Container };
            let name = InterfaceName::new(name).expect("a valid name");
            let link = Link { index: index(n), name, kind, up: true };
            world.observe(What::Kernel(KernelChange::Link(link)));
        }
        world.observe(What::PodsReset(vec![pod(0), pod(1)]));
        let nodes = (0..size).map(|n| Node {
            name: NodeName(format!("node-{n}").into()),
            addresses: vec![IpAddr::V4(Ipv4Addr::from(0xac10_0000 + n))],
            pod_prefixes: Vec::new(),
        });
        world.observe(What::NodesReset(nodes.collect()));
        for n in 0..size {
            world.observe(What::Kernel(add(far(n), 0, 0)));
        }
        world
    }

    fn observe(&mut self, what: What) {
        self.now = self.now.after(Duration::from_nanos(100));
        self.engine.observe(self.now, Observation { at: self.now, what });
        while let Some(output) = self.engine.poll() {
            black_box(output);
        }
    }

    fn time(&mut self, mut step: impl FnMut(&mut Self)) -> Duration {
        let started = Instant::now();
        for _ in 0..BATCH / 2 {
            step(self);
        }
        started.elapsed()
    }

    fn routes(&mut self) -> Duration {
        self.time(|world| {
            world.random = world.random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let to = far(world.random % world.size);
            world.observe(What::Kernel(remove(to, 0, 0)));
            world.observe(What::Kernel(add(to, 0, 0)));
        })
    }

    fn own_routes(&mut self) -> Duration {
        self.time(|world| {
            world.observe(What::Kernel(add(own(0), 1, 0)));
            world.observe(What::Kernel(remove(own(0), 1, 0)));
        })
    }

    fn hijacks(&mut self) -> Duration {
        self.time(|world| {
            world.observe(What::Kernel(add(own(0), 2, 5)));
            world.observe(What::Kernel(remove(own(0), 2, 5)));
        })
    }
}

fn index(n: usize) -> IfIndex {
    IfIndex::new(u32::try_from(n).expect("few links") + 1).expect("above zero")
}

fn interface(n: usize) -> InterfaceName {
    pod(n).key.interface("cali").expect("a valid name")
}

fn far(n: u32) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from(0x6440_0000 + n))
}

fn own(n: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(10, 244, 1, n + 1))
}

fn pod(n: usize) -> Pod {
    let address = own(u8::try_from(n).expect("few pods"));
    Pod {
        key: PodKey::new("shop", &format!("pod-{n}")).expect("a valid name"),
        uid: Uid(format!("uid-{n}").into()),
        node: NodeName("node-a".into()),
        service_account: "default".into(),
        host_network: false,
        finished: false,
        terminating: false,
        addresses: vec![address],
        annotated_addresses: vec![address],
        floating_addresses: Vec::new(),
        annotated_prefixes: Vec::new(),
        source_prefixes: Vec::new(),
        bypassing_addresses: Vec::new(),
        sandbox: None,
    }
}

fn route(to: IpAddr, by: usize, metric: u32) -> Route {
    Route {
        table: Table::MAIN,
        prefix: Prefix::host(to),
        tos: 0,
        metric,
        kind: RouteKind::Unicast,
        protocol: Protocol(3),
        nexthop_id: None,
        hops: Hops::One(NextHop { interface: Some(index(by)), gateway: None }),
    }
}

fn add(to: IpAddr, by: usize, metric: u32) -> KernelChange {
    KernelChange::Route { route: route(to, by, metric), place: Place::Alone, writer: 7.into() }
}

fn remove(to: IpAddr, by: usize, metric: u32) -> KernelChange {
    KernelChange::RouteGone(route(to, by, metric))
}
