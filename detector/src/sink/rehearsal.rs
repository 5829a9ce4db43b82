//! A rehearsal: a finding of the engine's own goes the whole way to the sinks, marked as a test, and
//! what becomes of it is told to whoever rehearses.

use detector_core::finding::{Finding, Target};
use detector_core::link::InterfaceName;
use detector_core::time::BootTime;
use tokio::sync::mpsc;

/// What is rehearsed, and who hears of it.
#[derive(Clone, Debug)]
pub(crate) struct Rehearsal {
    /// Findings about what is behind this interface are told, and no others: those of the node are for
    /// its agent to tell.
    pub(crate) interface: InterfaceName,
    /// Whether nothing is to be written to standard output.
    pub(crate) silent: bool,
    /// Where it is told what happens.
    pub(crate) heard: mpsc::UnboundedSender<Heard>,
}

/// Something that happened in a rehearsal.
#[derive(Debug)]
pub(crate) enum Heard {
    /// The engine had this to tell, at this time.
    Finding(Box<Finding>, BootTime),
    /// A sink has taken a message.
    Taken { sink: Box<str>, at: BootTime },
    /// A sink will never take a message.
    Refused { sink: Box<str>, why: Box<str> },
    /// A sink does not take a message, and is tried again.
    Delayed { sink: Box<str>, why: Box<str> },
}

// === impl Rehearsal ===

impl Rehearsal {
    /// Whether a finding is what is rehearsed; if so it is heard.
    pub(super) fn takes(&self, finding: &Finding, told: BootTime) -> bool {
        let concerns =
            matches!(&finding.key.target, Target::Interface(name) if *name == self.interface);
        if concerns {
            // Whoever rehearsed may have gone.
            let _ = self.heard.send(Heard::Finding(Box::new(finding.clone()), told));
        }
        concerns
    }
}
