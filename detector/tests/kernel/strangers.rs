//! Programs of others on the hooks where ours hang: neither disturbs the other, whoever comes first.

use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::time::{Duration, Instant};

use aya::maps::Array;
use aya::programs::tc::{NlOptions, TcAttachOptions, TcHandle, qdisc_add_clsact};
use aya::programs::{LinkOrder, SchedClassifier, TcAttachType};
use aya::{Ebpf, include_bytes_aligned};
use detector::source::packets::{Hooks, Packets};
use detector_core::link::{InterfaceName, Link, LinkKind};
use detector_core::observation::KernelState;

use crate::namespace::{in_namespace, index, ip, settings};

static STRANGERS: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/detector-floors"));

static PROGRAMS: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/detector-packets"));

const SENDER: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 20);
const VICTIM: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 5);

/// What the stranger lets pass, and what it drops.
const PASSES: u16 = 5300;
const DROPPED: u16 = 9;

const LINK_ADDRESS: [u8; 6] = [0x02, 0, 0, 0, 0, 0x01];

/// A program of somebody else on the way in of `cali1`.
struct Stranger(Ebpf);

impl Stranger {
    fn load() -> Self {
        let mut ebpf = Ebpf::load(STRANGERS).unwrap();
        let program: &mut SchedClassifier =
            ebpf.program_mut("stranger").unwrap().try_into().unwrap();
        program.load().unwrap();
        Self(ebpf)
    }

    fn hang(&mut self, options: TcAttachOptions) {
        let program: &mut SchedClassifier =
            self.0.program_mut("stranger").unwrap().try_into().unwrap();
        program.attach_with_options("cali1", TcAttachType::Ingress, options).unwrap();
    }

    fn seen(&self) -> u64 {
        let seen: Array<_, u64> = self.0.map("STRANGER").unwrap().try_into().unwrap();
        seen.get(&0, 0).unwrap()
    }
}

fn filter(priority: u16, handle: u16) -> TcAttachOptions {
    let handle = TcHandle::new(0, handle);
    TcAttachOptions::Netlink(NlOptions { priority, handle, classid: None })
}

/// Ours on `cali1`.
fn ours(hooks: Hooks) -> Packets {
    let mut packets = Packets::load(hooks).unwrap();
    let name = InterfaceName::new("cali1").unwrap();
    let link = Link { index: index("cali1"), name, kind: LinkKind::Container, up: true };
    packets.follow_state(&settings(), &KernelState::Link(link));
    packets.settle();
    assert_eq!((packets.counters().pods, packets.counters().refused), (1, 0));
    packets
}

/// The same, which watch the victim.
fn watching(hooks: Hooks) -> Packets {
    let mut packets = ours(hooks);
    assert!(packets.watch(VICTIM.into()));
    packets.settle();
    packets
}

/// Waits for what is done in the background.
fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !is_so() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// How many filters hang on both ways.
fn filters() -> [usize; 2] {
    ["ingress", "egress"].map(|hook| {
        let args = ["filter", "show", "dev", "cali1", hook];
        let output = std::process::Command::new("tc").args(args).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        text.matches(" id ").count()
    })
}

fn counted(packets: &mut Packets) -> u64 {
    let traffic = packets.traffic(VICTIM.into()).unwrap();
    let sums = traffic.counts.iter().filter(|count| count.flow.is_none());
    sums.map(|count| count.tally.packets).sum()
}

/// The victim, whose packets come in by `cali1`.
struct Victim {
    passes: UdpSocket,
    dropped: UdpSocket,
    sender: OwnedFd,
}

impl Victim {
    fn new() -> Self {
        for interface in ["all", "default", "cali1"] {
            std::fs::write(format!("/proc/sys/net/ipv4/conf/{interface}/rp_filter"), "0").unwrap();
        }
        ip("link set cali1 address 02:00:00:00:00:01");
        ip(&format!("address add {VICTIM}/32 dev lo"));
        ip(&format!("route add {SENDER}/32 dev cali1"));
        let listen = |port| {
            let socket = UdpSocket::bind((VICTIM, port)).unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            socket
        };
        // SAFETY: the call takes no pointer.
        let sender = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW, 0) };
        assert!(sender >= 0, "{}", io::Error::last_os_error());
        // SAFETY: the descriptor is new, and nobody else has it.
        let sender = unsafe { OwnedFd::from_raw_fd(sender) };
        Self { passes: listen(PASSES), dropped: listen(DROPPED), sender }
    }

    /// Sends five datagrams to each port; gives how many arrived at each.
    fn exchange(&self) -> (usize, usize) {
        for port in [DROPPED, PASSES] {
            (0..5).for_each(|_| self.send(port));
        }
        let mut buffer = [0; 8];
        // What is not dropped arrives in the order in which it was sent.
        let passed = (0..5).take_while(|_| self.passes.recv(&mut buffer).is_ok()).count();
        self.dropped.set_nonblocking(true).unwrap();
        let dropped = (0..5).take_while(|_| self.dropped.recv(&mut buffer).is_ok()).count();
        (passed, dropped)
    }

    /// Sends a datagram out of the pod's end of the veth.
    fn send(&self, port: u16) {
        let mut frame = [&LINK_ADDRESS[..], &[0xee; 6], &[0x08, 0x00]].concat();
        let mut header = vec![0x45, 0, 0, 36, 0, 0, 0x40, 0, 64, 17, 0, 0];
        header.extend(SENDER.octets());
        header.extend(VICTIM.octets());
        let sum: u32 =
            header.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
        let folded = (sum & 0xffff) + (sum >> 16);
        let checksum = !u16::try_from((folded & 0xffff) + (folded >> 16)).unwrap();
        header[10..12].copy_from_slice(&checksum.to_be_bytes());
        frame.extend(header);
        // Without a checksum, as IPv4 allows.
        frame.extend([0x9c, 0x40]);
        frame.extend(port.to_be_bytes());
        frame.extend([0, 16, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]);
        // SAFETY: all bytes zero are a value of this plain structure.
        let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        to.sll_family = u16::try_from(libc::AF_PACKET).unwrap();
        to.sll_ifindex = i32::try_from(index("cali1peer").get()).unwrap();
        let length = u32::try_from(size_of_val(&to)).unwrap();
        // SAFETY: the frame and the address live through the call, and their sizes are given.
        let sent = unsafe {
            libc::sendto(
                self.sender.as_raw_fd(),
                frame.as_ptr().cast(),
                frame.len(),
                0,
                (&raw const to).cast(),
                length,
            )
        };
        assert_eq!(usize::try_from(sent), Ok(frame.len()), "{}", io::Error::last_os_error());
    }
}

/// What becomes of packets where only the stranger hangs.
const AS_WITHOUT_US: (usize, usize) = (5, 0);

fn has_tcx() -> bool {
    let has =
        aya::util::KernelVersion::current().unwrap() >= aya::util::KernelVersion::new(6, 6, 0);
    if !has {
        eprintln!("SKIPPED: this kernel has no TCX");
    }
    has
}

#[test]
fn a_program_that_was_there_first_goes_on_as_before() {
    in_namespace(|| async {
        let victim = Victim::new();
        qdisc_add_clsact("cali1").unwrap();
        for priority in [1, 7, 49_152] {
            let mut stranger = Stranger::load();
            stranger.hang(filter(priority, 1));
            assert_eq!((victim.exchange(), stranger.seen()), (AS_WITHOUT_US, 10));
            let mut packets = watching(Hooks::Best);
            assert_eq!((victim.exchange(), stranger.seen()), (AS_WITHOUT_US, 20));
            // Without TCX nobody stands before a filter of a lower preference.
            if priority == 49_152 || has_tcx() {
                assert_eq!(counted(&mut packets), 10, "beside a filter of preference {priority}");
            }
            drop(packets);
            assert_eq!((victim.exchange(), stranger.seen()), (AS_WITHOUT_US, 30));
        }
    });
}

#[test]
fn a_program_on_tcx_that_was_there_first_goes_on_as_before() {
    in_namespace(|| async {
        if !has_tcx() {
            return;
        }
        let victim = Victim::new();
        let mut stranger = Stranger::load();
        stranger.hang(TcAttachOptions::TcxOrder(LinkOrder::default()));
        assert_eq!((victim.exchange(), stranger.seen()), (AS_WITHOUT_US, 10));
        let mut packets = watching(Hooks::Best);
        assert_eq!((victim.exchange(), stranger.seen()), (AS_WITHOUT_US, 20));
        assert_eq!(counted(&mut packets), 10);
        drop(packets);
        assert_eq!((victim.exchange(), stranger.seen()), (AS_WITHOUT_US, 30));
    });
}

#[test]
fn a_program_that_comes_later_hides_packets_only_until_it_is_seen() {
    in_namespace(|| async {
        if !has_tcx() {
            return;
        }
        let victim = Victim::new();
        let mut packets = watching(Hooks::Best);
        assert_eq!(victim.exchange(), (5, 5));
        assert_eq!(counted(&mut packets), 10);
        let mut stranger = Stranger::load();
        stranger.hang(TcAttachOptions::TcxOrder(LinkOrder::default()));
        assert_eq!((victim.exchange(), stranger.seen()), (AS_WITHOUT_US, 10));
        eventually("it is hung before the other", || packets.counters().rehung == 1);
        let before = counted(&mut packets);
        assert_eq!((victim.exchange(), stranger.seen()), (AS_WITHOUT_US, 20));
        assert_eq!(counted(&mut packets) - before, 10);
    });
}

#[test]
fn what_somebody_takes_away_is_hung_again() {
    in_namespace(|| async {
        let victim = Victim::new();
        let mut packets = watching(Hooks::Best);
        let gone = std::process::Command::new("tc")
            .args(["qdisc", "del", "dev", "cali1", "clsact"])
            .status()
            .unwrap();
        assert!(gone.success());
        victim.exchange();
        assert_eq!(counted(&mut packets), 0);
        eventually("it is hung again", || packets.counters().rehung == 1);
        victim.exchange();
        assert_eq!(counted(&mut packets), 10);
    });
}

#[test]
fn what_a_crash_has_left_is_taken_away() {
    in_namespace(|| async {
        let victim = Victim::new();
        qdisc_add_clsact("cali1").unwrap();
        let mut crashed = Ebpf::load(PROGRAMS).unwrap();
        for (name, hook) in [("from_pod", TcAttachType::Ingress), ("outward", TcAttachType::Egress)]
        {
            let program: &mut SchedClassifier =
                crashed.program_mut(name).unwrap().try_into().unwrap();
            program.load().unwrap();
            program.attach_with_options("cali1", hook, filter(7, 0xde7)).unwrap();
        }
        std::mem::forget(crashed);
        assert_eq!(filters(), [1, 1]);
        let mut packets = watching(Hooks::Filters);
        victim.exchange();
        assert_eq!(counted(&mut packets), 10);
        assert_eq!(filters(), [1, 1]);
        drop(packets);
        assert_eq!(filters(), [0, 0]);
    });
}

#[test]
fn what_stays_is_moved_to_where_it_costs_less() {
    in_namespace(|| async {
        if !has_tcx() {
            return;
        }
        let victim = Victim::new();
        let mut packets = ours(Hooks::Best);
        // Nobody is watched: what goes out is nobody's matter.
        assert_eq!(filters(), [1, 0]);
        let tcx = || SchedClassifier::query_tcx("cali1", TcAttachType::Ingress).unwrap().1.len();
        eventually("it is moved to TCX", || filters() == [0, 0]);
        assert_eq!(tcx(), 1);
        assert!(packets.watch(VICTIM.into()));
        packets.settle();
        assert_eq!((tcx(), filters()), (1, [0, 1]));
        assert_eq!(victim.exchange(), (5, 5));
        assert_eq!(counted(&mut packets), 10);
        drop(packets);
        assert_eq!((tcx(), filters()), (0, [0, 0]));
    });
}
