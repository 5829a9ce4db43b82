//! The mind of the detector.
//!
//! Observations and a clock go in, findings and questions come out. There is no I/O, no clock, no
//! runtime and no unsafe code in this package, and nothing in it can fail: what can go wrong is
//! parsed away before it gets here. So it can be property-tested, replayed and benchmarked.
//!
//! Read in this order: [`route`], [`link`], [`workload`], [`writer`],
//! [`claim`], [`policy`] and [`traffic`] are the words;
//! [`observation`] is all that can be said with them; `facts` is what is true, `judge` says what is
//! right, `ledger` remembers what was said, and [`engine`] is the one door to all of it; [`finding`]
//! is what comes out.
//!
//! Invariants, each with a property test in `tests/`: the order of independent sources does not
//! change the findings that stand in the end; an observation made twice equals one; a dump equals
//! the changes that led to it; when all is torn down nothing stands; the lives of legitimate pods
//! raise nothing; after `tick(next_deadline)` the deadline advances; what waits never exceeds its
//! cap; and the judge agrees with a slow oracle of ten lines.

#![forbid(unsafe_code)]

pub mod claim;
pub mod engine;
pub mod explain;
mod facts;
pub mod finding;
mod judge;
mod ledger;
pub mod link;
pub mod observation;
pub mod policy;
pub mod route;
pub mod settings;
pub mod time;
pub mod traffic;
pub mod workload;
pub mod writer;
