//! What the agent sees and what it is blind in, said in the log once when it changes.

use std::collections::{BTreeMap, BTreeSet};

use detector_core::observation::Sense;
use tracing::{info, warn};

/// All senses.
pub(super) const ALL: [Sense; 7] = [
    Sense::Kernel,
    Sense::Pods,
    Sense::Nodes,
    Sense::Feature,
    Sense::Pools,
    Sense::Services,
    Sense::Allowances,
];

/// What is seen.
#[derive(Debug)]
pub(super) struct Senses {
    awaited: BTreeSet<Sense>,
    blind: BTreeMap<Sense, String>,
}

impl Senses {
    /// Nothing is seen yet; without the API only the kernel is awaited.
    pub(super) fn new(api: bool) -> Self {
        let awaited = ALL.into_iter().filter(|sense| api || *sense == Sense::Kernel).collect();
        Self { awaited, blind: BTreeMap::new() }
    }

    /// A sense sees all there is.
    pub(super) fn sees(&mut self, sense: Sense) {
        if self.blind.remove(&sense).is_some() {
            info!(sense = sense.as_str(), "sees again");
        }
        if self.awaited.remove(&sense) && self.awaited.is_empty() {
            info!("ready");
        }
    }

    /// A sense does not see, or not all. The log says so when it begins, not at every attempt.
    pub(super) fn blind(&mut self, sense: Sense, why: &str) {
        if self.blind.insert(sense, why.to_owned()).is_none() {
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
    }
}
