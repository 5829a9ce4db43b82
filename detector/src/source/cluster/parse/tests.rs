//! Objects as the API server gives them, and as an attacker would have them.

use serde_json::{Value, json};

use super::reader::MOST_ENTRIES;
use super::*;

/// A pod of worker-1 with these annotations and this status.
fn object(annotations: &Value, status: &Value) -> api::Pod {
    serde_json::from_value(json!({
        "metadata": {
            "namespace": "shop", "name": "cart-0", "uid": "6a1f", "annotations": annotations,
        },
        "spec": {"nodeName": "worker-1", "serviceAccountName": "cart", "containers": []},
        "status": status,
    }))
    .unwrap()
}

fn parsed(annotations: &Value, status: &Value) -> Parsed<Pod> {
    pod(&object(annotations, status)).unwrap()
}

fn addresses(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

/// What is taken of `floatingIPs`, and why the rest is not.
fn floating(annotation: &str) -> (Vec<IpAddr>, Vec<(Reason, String)>) {
    let parsed = parsed(&json!({ FLOATING_IPS: annotation }), &json!({}));
    let why = |rejection: Rejection| {
        assert_eq!(rejection.field, FLOATING_IPS);
        assert_eq!(&*rejection.object, "pod shop/cart-0");
        (rejection.reason, rejection.value.into_string())
    };
    (parsed.value.floating_addresses, parsed.rejections.into_iter().map(why).collect())
}

#[test]
fn a_pod_is_what_it_says() {
    let parsed = parsed(
        &json!({
            FLOATING_IPS: r#"["192.0.2.1", "2001:db8::1"]"#,
            POD_IPS: "10.244.1.5/32,fd00::5/128",
            POD_IP: "10.244.1.99/32",
            CONTAINER_ID: "0123abcd",
        }),
        &json!({
            "phase": "Running", "podIP": "10.244.1.5",
            "podIPs": [{"ip": "10.244.1.5"}, {"ip": "fd00::5"}],
        }),
    );
    let value = Pod {
        key: PodKey::new("shop", "cart-0").unwrap(),
        uid: Uid("6a1f".into()),
        node: NodeName("worker-1".into()),
        service_account: "cart".into(),
        host_network: false,
        finished: false,
        terminating: false,
        addresses: addresses(&["10.244.1.5", "fd00::5"]),
        annotated_addresses: addresses(&["10.244.1.5", "fd00::5"]),
        floating_addresses: addresses(&["192.0.2.1", "2001:db8::1"]),
        annotated_prefixes: vec![],
        source_prefixes: vec![],
        bypassing_addresses: vec![],
        sandbox: Some("0123abcd".into()),
    };
    assert_eq!(parsed, Parsed { value, rejections: vec![] });
}

#[test]
fn a_bare_pod_has_nothing() {
    let Parsed { value, rejections } = parsed(&json!({}), &json!({}));
    assert!(value.addresses.is_empty() && value.annotated_addresses.is_empty());
    assert!(value.floating_addresses.is_empty() && value.sandbox.is_none());
    assert!(!value.finished && !value.terminating && rejections.is_empty());
}

#[test]
fn singular_fields_stand_in_for_plural_ones() {
    let pod = parsed(&json!({POD_IP: "10.0.0.2", POD_IPS: ""}), &json!({"podIP": "10.0.0.1"}));
    assert_eq!(pod.value.addresses, addresses(&["10.0.0.1"]));
    assert_eq!(pod.value.annotated_addresses, addresses(&["10.0.0.2"]));
    let pod = parsed(&json!({}), &json!({"podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.9"}]}));
    assert_eq!(pod.value.addresses, addresses(&["10.0.0.9"]));
    // The CNI plugin empties its annotations when the pod has lost its address.
    let pod = parsed(&json!({POD_IP: "", POD_IPS: "", CONTAINER_ID: ""}), &json!({}));
    assert_eq!((pod.value.annotated_addresses, pod.rejections), (vec![], vec![]));
}

#[test]
fn phase_deletion_and_host_network_are_seen() {
    for (phase, finished) in
        [("Pending", false), ("Running", false), ("Succeeded", true), ("Failed", true)]
    {
        assert_eq!(parsed(&json!({}), &json!({"phase": phase})).value.finished, finished);
    }
    let mut object = object(&json!({}), &json!({}));
    object.spec.as_mut().unwrap().host_network = Some(true);
    object.metadata.deletion_timestamp =
        serde_json::from_value(json!("2026-01-02T03:04:05Z")).unwrap();
    let pod = pod(&object).unwrap().value;
    assert!(pod.host_network && pod.terminating);
}

#[test]
fn without_identity_there_is_no_pod() {
    type Spoil = fn(&mut api::Pod);
    let cases: [(Spoil, &str, Reason); 6] = [
        (|pod| pod.metadata.uid = None, "metadata.uid", Reason::Missing),
        (|pod| pod.metadata.uid = Some("a\nb".into()), "metadata.uid", Reason::Malformed),
        (|pod| pod.metadata.name = None, "metadata.name", Reason::Malformed),
        (|pod| pod.metadata.name = Some("a\nb".into()), "metadata.name", Reason::Malformed),
        (|pod| pod.spec = None, "spec.nodeName", Reason::Missing),
        (
            |pod| pod.spec.as_mut().unwrap().node_name = Some(String::new()),
            "spec.nodeName",
            Reason::Missing,
        ),
    ];
    for (spoil, field, reason) in cases {
        let mut object = object(&json!({}), &json!({}));
        spoil(&mut object);
        let rejection = pod(&object).unwrap_err();
        assert_eq!((rejection.field, rejection.reason), (field, reason));
        assert!(!rejection.to_string().contains('\n'));
    }
}

#[test]
fn floating_ips_are_a_json_list_of_strings() {
    assert_eq!(floating("[]"), (vec![], vec![]));
    assert_eq!(floating("null"), (vec![], vec![]));
    assert_eq!(floating(r#" [ "192.0.2.1" ] "#), (addresses(&["192.0.2.1"]), vec![]));
    assert_eq!(floating(r#"["\u0031.1.1.1"]"#), (addresses(&["1.1.1.1"]), vec![]));
    for text in
        ["", "192.0.2.1", r#""192.0.2.1""#, "{}", r#"["192.0.2.1""#, r#"["1.1.1.1"] x"#, "7"]
    {
        let expected = vec![(Reason::NotAJsonList, text.to_owned())];
        assert_eq!(floating(text), (vec![], expected), "{text}");
    }
    // Deep nesting ends in an error, not in a stack overflow.
    let (taken, why) = floating(&"[".repeat(100_000));
    assert_eq!((taken, why[0].0), (vec![], Reason::NotAJsonList));
}

#[test]
fn malformed_entries_do_not_hide_well_formed_ones() {
    let cases = [
        (r#""192.0.2.1/32""#, Reason::NotAnAddress, "192.0.2.1/32"),
        (r#"" 192.0.2.1""#, Reason::NotAnAddress, " 192.0.2.1"),
        (r#""192.0.2.1\nERROR""#, Reason::NotAnAddress, "192.0.2.1\\nERROR"),
        (r#""192.0.2""#, Reason::NotAnAddress, "192.0.2"),
        (r#""3221225985""#, Reason::NotAnAddress, "3221225985"),
        (r#""0xc0.0.2.1""#, Reason::NotAnAddress, "0xc0.0.2.1"),
        (r#""""#, Reason::NotAnAddress, ""),
        ("null", Reason::NotAnAddress, ""),
        (r#""192.0.02.1""#, Reason::LeadingZeros, "192.0.02.1"),
        (r#""::ffff:192.0.2.001""#, Reason::LeadingZeros, "::ffff:192.0.2.001"),
        (r#""fe80::1%eth0""#, Reason::Zone, "fe80::1%eth0"),
        ("7", Reason::NotAString, "7"),
        (r#"["192.0.2.9"]"#, Reason::NotAString, r#"["192.0.2.9"]"#),
    ];
    for (entry, reason, value) in cases {
        let (taken, why) = floating(&format!(r#"["192.0.2.7", {entry}, "192.0.2.8"]"#));
        assert_eq!(taken, addresses(&["192.0.2.7", "192.0.2.8"]), "{entry}");
        assert_eq!(why, [(reason, value.to_owned())]);
    }
}

#[test]
fn one_address_written_in_many_ways_is_one() {
    let (taken, why) = floating(
        r#"["192.0.2.1", "::ffff:192.0.2.1", "::FFFF:c000:201", "2001:db8::1", "2001:DB8:0:0::1"]"#,
    );
    assert_eq!((taken, why), (addresses(&["192.0.2.1", "2001:db8::1"]), vec![]));
}

#[test]
fn long_lists_are_read_so_far_and_no_further() {
    let list = |entry: fn(usize) -> String| {
        let entries: Vec<String> = (0..1000).map(entry).collect();
        serde_json::to_string(&entries).unwrap()
    };
    let (taken, why) = floating(&list(|i| format!("10.0.{}.{}", i / 250, i % 250)));
    assert_eq!(taken.len(), MOST_ENTRIES);
    assert_eq!(why, [(Reason::TooMany, "10.0.1.6".to_owned())]);
    let (taken, why) = floating(&list(|i| format!("nonsense {i}")));
    assert_eq!((taken.len(), why.len()), (0, MOST_ENTRIES));
    let long = floating(&format!("[\"{}\"]", "1".repeat(100_000))).1.remove(0).1;
    assert!(long.len() < 100, "{long}");
}

#[test]
fn pod_ips_are_hosts_with_or_without_their_length() {
    let annotated = |text: &str| {
        let parsed = parsed(&json!({ POD_IPS: text }), &json!({}));
        let reasons: Vec<_> = parsed.rejections.iter().map(|r| r.reason).collect();
        (parsed.value.annotated_addresses, reasons)
    };
    let good = "10.0.0.1/32,10.0.0.2,fd00::1/128,fd00::2,::ffff:10.0.0.3/128";
    let expected = addresses(&["10.0.0.1", "10.0.0.2", "fd00::1", "fd00::2", "10.0.0.3"]);
    assert_eq!(annotated(good), (expected, vec![]));
    let cases = [
        ("10.0.0.1/33", Reason::NotAnAddress),
        ("10.0.0.1/", Reason::NotAnAddress),
        ("10.0.0.1/+32", Reason::NotAnAddress),
        ("10.0.0.1/32/32", Reason::NotAnAddress),
        (" 10.0.0.1", Reason::NotAnAddress),
        ("010.0.0.1/32", Reason::LeadingZeros),
        ("a\nb", Reason::NotAnAddress),
    ];
    for (entry, reason) in cases {
        let (taken, reasons) = annotated(&format!("10.0.0.9,{entry}"));
        assert_eq!((taken, reasons), (addresses(&["10.0.0.9"]), vec![reason]), "{entry}");
    }
}

#[test]
fn pod_ips_that_are_prefixes_are_what_felix_would_route() {
    let annotated = |key: &str, text: &str| {
        let Parsed { value, rejections } = parsed(&json!({ key: text }), &json!({}));
        let prefixes = value.annotated_prefixes.iter().map(ToString::to_string).collect::<Vec<_>>();
        (value.annotated_addresses, prefixes.join(" "), rejections.len())
    };
    let host = addresses(&["10.0.0.9"]);
    let cases = [
        ("10.0.0.0/8", "10.0.0.0/8"),
        ("10.1.2.3/8", "10.0.0.0/8"),
        ("0.0.0.0/0", "0.0.0.0/0"),
        ("fd00::1/64", "fd00::/64"),
        // As Go writes them: `IPNet.String` shows the IPv4 prefix in an IPv4-mapped one, unless
        // part of what makes it one is masked away.
        ("::ffff:10.0.0.1/104", "10.0.0.0/8"),
        ("::ffff:10.0.0.1/96", "0.0.0.0/0"),
        ("::ffff:10.0.0.1/95", "::fffe:0:0/95"),
        ("::ffff:10.0.0.1/64", "::/64"),
    ];
    for (entry, prefix) in cases {
        let expected = (host.clone(), prefix.to_owned(), 0);
        assert_eq!(annotated(POD_IPS, &format!("10.0.0.9/32,{entry}")), expected, "{entry}");
        assert_eq!(annotated(POD_IP, entry), (vec![], prefix.to_owned(), 0), "{entry}");
    }
    // The singular annotation is no list.
    assert_eq!(annotated(POD_IP, "10.0.0.1,10.0.0.2"), (vec![], String::new(), 1));
}

#[test]
fn source_prefixes_and_bypassing_addresses_are_json_lists() {
    let taken = |sources: &str, bypassing: &str| {
        let annotations = json!({SOURCE_PREFIXES: sources, ADDRESSES_WITHOUT_IPAM: bypassing});
        let Parsed { value, rejections } = parsed(&annotations, &json!({}));
        let prefixes: Vec<_> = value.source_prefixes.iter().map(ToString::to_string).collect();
        let why: Vec<_> = rejections.iter().map(|r| (r.field, r.reason)).collect();
        (prefixes, value.bypassing_addresses, why)
    };
    let of = |texts: &[&str]| texts.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(taken("", ""), (vec![], vec![], vec![]));
    assert_eq!(
        taken(r#"["10.1.2.3/8", "192.0.2.1", "fd00::/64"]"#, r#"["10.0.0.7", "fd00::7"]"#),
        (
            of(&["10.0.0.0/8", "192.0.2.1/32", "fd00::/64"]),
            addresses(&["10.0.0.7", "fd00::7"]),
            vec![]
        )
    );
    assert_eq!(
        taken(r#"["10.0.0.0/33", 7, "10.0.0.0/8"]"#, r#"["10.0.0.7/32", "10.0.0.8"]"#),
        (
            of(&["10.0.0.0/8"]),
            addresses(&["10.0.0.8"]),
            vec![
                (SOURCE_PREFIXES, Reason::NotAnAddress),
                (SOURCE_PREFIXES, Reason::NotAString),
                (ADDRESSES_WITHOUT_IPAM, Reason::NotAnAddress),
            ]
        )
    );
    let (_, _, why) = taken("10.0.0.0/8", "{}");
    assert_eq!(
        why,
        [(SOURCE_PREFIXES, Reason::NotAJsonList), (ADDRESSES_WITHOUT_IPAM, Reason::NotAJsonList)]
    );
}

#[test]
fn a_service_has_the_addresses_that_it_was_given_and_those_that_it_claims() {
    let parsed = |spec: &Value, status: &Value| {
        let metadata = json!({"namespace": "shop", "name": "cart"});
        let object = json!({"metadata": metadata, "spec": spec, "status": status});
        service(&serde_json::from_value(object).unwrap()).unwrap()
    };
    let Parsed { value, rejections } = parsed(
        &json!({
            "clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7", "fd00::7"],
            "externalIPs": ["192.0.2.1", "192.0.2.1", "nonsense"],
            "ports": [{"port": 80}, {"port": 80, "protocol": "UDP"}, {"port": 443}, {"port": 70000}],
        }),
        &json!({"loadBalancer": {"ingress": [{"ip": "198.51.100.1"}, {"hostname": "a.b"}]}}),
    );
    assert_eq!(value.key.to_string(), "shop/cart");
    assert_eq!(value.cluster_addresses, addresses(&["10.96.0.7", "fd00::7"]));
    assert_eq!(value.external_addresses, addresses(&["192.0.2.1"]));
    assert_eq!(value.balancer_addresses, addresses(&["198.51.100.1"]));
    assert_eq!(value.ports, [80, 443]);
    let told: Vec<String> = rejections.iter().map(Rejection::to_string).collect();
    assert_eq!(
        told,
        [
            "service shop/cart: spec.externalIPs is not an IP address: \"nonsense\"",
            "service shop/cart: spec.ports.port is out of range: \"70000\"",
        ]
    );
    // Headless, external, and from before there were plural fields.
    for (spec, expected) in [
        (json!({"clusterIP": "None", "clusterIPs": ["None"]}), &[][..]),
        (json!({"type": "ExternalName", "externalName": "a.b"}), &[]),
        (json!({"clusterIP": ""}), &[]),
        (json!({"clusterIP": "10.96.0.7"}), &["10.96.0.7"]),
    ] {
        let Parsed { value, rejections } = parsed(&spec, &json!({}));
        assert_eq!((value.cluster_addresses, rejections), (addresses(expected), vec![]), "{spec}");
    }
    assert_eq!(service(&api::Service::default()).unwrap_err().reason, Reason::Malformed);
}

#[test]
fn a_status_can_be_forged_too() {
    let status = json!({"podIPs": [{"ip": "010.0.0.1"}, {"ip": "10.0.0.2"}, {"ip": "x\ny"}]});
    let Parsed { value, rejections } = parsed(&json!({CONTAINER_ID: "a b"}), &status);
    assert_eq!(value.addresses, addresses(&["10.0.0.2"]));
    assert_eq!(value.sandbox, None);
    let told: Vec<String> = rejections.iter().map(Rejection::to_string).collect();
    assert_eq!(
        told,
        [
            "pod shop/cart-0: cni.projectcalico.org/containerID is malformed: \"a b\"",
            "pod shop/cart-0: status.podIPs has leading zeros: \"010.0.0.1\"",
            "pod shop/cart-0: status.podIPs is not an IP address: \"x\\ny\"",
        ]
    );
}

#[test]
fn a_node_has_its_own_and_its_tunnels_addresses() {
    let object: LeanNode = serde_json::from_value(json!({
        "metadata": {
            "name": "worker-1",
            "annotations": {
                "projectcalico.org/IPv4Address": "192.168.1.4/24",
                "projectcalico.org/IPv6Address": "2001:db8::4/64",
                "projectcalico.org/IPv4IPIPTunnelAddr": "10.244.1.0",
                "projectcalico.org/IPv4VXLANTunnelAddr": "none",
                "projectcalico.org/ASNumber": "64512",
            },
        },
        "spec": {"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24", "fd00:1::/64"]},
        "status": {"addresses": [
            {"type": "Hostname", "address": "worker-1"},
            {"type": "InternalIP", "address": "192.168.1.4"},
            {"type": "ExternalIP", "address": "203.0.113.4"},
        ]},
    }))
    .unwrap();
    let Parsed { value, rejections } = node(&object).unwrap();
    assert_eq!(&*value.name.0, "worker-1");
    assert_eq!(
        value.addresses,
        addresses(&["192.168.1.4", "203.0.113.4", "2001:db8::4", "10.244.1.0"])
    );
    let prefixes: Vec<String> = value.pod_prefixes.iter().map(ToString::to_string).collect();
    assert_eq!(prefixes, ["10.244.1.0/24", "fd00:1::/64"]);
    let told: Vec<String> = rejections.iter().map(Rejection::to_string).collect();
    assert_eq!(
        told,
        ["node worker-1: projectcalico.org/IPv4VXLANTunnelAddr is not an IP address: \"none\""]
    );
    assert_eq!(node(&LeanNode::default()).unwrap_err().reason, Reason::Missing);
}
