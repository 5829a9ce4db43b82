//! Measurements of the packet programs on the real kernel.

pub mod interfaces;
pub mod throughput;
