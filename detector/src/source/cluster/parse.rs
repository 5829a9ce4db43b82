//! From Kubernetes' objects to the engine's words: pure and total, once, at the border.
//!
//! An address is what Calico takes for one, so that the detector sees the claim that Felix acts on:
//! `floatingIPs` by Go's `net.ParseIP`
//! (libcalico-go/lib/backend/syncersv1/updateprocessors/workloadendpointprocessor.go,
//! `ConvertV2ToV1IPNAT`), `podIPs` and `podIP` by `ParseCIDROrIP` (libcalico-go/lib/net/ipnet.go).
//! That means: no white space around it, no zone, no leading zeros (Go refuses them since 1.17), and
//! an IPv4-mapped IPv6 address is the IPv4 address in it, as Go's `To4` has it.
//!
//! A prefix is what Calico's `ParseCIDROrIP` makes of it: the last 32 bits of an IPv4-mapped prefix
//! are an IPv4 prefix.
//!
//! What is malformed is left out and told as a [`Rejection`]; it never costs the rest of the object.
//! Calico is stricter in one point: if `floatingIPs` is not a JSON list of strings, Felix refuses the
//! pod as a whole. Here its well-formed entries still count as claims: what somebody tried to claim
//! is worth knowing even where it failed.

mod address;
mod ipam;
mod reader;
mod service;

use std::net::IpAddr;

use detector_core::observation::Node;
use detector_core::route::Prefix;
use detector_core::workload::{NodeName, Pod, PodKey, Uid};
use k8s_openapi::api::core::v1 as api;

use self::address::{cidr_or_ip, ip, prefix};
pub use self::ipam::{any_block, block, pool};
use self::reader::Reader;
pub use self::service::service;
use super::lean::LeanNode;
use super::rejection::{Reason, Rejection};

pub(crate) const FLOATING_IPS: &str = "cni.projectcalico.org/floatingIPs";
pub(crate) const POD_IPS: &str = "cni.projectcalico.org/podIPs";
pub(crate) const POD_IP: &str = "cni.projectcalico.org/podIP";
pub(crate) const CONTAINER_ID: &str = "cni.projectcalico.org/containerID";
pub(crate) const SOURCE_PREFIXES: &str = "cni.projectcalico.org/allowedSourcePrefixes";
pub(crate) const ADDRESSES_WITHOUT_IPAM: &str = "cni.projectcalico.org/ipAddrsNoIpam";
pub(crate) const ADDRESSES: &str = "cni.projectcalico.org/ipAddrs";

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
    let sandbox = sandbox.and_then(|id| reader.optional(CONTAINER_ID, id, 128));
    let (annotated_addresses, annotated_prefixes) = annotated(&mut reader);
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
        addresses: status.map_or_else(Vec::new, |status| status_addresses(&mut reader, status)),
        annotated_addresses,
        floating_addresses: match reader.annotation(FLOATING_IPS) {
            Some(text) => reader.json_list(FLOATING_IPS, text, ip),
            None => Vec::new(),
        },
        annotated_prefixes,
        // Calico takes prefixes only here, and refuses the pod as a whole for an address without a
        // length (`HandleSourceIPSpoofingAnnotation` in
        // libcalico-go/lib/backend/k8s/conversion/workload_endpoint_default.go).
        source_prefixes: unless_empty(&mut reader, SOURCE_PREFIXES, prefix),
        bypassing_addresses: unless_empty(&mut reader, ADDRESSES_WITHOUT_IPAM, ip),
        sandbox,
    };
    Ok(Parsed { value, rejections: reader.rejections })
}

/// What a pod's annotation `ipAddrs` asks IPAM for when the pod is made.
///
/// It gives no right and takes none, so [`pod`] leaves it out: IPAM says no where somebody else has
/// the address.
pub(crate) fn asked_addresses(pod: &api::Pod) -> Parsed<Vec<IpAddr>> {
    let mut reader = Reader::new("pod", &pod.metadata);
    let value = unless_empty(&mut reader, ADDRESSES, ip);
    Parsed { value, rejections: reader.rejections }
}

/// A node, or why it cannot be one: without a name.
pub fn node(node: &LeanNode) -> Result<Parsed<Node>, Rejection> {
    let mut reader = Reader::new("node", &node.metadata);
    let name = reader.identifier("metadata.name", node.metadata.name.as_deref(), 253)?;
    let mut addresses = Vec::new();
    let status = node.status.iter().flat_map(|status| status.addresses.iter().flatten());
    for address in status.filter(|a| matches!(&*a.type_, "InternalIP" | "ExternalIP")) {
        let text = &address.address;
        if !reader.take(&mut addresses, "status.addresses", text, ip(text)) {
            break;
        }
    }
    for key in NODE_ADDRESSES {
        if let Some(text) = reader.annotation(key).filter(|text| !text.is_empty()) {
            // The node's own address comes with the length of its subnet.
            reader.take(&mut addresses, key, text, cidr_or_ip(text).map(|(ip, _)| ip));
        }
    }
    let spec = node.spec.as_ref();
    let (field, cidrs) = match spec.and_then(|spec| spec.pod_cidrs.as_deref()) {
        Some(cidrs @ [_, ..]) => ("spec.podCIDRs", cidrs),
        _ => ("spec.podCIDR", spec.map_or(&[][..], |spec| spec.pod_cidr.as_slice())),
    };
    let cidrs = cidrs.iter().map(String::as_str).filter(|cidr| !cidr.is_empty());
    let pod_prefixes = reader.take_all(field, cidrs, prefix);
    let value = Node { name: NodeName(name), addresses, pod_prefixes };
    Ok(Parsed { value, rejections: reader.rejections })
}

/// `status.podIPs`, or `status.podIP` where that is empty.
fn status_addresses(reader: &mut Reader<'_>, status: &api::PodStatus) -> Vec<IpAddr> {
    if let Some(ips @ [_, ..]) = status.pod_ips.as_deref() {
        return reader.take_all("status.podIPs", ips.iter().map(|pod_ip| &*pod_ip.ip), ip);
    }
    let text = status.pod_ip.as_deref().filter(|text| !text.is_empty());
    reader.take_all("status.podIP", text, ip)
}

/// Annotation `podIPs`, a list with commas, or `podIP` where that is empty: addresses, and prefixes
/// of more than one.
fn annotated(reader: &mut Reader<'_>) -> (Vec<IpAddr>, Vec<Prefix>) {
    if let Some(text) = reader.annotation(POD_IPS).filter(|text| !text.is_empty()) {
        reader.hosts_and_prefixes(POD_IPS, text.split(','))
    } else if let Some(text) = reader.annotation(POD_IP).filter(|text| !text.is_empty()) {
        reader.hosts_and_prefixes(POD_IP, [text])
    } else {
        (Vec::new(), Vec::new())
    }
}

/// An annotation that is a JSON list; an empty text is to Calico as none.
fn unless_empty<T: PartialEq>(
    reader: &mut Reader<'_>,
    key: &'static str,
    parse: impl Fn(&str) -> Result<T, Reason>,
) -> Vec<T> {
    match reader.annotation(key).filter(|text| !text.is_empty()) {
        Some(text) => reader.json_list(key, text, parse),
        None => Vec::new(),
    }
}

#[cfg(test)]
mod tests;
