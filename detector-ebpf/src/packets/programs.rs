//! One short program for each place: where packets of a pod come in, where those of others come in,
//! and where packets leave; each for interfaces with Ethernet headers and for those with none.

use aya_ebpf::bindings::{__sk_buff, TC_ACT_UNSPEC};
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use detector_ebpf::traffic::{
    ARP, FlowKey, HAS_PORT, NEIGHBOUR, Oddity, PretenceKey, ROUTER, SOURCE, Slot, Words,
    mapped_words,
};

use crate::count::{self, Weight};
use crate::forget::forget;
use crate::parse::{self, ETH_P_ARP, ETH_P_IP, ETH_P_IPV6, IPPROTO_ICMPV6, Packet};

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
        ETH_P_IP => match parse::ipv4(context, network.offset) {
            Some(packet) if count::may_be_watched(&packet.destination) => {
                counted(context, &packet, network.offset, interface);
            }
            Some(_) => {}
            None => count::odd(Oddity::Unread),
        },
        ETH_P_IPV6 => match parse::ipv6(context, network.offset) {
            Some(mut packet) if count::may_be_watched(&packet.destination) => {
                parse::skip_extensions(context, &mut packet);
                counted(context, &packet, network.offset, interface);
            }
            Some(_) => {}
            None => count::odd(Oddity::Unread),
        },
        _ => {}
    }
}

/// A packet of a pod. Mostly it is the pod's own, and no address is watched.
#[inline(always)]
fn pod<const ETHER: bool>(context: &TcContext) {
    let slot = count::slot(interface_of(context));
    if let Some(slot) = slot
        && !count::is_watching()
        && parse::is_plainly_of::<ETHER>(context, slot)
    {
        return;
    }
    any_of_pod::<ETHER>(context.skb.skb, slot);
}

/// Is a packet the pod's own, and is it for an address that is watched? A function by itself: what it needs
/// of the stack and of registers the usual packet need not pay for.
#[inline(never)]
fn any_of_pod<const ETHER: bool>(skb: *mut __sk_buff, slot: Option<&'static Slot>) {
    let context = &TcContext::new(skb);
    let interface = interface_of(context);
    let Some(network) = parse::network::<ETHER>(context) else {
        return count::odd(Oddity::Unread);
    };
    match network.protocol {
        ETH_P_IP => {
            let Some(packet) = parse::ipv4(context, network.offset) else {
                return count::odd(Oddity::Unread);
            };
            let source = packet.source[3];
            let own = slot.is_none_or(|slot| slot.ipv4 == source);
            if !own && !is_nobodys_ipv4(source) {
                pretended(context, interface, &packet, network.offset);
            }
            if count::is_watching() && count::may_be_watched(&packet.destination) {
                counted(context, &packet, network.offset, 0);
            }
        }
        ETH_P_IPV6 => {
            let Some(mut packet) = parse::ipv6(context, network.offset) else {
                return count::odd(Oddity::Unread);
            };
            let own = slot.is_none_or(|slot| slot.ipv6 == packet.source);
            let watched = count::is_watching() && count::may_be_watched(&packet.destination);
            // Messages between neighbours may lie about more than their source. They stand behind no
            // extension header that is not passed over here.
            if own && !parse::may_be_icmpv6(&packet) {
                if watched {
                    counted(context, &packet, network.offset, 0);
                }
                return;
            }
            // What follows is verified once, and not for each of these.
            let any = parse::length(context);
            let own = forget(own.into(), any);
            let watched = forget(watched.into(), any);
            let known = forget(slot.is_some().into(), any);
            parse::skip_extensions(context, &mut packet);
            if parse::is_extension(packet.next) && !packet.later {
                // More of them than are passed over: what stands behind is not known.
                count::odd(Oddity::Unread);
            }
            if packet.next == IPPROTO_ICMPV6 && !packet.later {
                neighbours(context, interface, known & 1 != 0, &packet, network.offset);
            }
            if own & 1 == 0 && !is_nobodys_ipv6(&packet.source) {
                pretended(context, interface, &packet, network.offset);
            }
            if watched & 1 != 0 {
                counted(context, &packet, network.offset, 0);
            }
        }
        ETH_P_ARP => {
            let Some(slot) = slot else { return };
            let Some(sender) = parse::arp_sender(context, network.offset) else { return };
            if slot.ipv4 == sender || is_nobodys_ipv4(sender) {
                return;
            }
            let address = mapped_words(sender);
            if !count::is_source(interface, &address) {
                let key = PretenceKey { address, interface, pretence: ARP };
                count::pretence(&key, &[0; 4], Weight { packets: 1, bytes: 28 });
            }
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
        let Ok(target) = context.load::<Words>(packet.payload + 8) else { return };
        if !is_nobodys_ipv6(&target) && !count::is_source(interface, &target) {
            let key = PretenceKey { address: target, interface, pretence: NEIGHBOUR };
            count::pretence(&key, &packet.destination, weight(context, packet, offset));
        }
    }
}

/// Counts a packet whose source may be none of the interface's, if it is none.
#[inline(always)]
fn pretended(context: &TcContext, interface: u32, packet: &Packet, offset: usize) {
    if !count::is_source(interface, &packet.source) {
        let key = PretenceKey { address: packet.source, interface, pretence: SOURCE };
        count::pretence(&key, &packet.destination, weight(context, packet, offset));
    }
}

#[inline(always)]
fn counted(context: &TcContext, packet: &Packet, offset: usize, interface: u32) {
    let port = parse::port(context, packet);
    let key = FlowKey {
        address: packet.destination,
        client: packet.source,
        interface,
        port: port.unwrap_or(0),
        protocol: packet.next,
        flags: if port.is_some() { HAS_PORT } else { 0 },
    };
    count::flow(&key, weight(context, packet, offset));
}

/// What a packet is on a wire: one that is sent in pieces later has its headers on each piece.
#[inline(always)]
fn weight(context: &TcContext, packet: &Packet, offset: usize) -> Weight {
    // SAFETY: the context is the kernel's, and the field is always there.
    let segments = unsafe { (*context.skb.skb).gso_segs };
    let whole = parse::length(context).saturating_sub(offset as u32);
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

/// Addresses that say nothing of who sends: none yet (DHCP, ARP probes), of this host, of this link,
/// of a group. In the wire's byte order.
#[inline(always)]
fn is_nobodys_ipv4(address: u32) -> bool {
    let [a, b, _, _] = address.to_ne_bytes();
    address == 0 || a == 127 || (a == 169 && b == 254) || a >= 224
}

/// The same for IPv6: none yet (duplicate address detection), of this link, of a group.
#[inline(always)]
fn is_nobodys_ipv6(address: &Words) -> bool {
    let [first, second, _, _] = address[0].to_ne_bytes();
    let link_local = first == 0xfe && second & 0xc0 == 0x80;
    first == 0xff || link_local || *address == [0; 4]
}
