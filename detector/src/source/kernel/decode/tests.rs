//! What the kernel really sent, read; and what it would never send, refused.

use std::net::IpAddr;

use detector_core::link::LinkKind;
use detector_core::observation::{KernelChange, KernelState, Neighbour, NeighbourKind, Place};
use detector_core::route::{
    IfIndex, NextHop, NextHopId, NextHopObject, Prefix, Protocol, Route, RouteKind, Rule,
    RuleAction, Table,
};
use ipnet::IpNet;
use proptest::prelude::*;

use super::{DELNEIGH, NEWLINK, NEWNEIGH, NEWROUTE, NEWRULE, change, state};
use crate::source::kernel::wire::{DecodeError, Message};

const CAPTURED: &str = include_str!("captured.txt");

/// The writer of all captured messages.
const WRITER: u32 = 4242;

const ETH0: u32 = 3;
const CALI1: u32 = 5;

/// All captured messages with the commands that caused them.
fn captured() -> Vec<(&'static str, Vec<u8>)> {
    let blocks = CAPTURED.split("\n\n").skip(1);
    let read = blocks.map(|block| {
        let (command, digits) = block.split_once('\n').unwrap();
        let digits: Vec<u8> = digits.bytes().filter(u8::is_ascii_hexdigit).collect();
        let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16);
        (command, digits.chunks(2).map(|pair| byte(pair).unwrap()).collect())
    });
    read.collect()
}

/// What the kernel said when `command` was run.
fn after(command: &str) -> KernelChange {
    let (_, bytes) = captured().into_iter().find(|(of, _)| *of == command).unwrap();
    let read = change(&Message::first(&bytes).unwrap());
    read.unwrap().unwrap()
}

fn index(index: u32) -> IfIndex {
    IfIndex::new(index).unwrap()
}

fn id(id: u32) -> NextHopId {
    NextHopId::new(id).unwrap()
}

fn prefix(text: &str) -> Prefix {
    Prefix::from(text.parse::<IpNet>().unwrap())
}

fn leg(gateway: Option<&str>, interface: u32) -> NextHop {
    let gateway = gateway.map(|text| text.parse::<IpAddr>().unwrap());
    NextHop { interface: IfIndex::new(interface), gateway }
}

/// A unicast route of the main table by protocol boot.
fn route(to: &str, legs: &[NextHop]) -> Route {
    Route {
        table: Table::MAIN,
        prefix: prefix(to),
        tos: 0,
        metric: 0,
        kind: RouteKind::Unicast,
        protocol: Protocol(3),
        nexthop_id: None,
        hops: legs.iter().copied().collect(),
    }
}

fn made(route: Route, place: Place) -> KernelChange {
    KernelChange::Route { route, place, writer: WRITER.into() }
}

#[test]
fn routes() {
    assert_eq!(
        after("ip route add 10.65.0.7 dev cali1 scope link"),
        made(route("10.65.0.7/32", &[leg(None, CALI1)]), Place::Alone),
    );
    assert_eq!(
        after("ip route del 10.65.0.7 dev cali1"),
        KernelChange::RouteGone(route("10.65.0.7/32", &[leg(None, CALI1)])),
    );
    // There was nothing to replace, and the table is beyond the 8 bits of the header.
    let elsewhere = Route {
        table: Table(1000),
        metric: 1024,
        protocol: Protocol(12),
        ..route("10.65.0.7/32", &[leg(None, ETH0)])
    };
    assert_eq!(
        after("ip route replace 10.65.0.7 dev eth0 metric 1024 table 1000 proto bird"),
        made(elsewhere, Place::Alone),
    );
    let blackhole =
        Route { kind: RouteKind::Blackhole, protocol: Protocol(80), ..route("10.3.0.0/26", &[]) };
    assert_eq!(after("ip route add blackhole 10.3.0.0/26 proto 80"), made(blackhole, Place::Alone),);
    let by_ipv6 = route("10.2.0.0/24", &[leg(Some("fe80::1"), ETH0)]);
    assert_eq!(
        after("ip route add 10.2.0.0/24 via inet6 fe80::1 dev eth0"),
        made(by_ipv6, Place::Alone),
    );
    let host = Route { metric: 1024, ..route("2001:db8::7/128", &[leg(None, CALI1)]) };
    assert_eq!(after("ip -6 route add 2001:db8::7/128 dev cali1"), made(host, Place::Alone));
}

#[test]
fn routes_with_several_legs() {
    let both = [leg(Some("192.0.2.3"), ETH0), leg(Some("192.0.2.4"), ETH0)];
    assert_eq!(
        after("ip route add 10.1.0.0/24 nexthop via 192.0.2.3 weight 2 nexthop via 192.0.2.4"),
        made(route("10.1.0.0/24", &both), Place::Alone),
    );
    let both = [leg(Some("fe80::1"), ETH0), leg(Some("fe80::2"), CALI1)];
    let both = Route { metric: 1024, ..route("2001:db8:1::/64", &both) };
    assert_eq!(
        after(
            "ip -6 route add 2001:db8:1::/64 nexthop via fe80::1 dev eth0 nexthop via fe80::2 dev \
             cali1"
        ),
        made(both, Place::Before),
    );
}

#[test]
fn next_hops_and_their_routes() {
    let gateway = leg(Some("192.0.2.9"), ETH0);
    assert_eq!(
        after("ip nexthop add id 7 via 192.0.2.9 dev eth0"),
        KernelChange::NextHop(id(7), NextHopObject::Leg(gateway)),
    );
    assert_eq!(
        after("ip nexthop add id 9 blackhole"),
        KernelChange::NextHop(id(9), NextHopObject::Blackhole),
    );
    assert_eq!(
        after("ip nexthop add id 8 group 7/5"),
        KernelChange::NextHop(id(8), NextHopObject::Group(vec![id(7), id(5)])),
    );
    assert_eq!(after("ip nexthop del id 9"), KernelChange::NextHopGone(id(9)));
    let by_object = Route { nexthop_id: Some(id(7)), ..route("10.4.0.0/24", &[gateway]) };
    assert_eq!(after("ip route add 10.4.0.0/24 nhid 7"), made(by_object, Place::Alone));
}

#[test]
fn rules() {
    let KernelChange::Rule(rule) =
        after("ip rule add from 10.0.0.0/8 to 192.0.2.1 fwmark 0x10 iif cali1 lookup 1000 pref 99")
    else {
        panic!("no rule");
    };
    assert_ne!(rule.narrowed, 0, "the interface narrows it");
    assert_eq!(
        rule,
        Rule {
            ipv4: true,
            priority: 99,
            from: Some(prefix("10.0.0.0/8")),
            to: Some(prefix("192.0.2.1/32")),
            mark: 0x10,
            narrowed: rule.narrowed,
            action: RuleAction::Lookup(Table(1000)),
        },
    );
    let everything = Rule {
        ipv4: true,
        priority: 1000,
        from: None,
        to: None,
        mark: 0,
        narrowed: 0,
        action: RuleAction::LookupVrf,
    };
    assert_eq!(after("ip rule add l3mdev pref 1000"), KernelChange::Rule(everything.clone()));
    let refused = Rule {
        ipv4: false,
        priority: 97,
        to: Some(prefix("2001:db8::/32")),
        action: RuleAction::Unreachable,
        ..everything
    };
    assert_eq!(
        after("ip -6 rule add to 2001:db8::/32 unreachable pref 97"),
        KernelChange::Rule(refused),
    );
}

/// "All but those with this mark" is nearer to "all" than to "those with this mark".
#[test]
fn an_inverted_rule_is_for_everything() {
    let KernelChange::Rule(rule) =
        after("ip rule add not fwmark 0x100000/0x100000 lookup 1 pref 98")
    else {
        panic!("no rule");
    };
    assert_eq!((rule.mark, rule.from, rule.to), (0, None, None));
    assert_ne!(rule.narrowed, 0);
    assert_eq!(after("ip rule del pref 98"), KernelChange::RuleGone(rule));
}

#[test]
fn links() {
    let KernelChange::Link(link) = after("ip link set cali1 down") else { panic!("no link") };
    assert_eq!((link.index, link.name.as_str()), (index(CALI1), "cali1"));
    assert_eq!((link.kind, link.up), (LinkKind::Container, false));
}

/// A dump says the same of a thing as the notification of its making.
#[test]
fn a_dump_and_a_notification_are_read_alike() {
    for (command, bytes) in captured() {
        let message = Message::first(&bytes).unwrap();
        let read = (change(&message).unwrap().unwrap(), state(&message).unwrap());
        match read {
            (KernelChange::Link(a), Some(KernelState::Link(b))) => assert_eq!(a, b),
            (KernelChange::Route { route: a, .. }, Some(KernelState::Route(b))) => assert_eq!(a, b),
            (KernelChange::Rule(a), Some(KernelState::Rule(b))) => assert_eq!(a, b),
            (KernelChange::NextHop(a, b), Some(KernelState::NextHop(c, d))) => {
                assert_eq!((a, b), (c, d));
            }
            // What is gone is in no dump.
            (
                KernelChange::RouteGone(_)
                | KernelChange::RuleGone(_)
                | KernelChange::NextHopGone(_),
                None,
            ) => {}
            other => panic!("{command}: {other:?}"),
        }
    }
}

/// The length that a cut message claims is that of the whole, so it is refused at every length but
/// its own; with the length put right it is read or refused, and never a panic.
#[test]
fn a_message_cut_anywhere_is_no_panic() {
    for (command, bytes) in captured() {
        for length in 0..bytes.len() {
            let mut cut = bytes[..length].to_vec();
            assert!(Message::first(&cut).is_err(), "{command} cut at {length}");
            if let Some(field) = cut.first_chunk_mut() {
                *field = u32::try_from(length).unwrap().to_ne_bytes();
            }
            if let Ok(message) = Message::first(&cut) {
                let _ = (change(&message), state(&message));
            }
        }
    }
}

#[test]
fn messages_of_one_datagram_are_all_read() {
    let all = captured();
    let datagram: Vec<u8> = all.iter().flat_map(|(_, bytes)| bytes.clone()).collect();
    let read: Vec<_> = Message::all(&datagram).map(Result::unwrap).collect();
    assert_eq!(read.len(), all.len());
    // A broken one ends the walk, and is told.
    let cut = &datagram[..datagram.len() - 1];
    let mut last = Message::all(cut).skip(all.len() - 1);
    assert!(matches!(last.next(), Some(Err(DecodeError::Length { .. }))));
    assert_eq!(last.next(), None);
}

/// An attribute as the kernel writes it.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + value.len()).unwrap();
    let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn message(kind: u16, body: &[u8]) -> Message<'_> {
    Message { kind, flags: 0, sequence: 0, port: 0, body }
}

/// `ip link add vrf1 type vrf table 1000`, as far as it matters.
#[test]
fn a_vrf_tells_its_table() {
    const LINKINFO: u16 = 0x12;
    let (of, up) = (9u32.to_ne_bytes(), 1u32.to_ne_bytes());
    let header = [[0; 4], of, up, [0; 4]].concat();
    let table = attribute(1, &1000u32.to_ne_bytes());
    let info = [attribute(1, b"vrf\0"), attribute(2, &table)].concat();
    let body =
        [&header[..], &attribute(3, b"vrf1\0"), &attribute(0x8000 | LINKINFO, &info)].concat();
    let Some(KernelChange::Link(link)) = change(&message(NEWLINK, &body)).unwrap() else {
        panic!("no link")
    };
    assert_eq!(link.kind, LinkKind::Vrf(Some(Table(1000))));
    assert!(link.up);
    assert_eq!(link.index, index(9));
    // A bridge says the same of one of its ports, and it is no change of the interface.
    let mut port = body.clone();
    port[0] = 7;
    assert_eq!(change(&message(NEWLINK, &port)), Ok(None));
    // The kernel allows names that are no text, and the detector must not be blind to those links.
    let odd = [&header[..], &attribute(3, b"cali\xff\xfe\x1b\0")].concat();
    let Some(KernelChange::Link(link)) = change(&message(NEWLINK, &odd)).unwrap() else {
        panic!("no link")
    };
    assert_eq!(link.name.as_str(), "cali???");
    let unnamed = change(&message(NEWLINK, &header));
    assert_eq!(unnamed, Err(DecodeError::Missing("the name of an interface")));
}

#[test]
fn what_does_not_concern_the_detector_is_left_out() {
    let route = |family: u8, flags: u32| {
        let mut body = vec![family, 0, 0, 0, 254, 3, 0, 1];
        body.extend(flags.to_ne_bytes());
        change(&message(NEWROUTE, &body)).map(|change| change.is_some())
    };
    assert_eq!(route(10, 0), Ok(true), "an IPv6 default route");
    assert_eq!(route(10, 0x200), Ok(false), "a cached copy");
    assert_eq!(route(28, 0), Ok(false), "MPLS");
    let multicast = [128, 0, 0, 0, 253, 0, 0, 1, 0, 0, 0, 0];
    assert_eq!(change(&message(NEWRULE, &multicast)), Ok(None));
    // A message about addresses.
    assert_eq!(change(&message(20, &[])), Ok(None));
}

#[test]
fn of_neighbours_those_that_somebody_made_are_told() {
    let body = |family: u8, state: u16, flags: u8, address: &[u8]| {
        let header = [vec![family, 0, 0, 0], 5u32.to_ne_bytes().to_vec()].concat();
        let rest = [state.to_ne_bytes().to_vec(), vec![flags, 1]].concat();
        [header, rest, attribute(1, address)].concat()
    };
    let (permanent, reachable, failed, proxy) = (0x80, 0x02, 0x20, 0x08);
    let address = [10, 1, 0, 5];
    let made = |kind| Neighbour { address: address.into(), interface: index(5), kind };
    let told = |kind: u16, body: &[u8]| change(&message(kind, body)).unwrap();
    assert_eq!(
        told(NEWNEIGH, &body(2, permanent, 0, &address)),
        Some(KernelChange::Neighbour(made(NeighbourKind::Permanent)))
    );
    assert_eq!(
        told(NEWNEIGH, &body(2, 0, proxy, &address)),
        Some(KernelChange::Neighbour(made(NeighbourKind::Proxy)))
    );
    // The kernel no longer says what the entry was.
    assert_eq!(
        told(DELNEIGH, &body(2, failed, 0, &address)),
        Some(KernelChange::NeighbourGone(made(NeighbourKind::Permanent)))
    );
    for (what, body) in [
        ("found out by the kernel", body(2, reachable, 0, &address)),
        ("a bridge's", body(7, permanent, 0, &[2, 0, 0, 0, 0, 5])),
        ("of the link only", body(10, permanent, 0, &[&[0xfe, 0x80][..], &[0; 14]].concat())),
    ] {
        assert_eq!(told(NEWNEIGH, &body), None, "{what}");
    }
    let cut = change(&message(NEWNEIGH, &[2; 11]));
    assert!(matches!(cut, Err(DecodeError::Short { .. })), "{cut:?}");
}

/// An attribute that the detector does not know, or that others find malformed, hides no route.
#[test]
fn what_is_not_looked_at_hides_nothing() {
    let (_, bytes) = captured().swap_remove(0);
    let plain = Message::first(&bytes).unwrap();
    for odd in [
        attribute(99, b"whatever"),
        // An encapsulation of a kind that does not exist, and metrics of no length.
        [attribute(22, &[0xff]), attribute(21, &[0xff, 0xff])].concat(),
        attribute(8 | 0x8000, &[1]),
    ] {
        let body = [plain.body, &odd].concat();
        assert_eq!(change(&Message { body: &body, ..plain }), change(&plain));
    }
}

#[test]
fn nonsense_is_refused_with_its_reason() {
    let route = |family: u8, length: u8, attributes: &[u8]| {
        let header = [family, length, 0, 0, 254, 3, 0, 1, 0, 0, 0, 0];
        change(&message(NEWROUTE, &[&header, attributes].concat())).unwrap_err().to_string()
    };
    assert_eq!(route(2, 33, &[]), "a prefix of 33 bits in a message of family 2");
    assert_eq!(
        route(2, 32, &attribute(1, &[0; 16])),
        "a destination of 16 bytes in a message of family 2",
    );
    assert_eq!(
        route(2, 32, &attribute(18, &[99, 0, 1, 2, 3, 4])),
        "a gateway of 4 bytes in a message of family 99",
    );
    assert_eq!(route(2, 32, &attribute(4, &[1])), "an interface needs 4 bytes, 1 are there");
    assert_eq!(route(2, 32, &[3, 0, 1, 0]), "an attribute says it has 3 bytes, 4 are there");
    assert_eq!(route(2, 32, &[4, 0, 1]), "an attribute's header needs 4 bytes, 3 are there");
    // A leg of no length would be read for ever.
    let legs = attribute(9, &[0; 8]);
    assert_eq!(route(2, 24, &legs), "a leg says it has 0 bytes, 8 are there");
}

proptest! {
    /// Any bytes are read or refused; and whatever is read has walked no further than its bytes.
    #[test]
    fn any_bytes_are_no_panic(kind in 16u16..110, body in prop::collection::vec(any::<u8>(), 0..300)) {
        let message = message(kind, &body);
        let _ = (change(&message), state(&message));
        prop_assert!(Message::all(&body).count() <= body.len() / 16 + 1);
    }

    /// Real messages with some bytes changed, which get further than random ones.
    #[test]
    fn mutated_messages_are_no_panic(
        which in any::<prop::sample::Index>(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let mut all = captured();
        let (_, mut bytes) = all.swap_remove(which.index(all.len()));
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        for message in Message::all(&bytes).flatten() {
            let _ = (change(&message), state(&message));
        }
    }
}
