//! `RTM_NEWRULE`, `RTM_DELRULE`: `struct fib_rule_hdr` and `FRA_…` of linux/fib_rules.h.

use std::net::IpAddr;

use detector_core::route::{Prefix, Rule, RuleAction, Table};

use crate::source::kernel::wire::{
    AF_INET, AF_INET6, Attribute, DecodeError, array, attributes, u32_at,
};

const HEADER: usize = 12;

/// `FIB_RULE_INVERT`: the rule is for what its selectors do *not* match.
const INVERT: u32 = 2;

const FR_ACT_TO_TBL: u8 = 1;
const FR_ACT_BLACKHOLE: u8 = 6;
const FR_ACT_UNREACHABLE: u8 = 7;
const FR_ACT_PROHIBIT: u8 = 8;

const FRA_DST: u16 = 1;
const FRA_SRC: u16 = 2;
const FRA_PRIORITY: u16 = 6;
const FRA_FWMARK: u16 = 10;
const FRA_FLOW: u16 = 11;
const FRA_SUPPRESS_PREFIXLEN: u16 = 14;
const FRA_TABLE: u16 = 15;
const FRA_FWMASK: u16 = 16;
const FRA_PAD: u16 = 18;
const FRA_L3MDEV: u16 = 19;
const FRA_PROTOCOL: u16 = 21;

/// What the kernel writes for a suppressor that is not there, and for a mask of all bits.
const ALL_ONES: u32 = u32::MAX;

/// The rule that a message is about; `None` for families other than IP, such as multicast routing.
pub(super) fn read(body: &[u8]) -> Result<Option<Rule>, DecodeError> {
    let header: &[u8; HEADER] = array(body, "a rule")?;
    let [family, to_length, from_length, tos, table, _, _, action, ..] = *header;
    if !matches!(family, AF_INET | AF_INET6) {
        return Ok(None);
    }
    let inverted = u32_at(header, 8) & INVERT != 0;
    let mut others = Fingerprint::default();
    if tos != 0 {
        others.add(0, &[tos]);
    }
    let mut table = Table(u32::from(table));
    let mut vrf = false;
    let mut rule = Rule {
        ipv4: family == AF_INET,
        priority: 0,
        from: None,
        to: None,
        mark: 0,
        narrowed: 0,
        action: RuleAction::Other(action),
    };
    for attribute in attributes(&body[HEADER..]) {
        let attribute = attribute?;
        match attribute.kind {
            FRA_PRIORITY => rule.priority = attribute.u32("a priority")?,
            FRA_TABLE => table = Table(attribute.u32("a table")?),
            FRA_L3MDEV => vrf = attribute.u8("a VRF flag")? != 0,
            // Realms are written on packets, and who made the rule is no selector.
            FRA_FLOW | FRA_PROTOCOL | FRA_PAD => {}
            FRA_SUPPRESS_PREFIXLEN | FRA_FWMASK if attribute.u32("a mask")? == ALL_ONES => {}
            // A rule that is for what its selectors do not match is for nearly everything: it is
            // taken as one for everything, and its selectors only tell it from others.
            FRA_FWMARK if !inverted => rule.mark = attribute.u32("a mark")?,
            FRA_DST if !inverted => rule.to = Some(selector(&attribute, to_length, family)?),
            FRA_SRC if !inverted => rule.from = Some(selector(&attribute, from_length, family)?),
            kind => others.add(kind, attribute.value),
        }
    }
    if inverted {
        others.add(0, &[to_length, from_length]);
    }
    rule.narrowed = others.0;
    rule.action = match action {
        FR_ACT_TO_TBL if vrf => RuleAction::LookupVrf,
        FR_ACT_TO_TBL => RuleAction::Lookup(table),
        FR_ACT_BLACKHOLE => RuleAction::Blackhole,
        FR_ACT_UNREACHABLE => RuleAction::Unreachable,
        FR_ACT_PROHIBIT => RuleAction::Prohibit,
        other => RuleAction::Other(other),
    };
    Ok(Some(rule))
}

fn selector(attribute: &Attribute<'_>, length: u8, family: u8) -> Result<Prefix, DecodeError> {
    let address: IpAddr = attribute.address("a selector", family)?;
    Prefix::new(address, length).ok_or(DecodeError::PrefixLength { length, family })
}

/// FNV-1a over what was added, 0 where that is nothing. It need not withstand anybody: rules that
/// are taken for one differ only in what narrows them.
#[derive(Default)]
struct Fingerprint(u64);

impl Fingerprint {
    fn add(&mut self, kind: u16, value: &[u8]) {
        const BASIS: u64 = 0xcbf2_9ce4_8422_2325;
        const PRIME: u64 = 0x0100_0000_01b3;
        let length = value.len().to_ne_bytes();
        let start = if self.0 == 0 { BASIS } else { self.0 };
        let bytes = kind.to_ne_bytes().into_iter().chain(length).chain(value.iter().copied());
        self.0 = bytes.fold(start, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(PRIME));
    }
}
