//! What scenarios say of packets: who sends them, what is rewritten on their way, and what of them
//! must be counted.

use serde::Deserialize;

/// What packets carry.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Carries {
    /// A UDP datagram.
    #[default]
    Udp,
    /// An echo request.
    Icmp,
}

/// Packets to an address.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct SendStep {
    /// The pod that sends them, as `namespace/name`, or `outside`: a host beyond the uplink.
    pub from: String,
    /// The name of the address that they are for.
    pub to: String,
    /// What they carry.
    #[serde(default)]
    pub carries: Carries,
    /// The destination port.
    #[serde(default = "default_port")]
    pub port: u16,
    /// How many.
    #[serde(default = "once")]
    pub count: u32,
    /// The name of their source address, where it is not the sender's own.
    #[serde(rename = "as")]
    pub source: Option<String>,
    /// How many different source ports they come from: as many connections.
    #[serde(default = "once")]
    pub connections: u32,
}

/// Bytes that a packet carries behind the header of UDP or ICMP.
pub const PAYLOAD: usize = 64;

impl SendStep {
    /// Whether they come in by the uplink.
    pub fn is_outside(&self) -> bool {
        self.from == OUTSIDE
    }
}

/// Where packets come from that come in by the uplink.
pub const OUTSIDE: &str = "outside";

fn default_port() -> u16 {
    5300
}

fn once() -> u32 {
    1
}

/// A rule that translates destinations.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct TranslateStep {
    /// The name of the address that is translated.
    pub from: String,
    /// The name of the address that it becomes.
    pub to: String,
    /// Who writes it.
    #[serde(default)]
    pub by: Translator,
    /// Whether the rule stands in the chains that Felix makes for floating IPs, rather than by itself.
    #[serde(default)]
    pub felix: bool,
}

/// What keeps rules that translate.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Translator {
    /// nftables.
    #[default]
    Nft,
    /// iptables on top of nftables.
    #[serde(rename = "iptables-nft")]
    IptablesNft,
    /// iptables as it was.
    #[serde(rename = "iptables-legacy")]
    IptablesLegacy,
}

/// Messages by which a pod pretends to have an address.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct PretendStep {
    /// The pod.
    pub pod: String,
    /// What sort of messages.
    #[serde(rename = "as")]
    pub sort: Message,
    /// The name of the address; a router has its link-local one.
    pub address: Option<String>,
}

/// A message between neighbours.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Message {
    /// An ARP reply, or a neighbour advertisement where the family is IPv6.
    Neighbour,
    /// A router advertisement.
    Router,
}

/// What must be counted in the end.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct TrafficExpectation {
    /// Packets.
    pub packets: u64,
    /// Bytes from the IP header on, where they matter.
    pub bytes: Option<u64>,
    /// Different clients, where they matter.
    pub clients: Option<u64>,
}
