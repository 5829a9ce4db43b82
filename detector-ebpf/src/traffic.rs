//! What the packet programs and the agent share: keys and values of maps, byte by byte.
//!
//! All numbers are in the machine's byte order, ports included. Addresses are of 16 bytes as on the
//! wire, whether as bytes or as words; an IPv4 address is mapped into IPv6 (`::ffff:a.b.c.d`).

use core::mem::offset_of;

/// An address, of either family.
pub type Address = [u8; 16];

/// The IPv4 address as one of 16 bytes.
pub const fn mapped(address: [u8; 4]) -> Address {
    let [a, b, c, d] = address;
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d]
}

/// The same 16 bytes as the programs have them: four words, which are compared and hashed at once.
pub type Words = [u32; 4];

/// The IPv4 address, as it lies on the wire, as words of an address.
#[inline]
pub const fn mapped_words(address: u32) -> Words {
    [0, 0, u32::from_ne_bytes([0, 0, 0xff, 0xff]), address]
}

/// The address in words.
pub fn words(address: Address) -> Words {
    core::array::from_fn(|at| u32::from_ne_bytes(part(&address, at * 4)))
}

/// The address in bytes.
pub fn octets(words: Words) -> Address {
    let mut bytes = [0; 16];
    for (to, word) in bytes.chunks_exact_mut(4).zip(words) {
        to.copy_from_slice(&word.to_ne_bytes());
    }
    bytes
}

/// Whose packets are counted apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct FlowKey {
    /// The watched address, which is the packets' destination.
    pub address: Words,
    /// Their source.
    pub client: Words,
    /// The interface that hands them out; 0 where they came in.
    pub interface: u32,
    /// The destination port, where `flags` says that there is one.
    pub port: u16,
    /// The IP protocol.
    pub protocol: u8,
    /// [`HAS_PORT`] or 0.
    pub flags: u8,
}

/// See [`FlowKey::flags`].
pub const HAS_PORT: u8 = 1;

/// Where packets are counted that there was no room to keep apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct SideKey {
    /// The watched address.
    pub address: Words,
    /// As [`FlowKey::interface`].
    pub interface: u32,
    /// Nothing.
    pub reserved: u32,
}

/// How many packets, and when.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Counted {
    /// Packets as they are on a wire.
    pub packets: u64,
    /// Their bytes from the IP header on.
    pub bytes: u64,
    /// When the first came: nanoseconds of `CLOCK_BOOTTIME`.
    pub first: u64,
    /// When the last came, or an earlier one of the same tick of the kernel's clock (1 to 10 ms): most
    /// packets need not ask for the time.
    pub last: u64,
    /// The tick of that, in jiffies.
    pub tick: u64,
}

/// Who pretends to have which address, and how.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct PretenceKey {
    /// The address.
    pub address: Words,
    /// The interface that the packets come out of.
    pub interface: u32,
    /// One of `SOURCE`, `ARP`, `NEIGHBOUR`, `ROUTER`.
    pub pretence: u32,
}

/// The source address of an IP packet.
pub const SOURCE: u32 = 0;
/// The sender of an ARP message.
pub const ARP: u32 = 1;
/// The target of a neighbour advertisement.
pub const NEIGHBOUR: u32 = 2;
/// The source of a router advertisement.
pub const ROUTER: u32 = 3;

/// What was seen of a pretence.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Pretended {
    /// Where the first packet went to.
    pub destination: Words,
    /// How many.
    pub counted: Counted,
}

/// The addresses that most packets of an interface have, where one look finds them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Slot {
    /// Whose the slot is; 0 where it is nobody's.
    pub interface: u32,
    /// An IPv4 address in the wire's byte order, 0 where there is none.
    pub ipv4: u32,
    /// An IPv6 address, zeros where there is none.
    pub ipv6: Words,
}

/// Slots, by the interface's index modulo this.
pub const SLOTS: u32 = 4_096;

/// The key of a source prefix, behind the length that all tries begin with. The interface comes
/// first, all of it, so that one trie serves all interfaces.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct SourceKey {
    /// The interface.
    pub interface: u32,
    /// The prefix, without host bits.
    pub address: Words,
}

/// Bits of [`SourceKey`] before the address.
pub const INTERFACE_BITS: u32 = 32;

/// Words of the sieve: 64 bits each, of which an address has one. Of a thousand watched addresses one
/// packet in sixty-five for another address is looked up in vain.
pub const SIEVE: u32 = 1_024;

/// The word of the sieve, and the bit in it, that an address has. One that is watched has its bit set.
#[inline]
pub fn sieve(address: &Words) -> (u32, u64) {
    let [first, second, third, fourth] = address;
    // What tells the addresses of one cluster apart is in the last bytes of either family; the
    // multiplication (by 2^32 divided by the golden ratio, after Knuth) spreads it.
    let mixed =
        (fourth ^ third.rotate_left(7) ^ second.rotate_left(13) ^ first).wrapping_mul(0x9e37_79b1);
    let mixed = mixed ^ (mixed >> 15);
    ((mixed >> 6) % SIEVE, 1 << (mixed % 64))
}

/// What the programs count, per CPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Oddity {
    /// Packets for watched addresses that were counted, but not apart.
    NotApart = 0,
    /// Packets for watched addresses that there was no room to count at all.
    Uncounted = 1,
    /// Packets that pretend, for which there was no room.
    PretenceLost = 2,
    /// Packets that could not be read.
    Unread = 3,
}

/// How many there are.
pub const ODDITIES: u32 = 4;

// The programs write these types, the agent reads bytes: both must mean the same.
const _: () = {
    assert!(size_of::<FlowKey>() == FlowKey::SIZE);
    assert!(offset_of!(FlowKey, client) == 16 && offset_of!(FlowKey, interface) == 32);
    assert!(offset_of!(FlowKey, port) == 36 && offset_of!(FlowKey, protocol) == 38);
    assert!(offset_of!(FlowKey, flags) == 39);
    assert!(size_of::<SideKey>() == SideKey::SIZE && offset_of!(SideKey, interface) == 16);
    assert!(size_of::<Counted>() == Counted::SIZE && offset_of!(Counted, tick) == 32);
    assert!(size_of::<PretenceKey>() == PretenceKey::SIZE);
    assert!(offset_of!(PretenceKey, interface) == 16 && offset_of!(PretenceKey, pretence) == 20);
    assert!(size_of::<Pretended>() == Pretended::SIZE && offset_of!(Pretended, counted) == 16);
    assert!(size_of::<Slot>() == Slot::SIZE && offset_of!(Slot, ipv6) == 8);
    assert!(size_of::<SourceKey>() == SourceKey::SIZE && offset_of!(SourceKey, address) == 4);
    assert!(SLOTS.is_power_of_two() && SIEVE.is_power_of_two());
    assert!(Oddity::Unread as u32 + 1 == ODDITIES);
};

fn part<const N: usize, const M: usize>(bytes: &[u8; N], at: usize) -> [u8; M] {
    let mut part = [0; M];
    part.copy_from_slice(&bytes[at..at + M]);
    part
}

impl FlowKey {
    /// Bytes of a key.
    pub const SIZE: usize = 40;

    /// Reads a key.
    pub fn from_bytes(bytes: &[u8; Self::SIZE]) -> Self {
        Self {
            address: words(part(bytes, 0)),
            client: words(part(bytes, 16)),
            interface: u32::from_ne_bytes(part(bytes, 32)),
            port: u16::from_ne_bytes(part(bytes, 36)),
            protocol: bytes[38],
            flags: bytes[39],
        }
    }
}

impl SideKey {
    /// Bytes of a key.
    pub const SIZE: usize = 24;

    /// Reads a key.
    pub fn from_bytes(bytes: &[u8; Self::SIZE]) -> Self {
        let interface = u32::from_ne_bytes(part(bytes, 16));
        Self { address: words(part(bytes, 0)), interface, reserved: 0 }
    }
}

impl Counted {
    /// Bytes of a value.
    pub const SIZE: usize = 40;

    /// Reads a value.
    pub fn from_bytes(bytes: &[u8; Self::SIZE]) -> Self {
        let number = |at| u64::from_ne_bytes(part(bytes, at));
        Self {
            packets: number(0),
            bytes: number(8),
            first: number(16),
            last: number(24),
            tick: number(32),
        }
    }
}

impl PretenceKey {
    /// Bytes of a key.
    pub const SIZE: usize = 24;

    /// Reads a key.
    pub fn from_bytes(bytes: &[u8; Self::SIZE]) -> Self {
        let number = |at| u32::from_ne_bytes(part(bytes, at));
        Self { address: words(part(bytes, 0)), interface: number(16), pretence: number(20) }
    }
}

impl Pretended {
    /// Bytes of a value.
    pub const SIZE: usize = 56;

    /// Reads a value.
    pub fn from_bytes(bytes: &[u8; Self::SIZE]) -> Self {
        Self { destination: words(part(bytes, 0)), counted: Counted::from_bytes(&part(bytes, 16)) }
    }
}

impl Slot {
    /// Bytes of a value.
    pub const SIZE: usize = 24;

    /// Writes a value.
    pub fn to_bytes(&self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        bytes[..4].copy_from_slice(&self.interface.to_ne_bytes());
        bytes[4..8].copy_from_slice(&self.ipv4.to_ne_bytes());
        bytes[8..].copy_from_slice(&octets(self.ipv6));
        bytes
    }
}

impl SourceKey {
    /// Bytes of a key.
    pub const SIZE: usize = 20;

    /// Writes a key.
    pub fn to_bytes(&self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        bytes[..4].copy_from_slice(&self.interface.to_ne_bytes());
        bytes[4..].copy_from_slice(&octets(self.address));
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_the_same_bytes() {
        let address = [10, 244, 1, 5];
        assert_eq!(words(mapped(address)), mapped_words(u32::from_ne_bytes(address)));
        assert_eq!(octets(words(mapped(address))), mapped(address));
    }

    #[test]
    fn the_sieve_lets_few_neighbours_through() {
        let mut bits = [0u64; SIEVE as usize];
        let address = |n: u32| words(mapped((0x0af4_0000 + n).to_be_bytes()));
        for n in 0..1_000 {
            let (word, bit) = sieve(&address(n));
            bits[word as usize] |= bit;
        }
        let passes = |n: u32| {
            let (word, bit) = sieve(&address(n));
            bits[word as usize] & bit != 0
        };
        assert!((0..1_000).all(passes));
        let others = (1_000..65_000).filter(|n| passes(*n)).count();
        assert!(others < 64_000 / 32, "{others} of 64000");
    }
}
