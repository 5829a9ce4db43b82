//! The packet programs on packets made by hand, run by the kernel itself (`BPF_PROG_TEST_RUN`): which
//! are counted, as what, and which pretend.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::net::{Ipv4Addr, Ipv6Addr};

use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, PerCpuArray};
use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions};
use aya::{Ebpf, include_bytes_aligned};
use detector_ebpf::traffic::{
    ARP, Address, Counted, FlowKey, HAS_PORT, INTERFACE_BITS, NEIGHBOUR, Oddity, PretenceKey,
    Pretended, ROUTER, SOURCE, Slot, SourceKey, mapped, sieve, words,
};

static PROGRAMS: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/detector-packets"));

/// The interface that the kernel lets test packets come in by.
const LOOPBACK: u32 = 1;

const POD: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 20);
const VICTIM: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 5);
const POD6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x10, 0x244, 1, 0, 0, 0, 0x20);
const VICTIM6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x10, 0x244, 1, 0, 0, 0, 5);

const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;

/// A frame, part by part.
#[derive(Clone)]
struct Frame(Vec<u8>);

impl Frame {
    fn new(kind: u16) -> Self {
        let mut bytes = vec![0xee; 12];
        bytes.extend(kind.to_be_bytes());
        Self(bytes)
    }

    fn with(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }

    /// A VLAN tag, behind which another kind of packet follows.
    fn tag(self, number: u16, kind: u16) -> Self {
        self.with(&number.to_be_bytes()).with(&kind.to_be_bytes())
    }

    /// An IPv4 header with this many words of options.
    fn ipv4(self, from: Ipv4Addr, to: Ipv4Addr, carries: u8, fragment: u16, options: u8) -> Self {
        let [high, low] = fragment.to_be_bytes();
        self.with(&[0x45 + options, 0, 0, 0, 0, 0, high, low, 64, carries, 0, 0])
            .with(&from.octets())
            .with(&to.octets())
            .with(&vec![1; usize::from(options) * 4])
    }

    fn ipv6(self, from: Ipv6Addr, to: Ipv6Addr, next: u8) -> Self {
        self.with(&[0x60, 0, 0, 0, 0, 0, next, 64]).with(&from.octets()).with(&to.octets())
    }

    fn ports(self, to: u16) -> Self {
        self.with(&40_000u16.to_be_bytes()).with(&to.to_be_bytes()).with(&[0; 16])
    }
}

/// The loaded programs, with a pod on the interface and a victim that is watched.
struct Kernel(Ebpf);

impl Kernel {
    fn new() -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("SKIPPED: eBPF needs root");
            return None;
        }
        let mut kernel = Self(Ebpf::load(PROGRAMS).unwrap());
        for name in ["from_pod", "from_uplink", "outward"] {
            kernel.program(name).load().unwrap();
        }
        for address in [mapped(VICTIM.octets()), VICTIM6.octets()] {
            let map = kernel.0.map_mut("WATCHED").unwrap();
            let mut watched: HashMap<_, Address, u32> = map.try_into().unwrap();
            watched.insert(address, 1, 0).unwrap();
            let (word, bit) = sieve(&words(address));
            let map = kernel.0.map_mut("SIEVE_BITS").unwrap();
            let mut bits: Array<_, u64> = map.try_into().unwrap();
            let others = bits.get(&word, 0).unwrap();
            bits.set(word, others | bit, 0).unwrap();
        }
        kernel.set_watching(true);
        Some(kernel)
    }

    /// Tells the programs that addresses are watched, or that none is.
    fn set_watching(&mut self, watching: bool) {
        let map = self.0.map_mut(".data.watching").unwrap();
        let mut number: Array<_, u32> = map.try_into().unwrap();
        number.set(0, u32::from(watching), 0).unwrap();
    }

    /// Tells the programs which sources the interface's packets may have.
    fn with_sources(mut self) -> Self {
        let ipv4 = u32::from_ne_bytes(POD.octets());
        let slot = Slot { interface: LOOPBACK, ipv4, ipv6: words(POD6.octets()) };
        let map = self.0.map_mut("SLOT").unwrap();
        let mut slots: Array<_, [u8; Slot::SIZE]> = map.try_into().unwrap();
        slots.set(LOOPBACK, slot.to_bytes(), 0).unwrap();
        let map = self.0.map_mut("SOURCES").unwrap();
        let mut trie: LpmTrie<_, [u8; SourceKey::SIZE], u32> = map.try_into().unwrap();
        let range = mapped([198, 51, 100, 0]);
        for (address, bits) in [(mapped(POD.octets()), 128), (POD6.octets(), 128), (range, 96 + 24)]
        {
            let key = SourceKey { interface: LOOPBACK, address: words(address) };
            trie.insert(&Key::new(INTERFACE_BITS + bits, key.to_bytes()), 1, 0).unwrap();
        }
        self
    }

    fn program(&mut self, name: &str) -> &mut SchedClassifier {
        self.0.program_mut(name).unwrap().try_into().unwrap()
    }

    /// Runs a program on a packet; it goes on whatever it is.
    fn run(&mut self, name: &str, frame: &Frame) {
        self.run_whole(name, frame, 0, 0);
    }

    /// The same for one that is many: it will be cut into so many segments of this size.
    fn run_whole(&mut self, name: &str, frame: &Frame, segments: u32, size: u32) {
        // `struct __sk_buff` of linux/bpf.h, of which the kernel takes these two.
        let mut context = [0; 192];
        context[164..168].copy_from_slice(&segments.to_ne_bytes());
        context[176..180].copy_from_slice(&size.to_ne_bytes());
        let mut out = vec![0; frame.0.len() + 64];
        let mut options = TestRunOptions::new();
        options.ctx_in = Some(&context);
        options.data_in = Some(&frame.0);
        options.data_out = Some(&mut out);
        let result = self.program(name).test_run(options).unwrap();
        assert_eq!(result.return_value, u32::MAX, "the packet goes on");
        assert_eq!(out[..frame.0.len()], frame.0, "no byte is changed");
    }

    fn flows(&mut self) -> Vec<(FlowKey, Counted)> {
        let map = self.0.map("FLOWS").unwrap();
        let flows: HashMap<_, [u8; FlowKey::SIZE], [u8; Counted::SIZE]> = map.try_into().unwrap();
        let read = flows.iter().map(Result::unwrap);
        read.map(|(key, value)| (FlowKey::from_bytes(&key), Counted::from_bytes(&value))).collect()
    }

    fn odd(&self, oddity: Oddity) -> u64 {
        let odd: PerCpuArray<_, u64> = self.0.map("ODD").unwrap().try_into().unwrap();
        odd.get(&(oddity as u32), 0).unwrap().iter().sum()
    }

    fn pretended(&mut self) -> Vec<(PretenceKey, Pretended)> {
        let map = self.0.map("PRETENDED").unwrap();
        let all: HashMap<_, [u8; PretenceKey::SIZE], [u8; Pretended::SIZE]> =
            map.try_into().unwrap();
        let read = all.iter().map(Result::unwrap);
        read.map(|(key, value)| (PretenceKey::from_bytes(&key), Pretended::from_bytes(&value)))
            .collect()
    }
}

/// What a frame to the victim is counted as: protocol, port, and bytes.
fn counted(name: &str, frame: &Frame) -> Option<(u8, Option<u16>, u64)> {
    let mut kernel = Kernel::new()?;
    kernel.run(name, frame);
    let flows = kernel.flows();
    assert!(flows.len() <= 1, "{flows:?}");
    let (key, counted) = flows.first()?;
    assert_eq!(key.interface, if name == "outward" { LOOPBACK } else { 0 });
    assert_eq!(counted.packets, 1);
    assert!(counted.first > 0 && counted.last == counted.first);
    Some((key.protocol, (key.flags & HAS_PORT != 0).then_some(key.port), counted.bytes))
}

const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;

#[test]
fn packets_are_read_whatever_stands_before_their_ports() {
    if Kernel::new().is_none() {
        return;
    }
    let plain = |carries| Frame::new(IPV4).ipv4(POD, VICTIM, carries, 0, 0).ports(53);
    let behind = |next: u8, headers: &[u8]| {
        Frame::new(IPV6).ipv6(POD6, VICTIM6, next).with(headers).ports(53)
    };
    let hop = [UDP, 0, 0, 0, 0, 0, 0, 0];
    let hop_then_routing = [[43, 0, 0, 0, 0, 0, 0, 0], [UDP, 0, 0, 0, 0, 0, 0, 0]].concat();
    let long_options = [&[UDP, 1][..], &[0; 14]].concat();
    let authenticated = [&[UDP, 4, 0, 0][..], &[0; 20]].concat();
    let first_fragment = [UDP, 0, 0, 1, 0, 0, 0, 7];
    let later_fragment = [UDP, 0, 0, 9, 0, 0, 0, 7];
    let cases = [
        ("TCP", plain(TCP), (TCP, Some(53), 40)),
        ("UDP", plain(UDP), (UDP, Some(53), 40)),
        ("SCTP", plain(132), (132, Some(53), 40)),
        ("ICMP has no port", plain(1), (1, None, 40)),
        ("options", Frame::new(IPV4).ipv4(POD, VICTIM, UDP, 0, 10).ports(53), (UDP, Some(53), 80)),
        (
            "a first fragment",
            Frame::new(IPV4).ipv4(POD, VICTIM, UDP, 0x2000, 0).ports(53),
            (UDP, Some(53), 40),
        ),
        (
            "a later fragment has no port",
            Frame::new(IPV4).ipv4(POD, VICTIM, UDP, 0x2001, 0).ports(53),
            (UDP, None, 40),
        ),
        (
            "a tag",
            Frame::new(0x8100).tag(7, IPV4).ipv4(POD, VICTIM, UDP, 0, 0).ports(53),
            (UDP, Some(53), 40),
        ),
        (
            "two tags",
            Frame::new(0x88a8).tag(7, 0x8100).tag(8, IPV6).ipv6(POD6, VICTIM6, UDP).ports(53),
            (UDP, Some(53), 60),
        ),
        ("IPv6", behind(UDP, &[]), (UDP, Some(53), 60)),
        ("a hop-by-hop header", behind(0, &hop), (UDP, Some(53), 68)),
        ("two extension headers", behind(0, &hop_then_routing), (UDP, Some(53), 76)),
        ("a long extension header", behind(60, &long_options), (UDP, Some(53), 76)),
        ("an authentication header", behind(51, &authenticated), (UDP, Some(53), 84)),
        ("a first IPv6 fragment", behind(44, &first_fragment), (UDP, Some(53), 68)),
        ("a later IPv6 fragment", behind(44, &later_fragment), (UDP, None, 68)),
    ];
    for (what, frame, expected) in cases {
        for name in ["from_pod", "from_uplink", "outward"] {
            assert_eq!(counted(name, &frame), Some(expected), "{what}, {name}");
        }
    }
}

#[test]
fn packets_for_others_are_not_counted() {
    let Some(mut kernel) = Kernel::new() else { return };
    let other = Ipv4Addr::new(10, 244, 1, 6);
    for n in 0..2_000u32 {
        let to = Ipv4Addr::from(u32::from(other) + n);
        kernel.run("from_uplink", &Frame::new(IPV4).ipv4(POD, to, UDP, 0, 0).ports(53));
    }
    kernel.run("outward", &Frame::new(0x0806).with(&[0; 28]));
    // Cut short in the middle of a header.
    kernel.run("from_pod", &Frame::new(0x8100).tag(7, IPV6).with(&[0x60; 8]));
    assert_eq!(kernel.flows(), []);
}

#[test]
fn what_a_pod_may_not_send_is_told() {
    // Where no address is watched, the usual packet is told by less.
    for watching in [true, false] {
        may_not_send(watching);
    }
}

fn may_not_send(watching: bool) {
    let Some(kernel) = Kernel::new() else { return };
    let mut kernel = kernel.with_sources();
    kernel.set_watching(watching);
    let ipv4 = |from| Frame::new(IPV4).ipv4(from, Ipv4Addr::new(10, 0, 0, 1), UDP, 0, 0).ports(53);
    let ipv6 = |from| Frame::new(IPV6).ipv6(from, POD6, UDP).ports(53);
    let tagged = |from| {
        let frame = Frame::new(0x8100).tag(7, IPV4);
        frame.ipv4(from, Ipv4Addr::new(10, 0, 0, 1), UDP, 0, 0).ports(53)
    };
    // Half of either is the pod's own.
    let near = Ipv6Addr::new(0xfd00, 0x10, 0x244, 1, 0, 0, 0, 0x21);
    let far = Ipv6Addr::new(0xfd01, 0x10, 0x244, 1, 0, 0, 0, 0x20);
    let arp = |sender: Ipv4Addr| {
        let head = [0, 1, 8, 0, 6, 4, 0, 2, 2, 0, 0, 0, 0, 0x66];
        Frame::new(0x0806).with(&head).with(&sender.octets()).with(&[0; 10])
    };
    let link_local = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x20);
    let advertisement = |kind: u8, target: Ipv6Addr| {
        let head = Frame::new(IPV6).ipv6(link_local, POD6, ICMPV6);
        head.with(&[kind, 0, 0, 0, 0x20, 0, 0, 0]).with(&target.octets())
    };
    let silent = [
        ipv4(POD),
        tagged(POD),
        // A prefix that the pod may send from.
        ipv4(Ipv4Addr::new(198, 51, 100, 77)),
        // DHCP, the link's own, this host's, a group's.
        ipv4(Ipv4Addr::UNSPECIFIED),
        ipv4(Ipv4Addr::new(169, 254, 3, 4)),
        ipv4(Ipv4Addr::LOCALHOST),
        ipv4(Ipv4Addr::new(224, 0, 0, 5)),
        ipv6(POD6),
        ipv6(Ipv6Addr::UNSPECIFIED),
        ipv6(link_local),
        arp(POD),
        arp(Ipv4Addr::UNSPECIFIED),
        advertisement(136, POD6),
        advertisement(136, link_local),
        // A neighbour solicitation asks, and says nothing.
        advertisement(135, VICTIM6),
    ];
    for frame in &silent {
        kernel.run("from_pod", frame);
    }
    assert_eq!(kernel.pretended(), []);
    let told = [
        (ipv4(VICTIM), SOURCE, mapped(VICTIM.octets())),
        (tagged(Ipv4Addr::new(10, 9, 8, 7)), SOURCE, mapped([10, 9, 8, 7])),
        (ipv6(VICTIM6), SOURCE, VICTIM6.octets()),
        (ipv6(near), SOURCE, near.octets()),
        (ipv6(far), SOURCE, far.octets()),
        (arp(VICTIM), ARP, mapped(VICTIM.octets())),
        (advertisement(136, VICTIM6), NEIGHBOUR, VICTIM6.octets()),
        (advertisement(134, POD6), ROUTER, link_local.octets()),
    ];
    for (frame, _, _) in &told {
        kernel.run("from_pod", frame);
        kernel.run("from_pod", frame);
    }
    let all = kernel.pretended();
    assert_eq!(all.len(), told.len(), "{all:?}");
    for (_, pretence, address) in told {
        let key = PretenceKey { address: words(address), interface: LOOPBACK, pretence };
        let (_, pretended) = all.iter().find(|(is, _)| *is == key).unwrap();
        assert_eq!(pretended.counted.packets, 2, "{key:?}");
    }
    // Where they come in by an uplink nothing is said of sources.
    let Some(kernel) = Kernel::new() else { return };
    let mut kernel = kernel.with_sources();
    kernel.run("from_uplink", &ipv4(VICTIM));
    kernel.run("outward", &ipv4(VICTIM));
    assert_eq!(kernel.pretended(), []);
}

#[test]
fn what_is_cut_later_counts_as_what_it_will_be() {
    if Kernel::new().is_none() {
        return;
    }
    // A header of TCP with 12 bytes of options, and 3,000 bytes of payload that become 3 segments.
    let tcp = |frame: Frame| {
        let header = [&[0x9c, 0x40, 0x1f, 0x90][..], &[0; 8], &[0x80, 0x10], &[0; 18]].concat();
        frame.with(&header).with(&[7; 3_000])
    };
    let ipv4 = Frame::new(IPV4).ipv4(POD, VICTIM, TCP, 0, 0);
    let ipv6 = Frame::new(IPV6).ipv6(POD6, VICTIM6, TCP);
    let behind = [TCP, 0, 0, 0, 0, 0, 0, 0];
    let cases = [
        ("IPv4", tcp(ipv4), 3 * (20 + 32) + 3_000),
        (
            "a tag",
            tcp(Frame::new(0x8100).tag(7, IPV4).ipv4(POD, VICTIM, TCP, 0, 0)),
            3 * 52 + 3_000,
        ),
        ("IPv6", tcp(ipv6), 3 * (40 + 32) + 3_000),
        (
            "an extension header",
            tcp(Frame::new(IPV6).ipv6(POD6, VICTIM6, 0).with(&behind)),
            3 * (40 + 8 + 32) + 3_000,
        ),
    ];
    for (what, frame, bytes) in cases {
        for name in ["from_pod", "from_uplink", "outward"] {
            let Some(mut kernel) = Kernel::new() else { return };
            kernel.run_whole(name, &frame, 3, 1_000);
            let flows = kernel.flows();
            let [(key, counted)] = &flows[..] else { panic!("{what}: {flows:?}") };
            assert_eq!((key.protocol, key.port), (TCP, 8_080), "{what}, {name}");
            assert_eq!((counted.packets, counted.bytes), (3, bytes), "{what}, {name}");
        }
    }
}

#[test]
fn no_header_before_an_advertisement_hides_it() {
    for watching in [true, false] {
        hides_nothing(watching);
    }
}

fn hides_nothing(watching: bool) {
    let Some(kernel) = Kernel::new() else { return };
    let mut kernel = kernel.with_sources();
    kernel.set_watching(watching);
    let advertisement = [&[136, 0, 0, 0, 0x20, 0, 0, 0][..], &VICTIM6.octets()].concat();
    // To somebody who is not watched, by a packet whose source is the pod's own.
    let plain = |next| Frame::new(IPV6).ipv6(POD6, POD6, next);
    let hop = |next: u8| [next, 0, 0, 0, 0, 0, 0, 0];
    let frame = plain(0).with(&hop(60)).with(&hop(ICMPV6)).with(&advertisement);
    kernel.run("from_pod", &frame);
    let told = kernel.pretended();
    let [(key, _)] = &told[..] else { panic!("{told:?}") };
    assert_eq!((key.pretence, key.address), (NEIGHBOUR, words(VICTIM6.octets())));
    // Behind more than are passed over it is not found, which is counted.
    let mut frame = plain(60);
    for _ in 0..9 {
        frame = frame.with(&hop(60));
    }
    kernel.run("from_pod", &frame.with(&hop(ICMPV6)).with(&advertisement));
    assert_eq!(kernel.odd(Oddity::Unread), 1);
}

#[test]
fn of_an_interface_whose_sources_are_not_known_only_routers_are_told() {
    let Some(mut kernel) = Kernel::new() else { return };
    let any = Ipv4Addr::new(10, 9, 8, 7);
    kernel.run("from_pod", &Frame::new(IPV4).ipv4(any, POD, UDP, 0, 0).ports(53));
    assert_eq!(kernel.pretended(), []);
    let router = Frame::new(IPV6).ipv6(POD6, POD6, ICMPV6).with(&[134, 0, 0, 0]).with(&[0; 12]);
    kernel.run("from_pod", &router);
    assert_eq!(kernel.pretended().len(), 1);
}
