//! The agent: a thin shell of sources and sinks around the engine of `detector-core`.

pub mod agent;
pub mod cli;
pub mod clock;
pub mod config;
pub mod heap;
pub mod policy;
pub mod sink;
pub mod source;
mod text;
