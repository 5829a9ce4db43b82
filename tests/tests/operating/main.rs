//! The agent as those who operate it meet it: its sinks, its doors, its state file, its recordings,
//! against the real things that take in what it gives.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod alertmanager;
mod doors;
mod drills;
mod events;
mod explain;
mod journald;
mod kills;
mod monitoring;
mod noise;
mod recordings;
mod stage;
mod supervisor;
mod unit;
mod webhooks;
