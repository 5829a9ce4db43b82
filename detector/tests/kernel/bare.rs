//! Interfaces whose packets have no link header: tunnels, and pods that some runtimes join by such.

use std::fs::File;
use std::io::Write as _;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsRawFd as _;

use detector::source::packets::{Hooks, Packets};
use detector_core::link::{InterfaceName, Link, LinkKind};
use detector_core::observation::KernelState;
use detector_core::traffic::{Side, Traffic};

use crate::namespace::{in_namespace, in_own_machine, index, ip, settings};

const SENDER: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 20);
const VICTIM: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 5);

#[test]
fn a_tunnels_packets_are_counted_both_ways() {
    both_ways("tun1", LinkKind::Infrastructure);
}

#[test]
fn a_pods_packets_are_counted_both_ways() {
    both_ways("cali7", LinkKind::Container);
}

fn both_ways(name: &'static str, kind: LinkKind) {
    // Our own machines have it.
    if !in_own_machine() && File::open(TUN).is_err() {
        eprintln!("SKIPPED: {TUN} is not there");
        return;
    }
    in_namespace(move || async move {
        let mut far_end = tun(name);
        ip(&format!("link set {name} up"));
        ip(&format!("route add {VICTIM}/32 dev {name}"));
        let mut packets = Packets::load(Hooks::Best).unwrap();
        let interface = InterfaceName::new(name).unwrap();
        let link = Link { index: index(name), name: interface, kind, up: true };
        packets.follow_state(&settings(), &KernelState::Link(link));
        assert!(packets.watch(VICTIM.into()));
        packets.settle();
        assert_eq!(packets.counters().refused, 0);

        let flows = |traffic: &Traffic| {
            let flows = traffic.counts.iter().filter(|count| count.flow.is_some());
            flows.map(|count| count.tally.packets).sum::<u64>()
        };
        let datagram = datagram();
        (0..3).for_each(|_| assert_eq!(far_end.write(&datagram).unwrap(), datagram.len()));
        let came_in = packets.traffic(VICTIM.into()).unwrap();
        assert_eq!(flows(&came_in), 3, "{came_in:?}");

        let socket = UdpSocket::bind("192.0.2.2:0").unwrap();
        (0..2).for_each(|_| assert_eq!(socket.send_to(&[7; 8], (VICTIM, 5300)).unwrap(), 8));
        let went_out = packets.traffic(VICTIM.into()).unwrap();
        let reached = went_out
            .counts
            .iter()
            .filter(|count| count.flow.is_none() && count.side == Side::Reached(index(name)));
        assert_eq!(reached.map(|count| count.tally.packets).sum::<u64>(), 2, "{went_out:?}");
    });
}

/// A datagram for the victim, from the IP header on.
fn datagram() -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 36, 0, 0, 0x40, 0, 64, 17, 0, 0];
    packet.extend(SENDER.octets());
    packet.extend(VICTIM.octets());
    packet.extend([0x9c, 0x40, 0x14, 0xb4, 0, 16, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]);
    packet
}

/// Makes interfaces without link headers.
const TUN: &str = "/dev/net/tun";

/// An interface whose other end is this file.
fn tun(name: &str) -> File {
    let file = File::options().read(true).write(true).open(TUN).unwrap();
    // SAFETY: all bytes zero are a value of this plain structure.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    let flags = libc::IFF_TUN | libc::IFF_NO_PI;
    request.ifr_ifru.ifru_flags = flags.try_into().unwrap();
    // SAFETY: the file is open, and the request is what this number takes.
    let done = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw const request) };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
    file
}
