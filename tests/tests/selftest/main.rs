//! `detector selftest`: that the alert arrives where all is well, that each broken part is named with
//! its reason, and that nothing is left behind however it ends.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod api;
mod healthy;
mod here;
mod routes;
mod sinks;
mod stage;
