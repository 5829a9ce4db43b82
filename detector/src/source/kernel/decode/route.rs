//! `RTM_NEWROUTE`, `RTM_DELROUTE`: `struct rtmsg` and `RTA_…` of linux/rtnetlink.h.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use detector_core::route::{
    Hops, IfIndex, NextHop, NextHopId, Prefix, Protocol, Route, RouteKind, Table,
};

use crate::source::kernel::wire::{
    AF_INET, AF_INET6, Attribute, DecodeError, address, array, attributes, beyond, u16_at, u32_at,
};

const HEADER: usize = 12;

/// `RTM_F_CLONED`: a copy that the kernel keeps of a route, for one destination; IPv6 only in dumps.
const CLONED: u32 = 0x200;

const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTA_MULTIPATH: u16 = 9;
const RTA_TABLE: u16 = 15;
const RTA_VIA: u16 = 18;
const RTA_NH_ID: u16 = 30;

/// The route that a message is about; `None` for cached ones and for families other than IP.
pub(super) fn read(body: &[u8]) -> Result<Option<Route>, DecodeError> {
    let header: &[u8; HEADER] = array(body, "a route")?;
    let [family, length, _source_length, tos, table, protocol, _scope, kind, ..] = *header;
    let any: IpAddr = match family {
        AF_INET => Ipv4Addr::UNSPECIFIED.into(),
        AF_INET6 => Ipv6Addr::UNSPECIFIED.into(),
        _ => return Ok(None),
    };
    if u32_at(header, 8) & CLONED != 0 {
        return Ok(None);
    }
    let mut destination = any;
    let mut route = Route {
        // The header has 8 bits for it; the attribute, which the kernel always adds, has 32.
        table: Table(u32::from(table)),
        prefix: Prefix::host(any),
        tos,
        metric: 0,
        kind: RouteKind::from_rtn(kind),
        protocol: Protocol(protocol),
        nexthop_id: None,
        hops: Hops::None,
    };
    let mut single = NextHop { interface: None, gateway: None };
    let mut legs = None;
    for attribute in attributes(&body[HEADER..]) {
        let attribute = attribute?;
        match attribute.kind {
            RTA_DST => destination = attribute.address("a destination", family)?,
            RTA_TABLE => route.table = Table(attribute.u32("a table")?),
            RTA_PRIORITY => route.metric = attribute.u32("a metric")?,
            RTA_NH_ID => route.nexthop_id = NextHopId::new(attribute.u32("a next-hop id")?),
            RTA_OIF => single.interface = IfIndex::new(attribute.u32("an interface")?),
            RTA_GATEWAY | RTA_VIA => single.gateway = Some(gateway(&attribute, family)?),
            RTA_MULTIPATH => legs = Some(multipath(attribute.value, family)?),
            _ => {}
        }
    }
    route.prefix =
        Prefix::new(destination, length).ok_or(DecodeError::PrefixLength { length, family })?;
    route.hops = match legs {
        Some(legs) => legs,
        None if single.interface.is_none() && single.gateway.is_none() => Hops::None,
        None => Hops::One(single),
    };
    Ok(Some(route))
}

/// The neighbour that an `RTA_GATEWAY` or an `RTA_VIA` names. The latter is `struct rtvia`: a family
/// of its own and then the address, since an IPv4 route may lead to an IPv6 neighbour.
fn gateway(attribute: &Attribute<'_>, family: u8) -> Result<IpAddr, DecodeError> {
    const WHAT: &str = "a gateway";
    if attribute.kind == RTA_GATEWAY {
        return attribute.address(WHAT, family);
    }
    let via: &[u8; 2] = array(attribute.value, WHAT)?;
    // A family that does not fit 8 bits is none, and refused with its length.
    let family = u8::try_from(u16_at(via, 0)).unwrap_or(u8::MAX);
    address(&attribute.value[via.len()..], WHAT, family)
}

/// The legs of an `RTA_MULTIPATH`: `struct rtnexthop`, each with attributes of its own.
fn multipath(mut rest: &[u8], family: u8) -> Result<Hops, DecodeError> {
    const HEADER: usize = 8;
    let mut legs = Vec::new();
    while !rest.is_empty() {
        let header: &[u8; HEADER] = array(rest, "a leg")?;
        let length = usize::from(u16_at(header, 0));
        let room = rest.len();
        let own =
            rest.get(HEADER..length).ok_or(DecodeError::Length { what: "a leg", length, room })?;
        let mut leg = NextHop { interface: IfIndex::new(u32_at(header, 4)), gateway: None };
        for attribute in attributes(own) {
            let attribute = attribute?;
            if matches!(attribute.kind, RTA_GATEWAY | RTA_VIA) {
                leg.gateway = Some(gateway(&attribute, family)?);
            }
        }
        legs.push(leg);
        rest = beyond(rest, length);
    }
    // IPv6 announces a route beginning with the leg that joined it last, and dumps it beginning with
    // the one that came first (seen on Linux 6.18): their order says nothing.
    if family == AF_INET6 {
        legs.sort_unstable();
    }
    Ok(legs.into_iter().collect())
}
