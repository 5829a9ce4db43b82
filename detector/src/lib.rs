//! The agent.

pub mod cli;
pub mod clock;
pub mod config;
mod text;
