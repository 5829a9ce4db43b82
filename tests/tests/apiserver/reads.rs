//! What the emulated server alone says of itself, and counts.

use detector_tests::apiserver::traffic::Verb;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::ListParams;
use serde_json::json;

use super::{pod, raw, server};

#[tokio::test]
async fn it_says_which_version_it_behaves_like() {
    let (_server, client) = server().await;
    assert_eq!(client.apiserver_version().await.unwrap().minor, "31");
}

#[tokio::test]
async fn what_is_not_emulated_is_refused_and_remembered() {
    let (server, client) = server().await;
    server.apply(pod("a", "n1", "10.0.0.1")).unwrap();
    for (method, path, expected) in [
        ("GET", "/api/v1/pods?labelSelector=app%3Dx", 400),
        (
            "GET",
            "/api/v1/pods?watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan",
            422,
        ),
        ("DELETE", "/api/v1/namespaces/shop/pods", 405),
        ("GET", "/api/v1/secrets", 404),
        ("GET", "/apis/projectcalico.org/v3/ippools", 404),
    ] {
        let (code, status, _) = raw(&client, method, path, "").await;
        assert_eq!((code, &status["kind"]), (expected, &json!("Status")), "{method} {path}");
        assert_eq!(status["code"], expected, "{method} {path}");
    }
    let unknown = ["/api/v1/secrets", "/apis/projectcalico.org/v3/ippools"];
    assert_eq!(server.traffic().now().unknown_paths(), unknown);
    assert_eq!(server.traffic().now().refused(422), 1);
}

#[tokio::test]
async fn lists_are_counted_and_carry_the_newest_version() {
    let (server, client) = server().await;
    server.apply(pod("a", "n1", "10.0.0.1")).unwrap();
    let everywhere: Api<Pod> = Api::all(client);
    for fields in ["", "spec.nodeName=n1"] {
        let list = everywhere.list(&ListParams::default().fields(fields)).await.unwrap();
        assert_eq!(list.metadata.resource_version, Some(server.version().to_string()));
    }
    assert_eq!(server.traffic().now().requests(Verb::List, "pods"), 2);
    assert!(server.traffic().now().bytes() > 0);
}
