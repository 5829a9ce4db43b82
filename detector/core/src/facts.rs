//! What is true now, as far as anybody told.
//!
//! Facts are a function of the observations, not of the order in which independent sources made
//! them. They judge nothing.

pub(crate) mod answers;
pub(crate) mod cluster;
pub(crate) mod fib;
pub(crate) mod kernel;
pub(crate) mod links;
pub(crate) mod packets;
pub(crate) mod pods;
pub(crate) mod refusals;
pub(crate) mod translations;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use self::answers::Answers;
use self::cluster::{Nodes, Pools, Services};
use self::kernel::KernelTables;
use self::links::KnownLink;
use self::packets::Packets;
use self::pods::{LocalPod, Pods};
use self::refusals::Refusals;
use self::translations::Translations;
use crate::claim::Ipam;
use crate::finding::{Diverted, FindingKey};
use crate::judge::Doubt;
use crate::observation::Sense;
use crate::policy::{AllowList, Feature, Felix};
use crate::settings::Settings;
use crate::time::BootTime;

/// Everything that a verdict can rest on.
#[derive(Debug)]
pub(crate) struct Facts {
    pub(crate) settings: Settings,
    /// When the engine was first told anything.
    pub(crate) started: Option<BootTime>,
    pub(crate) kernel: KernelTables,
    pub(crate) pods: Pods,
    /// When they were listed last.
    pub(crate) pods_listed: Option<BootTime>,
    pub(crate) nodes: Nodes,
    pub(crate) pools: Pools,
    pub(crate) services: Services,
    pub(crate) feature: Feature,
    pub(crate) felix: Felix,
    pub(crate) allow: AllowList,
    pub(crate) answers: Answers,
    pub(crate) packets: Packets,
    pub(crate) translations: Translations,
    pub(crate) refusals: Refusals,
    /// What findings had diverted before the agent was last started, where packets are counted from
    /// zero since.
    pub(crate) earlier: HashMap<FindingKey, Diverted>,
    /// Senses that have told all there is at least once.
    pub(crate) synced: BTreeSet<Sense>,
    /// Senses that are impaired at present, and why.
    pub(crate) blind: BTreeMap<Sense, Box<str>>,
}

/// Who is behind an interface.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Identity<'a> {
    /// The interface that Calico gave to this pod.
    Pod(&'a LocalPod),
    /// It bears this pod's name but appeared long after the pod was set up: somebody made it anew.
    Contested(&'a LocalPod),
    /// Named like a pod's interface, but no pod of this node has that name.
    Nobody,
    /// Not named like a pod's interface, yet of a kind that containers have.
    Stray,
    /// The node's own.
    Uplink,
}

// === impl Facts ===

impl Facts {
    pub(crate) fn new(settings: Settings) -> Self {
        Self {
            settings,
            started: None,
            kernel: KernelTables::default(),
            pods: Pods::default(),
            pods_listed: None,
            nodes: Nodes::default(),
            pools: Pools::default(),
            services: Services::default(),
            feature: Feature::default(),
            felix: Felix::default(),
            allow: AllowList::default(),
            answers: Answers::default(),
            packets: Packets::default(),
            translations: Translations::default(),
            refusals: Refusals::default(),
            earlier: HashMap::new(),
            synced: BTreeSet::new(),
            blind: BTreeMap::new(),
        }
    }

    /// Who is behind `link`. The first name counts: renaming an interface changes nothing about
    /// who is behind it.
    pub(crate) fn identity(&self, link: &KnownLink) -> Identity<'_> {
        let first = &link.first_name;
        let named = self.settings.is_workload_name(first);
        if !named && self.settings.is_uplink(&link.link) {
            return Identity::Uplink;
        }
        if !named && !self.settings.is_workload_name(&link.link.name) {
            return Identity::Stray;
        }
        match self.pods.on_interface(first) {
            None => Identity::Nobody,
            Some(pod) if self.is_remade(link, pod) => Identity::Contested(pod),
            Some(pod) => Identity::Pod(pod),
        }
    }

    /// Whether the pod was complete well before the interface appeared. A new sandbox of the same
    /// pod gets a new interface too, but then the CNI plugin writes its container id anew.
    fn is_remade(&self, link: &KnownLink, pod: &LocalPod) -> bool {
        pod.established.is_some_and(|then| link.since > then.after(self.settings.newborn))
    }

    /// Whether the pod's own interface stands, so that its route can be no leftover. An interface
    /// of its name that came after the pod had its address is another's: the next pod's of that
    /// name, of which the API has yet to tell.
    pub(crate) fn is_attached(&self, pod: &LocalPod) -> bool {
        let links = pod.interfaces.iter().filter_map(|name| self.kernel.links.by_name(name));
        links.into_iter().any(|link| pod.first_at.is_some_and(|then| link.since <= then))
    }

    /// Until when the listing of pools is waited for, where pods were listed but pools were not yet.
    pub(crate) fn pools_awaited(&self, now: BootTime) -> Option<BootTime> {
        if self.pools.is_told() {
            return None;
        }
        // While the API server tells nothing there is nothing to conclude from their absence.
        match self.pods_listed {
            Some(listed) if !self.blind.contains_key(&Sense::Pods) => {
                let until = listed.after(self.settings.sync);
                (now < until).then_some(until)
            }
            _ => Some(now.after(self.settings.answer)),
        }
    }

    /// Whether the first listing of what a sense tells of the cluster is still waited for, and until
    /// when: for news only while the API server tells nothing, else for a while after pods were
    /// listed.
    pub(crate) fn awaited(&self, sense: Sense, now: BootTime) -> Option<Doubt> {
        if self.synced.contains(&sense) {
            return None;
        }
        if self.blind.contains_key(&Sense::Pods) {
            return Some(Doubt { until: None });
        }
        let until = self.pods_listed?.after(self.settings.sync);
        (now < until).then_some(Doubt { until: Some(until) })
    }

    /// What is missing for a full verdict, in words.
    pub(crate) fn missing(&self) -> Vec<Box<str>> {
        let told = [
            (Sense::Kernel, self.synced.contains(&Sense::Kernel)),
            (Sense::Pods, self.synced.contains(&Sense::Pods)),
            (Sense::Nodes, self.synced.contains(&Sense::Nodes)),
            (Sense::Feature, self.feature != Feature::Unknown),
            (Sense::Pools, self.pools.ipam != Ipam::Unknown),
            (Sense::Services, self.synced.contains(&Sense::Services)),
            (Sense::Allowances, self.synced.contains(&Sense::Allowances)),
        ];
        told.into_iter()
            .filter_map(|(sense, told)| match self.blind.get(&sense) {
                Some(why) => Some(format!("{}: {why}", sense.as_str()).into()),
                None if !told => Some(format!("{}: not told yet", sense.as_str()).into()),
                None => None,
            })
            .collect()
    }
}
