//! What the engine makes of who writes routes.

use std::collections::BTreeSet;

use super::{Engine, Output};
use crate::facts::Identity;
use crate::finding::Subject;
use crate::judge::is_calicos;
use crate::observation::KernelChange;
use crate::time::BootTime;
use crate::writer::{Refusal, Stranger};

/// Commands of strangers that are told of; more are a flood.
const STRANGERS: usize = 64;

impl Engine {
    /// Takes the word that a route was refused: evidence for what pods say of its prefix.
    pub(super) fn refused(&mut self, now: BootTime, at: BootTime, refusal: Refusal) {
        let address = refusal.prefix.host_address();
        self.facts.refusals.add(at, refusal);
        let mut subjects: BTreeSet<Subject> = BTreeSet::new();
        if let Some(address) = address {
            self.add_claims(address, &mut subjects);
        }
        self.judge_all(now, at, subjects);
    }

    /// Tells of a pod's own route that none of Calico's processes has written. Whoever may do that may
    /// do worse.
    pub(super) fn look_for_strangers(&mut self, change: &KernelChange) {
        let KernelChange::Route { route, writer, .. } = change else { return };
        let Some(process) = writer.process.as_deref().filter(|process| !is_calicos(process)) else {
            return;
        };
        if self.strangers.contains(&process.command) || self.strangers.len() >= STRANGERS {
            return;
        }
        let Some(address) = route.prefix.host_address() else { return };
        let hops = self.facts.kernel.legs(route);
        let links = hops.as_slice().iter().filter_map(|hop| hop.interface);
        let mut links = links.filter_map(|index| self.facts.kernel.links.get(index));
        let owner = links.find_map(|link| match self.facts.identity(link) {
            Identity::Pod(pod) if pod.had_first(address) => Some(pod.pod.key.clone()),
            _ => None,
        });
        if let Some(pod) = owner {
            self.strangers.insert(process.command.clone());
            let stranger = Stranger { prefix: route.prefix, pod, process: process.clone() };
            self.said.push_back(Output::Stranger(Box::new(stranger)));
        }
    }
}
