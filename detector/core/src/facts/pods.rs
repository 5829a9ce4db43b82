//! The pods of this node.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::time::Duration;

use smallvec::SmallVec;

use crate::finding::{Claim, Claimant, Field};
use crate::link::InterfaceName;
use crate::route::Prefix;
use crate::time::BootTime;
use crate::workload::{Pod, PodKey, Uid};

/// How long it is remembered when a pod went: longer than what it left behind may stand.
const LATELY: Duration = Duration::from_mins(2);

/// Pods that went that are remembered before the old ones are forgotten.
const DEPARTED_CAP: usize = 1_024;

/// A pod of this node with what is remembered of its past.
#[derive(Debug)]
pub(crate) struct LocalPod {
    pub(crate) pod: Pod,
    /// The addresses that its status showed first. A status can be patched by tenants, but not
    /// before kubelet wrote it without the pod being new.
    pub(crate) first_addresses: Vec<IpAddr>,
    /// When they were first seen.
    pub(crate) first_at: Option<BootTime>,
    /// When it first had an address, or last got a new sandbox.
    pub(crate) established: Option<BootTime>,
    /// When its first address was heard of; the beginning of time for what the first listing said.
    pub(crate) heard: BootTime,
    /// What is said to be the pod's beside its first addresses, and since when.
    pub(crate) claims: BTreeMap<(Field, Prefix), BootTime>,
    /// The names that its interface can have.
    pub(crate) interfaces: SmallVec<[InterfaceName; 1]>,
}

/// All pods of this node.
#[derive(Debug, Default)]
pub(crate) struct Pods {
    known: HashMap<PodKey, LocalPod>,
    by_interface: HashMap<InterfaceName, PodKey>,
    by_address: HashMap<IpAddr, SmallVec<[PodKey; 1]>>,
    /// When the last pod went to whom an interface of this name belonged.
    departed: HashMap<InterfaceName, BootTime>,
}

impl Pods {
    /// The pod of this uid.
    pub(crate) fn by_uid(&self, uid: &Uid) -> Option<&LocalPod> {
        self.known.values().find(|pod| pod.pod.uid == *uid)
    }
}

/// What a change of pods may have changed verdicts of.
#[derive(Debug, Default)]
pub(crate) struct Touched {
    pub(crate) interfaces: Vec<InterfaceName>,
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) claims: Vec<Claim>,
}

impl LocalPod {
    /// Whether the pod can own addresses of its own at all.
    pub(crate) fn can_own(&self) -> bool {
        !self.pod.host_network && !self.pod.finished
    }

    /// Whether the address was the pod's from the first word about it.
    pub(crate) fn had_first(&self, address: IpAddr) -> bool {
        self.first_addresses.contains(&address)
    }

    /// Whether the CNI plugin's word for its present sandbox speaks against the address.
    pub(crate) fn disowns(&self, address: IpAddr) -> bool {
        let annotated = &self.pod.annotated_addresses;
        !annotated.is_empty() && !annotated.contains(&address)
    }

    /// Whether the CNI plugin's word is for the pod's first address still.
    pub(crate) fn is_settled(&self) -> bool {
        let annotated = &self.pod.annotated_addresses;
        !annotated.is_empty() && annotated.iter().all(|address| self.had_first(*address))
    }

    /// What is said to be the pod's beside its first addresses.
    pub(crate) fn claims(&self) -> impl Iterator<Item = Claim> {
        self.claims.keys().map(|(field, prefix)| Claim {
            prefix: *prefix,
            claimant: Claimant::Pod(self.pod.key.clone()),
            field: *field,
        })
    }

    /// Takes the claims that the pod makes now; those that it made before keep their time.
    fn note_claims(&mut self, at: BootTime) {
        let pod = &self.pod;
        let hosts = |field, addresses: &[IpAddr]| -> Vec<(Field, Prefix)> {
            addresses.iter().map(|address| (field, Prefix::host(*address))).collect()
        };
        let wide = |field, prefixes: &[Prefix]| -> Vec<(Field, Prefix)> {
            prefixes.iter().map(|prefix| (field, *prefix)).collect()
        };
        let all = [
            hosts(Field::FloatingIps, &pod.floating_addresses),
            hosts(Field::Status, &pod.addresses),
            hosts(Field::PodIps, &pod.annotated_addresses),
            wide(Field::PodIps, &pod.annotated_prefixes),
            wide(Field::SourcePrefixes, &pod.source_prefixes),
        ];
        // The CNI plugin empties its annotation before IPAM has the address back, and writes another
        // with a new sandbox; the status lags behind both. So a status is forged only where the
        // plugin's word is still for the first address. Felix heeds the plugin's word while the
        // status is empty.
        let settled = self.is_settled();
        let idle = |field: Field, prefix: &Prefix| match (field, prefix.host_address()) {
            (Field::Status, Some(address)) => {
                !settled || pod.terminating || self.had_first(address)
            }
            (Field::PodIps, Some(_)) => pod.terminating || !self.first_addresses.is_empty(),
            _ => false,
        };
        let old = &self.claims;
        let claims = all
            .into_iter()
            .flatten()
            .filter(|(field, prefix)| !idle(*field, prefix))
            .map(|claim| (claim, old.get(&claim).copied().unwrap_or(at)))
            .collect();
        self.claims = claims;
    }
}

impl Pods {
    pub(crate) fn len(&self) -> usize {
        self.known.len()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &LocalPod> {
        self.known.values()
    }

    pub(crate) fn get(&self, key: &PodKey) -> Option<&LocalPod> {
        self.known.get(key)
    }

    pub(crate) fn on_interface(&self, name: &InterfaceName) -> Option<&LocalPod> {
        self.by_interface.get(name).and_then(|key| self.known.get(key))
    }

    /// The pods that say in any way that the address is theirs, in the order of their names.
    pub(crate) fn with_address(&self, address: IpAddr) -> impl Iterator<Item = &LocalPod> {
        self.by_address.get(&address).into_iter().flatten().filter_map(|key| self.known.get(key))
    }

    /// Takes a pod's present state. What is new in it counts as heard of at `heard`.
    pub(crate) fn apply(
        &mut self,
        at: BootTime,
        heard: BootTime,
        prefixes: &[Box<str>],
        pod: Pod,
    ) -> Touched {
        let mut touched = Touched::default();
        let key = pod.key.clone();
        let mut local = match self.take(&key, &mut touched) {
            Some(mut old) if old.pod.uid == pod.uid => {
                if old.established.is_some() && old.pod.sandbox != pod.sandbox {
                    old.established = Some(at);
                }
                old.pod = pod;
                old
            }
            _ => LocalPod {
                interfaces: prefixes.iter().filter_map(|prefix| key.interface(prefix)).collect(),
                first_addresses: Vec::new(),
                first_at: None,
                claims: BTreeMap::new(),
                established: None,
                heard,
                pod,
            },
        };
        if local.first_addresses.is_empty() && !local.pod.addresses.is_empty() {
            local.first_addresses.clone_from(&local.pod.addresses);
            local.heard = heard;
            local.first_at = Some(at);
            local.established = local.established.or(Some(at));
        }
        local.note_claims(at);
        self.put(local, &mut touched);
        touched
    }

    /// Forgets a pod, unless another of its name has taken its place.
    pub(crate) fn delete(&mut self, at: BootTime, key: &PodKey, uid: &Uid) -> Touched {
        let mut touched = Touched::default();
        if self.known.get(key).is_some_and(|local| local.pod.uid == *uid) {
            self.depart(at, key, &mut touched);
        }
        touched
    }

    /// When the last pod went that had an interface of this name, if that was lately.
    pub(crate) fn departed(&self, name: &InterfaceName) -> Option<BootTime> {
        self.departed.get(name).copied()
    }

    /// Takes a full listing.
    pub(crate) fn reset(
        &mut self,
        at: BootTime,
        heard: BootTime,
        prefixes: &[Box<str>],
        pods: Vec<Pod>,
    ) -> Touched {
        let mut touched = Touched::default();
        let listed: HashSet<&PodKey> = pods.iter().map(|pod| &pod.key).collect();
        let gone: Vec<PodKey> =
            self.known.keys().filter(|key| !listed.contains(key)).cloned().collect();
        for key in gone {
            self.depart(at, &key, &mut touched);
        }
        for pod in pods {
            let more = self.apply(at, heard, prefixes, pod);
            touched.interfaces.extend(more.interfaces);
            touched.addresses.extend(more.addresses);
            touched.claims.extend(more.claims);
        }
        touched
    }

    fn depart(&mut self, at: BootTime, key: &PodKey, touched: &mut Touched) {
        let Some(local) = self.take(key, touched) else { return };
        if self.departed.len() >= DEPARTED_CAP {
            self.departed.retain(|_, then| at.since(*then) < LATELY);
        }
        self.departed.extend(local.interfaces.into_iter().map(|name| (name, at)));
    }

    fn put(&mut self, local: LocalPod, touched: &mut Touched) {
        let key = local.pod.key.clone();
        if !local.pod.host_network {
            for name in &local.interfaces {
                self.by_interface.insert(name.clone(), key.clone());
                touched.interfaces.push(name.clone());
            }
        }
        for address in addresses(&local) {
            let keys = self.by_address.entry(address).or_default();
            if let Err(at) = keys.binary_search(&key) {
                keys.insert(at, key.clone());
            }
            touched.addresses.push(address);
        }
        touched.claims.extend(local.claims());
        self.known.insert(key, local);
    }

    fn take(&mut self, key: &PodKey, touched: &mut Touched) -> Option<LocalPod> {
        let local = self.known.remove(key)?;
        for name in &local.interfaces {
            if self.by_interface.get(name) == Some(key) {
                self.by_interface.remove(name);
            }
            touched.interfaces.push(name.clone());
        }
        for address in addresses(&local) {
            if let Some(keys) = self.by_address.get_mut(&address) {
                keys.retain(|k| k != key);
                if keys.is_empty() {
                    self.by_address.remove(&address);
                }
            }
            touched.addresses.push(address);
        }
        touched.claims.extend(local.claims());
        Some(local)
    }
}

/// Every address that the pod was ever said to have, without host-network pods' node addresses.
fn addresses(local: &LocalPod) -> Vec<IpAddr> {
    if local.pod.host_network {
        return Vec::new();
    }
    let pod = &local.pod;
    let all =
        [&local.first_addresses, &pod.addresses, &pod.annotated_addresses, &pod.floating_addresses];
    let mut addresses: Vec<IpAddr> = all.into_iter().flatten().copied().collect();
    addresses.sort_unstable();
    addresses.dedup();
    addresses
}
