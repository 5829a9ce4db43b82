//! What a rule means, from its expressions (linux/netfilter/nf_tables.h).
//!
//! A rule loads parts of the packet into registers, compares them, and decides. What is known of each
//! register is followed from expression to expression; what is not understood is known to be nothing.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use detector_core::route::Prefix;

use super::super::chains::Destination;
use super::super::legacy::xt_dnat;
use super::{IPV6, string};
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
const EQUAL: u32 = 0;
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
    /// The sets that it names; one at the most beside the other is read, since few rules have two.
    pub(super) fn set(&self) -> Option<&str> {
        match (&self.action, &self.destination) {
            (Does::Map(name) | Does::Branch(name), _) | (_, Asked::Set(name)) => Some(name),
            _ => None,
        }
    }
}

/// What is in a register.
#[derive(Clone, Debug)]
enum Known {
    /// The destination, or this much of its beginning, with these bits of it.
    Destination { bytes: usize, mask: Vec<u8> },
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
    /// Whether the destination has been asked for already.
    narrowed: bool,
    meanings: Vec<Meaning>,
}

/// What a rule's expressions mean.
pub(super) fn meanings(expressions: &[u8], family: u8) -> Vec<Meaning> {
    let mut reader = Reader {
        family,
        registers: HashMap::new(),
        destination: Asked::Prefixes(Destination::Any),
        narrowed: false,
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
        let is_destination = [IPV4_DESTINATION, IPV6_DESTINATION]
            .into_iter()
            .any(|(at, whole)| offset == at && (1..=whole).contains(&length));
        // In a table of both families the lengths tell them apart, but for short beginnings.
        if base == NETWORK && is_destination {
            let known = Known::Destination { bytes: length, mask: vec![0xff; length] };
            self.registers.insert(register, known);
        }
    }

    fn bitwise(&mut self, fields: &Fields<'_>) {
        let (Some(from), Some(to)) = (fields.number(1), fields.number(2)) else { return };
        let known = self.registers.remove(&from);
        let (Some(mask), Some(xor)) = (fields.data(4), fields.data(5)) else { return };
        if let Some(Known::Destination { bytes, .. }) = known
            && mask.len() == bytes
            && xor.iter().all(|byte| *byte == 0)
        {
            self.registers.insert(to, Known::Destination { bytes, mask: mask.to_vec() });
        }
    }

    fn compare(&mut self, fields: &Fields<'_>) {
        let known = fields.number(1).and_then(|register| self.registers.get(&register));
        let Some(Known::Destination { bytes, mask }) = known else { return };
        let prefix = fields
            .data(3)
            .filter(|value| value.len() == *bytes && fields.number(2) == Some(EQUAL))
            .and_then(|value| prefix(value, mask, self.family));
        let asked = prefix.map_or(Destination::Other, |prefix| Destination::In(vec![prefix]));
        self.narrow(Asked::Prefixes(asked));
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
        self.destination = if self.narrowed {
            // Two demands at once: rare, and what they have in common is not worked out.
            Asked::Prefixes(Destination::Other)
        } else {
            asked
        };
        self.narrowed = true;
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

/// The prefix that a comparison of a destination's beginning asks for.
fn prefix(value: &[u8], mask: &[u8], family: u8) -> Option<Prefix> {
    let bits = mask.iter().map(|byte| byte.leading_ones()).sum::<u32>();
    let set = mask.iter().map(|byte| byte.count_ones()).sum::<u32>();
    // A mask with gaps is no prefix.
    let length = u8::try_from(bits).ok().filter(|_| bits == set)?;
    let ipv6 = family == IPV6 || value.len() > 4;
    let mut whole = value.to_vec();
    whole.resize(if ipv6 { 16 } else { 4 }, 0);
    Prefix::new(address(&whole)?, length)
}
