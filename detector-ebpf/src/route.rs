//! `route`: a filter on a netlink socket that joined the kernel's multicast groups for links,
//! routes, rules and next hops.
//!
//! A multicast message passes the filter of each listening socket within the system call that
//! causes it (`do_one_broadcast` in net/netlink/af_netlink.c), so the records are in the kernel's
//! own order, and none is late. The filter lets nothing through to the socket itself: its queue
//! stays empty and cannot overflow. For the message itself no BTF and no layout of a kernel structure is
//! needed, only helpers that socket filters have had since Linux 5.8; the one look beside it, at who
//! sent it, is believed only where the agent has seen it hold. Who writes is read where it is known how
//! (`task`).

use core::arch::asm;

use aya_ebpf::helpers::generated::bpf_skb_load_bytes;
use aya_ebpf::helpers::{bpf_ktime_get_boot_ns, bpf_probe_read_kernel};
use aya_ebpf::macros::{map, socket_filter};
use aya_ebpf::maps::{HashMap, PerCpuArray, RingBuf};
use aya_ebpf::programs::SkBuffContext;
use aya_log_ebpf::warn;
use detector_ebpf::writer::Task;
use detector_ebpf::{COUNTERS, Counter, HEADER, Header, LARGE, MEDIUM, MESSAGE, SMALL};

use crate::forget::forget;
use crate::task;

/// Records for the agent. The agent sets the size when it loads the program.
#[map]
pub(crate) static RECORDS: RingBuf = RingBuf::with_byte_size(4 << 20, 0);

/// Interfaces that carry the node's own traffic, by index. What the map lacks is taken to matter.
#[map]
static UPLINKS: HashMap<u32, u8> = HashMap::with_max_entries(4096, 0);

/// See [`Counter`].
#[map]
static COUNTS: PerCpuArray<u64> = PerCpuArray::with_max_entries(COUNTERS, 0);

/// When something was last logged on this CPU.
#[map]
static LOGGED: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// The least time between two words in the log, per CPU: a second.
const LOG_PACE: u64 = 1_000_000_000;

const NLM_F_REPLACE: u16 = 0x100;
const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_NEWNEIGH: u16 = 28;
const NUD_PERMANENT: u16 = 0x80;
const NTF_PROXY: u8 = 0x08;
const AF_INET: u8 = 2;
const AF_BRIDGE: u8 = 7;
const AF_INET6: u8 = 10;
const RTN_UNICAST: u8 = 1;
const RT_TABLE_MAIN: u32 = 254;
const RTM_F_CLONED: u32 = 0x200;
const RTA_OIF: u16 = 4;
const RTA_MULTIPATH: u16 = 9;
const RTA_TABLE: u16 = 15;
const RTA_NH_ID: u16 = 30;

/// Attributes that are looked at before a route is taken to matter; the kernel sends at most 20.
const ATTRIBUTES: u32 = 24;

/// Legs that are looked at before a route is taken to matter.
const LEGS: u32 = 8;

/// `struct nlmsghdr` of linux/netlink.h.
#[repr(C)]
#[derive(Clone, Copy)]
struct MessageHeader {
    length: u32,
    kind: u16,
    flags: u16,
    sequence: u32,
    port: u32,
}

/// `struct rtmsg` of linux/rtnetlink.h.
#[repr(C)]
#[derive(Clone, Copy)]
struct RouteHeader {
    family: u8,
    length: u8,
    source_length: u8,
    tos: u8,
    table: u8,
    protocol: u8,
    scope: u8,
    kind: u8,
    flags: u32,
}

/// `struct ndmsg` of linux/neighbour.h.
#[repr(C)]
#[derive(Clone, Copy)]
struct NeighbourHeader {
    family: u8,
    padding: [u8; 3],
    interface: u32,
    state: u16,
    flags: u8,
    kind: u8,
}

/// What every message that matters begins with: read at once, for each read takes as long as any.
#[repr(C)]
#[derive(Clone, Copy)]
struct Beginning {
    header: MessageHeader,
    body: Body,
}

/// What is behind the header, by the kind of message. All have the family first.
#[repr(C)]
#[derive(Clone, Copy)]
union Body {
    family: u8,
    route: RouteHeader,
    neighbour: NeighbourHeader,
}

/// `struct rtattr`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Attribute {
    length: u16,
    kind: u16,
}

/// `struct rtnexthop`.
#[repr(C)]
#[derive(Clone, Copy)]
struct LegHeader {
    length: u16,
    flags: u8,
    hops: u8,
    interface: u32,
}

/// Where `NETLINK_CB(skb).portid` lies in `struct sk_buff` of 64-bit kernels: `cb` after 40 bytes, and
/// 12 bytes into it the port of `struct netlink_skb_parms`, after the credentials. No interface
/// promises it, so the agent tries it out before it believes it.
const SENDER: usize = 40 + 12;

/// Reads every message, and lets none of them on to the socket.
///
/// Whoever has CAP_NET_ADMIN may send to the kernel's multicast groups, in the kernel's own words.
/// Who sent a message stands beside the message only, and who caused it nowhere: it is the task that
/// runs.
#[socket_filter]
pub(crate) fn route(context: SkBuffContext) -> i64 {
    see::<true>(&context)
}

/// `route` for kernels that lend no helper to read their memory: those locked down to
/// confidentiality, and those that give the agent no CAP_PERFMON.
#[socket_filter]
pub(crate) fn route_blind_to_sender(context: SkBuffContext) -> i64 {
    see::<false>(&context)
}

#[inline(always)]
fn see<const SENDERS: bool>(context: &SkBuffContext) -> i64 {
    count(witness::<SENDERS>(context));
    0
}

/// What becomes of a message.
#[inline(always)]
fn witness<const SENDERS: bool>(context: &SkBuffContext) -> Counter {
    match context.load::<Beginning>(0) {
        Ok(beginning) if cannot_matter(context, &beginning) => Counter::Filtered,
        // Even one that is too short for what it says it is, the agent looks at.
        Err(_) if context.len() < size_of::<MessageHeader>() as u32 => {
            complain(context, context.len());
            Counter::Unparsed
        }
        _ => record::<SENDERS>(context),
    }
}

#[inline(always)]
fn cannot_matter(context: &SkBuffContext, beginning: &Beginning) -> bool {
    let Beginning { header, body } = beginning;
    // More than one message in a buffer: the agent takes it apart.
    let single = header.length.wrapping_add(3) & !3 >= context.len();
    // What is replaced may have mattered, whatever it is replaced by.
    let replaces = header.flags & NLM_F_REPLACE != 0;
    if !single || replaces {
        return false;
    }
    match header.kind {
        // A bridge speaks of its ports by messages of its own, which are no interfaces.
        // SAFETY: any bytes are a number.
        RTM_NEWLINK | RTM_DELLINK => unsafe { body.family == AF_BRIDGE },
        RTM_NEWNEIGH => {
            // SAFETY: any bytes are numbers.
            let neighbour = unsafe { body.neighbour };
            // What the kernel has found out itself changes all the time, and leads nobody astray.
            neighbour.state & NUD_PERMANENT == 0 && neighbour.flags & NTF_PROXY == 0
        }
        RTM_NEWROUTE | RTM_DELROUTE => {
            // SAFETY: any bytes are numbers.
            let route = unsafe { body.route };
            let bits = match route.family {
                AF_INET => 32,
                AF_INET6 => 128,
                _ => return false,
            };
            if route.flags & RTM_F_CLONED != 0 {
                return true;
            }
            route.kind == RTN_UNICAST && route.length < bits && leaves_by_uplinks(context, &route)
        }
        _ => false,
    }
}

/// Whether a route of the main table leaves the node by uplinks only. When in doubt it does not.
#[inline(always)]
fn leaves_by_uplinks(context: &SkBuffContext, route: &RouteHeader) -> bool {
    let mut table = u32::from(route.table);
    let mut interface = 0u32;
    let mut legs = 0usize;
    let mut legs_end = 0usize;
    let mut offset = size_of::<MessageHeader>() + size_of::<RouteHeader>();
    let mut complete = false;
    let any = context.len();
    for _ in 0..ATTRIBUTES {
        let Ok(attribute) = context.load::<Attribute>(offset) else {
            complete = true;
            break;
        };
        let length = usize::from(attribute.length);
        if length < size_of::<Attribute>() {
            return false;
        }
        let value = offset + size_of::<Attribute>();
        match attribute.kind {
            RTA_OIF => interface = context.load(value).unwrap_or(0),
            RTA_TABLE => table = context.load(value).unwrap_or(0),
            RTA_MULTIPATH => {
                legs = value;
                legs_end = offset + length;
            }
            RTA_NH_ID => return false,
            _ => {}
        }
        // Else each turn is another for each set of attributes before it.
        offset = forget((offset + ((length + 3) & !3)) as u32, any) as usize;
        table = forget(table, any);
        interface = forget(interface, any);
        legs = forget(legs as u32, any) as usize;
        legs_end = forget(legs_end as u32, any) as usize;
    }
    if !complete || table != RT_TABLE_MAIN {
        return false;
    }
    if legs == 0 {
        return is_uplink(interface);
    }
    for _ in 0..LEGS {
        if legs >= legs_end {
            return true;
        }
        let Ok(leg) = context.load::<LegHeader>(legs) else { return false };
        if usize::from(leg.length) < size_of::<LegHeader>() || !is_uplink(leg.interface) {
            return false;
        }
        legs = forget((legs + ((usize::from(leg.length) + 3) & !3)) as u32, any) as usize;
    }
    false
}

#[inline(always)]
fn is_uplink(interface: u32) -> bool {
    // SAFETY: the value is a byte that nobody writes but the agent, and only its presence counts.
    unsafe { UPLINKS.get(interface) }.is_some()
}

/// When a message came, and of whom.
struct By {
    at: u64,
    task: Task,
}

/// Writes the message to the ring, in the smallest size that holds it.
#[inline(always)]
fn record<const SENDERS: bool>(context: &SkBuffContext) -> Counter {
    let length = context.len();
    // SAFETY: the helper only reads a clock.
    let at = unsafe { bpf_ktime_get_boot_ns() };
    let task = if SENDERS { task::current(at) } else { Task::default() };
    let by = By { at, task };
    if length <= SMALL as u32 {
        write::<SENDERS, SMALL, { SMALL + HEADER }>(context, length, &by)
    } else if length <= MEDIUM as u32 {
        write::<SENDERS, MEDIUM, { MEDIUM + HEADER }>(context, length, &by)
    } else if length <= LARGE as u32 {
        write::<SENDERS, LARGE, { LARGE + HEADER }>(context, length, &by)
    } else {
        let outcome = write::<SENDERS, SMALL, { SMALL + HEADER }>(context, SMALL as u32, &by);
        if outcome == Counter::Written {
            count(Counter::Truncated);
        }
        outcome
    }
}

/// Writes the first `kept` bytes of the message: at least one, at most `ROOM`, a power of two.
#[inline(always)]
fn write<const SENDERS: bool, const ROOM: usize, const SIZE: usize>(
    context: &SkBuffContext,
    kept: u32,
    by: &By,
) -> Counter {
    let Some(mut entry) = RECORDS.reserve::<[u8; SIZE]>(0) else {
        return Counter::Lost;
    };
    // The compiler knows both bounds and would drop what follows; the verifier of Linux 5.10 knows
    // them by this arithmetic only.
    let kept = (unknown_to_the_compiler(kept.wrapping_sub(1)) & (ROOM as u32 - 1)) + 1;
    let start = entry.as_mut_ptr().cast::<u8>();
    // SAFETY: the entry is `SIZE` = `HEADER` + `ROOM` bytes and aligned to 8: the header fits at its
    // start, and `kept`, at most `ROOM`, is what is written after it. Bytes that are left unwritten
    // are not read: the header says how many were.
    let loaded = unsafe {
        let sender = if SENDERS { sender(context) } else { u32::MAX };
        let By { at, task } = *by;
        let header = Header { at, kept, whole: context.len(), sender, kind: MESSAGE, task };
        start.cast::<Header>().write(header);
        bpf_skb_load_bytes(context.skb.skb.cast(), 0, start.add(HEADER).cast(), kept)
    };
    if loaded < 0 {
        entry.discard(0);
        return Counter::Unparsed;
    }
    entry.submit(0);
    Counter::Written
}

/// The same number, of which the compiler can no longer conclude anything. A volatile read would do
/// so by way of the stack, and where the agent has no CAP_PERFMON the verifier lets no such place on
/// the stack be used again.
#[inline(always)]
fn unknown_to_the_compiler(number: u32) -> u32 {
    let mut number = u64::from(number);
    // SAFETY: the instruction copies a register to itself.
    unsafe { asm!("{0} = {0}", inout(reg) number, options(pure, nomem, nostack, preserves_flags)) }
    number as u32
}

#[inline(always)]
fn sender(context: &SkBuffContext) -> u32 {
    let port = context.skb.skb.cast::<u8>().wrapping_add(SENDER).cast();
    // SAFETY: the helper reads kernel memory at whatever address it is given, or fails.
    unsafe { bpf_probe_read_kernel(port) }.unwrap_or(u32::MAX)
}

#[inline(always)]
pub(crate) fn count(counter: Counter) {
    let Some(count) = COUNTS.get_ptr_mut(counter as u32) else { return };
    // The kernel may preempt the program for another task's route change, or interrupt it for a
    // router's announcement. An addition in two steps would then take back what was counted in
    // between, and a count of losses that goes back hides the next ones. So it is one instruction
    // (`BPF_ATOMIC | BPF_ADD` without fetch, which every kernel has); Rust has no atomics for BPF.
    // SAFETY: the pointer is to this CPU's slot of the map, aligned to 8 and there as long as the
    // program is. The instruction changes those 8 bytes and no register.
    unsafe {
        asm!(
            "lock *(u64 *)({count} + 0) += {one}",
            count = in(reg) count,
            one = in(reg) 1u64,
            options(nostack, preserves_flags),
        );
    }
}

/// Says in the log what cannot be read, at most once a second on each CPU.
#[inline(always)]
fn complain(context: &SkBuffContext, length: u32) {
    let Some(logged) = LOGGED.get_ptr_mut(0) else { return };
    // SAFETY: the helper only reads a clock.
    let now = unsafe { bpf_ktime_get_boot_ns() };
    // SAFETY: the slot is this CPU's own; a race with an interrupt costs a line in the log.
    unsafe {
        if now.wrapping_sub(*logged) < LOG_PACE {
            return;
        }
        *logged = now;
    }
    warn!(context, "a message of {} bytes is no netlink message", length);
}
