//! What floating IPs are allowed, and for whom.

use std::net::IpAddr;

use crate::route::Prefix;
use crate::workload::Pod;

/// Whether Calico's floating IPs are switched on for this node.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Feature {
    /// Nobody has told yet.
    #[default]
    Unknown,
    /// On, by what is named.
    Enabled {
        /// The object and field that say so.
        by: Box<str>,
    },
    /// Off, by what is named; off is also Calico's default.
    Disabled {
        /// The object and field that say so, or that nothing does.
        by: Box<str>,
    },
}

/// What matters of Felix on this node beside the feature.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Felix {
    /// Calico's version, as `ClusterInformation` has it.
    pub version: Option<Box<str>>,
    /// Whether Felix heeds the feature's switch at all. Versions before v3.20.5, v3.21.5 and v3.22.2
    /// do not: they act on every annotation (TTA-2022-001). `None` where the version is not known.
    pub heeds_switch: Option<bool>,
    /// `workloadSourceSpoofing`: whether pods may ask for source addresses that are not their own.
    /// `None` where it is not known.
    pub spoofing: Option<bool>,
    /// Whether the CNI plugin lets pods bypass IPAM (`feature_control.ip_addrs_no_ipam`). `None`
    /// where it is not known.
    pub bypass: Option<bool>,
}

/// One entry of the allow-list: these addresses may be floating IPs of pods of this service
/// account. Never matched against labels or annotations: tenants write those.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Allowance {
    /// The addresses.
    pub cidr: Prefix,
    /// The namespace of the pods.
    pub namespace: Box<str>,
    /// The service account of the pods.
    pub service_account: Box<str>,
    /// Where the entry is written, such as `configuration` or `floatingipallowance shop-vip`.
    pub origin: Box<str>,
    /// Why it is allowed, in the words of whoever wrote it.
    pub reason: Option<Box<str>>,
}

impl Allowance {
    /// Whether the entry is about this pod.
    pub fn is_for(&self, pod: &Pod) -> bool {
        *self.namespace == *pod.key.namespace() && self.service_account == pod.service_account
    }
}

/// What the allow-list says of one address and one pod.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Permission<'a> {
    /// An entry allows it.
    Allowed(&'a Allowance),
    /// The address is set aside for somebody else.
    Reserved(&'a Allowance),
    /// No entry speaks of the address.
    Unlisted,
}

/// The whole allow-list.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct AllowList(Vec<Allowance>);

impl AllowList {
    /// An allow-list of these entries.
    pub fn new(entries: Vec<Allowance>) -> Self {
        Self(entries)
    }

    /// Its entries.
    pub fn entries(&self) -> &[Allowance] {
        &self.0
    }

    /// Whether an entry lets `pod` have all of `prefix`.
    pub fn covers(&self, prefix: Prefix, pod: &Pod) -> bool {
        self.0.iter().any(|entry| entry.cidr.covers(&prefix) && entry.is_for(pod))
    }

    /// Whether an entry speaks of `address`, for whomever.
    pub fn names(&self, address: IpAddr) -> bool {
        self.0.iter().any(|entry| entry.cidr.contains(address))
    }

    /// What it says of `address` as a floating IP of `pod`.
    pub fn permission(&self, address: IpAddr, pod: &Pod) -> Permission<'_> {
        let mut answer = Permission::Unlisted;
        for entry in self.0.iter().filter(|entry| entry.cidr.contains(address)) {
            if entry.is_for(pod) {
                return Permission::Allowed(entry);
            }
            if answer == Permission::Unlisted {
                answer = Permission::Reserved(entry);
            }
        }
        answer
    }
}
