//! Counting, within bounds.

use core::arch::asm;

use aya_ebpf::bindings::{BPF_ANY, BPF_NOEXIST};
use aya_ebpf::helpers::bpf_ktime_get_boot_ns;
use aya_ebpf::helpers::generated::bpf_jiffies64;
use aya_ebpf::macros::map;
use aya_ebpf::maps::lpm_trie::Key;
use aya_ebpf::maps::{Array, HashMap, LpmTrie, PerCpuArray, RingBuf};
use detector_ebpf::traffic::{
    Counted, FlowKey, INTERFACE_BITS, ODDITIES, Oddity, PretenceKey, Pretended, SIEVE, SLOTS,
    SideKey, Slot, SourceKey, Words, sieve,
};

/// How many addresses are watched: while there is none, no packet costs more than this look. The agent
/// writes it, by the map that the loader makes of the section: to read it takes two instructions, where a
/// look into another map takes ten.
#[unsafe(no_mangle)]
#[unsafe(link_section = ".data.watching")]
static mut WATCHING: u32 = 0;

/// A bit for each watched address, and perhaps for others: most packets need no look further.
#[map]
static SIEVE_BITS: Array<u64> = Array::with_max_entries(SIEVE, 0);

/// The watched addresses.
#[map]
static WATCHED: HashMap<Words, u32> = HashMap::with_max_entries(4_096, 0);

/// Packets for watched addresses, flow by flow.
#[map]
static FLOWS: HashMap<FlowKey, Counted> = HashMap::with_max_entries(16_384, 0);

/// Packets of flows that there was no room for.
#[map]
static REST: HashMap<SideKey, Counted> = HashMap::with_max_entries(8_192, 0);

/// The usual sources of interfaces whose sources are known.
#[map]
static SLOT: Array<Slot> = Array::with_max_entries(SLOTS, 0);

/// The same for interfaces whose slot is another's.
#[map]
static ASIDE: HashMap<u32, Slot> = HashMap::with_max_entries(4_096, 0);

/// All sources of interfaces, those in slots among them.
#[map]
static SOURCES: LpmTrie<SourceKey, u32> = LpmTrie::with_max_entries(65_536, 0);

/// Packets that pretend. What there is no room for is counted; the agent empties the map, so that room
/// comes back.
#[map]
static PRETENDED: HashMap<PretenceKey, Pretended> = HashMap::with_max_entries(4_096, 0);

/// Rings when there is something new to read.
#[map]
static BELL: RingBuf = RingBuf::with_byte_size(4_096, 0);

/// When it last rang on this CPU.
#[map]
static RUNG: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// See [`Oddity`].
#[map]
static ODD: PerCpuArray<u64> = PerCpuArray::with_max_entries(ODDITIES, 0);

/// The least time between two rings, per CPU: ten milliseconds.
const PACE: u64 = 10_000_000;

/// How much a packet counts.
#[derive(Clone, Copy)]
pub(crate) struct Weight {
    pub(crate) packets: u64,
    pub(crate) bytes: u64,
}

/// Whether any address is watched.
#[inline(always)]
pub(crate) fn is_watching() -> bool {
    // SAFETY: it is a number, and aligned; whatever a reader sees of a write is one too.
    unsafe { (&raw const WATCHING).read_volatile() != 0 }
}

/// Whether the address may be watched: of one that is not, the answer is mostly no.
#[inline(always)]
pub(crate) fn may_be_watched(address: &Words) -> bool {
    let (word, bit) = sieve(address);
    SIEVE_BITS.get(word).is_some_and(|bits| bits & bit != 0)
}

/// Whether the address is watched.
#[inline(always)]
fn is_watched(address: &Words) -> bool {
    // SAFETY: only presence counts.
    unsafe { WATCHED.get(address) }.is_some()
}

/// The slot of an interface, if it is its own: then its sources are known.
#[inline(always)]
pub(crate) fn slot(interface: u32) -> Option<&'static Slot> {
    let slot = SLOT.get(interface & (SLOTS - 1))?;
    if slot.interface == interface {
        return Some(slot);
    }
    if slot.interface == 0 {
        return None;
    }
    // SAFETY: only the agent writes it, and whatever a reader sees of a write is a number.
    unsafe { ASIDE.get(interface) }
}

/// Whether the address is one of the interface's sources; `None` where they are not known.
#[inline(always)]
pub(crate) fn is_source(interface: u32, address: &Words) -> bool {
    let key = SourceKey { interface, address: *address };
    SOURCES.get(Key::new(INTERFACE_BITS + 128, key)).is_some()
}

/// Counts a packet for an address that may be watched, if it is. A flow that is known is one of a
/// watched address.
#[inline(always)]
pub(crate) fn flow(key: &FlowKey, weight: Weight) {
    if let Some(counted) = FLOWS.get_ptr_mut(key) {
        add(counted, weight);
        return;
    }
    if !is_watched(&key.address) {
        return;
    }
    let first = first(weight);
    if FLOWS.insert(key, &first, BPF_NOEXIST.into()).is_ok() {
        ring(first.first);
        return;
    }
    // Another CPU may have been first, or there is no room.
    if let Some(counted) = FLOWS.get_ptr_mut(key) {
        add(counted, weight);
        return;
    }
    odd(Oddity::NotApart);
    let side = SideKey { address: key.address, interface: key.interface, reserved: 0 };
    if let Some(counted) = REST.get_ptr_mut(&side) {
        add(counted, weight);
    } else if REST.insert(&side, &first, BPF_NOEXIST.into()).is_err() {
        match REST.get_ptr_mut(&side) {
            Some(counted) => add(counted, weight),
            None => odd(Oddity::Uncounted),
        }
    }
}

/// Counts a packet that pretends.
#[inline(always)]
pub(crate) fn pretence(key: &PretenceKey, destination: &Words, weight: Weight) {
    if let Some(pretended) = PRETENDED.get_ptr_mut(key) {
        // SAFETY: the pointer is to a value of the map, which is there as long as the program runs.
        add(unsafe { &raw mut (*pretended).counted }, weight);
        return;
    }
    let counted = first(weight);
    let pretended = Pretended { destination: *destination, counted };
    if PRETENDED.insert(key, &pretended, BPF_ANY.into()).is_err() {
        odd(Oddity::PretenceLost);
    }
    ring(counted.first);
}

/// Counts what went another way than it should.
#[inline(always)]
pub(crate) fn odd(oddity: Oddity) {
    if let Some(count) = ODD.get_ptr_mut(oddity as u32) {
        increase(count, 1);
    }
}

#[inline(always)]
fn now() -> u64 {
    // SAFETY: the helper only reads a clock.
    unsafe { bpf_ktime_get_boot_ns() }
}

/// The kernel's ticks since it began: a look at a number, where the time is a question to a device.
#[inline(always)]
fn tick() -> u64 {
    // SAFETY: the helper only reads a number.
    unsafe { bpf_jiffies64() }
}

/// What the first packet counts.
#[inline(always)]
fn first(weight: Weight) -> Counted {
    let now = now();
    let Weight { packets, bytes } = weight;
    Counted { packets, bytes, first: now, last: now, tick: tick() }
}

/// Adds a packet, and looks at the clock if it is the first of its tick.
#[inline(always)]
fn add(counted: *mut Counted, weight: Weight) {
    let tick = tick();
    // SAFETY: the pointer is to a value of a map, aligned to 8 and there as long as the program runs.
    // Other CPUs change the same numbers, each by one instruction; of two times that are written at
    // once either will do.
    unsafe {
        increase(&raw mut (*counted).packets, weight.packets);
        increase(&raw mut (*counted).bytes, weight.bytes);
        if (&raw const (*counted).tick).read_volatile() != tick {
            (&raw mut (*counted).tick).write_volatile(tick);
            (&raw mut (*counted).last).write_volatile(now());
        }
    }
}

/// Adds by one instruction (`BPF_ATOMIC | BPF_ADD` without fetch, which every kernel has); Rust has no
/// atomics for BPF.
#[inline(always)]
fn increase(number: *mut u64, by: u64) {
    // SAFETY: the callers' pointers are to 8 bytes of a map's value; the instruction changes those and
    // no register.
    unsafe {
        asm!(
            "lock *(u64 *)({number} + 0) += {by}",
            number = in(reg) number,
            by = in(reg) by,
            options(nostack, preserves_flags),
        );
    }
}

/// Wakes the agent, but not for each packet.
#[inline(always)]
fn ring(now: u64) {
    let Some(rung) = RUNG.get_ptr_mut(0) else { return };
    // SAFETY: the slot is this CPU's own; a race with an interrupt costs a ring more.
    unsafe {
        if now.wrapping_sub(*rung) < PACE {
            return;
        }
        *rung = now;
    }
    // Where there is no room, a ring is on its way already.
    let _ = BELL.output::<u64>(now, 0);
}
