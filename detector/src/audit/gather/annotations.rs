//! Annotations of the family, and who wrote them.

use detector_core::workload::{NodeName, Pod, Uid};
use k8s_openapi::api::core::v1 as api;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry;
use serde_json::Value;

use crate::audit::facts::{Mark, Marks, Writer};
use crate::source::cluster::Rejection;
use crate::source::cluster::parse::{
    self, ADDRESSES, ADDRESSES_WITHOUT_IPAM, FLOATING_IPS, POD_IP, POD_IPS, Parsed, SOURCE_PREFIXES,
};
use crate::text::printable;

/// The annotations that people write. `podIP` and `podIPs`, which the CNI plugin writes for each pod,
/// are only told of where they are not what the status says.
const FAMILY: [&str; 4] = [FLOATING_IPS, ADDRESSES, ADDRESSES_WITHOUT_IPAM, SOURCE_PREFIXES];

/// The CNI plugin's own.
const PLUGINS: [&str; 2] = [POD_IPS, POD_IP];

/// What stands in front of an annotation's name.
pub(in crate::audit) const KEYS: [&str; 6] =
    [FLOATING_IPS, ADDRESSES_WITHOUT_IPAM, ADDRESSES, SOURCE_PREFIXES, POD_IPS, POD_IP];

/// Who writes pods' statuses by right: the kubelet, and the API server when it evicts or binds.
const KUBELET: &str = "kubelet";

/// Of a value as it is shown.
const MOST_SHOWN: usize = 256;

/// What a pod says of addresses beside its status; `None` where it says nothing.
pub(super) fn marks(pod: &api::Pod) -> Option<Marks> {
    let mut marks = Marks::default();
    let mut keys: Vec<&'static str> = FAMILY.into_iter().filter(|key| has(pod, key)).collect();
    if PLUGINS.iter().any(|key| has(pod, key)) && !annotated_as_shown(pod) {
        keys.extend(PLUGINS.into_iter().filter(|key| has(pod, key)));
    }
    let fields = pod.metadata.managed_fields.as_deref().unwrap_or_default();
    let status = |entry: &&ManagedFieldsEntry| {
        let fields = entry.fields_v1.as_ref().map(|fields| &fields.0["f:status"]);
        fields.is_some_and(|f| !f["f:podIP"].is_null() || !f["f:podIPs"].is_null())
    };
    marks.status_writer = newest(fields.iter().filter(status)).filter(|w| &*w.manager != KUBELET);
    if keys.is_empty() && marks.status_writer.is_none() {
        return None;
    }
    marks.created = pod.metadata.creation_timestamp.as_ref().map(|time| time.0);
    for key in keys {
        let field = format!("f:{key}");
        let wrote = |entry: &&ManagedFieldsEntry| {
            let fields = entry.fields_v1.as_ref();
            let fields = fields.map(|fields| &fields.0["f:metadata"]["f:annotations"][&*field]);
            fields.is_some_and(|field| !matches!(field, Value::Null))
        };
        let writer = newest(fields.iter().filter(wrote));
        let value = printable(text(pod, key).unwrap_or_default(), MOST_SHOWN).into();
        marks.annotations.push(Mark { key, value, writer });
    }
    let Parsed { value, rejections } = parse::asked_addresses(pod);
    marks.asked = value;
    marks.malformed = rejections;
    marks.malformed.extend(malformed(pod));
    Some(marks)
}

/// A pod, read even where it has no node yet, or no uid any more: whoever cleans a dump up takes the
/// uid out first.
pub(super) fn read(pod: &api::Pod) -> Result<Parsed<Pod>, Rejection> {
    let placed = pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some());
    let known = pod.metadata.uid.as_ref().is_some_and(|uid| !uid.is_empty());
    if placed && known {
        return parse::pod(pod);
    }
    let mut filled = pod.clone();
    if !placed {
        filled.spec.get_or_insert_default().node_name = Some("-".into());
    }
    if !known {
        filled.metadata.uid = Some("-".into());
    }
    let mut parsed = parse::pod(&filled)?;
    if !placed {
        parsed.value.node = NodeName("".into());
    }
    if !known {
        parsed.value.uid = Uid(parsed.value.key.to_string().into());
    }
    Ok(parsed)
}

/// What of the annotations of the family cannot be read.
fn malformed(pod: &api::Pod) -> Vec<Rejection> {
    let rejections = read(pod).map(|parsed| parsed.rejections).unwrap_or_default();
    rejections.into_iter().filter(|rejection| KEYS.contains(&rejection.field)).collect()
}

/// Whether the CNI plugin's annotations and the status name the same addresses, as texts: what differs
/// is parsed and judged later.
fn annotated_as_shown(pod: &api::Pod) -> bool {
    let annotated = text(pod, POD_IPS).or_else(|| text(pod, POD_IP)).unwrap_or_default();
    if annotated.is_empty() {
        return true;
    }
    let Some(status) = &pod.status else { return false };
    let shown: Vec<&str> = match status.pod_ips.as_deref() {
        Some(ips @ [_, ..]) => ips.iter().map(|ip| &*ip.ip).collect(),
        _ => status.pod_ip.iter().map(String::as_str).collect(),
    };
    let host = |text: &'_ str| -> String {
        let text = text.strip_suffix("/32").or_else(|| text.strip_suffix("/128")).unwrap_or(text);
        text.to_owned()
    };
    // `podIP` is the first of `podIPs`, in either place.
    text(pod, POD_IP).is_none_or(|ip| ip.is_empty() || shown.contains(&&*host(ip)))
        && annotated.split(',').map(host).all(|address| shown.contains(&&*address))
}

fn has(pod: &api::Pod, key: &str) -> bool {
    text(pod, key).is_some_and(|text| !text.is_empty())
}

fn text<'a>(pod: &'a api::Pod, key: &str) -> Option<&'a str> {
    pod.metadata.annotations.as_ref()?.get(key).map(String::as_str)
}

/// The last of those who wrote.
fn newest<'a>(entries: impl Iterator<Item = &'a ManagedFieldsEntry>) -> Option<Writer> {
    let entry = entries.max_by_key(|entry| entry.time.as_ref().map(|time| time.0))?;
    let text = |text: &Option<String>| printable(text.as_deref().unwrap_or("-"), 128).into();
    let subresource = entry.subresource.as_deref().filter(|text| !text.is_empty());
    Some(Writer {
        manager: text(&entry.manager),
        operation: text(&entry.operation),
        subresource: subresource.map(|text| printable(text, 64).into()),
        time: entry.time.as_ref().map(|time| time.0),
    })
}

#[cfg(test)]
mod tests;
