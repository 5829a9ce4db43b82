//! The mind of the detector.
//!
//! Observations and a clock go in, findings and questions come out. There is no I/O, no clock, no
//! runtime and no unsafe code in this package, and nothing in it can fail: what can go wrong is
//! parsed away before it gets here. So it can be property-tested, replayed and benchmarked.
//!
//! Read in this order: [`route`], [`link`], [`workload`] and [`policy`] are the words;
//! [`observation`] is all that can be said with them.

#![forbid(unsafe_code)]

pub mod link;
pub mod observation;
pub mod policy;
pub mod route;
pub mod time;
pub mod workload;
