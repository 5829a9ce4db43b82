//! What the packet programs cost a packet, by the kernel's own measure (`BPF_PROG_TEST_RUN`), beside an
//! empty program and floors that do a part of the work.
//!
//! `cargo xtask bench packet`, as root.

#![allow(clippy::unwrap_used, reason = "a measurement that cannot be made ends here")]

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Instant;

use aya::maps::{Array, HashMap};
use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions};
use aya::{Ebpf, include_bytes_aligned};
use detector_ebpf::traffic::{Address, Slot, mapped, sieve, words};

static PROGRAMS: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/detector-packets"));
static FLOORS: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/detector-floors"));

/// Runs in one measurement, and measurements of which the least counts: what disturbs only adds.
const REPEAT: u32 = 200_000;
const ROUNDS: usize = 100;

/// The interface that the kernel lets test packets come in by.
const LOOPBACK: u32 = 1;

const SOURCE: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 20);
const DESTINATION: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 5);

const SOURCE6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x10, 0x244, 1, 0, 0, 0, 0x20);
const DESTINATION6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x10, 0x244, 1, 0, 0, 0, 5);

/// A UDP datagram of 64 bytes in an Ethernet frame.
fn inet6() -> Vec<u8> {
    let mut packet = vec![0xee; 12];
    packet.extend([0x86, 0xdd]);
    packet.extend([0x60, 0, 0, 0, 0, 72, 17, 64]);
    packet.extend(SOURCE6.octets());
    packet.extend(DESTINATION6.octets());
    packet.extend([0x9c, 0x40, 0x14, 0xb4, 0, 72, 0, 0]);
    packet.resize(14 + 112, 0);
    packet
}

/// The same in IPv4.
fn inet4() -> Vec<u8> {
    let mut packet = vec![0xee; 12];
    packet.extend([0x08, 0x00]);
    packet.extend([0x45, 0, 0, 92, 0, 0, 0x40, 0, 64, 17, 0, 0]);
    packet.extend(SOURCE.octets());
    packet.extend(DESTINATION.octets());
    packet.extend([0x9c, 0x40, 0x14, 0xb4, 0, 72, 0, 0]);
    packet.resize(14 + 92, 0);
    packet
}

struct Bench {
    /// What it is measured in.
    what: &'static str,
    ebpf: Ebpf,
    /// The programs, and the least that each has cost a packet so far, in nanoseconds.
    least: Vec<(&'static str, f64)>,
}

impl Bench {
    fn load(what: &'static str, object: &[u8], names: &[&'static str]) -> Self {
        let mut ebpf = Ebpf::load(object).expect("the kernel takes the object: be root");
        for name in names {
            program(&mut ebpf, name).load().expect("the kernel takes the program");
        }
        Self { what, ebpf, least: names.iter().map(|name| (*name, f64::MAX)).collect() }
    }

    /// Measures each program once.
    fn run(&mut self, packet: &[u8]) {
        for (name, least) in &mut self.least {
            *least = least.min(cost(program(&mut self.ebpf, name), packet));
        }
    }
}

fn program<'e>(ebpf: &'e mut Ebpf, name: &str) -> &'e mut SchedClassifier {
    ebpf.program_mut(name).unwrap().try_into().unwrap()
}

fn cost(program: &SchedClassifier, packet: &[u8]) -> f64 {
    let mut options = TestRunOptions::new();
    options.data_in = Some(packet);
    options.repeat = REPEAT;
    // The kernel gives the mean in whole nanoseconds, which is too coarse; what the call takes besides its
    // runs is spread over all of them.
    let begun = Instant::now();
    let result = program.test_run(options).expect("the kernel runs the program");
    let took = begun.elapsed();
    assert_eq!(result.return_value, u32::MAX, "the packet goes on");
    took.as_secs_f64() * 1e9 / f64::from(REPEAT)
}

fn address(address: IpAddr) -> Address {
    match address {
        IpAddr::V4(address) => mapped(address.octets()),
        IpAddr::V6(address) => address.octets(),
    }
}

fn watch(bench: &mut Bench, addresses: impl Iterator<Item = IpAddr>) {
    let all: Vec<Address> = addresses.map(address).collect();
    let map = bench.ebpf.map_mut("WATCHED").unwrap();
    let mut watched: HashMap<_, Address, u32> = map.try_into().unwrap();
    for address in &all {
        watched.insert(address, 1, 0).unwrap();
    }
    let mut sifted: BTreeMap<u32, u64> = BTreeMap::new();
    for (word, bit) in all.iter().map(|address| sieve(&words(*address))) {
        *sifted.entry(word).or_default() |= bit;
    }
    let map = bench.ebpf.map_mut("SIEVE_BITS").unwrap();
    let mut bits: Array<_, u64> = map.try_into().unwrap();
    for (word, all) in sifted {
        bits.set(word, all, 0).unwrap();
    }
    let mut watching: Array<_, u32> =
        bench.ebpf.map_mut(".data.watching").unwrap().try_into().unwrap();
    watching.set(0, 1, 0).unwrap();
}

fn main() {
    // cargo asks a benchmark for its tests as well.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    println!("ns a packet, by BPF_PROG_TEST_RUN; the least of {ROUNDS} means of {REPEAT} runs");
    family("IPv4", &inet4(), DESTINATION.into(), |n| Ipv4Addr::from(0xc612_0000 + n).into());
    let other = |n: u32| Ipv6Addr::from((0x2001_0db8 << 96) + u128::from(n)).into();
    family("IPv6", &inet6(), DESTINATION6.into(), other);
}

/// Measures packets of one family.
fn family(family: &str, packet: &[u8], destination: IpAddr, other: impl Fn(u32) -> IpAddr) {
    let floors = Bench::load("floors", FLOORS, &["empty", "parse", "parse_and_look"]);
    let names = ["from_pod", "from_uplink", "outward"];
    let own = Slot {
        interface: LOOPBACK,
        ipv4: u32::from_ne_bytes(SOURCE.octets()),
        ipv6: words(SOURCE6.octets()),
    };
    let loaded = |(what, watched): (_, Vec<IpAddr>)| {
        let mut bench = Bench::load(what, PROGRAMS, &names);
        let map = bench.ebpf.map_mut("SLOT").unwrap();
        let mut slots: Array<_, [u8; Slot::SIZE]> = map.try_into().unwrap();
        slots.set(LOOPBACK, own.to_bytes(), 0).unwrap();
        if !watched.is_empty() {
            watch(&mut bench, watched.into_iter());
        }
        bench
    };
    let others = |count: u32| (0..count).map(&other);
    let cases = [
        ("nothing watched", vec![]),
        ("1 address watched, another's packet", others(1).collect()),
        ("1,000 addresses watched, another's packet", others(1_000).collect()),
        ("1 address watched, its packet", vec![destination]),
        ("1,000 addresses watched, one's packet", others(999).chain([destination]).collect()),
    ];

    let mut all: Vec<Bench> = [floors].into_iter().chain(cases.map(loaded)).collect();
    // Round by round, so that what disturbs for a while disturbs all alike.
    for _ in 0..ROUNDS {
        for bench in &mut all {
            bench.run(packet);
        }
    }
    let empty = all[0].least[0].1;
    println!("\n{family:<44} {:>8} {:>12}", "whole", "over empty");
    for Bench { what, least, .. } in all {
        println!("{what}:");
        for (name, cost) in least {
            println!("{:<44} {cost:>8.1} {:>12.1}", format!("  {name}"), cost - empty);
        }
    }
}
