//! A network namespace for a test, and what is done in it.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use detector::clock;
use detector::config::RouteSource;
use detector::source::kernel::{DumpOptions, KernelOptions, KernelSource, Message};
use detector_core::observation::{KernelChange, Observation, What};
use detector_core::route::IfIndex;
use detector_core::settings::Settings;
use detector_core::workload::NodeName;
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use nix::sched::{CloneFlags, unshare};

/// Runs `test` in a network namespace that ends with its thread, or says why it cannot.
///
/// In it are `eth0` and `cali1`, veth interfaces that are up, and eth0 has 192.0.2.2/24. IPv6 makes
/// no addresses of its own, and all has come to rest: nothing changes but by the test.
pub(crate) fn in_namespace<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED: network namespaces and eBPF need root");
        return;
    }
    let run = || {
        unshare(CloneFlags::CLONE_NEWNET).expect("root may make a namespace");
        ip("link set lo up");
        let links = socket_for_links();
        for (name, peer) in [("eth0", "eth0peer"), ("cali1", "cali1peer")] {
            ip(&format!("link add {name} type veth peer name {peer}"));
            for name in [name, peer] {
                // Apart: older kernels would set it up first, and make it an address.
                ip(&format!("link set {name} addrgenmode none"));
                ip(&format!("link set {name} up"));
            }
        }
        await_running(&links, 4);
        ip("address add 192.0.2.2/24 dev eth0");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(test());
    };
    thread::spawn(run).join().expect("the test in the namespace holds");
}

/// Whether this is a machine of `cargo xtask vm`, in which nothing that a test needs may be missing.
pub(crate) fn in_own_machine() -> bool {
    std::path::Path::new("/programs/detector").exists()
}

fn socket_for_links() -> Socket {
    let mut socket = Socket::new(NETLINK_ROUTE).unwrap();
    let links = 1;
    socket.bind(&SocketAddr::new(0, links)).unwrap();
    socket
}

/// Waits until so many interfaces have been told to be running. That an interface has a carrier is
/// found by a worker of the kernel a moment after it was set up, and is the last that comes of it.
fn await_running(links: &Socket, count: usize) {
    const IFF_RUNNING: u8 = 0x40;
    let mut running = BTreeSet::new();
    while running.len() < count {
        let (datagram, _) = links.recv_from_full().unwrap();
        let message = Message::first(&datagram).unwrap();
        if message.body[8] & IFF_RUNNING != 0 {
            running.insert(message.body[4..8].to_vec());
        }
    }
}

/// Runs `ip` with these arguments.
pub(crate) fn ip(arguments: &str) {
    let done = Command::new("ip").args(arguments.split_whitespace()).status().unwrap();
    assert!(done.success(), "ip {arguments}");
}

/// Runs `ip` with all these arguments, one line after the other.
pub(crate) fn ip_batch(lines: impl Iterator<Item = String>) {
    let text: String = lines.map(|line| line + "\n").collect();
    let mut ip = Command::new("ip").args(["-batch", "-"]).stdin(Stdio::piped()).spawn().unwrap();
    ip.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    assert!(ip.wait().unwrap().success());
}

/// The index of an interface.
pub(crate) fn index(name: &str) -> IfIndex {
    IfIndex::new(nix::net::if_::if_nametoindex(name).unwrap()).unwrap()
}

/// A source that must be the one that was asked for.
pub(crate) fn open(choice: RouteSource) -> KernelSource {
    let opened = KernelSource::open(choice, &KernelOptions::default()).unwrap();
    assert_eq!(opened.degraded, None);
    opened.source
}

/// All that a source has been told by now.
pub(crate) fn told(source: &mut KernelSource) -> Vec<KernelChange> {
    let mut changes = Vec::new();
    source.catch_up(clock::now(), &mut |Observation { what, .. }| match what {
        What::Kernel(change) => changes.push(change),
        // Where functions are traced; the tests of writers look at it.
        What::Refused(_) => {}
        other => panic!("{other:?} of the kernel source"),
    });
    changes
}

/// Settings under which eth0 is an uplink.
pub(crate) fn settings() -> Arc<Settings> {
    let uplinks = ["eth0"].map(|name| detector_core::link::InterfaceName::new(name).unwrap());
    let node = NodeName("node".into());
    Arc::new(Settings { uplinks: uplinks.to_vec(), ..Settings::for_node(node) })
}

/// A dump that leaves nothing out, and has time.
pub(crate) fn whole() -> DumpOptions {
    DumpOptions {
        settings: Arc::new(Settings::for_node(NodeName("node".into()))),
        timeout: Duration::from_secs(30),
        accept_interrupted: false,
    }
}
