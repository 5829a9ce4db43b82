//! Calico's records of addresses: pools and blocks.
//!
//! Both kinds have the same fields in crd.projectcalico.org/v1 and projectcalico.org/v3. Nobody but
//! Calico and administrators can write them; they are read with the same distrust all the same.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use detector_core::claim::{Allocation, Block, PodHolder, Pool, ServiceKey, Spread};
use detector_core::route::Prefix;
use detector_core::workload::{NodeName, PodKey};
use kube::api::DynamicObject;
use serde_json::Value;

use super::Parsed;
use super::address::prefix;
use super::reader::{Reader, shown};
use crate::source::cluster::rejection::{Reason, Rejection};

/// No block is larger: Calico's own limit are the 4,096 addresses of a /20 or a /116
/// (`blockSize` in libcalico-go/lib/validator/v3/validator.go).
const MOST_ADDRESSES: u32 = 1 << 16;

/// `secondary.type` of addresses of nodes' tunnels (libcalico-go/lib/backend/model/block.go).
const TUNNELS: [&str; 5] = [
    "ipipTunnelAddress",
    "vxlanTunnelAddress",
    "vxlanV6TunnelAddress",
    "wireguardTunnelAddress",
    "wireguardV6TunnelAddress",
];

/// Where an allocation cannot be read, the address is taken all the same: by whom, nobody can say.
const UNREADABLE: &str = "unreadable";

/// An IPPool, or why it cannot be one: without its prefix or the length of its blocks, the wrong
/// blocks would be asked for.
pub fn pool(object: &DynamicObject) -> Result<Parsed<Pool>, Rejection> {
    let mut reader = Reader::new("ippool", &object.metadata);
    let name = reader.identifier("metadata.name", object.metadata.name.as_deref(), 253)?;
    let spec = &object.data["spec"];
    let cidr = cidr(&reader, spec)?;
    let default = Pool::default_block_length(cidr.is_ipv4());
    let size = &spec["blockSize"];
    let block_length = match size {
        Value::Null => Some(default),
        // To Go, what is absent is zero.
        size => size
            .as_u64()
            .map(|size| if size == 0 { default.into() } else { size })
            .and_then(|size| u8::try_from(size).ok()),
    };
    let longest = if cidr.is_ipv4() { 32 } else { 128 };
    let block_length = block_length
        .filter(|length| (cidr.length()..=longest).contains(length))
        .ok_or_else(|| reader.rejection("spec.blockSize", Reason::OutOfRange, &shown(size)))?;
    let encapsulated = match &spec["vxlanMode"] {
        Value::Null => false,
        Value::String(mode) if mode.is_empty() || mode.eq_ignore_ascii_case("Never") => false,
        Value::String(mode)
            if ["Always", "CrossSubnet"].iter().any(|word| mode.eq_ignore_ascii_case(word)) =>
        {
            true
        }
        other => {
            reader.reject("spec.vxlanMode", Reason::UnknownWord, &shown(other));
            false
        }
    };
    let contained = encapsulated || spec["disableBGPExport"] == Value::Bool(true);
    let spread = if contained { Spread::Contained } else { Spread::Bgp };
    let value = Pool { name, cidr, block_length, spread };
    Ok(Parsed { value, rejections: reader.rejections })
}

/// An IPAMBlock, or why it cannot be the one that was asked for; `None` where it is marked as
/// deleted (`spec.deleted`), so that all of its addresses are free.
pub fn block(object: &DynamicObject, asked: Prefix) -> Result<Parsed<Option<Block>>, Rejection> {
    let reader = Reader::new("ipamblock", &object.metadata);
    let cidr = cidr(&reader, &object.data["spec"])?;
    if cidr != asked {
        return Err(reader.rejection("spec.cidr", Reason::AnotherBlock, &cidr.to_string()));
    }
    any_block(object)
}

/// An IPAMBlock, whichever it is; `None` where it is marked as deleted.
pub fn any_block(object: &DynamicObject) -> Result<Parsed<Option<Block>>, Rejection> {
    let mut reader = Reader::new("ipamblock", &object.metadata);
    let spec = &object.data["spec"];
    let cidr = cidr(&reader, spec)?;
    if spec["deleted"] == Value::Bool(true) || spec["deleted"] == "true" {
        return Ok(Parsed { value: None, rejections: reader.rejections });
    }
    let bits = if cidr.is_ipv4() { 32 } else { 128 };
    let size = 1_u32
        .checked_shl(bits - u32::from(cidr.length()))
        .filter(|size| *size <= MOST_ADDRESSES)
        .ok_or_else(|| reader.rejection("spec.cidr", Reason::TooMany, &cidr.to_string()))?;
    let list = |field: &'static str, value: &'_ Value| match value {
        Value::Null => Err(reader.rejection(field, Reason::Missing, "")),
        _ => Err(reader.rejection(field, Reason::Malformed, &shown(value))),
    };
    let Value::Array(ordinals) = &spec["allocations"] else {
        return list("spec.allocations", &spec["allocations"]);
    };
    let Value::Array(attributes) = &spec["attributes"] else {
        return list("spec.attributes", &spec["attributes"]);
    };
    // In a list that is too short, free and missing could not be told apart.
    if u32::try_from(ordinals.len()) != Ok(size) {
        let length = ordinals.len().to_string();
        return Err(reader.rejection("spec.allocations", Reason::WrongLength, &length));
    }
    let mut allocations = Vec::new();
    for (index, ordinal) in (0_u32..).zip(ordinals) {
        if ordinal.is_null() {
            continue;
        }
        let at = ordinal.as_u64().and_then(|at| usize::try_from(at).ok());
        let allocation = if let Some(attribute) = at.and_then(|at| attributes.get(at)) {
            allocation(&mut reader, attribute)
        } else {
            let value = format!("[{index}]: {}", shown(ordinal));
            reader.reject("spec.allocations", Reason::OutOfRange, &value);
            Some(Allocation::Other(UNREADABLE.into()))
        };
        allocations.extend(allocation.map(|allocation| (nth(cidr, index), allocation)));
    }
    let affinity = affinity(&mut reader, &spec["affinity"]);
    let value = Some(Block { cidr, affinity, allocations });
    Ok(Parsed { value, rejections: reader.rejections })
}

fn cidr(reader: &Reader<'_>, spec: &Value) -> Result<Prefix, Rejection> {
    match &spec["cidr"] {
        Value::Null => Err(reader.rejection("spec.cidr", Reason::Missing, "")),
        Value::String(text) => {
            prefix(text).map_err(|reason| reader.rejection("spec.cidr", reason, text))
        }
        other => Err(reader.rejection("spec.cidr", Reason::NotAnAddress, &shown(other))),
    }
}

/// `host:NODE`; other affinities (`virtual:load-balancer`) are to no node.
fn affinity(reader: &mut Reader<'_>, value: &Value) -> Option<NodeName> {
    let node = match value {
        Value::Null => return None,
        Value::String(text) => text.strip_prefix("host:")?,
        other => {
            reader.reject("spec.affinity", Reason::Malformed, &shown(other));
            return None;
        }
    };
    node_name(reader, "spec.affinity", node)
}

fn node_name(reader: &mut Reader<'_>, field: &'static str, text: &str) -> Option<NodeName> {
    reader.optional(field, text, 253).map(NodeName)
}

/// The block's address with this number. A block has no host bits, so that nothing overflows.
fn nth(cidr: Prefix, index: u32) -> IpAddr {
    match cidr.address() {
        IpAddr::V4(base) => Ipv4Addr::from_bits(base.to_bits() | index).into(),
        IpAddr::V6(base) => Ipv6Addr::from_bits(base.to_bits() | u128::from(index)).into(),
    }
}

/// Who has an address by one of the block's attributes; `None` where it cools down after its
/// release (`releasedAt`), which counts as free.
fn allocation(reader: &mut Reader<'_>, attribute: &Value) -> Option<Allocation> {
    const SECONDARY: &str = "spec.attributes.secondary";
    const ALTERNATE: &str = "spec.attributes.alternateOwnerAttrs";
    if !attribute["releasedAt"].is_null() {
        return None;
    }
    let handle = handle(reader, attribute);
    let other = || Some(Allocation::Other(handle.clone()));
    let secondary = &attribute["secondary"];
    let text = |key: &str| secondary[key].as_str().filter(|text| !text.is_empty());
    if text("pod").is_some() {
        return match pod_holder(reader, SECONDARY, secondary) {
            Some(owner) => {
                let heir = pod_holder(reader, ALTERNATE, &attribute["alternateOwnerAttrs"]);
                Some(Allocation::Pod { owner, heir })
            }
            None => other(),
        };
    }
    // By kube-controllers for Services of type LoadBalancer; the handle is `lb-` and a digest of the
    // Service (kube-controllers/pkg/controllers/loadbalancer/loadbalancer_controller.go).
    if let Some(service) = text("service") {
        let namespace = text("namespace").unwrap_or_default();
        if let Some(key) = ServiceKey::new(namespace, service) {
            return Some(Allocation::Service(key));
        }
        reader.reject(SECONDARY, Reason::Malformed, &format!("{namespace}/{service}"));
        return other();
    }
    match (text("type"), text("node")) {
        (Some(kind), Some(node)) if TUNNELS.contains(&kind) => {
            match node_name(reader, SECONDARY, node) {
                Some(node) => Some(Allocation::Node { node, kind: kind.into() }),
                None => other(),
            }
        }
        _ => other(),
    }
}

/// `handle_id`, such as `k8s-pod-network.` and the container's id.
fn handle(reader: &mut Reader<'_>, attribute: &Value) -> Box<str> {
    let field = "spec.attributes.handle_id";
    match &attribute["handle_id"] {
        Value::Null => "without a handle".into(),
        Value::String(text) => {
            reader.optional(field, text, 253).unwrap_or_else(|| UNREADABLE.into())
        }
        other => {
            reader.reject(field, Reason::Malformed, &shown(other));
            UNREADABLE.into()
        }
    }
}

/// The pod that a map of attributes names; `None` where it names none.
fn pod_holder(
    reader: &mut Reader<'_>,
    field: &'static str,
    attributes: &Value,
) -> Option<PodHolder> {
    let text = |key: &str| attributes[key].as_str().filter(|text| !text.is_empty());
    let (namespace, pod) = (text("namespace").unwrap_or_default(), text("pod")?);
    let Some(key) = PodKey::new(namespace, pod) else {
        reader.reject(field, Reason::Malformed, &format!("{namespace}/{pod}"));
        return None;
    };
    let node = text("node").and_then(|node| node_name(reader, field, node));
    Some(PodHolder { key, node })
}

#[cfg(test)]
mod tests;
