//! The kernel source on the real kernel, each test in a network namespace of its own.
//!
//! Nothing here waits for time to pass: a notification is sent within the system call that causes
//! it, so when `ip` has returned, what it changed has been told.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod bare;
mod dumps;
mod losses;
mod namespace;
mod notifications;
mod resyncs;
mod strangers;
mod tables;
mod writers;
