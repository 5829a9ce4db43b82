//! POST, PUT, PATCH, DELETE, and who may write what.

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, WatchParams};
use serde_json::{Value, json};

use super::{code, config_map, config_maps, pod, pods, raw, raw_typed, server, told};

fn typed<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

#[tokio::test]
async fn a_write_against_an_old_state_conflicts() {
    let (server, client) = server().await;
    let api = config_maps(&client);
    let create = PostParams::default();
    let first: ConfigMap = api.create(&create, &typed(config_map("a", "1"))).await.unwrap();
    assert!(first.metadata.uid.is_some() && first.metadata.creation_timestamp.is_some());
    assert_eq!(code(api.create(&create, &typed(config_map("a", "2"))).await), 409);

    server.apply(config_map("a", "elsewhere")).unwrap();
    assert_eq!(code(api.replace("a", &create, &first).await), 409);
    let version = first.metadata.resource_version.as_deref();
    let stale = json!({ "metadata": { "resourceVersion": version }, "data": { "key": "3" } });
    assert_eq!(code(api.patch("a", &PatchParams::default(), &Patch::Merge(stale)).await), 409);

    let mut fresh = api.get("a").await.unwrap();
    assert_eq!(fresh.metadata.uid, first.metadata.uid);
    fresh.data.as_mut().unwrap().insert("key".to_owned(), "4".to_owned());
    let written = api.replace("a", &create, &fresh).await.unwrap();
    assert_eq!(written.metadata.resource_version, Some(server.version().to_string()));
    // What changes nothing makes no version.
    let same = api.replace("a", &create, &written).await.unwrap();
    assert_eq!(same.metadata.resource_version, written.metadata.resource_version);
}

#[tokio::test]
async fn objects_of_definitions_must_say_what_they_replace() {
    let (server, client) = server().await;
    let felix = json!({
        "apiVersion": "crd.projectcalico.org/v1", "kind": "FelixConfiguration",
        "metadata": { "name": "default" }, "spec": { "floatingIPs": "Enabled" },
    });
    server.apply(felix.clone()).unwrap();
    let path = "/apis/crd.projectcalico.org/v1/felixconfigurations/default";
    assert_eq!(raw(&client, "PUT", path, &felix.to_string()).await.0, 422);
    let (code, mut read, _) = raw(&client, "GET", path, "").await;
    assert_eq!((code, &read["spec"]), (200, &felix["spec"]));
    read["spec"]["floatingIPs"] = json!("Disabled");
    assert_eq!(raw(&client, "PUT", path, &read.to_string()).await.0, 200);
    let stored = server.get("felixconfigurations", "", "default").unwrap();
    assert_eq!(stored["spec"]["floatingIPs"], "Disabled");
}

#[tokio::test]
async fn a_pod_and_its_status_are_written_apart() {
    let (server, client) = server().await;
    let api = pods(&client);
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
    for (spec, expected) in [
        (json!({ "nodeName": "n2" }), 422),
        (json!({ "serviceAccountName": "root" }), 422),
        (json!({ "containers": [{ "name": "main", "image": "two" }] }), 200),
    ] {
        let pod = "/api/v1/namespaces/shop/pods/a";
        let patch = json!({ "spec": spec }).to_string();
        let merge = "application/merge-patch+json";
        assert_eq!(raw_typed(&client, "PATCH", pod, merge, &patch).await.0, expected, "{patch}");
    }
    let stored = server.get("pods", "shop", "a").unwrap();
    assert_eq!(stored["spec"]["containers"][0]["image"], "two");
}

#[tokio::test]
async fn a_pod_goes_gracefully_and_others_at_once() {
    let (server, client) = server().await;
    let api = pods(&client);
    server.apply(pod("a", "n1", "10.0.0.1")).unwrap();
    let params = WatchParams::default();
    let mut watch = api.watch(&params, &server.version().to_string()).await.unwrap().boxed();

    let going = api.delete("a", &DeleteParams::default()).await.unwrap().unwrap_left();
    assert_eq!(going.metadata.deletion_grace_period_seconds, Some(30));
    assert!(going.metadata.deletion_timestamp.is_some());
    assert_eq!(told(&mut watch).await, format!("MODIFIED a {}", server.version()));
    // Asking again changes nothing.
    let version = server.version();
    api.delete("a", &DeleteParams::default()).await.unwrap();
    assert_eq!(server.version(), version);

    let wrong = DeleteParams::default().preconditions(kube::api::Preconditions {
        uid: Some("x".to_owned()),
        ..Default::default()
    });
    assert_eq!(code(api.delete("a", &wrong).await), 409);
    api.delete("a", &DeleteParams::default().grace_period(0)).await.unwrap();
    assert_eq!(told(&mut watch).await, format!("DELETED a {}", server.version()));
    assert_eq!(code(api.get("a").await), 404);

    // A finished pod needs no grace, nor does one that no node runs.
    let mut done = pod("b", "n1", "10.0.0.2");
    done["status"]["phase"] = json!("Succeeded");
    server.apply(done).unwrap();
    server.terminate("shop", "b").unwrap();
    assert_eq!(server.get("pods", "shop", "b"), None);
}

#[tokio::test]
async fn another_uid_is_another_pod() {
    let (server, client) = server().await;
    server.apply(pod("a", "n1", "10.0.0.1")).unwrap();
    let before = server.version();
    let mut again = pod("a", "n1", "10.0.0.2");
    again["metadata"]["uid"] = json!("another");
    server.apply(again).unwrap();
    let version = before.to_string();
    let watch = pods(&client).watch(&WatchParams::default(), &version).await.unwrap();
    let mut watch = watch.boxed();
    assert_eq!(told(&mut watch).await, format!("DELETED a {}", before + 1));
    assert_eq!(told(&mut watch).await, format!("ADDED a {}", before + 2));
}

#[tokio::test]
async fn malformed_writes_are_refused() {
    let (server, client) = server().await;
    server.apply(config_map("a", "1")).unwrap();
    let version = server.version();
    let (all, one) = ("/api/v1/namespaces/shop/configmaps", "/api/v1/namespaces/shop/configmaps/a");
    let json_patch = "application/json-patch+json";
    let json = "application/json";
    for (method, path, media_type, body, expected) in [
        ("POST", all, json, "{", 400),
        ("POST", all, json, "[]", 400),
        ("POST", all, json, r#"{"kind":"Pod","metadata":{"name":"b"}}"#, 400),
        ("POST", all, json, r#"{"metadata":{"name":"b","namespace":"bank"}}"#, 400),
        ("POST", all, json, r#"{"metadata":{"name":"B_b"}}"#, 422),
        ("POST", all, json, r#"{"metadata":{"name":"b","resourceVersion":"1"}}"#, 400),
        ("POST", "/api/v1/configmaps", json, r#"{"metadata":{"name":"b"}}"#, 400),
        ("PUT", one, json, r#"{"metadata":{"name":"b"}}"#, 400),
        ("PATCH", one, json_patch, "[]", 415),
        ("PATCH", one, "application/merge-patch+json", "7", 400),
        ("PUT", "/api/v1/namespaces/shop/configmaps/a/status", json, "{}", 404),
    ] {
        let (code, status, _) = raw_typed(&client, method, path, media_type, body).await;
        assert_eq!(code, expected, "{method} {path} {body}: {status}");
    }
    let huge = format!(r#"{{"metadata":{{"name":"b"}},"data":{{"x":"{}"}}}}"#, "y".repeat(3 << 20));
    assert_eq!(raw(&client, "POST", all, &huge).await.0, 413);
    assert_eq!(server.version(), version);
}
