//! The agent: a thin shell of sources and sinks around the engine of `detector-core`; and the audit,
//! which looks at a cluster once.

pub mod admission;
pub mod agent;
pub mod audit;
pub mod cli;
pub mod client;
pub mod clock;
pub mod config;
pub mod doors;
pub mod health;
pub mod heap;
mod mind;
pub mod policy;
pub mod probe;
pub mod recording;
pub mod runbook;
pub mod seccomp;
pub mod selftest;
pub mod sink;
pub mod source;
pub mod telemetry;
mod text;
