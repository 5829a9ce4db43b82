//! Measurements on the real kernel.

mod filters;
pub mod flood;
pub mod interfaces;
pub mod sinks;
pub mod throughput;
pub mod writer;
