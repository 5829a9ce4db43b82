//! A packet's headers, as far as they matter.
//!
//! The first headers are read where they lie; what comes after headers of any length, or lies not in
//! the packet's first piece (`skb_headlen`), is loaded.

use core::arch::asm;

use aya_ebpf::programs::TcContext;
use detector_ebpf::traffic::{Slot, Words, mapped_words};

use crate::forget::forget;

/// Kinds of packets, as they lie on the wire.
pub(crate) const ETH_P_IP: u16 = 0x0800u16.to_be();
/// See [`ETH_P_IP`].
pub(crate) const ETH_P_ARP: u16 = 0x0806u16.to_be();
/// See [`ETH_P_IP`].
pub(crate) const ETH_P_IPV6: u16 = 0x86ddu16.to_be();
const ETH_P_8021Q: u16 = 0x8100u16.to_be();
const ETH_P_8021AD: u16 = 0x88a8u16.to_be();

/// Bytes of an Ethernet header.
const ETHERNET: usize = 14;
/// Bytes of a VLAN tag.
const TAG: usize = 4;

/// Bytes of an IPv4 header without options, and of an IPv6 header.
const IPV4: usize = 20;
const IPV6: usize = 40;
/// Bytes of ports.
const PORTS: usize = 4;

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
    /// As it lies on the wire.
    pub(crate) protocol: u16,
}

/// An IP packet, as far as it matters.
pub(crate) struct Packet {
    pub(crate) source: Words,
    pub(crate) destination: Words,
    /// What comes next.
    pub(crate) next: u8,
    /// Where that begins.
    pub(crate) payload: usize,
    /// Whether it is a fragment other than the first.
    pub(crate) later: bool,
    /// The first four bytes of what comes next, and whether they were read with the header. Not an
    /// `Option`: verifiers before Linux 6.3 let no program copy what it has not written.
    ports: u32,
    has_ports: bool,
}

/// Where so many bytes of the packet lie; `None` where they are not in its first piece.
#[inline(always)]
fn place(context: &TcContext, offset: usize, length: usize) -> Option<usize> {
    let start = context.data() + offset;
    (start + length <= context.data_end()).then_some(start)
}

/// Reads a number by one instruction. Rust reads what may not be aligned byte by byte; the kernel lets
/// programs read packets and their own stack as they are on machines that can, which are all that the
/// agent is built for.
macro_rules! reader {
    ($name:ident, $number:ty, $instruction:literal) => {
        /// # Safety
        /// So many bytes must lie at that offset from the place.
        #[inline(always)]
        unsafe fn $name<const OFFSET: usize>(place: usize) -> $number {
            let number: u64;
            // SAFETY: the caller's; the instruction changes nothing but its result.
            unsafe {
                asm!(
                    concat!("{number} = *(", $instruction, " *)({place} + {offset})"),
                    number = out(reg) number,
                    place = in(reg) place,
                    offset = const OFFSET,
                    options(pure, readonly, nostack, preserves_flags),
                );
                // Loads fill the rest with zeros; else bytes would be cut off once more.
                core::hint::assert_unchecked(number <= <$number>::MAX as u64);
            }
            number as $number
        }
    };
}

reader!(byte, u8, "u8");
reader!(half, u16, "u16");
reader!(word, u32, "u32");
reader!(word_alone, u64, "u32");
reader!(double, u64, "u64");

/// Four words by four instructions.
///
/// # Safety
/// As [`word`], for 16 bytes.
#[inline(always)]
unsafe fn address<const A: usize, const B: usize, const C: usize, const D: usize>(
    place: usize,
) -> Words {
    // SAFETY: the caller's.
    unsafe { [word::<A>(place), word::<B>(place), word::<C>(place), word::<D>(place)] }
}

/// The whole packet's length.
#[inline(always)]
pub(crate) fn length(context: &TcContext) -> u32 {
    // SAFETY: the context is the kernel's, and the field is always there.
    unsafe { (*context.skb.skb).len }
}

/// What the kernel takes the packet for.
#[inline(always)]
fn protocol(context: &TcContext) -> u16 {
    // SAFETY: the context is the kernel's, and the field is always there.
    unsafe { (*context.skb.skb).protocol as u16 }
}

/// Finds the network header: behind the Ethernet header and up to two tags, or at the start where the
/// interface has no link header.
#[inline(always)]
pub(crate) fn network<const ETHER: bool>(context: &TcContext) -> Option<Network> {
    if !ETHER {
        return Some(Network { offset: 0, protocol: protocol(context) });
    }
    let mut protocol = match place(context, 0, ETHERNET) {
        // SAFETY: the place has these bytes.
        Some(place) => unsafe { half::<{ ETHERNET - 2 }>(place) },
        None => context.load(ETHERNET - 2).ok()?,
    };
    let mut offset = ETHERNET;
    for _ in 0..2 {
        if protocol != ETH_P_8021Q && protocol != ETH_P_8021AD {
            break;
        }
        protocol = context.load(offset + 2).ok()?;
        offset += TAG;
    }
    Some(Network { offset, protocol })
}

/// Reads an IPv4 header.
#[inline(always)]
pub(crate) fn ipv4(context: &TcContext, offset: usize) -> Option<Packet> {
    if let Some(place) = place(context, offset, IPV4 + PORTS) {
        // SAFETY: the place has these bytes.
        return Some(unsafe { ipv4_at::<true>(place, offset) });
    }
    let header: [u32; IPV4 / 4] = context.load(offset).ok()?;
    // SAFETY: the header has these bytes.
    Some(unsafe { ipv4_at::<false>(header.as_ptr().expose_provenance(), offset) })
}

/// # Safety
/// The place must have the bytes of a header, and those of ports where they are to be read.
#[inline(always)]
unsafe fn ipv4_at<const WITH_PORTS: bool>(place: usize, offset: usize) -> Packet {
    // SAFETY: the caller's.
    unsafe {
        let length = usize::from(byte::<0>(place) & 0x0f) * 4;
        Packet {
            source: mapped_words(word::<12>(place)),
            destination: mapped_words(word::<16>(place)),
            next: byte::<9>(place),
            payload: offset + length,
            later: half::<6>(place) & 0x1fffu16.to_be() != 0,
            ports: if WITH_PORTS { word::<IPV4>(place) } else { 0 },
            has_ports: WITH_PORTS && length == IPV4,
        }
    }
}

/// Reads an IPv6 header.
#[inline(always)]
pub(crate) fn ipv6(context: &TcContext, offset: usize) -> Option<Packet> {
    if let Some(place) = place(context, offset, IPV6 + PORTS) {
        // SAFETY: the place has these bytes.
        return Some(unsafe { ipv6_at::<true>(place, offset) });
    }
    let header: [u32; IPV6 / 4] = context.load(offset).ok()?;
    // SAFETY: the header has these bytes.
    Some(unsafe { ipv6_at::<false>(header.as_ptr().expose_provenance(), offset) })
}

/// # Safety
/// As [`ipv4_at`].
#[inline(always)]
unsafe fn ipv6_at<const WITH_PORTS: bool>(place: usize, offset: usize) -> Packet {
    // SAFETY: the caller's.
    unsafe {
        Packet {
            source: address::<8, 12, 16, 20>(place),
            destination: address::<24, 28, 32, 36>(place),
            next: byte::<6>(place),
            payload: offset + IPV6,
            later: false,
            ports: if WITH_PORTS { word::<IPV6>(place) } else { 0 },
            has_ports: WITH_PORTS,
        }
    }
}

/// Whether a packet is plainly from this slot's usual source, and no message of ICMPv6: of most packets no
/// more need be read. Of one with a tag among its bytes it is not plain, nor of one that is shorter than an
/// IPv6 header with what is before it: one comparison serves both families.
#[inline(always)]
pub(crate) fn is_plainly_of<const ETHER: bool>(context: &TcContext, slot: &Slot) -> bool {
    if ETHER {
        let Some(place) = place(context, 0, ETHERNET + IPV6) else { return false };
        // SAFETY: the place has the bytes of all three headers.
        unsafe {
            match half::<{ ETHERNET - 2 }>(place) {
                ETH_P_IP => is_from_ipv4::<ETHERNET>(place, slot),
                ETH_P_IPV6 => is_plain_from_ipv6::<ETHERNET>(place, slot),
                _ => false,
            }
        }
    } else {
        let Some(place) = place(context, 0, IPV6) else { return false };
        // SAFETY: the place has the bytes of either header.
        unsafe {
            match protocol(context) {
                ETH_P_IP => is_from_ipv4::<0>(place, slot),
                ETH_P_IPV6 => is_plain_from_ipv6::<0>(place, slot),
                _ => false,
            }
        }
    }
}

/// # Safety
/// There must be a header at this offset.
#[inline(always)]
unsafe fn is_from_ipv4<const HEADER: usize>(place: usize, slot: &Slot) -> bool {
    // As whole registers: a number of 32 bits is cut off once more before it is compared.
    // SAFETY: the caller's.
    unsafe { word_alone::<12>(place + HEADER) == u64::from(slot.ipv4) }
}

/// # Safety
/// There must be a header at this offset.
#[inline(always)]
unsafe fn is_plain_from_ipv6<const HEADER: usize>(place: usize, slot: &Slot) -> bool {
    let (header, source) = (place + HEADER, core::ptr::from_ref(slot).expose_provenance());
    // SAFETY: the caller's; and the slot has an address at this offset.
    unsafe {
        matches!(byte::<6>(header), IPPROTO_TCP | IPPROTO_UDP)
            // What tells pods apart is in the second half.
            && double::<16>(header) == double::<16>(source)
            && double::<8>(header) == double::<8>(source)
    }
}

/// Whether an IPv6 packet is, or has before it what may lead to, a message of ICMPv6.
#[inline(always)]
pub(crate) fn may_be_icmpv6(packet: &Packet) -> bool {
    packet.next == IPPROTO_ICMPV6 || is_extension(packet.next)
}

/// Whether a header stands before what an IPv6 packet carries.
#[inline(always)]
pub(crate) fn is_extension(next: u8) -> bool {
    matches!(next, HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION)
}

/// Passes over the extension headers of an IPv6 packet.
#[inline(always)]
pub(crate) fn skip_extensions(context: &TcContext, packet: &mut Packet) {
    let any = length(context);
    // Else all that follows is verified once for each number of headers.
    packet.payload = forget(packet.payload as u32, any) as usize;
    skip_some(context, packet, any);
    packet.later = forget(packet.later.into(), any) & 1 != 0;
    packet.has_ports = forget(packet.has_ports.into(), any) & 1 != 0;
}

#[inline(always)]
fn skip_some(context: &TcContext, packet: &mut Packet, any: u32) {
    for _ in 0..EXTENSIONS {
        let unit = match packet.next {
            HOP_BY_HOP | ROUTING | DESTINATION => 8,
            AUTHENTICATION => 4,
            FRAGMENT => {
                let Some([next, _, high, low]) = load4(context, packet.payload) else { return };
                packet.next = next;
                packet.payload = forget(packet.payload as u32 + 8, any) as usize;
                packet.has_ports = false;
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
        let length =
            if unit == 8 { (u32::from(length) + 1) * 8 } else { (u32::from(length) + 2) * 4 };
        packet.payload = forget(packet.payload as u32 + length, any) as usize;
        packet.has_ports = false;
    }
}

/// The destination port, of protocols that have one.
#[inline(always)]
pub(crate) fn port(context: &TcContext, packet: &Packet) -> Option<u16> {
    if packet.later || !matches!(packet.next, IPPROTO_TCP | IPPROTO_UDP | IPPROTO_SCTP) {
        return None;
    }
    let [_, _, high, low] =
        if packet.has_ports { packet.ports.to_ne_bytes() } else { load4(context, packet.payload)? };
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

/// Who an ARP message says that it is from: behind hardware and protocol, their lengths, the operation
/// and the sender's link address. As it lies on the wire.
#[inline(always)]
pub(crate) fn arp_sender(context: &TcContext, offset: usize) -> Option<u32> {
    context.load(offset + 14).ok()
}

/// Four bytes from a place that is known only at run time, which the verifier lets nobody read but
/// this helper.
#[inline(always)]
pub(crate) fn load4(context: &TcContext, offset: usize) -> Option<[u8; 4]> {
    context.load(offset).ok()
}
