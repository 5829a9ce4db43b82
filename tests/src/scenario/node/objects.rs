//! The objects of the API, as Kubernetes and Calico write them.

use anyhow::{Context as _, Result};
use detector_core::claim::{Allocation, Block, Pool, Spread};
use serde_json::{Map, Value, json};

use crate::scenario::FeatureState;
use crate::scenario::cluster::{ServiceEntry, Spoofing};
use crate::scenario::pod::Annotations;
use crate::scenario::step::FelixStep;
use crate::scenario::words::Words;

const CALICO: &str = "crd.projectcalico.org/v1";

/// The part of a pod's status that has its addresses.
pub(super) fn status(words: Words<'_>, names: &[String]) -> Result<Value> {
    let addresses = texts(words, names)?;
    let all: Vec<Value> = addresses.iter().map(|address| json!({"ip": address})).collect();
    Ok(match addresses.first() {
        Some(first) => json!({"podIP": first, "podIPs": all}),
        None => json!({}),
    })
}

/// The annotations under their full names; null removes one.
pub(super) fn annotations(
    words: Words<'_>,
    annotations: &Annotations,
) -> Result<Map<String, Value>> {
    annotations
        .iter()
        .map(|(name, value)| {
            let value = match value.as_str() {
                "" => Value::Null,
                value => json!(words.expand(value)?),
            };
            Ok((format!("cni.projectcalico.org/{name}"), value))
        })
        .collect()
}

/// A node with its addresses.
pub(super) fn node(words: Words<'_>, name: &str, addresses: &[String]) -> Result<Value> {
    let addresses: Vec<Value> = texts(words, addresses)?
        .into_iter()
        .map(|address| json!({"type": "InternalIP", "address": address}))
        .collect();
    let ranges: Vec<String> = words.pod_prefixes(name)?.iter().map(ToString::to_string).collect();
    Ok(json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": name},
        "spec": {"podCIDR": ranges.first(), "podCIDRs": ranges},
        "status": {"addresses": addresses},
    }))
}

/// A Service.
pub(super) fn service(words: Words<'_>, entry: &ServiceEntry) -> Result<Value> {
    let (namespace, name) =
        entry.name.split_once('/').context("a Service is called namespace/name")?;
    let cluster = texts(words, &entry.cluster_ips)?;
    let balancer = texts(words, &entry.load_balancer)?;
    let ingress: Vec<Value> = balancer.iter().map(|address| json!({"ip": address})).collect();
    let ports: Vec<Value> = entry.ports.iter().copied().map(port).collect();
    let mut spec = json!({
        "type": if ingress.is_empty() { "ClusterIP" } else { "LoadBalancer" },
        "externalIPs": texts(words, &entry.external_ips)?,
        "ports": ports,
    });
    if !cluster.is_empty() || ingress.is_empty() {
        spec["clusterIP"] = json!(cluster.first().map_or("None", String::as_str));
        spec["clusterIPs"] = json!(cluster);
    }
    Ok(json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"namespace": namespace, "name": name},
        "spec": spec,
        "status": {"loadBalancer": {"ingress": ingress}},
    }))
}

/// A port of a Service. With others it must have a name.
fn port(number: u16) -> Value {
    json!({"name": format!("port-{number}"), "port": number, "protocol": "TCP"})
}

/// An IP pool.
pub(super) fn pool(pool: &Pool) -> Value {
    let vxlan = if pool.spread == Spread::Contained { "Always" } else { "Never" };
    json!({
        "apiVersion": CALICO, "kind": "IPPool", "metadata": {"name": pool.name},
        "spec": {
            "cidr": pool.cidr.to_string(),
            "blockSize": pool.block_length,
            "ipipMode": "Never",
            "vxlanMode": vxlan,
            "natOutgoing": true,
            "nodeSelector": "all()",
            "allowedUses": ["Workload", "Tunnel"],
        },
    })
}

/// An IPAM block (libcalico-go/lib/backend/model/block.go), of at most 65,536 addresses.
pub(super) fn block(block: &Block) -> Value {
    let bits = if block.cidr.is_ipv4() { 32 } else { 128 };
    let size = 1_usize << (bits - block.cidr.length()).min(16);
    let mut allocations = vec![Value::Null; size];
    let mut attributes = Vec::new();
    for (address, allocation) in &block.allocations {
        let at = ordinal(block, *address);
        if let Some(place) = allocations.get_mut(at) {
            *place = json!(attributes.len());
            attributes.push(attribute(allocation));
        }
    }
    let unallocated: Vec<usize> =
        allocations.iter().enumerate().filter(|(_, has)| has.is_null()).map(|(at, _)| at).collect();
    let cidr = block.cidr.to_string();
    json!({
        "apiVersion": CALICO, "kind": "IPAMBlock",
        "metadata": {"name": cidr.replace(['.', ':', '/'], "-")},
        "spec": {
            "cidr": cidr,
            "affinity": block.affinity.as_ref().map(|node| format!("host:{node}")),
            "allocations": allocations,
            "attributes": attributes,
            "unallocated": unallocated,
            "strictAffinity": false,
            "deleted": false,
        },
    })
}

fn ordinal(block: &Block, address: std::net::IpAddr) -> usize {
    let number = |address| match address {
        std::net::IpAddr::V4(address) => u128::from(u32::from(address)),
        std::net::IpAddr::V6(address) => u128::from(address),
    };
    let distance = number(address).saturating_sub(number(block.cidr.address()));
    usize::try_from(distance).unwrap_or(usize::MAX)
}

fn attribute(allocation: &Allocation) -> Value {
    match allocation {
        Allocation::Pod { owner, heir } => {
            let secondary = |key: &detector_core::workload::PodKey, node: Option<String>| json!({"namespace": key.namespace(), "pod": key.name(), "node": node});
            let node = |node: &Option<detector_core::workload::NodeName>| {
                node.as_ref().map(ToString::to_string)
            };
            let sandbox = format!("sandbox-of-{}.{}", owner.key.namespace(), owner.key.name());
            let mut attribute = json!({
                "handle_id": format!("k8s-pod-network.{sandbox}"),
                "secondary": secondary(&owner.key, node(&owner.node)),
            });
            if let Some(heir) = heir {
                attribute["alternateOwnerAttrs"] = secondary(&heir.key, node(&heir.node));
            }
            attribute
        }
        Allocation::Node { node, kind } => json!({
            "handle_id": format!("vxlan-tunnel-addr-{node}"),
            "secondary": {"node": node.to_string(), "type": kind},
        }),
        Allocation::Service(service) => json!({
            "handle_id": format!("lb-{}", service.name()),
            "secondary": {"service": service.name(), "namespace": service.namespace()},
        }),
        Allocation::Other(handle) => json!({ "handle_id": handle, "secondary": {} }),
    }
}

/// FelixConfiguration, ClusterInformation and the CNI plugin's ConfigMap, where the settings speak
/// of them.
pub(super) fn settings(felix: &FelixStep) -> Vec<Value> {
    let mut spec = json!({});
    match felix.feature {
        None | Some(FeatureState::Absent) => {}
        Some(FeatureState::Enabled) => spec["floatingIPs"] = json!("Enabled"),
        Some(FeatureState::Disabled) => spec["floatingIPs"] = json!("Disabled"),
    }
    if felix.spoofing == Some(Spoofing::Any) {
        spec["workloadSourceSpoofing"] = json!("Any");
    }
    let mut objects = vec![json!({
        "apiVersion": CALICO, "kind": "FelixConfiguration",
        "metadata": {"name": "default"}, "spec": spec,
    })];
    if let Some(version) = &felix.version {
        objects.push(json!({
            "apiVersion": CALICO, "kind": "ClusterInformation",
            "metadata": {"name": "default"},
            "spec": {"calicoVersion": version, "clusterType": "k8s,kdd", "datastoreReady": true},
        }));
    }
    if let Some(bypass) = felix.bypass {
        let network = json!({
            "name": "k8s-pod-network", "cniVersion": "0.3.1",
            "plugins": [{
                "type": "calico", "ipam": {"type": "calico-ipam"},
                "feature_control": {"ip_addrs_no_ipam": bypass},
            }],
        });
        objects.push(json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"namespace": "kube-system", "name": "calico-config"},
            "data": {"cni_network_config": network.to_string()},
        }));
    }
    objects
}

fn texts(words: Words<'_>, names: &[String]) -> Result<Vec<String>> {
    names.iter().map(|name| Ok(words.address(name)?.to_string())).collect()
}

#[cfg(test)]
mod tests {
    use detector_core::claim::PodHolder;
    use detector_core::route::Prefix;
    use detector_core::workload::{NodeName, PodKey};

    use super::*;

    #[test]
    fn a_block_is_named_and_indexed_as_calico_does() {
        let key = PodKey::new("shop", "web").unwrap();
        let owner = PodHolder { key, node: Some(NodeName("node-a".into())) };
        let record = Block {
            cidr: Prefix::new("10.244.1.64".parse().unwrap(), 26).unwrap(),
            affinity: Some(NodeName("node-a".into())),
            allocations: vec![(
                "10.244.1.66".parse().unwrap(),
                Allocation::Pod { owner, heir: None },
            )],
        };
        let object = block(&record);
        assert_eq!(object["metadata"]["name"], "10-244-1-64-26");
        let spec = &object["spec"];
        assert_eq!(spec["affinity"], "host:node-a");
        assert_eq!(spec["allocations"].as_array().map(Vec::len), Some(64));
        assert_eq!((&spec["allocations"][1], &spec["allocations"][2]), (&Value::Null, &json!(0)));
        assert_eq!(spec["unallocated"].as_array().map(Vec::len), Some(63));
        assert_eq!(
            spec["attributes"][0]["secondary"],
            json!({"namespace": "shop", "pod": "web", "node": "node-a"})
        );
    }
}
