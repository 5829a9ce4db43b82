//! One short program for each place: where packets of a pod come in, where those of others come in,
//! and where packets leave; each for interfaces with Ethernet headers and for those with none.

use aya_ebpf::bindings::TC_ACT_UNSPEC;
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use detector_ebpf::traffic::{
    ARP, Address, FlowKey, HAS_PORT, NEIGHBOUR, Oddity, PretenceKey, ROUTER, SOURCE, mapped,
};

use crate::count::{self, Weight};
use crate::parse::{self, ETH_P_ARP, ETH_P_IP, ETH_P_IPV6, IPPROTO_ICMPV6, Ipv4, Ipv6, Packet};

/// Other programs and the kernel go on as if this one were not there (`TCX_NEXT` is the same number).
const GO_ON: i32 = TC_ACT_UNSPEC;

const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
const ROUTER_ADVERTISEMENT: u8 = 134;

/// Where a pod's packets come in.
#[classifier]
pub(crate) fn from_pod(context: TcContext) -> i32 {
    pod::<true>(&context);
    GO_ON
}

/// The same where the pod's interface has no link header.
#[classifier]
pub(crate) fn from_pod_bare(context: TcContext) -> i32 {
    pod::<false>(&context);
    GO_ON
}

/// Where packets of hosts outside come in.
#[classifier]
pub(crate) fn from_uplink(context: TcContext) -> i32 {
    if count::is_watching() {
        passing::<true, false>(&context);
    }
    GO_ON
}

/// The same for tunnels, whose packets have no link header.
#[classifier]
pub(crate) fn from_uplink_bare(context: TcContext) -> i32 {
    if count::is_watching() {
        passing::<false, false>(&context);
    }
    GO_ON
}

/// Where packets leave.
#[classifier]
pub(crate) fn outward(context: TcContext) -> i32 {
    if count::is_watching() {
        passing::<true, true>(&context);
    }
    GO_ON
}

/// The same where they have no link header.
#[classifier]
pub(crate) fn outward_bare(context: TcContext) -> i32 {
    if count::is_watching() {
        passing::<false, true>(&context);
    }
    GO_ON
}

/// Counts a packet if its destination is watched.
#[inline(always)]
fn passing<const ETHER: bool, const OUT: bool>(context: &TcContext) {
    let Some(network) = parse::network::<ETHER>(context) else {
        return count::odd(Oddity::Unread);
    };
    let interface = if OUT { interface_of(context) } else { 0 };
    match network.protocol {
        ETH_P_IP => match parse::read::<Ipv4>(context, network.offset) {
            Some(header) => {
                let packet = parse::ipv4(&header, network.offset);
                if count::may_be_watched(&packet.destination) {
                    counted(context, packet, network.offset, interface);
                }
            }
            None => count::odd(Oddity::Unread),
        },
        ETH_P_IPV6 => match parse::read::<Ipv6>(context, network.offset) {
            Some(header) => {
                let mut packet = parse::ipv6(&header, network.offset);
                if count::may_be_watched(&packet.destination) {
                    parse::skip_extensions(context, &mut packet);
                    counted(context, packet, network.offset, interface);
                }
            }
            None => count::odd(Oddity::Unread),
        },
        _ => {}
    }
}

/// A packet of a pod: is it the pod's own, and is it for an address that is watched?
#[inline(always)]
fn pod<const ETHER: bool>(context: &TcContext) {
    let interface = interface_of(context);
    let slot = count::slot(interface);
    let Some(network) = parse::network::<ETHER>(context) else {
        return count::odd(Oddity::Unread);
    };
    match network.protocol {
        ETH_P_IP => {
            let Some(header) = parse::read::<Ipv4>(context, network.offset) else {
                return count::odd(Oddity::Unread);
            };
            let own = slot.is_none_or(|slot| slot.ipv4 == header.source);
            if own && !count::is_watching() {
                return;
            }
            let packet = parse::ipv4(&header, network.offset);
            let weight = || weight(context, &packet, network.offset);
            if !own && !is_nobodys_ipv4(header.source) {
                pretended(
                    context,
                    interface,
                    SOURCE,
                    &packet.source,
                    &packet.destination,
                    weight(),
                );
            }
            if count::is_watching() && count::may_be_watched(&packet.destination) {
                counted(context, packet, network.offset, 0);
            }
        }
        ETH_P_IPV6 => {
            let Some(header) = parse::read::<Ipv6>(context, network.offset) else {
                return count::odd(Oddity::Unread);
            };
            let source = halves(&header.source);
            let own = slot.is_none_or(|slot| slot.ipv6 == source);
            // Messages between neighbours may lie about more than their source.
            let usual = own && header.source[0] != 0xfe && header.next != IPPROTO_ICMPV6;
            if usual && !count::is_watching() {
                return;
            }
            let mut packet = parse::ipv6(&header, network.offset);
            parse::skip_extensions(context, &mut packet);
            if packet.next == IPPROTO_ICMPV6 && !packet.later {
                neighbours(context, interface, slot.is_some(), &packet, network.offset);
            }
            if !own && !is_nobodys_ipv6(&header.source) {
                let weight = weight(context, &packet, network.offset);
                pretended(context, interface, SOURCE, &packet.source, &packet.destination, weight);
            }
            if count::is_watching() && count::may_be_watched(&packet.destination) {
                counted(context, packet, network.offset, 0);
            }
        }
        ETH_P_ARP if slot.is_some() => {
            // Behind hardware and protocol, their lengths, the operation and the sender's link address.
            let Some(sender) = parse::read::<u32>(context, network.offset + 14) else { return };
            if slot.is_none_or(|slot| slot.ipv4 == sender) || is_nobodys_ipv4(sender) {
                return;
            }
            let address = mapped(sender.to_ne_bytes());
            let weight = Weight { packets: 1, bytes: 28 };
            pretended(context, interface, ARP, &address, &[0; 16], weight);
        }
        _ => {}
    }
}

/// Advertisements of neighbours and of routers.
#[inline(always)]
fn neighbours(context: &TcContext, interface: u32, known: bool, packet: &Packet, offset: usize) {
    let Some([kind, ..]) = parse::load4(context, packet.payload) else { return };
    if kind == ROUTER_ADVERTISEMENT {
        let key = PretenceKey { address: packet.source, interface, pretence: ROUTER };
        count::pretence(&key, &packet.destination, weight(context, packet, offset));
    } else if kind == NEIGHBOUR_ADVERTISEMENT && known {
        let Ok(target) = context.load::<Address>(packet.payload + 8) else { return };
        if !is_nobodys_ipv6(&target) {
            let weight = weight(context, packet, offset);
            pretended(context, interface, NEIGHBOUR, &target, &packet.destination, weight);
        }
    }
}

/// Counts a pretence, if the address is none of the interface's.
#[inline(always)]
fn pretended(
    _: &TcContext,
    interface: u32,
    pretence: u32,
    address: &Address,
    destination: &Address,
    weight: Weight,
) {
    if !count::is_source(interface, address) {
        let key = PretenceKey { address: *address, interface, pretence };
        count::pretence(&key, destination, weight);
    }
}

#[inline(always)]
fn counted(context: &TcContext, packet: Packet, offset: usize, interface: u32) {
    let port = parse::port(context, &packet);
    let key = FlowKey {
        address: packet.destination,
        client: packet.source,
        interface,
        port: port.unwrap_or(0),
        protocol: packet.next,
        flags: if port.is_some() { HAS_PORT } else { 0 },
    };
    count::flow(&key, weight(context, &packet, offset));
}

/// What a packet is on a wire: one that is sent in pieces later has its headers on each piece.
#[inline(always)]
fn weight(context: &TcContext, packet: &Packet, offset: usize) -> Weight {
    // SAFETY: the context is the kernel's, and the fields are always there.
    let (length, segments) = unsafe { ((*context.skb.skb).len, (*context.skb.skb).gso_segs) };
    let whole = length.saturating_sub(offset as u32);
    if segments <= 1 {
        return Weight { packets: 1, bytes: whole.into() };
    }
    let headers = (packet.payload - offset) as u32 + parse::transport_length(context, packet);
    let bytes = u64::from(whole) + u64::from(segments - 1) * u64::from(headers);
    Weight { packets: segments.into(), bytes }
}

#[inline(always)]
fn interface_of(context: &TcContext) -> u32 {
    // SAFETY: the context is the kernel's, and the field is always there.
    unsafe { (*context.skb.skb).ifindex }
}

#[inline(always)]
fn halves(address: &[u8; 16]) -> [u64; 2] {
    let half = |at: usize| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&address[at..at + 8]);
        u64::from_ne_bytes(bytes)
    };
    [half(0), half(8)]
}

/// Addresses that say nothing of who sends: none yet (DHCP, ARP probes), of this host, of this link,
/// of a group. In the wire's byte order.
#[inline(always)]
fn is_nobodys_ipv4(address: u32) -> bool {
    let [a, b, _, _] = address.to_ne_bytes();
    address == 0 || a == 127 || (a == 169 && b == 254) || a >= 224
}

/// The same for IPv6: none yet (duplicate address detection), of this link, of a group.
#[inline(always)]
fn is_nobodys_ipv6(address: &[u8; 16]) -> bool {
    let link_local = address[0] == 0xfe && address[1] & 0xc0 == 0x80;
    address[0] == 0xff || link_local || halves(address) == [0, 0]
}
