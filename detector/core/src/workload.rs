//! Pods, and the interfaces that Calico gives them.

use std::fmt;
use std::fmt::Write as _;
use std::net::IpAddr;

use sha1::{Digest, Sha1};

use crate::link::InterfaceName;
use crate::route::Prefix;

/// A pod's namespace and name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(try_from = "String", into = "String")
)]
pub struct PodKey {
    namespace: Box<str>,
    name: Box<str>,
}

impl PodKey {
    /// A pod's key; `None` where either part is empty, too long or not of the characters that the
    /// API server allows in the names of namespaces and pods (RFC 1123 labels and subdomains).
    pub fn new(namespace: &str, name: &str) -> Option<Self> {
        let valid = |text: &str, most: usize, dots: bool| {
            (1..=most).contains(&text.len())
                && text.bytes().all(|b| {
                    b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || (dots && b == b'.')
                })
        };
        (valid(namespace, 63, false) && valid(name, 253, true))
            .then(|| Self { namespace: namespace.into(), name: name.into() })
    }

    /// The namespace.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The pod's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The host side interface that Calico's CNI plugin makes for the pod: the prefix and the first
    /// 11 hexadecimal digits of SHA-1 of `namespace.name` (`VethNameForWorkload` in
    /// libcalico-go/lib/backend/k8s/conversion/workload_endpoint_default.go). `None` where the
    /// prefix leaves no valid interface name.
    pub fn interface(&self, prefix: &str) -> Option<InterfaceName> {
        let digest = Sha1::digest(format!("{}.{}", self.namespace, self.name));
        let mut name = String::with_capacity(prefix.len() + 12);
        name.push_str(prefix);
        for byte in &digest[..6] {
            // Writing to a String cannot fail.
            let _ = write!(name, "{byte:02x}");
        }
        name.truncate(prefix.len() + 11);
        InterfaceName::new(&name)
    }
}

#[cfg(feature = "serde")]
impl TryFrom<String> for PodKey {
    type Error = &'static str;

    fn try_from(key: String) -> Result<Self, Self::Error> {
        let (namespace, name) = key.split_once('/').unwrap_or_default();
        Self::new(namespace, name).ok_or("no namespace/name that a pod can have")
    }
}

#[cfg(feature = "serde")]
impl From<PodKey> for String {
    fn from(key: PodKey) -> Self {
        key.to_string()
    }
}

impl fmt::Display for PodKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl fmt::Debug for PodKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A pod's uid: what tells two pods of one name apart.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Uid(pub Box<str>);

impl fmt::Display for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The name of a node.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct NodeName(pub Box<str>);

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A pod as the API server shows it now.
///
/// Key, uid, node, service account and `host_network` cannot be changed once the pod exists. Every
/// other field can be written by whoever may patch pods or pods/status: a claim, not a fact.
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Pod {
    /// Namespace and name.
    pub key: PodKey,
    /// `metadata.uid`.
    pub uid: Uid,
    /// `spec.nodeName`.
    pub node: NodeName,
    /// `spec.serviceAccountName`.
    pub service_account: Box<str>,
    /// `spec.hostNetwork`: the pod uses the node's addresses and has no interface of its own.
    pub host_network: bool,
    /// `status.phase` is Succeeded or Failed: its address is free again although it still shows.
    pub finished: bool,
    /// `metadata.deletionTimestamp` is set.
    pub terminating: bool,
    /// `status.podIPs`, or `status.podIP` where that is empty.
    pub addresses: Vec<IpAddr>,
    /// Annotations `cni.projectcalico.org/podIPs`, else `podIP`: what the CNI plugin wrote.
    pub annotated_addresses: Vec<IpAddr>,
    /// Annotation `cni.projectcalico.org/floatingIPs`, well-formed entries only.
    pub floating_addresses: Vec<IpAddr>,
    /// Prefixes of more than one address in the annotations `podIPs` and `podIP`: Felix would route
    /// them as a whole while the status is empty (`getPodIPs` in
    /// libcalico-go/lib/backend/k8s/conversion/conversion.go).
    pub annotated_prefixes: Vec<Prefix>,
    /// Annotation `cni.projectcalico.org/allowedSourcePrefixes`, well-formed entries only.
    pub source_prefixes: Vec<Prefix>,
    /// Annotation `cni.projectcalico.org/ipAddrsNoIpam`, well-formed entries only: addresses that
    /// the CNI plugin gives to the pod without asking IPAM, where it may.
    pub bypassing_addresses: Vec<IpAddr>,
    /// Annotation `cni.projectcalico.org/containerID`: the sandbox that the CNI plugin set up.
    pub sandbox: Option<Box<str>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interface_names_agree_with_calicos_own_test_vectors() {
        let name = |ns, pod, prefix| PodKey::new(ns, pod).unwrap().interface(prefix).unwrap();
        assert_eq!(name("namespace", "podname", "eni").as_str(), "eni82111e10a96");
        assert_eq!(name("default", "nginx", "cali").as_str(), "calic440f455693");
    }

    #[test]
    fn keys_that_no_api_server_would_have_are_refused() {
        for (namespace, name) in [("", "a"), ("a", ""), ("a.b", "c"), ("a", "b\n"), ("A", "b")] {
            assert!(PodKey::new(namespace, name).is_none(), "{namespace:?} {name:?}");
        }
    }
}
