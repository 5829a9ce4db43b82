//! What the two means of seeing changes tell.

use std::collections::BTreeMap;

use detector::clock;
use detector::config::RouteSource;
use detector::source::kernel::{KernelOptions, KernelSource};
use detector_core::link::Link;
use detector_core::observation::{KernelChange, Observation, What};
use detector_core::route::{IfIndex, Table};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

use crate::namespace::{in_namespace, index, ip, open, told, whole};
use crate::tables::Tables;

/// A day in the life of a routing table.
const COMMANDS: [&str; 44] = [
    "route add 10.65.0.1 dev cali1 scope link",
    "route add 10.65.0.2 dev cali1 scope link proto 80 metric 1024",
    "route replace 10.65.0.1 dev eth0 scope link",
    "route append 10.65.0.1 dev cali1 scope link",
    "route prepend 10.65.0.2 dev eth0 scope link metric 1024",
    "route add 10.65.0.3 via 192.0.2.3 proto bird",
    "route change 10.65.0.3 via 192.0.2.4 proto bird",
    "route add 10.65.0.4 via inet6 fe80::4 dev eth0",
    "route add 10.66.0.0/26 nexthop via 192.0.2.3 nexthop via 192.0.2.4 weight 3",
    "route add 10.66.1.0/26 nexthop via 192.0.2.3 nexthop via inet6 fe80::4 dev cali1",
    "route add 10.66.2.0/26 tos 0x10 dev cali1",
    "route add 10.67.0.0/16 dev cali1 table 5000",
    "route add 0.0.0.0/1 dev cali1",
    "route add default via 192.0.2.1",
    "route add blackhole 10.68.0.0/26 proto bird",
    "route add unreachable 10.68.0.64/26",
    "route add prohibit 10.68.0.128/26",
    "route add throw 10.68.0.192/26 table 5000",
    "route add local 10.69.0.1 dev lo",
    "-6 route add fd00::1 dev cali1",
    "-6 route add fd00::2 via fe80::2 dev eth0 metric 512",
    "-6 route replace fd00::1 dev eth0",
    "-6 route add fd01::/64 nexthop via fe80::1 dev eth0 nexthop via fe80::2 dev cali1",
    "-6 route append fd02::/64 via fe80::1 dev eth0",
    "-6 route append fd02::/64 via fe80::2 dev eth0",
    "-6 route add blackhole fd03::/64",
    "-6 route add fd04::/64 dev cali1 table 5000",
    "nexthop add id 1 via 192.0.2.9 dev eth0",
    "nexthop add id 2 dev cali1",
    "nexthop add id 3 group 1/2",
    "nexthop add id 4 blackhole",
    "route add 10.70.0.1 nhid 1",
    "route add 10.70.0.2 nhid 3",
    "nexthop replace id 1 via 192.0.2.10 dev eth0",
    "rule add from 10.0.0.0/8 lookup 5000 pref 100",
    "rule add to 10.65.0.0/16 iif cali1 fwmark 1/0xff lookup 5000 pref 101",
    "-6 rule add to fd00::/16 prohibit pref 102",
    "rule add not from 10.1.0.0/16 sport 53 lookup 5000 pref 103",
    "rule del pref 100",
    "route del 10.65.0.3",
    "route del 10.66.0.0/26",
    "-6 route del fd01::/64 via fe80::2 dev cali1",
    "-6 route del fd00::2 via fe80::2 dev eth0",
    "nexthop del id 2",
];

/// The changes without who made them.
fn without_processes(mut changes: Vec<KernelChange>) -> Vec<KernelChange> {
    for change in &mut changes {
        if let KernelChange::Route { writer, .. } = change {
            writer.process = None;
        }
    }
    changes
}

/// Links are told again for reasons that the detector does not look at, such as a carrier that was
/// found a moment later; only what differs from what is known of a link counts.
fn without_repeated_links(changes: Vec<KernelChange>) -> Vec<KernelChange> {
    let mut links: BTreeMap<IfIndex, Link> = BTreeMap::new();
    let news = |change: &KernelChange| match change {
        KernelChange::Link(link) => {
            links.insert(link.index, link.clone()).is_none_or(|known| known != *link)
        }
        _ => true,
    };
    changes.into_iter().filter(news).collect()
}

#[test]
fn both_sources_tell_the_same() {
    in_namespace(|| async {
        let mut both = [RouteSource::Ebpf, RouteSource::Netlink].map(open);
        for source in &mut both {
            source.set_uplinks(&[index("eth0")]).unwrap();
        }
        for command in COMMANDS {
            ip(command);
        }
        ip("link set eth0 down");
        // Before Linux 6.2 none is renamed that is up.
        ip("link set cali1 down");
        ip("link set cali1 name cali2");
        ip("link del cali2");
        let [ebpf, netlink] = both.each_mut().map(|source| without_repeated_links(told(source)));
        // Who wrote a route is known better by one than by the other.
        let [ebpf, netlink] = [ebpf, netlink].map(without_processes);
        assert!(ebpf.len() > COMMANDS.len(), "{} changes", ebpf.len());
        for (at, (ebpf, netlink)) in ebpf.iter().zip(&netlink).enumerate() {
            assert_eq!(ebpf, netlink, "change {at}");
        }
        assert_eq!(ebpf.len(), netlink.len());
        for source in &mut both {
            assert_eq!(source.take_loss(), None);
            let counters = source.counters();
            let sum = counters.written + counters.filtered + counters.lost + counters.unparsed;
            assert_eq!(counters.seen, sum, "{} {counters:?}", source.as_str());
            assert!(counters.filtered > 0, "eth0 is an uplink");
        }
    });
}

#[test]
fn a_dump_equals_the_increments() {
    for choice in [RouteSource::Ebpf, RouteSource::Netlink] {
        in_namespace(move || async move {
            let mut source = open(choice);
            let (mut tables, _) = Tables::dump(whole()).await;
            told(&mut source);
            for command in COMMANDS {
                ip(command);
                for change in told(&mut source) {
                    tables.apply(change);
                }
                let (dumped, _) = Tables::dump(whole()).await;
                assert_eq!(tables.clone().sorted(), dumped, "after ip {command}");
            }
        });
    }
}

/// IPv4 routes that leave by an interface go with it, and nobody says so.
#[test]
fn a_link_that_goes_down_is_told_before_the_routes_that_it_takes_along() {
    in_namespace(|| async {
        let mut source = open(RouteSource::Auto);
        ip("route add 10.65.0.1 dev cali1");
        ip("-6 route add fd00::1 dev cali1");
        let (mut tables, _) = Tables::dump(whole()).await;
        told(&mut source);
        ip("link set cali1 down");
        let changes = told(&mut source);
        let down = changes.iter().position(|change| {
            matches!(change, KernelChange::Link(link) if link.name.as_str() == "cali1" && !link.up)
        });
        let gone = changes.iter().position(
            |change| matches!(change, KernelChange::RouteGone(route) if !route.prefix.is_ipv4()),
        );
        assert!(down.unwrap() < gone.unwrap(), "{changes:?}");
        assert!(!changes.iter().any(|change| {
            matches!(change, KernelChange::RouteGone(route) if route.prefix.is_ipv4())
        }));
        for change in changes {
            tables.apply(change);
        }
        let (dumped, _) = Tables::dump(whole()).await;
        assert_eq!(tables.sorted().routes, dumped.routes);
    });
}

#[test]
fn a_source_wakes_for_a_change_and_stamps_it() {
    for choice in [RouteSource::Ebpf, RouteSource::Netlink] {
        in_namespace(move || async move {
            let mut source = open(choice);
            told(&mut source);
            // Again and again, since a wake-up that is lost shows at the next one.
            for round in 0..50 {
                let before = clock::now();
                let command = format!("route replace 10.65.0.{round} dev cali1");
                let change = tokio::task::spawn_blocking(move || ip(&command));
                let mut routes = Vec::new();
                while routes.is_empty() {
                    source.ready().await.unwrap();
                    source.drain(1, &mut |Observation { at, what }| {
                        if let What::Kernel(KernelChange::Route { route, writer, .. }) = what {
                            routes.push((at, route, writer));
                        }
                    });
                }
                let [(at, route, writer)] = &*routes else { panic!("{routes:?}") };
                assert_eq!(route.prefix.to_string(), format!("10.65.0.{round}/32"));
                assert_eq!(route.table, Table::MAIN);
                assert_ne!(writer.port, 0, "ip has a port of its own");
                assert!(before <= *at && *at <= clock::now());
                change.await.unwrap();
            }
        });
    }
}

/// Whoever has `CAP_NET_ADMIN` may send to the kernel's multicast groups as if he were the kernel.
#[test]
fn a_message_that_is_not_the_kernels_is_not_believed() {
    in_namespace(|| async {
        let mut source = open(RouteSource::Netlink);
        let forged: &[u8] = &[
            28, 0, 0, 0, 25, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, // RTM_DELROUTE
            2, 0, 0, 0, 254, 3, 0, 1, 0, 0, 0, 0, // default
        ];
        told(&mut source);
        let before = source.counters();
        let mut socket = Socket::new(NETLINK_ROUTE).unwrap();
        socket.bind_auto().unwrap();
        let routes = 1 << (7 - 1);
        // The kernel itself gets it too and answers what it likes; the groups come first.
        let _ = socket.send_to(forged, &SocketAddr::new(0, routes), 0);
        assert_eq!(told(&mut source), []);
        assert_eq!(source.counters().filtered, before.filtered + 1, "it did arrive");
    });
}

#[test]
fn where_ebpf_is_refused_netlink_takes_its_place() {
    in_namespace(|| async {
        let best = KernelSource::open(RouteSource::Auto, &KernelOptions::default()).unwrap();
        assert_eq!((best.source.as_str(), best.degraded), ("ebpf", None));

        give_capabilities_up();
        let options = KernelOptions::default();
        let error = KernelSource::open(RouteSource::Ebpf, &options).err().unwrap().to_string();
        assert!(error.contains("refuses eBPF") && error.contains("netlink"), "{error}");
        let opened = KernelSource::open(RouteSource::Auto, &options).unwrap();
        assert_eq!(opened.degraded, Some(error));
        let mut source = opened.source;
        assert_eq!(source.as_str(), "netlink");
        // Who is root has his capabilities back in a program that he starts.
        ip("route add 10.65.0.1 dev cali1");
        assert!(matches!(&told(&mut source)[..], [KernelChange::Route { .. }]));
    });
}

/// Leaves the calling thread, and no other, without effective capabilities.
fn give_capabilities_up() {
    /// `struct __user_cap_header_struct` and two `struct __user_cap_data_struct` of
    /// linux/capability.h, version 3.
    const HEADER: [u32; 2] = [0x2008_0522, 0];
    const NONE: [u32; 6] = [0; 6];
    // SAFETY: the kernel reads both structures, which are as long as their version says, and writes
    // to neither; capabilities are the thread's own.
    let done = unsafe { libc::syscall(libc::SYS_capset, HEADER.as_ptr(), NONE.as_ptr()) };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
}
