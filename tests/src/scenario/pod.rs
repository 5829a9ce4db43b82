//! A pod as its annotations and status make it, read as Calico and the agent read them: what is
//! malformed is left out, and costs nothing else.
//!
//! This is a second reading of the same rules, made apart from the agent's own, so that the two
//! rungs check each other.

use std::collections::BTreeMap;
use std::net::IpAddr;

use detector_core::route::Prefix;
use detector_core::workload::{Pod, PodKey};

/// Annotations by name, without `cni.projectcalico.org/`.
pub type Annotations = BTreeMap<String, String>;

/// Writes into the pod what its annotations say.
pub fn read(pod: &mut Pod, annotations: &Annotations) {
    let text =
        |name: &str| annotations.get(name).map(String::as_str).filter(|text| !text.is_empty());
    let own: Vec<&str> = match (text("podIPs"), text("podIP")) {
        (Some(list), _) => list.split(',').collect(),
        (None, Some(one)) => vec![one],
        (None, None) => Vec::new(),
    };
    let own: Vec<Prefix> = own.into_iter().filter_map(cidr_or_address).collect();
    pod.annotated_addresses = unique(own.iter().filter_map(Prefix::host_address));
    pod.annotated_prefixes = unique(own.into_iter().filter(|prefix| !prefix.is_host()));
    let strings = |name| list(text(name).unwrap_or("null"));
    pod.floating_addresses = unique(strings("floatingIPs").iter().filter_map(|text| address(text)));
    pod.bypassing_addresses =
        unique(strings("ipAddrsNoIpam").iter().filter_map(|text| address(text)));
    let sources = strings("allowedSourcePrefixes");
    let sources = sources.iter().filter(|text| text.contains('/'));
    pod.source_prefixes = unique(sources.filter_map(|text| cidr_or_address(text)));
    pod.sandbox = text("containerID").map(Into::into);
}

/// The annotations that the CNI plugin writes once the pod has these addresses.
pub fn written_by_cni(pod: &PodKey, addresses: &[IpAddr]) -> Annotations {
    let hosts: Vec<String> =
        addresses.iter().map(|address| Prefix::host(*address).to_string()).collect();
    let Some(first) = hosts.first() else { return Annotations::new() };
    Annotations::from([
        ("podIP".to_owned(), first.clone()),
        ("podIPs".to_owned(), hosts.join(",")),
        // The API server takes any text; an id of a container has no white space.
        ("containerID".to_owned(), format!("sandbox-of-{}.{}", pod.namespace(), pod.name())),
    ])
}

/// The texts in a JSON list; of anything else, none.
fn list(text: &str) -> Vec<String> {
    let list = serde_json::from_str::<Option<Vec<serde_json::Value>>>(text).ok().flatten();
    let texts = list.into_iter().flatten().filter_map(|entry| entry.as_str().map(str::to_owned));
    texts.collect()
}

/// An address as Go's `net.ParseIP` takes it: the standard library agrees with it on white space,
/// zones and leading zeros.
fn address(text: &str) -> Option<IpAddr> {
    text.parse::<IpAddr>().ok().map(|address| address.to_canonical())
}

fn cidr_or_address(text: &str) -> Option<Prefix> {
    match text.split_once('/') {
        None => address(text).map(Prefix::host),
        Some((text, length)) => {
            let mapped = text.contains(':');
            let address = address(text)?;
            let length: u8 = length.parse().ok()?;
            let less = if mapped && address.is_ipv4() { 96 } else { 0 };
            Prefix::new(address, length.checked_sub(less)?)
        }
    }
}

/// Each once, in the order in which they come.
fn unique<T: PartialEq>(all: impl Iterator<Item = T>) -> Vec<T> {
    let mut unique = Vec::new();
    for one in all {
        if !unique.contains(&one) {
            unique.push(one);
        }
    }
    unique
}
