//! The tables that a dump consists of, and how each is asked for.

use crate::source::kernel::decode::neighbour::NTF_PROXY;
use crate::source::kernel::decode::{NEWLINK, NEWNEIGH, NEWNEXTHOP, NEWROUTE, NEWRULE};
use crate::source::kernel::wire::{AF_INET, AF_INET6, HEADER};

// `RTM_GET…` is the number of `RTM_NEW…` plus two, for every table (linux/rtnetlink.h).
const GET: u16 = 2;

/// `NLM_F_REQUEST | NLM_F_DUMP`.
const FLAGS: u16 = 0x001 | 0x300;

/// One table to ask for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Section {
    /// What it is, in messages.
    pub(super) what: &'static str,
    /// `RTM_NEW…`, as its answers are called.
    kind: u16,
    family: u8,
    /// The size of the family's own header, which begins with the family.
    header: usize,
    /// `ndm_flags`, where it is neighbours.
    flags: u8,
    /// Attributes of the question.
    attributes: &'static [u8],
    /// Whether a kernel may be without it: built without IPv6, or older than next-hop objects.
    pub(super) optional: bool,
}

impl Section {
    /// All interfaces, without their counters (`IFLA_EXT_MASK` = `RTEXT_FILTER_SKIP_STATS`).
    pub(super) const LINKS: Self = Self {
        what: "interfaces",
        kind: NEWLINK,
        family: 0,
        header: 16,
        flags: 0,
        attributes: if cfg!(target_endian = "little") {
            &[8, 0, 29, 0, 8, 0, 0, 0]
        } else {
            &[0, 8, 0, 29, 0, 0, 0, 8]
        },
        optional: false,
    };

    /// What is read, in the order in which it is needed: by links uplinks are known, and what names
    /// a next hop comes after it.
    pub(super) const ALL: [Self; 10] = [
        Self::LINKS,
        Self::of("next hops", NEWNEXTHOP, 0, 8, true),
        Self::of("IPv4 rules", NEWRULE, AF_INET, 12, false),
        Self::of("IPv6 rules", NEWRULE, AF_INET6, 12, true),
        Self::of("IPv4 routes", NEWROUTE, AF_INET, 12, false),
        Self::of("IPv6 routes", NEWROUTE, AF_INET6, 12, true),
        Self::of("IPv4 neighbours", NEWNEIGH, AF_INET, 12, false),
        Self::of("IPv6 neighbours", NEWNEIGH, AF_INET6, 12, true),
        Self::PROXIES[0],
        Self::PROXIES[1],
    ];

    /// What the node answers for.
    pub(super) const PROXIES: [Self; 2] = [
        Self::proxies("IPv4 neighbour proxies", AF_INET, false),
        Self::proxies("IPv6 neighbour proxies", AF_INET6, true),
    ];

    const fn proxies(what: &'static str, family: u8, optional: bool) -> Self {
        let attributes = &[];
        Self { what, kind: NEWNEIGH, family, header: 12, flags: NTF_PROXY, attributes, optional }
    }

    const fn of(what: &'static str, kind: u16, family: u8, header: usize, optional: bool) -> Self {
        Self { what, kind, family, header, flags: 0, attributes: &[], optional }
    }

    /// The message that asks for it.
    pub(super) fn request(&self, sequence: u32) -> Vec<u8> {
        let length = HEADER + self.header + self.attributes.len();
        let mut message = Vec::with_capacity(length);
        // A request takes a few dozen bytes.
        let length = u32::try_from(length).unwrap_or(u32::MAX);
        message.extend(length.to_ne_bytes());
        message.extend((self.kind + GET).to_ne_bytes());
        message.extend(FLAGS.to_ne_bytes());
        message.extend(sequence.to_ne_bytes());
        message.extend(0u32.to_ne_bytes());
        message.push(self.family);
        message.resize(HEADER + self.header, 0);
        if self.flags != 0 {
            // `ndm_flags` of `struct ndmsg`.
            message[HEADER + 10] = self.flags;
        }
        message.extend(self.attributes);
        message
    }
}
