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
    /// Connections of TCP, each with its payload, one after the other.
    Tcp,
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
    /// Bytes that each carries behind the header of UDP or ICMP, or each connection of TCP; what is too
    /// long for a packet goes in fragments, or segments.
    #[serde(default = "default_payload")]
    pub payload: u32,
    /// The pod that answers, of TCP: the one where the packets arrive. It takes the address for its own.
    pub answers: Option<String>,
}

/// Bytes of an IP packet on an interface of the tests.
const MTU: u32 = 1500;

/// Bytes of an IP header without options.
pub const fn ip_header(ipv4: bool) -> u32 {
    if ipv4 { 20 } else { 40 }
}

/// Bytes of the headers of TCP without options, and of the one option that is sent: the size of
/// segments, at the beginning.
pub const TCP_HEADER: u32 = 20;
/// See [`TCP_HEADER`].
pub const TCP_SYN_OPTIONS: u32 = 4;

impl SendStep {
    /// The packets that these are on the wire, and their bytes from the IP header on. Those of TCP are
    /// as many as there may be; the kernel that sends them counts how many there are.
    pub fn on_the_wire(&self, ipv4: bool) -> (u64, u64) {
        let header = ip_header(ipv4);
        let (packets, bytes) = if self.carries == Carries::Tcp {
            let segments = self.payload.div_ceil(MTU - header - TCP_HEADER) + 4;
            (segments, self.payload + TCP_SYN_OPTIONS + segments * (header + TCP_HEADER))
        } else {
            // Both have headers of 8 bytes.
            let carried = self.payload + 8;
            if carried + header <= MTU {
                (1, carried + header)
            } else {
                // An IPv6 fragment has a header of its own; all but the last carry a multiple of 8.
                let header = if ipv4 { header } else { header + 8 };
                let pieces = carried.div_ceil((MTU - header) / 8 * 8);
                (pieces, carried + pieces * header)
            }
        };
        let times = if self.carries == Carries::Tcp { self.connections } else { self.count };
        (u64::from(packets) * u64::from(times), u64::from(bytes) * u64::from(times))
    }

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

fn default_payload() -> u32 {
    64
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
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct TrafficExpectation {
    /// Packets, where they are known beforehand.
    pub packets: Option<u64>,
    /// Bytes from the IP header on, where they matter.
    pub bytes: Option<u64>,
    /// The name of an address: packets and bytes must be what was sent to it, as its senders know.
    pub sent: Option<String>,
    /// Different clients, where they matter.
    pub clients: Option<u64>,
}
