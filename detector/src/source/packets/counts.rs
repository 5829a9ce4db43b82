//! What the programs have counted.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use aya::Ebpf;
use aya::maps::{Array, HashMap as KernelMap, MapData, MapError};
use detector_core::route::IfIndex;
use detector_core::time::BootTime;
use detector_core::traffic::{Count, Flow, IpProtocol, Pretence, Pretended, Side, Tally, Traffic};
use detector_ebpf::traffic::{
    self as shared, ARP, Address, Counted, FlowKey, HAS_PORT, NEIGHBOUR, PretenceKey, ROUTER,
    SOURCE, SideKey, octets,
};
use tracing::{debug, warn};

use super::{PacketsError, take};
use crate::source::address::{bytes, ip};

type Map<const K: usize, const V: usize> = KernelMap<MapData, [u8; K], [u8; V]>;

/// The maps of what was counted, and what was told of it.
pub(super) struct Counts {
    watching: Array<MapData, u32>,
    /// See [`Counts::sift`].
    sieve: Array<MapData, u64>,
    watched: KernelMap<MapData, Address, u32>,
    flows: Map<{ FlowKey::SIZE }, { Counted::SIZE }>,
    rest: Map<{ SideKey::SIZE }, { Counted::SIZE }>,
    pretended: Map<{ PretenceKey::SIZE }, { shared::Pretended::SIZE }>,
    /// Packets that were told of, by watched address.
    told: BTreeMap<IpAddr, u64>,
}

// === impl Counts ===

impl Counts {
    /// Takes the maps of loaded programs.
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, PacketsError> {
        let wrong = |error: MapError| PacketsError::map(&error);
        Ok(Self {
            watching: take(ebpf, ".data.watching")?.try_into().map_err(wrong)?,
            sieve: take(ebpf, "SIEVE_BITS")?.try_into().map_err(wrong)?,
            watched: take(ebpf, "WATCHED")?.try_into().map_err(wrong)?,
            flows: take(ebpf, "FLOWS")?.try_into().map_err(wrong)?,
            rest: take(ebpf, "REST")?.try_into().map_err(wrong)?,
            pretended: take(ebpf, "PRETENDED")?.try_into().map_err(wrong)?,
            told: BTreeMap::new(),
        })
    }

    /// Counts packets for an address from now on.
    pub(super) fn watch(&mut self, address: IpAddr) -> Result<(), MapError> {
        self.watched.insert(bytes(address), 1, 0)?;
        self.told.insert(address, 0);
        self.sift(address)?;
        self.watching.set(0, 1, 0)
    }

    /// Counts them no longer.
    pub(super) fn unwatch(&mut self, address: IpAddr) {
        if self.told.remove(&address).is_none() {
            return;
        }
        // Where it fails, nothing was there.
        let _ = self.watched.remove(&bytes(address));
        if let Err(error) = self.sift(address) {
            warn!(%error, "packets cost more than they need to");
        }
        if self.told.is_empty()
            && let Err(error) = self.watching.set(0, 0, 0)
        {
            warn!(%error, "packets cost more than they need to");
        }
        let wanted = shared::words(bytes(address));
        let flows = keys(&self.flows).filter(|key| FlowKey::from_bytes(key).address == wanted);
        for key in flows.collect::<Vec<_>>() {
            let _ = self.flows.remove(&key);
        }
        let rest = keys(&self.rest).filter(|key| SideKey::from_bytes(key).address == wanted);
        for key in rest.collect::<Vec<_>>() {
            let _ = self.rest.remove(&key);
        }
    }

    /// Makes the word of the sieve in which an address has its bit what the watched addresses make it.
    fn sift(&mut self, address: IpAddr) -> Result<(), MapError> {
        let sieve = |address: IpAddr| shared::sieve(&shared::words(bytes(address)));
        let (word, _) = sieve(address);
        let bits = self.told.keys().map(|watched| sieve(*watched));
        let bits = bits.filter(|(other, _)| *other == word).fold(0, |all, (_, bit)| all | bit);
        self.sieve.set(word, bits, 0)
    }

    /// How many addresses are watched.
    pub(super) fn watched(&self) -> usize {
        self.told.len()
    }

    /// All that was counted for an address; `None` where it is not watched.
    pub(super) fn traffic(&mut self, address: IpAddr) -> Option<Traffic> {
        let told = self.told.get(&address).copied()?;
        let traffic = self.read().remove(&address).unwrap_or_else(|| nothing(address));
        self.told.insert(address, packets(&traffic).max(told));
        Some(traffic)
    }

    /// What was counted for each address that had packets since the last look.
    pub(super) fn changed(&mut self) -> Vec<Traffic> {
        if self.told.is_empty() {
            return Vec::new();
        }
        let all = self.read();
        let mut changed = Vec::new();
        for (address, traffic) in all {
            let Some(told) = self.told.get_mut(&address) else { continue };
            let packets = packets(&traffic);
            if *told != packets {
                *told = packets;
                changed.push(traffic);
            }
        }
        changed
    }

    /// What was pretended since the last look; the map is empty afterwards.
    pub(super) fn pretended(&mut self) -> Vec<Pretended> {
        let mut all = Vec::new();
        for key in keys(&self.pretended).collect::<Vec<_>>() {
            let Ok(value) = self.pretended.get(&key, 0) else { continue };
            // What is counted between the two is lost: a packet or two of a pretence that is told.
            let _ = self.pretended.remove(&key);
            let PretenceKey { address, interface, pretence } = PretenceKey::from_bytes(&key);
            let shared::Pretended { destination, counted } = shared::Pretended::from_bytes(&value);
            let pretence = match pretence {
                SOURCE => Pretence::Source,
                ARP => Pretence::Arp,
                NEIGHBOUR => Pretence::Neighbour,
                ROUTER => Pretence::Router,
                other => {
                    debug!(pretence = other, "the programs tell of what is not known here");
                    continue;
                }
            };
            let Some(interface) = IfIndex::new(interface) else { continue };
            let destination = (destination != [0; 4]).then(|| ip(octets(destination)));
            let (address, tally) = (ip(octets(address)), tally(counted));
            all.push(Pretended { interface, address, pretence, destination, tally });
        }
        all
    }

    /// All counts by address. The sum of a side is that of its flows and of the rest.
    fn read(&self) -> HashMap<IpAddr, Traffic> {
        let mut all: HashMap<IpAddr, Traffic> = HashMap::new();
        let mut sums: HashMap<(IpAddr, Side), Tally> = HashMap::new();
        let mut sum = |address: IpAddr, side: Side, more: Tally| {
            sums.entry((address, side))
                .and_modify(|sum| {
                    sum.packets += more.packets;
                    sum.bytes += more.bytes;
                    sum.first = sum.first.min(more.first);
                    sum.last = sum.last.max(more.last);
                })
                .or_insert(more);
        };
        for (key, value) in self.flows.iter().filter_map(Result::ok) {
            let key = FlowKey::from_bytes(&key);
            let (address, tally) = (ip(octets(key.address)), tally(Counted::from_bytes(&value)));
            let flow = Flow {
                client: ip(octets(key.client)),
                protocol: IpProtocol(key.protocol),
                port: (key.flags & HAS_PORT != 0).then_some(key.port),
            };
            let side = side(key.interface);
            sum(address, side, tally);
            let traffic = all.entry(address).or_insert_with(|| nothing(address));
            traffic.counts.push(Count { side, flow: Some(flow), tally });
        }
        for (key, value) in self.rest.iter().filter_map(Result::ok) {
            let key = SideKey::from_bytes(&key);
            sum(ip(octets(key.address)), side(key.interface), tally(Counted::from_bytes(&value)));
        }
        for ((address, side), tally) in sums {
            let traffic = all.entry(address).or_insert_with(|| nothing(address));
            traffic.counts.push(Count { side, flow: None, tally });
        }
        all
    }
}

fn keys<const K: usize, const V: usize>(map: &Map<K, V>) -> impl Iterator<Item = [u8; K]> {
    map.keys().filter_map(Result::ok)
}

fn nothing(address: IpAddr) -> Traffic {
    Traffic { address, counts: Vec::new() }
}

fn packets(traffic: &Traffic) -> u64 {
    let sums = traffic.counts.iter().filter(|count| count.flow.is_none());
    sums.map(|count| count.tally.packets).sum()
}

fn side(interface: u32) -> Side {
    IfIndex::new(interface).map_or(Side::Sent, Side::Reached)
}

fn tally(counted: Counted) -> Tally {
    let Counted { packets, bytes, first, last, tick: _ } = counted;
    let time = BootTime::from_nanos;
    Tally { packets, bytes, first: time(first), last: time(last) }
}
