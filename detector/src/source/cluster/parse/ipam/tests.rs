//! Pools and blocks as Calico writes them, and as nobody should.

use detector_core::workload::NodeName;
use serde_json::json;

use super::*;

fn object(kind: &str, name: &str, spec: &Value) -> DynamicObject {
    serde_json::from_value(json!({
        "apiVersion": "crd.projectcalico.org/v1", "kind": kind,
        "metadata": {"name": name}, "spec": spec,
    }))
    .unwrap()
}

fn cidr(text: &str) -> Prefix {
    prefix(text).unwrap()
}

/// What is read of a block 10.0.0.0/30.
fn parsed(allocations: &Value, attributes: &Value) -> Parsed<Option<Block>> {
    let spec = json!({
        "cidr": "10.0.0.0/30", "affinity": "host:n1",
        "allocations": allocations, "attributes": attributes, "unallocated": [], "deleted": false,
    });
    block(&object("IPAMBlock", "10-0-0-0-30", &spec), cidr("10.0.0.0/30")).unwrap()
}

/// What is read of one attribute, and how much of it is refused.
fn of_attribute(attribute: &Value) -> (Option<Allocation>, Vec<String>) {
    let Parsed { value, rejections } = parsed(&json!([null, 0, null, null]), &json!([attribute]));
    let block = value.unwrap();
    let told = rejections.iter().map(Rejection::to_string).collect();
    (block.allocation("10.0.0.1".parse().unwrap()).cloned(), told)
}

fn pod(namespace: &str, name: &str, node: Option<&str>) -> PodHolder {
    let node = node.map(|node| NodeName(node.into()));
    PodHolder { key: PodKey::new(namespace, name).unwrap(), node }
}

#[test]
fn a_block_says_who_has_which_address() {
    let attributes = json!([
        {
            "handle_id": "k8s-pod-network.0123",
            "secondary": {
                "pod": "cart-0", "namespace": "shop", "node": "n2",
                "timestamp": "2026-01-02 03:04:05 +0000 UTC",
            },
        },
        {"handle_id": "vxlan-tunnel-addr-n1", "secondary": {"node": "n1", "type": "vxlanTunnelAddress"}},
        {"handle_id": "free", "secondary": {"pod": "gone", "namespace": "shop"}, "releasedAt": "2026-01-02T03:04:05Z"},
    ]);
    let Parsed { value, rejections } = parsed(&json!([1, 2, null, 0]), &attributes);
    let block = value.unwrap();
    assert_eq!(rejections, []);
    assert_eq!((block.cidr, block.affinity), (cidr("10.0.0.0/30"), Some(NodeName("n1".into()))));
    let tunnel =
        Allocation::Node { node: NodeName("n1".into()), kind: "vxlanTunnelAddress".into() };
    let owner = Allocation::Pod { owner: pod("shop", "cart-0", Some("n2")), heir: None };
    let address = |last| IpAddr::from([10, 0, 0, last]);
    assert_eq!(block.allocations, [(address(0), tunnel), (address(3), owner)]);
}

#[test]
fn addresses_of_every_family_are_counted_from_the_blocks_own() {
    let allocations: Vec<Value> =
        (0..64).map(|i| if i == 63 { json!(0) } else { json!(null) }).collect();
    let spec = json!({
        "cidr": "fd00::40/122", "allocations": allocations, "attributes": [{"handle_id": "h"}],
    });
    let name = "fd00---40-122";
    let block =
        block(&object("IPAMBlock", name, &spec), cidr("fd00::40/122")).unwrap().value.unwrap();
    assert_eq!(block.affinity, None);
    let last: IpAddr = "fd00::7f".parse().unwrap();
    assert_eq!(block.allocations, [(last, Allocation::Other("h".into()))]);
    assert!(block.allocation(last).is_some());
}

#[test]
fn each_kind_of_owner_is_known_by_its_attributes() {
    let owner = || pod("shop", "vm-a", Some("n1"));
    let secondary = json!({"pod": "vm-a", "namespace": "shop", "node": "n1"});
    let cases = [
        (
            json!({
                "handle_id": "h", "secondary": secondary,
                "alternateOwnerAttrs": {"pod": "vm-b", "namespace": "shop", "node": "n2"},
            }),
            Some(Allocation::Pod { owner: owner(), heir: Some(pod("shop", "vm-b", Some("n2"))) }),
        ),
        (
            json!({"handle_id": "h", "secondary": secondary, "alternateOwnerAttrs": {}}),
            Some(Allocation::Pod { owner: owner(), heir: None }),
        ),
        // Old versions did not write the node.
        (
            json!({"handle_id": "h", "secondary": {"pod": "vm-a", "namespace": "shop"}}),
            Some(Allocation::Pod { owner: pod("shop", "vm-a", None), heir: None }),
        ),
        (
            json!({
                "handle_id": "lb-0123",
                "secondary": {"service": "cart", "namespace": "shop", "type": "LoadBalancer"},
            }),
            Some(Allocation::Service(ServiceKey::new("shop", "cart").unwrap())),
        ),
        (
            json!({"handle_id": "windows-reserved-ipam-handle", "secondary": {"note": "reserved"}}),
            Some(Allocation::Other("windows-reserved-ipam-handle".into())),
        ),
        (json!({"handle_id": "a", "secondary": null}), Some(Allocation::Other("a".into()))),
        (json!({}), Some(Allocation::Other("without a handle".into()))),
        (json!({"releasedAt": "2026-01-02T03:04:05Z"}), None),
    ];
    for (attribute, expected) in cases {
        assert_eq!(of_attribute(&attribute), (expected, vec![]), "{attribute}");
    }
}

#[test]
fn a_record_that_cannot_be_read_leaves_its_address_taken() {
    let other = |handle: &str| Some(Allocation::Other(handle.into()));
    let secondary = "ipamblock 10-0-0-0-30: spec.attributes.secondary is malformed: ";
    let cases = [
        (
            json!({"handle_id": "h", "secondary": {"pod": "a\nb", "namespace": "shop"}}),
            other("h"),
            format!("{secondary}\"shop/a\\nb\""),
        ),
        (
            json!({"handle_id": "h", "secondary": {"pod": "a"}}),
            other("h"),
            format!("{secondary}\"/a\""),
        ),
        (
            json!({"handle_id": "h", "secondary": {"service": "A", "namespace": "shop"}}),
            other("h"),
            format!("{secondary}\"shop/A\""),
        ),
        (
            json!({"handle_id": "h", "secondary": {"type": "ipipTunnelAddress", "node": "a b"}}),
            other("h"),
            format!("{secondary}\"a b\""),
        ),
        (
            json!({"handle_id": 7}),
            other(UNREADABLE),
            "ipamblock 10-0-0-0-30: spec.attributes.handle_id is malformed: \"7\"".into(),
        ),
    ];
    for (attribute, expected, told) in cases {
        assert_eq!(of_attribute(&attribute), (expected, vec![told]), "{attribute}");
    }
    let attributes = json!([{"handle_id": "h"}]);
    let Parsed { value, rejections } = parsed(&json!([-1, 1, "x", 0]), &attributes);
    let taken: Vec<_> = value.unwrap().allocations.into_iter().map(|(_, a)| Some(a)).collect();
    assert_eq!(taken, [other(UNREADABLE), other(UNREADABLE), other(UNREADABLE), other("h")]);
    let told: Vec<String> = rejections.iter().map(Rejection::to_string).collect();
    let out = |value: &str| {
        format!("ipamblock 10-0-0-0-30: spec.allocations is out of range: \"{value}\"")
    };
    assert_eq!(told, [out("[0]: -1"), out("[1]: 1"), out("[2]: x")]);
    // A malformed heir is no heir, and costs nothing else.
    let attribute = json!({
        "handle_id": "h", "secondary": {"pod": "a", "namespace": "shop"},
        "alternateOwnerAttrs": {"pod": "B", "namespace": "shop"},
    });
    let (taken, told) = of_attribute(&attribute);
    assert_eq!(taken, Some(Allocation::Pod { owner: pod("shop", "a", None), heir: None }));
    assert_eq!(told.len(), 1);
}

#[test]
fn what_is_not_the_block_that_was_asked_for_is_refused() {
    let nulls = |count: usize| vec![Value::Null; count];
    let whole = json!({"cidr": "10.0.0.0/30", "allocations": nulls(4), "attributes": []});
    let with = |key: &str, value: Value| {
        let mut spec = whole.clone();
        spec[key] = value;
        spec
    };
    let read = |spec: &Value, asked: &str| block(&object("IPAMBlock", "b", spec), cidr(asked));
    assert!(read(&whole, "10.0.0.0/30").is_ok());
    let cases = [
        (whole.clone(), "10.0.0.4/30", "spec.cidr", Reason::AnotherBlock),
        (whole.clone(), "10.0.0.0/29", "spec.cidr", Reason::AnotherBlock),
        (with("cidr", json!(null)), "10.0.0.0/30", "spec.cidr", Reason::Missing),
        (with("cidr", json!("x\ny")), "10.0.0.0/30", "spec.cidr", Reason::NotAnAddress),
        (with("cidr", json!(7)), "10.0.0.0/30", "spec.cidr", Reason::NotAnAddress),
        (with("cidr", json!("0.0.0.0/0")), "0.0.0.0/0", "spec.cidr", Reason::TooMany),
        (with("cidr", json!("::/0")), "::/0", "spec.cidr", Reason::TooMany),
        (with("cidr", json!("10.0.0.0/15")), "10.0.0.0/15", "spec.cidr", Reason::TooMany),
        (
            with("allocations", json!(nulls(3))),
            "10.0.0.0/30",
            "spec.allocations",
            Reason::WrongLength,
        ),
        (
            with("allocations", json!(nulls(5))),
            "10.0.0.0/30",
            "spec.allocations",
            Reason::WrongLength,
        ),
        (with("allocations", json!(null)), "10.0.0.0/30", "spec.allocations", Reason::Missing),
        (with("attributes", json!({})), "10.0.0.0/30", "spec.attributes", Reason::Malformed),
    ];
    for (spec, asked, field, reason) in cases {
        let rejection = read(&spec, asked).unwrap_err();
        assert_eq!((rejection.field, rejection.reason), (field, reason), "{spec}");
        assert!(!rejection.to_string().contains('\n'));
    }
    let deleted = read(&with("deleted", json!(true)), "10.0.0.0/30").unwrap();
    assert_eq!(deleted, Parsed { value: None, rejections: vec![] });
    let nothing = serde_json::from_value(json!({"metadata": {}})).unwrap();
    assert_eq!(block(&nothing, cidr("10.0.0.0/30")).unwrap_err().reason, Reason::Missing);
}

#[test]
fn only_a_host_is_an_affinity() {
    let affinity = |text: Value| {
        let spec = json!({
            "cidr": "10.0.0.1/32", "affinity": text, "allocations": [null], "attributes": [],
        });
        let parsed = block(&object("IPAMBlock", "b", &spec), cidr("10.0.0.1/32")).unwrap();
        (parsed.value.unwrap().affinity.map(|node| node.to_string()), parsed.rejections.len())
    };
    assert_eq!(affinity(json!("host:n1")), (Some("n1".into()), 0));
    assert_eq!(affinity(json!("virtual:load-balancer")), (None, 0));
    assert_eq!(affinity(json!(null)), (None, 0));
    assert_eq!(affinity(json!("host:")), (None, 1));
    assert_eq!(affinity(json!("host:a b")), (None, 1));
    assert_eq!(affinity(json!(7)), (None, 1));
}

#[test]
fn a_pool_is_its_prefix_its_blocks_and_how_its_routes_spread() {
    let read = |spec: &Value| pool(&object("IPPool", "p", spec));
    let spread = |spec: Value| {
        let Parsed { value, rejections } = read(&spec).unwrap();
        assert_eq!(&*value.name, "p");
        (value.cidr.to_string(), value.block_length, value.spread, rejections.len())
    };
    let v4 = "10.244.0.0/16".to_owned();
    let (bgp, contained) = (Spread::Bgp, Spread::Contained);
    assert_eq!(spread(json!({"cidr": v4})), (v4.clone(), 26, bgp, 0));
    let spec = json!({"cidr": v4, "blockSize": 24, "ipipMode": "Always", "vxlanMode": "Never"});
    assert_eq!(spread(spec), (v4.clone(), 24, bgp, 0));
    for mode in ["Always", "CrossSubnet", "crosssubnet"] {
        let spec = json!({"cidr": v4, "blockSize": 0, "vxlanMode": mode});
        assert_eq!(spread(spec), (v4.clone(), 26, contained, 0));
    }
    let spec = json!({"cidr": "fd00::/48", "disableBGPExport": true});
    assert_eq!(spread(spec), ("fd00::/48".into(), 122, contained, 0));
    assert_eq!(spread(json!({"cidr": v4, "vxlanMode": "Maybe"})), (v4.clone(), 26, bgp, 1));

    let wrong = |spec: Value| {
        let rejection = read(&spec).unwrap_err();
        (rejection.field, rejection.reason)
    };
    let size = ("spec.blockSize", Reason::OutOfRange);
    assert_eq!(wrong(json!({"cidr": v4, "blockSize": 15})), size);
    assert_eq!(wrong(json!({"cidr": v4, "blockSize": 33})), size);
    assert_eq!(wrong(json!({"cidr": v4, "blockSize": -26})), size);
    assert_eq!(wrong(json!({"cidr": v4, "blockSize": "26"})), size);
    assert_eq!(wrong(json!({"cidr": v4, "blockSize": u64::MAX})), size);
    assert_eq!(wrong(json!({"cidr": "fd00::/48", "blockSize": 129})), size);
    assert_eq!(wrong(json!({})), ("spec.cidr", Reason::Missing));
    assert_eq!(wrong(json!({"cidr": "10.0.0.0/33"})), ("spec.cidr", Reason::NotAnAddress));
}
