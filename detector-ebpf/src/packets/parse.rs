//! A packet's headers, as far as they matter.
//!
//! The first headers are read where they lie; what comes after headers of any length is loaded. Of
//! a packet whose first bytes are not in one piece (`skb_headlen`), the kernel is asked to bring them
//! together; that changes no byte of it.

use aya_ebpf::programs::TcContext;
use detector_ebpf::traffic::{Address, mapped};

pub(crate) const ETH_P_IP: u16 = 0x0800;
pub(crate) const ETH_P_ARP: u16 = 0x0806;
pub(crate) const ETH_P_IPV6: u16 = 0x86dd;
const ETH_P_8021Q: u16 = 0x8100;
const ETH_P_8021AD: u16 = 0x88a8;

/// Bytes of an Ethernet header.
const ETHERNET: usize = 14;
/// Bytes of a VLAN tag.
const TAG: usize = 4;

const IPPROTO_TCP: u8 = 6;
const IPPROTO_UDP: u8 = 17;
const IPPROTO_SCTP: u8 = 132;
pub(crate) const IPPROTO_ICMPV6: u8 = 58;
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION: u8 = 60;

/// Extension headers that are passed over; a packet with more is taken for one without a port.
const EXTENSIONS: u32 = 8;

/// Where the network header is, and of what protocol.
#[derive(Clone, Copy)]
pub(crate) struct Network {
    pub(crate) offset: usize,
    pub(crate) protocol: u16,
}

/// Reads bytes where they lie; `None` where they are not in the packet's first piece.
#[inline(always)]
pub(crate) fn peek<T: Copy>(context: &TcContext, offset: usize) -> Option<T> {
    let start = context.data() + offset;
    if start + size_of::<T>() > context.data_end() {
        return None;
    }
    // SAFETY: the bytes lie within the packet, as was just compared, and any bytes are a `T` of
    // integers; it need not be aligned.
    Some(unsafe { (start as *const T).read_unaligned() })
}

/// Reads bytes, wherever in the packet they are.
#[inline(always)]
pub(crate) fn read<T: Copy>(context: &TcContext, offset: usize) -> Option<T> {
    match peek(context, offset) {
        Some(value) => Some(value),
        None => context.load(offset).ok(),
    }
}

/// Finds the network header: behind the Ethernet header and up to two tags, or at the start where the
/// interface has no link header.
#[inline(always)]
pub(crate) fn network<const ETHER: bool>(context: &TcContext) -> Option<Network> {
    if !ETHER {
        // SAFETY: the context is the kernel's, and the field is always there.
        let protocol = unsafe { (*context.skb.skb).protocol } as u16;
        return Some(Network { offset: 0, protocol: u16::from_be(protocol) });
    }
    let mut protocol = u16::from_be(read::<u16>(context, ETHERNET - 2)?);
    let mut offset = ETHERNET;
    for _ in 0..2 {
        if protocol != ETH_P_8021Q && protocol != ETH_P_8021AD {
            break;
        }
        protocol = u16::from_be(read::<u16>(context, offset + 2)?);
        offset += TAG;
    }
    Some(Network { offset, protocol })
}

/// The addresses of an IP packet, and what it carries.
pub(crate) struct Packet {
    pub(crate) source: Address,
    pub(crate) destination: Address,
    /// What the IP header says comes next.
    pub(crate) next: u8,
    /// Where that begins.
    pub(crate) payload: usize,
    /// Whether it is a fragment other than the first.
    pub(crate) later: bool,
}

/// `struct iphdr` of linux/ip.h, in the wire's byte order.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Ipv4 {
    version_length: u8,
    tos: u8,
    length: u16,
    id: u16,
    fragment: u16,
    ttl: u8,
    protocol: u8,
    checksum: u16,
    pub(crate) source: u32,
    pub(crate) destination: [u8; 4],
}

/// `struct ipv6hdr` of linux/ipv6.h, in the wire's byte order.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Ipv6 {
    version: u32,
    length: u16,
    pub(crate) next: u8,
    hops: u8,
    pub(crate) source: [u8; 16],
    pub(crate) destination: [u8; 16],
}

#[inline(always)]
pub(crate) fn ipv4(header: &Ipv4, offset: usize) -> Packet {
    let length = usize::from(header.version_length & 0x0f) * 4;
    Packet {
        source: mapped(header.source.to_ne_bytes()),
        destination: mapped(header.destination),
        next: header.protocol,
        payload: offset + length,
        later: u16::from_be(header.fragment) & 0x1fff != 0,
    }
}

#[inline(always)]
pub(crate) fn ipv6(header: &Ipv6, offset: usize) -> Packet {
    Packet {
        source: header.source,
        destination: header.destination,
        next: header.next,
        payload: offset + size_of::<Ipv6>(),
        later: false,
    }
}

/// Passes over the extension headers of an IPv6 packet.
#[inline(always)]
pub(crate) fn skip_extensions(context: &TcContext, packet: &mut Packet) {
    for _ in 0..EXTENSIONS {
        let unit = match packet.next {
            HOP_BY_HOP | ROUTING | DESTINATION => 8,
            AUTHENTICATION => 4,
            FRAGMENT => {
                let Some([next, _, high, low]) = load4(context, packet.payload) else { return };
                packet.next = next;
                packet.payload += 8;
                if u16::from_be_bytes([high, low]) & 0xfff8 != 0 {
                    packet.later = true;
                    return;
                }
                continue;
            }
            _ => return,
        };
        let Some([next, length, _, _]) = load4(context, packet.payload) else { return };
        packet.next = next;
        packet.payload +=
            if unit == 8 { (usize::from(length) + 1) * 8 } else { (usize::from(length) + 2) * 4 };
    }
}

/// The destination port, of protocols that have one.
#[inline(always)]
pub(crate) fn port(context: &TcContext, packet: &Packet) -> Option<u16> {
    if packet.later || !matches!(packet.next, IPPROTO_TCP | IPPROTO_UDP | IPPROTO_SCTP) {
        return None;
    }
    let [_, _, high, low] = load4(context, packet.payload)?;
    Some(u16::from_be_bytes([high, low]))
}

/// Bytes of the header behind the IP header, which GSO repeats for each segment.
#[inline(always)]
pub(crate) fn transport_length(context: &TcContext, packet: &Packet) -> u32 {
    match packet.next {
        IPPROTO_TCP => {
            let offset = packet.payload + 12;
            match load4(context, offset) {
                Some([length, ..]) => u32::from(length >> 4) * 4,
                None => 20,
            }
        }
        IPPROTO_UDP => 8,
        _ => 0,
    }
}

/// Four bytes from a place that is known only at run time, which the verifier lets nobody read but
/// this helper.
#[inline(always)]
pub(crate) fn load4(context: &TcContext, offset: usize) -> Option<[u8; 4]> {
    context.load(offset).ok()
}
