//! The emulated API server against kube-rs, the client that the agent uses, and against a real
//! server: [`contract`] holds for both.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod contract;
mod faults;
mod reads;
mod watches;
mod writes;

use std::time::Duration;

use detector_tests::apiserver::ApiServer;
use futures::{Stream, StreamExt as _};
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::api::WatchEvent;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config, Resource, ResourceExt as _};
use serde_json::{Value, json};

/// How long anything may take that is certain to come.
const LONG: Duration = Duration::from_secs(20);

/// An emulated server, and a client of it.
async fn server() -> (ApiServer, Client) {
    let server = ApiServer::on_loopback().unwrap();
    let client = client(&server.kubeconfig()).await;
    (server, client)
}

/// A client that repeats nothing on its own.
async fn client(kubeconfig: &str) -> Client {
    let kubeconfig = Kubeconfig::from_yaml(kubeconfig).unwrap();
    let options = KubeConfigOptions::default();
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &options).await.unwrap();
    config.default_retry = false;
    Client::try_from(config).unwrap()
}

fn pods(client: &Client) -> Api<Pod> {
    Api::namespaced(client.clone(), "shop")
}

fn config_maps(client: &Client) -> Api<ConfigMap> {
    Api::namespaced(client.clone(), "shop")
}

/// A running pod in the namespace `shop`.
fn pod(name: &str, node: &str, ip: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "namespace": "shop", "name": name },
        "spec": { "nodeName": node, "containers": [{ "name": "main", "image": "one" }] },
        "status": { "phase": "Running", "podIP": ip },
    })
}

fn config_map(name: &str, value: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": { "namespace": "shop", "name": name },
        "data": { "key": value },
    })
}

/// The HTTP status code of a refusal.
fn code<T: std::fmt::Debug>(answer: kube::Result<T>) -> u16 {
    match answer {
        Err(kube::Error::Api(status)) => status.code,
        other => panic!("no refusal: {other:?}"),
    }
}

/// A request without any client's opinion: its code, its body, and its `Retry-After`.
async fn raw(client: &Client, method: &str, path: &str, body: &str) -> (u16, Value, String) {
    raw_typed(client, method, path, "application/json", body).await
}

async fn raw_typed(
    client: &Client,
    method: &str,
    path: &str,
    media_type: &str,
    body: &str,
) -> (u16, Value, String) {
    let request = http::Request::builder()
        .method(method)
        .uri(path)
        .header("content-type", media_type)
        .body(kube::client::Body::from(body.as_bytes().to_vec()))
        .unwrap();
    let response = client.send(request).await.unwrap();
    let code = response.status().as_u16();
    let retry = response.headers().get("retry-after").map(|value| value.to_str().unwrap());
    let retry = retry.unwrap_or_default().to_owned();
    let bytes = response.into_body().collect_bytes().await.unwrap();
    // Only the health checks answer in plain text.
    let body =
        serde_json::from_slice(&bytes).unwrap_or_else(|_| json!(String::from_utf8_lossy(&bytes)));
    (code, body, retry)
}

/// The next item of a stream that must have one.
async fn next<T>(stream: &mut (impl Stream<Item = T> + Unpin)) -> T {
    let next = tokio::time::timeout(LONG, stream.next()).await;
    next.expect("nothing came").expect("the stream ended")
}

/// The next event of a watch in short: `ADDED name version`.
async fn told<K>(stream: &mut (impl Stream<Item = kube::Result<WatchEvent<K>>> + Unpin)) -> String
where
    K: Resource,
{
    in_short(next(stream).await.unwrap())
}

fn in_short<K: Resource>(event: WatchEvent<K>) -> String {
    let of = |what: &str, object: &K| {
        let version = object.resource_version().unwrap_or_default();
        format!("{what} {} {version}", object.name_any())
    };
    match event {
        WatchEvent::Added(object) => of("ADDED", &object),
        WatchEvent::Modified(object) => of("MODIFIED", &object),
        WatchEvent::Deleted(object) => of("DELETED", &object),
        WatchEvent::Bookmark(bookmark) => {
            format!("BOOKMARK {}", bookmark.metadata.resource_version)
        }
        WatchEvent::Error(status) => format!("ERROR {} {}", status.code, status.reason),
    }
}

/// Waits until the server's counters satisfy a condition.
async fn traffic(
    server: &ApiServer,
    holds: impl Fn(&detector_tests::apiserver::traffic::Tally) -> bool,
) {
    let waited = tokio::task::block_in_place(|| server.traffic().wait(LONG, holds));
    waited.expect("the server was not asked what it should have been asked");
}
