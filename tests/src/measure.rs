//! Measurements of the packet programs on the real kernel.

pub mod flood;
pub mod interfaces;
pub mod throughput;
