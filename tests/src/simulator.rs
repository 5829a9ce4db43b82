//! A cluster that never was: random lives of legitimate pods, and attacks among them, in the engine
//! alone and on pretended time, with the truth known.
//!
//! A story is all that follows from one seed: a node with some pods, what becomes of them, how late
//! and in which order the agent hears of it, and at most one attack. [`run`] tells a story and
//! compares what the engine found with the truth. A seed always tells the same story, so a failure
//! can be told again and looked at line by line.
//!
//! `world` is the truth (IPAM, the API server's objects, the kernel's tables), `plan` decides what
//! happens when, `attack` what an attacker does and what must be found, `telling` lets the engine
//! hear of it.

mod attack;
mod plan;
mod telling;
mod world;

use std::fmt;

pub use self::attack::{KINDS, Kind};
pub use self::telling::{Outcome, run};

/// What a story has to have in it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Theme {
    /// Legitimate lives only: nothing may be found.
    Peace,
    /// One attack among them, of this kind: it must be found, and nothing else.
    Attack(Kind),
}

impl fmt::Display for Theme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Peace => f.write_str("peace"),
            Self::Attack(kind) => f.write_str(kind.as_str()),
        }
    }
}
