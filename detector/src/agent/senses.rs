//! What the agent sees and what it is blind in, said in the log once when it changes.

use std::collections::BTreeSet;
use std::sync::Arc;

use detector_core::observation::Sense;
use tracing::{info, warn};

use crate::doors::Pulse;
use crate::health::Health;

/// The senses that tell all there is before the agent is ready.
pub(super) const AWAITED: [Sense; 7] = [
    Sense::Kernel,
    Sense::Pods,
    Sense::Nodes,
    Sense::Feature,
    Sense::Pools,
    Sense::Services,
    Sense::Allowances,
];

/// The senses that the agent does not wait for.
const OTHERS: [Sense; 3] = [Sense::Packets, Sense::Connections, Sense::Translations];

/// Whether a capability is a sense that the API server tells of.
pub(crate) fn is_of_cluster(capability: &str) -> bool {
    let mut senses = AWAITED.into_iter().filter(|sense| *sense != Sense::Kernel);
    senses.any(|sense| sense.as_str() == capability)
}

/// What is seen.
#[derive(Debug)]
pub(super) struct Senses {
    awaited: BTreeSet<Sense>,
    blind: BTreeSet<Sense>,
    health: Health,
    pulse: Arc<Pulse>,
}

impl Senses {
    /// Nothing is seen yet; without the API only the kernel is awaited.
    pub(super) fn new(api: bool, health: Health, pulse: Arc<Pulse>) -> Self {
        for sense in AWAITED.into_iter().chain(OTHERS) {
            health.expect(sense.as_str());
        }
        let awaited = AWAITED.into_iter().filter(|sense| api || *sense == Sense::Kernel).collect();
        let senses = Self { awaited, blind: BTreeSet::new(), health, pulse };
        senses.tell_pulse();
        senses
    }

    /// A sense sees all there is.
    pub(super) fn sees(&mut self, sense: Sense) {
        self.blind.remove(&sense);
        if self.health.clear(sense.as_str()) {
            info!(sense = sense.as_str(), "sees again");
        }
        if self.awaited.remove(&sense) && self.awaited.is_empty() {
            info!("ready");
        }
        self.tell_pulse();
    }

    /// A sense does not see, or not all. The log says so when it begins, not at every attempt.
    pub(super) fn blind(&mut self, sense: Sense, why: &str) {
        self.blind.insert(sense);
        if self.health.mark(sense.as_str(), why) {
            match sense {
                // Verdicts rest on others; these add to them, and find what leaves no other trace.
                Sense::Packets | Sense::Connections | Sense::Translations => {
                    warn!(sense = sense.as_str(), why, "degraded: blind in this sense");
                }
                _ => warn!(
                    sense = sense.as_str(),
                    why, "degraded: blind in this sense; findings are marked partial until it sees"
                ),
            }
        }
        self.tell_pulse();
    }

    /// What is declared blind is not waited for.
    fn tell_pulse(&self) {
        let awaited = self.awaited.difference(&self.blind).map(|sense| sense.as_str());
        self.pulse.await_for(awaited.collect());
    }
}
