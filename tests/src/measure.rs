//! Measurements of the packet programs on the real kernel.

mod filters;
pub mod flood;
pub mod interfaces;
pub mod throughput;
