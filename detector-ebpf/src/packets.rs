//! The programs on interfaces: they count packets for watched addresses, and see which packets
//! pretend to be another's. They change no packet, and decide nothing about any.
//!
//! Built for the BPF target by detector/build.rs, as an object of its own: where the kernel takes
//! only one of the two, the agent works with that one.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]
// For one instruction in `count::add`.
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

#[cfg(target_arch = "bpf")]
#[path = "packets/count.rs"]
mod count;
#[cfg(target_arch = "bpf")]
mod forget;
#[cfg(target_arch = "bpf")]
#[path = "packets/parse.rs"]
mod parse;
#[cfg(target_arch = "bpf")]
#[path = "packets/programs.rs"]
mod programs;

detector_ebpf::object!();
