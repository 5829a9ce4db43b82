//! What only a test can write, past the API, and what the emulated server does not take.

use futures::StreamExt as _;
use kube::api::WatchParams;
use serde_json::json;

use super::{config_map, pod, pods, raw_typed, server, told};

#[tokio::test]
async fn what_is_done_past_the_api_is_one_change_of_all_parts() {
    let (server, _client) = server().await;
    let made = server.apply(pod("a", "n1", "10.0.0.1")).unwrap();
    assert_eq!(made["status"]["podIPs"][0]["ip"], "10.0.0.1");
    let before = server.version();
    let patch = json!({ "metadata": { "labels": { "x": "y" } }, "status": { "phase": "Failed" } });
    server.patch("pods", "shop", "a", &patch).unwrap();
    server.set_status("pods", "shop", "a", &json!({ "phase": "Running" })).unwrap();
    assert_eq!(server.version(), before + 2);
    let stored = server.get("pods", "shop", "a").unwrap();
    assert_eq!(stored["metadata"]["labels"]["x"], "y");
    assert_eq!(stored["status"], json!({ "phase": "Running" }));
    assert_eq!(server.terminate("shop", "a").unwrap()["metadata"]["uid"], made["metadata"]["uid"]);
    server.remove("pods", "shop", "a").unwrap();
    assert_eq!(server.get("pods", "shop", "a"), None);
}

#[tokio::test]
async fn json_patches_are_not_served() {
    let (server, client) = server().await;
    server.apply(config_map("a", "1")).unwrap();
    let (version, path) = (server.version(), "/api/v1/namespaces/shop/configmaps/a");
    let (code, ..) = raw_typed(&client, "PATCH", path, "application/json-patch+json", "[]").await;
    assert_eq!((code, server.version()), (415, version));
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
