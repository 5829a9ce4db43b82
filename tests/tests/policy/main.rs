//! `detector policy` and a real API server: what its policies refuse, and what they let through.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod forms;
mod refusals;
mod stage;
