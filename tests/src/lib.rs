//! What proves the detector: scenarios, and the world that they need.

pub mod agent;
pub mod apiserver;
pub mod audit;
pub mod cluster;
pub mod container;
pub mod deploy;
mod door;
pub mod endure;
pub mod machine;
pub mod measure;
pub mod netns;
pub mod pretend;
pub mod process;
pub mod rawroute;
pub mod real;
pub mod relay;
pub mod scale;
pub mod scenario;
pub mod simulator;
