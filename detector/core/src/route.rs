//! Routes, next hops and rules, in the kernel's own words.
//!
//! These types cannot hold nonsense: a [`Prefix`] has no host bits, an [`IfIndex`] is not zero, and
//! what the kernel leaves out is an `Option`, not a magic number.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU32;

use ipnet::IpNet;

/// An IP prefix without host bits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(from = "IpNet", into = "IpNet")
)]
pub struct Prefix(IpNet);

impl Prefix {
    /// The prefix of `length` bits that `address` lies in; `None` where the family has no such
    /// length.
    pub fn new(address: IpAddr, length: u8) -> Option<Self> {
        IpNet::new(address, length).ok().map(|net| Self(net.trunc()))
    }

    /// The prefix that holds this one address: a `/32` or `/128`.
    pub fn host(address: IpAddr) -> Self {
        Self(IpNet::from(address))
    }

    /// The lowest address of the prefix.
    pub fn address(&self) -> IpAddr {
        self.0.addr()
    }

    /// The number of bits that are fixed.
    pub fn length(&self) -> u8 {
        self.0.prefix_len()
    }

    /// The one address of a host prefix.
    pub fn host_address(&self) -> Option<IpAddr> {
        (self.0.prefix_len() == self.0.max_prefix_len()).then(|| self.0.addr())
    }

    /// Whether the prefix holds one address only.
    pub fn is_host(&self) -> bool {
        self.0.prefix_len() == self.0.max_prefix_len()
    }

    /// Whether `address` lies in the prefix; never true across families.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.0.contains(&address)
    }

    /// Whether `other` lies in the prefix as a whole.
    pub fn covers(&self, other: &Self) -> bool {
        self.0.contains(&other.0)
    }

    /// Whether the prefix is of the IPv4 family.
    pub fn is_ipv4(&self) -> bool {
        matches!(self.0, IpNet::V4(_))
    }

    /// Whether every address in it is link-local or multicast: what the kernel itself routes on
    /// each interface that is up (`fe80::/64`, `fe80::…/128`, `ff00::/8`), and what no packet
    /// carries beyond one link.
    pub fn is_link_scoped(&self) -> bool {
        let scopes = [
            (IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0)), 10),
            (IpAddr::V6(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0)), 8),
            (IpAddr::V4(Ipv4Addr::new(224, 0, 0, 0)), 4),
        ];
        scopes
            .into_iter()
            .filter_map(|(address, length)| Self::new(address, length))
            .any(|scope| scope.covers(self))
    }
}

impl From<IpNet> for Prefix {
    fn from(net: IpNet) -> Self {
        Self(net.trunc())
    }
}

impl From<Prefix> for IpNet {
    fn from(prefix: Prefix) -> Self {
        prefix.0
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The index of a network interface. The kernel counts from 1.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct IfIndex(NonZeroU32);

impl IfIndex {
    /// An interface index; `None` for 0, by which the kernel means "no interface".
    pub fn new(index: u32) -> Option<Self> {
        NonZeroU32::new(index).map(Self)
    }

    /// The index as the kernel counts.
    pub fn get(self) -> u32 {
        self.0.get()
    }
}

/// A routing table (`RTA_TABLE`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Table(pub u32);

impl Table {
    /// `RT_TABLE_DEFAULT`, looked up last.
    pub const DEFAULT: Self = Self(253);
    /// `RT_TABLE_MAIN`, where Calico and BIRD put their routes.
    pub const MAIN: Self = Self(254);
    /// `RT_TABLE_LOCAL`, looked up first.
    pub const LOCAL: Self = Self(255);

    /// Whether the kernel looks the table up without anybody adding a rule.
    pub fn is_builtin(self) -> bool {
        matches!(self, Self::DEFAULT | Self::MAIN | Self::LOCAL)
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::DEFAULT => f.write_str("default"),
            Self::MAIN => f.write_str("main"),
            Self::LOCAL => f.write_str("local"),
            Self(table) => write!(f, "{table}"),
        }
    }
}

/// What a route does with a packet (`rtm_type`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum RouteKind {
    /// Forward it by the next hops.
    Unicast,
    /// Deliver it to this host.
    Local,
    /// Drop it in silence.
    Blackhole,
    /// Drop it and answer "unreachable".
    Unreachable,
    /// Drop it and answer "prohibited".
    Prohibit,
    /// Leave this table and go on with the next rule.
    Throw,
    /// Broadcast, anycast, multicast and whatever a newer kernel knows, by number.
    Other(u8),
}

impl RouteKind {
    /// The kind by its number in `linux/rtnetlink.h` (`RTN_*`).
    pub fn from_rtn(number: u8) -> Self {
        match number {
            1 => Self::Unicast,
            2 => Self::Local,
            6 => Self::Blackhole,
            7 => Self::Unreachable,
            8 => Self::Prohibit,
            9 => Self::Throw,
            other => Self::Other(other),
        }
    }
}

impl fmt::Display for RouteKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unicast => f.write_str("unicast"),
            Self::Local => f.write_str("local"),
            Self::Blackhole => f.write_str("blackhole"),
            Self::Unreachable => f.write_str("unreachable"),
            Self::Prohibit => f.write_str("prohibit"),
            Self::Throw => f.write_str("throw"),
            Self::Other(number) => write!(f, "type {number}"),
        }
    }
}

/// Who a route says it was made by (`rtm_protocol`). Any root process can write any number, so no
/// verdict depends on it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Protocol(pub u8);

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            2 => f.write_str("kernel"),
            3 => f.write_str("boot"),
            4 => f.write_str("static"),
            9 => f.write_str("ra"),
            12 => f.write_str("bird"),
            number => write!(f, "{number}"),
        }
    }
}

/// The id of a next-hop object (`NHA_ID`, `RTA_NH_ID`). The kernel counts from 1.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct NextHopId(NonZeroU32);

impl NextHopId {
    /// A next-hop id; `None` for 0, by which the kernel means "none".
    pub fn new(id: u32) -> Option<Self> {
        NonZeroU32::new(id).map(Self)
    }

    /// The id as the kernel counts.
    pub fn get(self) -> u32 {
        self.0.get()
    }
}

/// One leg of a route.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct NextHop {
    /// The interface that the packet leaves by.
    pub interface: Option<IfIndex>,
    /// The neighbour that it is handed to, of either family (`RTA_GATEWAY`, `RTA_VIA`).
    pub gateway: Option<IpAddr>,
}

/// The legs of a route: none, one, or several of equal cost.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Hops {
    /// A route that forwards nowhere, such as a blackhole.
    #[default]
    None,
    /// The usual case, kept without an allocation.
    One(NextHop),
    /// Equal-cost legs (`RTA_MULTIPATH`).
    Many(Box<[NextHop]>),
}

impl Hops {
    /// The legs in the kernel's order.
    pub fn as_slice(&self) -> &[NextHop] {
        match self {
            Self::None => &[],
            Self::One(hop) => std::slice::from_ref(hop),
            Self::Many(hops) => hops,
        }
    }
}

impl FromIterator<NextHop> for Hops {
    fn from_iter<I: IntoIterator<Item = NextHop>>(hops: I) -> Self {
        let hops: Vec<NextHop> = hops.into_iter().collect();
        match *hops.as_slice() {
            [] => Self::None,
            [hop] => Self::One(hop),
            _ => Self::Many(hops.into_boxed_slice()),
        }
    }
}

/// A route as the kernel announces or dumps it.
///
/// The kernel tells IPv4 routes of one prefix apart by table, TOS and metric, and keeps several of
/// the same in order (`append`, `prepend`); for IPv6 the same, but equal-cost legs merge.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Route {
    /// The table that it stands in.
    pub table: Table,
    /// Where to.
    pub prefix: Prefix,
    /// `rtm_tos`.
    pub tos: u8,
    /// `RTA_PRIORITY`; the lowest wins within one table and prefix.
    pub metric: u32,
    /// What happens to the packet.
    pub kind: RouteKind,
    /// Who it says it was made by.
    pub protocol: Protocol,
    /// The next-hop object that it uses; the kernel then also spells out its legs unless sysctl
    /// `net.ipv4.nexthop_compat_mode` is 0.
    pub nexthop_id: Option<NextHopId>,
    /// Its legs.
    pub hops: Hops,
}

/// A next-hop object (`ip nexthop`).
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum NextHopObject {
    /// One leg.
    Leg(NextHop),
    /// Packets are dropped.
    Blackhole,
    /// Several other objects, of which each packet takes one.
    Group(Vec<NextHopId>),
}

/// What a rule does with a packet that it matches (`fib_rule_hdr.action`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum RuleAction {
    /// Look this table up.
    Lookup(Table),
    /// Look up the table of the VRF that the packet's interface belongs to (`FRA_L3MDEV`).
    LookupVrf,
    /// Drop it in silence.
    Blackhole,
    /// Drop it and answer "unreachable".
    Unreachable,
    /// Drop it and answer "prohibited".
    Prohibit,
    /// `goto`, `nop` and whatever a newer kernel knows, by number.
    Other(u8),
}

impl fmt::Display for RuleAction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lookup(table) => write!(f, "lookup {table}"),
            Self::LookupVrf => f.write_str("lookup [l3mdev-table]"),
            Self::Blackhole => f.write_str("blackhole"),
            Self::Unreachable => f.write_str("unreachable"),
            Self::Prohibit => f.write_str("prohibit"),
            Self::Other(number) => write!(f, "action {number}"),
        }
    }
}

/// A routing policy rule. The kernel holds no two rules that agree in everything.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Rule {
    /// Whether it is an IPv4 rule.
    pub ipv4: bool,
    /// `FRA_PRIORITY`; the lowest is tried first.
    pub priority: u32,
    /// Source selector.
    pub from: Option<Prefix>,
    /// Destination selector.
    pub to: Option<Prefix>,
    /// `FRA_FWMARK`, 0 where there is none.
    pub mark: u32,
    /// A fingerprint of all other selectors (interface, protocol, ports, …), which only narrow what
    /// the rule matches; 0 where there are none.
    pub narrowed: u64,
    /// What it does.
    pub action: RuleAction,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: from ", self.priority)?;
        match self.from {
            Some(from) => write!(f, "{from}")?,
            None => f.write_str("all")?,
        }
        if let Some(to) = self.to {
            write!(f, " to {to}")?;
        }
        if self.mark != 0 {
            write!(f, " fwmark {:#x}", self.mark)?;
        }
        write!(f, " {}", self.action)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_has_no_host_bits() {
        let prefix = Prefix::new("10.1.2.3".parse().unwrap(), 24).unwrap();
        assert_eq!(prefix.to_string(), "10.1.2.0/24");
        assert_eq!(Prefix::new("10.1.2.3".parse().unwrap(), 33), None);
    }

    #[test]
    fn link_scope_is_not_a_way_to_hide_a_wider_prefix() {
        let scoped = |text: &str| Prefix::from(text.parse::<IpNet>().unwrap()).is_link_scoped();
        assert!(scoped("fe80::/64") && scoped("ff00::/8") && scoped("fe80::1/128"));
        assert!(!scoped("fe00::/7") && !scoped("fd00::1/128") && !scoped("::/0"));
    }
}
