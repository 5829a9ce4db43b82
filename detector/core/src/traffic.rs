//! Packets, as the programs on the node's interfaces count them, and translations of destinations,
//! as the kernel's connection tracking and its rules show them.
//!
//! Whose packets are counted follows from what is judged: an address is watched as long as somebody
//! may be taking its traffic ([`Output::Watch`](crate::engine::Output::Watch)), and a pod's interface
//! is told which source addresses are the pod's own
//! ([`Output::Sources`](crate::engine::Output::Sources)).

use std::fmt;
use std::net::IpAddr;

use crate::route::{IfIndex, Prefix};
use crate::time::BootTime;

/// What an IP packet carries (the IPv4 protocol field, the last IPv6 next header).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct IpProtocol(pub u8);

impl IpProtocol {
    /// TCP.
    pub const TCP: Self = Self(6);
    /// UDP.
    pub const UDP: Self = Self(17);
}

impl fmt::Display for IpProtocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            1 => f.write_str("icmp"),
            6 => f.write_str("tcp"),
            17 => f.write_str("udp"),
            58 => f.write_str("icmpv6"),
            132 => f.write_str("sctp"),
            number => write!(f, "protocol {number}"),
        }
    }
}

/// A client's packets of one sort to one address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Flow {
    /// Who sends them, by their source address.
    pub client: IpAddr,
    /// What they carry.
    pub protocol: IpProtocol,
    /// The destination port, of protocols that have one; a later fragment shows none.
    pub port: Option<u16>,
}

/// Where packets were counted.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Side {
    /// On their way to the address: they came in by a pod's interface or an uplink, and no rule had
    /// touched them yet.
    Sent,
    /// Handed out by this interface, with that destination still.
    Reached(IfIndex),
}

/// How many packets, and when.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Tally {
    /// Packets as they are on a wire: one that the kernel keeps whole until it is sent in pieces
    /// (GSO) counts as its pieces.
    pub packets: u64,
    /// Bytes of those packets from the IP header on.
    pub bytes: u64,
    /// When the first came.
    pub first: BootTime,
    /// When the last came.
    pub last: BootTime,
}

/// What was counted of one flow, or of all.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Count {
    /// Where.
    pub side: Side,
    /// Of which flow; `None` is all of that side, which is exact even where there were more flows than
    /// are kept apart.
    pub flow: Option<Flow>,
    /// How much since the address is watched.
    pub tally: Tally,
}

/// A watched address and all that was counted for it since it is watched.
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Traffic {
    /// The address.
    pub address: IpAddr,
    /// The counts, in no particular order.
    pub counts: Vec<Count>,
}

/// In what way a packet says that its sender has an address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Pretence {
    /// As its source address.
    Source,
    /// As the sender of an ARP message.
    Arp,
    /// As the target of a neighbour advertisement (RFC 4861).
    Neighbour,
    /// As the source of a router advertisement (ICMPv6 type 134), whoever's the address is: no pod is
    /// a router.
    Router,
}

impl Pretence {
    /// The word for it in keys, JSON and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Arp => "arp",
            Self::Neighbour => "neighbour",
            Self::Router => "router",
        }
    }
}

/// Packets that came out of a pod's interface and pretend to be somebody else's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Pretended {
    /// The interface.
    pub interface: IfIndex,
    /// The address that they pretend to have.
    pub address: IpAddr,
    /// How.
    pub pretence: Pretence,
    /// Where the first of them went to, where that is an IP packet.
    pub destination: Option<IpAddr>,
    /// How many.
    pub tally: Tally,
}

/// A connection whose destination was translated, as connection tracking has it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Translated {
    /// What the client sends, and to which port of the original destination.
    pub flow: Flow,
    /// The original destination.
    pub address: IpAddr,
    /// Who answers: the source of the reply direction.
    pub to: IpAddr,
}

/// A rule of netfilter that translates destinations.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct TranslationRule {
    /// The destinations that it matches.
    pub prefix: Prefix,
    /// The first of the addresses that it translates to.
    pub to: IpAddr,
    /// The last of them; the first again where it is one.
    pub to_last: IpAddr,
    /// Where it stands, such as `nft table ip nat, chain cali-fip-dnat`.
    pub origin: Box<str>,
}
