//! What proves the detector: scenarios, and the world that they need.

pub mod agent;
pub mod apiserver;
pub mod netns;
pub mod rawroute;
pub mod scenario;
