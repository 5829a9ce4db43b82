//! From Kubernetes' objects to the engine's words: pure and total, once, at the border.
//!
//! An address is what Calico takes for one, so that the detector sees the claim that Felix acts on:
//! `floatingIPs` by Go's `net.ParseIP`
//! (libcalico-go/lib/backend/syncersv1/updateprocessors/workloadendpointprocessor.go,
//! `ConvertV2ToV1IPNAT`), `podIPs` and `podIP` by `ParseCIDROrIP` (libcalico-go/lib/net/ipnet.go).
//! That means: no white space around it, no zone, no leading zeros (Go refuses them since 1.17), and
//! an IPv4-mapped IPv6 address is the IPv4 address in it, as Go's `To4` has it.
//!
//! What is malformed is left out and told as a [`Rejection`]; it never costs the rest of the object.
//! Calico is stricter in one point: if `floatingIPs` is not a JSON list of strings, Felix refuses the
//! pod as a whole. Here its well-formed entries still count as claims: what somebody tried to claim
//! is worth knowing even where it failed.

use std::net::IpAddr;

use detector_core::observation::Node;
use detector_core::workload::{NodeName, Pod, PodKey, Uid};
use k8s_openapi::api::core::v1 as api;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::rejection::{Reason, Rejection};

const FLOATING_IPS: &str = "cni.projectcalico.org/floatingIPs";
const POD_IPS: &str = "cni.projectcalico.org/podIPs";
const POD_IP: &str = "cni.projectcalico.org/podIP";
const CONTAINER_ID: &str = "cni.projectcalico.org/containerID";

/// Annotations of a node that hold an address of its own, in CIDR form or alone
/// (libcalico-go/lib/backend/k8s/resources/node.go).
const NODE_ADDRESSES: [&str; 7] = [
    "projectcalico.org/IPv4Address",
    "projectcalico.org/IPv6Address",
    "projectcalico.org/IPv4IPIPTunnelAddr",
    "projectcalico.org/IPv4VXLANTunnelAddr",
    "projectcalico.org/IPv6VXLANTunnelAddr",
    "projectcalico.org/IPv4WireguardInterfaceAddr",
    "projectcalico.org/IPv6WireguardInterfaceAddr",
];

/// No list is read further: a pod has two addresses, and a floating IP for each Service at most.
const MOST_ADDRESSES: usize = 256;

/// What an object means, and what of it was left out.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Parsed<T> {
    /// What it means.
    pub value: T,
    /// What was left out, each with its reason.
    pub rejections: Vec<Rejection>,
}

/// A pod, or why it cannot be one: without name, uid or node it cannot be placed.
pub fn pod(pod: &api::Pod) -> Result<Parsed<Pod>, Rejection> {
    let mut reader = Reader::new("pod", &pod.metadata);
    let metadata = &pod.metadata;
    let (namespace, name) = (metadata.namespace.as_deref(), metadata.name.as_deref());
    let key = PodKey::new(namespace.unwrap_or_default(), name.unwrap_or_default());
    let spec = pod.spec.as_ref();
    let status = pod.status.as_ref();
    let key = key.ok_or_else(|| reader.rejection("metadata.name", Reason::Malformed, ""))?;
    let uid = reader.identifier("metadata.uid", metadata.uid.as_deref(), 64)?;
    let node = spec.and_then(|spec| spec.node_name.as_deref());
    let node = reader.identifier("spec.nodeName", node, 253)?;
    // Mirror pods of static pods have none.
    let account = spec.and_then(|spec| spec.service_account_name.as_deref()).unwrap_or_default();
    let sandbox = reader.annotation(CONTAINER_ID).filter(|id| !id.is_empty());
    let sandbox = sandbox.and_then(|id| match reader.identifier(CONTAINER_ID, Some(id), 128) {
        Ok(id) => Some(id),
        Err(rejection) => {
            reader.rejections.push(rejection);
            None
        }
    });
    let value = Pod {
        key,
        uid: Uid(uid),
        node: NodeName(node),
        service_account: account.into(),
        host_network: spec.and_then(|spec| spec.host_network).unwrap_or(false),
        finished: status
            .and_then(|status| status.phase.as_deref())
            .is_some_and(|phase| matches!(phase, "Succeeded" | "Failed")),
        terminating: metadata.deletion_timestamp.is_some(),
        addresses: reader.status_addresses(status),
        annotated_addresses: reader.annotated_addresses(),
        floating_addresses: reader.floating_addresses(),
        annotated_prefixes: Vec::new(),
        source_prefixes: Vec::new(),
        bypassing_addresses: Vec::new(),
        sandbox,
    };
    Ok(Parsed { value, rejections: reader.rejections })
}

/// A node, or why it cannot be one: without a name.
pub fn node(node: &api::Node) -> Result<Parsed<Node>, Rejection> {
    let mut reader = Reader::new("node", &node.metadata);
    let name = reader.identifier("metadata.name", node.metadata.name.as_deref(), 253)?;
    let mut addresses = Addresses::default();
    let status = node.status.iter().flat_map(|status| status.addresses.iter().flatten());
    for address in status.filter(|a| matches!(&*a.type_, "InternalIP" | "ExternalIP")) {
        reader.take(&mut addresses, "status.addresses", &address.address, ip);
    }
    for key in NODE_ADDRESSES {
        if let Some(text) = reader.annotation(key).filter(|text| !text.is_empty()) {
            // The node's own address comes with the length of its subnet.
            reader.take(&mut addresses, key, text, |text| cidr_or_ip(text).map(|(ip, _)| ip));
        }
    }
    let value = Node { name: NodeName(name), addresses: addresses.0, pod_prefixes: Vec::new() };
    Ok(Parsed { value, rejections: reader.rejections })
}

/// An address as Go's `net.ParseIP` takes it, IPv4-mapped ones as the IPv4 address in them.
fn ip(text: &str) -> Result<IpAddr, Reason> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(address.to_canonical());
    }
    let octets = text.rsplit(':').next().unwrap_or(text).split('.');
    let numbers = octets.clone().all(|o| !o.is_empty() && o.bytes().all(|b| b.is_ascii_digit()));
    let padded = octets.clone().any(|octet| octet.len() > 1 && octet.starts_with('0'));
    Err(match text {
        _ if octets.count() == 4 && numbers && padded => Reason::LeadingZeros,
        _ if text.contains('%') => Reason::Zone,
        _ => Reason::NotAnAddress,
    })
}

/// An address with the length behind it, or alone, as Calico's `ParseCIDROrIP` takes it; and
/// whether it is one address only.
fn cidr_or_ip(text: &str) -> Result<(IpAddr, bool), Reason> {
    let Some((address, length)) = text.split_once('/') else {
        return ip(text).map(|address| (address, true));
    };
    let bits = if address.contains(':') { 128 } else { 32 };
    let address = ip(address)?;
    let digits = !length.is_empty() && length.bytes().all(|byte| byte.is_ascii_digit());
    match length.parse::<u16>() {
        Ok(length) if digits && length <= bits => Ok((address, length == bits)),
        _ => Err(Reason::NotAnAddress),
    }
}

/// A host's address, with or without its length.
fn host(text: &str) -> Result<IpAddr, Reason> {
    match cidr_or_ip(text)? {
        (address, true) => Ok(address),
        (_, false) => Err(Reason::NotAHost),
    }
}

/// Addresses in the order in which they were found, each once: saying a thing twice is no error.
#[derive(Default)]
struct Addresses(Vec<IpAddr>);

/// One object being read.
struct Reader<'a> {
    kind: &'static str,
    metadata: &'a ObjectMeta,
    rejections: Vec<Rejection>,
}

// === impl Reader ===

impl<'a> Reader<'a> {
    fn new(kind: &'static str, metadata: &'a ObjectMeta) -> Self {
        Self { kind, metadata, rejections: Vec::new() }
    }

    fn annotation(&self, key: &str) -> Option<&'a str> {
        self.metadata.annotations.as_ref()?.get(key).map(String::as_str)
    }

    fn rejection(&self, field: &'static str, reason: Reason, value: &str) -> Rejection {
        let name = self.metadata.name.as_deref().unwrap_or_default();
        let object = match &self.metadata.namespace {
            Some(namespace) => format!("{} {namespace}/{name}", self.kind),
            None => format!("{} {name}", self.kind),
        };
        Rejection::new(&object, field, reason, value)
    }

    fn reject(&mut self, field: &'static str, reason: Reason, value: &str) {
        let rejection = self.rejection(field, reason, value);
        self.rejections.push(rejection);
    }

    /// A name or id: printable, without white space, not empty and not long.
    fn identifier(
        &self,
        field: &'static str,
        text: Option<&str>,
        longest: usize,
    ) -> Result<Box<str>, Rejection> {
        match text {
            None | Some("") => Err(self.rejection(field, Reason::Missing, "")),
            Some(text) if text.len() <= longest && text.bytes().all(|b| b.is_ascii_graphic()) => {
                Ok(text.into())
            }
            Some(text) => Err(self.rejection(field, Reason::Malformed, text)),
        }
    }

    /// Takes one address into a list; `false` where the list is full.
    fn take(
        &mut self,
        addresses: &mut Addresses,
        field: &'static str,
        text: &str,
        parse: impl Fn(&str) -> Result<IpAddr, Reason>,
    ) -> bool {
        match parse(text) {
            Ok(address) if addresses.0.contains(&address) => {}
            Ok(_) if addresses.0.len() == MOST_ADDRESSES => {
                self.reject(field, Reason::TooMany, text);
                return false;
            }
            Ok(address) => addresses.0.push(address),
            Err(reason) => self.reject(field, reason, text),
        }
        // The list of what was refused is as bounded as the list of what was taken.
        let goes_on = self.rejections.len() < MOST_ADDRESSES - 1;
        if !goes_on {
            self.reject(field, Reason::TooMany, text);
        }
        goes_on
    }

    /// `status.podIPs`, or `status.podIP` where that is empty.
    fn status_addresses(&mut self, status: Option<&api::PodStatus>) -> Vec<IpAddr> {
        let mut addresses = Addresses::default();
        let Some(status) = status else { return addresses.0 };
        match status.pod_ips.as_deref() {
            Some(ips @ [_, ..]) => {
                for pod_ip in ips {
                    if !self.take(&mut addresses, "status.podIPs", &pod_ip.ip, ip) {
                        break;
                    }
                }
            }
            _ => {
                if let Some(text) = status.pod_ip.as_deref().filter(|text| !text.is_empty()) {
                    self.take(&mut addresses, "status.podIP", text, ip);
                }
            }
        }
        addresses.0
    }

    /// Annotation `podIPs`, a list with commas, or `podIP` where that is empty.
    fn annotated_addresses(&mut self) -> Vec<IpAddr> {
        let mut addresses = Addresses::default();
        if let Some(text) = self.annotation(POD_IPS).filter(|text| !text.is_empty()) {
            for entry in text.split(',') {
                if !self.take(&mut addresses, POD_IPS, entry, host) {
                    break;
                }
            }
        } else if let Some(text) = self.annotation(POD_IP).filter(|text| !text.is_empty()) {
            self.take(&mut addresses, POD_IP, text, host);
        }
        addresses.0
    }

    /// Annotation `floatingIPs`: a JSON list of strings. `null` is an empty list, and in the list an
    /// empty string, to Go as here.
    fn floating_addresses(&mut self) -> Vec<IpAddr> {
        let mut addresses = Addresses::default();
        let Some(text) = self.annotation(FLOATING_IPS) else { return addresses.0 };
        let Ok(entries) = serde_json::from_str::<Option<Vec<serde_json::Value>>>(text) else {
            self.reject(FLOATING_IPS, Reason::NotAJsonList, text);
            return addresses.0;
        };
        for entry in entries.unwrap_or_default() {
            let goes_on = match &entry {
                serde_json::Value::String(entry) => {
                    self.take(&mut addresses, FLOATING_IPS, entry, ip)
                }
                serde_json::Value::Null => self.take(&mut addresses, FLOATING_IPS, "", ip),
                other => self.take(&mut addresses, FLOATING_IPS, &other.to_string(), |_| {
                    Err(Reason::NotAString)
                }),
            };
            if !goes_on {
                break;
            }
        }
        addresses.0
    }
}

#[cfg(test)]
mod tests;
