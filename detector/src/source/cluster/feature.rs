//! Whether Calico's floating IPs are switched on for this node, and what else matters of Felix.
//!
//! Felix asks FelixConfiguration `node.<name>`, then `default`, for `spec.floatingIPs`. Where neither
//! says anything, the CNI plugin's switch tells what the operator of the cluster meant; where that
//! is silent too, the feature is off, which is Calico's default. Versions of Felix that do not heed
//! the switch (`version`) have no such field: there only the CNI plugin's switch says what was
//! meant, whatever Felix then does. The environment of calico-node (`FELIX_FLOATINGIPS`) would win
//! over all of it and cannot be read from here.

use std::sync::Arc;

use detector_core::observation::{Observation, Sense, What};
use detector_core::policy::{Feature, Felix};
use detector_core::workload::NodeName;
use futures::stream::{StreamExt as _, select_all};
use kube::Client;
use tokio::sync::mpsc;

use super::cni::{PLACES, Switch, Switches};
use super::counters::Counters;
use super::felix::{self, Settings};
use super::sight::Sight;
use super::tell;
use super::version::{self, Version};
use super::watch::Word;

/// The parts of the sense: the two FelixConfigurations, the two places of the CNI plugin's
/// configuration, and the version.
const PARTS: usize = 5;
const OF_FELIX: [usize; 2] = [0, 1];
const OF_CNI: [usize; 2] = [2, 3];
const OF_VERSION: usize = 4;

/// Tells of the feature until nobody listens.
pub(super) async fn run(
    client: Client,
    node: NodeName,
    counters: Arc<Counters>,
    tx: mpsc::Sender<Observation>,
) {
    let names = [format!("node.{node}"), "default".to_owned()];
    let felix = names.each_ref().map(|name| felix::watch(&client, name, &counters));
    let cni = PLACES.each_ref().map(|place| place.watch(&client, &counters));
    let version = version::watch(&client, &counters).map(Heard::Version).boxed();
    let felix = (0..).zip(felix);
    let felix = felix.map(|(i, words)| words.map(move |word| Heard::Felix(i, word)).boxed());
    let cni = (0..).zip(cni);
    let cni = cni.map(|(i, words)| words.map(move |word| Heard::Cni(i, word)).boxed());
    let mut words = select_all(felix.chain(cni).chain([version]));
    let mut known = Known::new(names);
    while let Some(heard) = words.next().await {
        for what in known.hear(heard) {
            if tell(&tx, what).await.is_err() {
                return;
            }
        }
    }
}

/// A word, and of which place.
enum Heard {
    Felix(usize, Word<Settings>),
    Cni(usize, Word<Switches>),
    Version(Word<Version>),
}

/// What one object says: nothing yet known; or it is not there; or this.
type Said<T> = Option<Option<T>>;

/// What is known of all places.
struct Known {
    /// The names of the two FelixConfigurations.
    names: [String; 2],
    felix: [Said<Settings>; 2],
    cni: [Said<Switches>; 2],
    version: Said<Version>,
    sight: Sight<PARTS>,
    /// What was told last.
    told_feature: Feature,
    told_felix: Felix,
}

// === impl Known ===

impl Known {
    fn new(names: [String; 2]) -> Self {
        Self {
            names,
            felix: [None; 2],
            cni: [None; 2],
            version: None,
            sight: Sight::new(Sense::Feature),
            told_feature: Feature::Unknown,
            told_felix: Felix::default(),
        }
    }

    /// What is to be told after a word about one place.
    fn hear(&mut self, heard: Heard) -> Vec<What> {
        match heard {
            Heard::Felix(index, word) => {
                self.sight.hear(OF_FELIX[index], &word);
                take(&mut self.felix[index], word);
            }
            Heard::Cni(index, word) => {
                self.sight.hear(OF_CNI[index], &word);
                take(&mut self.cni[index], word);
            }
            Heard::Version(word) => {
                self.sight.hear(OF_VERSION, &word);
                take(&mut self.version, word);
            }
        }
        let mut told = Vec::new();
        let feature = self.feature();
        if feature != self.told_feature {
            self.told_feature = feature.clone();
            told.push(What::Feature(feature));
        }
        // At the beginning it comes from five places at once: it is told when all have spoken.
        if self.sight.is_all_settled() {
            let felix = self.felix();
            if felix != self.told_felix {
                self.told_felix = felix.clone();
                told.push(What::Felix(felix));
            }
        }
        told.extend(self.sight.news());
        told
    }

    fn feature(&self) -> Feature {
        // What does not count cannot be told before the version is known, or known to be unknown.
        if !self.sight.is_settled(OF_VERSION) {
            return Feature::Unknown;
        }
        let version = self.version.as_ref().and_then(Option::as_ref);
        let unheeding = version.filter(|version| version.heeds_switch == Some(false));
        let but = unheeding.map_or_else(String::new, |version| {
            let version = version.text.as_deref().unwrap_or_default();
            format!(" (Calico {version} does not heed FelixConfiguration spec.floatingIPs)")
        });
        if unheeding.is_none() {
            for (name, said) in self.names.iter().zip(&self.felix) {
                // What comes after it does not count as long as this is not known.
                let Some(settings) = said else { return Feature::Unknown };
                let by = || format!("FelixConfiguration {name} spec.floatingIPs").into();
                match settings.and_then(|settings| settings.floating_ips) {
                    Some(true) => return Feature::Enabled { by: by() },
                    Some(false) => return Feature::Disabled { by: by() },
                    None => {}
                }
            }
        }
        for (place, said) in PLACES.iter().zip(&self.cni) {
            let Some(switches) = said else { return Feature::Unknown };
            let by = || format!("{} feature_control.floating_ips{but}", place.object()).into();
            match switches.map_or(Switch::Absent, |switches| switches.floating_ips) {
                Switch::On => return Feature::Enabled { by: by() },
                Switch::Off => return Feature::Disabled { by: by() },
                Switch::Absent | Switch::Malformed => {}
            }
        }
        let by = if unheeding.is_some() {
            format!("Calico's default: calico-config feature_control.floating_ips is not set{but}")
        } else {
            "Calico's default: neither FelixConfiguration spec.floatingIPs nor calico-config \
             feature_control.floating_ips is set"
                .into()
        };
        Feature::Disabled { by: by.into() }
    }

    fn felix(&self) -> Felix {
        let Version { text, heeds_switch } = self.version.clone().flatten().unwrap_or_default();
        Felix { version: text, heeds_switch, spoofing: self.spoofing(), bypass: self.bypass() }
    }

    /// `workloadSourceSpoofing`, which is `Disabled` by default.
    fn spoofing(&self) -> Option<bool> {
        for said in self.felix {
            if let Some(spoofing) = said?.and_then(|settings| settings.spoofing) {
                return Some(spoofing);
            }
        }
        Some(false)
    }

    /// `ip_addrs_no_ipam`, which is off by default; but where there is no such ConfigMap at all, the
    /// plugin's configuration is kept where it cannot be read from here.
    fn bypass(&self) -> Option<bool> {
        let places = self.cni.iter().flatten().flatten().map(|switches| switches.ip_addrs_no_ipam);
        if places.clone().any(|switch| switch == Switch::On) {
            return Some(true);
        }
        let known = self.cni.iter().all(Option::is_some)
            && places.clone().all(|switch| switch != Switch::Malformed)
            && places.count() > 0;
        known.then_some(false)
    }
}

fn take<T>(said: &mut Said<T>, word: Word<T>) {
    match word {
        // One object at most has the name.
        Word::Reset(objects) => *said = Some(objects.into_iter().next()),
        Word::Applied(object) => *said = Some(Some(object)),
        Word::Deleted(_) | Word::NotServed => *said = Some(None),
        Word::Blind(_) | Word::Seeing => {}
    }
}

#[cfg(test)]
mod tests;
