//! What a rule means, from its expressions (linux/netfilter/nf_tables.h).
//!
//! A rule loads parts of the packet into registers, compares them, and decides. What is known of each
//! register is followed from expression to expression; what is not understood is known to be nothing.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use detector_core::route::Prefix;

use super::super::chains::Destination;
use super::super::legacy::xt_dnat;
use super::{IPV4, IPV6, string};
use crate::source::kernel::wire::{Attribute, attributes};

const LIST_ELEM: u16 = 1;
const EXPR_NAME: u16 = 1;
const EXPR_DATA: u16 = 2;

/// `NFT_PAYLOAD_NETWORK_HEADER`.
const NETWORK: u32 = 1;
/// Where the destination is in the network header, and how long it is.
const IPV4_DESTINATION: (u32, usize) = (16, 4);
const IPV6_DESTINATION: (u32, usize) = (24, 16);

const NFT_JUMP: i32 = -3;
const NFT_GOTO: i32 = -4;
const DNAT: u32 = 1;
/// `NFT_CMP_…`.
const EQUAL: u32 = 0;
const LESS: u32 = 2;
const AT_MOST: u32 = 3;
const MORE: u32 = 4;
const AT_LEAST: u32 = 5;
/// `NFT_LOOKUP_F_INV`.
const INVERTED: u32 = 1;
/// `NFT_REG_VERDICT`.
const VERDICT: u32 = 0;

/// What is asked of the destination.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Asked {
    /// By the rule itself.
    Prefixes(Destination),
    /// To be in this set.
    Set(String),
}

/// What is done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Does {
    /// Translates the destination to an address of these.
    Translate(IpAddr, IpAddr),
    /// Translates it to what this map says.
    Map(String),
    /// Goes on in a chain.
    Jump(String),
    /// Goes on in the chain that this map says.
    Branch(String),
}

/// A rule, as far as it matters.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Meaning {
    pub(super) destination: Asked,
    pub(super) action: Does,
}

impl Meaning {
    /// The sets that it names.
    pub(super) fn sets(&self) -> impl Iterator<Item = &str> {
        let acts = match &self.action {
            Does::Map(name) | Does::Branch(name) => Some(name.as_str()),
            _ => None,
        };
        let asks = match &self.destination {
            Asked::Set(name) => Some(name.as_str()),
            Asked::Prefixes(_) => None,
        };
        acts.into_iter().chain(asks)
    }
}

/// What is in a register.
#[derive(Clone, Debug)]
enum Known {
    /// The destination, or this much of its beginning, with these bits of it.
    Destination { ipv6: bool, bytes: usize, mask: Vec<u8> },
    /// Fixed bytes.
    Fixed(Vec<u8>),
    /// What this map says of the destination.
    Mapped(String),
}

/// Follows one rule.
struct Reader {
    family: u8,
    registers: HashMap<u32, Known>,
    destination: Asked,
    meanings: Vec<Meaning>,
}

/// What a rule's expressions mean.
pub(super) fn meanings(expressions: &[u8], family: u8) -> Vec<Meaning> {
    let mut reader = Reader {
        family,
        registers: HashMap::new(),
        destination: Asked::Prefixes(Destination::Any),
        meanings: Vec::new(),
    };
    for element in attributes(expressions).filter_map(Result::ok) {
        if element.kind == LIST_ELEM {
            reader.expression(element.value);
        }
    }
    reader.meanings
}

impl Reader {
    fn expression(&mut self, value: &[u8]) {
        let (mut name, mut data) = (None, &[][..]);
        for attribute in attributes(value).filter_map(Result::ok) {
            match attribute.kind {
                EXPR_NAME => name = string(&attribute),
                EXPR_DATA => data = attribute.value,
                _ => {}
            }
        }
        let fields = Fields::read(data);
        match name.as_deref() {
            Some("payload") => self.payload(&fields),
            Some("bitwise") => self.bitwise(&fields),
            Some("cmp") => self.compare(&fields),
            Some("range") => self.range(&fields),
            Some("immediate") => self.immediate(&fields),
            Some("lookup") => self.lookup(&fields),
            Some("nat") => self.nat(&fields),
            Some("target") => self.target(&fields),
            Some("meta" | "ct" | "fib" | "socket" | "osf" | "hash" | "numgen" | "byteorder") => {
                // Each writes to one register, by the first or second of its fields.
                for field in [1, 2] {
                    if let Some(register) = fields.number(field) {
                        self.registers.remove(&register);
                    }
                }
            }
            _ => {}
        }
    }

    fn payload(&mut self, fields: &Fields<'_>) {
        let Some(register) = fields.number(1) else { return };
        self.registers.remove(&register);
        let (Some(base), Some(offset), Some(length)) =
            (fields.number(2), fields.number(3), fields.number(4))
        else {
            return;
        };
        let length = length as usize;
        let is = |(at, whole): (u32, usize)| {
            base == NETWORK && offset == at && (1..=whole).contains(&length)
        };
        // In a table of both families the place tells them apart.
        let ipv6 = self.family != IPV4 && is(IPV6_DESTINATION);
        if ipv6 || (self.family != IPV6 && is(IPV4_DESTINATION)) {
            let known = Known::Destination { ipv6, bytes: length, mask: vec![0xff; length] };
            self.registers.insert(register, known);
        }
    }

    fn bitwise(&mut self, fields: &Fields<'_>) {
        let (Some(from), Some(to)) = (fields.number(1), fields.number(2)) else { return };
        let known = self.registers.remove(&from);
        let (Some(mask), Some(xor)) = (fields.data(4), fields.data(5)) else { return };
        if let Some(Known::Destination { ipv6, bytes, .. }) = known
            && mask.len() == bytes
            && xor.iter().all(|byte| *byte == 0)
        {
            self.registers.insert(to, Known::Destination { ipv6, bytes, mask: mask.to_vec() });
        }
    }

    fn compare(&mut self, fields: &Fields<'_>) {
        let known = fields.number(1).and_then(|register| self.registers.get(&register));
        let Some(Known::Destination { ipv6, bytes, mask }) = known else { return };
        let value = fields.data(3).filter(|value| value.len() == *bytes);
        let asked = value.and_then(|value| asked(fields.number(2)?, value, mask, *ipv6));
        self.narrow(Asked::Prefixes(asked.unwrap_or(Destination::Other)));
    }

    fn range(&mut self, fields: &Fields<'_>) {
        let known = fields.number(1).and_then(|register| self.registers.get(&register));
        let Some(Known::Destination { .. }) = known else { return };
        let ends = fields.data(3).and_then(address).zip(fields.data(4).and_then(address));
        let asked = match ends {
            Some((first, last)) if fields.number(2) == Some(EQUAL) => {
                Destination::In(super::set::span(first, last))
            }
            _ => Destination::Other,
        };
        self.narrow(Asked::Prefixes(asked));
    }

    fn immediate(&mut self, fields: &Fields<'_>) {
        let Some(register) = fields.number(1) else { return };
        if register == VERDICT {
            if let Some(chain) = fields.get(2).and_then(|data| verdict(data.value)) {
                self.act(Does::Jump(chain));
            }
        } else if let Some(value) = fields.data(2) {
            self.registers.insert(register, Known::Fixed(value.to_vec()));
        }
    }

    fn lookup(&mut self, fields: &Fields<'_>) {
        let Some(set) = fields.get(1).and_then(string) else { return };
        let known = fields.number(2).and_then(|register| self.registers.get(&register));
        let is_destination = matches!(known, Some(Known::Destination { .. }));
        let inverted = fields.number(5).is_some_and(|flags| flags & INVERTED != 0);
        match (fields.number(3), is_destination) {
            (Some(VERDICT), true) => self.act(Does::Branch(set)),
            (Some(to), true) => {
                self.registers.insert(to, Known::Mapped(set));
            }
            (Some(to), false) => {
                self.registers.remove(&to);
            }
            (None, true) if inverted => self.narrow(Asked::Prefixes(Destination::Other)),
            (None, true) => self.narrow(Asked::Set(set)),
            (None, false) => {}
        }
    }

    fn nat(&mut self, fields: &Fields<'_>) {
        if fields.number(1) != Some(DNAT) {
            return;
        }
        let at = |field| fields.number(field).and_then(|register| self.registers.get(&register));
        let least = at(3).cloned();
        let most = at(4).cloned().or_else(|| least.clone());
        match (least, most) {
            (Some(Known::Fixed(least)), Some(Known::Fixed(most))) => {
                if let Some((least, most)) = address(&least).zip(address(&most)) {
                    self.act(Does::Translate(least, most));
                }
            }
            (Some(Known::Mapped(map)), _) => self.act(Does::Map(map)),
            _ => {}
        }
    }

    /// A target of iptables, carried in nftables.
    fn target(&mut self, fields: &Fields<'_>) {
        if fields.get(1).and_then(string).as_deref() != Some("DNAT") {
            return;
        }
        let (Some(revision), Some(info)) = (fields.number(2), fields.get(3)) else { return };
        if let Some((least, most)) = xt_dnat(revision, info.value, self.family == IPV6) {
            self.act(Does::Translate(least, most));
        }
    }

    fn narrow(&mut self, asked: Asked) {
        let nothing = || Destination::In(Vec::new());
        self.destination = match (&self.destination, asked) {
            (Asked::Prefixes(old), Asked::Prefixes(new)) => {
                Asked::Prefixes(old.and(&new).unwrap_or_else(nothing))
            }
            // Of a set and prefixes the prefixes are known already, and the set only narrows them.
            (Asked::Prefixes(Destination::In(old)), Asked::Set(_)) => {
                Asked::Prefixes(Destination::In(old.clone()))
            }
            (_, Asked::Prefixes(new @ Destination::In(_))) => Asked::Prefixes(new),
            (Asked::Prefixes(_), set) => set,
            (Asked::Set(old), _) => Asked::Set(old.clone()),
        };
    }

    fn act(&mut self, action: Does) {
        self.meanings.push(Meaning { destination: self.destination.clone(), action });
    }
}

/// The fields of an expression by their kind.
struct Fields<'a>(Vec<Attribute<'a>>);

impl<'a> Fields<'a> {
    fn read(data: &'a [u8]) -> Self {
        Self(attributes(data).filter_map(Result::ok).collect())
    }

    fn get(&self, kind: u16) -> Option<&Attribute<'a>> {
        self.0.iter().find(|attribute| attribute.kind == kind)
    }

    /// A number, which these are in the network's byte order.
    fn number(&self, kind: u16) -> Option<u32> {
        self.get(kind)?.value.first_chunk().map(|bytes| u32::from_be_bytes(*bytes))
    }

    /// The bytes in a field of data.
    fn data(&self, kind: u16) -> Option<&'a [u8]> {
        data(self.get(kind)?.value)
    }
}

/// The bytes in nested data (`NFTA_DATA_VALUE`).
pub(super) fn data(nested: &[u8]) -> Option<&[u8]> {
    let mut all = attributes(nested).filter_map(Result::ok);
    all.find(|attribute| attribute.kind == 1).map(|attribute| attribute.value)
}

/// The chain in nested data that is a verdict to go on there (`NFTA_DATA_VERDICT`).
pub(super) fn verdict(nested: &[u8]) -> Option<String> {
    let mut all = attributes(nested).filter_map(Result::ok);
    let verdict = all.find(|attribute| attribute.kind == 2)?;
    let fields = Fields::read(verdict.value);
    let code = fields.number(1)?.cast_signed();
    matches!(code, NFT_JUMP | NFT_GOTO).then(|| fields.get(2).and_then(string)).flatten()
}

/// The address that bytes are, by their number.
pub(super) fn address(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(bytes) = <[u8; 4]>::try_from(bytes) {
        return Some(Ipv4Addr::from(bytes).into());
    }
    <[u8; 16]>::try_from(bytes).ok().map(|bytes| Ipv6Addr::from(bytes).into())
}

/// What a comparison of a destination's beginning asks for; `None` where no prefixes can say it.
fn asked(compares: u32, value: &[u8], mask: &[u8], ipv6: bool) -> Option<Destination> {
    let whole = if ipv6 { 16 } else { 4 };
    if compares == EQUAL {
        return Some(Destination::In(vec![prefix(value, mask, whole)?]));
    }
    if value.len() != whole || mask.iter().any(|byte| *byte != 0xff) {
        return None;
    }
    let value = address(value)?;
    let (least, most) = (address(&vec![0; whole])?, address(&vec![0xff; whole])?);
    Some(Destination::In(match compares {
        AT_MOST => super::set::span(least, value),
        AT_LEAST => super::set::span(value, most),
        LESS => super::set::span(least, super::set::before(value)?),
        MORE => super::set::span(super::set::behind(value)?, most),
        _ => return None,
    }))
}

/// The prefix of addresses of so many bytes that begin so. A mask with gaps is none.
fn prefix(value: &[u8], mask: &[u8], whole: usize) -> Option<Prefix> {
    let mut bits = mask.to_vec();
    bits.resize(16, 0);
    let bits = u128::from_be_bytes(bits.try_into().ok()?);
    let length = bits.leading_ones();
    if length != bits.count_ones() {
        return None;
    }
    let mut bytes = value.to_vec();
    bytes.resize(whole, 0);
    Prefix::new(address(&bytes)?, u8::try_from(length).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(compares: u32, value: &[u8], mask: &[u8]) -> Option<Vec<String>> {
        match asked(compares, value, mask, value.len() > 4)? {
            Destination::In(prefixes) => Some(prefixes.iter().map(Prefix::to_string).collect()),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn comparisons_are_prefixes_where_they_can_be() {
        let all = [0xff; 4];
        let host = [10, 1, 0, 5];
        assert_eq!(said(EQUAL, &host, &all).unwrap_or_default(), ["10.1.0.5/32"]);
        assert_eq!(said(EQUAL, &[10, 1, 0], &[0xff; 3]).unwrap_or_default(), ["10.1.0.0/24"]);
        assert_eq!(
            said(EQUAL, &[10, 1, 0, 0], &[255, 255, 240, 0]).unwrap_or_default(),
            ["10.1.0.0/20"]
        );
        assert_eq!(said(EQUAL, &[10, 0, 1, 5], &[255, 0, 255, 255]), None, "a mask with gaps");
        assert_eq!(said(1, &host, &all), None, "not to be");
        assert_eq!(said(AT_MOST, &[0, 0, 0, 1], &all).unwrap_or_default(), ["0.0.0.0/31"]);
        assert_eq!(said(LESS, &[0, 0, 0, 2], &all).unwrap_or_default(), ["0.0.0.0/31"]);
        assert_eq!(
            said(MORE, &[255, 255, 255, 253], &all).unwrap_or_default(),
            ["255.255.255.254/31"]
        );
        let span = said(AT_LEAST, &[128, 0, 0, 0], &all).unwrap_or_default();
        assert_eq!(span, ["128.0.0.0/1"]);
    }
}
