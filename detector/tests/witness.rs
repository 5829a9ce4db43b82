//! The real program on the real kernel, in a network namespace of its own.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::os::fd::AsRawFd as _;
use std::process::Command;

use detector::source::witness::{Witness, WitnessError};
use detector::source::writer::WriterOptions;
use detector_core::route::IfIndex;
use detector_ebpf::What;
use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, sendto, socket,
};

/// Runs `test` in a fresh network namespace that ends with the thread, or says why it cannot.
fn in_namespace(test: impl FnOnce() + Send + 'static) {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED: network namespaces and eBPF need root");
        return;
    }
    let run = || {
        unshare(CloneFlags::CLONE_NEWNET).expect("root may make a namespace");
        // Without a local table the kernel takes every gateway for a broadcast address.
        ip("link set lo up");
        test();
    };
    std::thread::spawn(run).join().expect("the test in the namespace holds");
}

/// The witness alone.
fn attach(ring_bytes: u32) -> Result<Witness, WitnessError> {
    Witness::attach(ring_bytes, &WriterOptions::default()).map(|(witness, _)| witness)
}

fn ip(arguments: &str) {
    let done = Command::new("ip").args(arguments.split_whitespace()).status().unwrap();
    assert!(done.success(), "ip {arguments}");
}

/// Makes a link and sets it up. Of a bridge without ports the kernel has nothing more to say later:
/// no carrier will be found, and no address tried out.
fn link(name: &str) {
    ip(&format!("link add {name} type bridge"));
    // Apart: older kernels would set it up first, and make it an address.
    ip(&format!("link set {name} addrgenmode none"));
    ip(&format!("link set {name} up"));
}

/// The kinds of the netlink messages that the witness has recorded, and their lengths.
fn kinds(witness: &mut Witness) -> Vec<u16> {
    let mut kinds = Vec::new();
    while let Some(kind) = witness.next(|record| {
        let record = record.unwrap();
        assert!(record.at > 0);
        let What::Message(message) = record.what else { panic!("{record:?}") };
        let length = u32::from_ne_bytes(message[..4].try_into().unwrap());
        assert_eq!(length as usize, message.len(), "whole messages, one a record");
        u16::from_ne_bytes(message[4..6].try_into().unwrap())
    }) {
        kinds.push(kind);
    }
    kinds
}

const NEW_LINK: u16 = 16;
const DELETE_LINK: u16 = 17;
const NEW_ROUTE: u16 = 24;
const DELETE_ROUTE: u16 = 25;
const NEW_RULE: u16 = 32;
const DELETE_RULE: u16 = 33;
const NEW_NEXT_HOP: u16 = 104;

#[test]
fn what_decides_where_a_packet_goes_is_recorded_in_order() {
    in_namespace(|| {
        link("v0");
        let mut witness = attach(1 << 20).unwrap();
        ip("route add 10.0.0.1 dev v0");
        ip("-6 route add fd00::1 dev v0");
        ip("route append 10.0.0.1 via inet6 fe80::1 dev v0 metric 5");
        ip(
            "route add 10.0.0.2 nexthop via 10.0.0.1 dev v0 onlink nexthop via 10.0.0.9 dev v0 onlink",
        );
        ip("nexthop add id 7 dev v0");
        ip("rule add to 10.0.0.1 lookup 100");
        ip("rule del to 10.0.0.1 lookup 100");
        ip("route del 10.0.0.1 dev v0 metric 0");
        ip("link del v0");
        let kinds = kinds(&mut witness);
        let wanted = [
            NEW_ROUTE,
            NEW_ROUTE,
            NEW_ROUTE,
            NEW_ROUTE,
            NEW_NEXT_HOP,
            NEW_RULE,
            DELETE_RULE,
            DELETE_ROUTE,
            DELETE_LINK,
        ];
        let mut rest = kinds.iter();
        for kind in wanted {
            assert!(rest.any(|seen| *seen == kind), "{kind} is missing or late in {kinds:?}");
        }
        assert!(kinds.contains(&NEW_LINK), "the link went down before it went away: {kinds:?}");
        let counts = witness.counts().unwrap();
        assert_eq!(counts.written, kinds.len() as u64);
        assert_eq!(counts.seen, counts.written + counts.filtered + counts.lost + counts.unparsed);
    });
}

#[test]
fn only_what_leaves_by_uplinks_is_left_out() {
    in_namespace(|| {
        link("up0");
        link("v0");
        let mut witness = attach(1 << 20).unwrap();
        let index = nix::net::if_::if_nametoindex("up0").unwrap();
        witness.set_uplinks(&[IfIndex::new(index).unwrap()]).unwrap();
        kinds(&mut witness);
        let before = witness.counts().unwrap();
        ip("route add 10.1.0.0/24 dev up0");
        ip(
            "route add 10.2.0.0/24 nexthop via 10.1.0.1 dev up0 onlink nexthop via 10.1.0.2 dev up0 onlink",
        );
        ip("-6 route add fd01::/64 dev up0");
        assert!(kinds(&mut witness).is_empty(), "wide prefixes by uplinks cannot matter");
        assert_eq!(witness.counts().unwrap().filtered, before.filtered + 3);
        let matters = [
            "route add 10.3.0.1 dev up0",
            "route add 10.3.0.0/24 dev v0",
            "route add 10.4.0.0/24 nexthop via 10.1.0.1 dev up0 onlink nexthop via 10.1.0.2 dev v0 onlink",
            "route add 10.5.0.0/24 dev up0 table 100",
            "route add blackhole 10.6.0.0/24",
            "-6 route add fd02::/64 dev v0",
        ];
        for command in matters {
            ip(command);
            assert!(kinds(&mut witness).contains(&NEW_ROUTE), "{command}");
        }
        witness.set_uplinks(&[]).unwrap();
        ip("route add 10.7.0.0/24 dev up0");
        assert!(kinds(&mut witness).contains(&NEW_ROUTE), "no uplink any more");
    });
}

#[test]
fn what_the_ring_has_no_room_for_is_counted() {
    in_namespace(|| {
        link("v0");
        let mut witness = attach(4096).unwrap();
        for n in 1..=60 {
            ip(&format!("route add 10.0.1.{n} dev v0"));
        }
        let counts = witness.counts().unwrap();
        let records = kinds(&mut witness).len() as u64;
        assert!(counts.lost > 0, "{counts:?}");
        assert_eq!(records, counts.written);
        assert_eq!(counts.seen, counts.written + counts.filtered + counts.lost + counts.unparsed);
    });
}

#[test]
fn who_may_not_load_programs_is_told_what_to_do() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED: only root can show what it is like not to be root");
        return;
    }
    let told = std::thread::spawn(|| {
        // The bare system call changes this thread only, where the C library would change them all.
        // SAFETY: three plain numbers go in, and no memory of ours is touched.
        let done = unsafe { libc::syscall(libc::SYS_setresuid, 65534, 65534, 65534) };
        assert_eq!(done, 0);
        attach(1 << 20).err().expect("nobody may load programs").to_string()
    });
    let told = told.join().unwrap();
    assert!(told.starts_with("the kernel refuses eBPF to this process"), "{told}");
    assert!(told.contains("--route-source netlink"), "{told}");
    assert_eq!(told.lines().count(), 1);
}

/// Whoever has CAP_NET_ADMIN may send to the kernel's multicast groups in the kernel's own words, and
/// so withdraw before all who listen a route that stands.
#[test]
fn only_the_kernel_is_believed() {
    in_namespace(|| {
        let mut witness = attach(1 << 20).unwrap();
        assert!(witness.knows_senders());
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkRoute,
        )
        .unwrap();
        let forged = [
            28, 0, 0, 0, 25, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, // RTM_DELROUTE
            2, 0, 0, 0, 254, 3, 0, 1, 0, 0, 0, 0, // default
        ];
        let before = witness.counts().unwrap();
        for round in 1..=3 {
            ip("route add blackhole 10.8.0.0/24");
            let ipv4_routes = NetlinkAddr::new(0, 1 << (7 - 1));
            sendto(socket.as_raw_fd(), &forged, &ipv4_routes, MsgFlags::empty()).unwrap();
            ip("route del blackhole 10.8.0.0/24");
            assert_eq!(kinds(&mut witness), [NEW_ROUTE, DELETE_ROUTE]);
            assert_eq!(witness.foreign(), round);
        }
        let counts = witness.counts().unwrap();
        assert_eq!(counts.seen, before.seen + 9);
        assert_eq!(counts.written, before.written + 6);
        assert_eq!(counts.filtered, before.filtered + 3);
    });
}

/// Leaves the calling thread with these capabilities (`CAP_…` of linux/capability.h) and no others.
fn keep_capabilities(kept: &[u32]) {
    let mut words = [0u32; 2];
    for capability in kept {
        words[*capability as usize / 32] |= 1 << (capability % 32);
    }
    // Version 3 of the interface, this thread; then effective, permitted and inheritable, twice.
    let header = [0x2008_0522_u32, 0];
    let sets = [words[0], words[0], 0, words[1], words[1], 0];
    // SAFETY: the kernel reads 8 and 24 bytes, which the two arrays have.
    let done = unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), sets.as_ptr()) };
    assert_eq!(done, 0);
}

/// Runs `test` in a namespace, with the capabilities NET_ADMIN, BPF and these only.
fn with_capabilities(more: &'static [u32], test: impl FnOnce() + Send + 'static) {
    in_namespace(move || {
        // Only Linux before 5.11 asks for it, and grants it here; others have no need to.
        let _ = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY);
        keep_capabilities(&[&[12, 39], more].concat());
        test();
    });
}

#[test]
fn the_capabilities_that_are_asked_for_are_enough() {
    const PERFMON: u32 = 38;
    with_capabilities(&[PERFMON], || {
        let mut witness = attach(1 << 20).unwrap();
        assert!(witness.knows_senders());
        // A program of root's regains what was given up.
        ip("route add blackhole 10.9.0.0/24");
        assert_eq!(kinds(&mut witness), [NEW_ROUTE]);
    });
}

#[test]
fn without_a_look_at_senders_there_is_a_witness_or_a_word_why_not() {
    with_capabilities(&[], || match attach(1 << 20) {
        Ok(mut witness) => {
            assert!(!witness.knows_senders());
            ip("route add blackhole 10.9.0.0/24");
            assert_eq!(kinds(&mut witness), [NEW_ROUTE]);
        }
        // Before Linux 6.16.
        Err(error) => assert!(matches!(error, WitnessError::Perfmon(_)), "{error}"),
    });
}
