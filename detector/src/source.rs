//! Where observations come from. Each source decodes what it reads, owns up to what it has lost, and
//! knows no other source.

mod address;
pub mod cluster;
pub mod connections;
pub mod interests;
pub mod kernel;
mod loader;
mod netfilter;
pub mod packets;
pub(crate) mod questions;
pub mod translations;
pub mod witness;
pub mod writer;
