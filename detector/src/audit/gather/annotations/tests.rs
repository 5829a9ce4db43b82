//! Which pods are marked, and by whom.

use serde_json::{Value, json};

use super::*;

fn pod(annotations: &Value, status: &Value) -> api::Pod {
    let object = json!({
        "metadata": { "namespace": "shop", "name": "db", "uid": "1", "annotations": annotations },
        "spec": { "nodeName": "n", "containers": [] },
        "status": status,
    });
    serde_json::from_value(object).unwrap()
}

#[test]
fn what_the_cni_plugin_writes_to_every_pod_marks_none() {
    let status =
        json!({ "podIP": "10.0.0.1", "podIPs": [{ "ip": "10.0.0.1" }, { "ip": "fd00::1" }] });
    for annotations in [
        json!({}),
        json!({ POD_IP: "10.0.0.1/32", POD_IPS: "10.0.0.1/32,fd00::1/128" }),
        json!({ POD_IP: "10.0.0.1", POD_IPS: "10.0.0.1,fd00::1" }),
        json!({ POD_IP: "", POD_IPS: "" }),
        json!({ "other": "annotation", FLOATING_IPS: "" }),
    ] {
        assert!(marks(&pod(&annotations, &status)).is_none(), "{annotations}");
    }
    for annotations in [
        json!({ POD_IP: "10.0.0.2/32" }),
        json!({ POD_IPS: "10.0.0.1/32,10.0.0.2/32" }),
        json!({ POD_IPS: "10.0.0.0/8" }),
        json!({ POD_IP: "10.0.0.3/32", POD_IPS: "10.0.0.1/32" }),
        json!({ FLOATING_IPS: "[]" }),
        json!({ SOURCE_PREFIXES: "no list" }),
    ] {
        assert!(marks(&pod(&annotations, &status)).is_some(), "{annotations}");
    }
}

#[test]
fn the_last_to_write_a_field_is_named() {
    let key = format!("f:{FLOATING_IPS}");
    let entry = |manager: &str, time: &str, fields: Value| {
        json!({
            "manager": manager, "operation": "Update", "time": time, "fieldsType": "FieldsV1",
            "fieldsV1": fields,
        })
    };
    let annotation = || json!({ "f:metadata": { "f:annotations": { key.clone(): {} } } });
    let mut object = pod(&json!({ FLOATING_IPS: "[\"10.0.0.9\"]" }), &json!({}));
    let fields = json!([
        entry("first", "2026-01-01T00:00:00Z", annotation()),
        entry("kubectl-edit\n", "2026-01-02T00:00:00Z", annotation()),
        entry("later", "2026-01-03T00:00:00Z", json!({ "f:metadata": { "f:labels": {} } })),
    ]);
    object.metadata.managed_fields = serde_json::from_value(fields).unwrap();
    let marks = marks(&object).unwrap();
    let writer = marks.annotations[0].writer.as_ref().unwrap();
    assert_eq!((&*writer.manager, &*writer.operation), ("kubectl-edit\\n", "Update"));
    assert_eq!(writer.time.unwrap().to_string(), "2026-01-02T00:00:00Z");
    assert_eq!(marks.status_writer, None);
}

#[test]
fn a_status_that_no_kubelet_wrote_marks_its_pod() {
    let written = |manager: &str| {
        let mut object = pod(&json!({}), &json!({ "podIP": "10.0.0.1" }));
        let fields = json!([{
            "manager": manager, "operation": "Update", "subresource": "status", "fieldsType": "FieldsV1",
            "fieldsV1": { "f:status": { "f:podIP": {} } },
        }]);
        object.metadata.managed_fields = serde_json::from_value(fields).unwrap();
        marks(&object).and_then(|marks| marks.status_writer).map(|writer| writer.manager)
    };
    assert_eq!(written("kubelet"), None);
    assert_eq!(written("kubectl-patch").as_deref(), Some("kubectl-patch"));
}

#[test]
fn a_pod_without_a_node_is_read_for_what_it_asks() {
    let mut object = pod(&json!({ ADDRESSES: "[\"10.0.0.7\", \"no\"]" }), &json!({}));
    object.spec.as_mut().unwrap().node_name = None;
    let marks = marks(&object).unwrap();
    assert_eq!(marks.asked, ["10.0.0.7".parse::<std::net::IpAddr>().unwrap()]);
    assert_eq!(marks.malformed.len(), 1);
    assert_eq!(&*read(&object).unwrap().value.node.0, "");
}
