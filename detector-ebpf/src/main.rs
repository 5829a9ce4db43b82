//! The programs that run in the kernel. They see, and never judge.
//!
//! Built for the BPF target by detector/build.rs. For any other target this is an empty program, so
//! that the whole workspace can be checked at once.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]
// For one instruction in `route::count`, as aya-ebpf does; detector/build.rs allows it to both.
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

#[cfg(target_arch = "bpf")]
mod forget;
#[cfg(target_arch = "bpf")]
mod route;
#[cfg(target_arch = "bpf")]
mod task;
#[cfg(target_arch = "bpf")]
mod writes;

detector_ebpf::object!();
