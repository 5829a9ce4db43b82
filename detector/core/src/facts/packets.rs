//! What was counted for watched addresses, and what pods' interfaces were seen to pretend.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::finding::{Diverted, Pretending};
use crate::traffic::{Count, Flow, Pretended, Side, Tally, Traffic};

/// Flows that a finding names.
const SAMPLE: usize = 8;

/// Pretences that are remembered at once; more count together until the old ones are over.
const PRETENDED_CAP: usize = 4_096;

/// Pretences of one interface that are kept apart where the addresses' owners have to be asked for.
pub(crate) const APART: usize = 64;

/// Stands for the addresses that are not kept apart. No packet that counts has it.
pub(crate) const MANY: IpAddr = IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED);

/// Packets of watched addresses, and pretences.
#[derive(Debug, Default)]
pub(crate) struct Packets {
    /// Whether anybody counts.
    pub(crate) counting: bool,
    /// `None` where there was no room to count.
    counts: BTreeMap<IpAddr, Option<Vec<Count>>>,
    pretended: BTreeMap<Pretending, Pretended>,
}

// === impl Packets ===

impl Packets {
    /// Takes all that was counted for an address.
    pub(crate) fn count(&mut self, traffic: Traffic) {
        self.counts.insert(traffic.address, Some(traffic.counts));
    }

    /// Takes the word that nobody counts for an address.
    pub(crate) fn give_up(&mut self, address: IpAddr) {
        self.counts.insert(address, None);
    }

    /// Forgets what was counted for an address.
    pub(crate) fn forget(&mut self, address: IpAddr) {
        self.counts.remove(&address);
    }

    /// The packets for `address` that were counted on sides where all matter (`whole`), and of those
    /// on other sides the ones of flows that matter (`single`). `None` where nobody counts.
    pub(crate) fn diverted(
        &self,
        address: IpAddr,
        whole: impl Fn(Side) -> bool,
        single: impl Fn(Side, &Flow) -> bool,
    ) -> Option<Diverted> {
        if !self.counting {
            return None;
        }
        let counts = match self.counts.get(&address) {
            Some(None) => return None,
            Some(Some(counts)) => &counts[..],
            None => &[],
        };
        let mut all = Diverted::default();
        let mut flows: BTreeMap<Flow, Tally> = BTreeMap::new();
        let mut apart = 0;
        for count in counts {
            let tally = count.tally;
            let Some(flow) = count.flow else {
                // Of single flows there is no sum, of a whole side it is exact where flows may not be.
                if whole(count.side) {
                    all.add(tally);
                }
                continue;
            };
            if !whole(count.side) {
                if !single(count.side, &flow) {
                    continue;
                }
                all.add(tally);
            }
            apart += tally.packets;
            flows.entry(flow).and_modify(|sum| sum.add(tally)).or_insert(tally);
        }
        all.more = apart < all.packets;
        all.clients = flows.keys().map(|flow| flow.client).collect::<BTreeSet<_>>().len() as u64;
        let mut sample: Vec<(Flow, Tally)> = flows.into_iter().collect();
        sample.sort_by_key(|(flow, tally)| (std::cmp::Reverse(tally.packets), *flow));
        sample.truncate(SAMPLE);
        all.sample = sample;
        Some(all)
    }

    /// Takes a pretence; gives what it counts as. Of addresses whose owner has to be asked for
    /// (`unknown`) only so many are kept apart for one interface: whoever sends from ever new ones must
    /// not make the API server answer for each, nor push a real one out.
    pub(crate) fn pretend(&mut self, pretended: Pretended, unknown: bool) -> Pretending {
        let Pretended { interface, address, pretence, .. } = pretended;
        let mut key = Pretending { address, interface, pretence };
        let full = |pretended: &BTreeMap<Pretending, Pretended>| {
            let of_it = pretended.keys().filter(|known| known.interface == interface);
            pretended.len() >= PRETENDED_CAP || (unknown && of_it.count() >= APART)
        };
        if !self.pretended.contains_key(&key) && full(&self.pretended) {
            key.address = MANY;
        }
        self.pretended
            .entry(key)
            .and_modify(|known| known.tally.add(pretended.tally))
            .or_insert(Pretended { address: key.address, ..pretended });
        key
    }

    /// What was seen of a pretence, if it is not over.
    pub(crate) fn pretended(&self, key: &Pretending) -> Option<&Pretended> {
        self.pretended.get(key)
    }

    /// Those that pretend to have this address.
    pub(crate) fn pretending_to_have(&self, address: IpAddr) -> impl Iterator<Item = &Pretending> {
        self.pretended.keys().filter(move |key| key.address == address)
    }

    /// All pretences that are not over.
    pub(crate) fn pretending(&self) -> impl Iterator<Item = &Pretending> {
        self.pretended.keys()
    }

    /// Forgets a pretence that is over.
    pub(crate) fn forgive(&mut self, key: &Pretending) {
        self.pretended.remove(key);
    }
}

impl Diverted {
    fn add(&mut self, tally: Tally) {
        if tally.packets == 0 {
            return;
        }
        self.packets += tally.packets;
        self.bytes += tally.bytes;
        let (first, last) = self.span.unwrap_or((tally.first, tally.last));
        self.span = Some((first.min(tally.first), last.max(tally.last)));
    }
}

impl Tally {
    fn add(&mut self, more: Self) {
        self.packets += more.packets;
        self.bytes += more.bytes;
        self.first = self.first.min(more.first);
        self.last = self.last.max(more.last);
    }
}
