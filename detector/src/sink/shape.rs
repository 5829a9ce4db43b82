//! The shapes of what webhooks get, beside that of standard output.

pub(super) mod falco;
pub(super) mod otlp;
pub(super) mod slack;
