//! Pods that are on the wire: each has a network namespace of its own, and packets come out of it as
//! out of any pod.
//!
//! Nobody asks for link addresses here: both ends of a pod's veth have the address that Calico gives
//! to the node's end, and no ARP. So a packet for any address that the node routes to a pod arrives
//! at the pod's end, whether it is the pod's own or stolen.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd as _, OwnedFd};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, bind, sendto,
    socket,
};

use super::frames::{self, FrameSender};
use super::tcp;
use crate::netns::{LinkAddress, Namespace};
use crate::scenario::UPLINK;
use crate::scenario::packets::{Carries, Message, OUTSIDE};

/// The link address of both ends of a pod's veth; Calico gives it to the node's end.
const LINK_ADDRESS: LinkAddress = [0xee; 6];

/// The same of the uplink, and the next hop by which the host outside finds the node.
const UPLINK_ADDRESS: &str = "02:00:00:00:00:01";
const NEXT_HOPS: [(&str, &str); 2] = [("-4", "192.0.2.1"), ("-6", "2001:db8::1")];

/// Where the host outside has its addresses.
const NETWORKS: [(&str, &str); 2] = [("-4", "192.0.2.0/24"), ("-6", "2001:db8::/64")];

/// The port by which the host outside is joined to the uplink.
const PORT: &str = "outside0";

/// The namespaces of pods by the names of their interfaces, and of a host outside.
pub(super) struct Wire {
    pods: BTreeMap<String, Namespace>,
    outside: Namespace,
}

/// What is sent.
pub(super) struct Packets {
    pub(super) from: IpAddr,
    pub(super) to: IpAddr,
    pub(super) carries: Carries,
    pub(super) port: u16,
    pub(super) count: u32,
    pub(super) connections: u32,
    pub(super) payload: u32,
}

// === impl Wire ===

impl Wire {
    /// Makes the node forward, and joins a host outside to its uplink.
    pub(super) fn new(node: &Namespace) -> Result<Self> {
        let settings = [
            ("net/ipv4/conf/all/rp_filter", "0"),
            ("net/ipv4/conf/default/rp_filter", "0"),
            ("net/ipv4/ip_forward", "1"),
            ("net/ipv6/conf/all/forwarding", "1"),
        ];
        node.within(|| -> io::Result<()> {
            for (name, value) in settings {
                fs::write(format!("/proc/sys/{name}"), value)?;
            }
            // Else rules translate on the uplink's port, before the packet has come in by the uplink.
            for name in
                ["net/bridge/bridge-nf-call-iptables", "net/bridge/bridge-nf-call-ip6tables"]
            {
                let path = format!("/proc/sys/{name}");
                if fs::exists(&path)? {
                    fs::write(path, "0")?;
                }
            }
            Ok(())
        })
        .context("the node cannot be made to forward")?;
        node.ip(&format!("link set {UPLINK} address {UPLINK_ADDRESS}"))?;
        let outside = Namespace::new()?;
        node.ip(&format!("link add {PORT} type veth peer name eth0 netns {}", outside.path()))?;
        node.ip(&format!("link set {PORT} master {UPLINK} up"))?;
        outside.ip("link set eth0 up")?;
        for (family, network) in NETWORKS {
            node.ip(&format!("{family} route add {network} dev {UPLINK}"))?;
        }
        for (family, next) in NEXT_HOPS {
            outside.ip(&format!(
                "{family} neigh add {next} lladdr {UPLINK_ADDRESS} dev eth0 nud permanent"
            ))?;
            outside.ip(&format!("{family} route add default via {next} dev eth0 onlink"))?;
        }
        Ok(Self { pods: BTreeMap::new(), outside })
    }

    /// Makes a pod's interface, with the pod behind it.
    pub(super) fn link(&mut self, node: &Namespace, name: &str) -> Result<()> {
        let pod = Namespace::new()?;
        node.netlink(|netlink| netlink.veth(name, ("eth0", &pod), Some(LINK_ADDRESS)))?;
        pod.netlink(|netlink| netlink.up_without_arp("eth0"))?;
        node.netlink(|netlink| netlink.up_without_arp(name))?;
        pod.netlink(|netlink| {
            netlink.route((Ipv4Addr::UNSPECIFIED.into(), 0), "eth0")?;
            netlink.route((Ipv6Addr::UNSPECIFIED.into(), 0), "eth0")
        })?;
        self.pods.insert(name.to_owned(), pod);
        Ok(())
    }

    /// Sends packets from a pod, by its interface's name, or from outside.
    pub(super) fn send(&self, from: &str, packets: &Packets) -> Result<()> {
        let sender = self.owning(from, packets.from)?;
        sender.within(|| match packets.carries {
            Carries::Udp => datagrams(packets),
            Carries::Icmp => echo_requests(packets),
            Carries::Tcp => bail!("TCP wants somebody who answers"),
        })
    }

    /// Makes connections from a pod, or from outside, to whoever answers for these addresses, by their
    /// interfaces' names; gives packets and bytes as the client's kernel counts them.
    pub(super) fn connect(
        &self,
        from: &str,
        (to, answering): (&str, impl Iterator<Item = IpAddr>),
        packets: &Packets,
    ) -> Result<(u64, u64)> {
        let client = self.owning(from, packets.from)?;
        for address in answering {
            self.owning(to, address)?;
        }
        tcp::connect(client, self.at(to)?, packets)
    }

    /// A namespace in which an address is its own: what is not becomes so, as for anybody with rights
    /// in a namespace.
    fn owning(&self, at: &str, address: IpAddr) -> Result<&Namespace> {
        let namespace = self.at(at)?;
        // Outside, neighbours must find it.
        let device = if at == OUTSIDE { "eth0" } else { "lo" };
        namespace.ip(&match address {
            IpAddr::V4(address) => format!("-4 address replace {address}/32 dev {device}"),
            IpAddr::V6(address) => format!("-6 address replace {address}/128 dev {device} nodad"),
        })?;
        Ok(namespace)
    }

    /// Sends a message between neighbours from a pod, by its interface's name.
    pub(super) fn pretend(&self, from: &str, sort: Message, address: IpAddr) -> Result<()> {
        let frame = match (sort, address) {
            (Message::Neighbour, IpAddr::V4(address)) => frames::arp_reply(address),
            (Message::Neighbour, IpAddr::V6(address)) => frames::neighbour_advertisement(address),
            (Message::Router, IpAddr::V6(address)) => frames::router_advertisement(address),
            (Message::Router, IpAddr::V4(_)) => {
                anyhow::bail!("IPv4 has no router advertisements")
            }
        };
        let send = || FrameSender::open("eth0")?.send(&frame).context("a frame cannot be sent");
        self.at(from)?.within(send)
    }

    /// A pod's namespace, by its interface's name.
    pub(super) fn at(&self, from: &str) -> Result<&Namespace> {
        if from == OUTSIDE {
            return Ok(&self.outside);
        }
        self.pods.get(from).with_context(|| format!("no pod has the interface {from}"))
    }
}

fn datagrams(packets: &Packets) -> Result<()> {
    let to = SocketAddr::new(packets.to, packets.port);
    let payload = vec![0; packets.payload as usize];
    let mut sockets = Vec::new();
    for _ in 0..packets.connections.max(1) {
        sockets.push(UdpSocket::bind((packets.from, 0)).context("no UDP socket")?);
    }
    for (_, socket) in (0..packets.count).zip(sockets.iter().cycle()) {
        let sent = socket.send_to(&payload, to).context("a datagram cannot be sent")?;
        ensure!(sent == payload.len(), "a datagram was cut short");
    }
    Ok(())
}

fn echo_requests(packets: &Packets) -> Result<()> {
    let (family, protocol, kind) = match packets.to {
        IpAddr::V4(_) => (AddressFamily::Inet, SockProtocol::Icmp, 8),
        IpAddr::V6(_) => (AddressFamily::Inet6, SockProtocol::IcmpV6, 128),
    };
    let socket: OwnedFd = socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
    let address = |address| SockaddrStorage::from(SocketAddr::new(address, 0));
    bind(socket.as_raw_fd(), &address(packets.from))?;
    for number in 0..packets.count {
        let mut message = vec![0; 8 + packets.payload as usize];
        message[0] = kind;
        message[6..8].copy_from_slice(&u16::try_from(number).unwrap_or(0).to_be_bytes());
        // For ICMPv6 the kernel does it.
        let sum = frames::checksum(&[&message]);
        message[2..4].copy_from_slice(&sum.to_be_bytes());
        sendto(socket.as_raw_fd(), &message, &address(packets.to), MsgFlags::empty())?;
    }
    Ok(())
}
