//! POST, PUT, PATCH, DELETE, and who may write what.

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions, WatchParams};
use serde_json::{Value, json};

use super::{Server, number, version};
use crate::{code, config_map, config_maps, pod, pods, raw, raw_typed, told};

fn typed<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

pub(super) async fn a_write_against_an_old_state_conflicts(server: &Server) {
    let api = config_maps(&server.client);
    let create = PostParams::default();
    let first: ConfigMap = api.create(&create, &typed(config_map("a", "1"))).await.unwrap();
    assert!(first.metadata.uid.is_some() && first.metadata.creation_timestamp.is_some());
    assert_eq!(code(api.create(&create, &typed(config_map("a", "2"))).await), 409);

    let elsewhere = json!({ "data": { "key": "elsewhere" } });
    let elsewhere = version(&server.patch("configmaps", "shop", "a", elsewhere).await);
    assert_eq!(code(api.replace("a", &create, &first).await), 409);
    let stale = first.metadata.resource_version.as_deref();
    let stale = json!({ "metadata": { "resourceVersion": stale }, "data": { "key": "3" } });
    assert_eq!(code(api.patch("a", &PatchParams::default(), &Patch::Merge(stale)).await), 409);

    let mut fresh = api.get("a").await.unwrap();
    assert_eq!(fresh.metadata.uid, first.metadata.uid);
    fresh.data.as_mut().unwrap().insert("key".to_owned(), "4".to_owned());
    let written = api.replace("a", &create, &fresh).await.unwrap();
    assert!(number(written.metadata.resource_version.as_deref()) > elsewhere);
    // What changes nothing makes no version.
    let same = api.replace("a", &create, &written).await.unwrap();
    assert_eq!(same.metadata.resource_version, written.metadata.resource_version);
}

pub(super) async fn objects_of_definitions_must_say_what_they_replace(server: &Server) {
    let felix = json!({
        "apiVersion": "crd.projectcalico.org/v1", "kind": "FelixConfiguration",
        "metadata": { "name": "default" }, "spec": { "floatingIPs": "Enabled" },
    });
    server.create(felix.clone()).await;
    let path = "/apis/crd.projectcalico.org/v1/felixconfigurations/default";
    assert_eq!(raw(&server.client, "PUT", path, &felix.to_string()).await.0, 422);
    let (code, mut read, _) = raw(&server.client, "GET", path, "").await;
    assert_eq!((code, &read["spec"]), (200, &felix["spec"]));
    read["spec"]["floatingIPs"] = json!("Disabled");
    assert_eq!(raw(&server.client, "PUT", path, &read.to_string()).await.0, 200);
    let (_, stored, _) = raw(&server.client, "GET", path, "").await;
    assert_eq!(stored["spec"]["floatingIPs"], "Disabled");
}

pub(super) async fn what_a_definition_does_not_describe_is_kept(server: &Server) {
    // Calico marks an address that nobody has by null.
    let spec = json!({
        "cidr": "10.244.1.0/30", "affinity": "host:n1",
        "allocations": [0, null, null, null], "unallocated": [1, 2, 3],
        "attributes": [{ "handle_id": "h", "secondary": { "pod": "a", "namespace": "shop" } }],
    });
    let block = json!({
        "apiVersion": "crd.projectcalico.org/v1", "kind": "IPAMBlock",
        "metadata": { "name": "10-244-1-0-30" }, "spec": spec,
    });
    assert_eq!(server.create(block).await["spec"], spec);
    let more = json!({ "spec": { "allocations": [0, 0, null, null] } });
    let patched = server.patch("ipamblocks", "", "10-244-1-0-30", more).await;
    assert_eq!(patched["spec"]["allocations"], json!([0, 0, null, null]));
    assert_eq!(patched["spec"]["cidr"], spec["cidr"]);
}

pub(super) async fn a_pod_and_its_status_are_written_apart(server: &Server) {
    let api = pods(&server.client);
    let params = PostParams::default();
    let made: Pod = api.create(&params, &typed(pod("a", "n1", "10.0.0.9"))).await.unwrap();
    let status = made.status.as_ref().unwrap();
    assert_eq!((status.phase.as_deref(), status.pod_ip.as_deref()), (Some("Pending"), None));

    let everything = json!({
        "metadata": { "annotations": { "by": "status" }, "ownerReferences": [] },
        "spec": { "nodeName": "n2" },
        "status": { "phase": "Running", "podIP": "10.0.0.1", "podIPs": [{ "ip": "10.0.0.7" }] },
    });
    let merge = Patch::Merge(&everything);
    let by_status = api.patch_status("a", &PatchParams::default(), &merge).await.unwrap();
    assert_eq!(by_status.spec.unwrap().node_name.as_deref(), Some("n1"));
    assert_eq!(by_status.metadata.annotations.unwrap()["by"], "status");
    let status = by_status.status.unwrap();
    // Where the two differ, podIP wins.
    assert_eq!(status.pod_ips.unwrap()[0].ip, "10.0.0.1");

    let main = json!({
        "metadata": { "annotations": { "by": "main" } }, "status": { "podIP": "10.0.0.8" },
    });
    let by_main = api.patch("a", &PatchParams::default(), &Patch::Strategic(main)).await.unwrap();
    assert_eq!(by_main.metadata.annotations.unwrap()["by"], "main");
    assert_eq!(by_main.status.unwrap().pod_ip.as_deref(), Some("10.0.0.1"));

    // The spec of a running pod stays, its images apart.
    let one = "/api/v1/namespaces/shop/pods/a";
    for (spec, expected) in [
        (json!({ "nodeName": "n2" }), 422),
        (json!({ "serviceAccountName": "root" }), 422),
        (json!({ "containers": [{ "name": "main", "image": "two" }] }), 200),
    ] {
        let patch = json!({ "spec": spec }).to_string();
        let merge = "application/merge-patch+json";
        let (code, answer, _) = raw_typed(&server.client, "PATCH", one, merge, &patch).await;
        assert_eq!(code, expected, "{patch}: {answer}");
    }
    let (_, stored, _) = raw(&server.client, "GET", one, "").await;
    assert_eq!(stored["spec"]["containers"][0]["image"], "two");
}

pub(super) async fn a_pod_goes_gracefully_and_others_at_once(server: &Server) {
    let api = pods(&server.client);
    let from = version(&server.create(pod("a", "n1", "10.0.0.1")).await).to_string();
    let changes = WatchParams { bookmarks: false, ..WatchParams::default() };
    let mut watch = api.watch(&changes, &from).await.unwrap().boxed();

    let going = api.delete("a", &DeleteParams::default()).await.unwrap().unwrap_left();
    assert_eq!(going.metadata.deletion_grace_period_seconds, Some(30));
    assert!(going.metadata.deletion_timestamp.is_some());
    let at = going.metadata.resource_version;
    assert_eq!(told(&mut watch).await, format!("MODIFIED a {}", at.as_deref().unwrap()));
    // Asking again changes nothing.
    api.delete("a", &DeleteParams::default()).await.unwrap();
    assert_eq!(api.get("a").await.unwrap().metadata.resource_version, at);

    let wrong = DeleteParams::default()
        .preconditions(Preconditions { uid: Some("x".to_owned()), ..Default::default() });
    assert_eq!(code(api.delete("a", &wrong).await), 409);
    api.delete("a", &DeleteParams::default().grace_period(0)).await.unwrap();
    assert!(told(&mut watch).await.starts_with("MODIFIED a "));
    assert!(told(&mut watch).await.starts_with("DELETED a "));
    assert_eq!(code(api.get("a").await), 404);

    // A finished pod needs no grace, nor does one that no node runs.
    let mut done = pod("b", "n1", "10.0.0.2");
    done["status"]["phase"] = json!("Succeeded");
    server.create(done).await;
    let mut waiting = pod("c", "n1", "10.0.0.3");
    waiting["spec"].as_object_mut().unwrap().remove("nodeName");
    waiting.as_object_mut().unwrap().remove("status");
    server.create(waiting).await;
    for name in ["b", "c"] {
        api.delete(name, &DeleteParams::default()).await.unwrap();
        assert_eq!(code(api.get(name).await), 404, "{name}");
    }
    // What is not told in its last state is told of.
    let api = config_maps(&server.client);
    let made = server.create(config_map("a", "1")).await;
    let gone = api.delete("a", &DeleteParams::default()).await.unwrap().unwrap_right();
    assert!(gone.is_success());
    let details = gone.details.unwrap();
    assert_eq!((details.name.as_str(), details.kind.as_str()), ("a", "configmaps"));
    assert_eq!(made["metadata"]["uid"], details.uid);
    assert_eq!(code(api.get("a").await), 404);
}

pub(super) async fn malformed_writes_are_refused(server: &Server) {
    let made = server.create(config_map("a", "1")).await;
    let (all, one) = ("/api/v1/namespaces/shop/configmaps", "/api/v1/namespaces/shop/configmaps/a");
    let json = "application/json";
    for (method, path, media_type, body, expected) in [
        ("POST", all, json, "{", 400),
        ("POST", all, json, "[]", 400),
        ("POST", all, json, r#"{"kind":"Pod","metadata":{"name":"b"}}"#, 400),
        ("POST", all, json, r#"{"metadata":{"name":"b","namespace":"bank"}}"#, 400),
        ("POST", all, json, r#"{"metadata":{"name":"B_b"}}"#, 422),
        ("POST", all, json, r#"{"metadata":{"name":"b","resourceVersion":"1"}}"#, 500),
        ("POST", "/api/v1/configmaps", json, r#"{"metadata":{"name":"b"}}"#, 405),
        ("PUT", one, json, r#"{"metadata":{"name":"b"}}"#, 400),
        ("PATCH", one, "application/nonsense", "[]", 415),
        ("PATCH", one, "application/merge-patch+json", "7", 400),
        ("PUT", "/api/v1/namespaces/shop/configmaps/a/status", json, "{}", 404),
    ] {
        let (code, status, _) = raw_typed(&server.client, method, path, media_type, body).await;
        assert_eq!(code, expected, "{method} {path} {body}: {status}");
    }
    let huge = format!(r#"{{"metadata":{{"name":"b"}},"data":{{"x":"{}"}}}}"#, "y".repeat(3 << 20));
    assert_eq!(raw(&server.client, "POST", all, &huge).await.0, 413);
    let left = config_maps(&server.client).list(&kube::api::ListParams::default()).await.unwrap();
    assert_eq!(left.items.len(), 1);
    assert_eq!(number(left.items[0].metadata.resource_version.as_deref()), version(&made));
}
