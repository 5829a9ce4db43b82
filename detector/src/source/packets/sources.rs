//! Which source addresses an interface's packets may have, for the programs to look up.

use std::collections::BTreeMap;
use std::net::IpAddr;

use aya::Ebpf;
use aya::maps::lpm_trie::Key;
use aya::maps::{Array, HashMap as KernelMap, LpmTrie, MapData, MapError};
use detector_core::route::{IfIndex, Prefix};
use detector_ebpf::traffic::{INTERFACE_BITS, SLOTS, Slot, SourceKey, words};

use super::{PacketsError, take};
use crate::source::address::{bits, bytes};

type TrieKey = Key<[u8; SourceKey::SIZE]>;

/// The maps, and what is in them.
pub(super) struct Sources {
    slots: Array<MapData, [u8; Slot::SIZE]>,
    aside: KernelMap<MapData, u32, [u8; Slot::SIZE]>,
    trie: LpmTrie<MapData, [u8; SourceKey::SIZE], u32>,
    known: BTreeMap<IfIndex, Vec<Prefix>>,
    /// Whose each slot is.
    owners: BTreeMap<u32, IfIndex>,
}

// === impl Sources ===

impl Sources {
    /// Takes the maps of loaded programs.
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, PacketsError> {
        let wrong = |error: MapError| PacketsError::map(&error);
        Ok(Self {
            slots: take(ebpf, "SLOT")?.try_into().map_err(wrong)?,
            aside: take(ebpf, "ASIDE")?.try_into().map_err(wrong)?,
            trie: take(ebpf, "SOURCES")?.try_into().map_err(wrong)?,
            known: BTreeMap::new(),
            owners: BTreeMap::new(),
        })
    }

    /// Says which sources an interface's packets may have; none where nobody knows. Where there is no
    /// room for them, they count as not known.
    pub(super) fn set(&mut self, interface: IfIndex, sources: &[Prefix]) -> Result<(), MapError> {
        let old = self.known.get(&interface).cloned().unwrap_or_default();
        // Those to come first, so that no packet meets a gap between the two.
        for source in sources.iter().filter(|source| !old.contains(source)) {
            if let Err(error) = self.trie.insert(&key(interface, *source), 1, 0) {
                self.clear(interface, old.iter().chain(sources));
                return Err(error);
            }
        }
        if sources.is_empty() {
            self.clear(interface, old.iter());
            return Ok(());
        }
        if let Err(error) = self.place(interface, slot(interface, sources)) {
            self.clear(interface, old.iter().chain(sources));
            return Err(error);
        }
        for source in old.iter().filter(|source| !sources.contains(source)) {
            let _ = self.trie.remove(&key(interface, *source));
        }
        self.known.insert(interface, sources.to_vec());
        Ok(())
    }

    fn clear<'p>(&mut self, interface: IfIndex, sources: impl Iterator<Item = &'p Prefix>) {
        self.displace(interface);
        for source in sources {
            // Where it fails, nothing was there.
            let _ = self.trie.remove(&key(interface, *source));
        }
        self.known.remove(&interface);
    }

    /// Puts an interface into its slot, or aside where that is another's.
    fn place(&mut self, interface: IfIndex, slot: Slot) -> Result<(), MapError> {
        let number = number(interface);
        match self.owners.get(&number) {
            Some(owner) if *owner != interface => {
                self.aside.insert(interface.get(), slot.to_bytes(), 0)
            }
            _ => {
                self.slots.set(number, slot.to_bytes(), 0)?;
                self.owners.insert(number, interface);
                Ok(())
            }
        }
    }

    /// Frees an interface's slot for one that was put aside. The programs look aside only where a slot
    /// is taken.
    fn displace(&mut self, interface: IfIndex) {
        let number = number(interface);
        if self.owners.get(&number) != Some(&interface) {
            let _ = self.aside.remove(&interface.get());
            return;
        }
        let next = self
            .known
            .iter()
            .find(|(other, _)| **other != interface && self::number(**other) == number)
            .map(|(other, sources)| (*other, slot(*other, sources)));
        let heir = next.map_or(Slot::default(), |(_, slot)| slot);
        if self.slots.set(number, heir.to_bytes(), 0).is_err() {
            return;
        }
        match next {
            Some((other, _)) => {
                self.owners.insert(number, other);
                let _ = self.aside.remove(&other.get());
            }
            None => {
                self.owners.remove(&number);
            }
        }
    }
}

fn number(interface: IfIndex) -> u32 {
    interface.get() % SLOTS
}

/// The first single address of each family.
fn slot(interface: IfIndex, sources: &[Prefix]) -> Slot {
    let mut hosts = sources.iter().filter_map(Prefix::host_address);
    let mut slot = Slot { interface: interface.get(), ..Slot::default() };
    let ipv4 = hosts.clone().find_map(|address| match address {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    });
    slot.ipv4 = ipv4.map_or(0, |address| u32::from_ne_bytes(address.octets()));
    let ipv6 = hosts.find_map(|address| match address {
        IpAddr::V6(address) => Some(address.octets()),
        IpAddr::V4(_) => None,
    });
    slot.ipv6 = ipv6.map_or([0; 4], words);
    slot
}

fn key(interface: IfIndex, source: Prefix) -> TrieKey {
    let key = SourceKey { interface: interface.get(), address: words(bytes(source.address())) };
    Key::new(INTERFACE_BITS + bits(source), key.to_bytes())
}
