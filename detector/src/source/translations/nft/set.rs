//! Elements of sets and maps.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use detector_core::route::Prefix;

use super::expression::{address, data, verdict};
use super::{INET, IPV6};
use crate::source::kernel::wire::attributes;

const ELEM_KEY: u16 = 1;
const ELEM_DATA: u16 = 2;
const ELEM_FLAGS: u16 = 3;
const ELEM_KEY_END: u16 = 10;
/// `NFT_SET_ELEM_INTERVAL_END`.
const INTERVAL_END: u32 = 1;

/// Prefixes that a span of addresses is made of, at the most.
const SPAN: usize = 256;

/// What a map says of a key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Value {
    /// Nothing: it is a set.
    None,
    /// An address, and perhaps a port behind it.
    Address(IpAddr),
    /// A chain to go on in.
    Chain(String),
    /// Something else.
    Other,
}

/// An element.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Element {
    key: Vec<u8>,
    key_end: Option<Vec<u8>>,
    /// The first key behind an interval.
    ends: bool,
    value: Value,
}

/// Reads an element.
pub(super) fn element(bytes: &[u8]) -> Option<Element> {
    let mut element = Element { key: Vec::new(), key_end: None, ends: false, value: Value::None };
    for attribute in attributes(bytes).filter_map(Result::ok) {
        match attribute.kind {
            ELEM_KEY => element.key = data(attribute.value)?.to_vec(),
            ELEM_KEY_END => element.key_end = data(attribute.value).map(<[u8]>::to_vec),
            ELEM_FLAGS => {
                let flags = attribute.value.first_chunk().map(|flags| u32::from_be_bytes(*flags));
                element.ends = flags.is_some_and(|flags| flags & INTERVAL_END != 0);
            }
            ELEM_DATA => {
                element.value = match (verdict(attribute.value), data(attribute.value)) {
                    (Some(chain), _) => Value::Chain(chain),
                    // Behind an address there may be a port.
                    (None, Some(value)) => match value.len() {
                        4 | 16 => address(value).map_or(Value::Other, Value::Address),
                        8 => address(&value[..4]).map_or(Value::Other, Value::Address),
                        20 => address(&value[..16]).map_or(Value::Other, Value::Address),
                        _ => Value::Other,
                    },
                    (None, None) => Value::Other,
                };
            }
            _ => {}
        }
    }
    (!element.key.is_empty()).then_some(element)
}

/// The destinations of a set of keys that begin with a destination, each with what it is mapped to.
pub(super) fn prefixes(elements: &[Element], family: u8) -> Vec<(Prefix, Value)> {
    let first = |key: &[u8]| match (family, key.len()) {
        (IPV6, _) | (INET, 16) => address(key.get(..16)?),
        _ => address(key.get(..4)?),
    };
    let intervals = elements.iter().any(|element| element.ends);
    let mut sorted: Vec<&Element> = elements.iter().collect();
    sorted.sort_by(|a, b| a.key.cmp(&b.key));
    let mut all = Vec::new();
    for (at, element) in sorted.iter().enumerate() {
        let Some(start) = first(&element.key).filter(|_| !element.ends) else { continue };
        if let Some(end) = element.key_end.as_deref().and_then(first) {
            all.extend(span(start, end).into_iter().map(|prefix| (prefix, element.value.clone())));
        } else if intervals {
            // Where the next begins at once, its key is also the mark of this one's end.
            let next = sorted[at + 1..].iter().find(|next| next.key != element.key);
            let next = next.and_then(|next| first(&next.key));
            let last = next.and_then(before).unwrap_or(highest(start));
            all.extend(span(start, last).into_iter().map(|prefix| (prefix, element.value.clone())));
        } else {
            all.push((Prefix::host(start), element.value.clone()));
        }
    }
    all
}

/// The fewest prefixes that make up a span of addresses; of a span of too many, those at its beginning.
pub(super) fn span(first: IpAddr, last: IpAddr) -> Vec<Prefix> {
    let (mut at, end, bits) = match (first, last) {
        (IpAddr::V4(first), IpAddr::V4(last)) => {
            (u128::from(u32::from(first)), u128::from(u32::from(last)), 32u8)
        }
        (IpAddr::V6(first), IpAddr::V6(last)) => (u128::from(first), u128::from(last), 128),
        _ => return Vec::new(),
    };
    let mut prefixes = Vec::new();
    while at <= end && prefixes.len() < SPAN {
        let mut free = if at == 0 { u32::from(bits) } else { at.trailing_zeros().min(bits.into()) };
        let top = |free: u32| at | 1u128.checked_shl(free).map_or(u128::MAX, |size| size - 1);
        while top(free) > end {
            free -= 1;
        }
        let length = bits - u8::try_from(free).unwrap_or(0);
        prefixes.extend(Prefix::new(number(at, bits), length));
        let Some(next) = top(free).checked_add(1) else { break };
        at = next;
    }
    prefixes
}

fn number(number: u128, bits: u8) -> IpAddr {
    if bits == 32 {
        Ipv4Addr::from(u32::try_from(number).unwrap_or(u32::MAX)).into()
    } else {
        Ipv6Addr::from(number).into()
    }
}

/// The address before it.
pub(super) fn before(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(address) => u32::from(address).checked_sub(1).map(|n| Ipv4Addr::from(n).into()),
        IpAddr::V6(address) => u128::from(address).checked_sub(1).map(|n| Ipv6Addr::from(n).into()),
    }
}

/// The address behind it.
pub(super) fn behind(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(address) => u32::from(address).checked_add(1).map(|n| Ipv4Addr::from(n).into()),
        IpAddr::V6(address) => u128::from(address).checked_add(1).map(|n| Ipv6Addr::from(n).into()),
    }
}

fn highest(like: IpAddr) -> IpAddr {
    if like.is_ipv4() { Ipv4Addr::BROADCAST.into() } else { Ipv6Addr::from(u128::MAX).into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_that_touch_are_all_there() {
        let at = |third: u8, ends: bool, value: Option<u8>| Element {
            key: vec![10, 0, third, 0],
            key_end: None,
            ends,
            value: value.map_or(Value::None, |last| Value::Address([10, 9, 9, last].into())),
        };
        let elements = [
            at(0, false, Some(1)),
            at(1, true, None),
            at(1, false, Some(2)),
            at(2, true, None),
            at(2, false, Some(3)),
            at(3, true, None),
        ];
        let read = prefixes(&elements, super::super::IPV4);
        let read: Vec<String> = read.iter().map(|(prefix, _)| prefix.to_string()).collect();
        assert_eq!(read, ["10.0.0.0/24", "10.0.1.0/24", "10.0.2.0/24"]);
    }

    #[test]
    fn a_span_is_the_fewest_prefixes() {
        let made_of = |first: &str, last: &str| {
            let ends = [first, last].map(|text| text.parse().expect("an address"));
            span(ends[0], ends[1]).iter().map(Prefix::to_string).collect::<Vec<_>>()
        };
        assert_eq!(made_of("10.0.0.0", "10.0.0.255"), ["10.0.0.0/24"]);
        assert_eq!(made_of("10.0.0.1", "10.0.0.4"), ["10.0.0.1/32", "10.0.0.2/31", "10.0.0.4/32"]);
        assert_eq!(made_of("0.0.0.0", "255.255.255.255"), ["0.0.0.0/0"]);
        assert_eq!(made_of("255.255.255.255", "255.255.255.255"), ["255.255.255.255/32"]);
        assert_eq!(made_of("::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"), ["::/0"]);
        assert_eq!(made_of("10.0.0.9", "10.0.0.1"), Vec::<String>::new());
    }
}
