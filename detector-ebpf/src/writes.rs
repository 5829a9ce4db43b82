//! The functions by which routes are written, traced: `fib_table_insert` for IPv4, `fib6_add` for IPv6.
//!
//! A write that the kernel refuses is notified to nobody, and yet it tells what somebody is after: older
//! Felix adds the route of a floating IP only where there is none. So it is recorded here, with who
//! tried. Where the filter cannot read who runs, whoever enters is noted as well, for the filter to find.
//!
//! Trampolines (`fexit`) cost least and see the arguments when the function ends; where there are none,
//! probes do (`kprobe`), which have to note the arguments when it begins.

use aya_ebpf::helpers::bpf_ktime_get_boot_ns;
use aya_ebpf::macros::{fentry, fexit, kprobe, kretprobe};
use aya_ebpf::programs::{FEntryContext, FExitContext, ProbeContext, RetProbeContext};
use detector_ebpf::writer::Refusal;
use detector_ebpf::{Counter, HEADER, Header, REFUSAL};

use crate::route::{RECORDS, count};
use crate::task::{WRITING, Writing, at, key, layout, traced};

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// Routes that the kernel makes itself: `RTPROT_KERNEL`, `RTPROT_RA`.
const OWN: [u8; 2] = [2, 9];

/// A refusal and its header, where 8 bytes end.
const SIZE: usize = (HEADER + size_of::<Refusal>()).next_multiple_of(8);

/// `int fib_table_insert(struct net *, struct fib_table *, struct fib_config *, …)`
#[fentry(function = "fib_table_insert")]
pub(crate) fn enter_ipv4(context: FEntryContext) -> i32 {
    enter(context.arg(0), context.arg(2));
    0
}

/// `int fib6_add(struct fib6_node *, struct fib6_info *, struct nl_info *, …)`
#[fentry(function = "fib6_add")]
pub(crate) fn enter_ipv6(context: FEntryContext) -> i32 {
    enter(context.arg(1), context.arg(2));
    0
}

#[fexit(function = "fib_table_insert")]
pub(crate) fn leave_ipv4(context: FExitContext) -> i32 {
    // The result is behind the four arguments.
    left_ipv4(context.arg(0), context.arg(2), context.arg(4));
    forget_noted();
    0
}

#[fexit(function = "fib6_add")]
pub(crate) fn leave_ipv6(context: FExitContext) -> i32 {
    left_ipv6(context.arg(1), context.arg(2), context.arg(4));
    forget_noted();
    0
}

#[kprobe(function = "fib_table_insert")]
pub(crate) fn probe_ipv4(context: ProbeContext) -> u32 {
    if let (Some(net), Some(config)) = (context.arg(0), context.arg(2)) {
        enter(net, config);
    }
    0
}

#[kprobe(function = "fib6_add")]
pub(crate) fn probe_ipv6(context: ProbeContext) -> u32 {
    if let (Some(route), Some(info)) = (context.arg(1), context.arg(2)) {
        enter(route, info);
    }
    0
}

#[kretprobe(function = "fib_table_insert")]
pub(crate) fn probe_end_ipv4(context: RetProbeContext) -> u32 {
    if let Some((net, config)) = forget() {
        left_ipv4(net, config, context.ret());
    }
    0
}

#[kretprobe(function = "fib6_add")]
pub(crate) fn probe_end_ipv6(context: RetProbeContext) -> u32 {
    if let Some((route, info)) = forget() {
        left_ipv6(route, info, context.ret());
    }
    0
}

#[inline(always)]
fn enter(first: u64, second: u64) {
    let key = key();
    let writing = Writing { task: traced(key), first, second };
    // Where there is no room for it, the filter finds nobody.
    let _ = WRITING.insert(key, &writing, 0);
}

/// Forgets the call of this task, where calls are noted although trampolines do without.
#[inline(always)]
fn forget_noted() {
    if layout!(tasks) == 0 {
        let _ = forget();
    }
}

/// Forgets the call of this task; gives the arguments that were noted.
#[inline(always)]
fn forget() -> Option<(u64, u64)> {
    let key = key();
    let writing = WRITING.get_ptr(key)?;
    // SAFETY: the map keeps its memory as long as there are programs, and any bytes are two numbers, which
    // are only ever handed to a helper that reads at any address or fails.
    let noted = unsafe { ((*writing).first, (*writing).second) };
    let _ = WRITING.remove(key);
    Some(noted)
}

/// `struct fib_config` of net/ip_fib.h.
#[inline(always)]
fn left_ipv4(net: u64, config: u64, result: i32) {
    if result >= 0 || layout!(routes) == 0 || !is_here(net) {
        return;
    }
    let mut address = [0; 16];
    let [a, b, c, d]: [u8; 4] = at(config, layout!(config_address));
    [address[0], address[1], address[2], address[3]] = [a, b, c, d];
    record(&Refusal {
        address,
        table: at(config, layout!(config_table)),
        interface: at(config, layout!(config_interface)),
        port: at(config, layout!(config_info) + layout!(info_port)),
        error: result.unsigned_abs(),
        family: AF_INET,
        length: at(config, layout!(config_length)),
        protocol: at(config, layout!(config_protocol)),
        kind: at(config, layout!(config_kind)),
    });
}

/// `struct fib6_info` of net/ip6_fib.h; `struct nl_info` of net/netlink.h.
#[inline(always)]
fn left_ipv6(route: u64, info: u64, result: i32) {
    if result >= 0 || layout!(routes) == 0 || !is_here(at(info, layout!(info_network))) {
        return;
    }
    let table: u64 = at(route, layout!(route_table));
    let object: u64 = at(route, layout!(route_object));
    // With a next-hop object there are no hops behind the route.
    let device: u64 = if object == 0 { at(route, layout!(route_device)) } else { 0 };
    record(&Refusal {
        address: at(route, layout!(route_address)),
        table: at(table, layout!(table_number)),
        interface: if device == 0 { 0 } else { at(device, layout!(device_index)) },
        port: at(info, layout!(info_port)),
        error: result.unsigned_abs(),
        family: AF_INET6,
        length: at::<u32>(route, layout!(route_length)) as u8,
        protocol: at(route, layout!(route_protocol)),
        kind: at(route, layout!(route_kind)),
    });
}

#[inline(always)]
fn is_here(net: u64) -> bool {
    at::<u32>(net, layout!(network_number)) == layout!(here)
}

#[inline(always)]
fn record(refusal: &Refusal) {
    if refusal.port == 0 && OWN.contains(&refusal.protocol) {
        return;
    }
    let Some(mut entry) = RECORDS.reserve::<[u8; SIZE]>(0) else {
        count(Counter::RefusalsLost);
        return;
    };
    let length = size_of::<Refusal>() as u32;
    let task = traced(key());
    let start = entry.as_mut_ptr().cast::<u8>();
    // SAFETY: the entry is `SIZE` bytes, room for both one behind the other, and aligned to 8.
    unsafe {
        let at = bpf_ktime_get_boot_ns();
        let header = Header { at, kept: length, whole: length, sender: 0, kind: REFUSAL, task };
        start.cast::<Header>().write(header);
        start.add(HEADER).cast::<Refusal>().write(*refusal);
    }
    entry.submit(0);
    count(Counter::Refusals);
}
