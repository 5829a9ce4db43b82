//! The agent in a container, as the manifests have it run: what it finds there, and what becomes of it
//! where any one privilege is missing.

mod findings;
mod stage;
