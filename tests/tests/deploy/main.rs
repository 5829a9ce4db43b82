//! What `deploy` has for Kubernetes: manifests, the chart, and what reviewers and servers say of them.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod chart;
mod checkov;
mod copies;
mod extremes;
mod kustomize;
mod policy;
mod readme;
mod release;
mod server;
mod shared;
