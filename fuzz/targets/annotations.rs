//! Any text as each of a pod's annotations, and as its addresses: a tenant can write all of them.

#![no_main]

use detector::source::cluster::parse;
use detector_fuzz::{MOST, check_rejections};
use k8s_openapi::api::core::v1::{Pod, PodIP, PodSpec, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use libfuzzer_sys::fuzz_target;

const KEYS: [&str; 6] =
    ["containerID", "floatingIPs", "podIP", "podIPs", "allowedSourcePrefixes", "ipAddrsNoIpam"];

fuzz_target!(|data: &[u8]| {
    let text = String::from_utf8_lossy(data);
    // Each alone, since `podIPs` hides `podIP`, and all together.
    for keys in KEYS.chunks(1).chain([&KEYS[..]]) {
        read(keys, &text);
    }
});

fn read(keys: &[&str], text: &str) {
    let annotation = |key: &&str| (format!("cni.projectcalico.org/{key}"), text.to_owned());
    let pod = Pod {
        metadata: ObjectMeta {
            namespace: Some("shop".into()),
            name: Some("cart-0".into()),
            uid: Some("6a1f".into()),
            annotations: Some(keys.iter().map(annotation).collect()),
            ..ObjectMeta::default()
        },
        spec: Some(PodSpec {
            node_name: Some("worker-1".into()),
            service_account_name: Some("cart".into()),
            ..PodSpec::default()
        }),
        status: Some(PodStatus {
            pod_ips: Some(vec![PodIP { ip: text.into() }]),
            ..PodStatus::default()
        }),
    };
    let parsed = parse::pod(&pod).expect("the pod has all that it needs");
    check_rejections(&parsed.rejections);
    let pod = parsed.value;
    let lengths = [
        pod.addresses.len(),
        pod.annotated_addresses.len(),
        pod.floating_addresses.len(),
        pod.annotated_prefixes.len(),
        pod.source_prefixes.len(),
        pod.bypassing_addresses.len(),
    ];
    assert!(lengths.iter().all(|length| *length <= MOST), "{lengths:?}");
    assert!(pod.annotated_prefixes.iter().all(|prefix| !prefix.is_host()));
    assert!(pod.sandbox.is_none_or(|sandbox| sandbox.len() <= 128));
}
