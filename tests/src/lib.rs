//! What proves the detector: scenarios, and the world that they need.

pub mod scenario;
