//! The agent in a container, as the manifests have it run: what it finds there, and what becomes of it
//! where any one privilege is missing.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod findings;
mod privileges;
mod selftest;
mod stage;
