//! `detector audit` on prepared clusters, of a real API server and of files.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod dumps;
mod failures;
mod node;
mod prepared;
mod rights;
mod shapes;
mod stage;
mod verdicts;
