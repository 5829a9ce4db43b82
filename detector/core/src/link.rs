//! Network interfaces of the node.

use std::fmt;

use crate::route::{IfIndex, Table};

/// The name of an interface: 1 to 15 bytes, no slash, no white space (`dev_valid_name` in the
/// kernel's `net/core/dev.c`), and here also no control characters, so that it can be printed.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(try_from = "String", into = "String")
)]
pub struct InterfaceName(Box<str>);

impl InterfaceName {
    /// An interface name; `None` where the kernel would not have it. Bytes beyond ASCII graphic
    /// characters are shown as `?`: the kernel allows them, a terminal should not see them.
    pub fn new(name: &str) -> Option<Self> {
        let valid = (1..=15).contains(&name.len())
            && name != "."
            && name != ".."
            && !name.contains(|c: char| c == '/' || c == ':' || c.is_ascii_whitespace());
        let clean = |c: char| if c.is_ascii_graphic() { c } else { '?' };
        valid.then(|| Self(name.chars().map(clean).collect()))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

#[cfg(feature = "serde")]
impl TryFrom<String> for InterfaceName {
    type Error = &'static str;

    fn try_from(name: String) -> Result<Self, Self::Error> {
        Self::new(&name).ok_or("no name that an interface can have")
    }
}

#[cfg(feature = "serde")]
impl From<InterfaceName> for String {
    fn from(name: InterfaceName) -> Self {
        name.0.into()
    }
}

impl fmt::Display for InterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for InterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What sort of device an interface is (`IFLA_INFO_KIND`), as far as the detector cares.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum LinkKind {
    /// No kind: hardware, or the loopback device.
    Physical,
    /// A kind that carries the node's own traffic and whose far end is no container: bond, team,
    /// vlan, bridge, dummy, ipip, sit, gre, vxlan, geneve, wireguard.
    Infrastructure,
    /// A VRF with its table, where that is known.
    Vrf(Option<Table>),
    /// A kind whose far end can be a container: veth, netkit, tun, macvlan, ipvlan, and whatever a
    /// newer kernel knows.
    Container,
}

impl LinkKind {
    /// The kind by its name, as `ip -details link` shows it; the empty string means no kind.
    pub fn from_name(name: &str) -> Self {
        match name {
            "" => Self::Physical,
            "bond" | "team" | "vlan" | "bridge" | "dummy" | "ipip" | "sit" | "gre" | "gretap"
            | "ip6gre" | "ip6tnl" | "vxlan" | "geneve" | "wireguard" => Self::Infrastructure,
            "vrf" => Self::Vrf(None),
            _ => Self::Container,
        }
    }
}

/// An interface as the kernel announces or dumps it.
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Link {
    /// Its index; the kernel counts upwards, so a new interface of an old name has another one.
    pub index: IfIndex,
    /// Its present name.
    pub name: InterfaceName,
    /// What sort of device it is.
    pub kind: LinkKind,
    /// `IFF_UP`. When it goes down the kernel drops the routes that leave by it, IPv4 ones without
    /// a word (seen on Linux 5.10 to 6.18).
    pub up: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_the_kernel_would_not_have_are_refused() {
        assert!(InterfaceName::new("cali12345678901").is_some());
        for bad in ["", "cali123456789012", "a/b", "a b", "a\n", ".", ".."] {
            assert!(InterfaceName::new(bad).is_none(), "{bad:?}");
        }
        assert_eq!(InterfaceName::new("a\u{1b}[2J").unwrap().as_str(), "a?[2J");
    }
}
