//! The real program on the real kernel, in a network namespace of its own.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::process::Command;

use detector::source::witness::Witness;
use detector_core::route::IfIndex;
use nix::sched::{CloneFlags, unshare};

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

fn ip(arguments: &str) {
    let done = Command::new("ip").args(arguments.split_whitespace()).status().unwrap();
    assert!(done.success(), "ip {arguments}");
}

/// The kinds of the netlink messages that the witness has recorded, and their lengths.
fn kinds(witness: &mut Witness) -> Vec<u16> {
    let mut kinds = Vec::new();
    while let Some(kind) = witness.next(|record| {
        let record = record.unwrap();
        assert!(!record.truncated && record.at > 0);
        let length = u32::from_ne_bytes(record.message[..4].try_into().unwrap());
        assert_eq!(length as usize, record.message.len(), "whole messages, one a record");
        u16::from_ne_bytes(record.message[4..6].try_into().unwrap())
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
        ip("link add v0 type veth peer name v1");
        ip("link set v1 up");
        ip("link set v0 up");
        let mut witness = Witness::attach(1 << 20).unwrap();
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
        ip("link add up0 type bridge");
        ip("link add v0 type veth peer name v1");
        for link in ["up0", "v0", "v1"] {
            ip(&format!("link set {link} up"));
        }
        let mut witness = Witness::attach(1 << 20).unwrap();
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
        ip("link add v0 type veth peer name v1");
        ip("link set v1 up");
        ip("link set v0 up");
        let mut witness = Witness::attach(4096).unwrap();
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
        Witness::attach(1 << 20).err().expect("nobody may load programs").to_string()
    });
    let told = told.join().unwrap();
    assert!(told.starts_with("the kernel refuses eBPF to this process"), "{told}");
    assert!(told.contains("--route-source netlink"), "{told}");
    assert_eq!(told.lines().count(), 1);
}
