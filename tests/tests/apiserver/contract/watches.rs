//! WATCH, and kube-rs's watcher on top of it.

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::Api;
use kube::api::WatchParams;
use kube::core::PartialObjectMeta;
use kube::runtime::watcher::{self, Event, watcher};
use serde_json::{Value, json};

use super::{Server, version};
use crate::{config_map, config_maps, next, pods, told};

/// A pod without a status, so that it is one change.
fn pod(name: &str, node: &str) -> Value {
    let mut pod = crate::pod(name, node, "");
    pod.as_object_mut().unwrap().remove("status");
    pod
}

/// Changes alone: bookmarks may come at any time.
fn changes() -> WatchParams {
    WatchParams { bookmarks: false, ..WatchParams::default() }
}

/// What was told, when its version is not known beforehand: that of a deletion.
fn deleted(told: &str, name: &str, after: u64) {
    let version = told.strip_prefix(&format!("DELETED {name} "));
    let version: u64 = version.unwrap_or_else(|| panic!("{told}")).parse().unwrap();
    assert!(version > after, "{told} does not come after {after}");
}

pub(super) async fn a_watcher_lists_once_and_is_told_the_rest(server: &Server) {
    server.create(pod("a", "n1")).await;
    server.create(pod("b", "n2")).await;
    let everywhere: Api<Pod> = Api::all(server.client.clone());
    let here = watcher::Config::default().fields("spec.nodeName=n1");
    let mut events = watcher(everywhere, here).boxed();
    assert!(matches!(next(&mut events).await, Ok(Event::Init)));
    assert!(matches!(next(&mut events).await, Ok(Event::InitApply(pod))
        if pod.metadata.name.as_deref() == Some("a")));
    assert!(matches!(next(&mut events).await, Ok(Event::InitDone)));

    server.create(pod("c", "n2")).await;
    server.create(pod("d", "n1")).await;
    assert!(matches!(next(&mut events).await, Ok(Event::Apply(pod))
        if pod.metadata.name.as_deref() == Some("d")));
    server.remove("pods", "shop", "a").await;
    // A pod's deletion is written down first, even one without grace.
    assert!(matches!(next(&mut events).await, Ok(Event::Apply(pod))
        if pod.metadata.deletion_grace_period_seconds == Some(0)));
    assert!(matches!(next(&mut events).await, Ok(Event::Delete(pod))
        if pod.metadata.name.as_deref() == Some("a")));
}

pub(super) async fn what_starts_to_match_is_added_and_what_stops_is_deleted(server: &Server) {
    let from = version(&server.create(pod("a", "n1")).await);
    let running = changes().fields("status.phase=Running");
    let mut watch = pods(&server.client).watch(&running, &from.to_string()).await.unwrap().boxed();
    let phase = async |phase: &str| {
        version(&server.set_status("pods", "shop", "a", json!({ "phase": phase })).await)
    };

    let at = phase("Running").await;
    assert_eq!(told(&mut watch).await, format!("ADDED a {at}"));
    let labels = json!({ "metadata": { "labels": { "x": "y" } } });
    let at = version(&server.patch("pods", "shop", "a", labels).await);
    assert_eq!(told(&mut watch).await, format!("MODIFIED a {at}"));
    let at = phase("Failed").await;
    assert_eq!(told(&mut watch).await, format!("DELETED a {at}"));
    let at = phase("Running").await;
    assert_eq!(told(&mut watch).await, format!("ADDED a {at}"));
    server.remove("pods", "shop", "a").await;
    assert!(told(&mut watch).await.starts_with("MODIFIED a "));
    deleted(&told(&mut watch).await, "a", at);
}

pub(super) async fn a_watch_begins_where_it_is_told_to(server: &Server) {
    let api = config_maps(&server.client);
    let first = version(&server.create(config_map("a", "1")).await);
    let changed = json!({ "data": { "key": "2" } });
    let second = version(&server.patch("configmaps", "shop", "a", changed).await);
    let third = version(&server.create(config_map("b", "1")).await);
    let params = changes();

    let mut after = api.watch(&params, &first.to_string()).await.unwrap().boxed();
    assert_eq!(told(&mut after).await, format!("MODIFIED a {second}"));
    assert_eq!(told(&mut after).await, format!("ADDED b {third}"));
    // Any version: what stands, then what follows.
    let mut standing = api.watch(&params, "0").await.unwrap().boxed();
    assert_eq!(told(&mut standing).await, format!("ADDED a {second}"));
    assert_eq!(told(&mut standing).await, format!("ADDED b {third}"));
    server.remove("configmaps", "shop", "b").await;
    for watch in [&mut after, &mut standing] {
        deleted(&told(watch).await, "b", third);
    }
    // History that is gone is an event in a stream that began well, and its last.
    server.forget();
    let mut late = api.watch(&params, &first.to_string()).await.unwrap().boxed();
    assert_eq!(told(&mut late).await, "ERROR 410 Expired");
    assert!(late.next().await.is_none());
}

pub(super) async fn a_watcher_lists_again_when_history_is_gone(server: &Server) {
    server.create(config_map("a", "1")).await;
    let mut events = watcher(config_maps(&server.client), watcher::Config::default()).boxed();
    for _ in 0..3 {
        next(&mut events).await.unwrap();
    }
    // The stream is not polled, so the watch is not open yet when the history goes.
    server.remove("configmaps", "shop", "a").await;
    server.forget();
    let gone = next(&mut events).await;
    assert!(
        matches!(&gone, Err(watcher::Error::WatchError(status)) if status.code == 410),
        "{gone:?}"
    );
    assert!(matches!(next(&mut events).await, Ok(Event::Init)));
    assert!(matches!(next(&mut events).await, Ok(Event::InitDone)));
}

pub(super) async fn a_watch_says_at_its_end_how_far_it_has_come(server: &Server) {
    let from = version(&server.create(config_map("z", "1")).await).to_string();
    let api = config_maps(&server.client);
    // A real server says so two seconds before the end.
    let asking = WatchParams::default().timeout(5);
    let silent = WatchParams { bookmarks: false, ..asking.clone() };
    let mut watch = api.watch(&asking, &from).await.unwrap().boxed();
    let mut silent = api.watch(&silent, &from).await.unwrap().boxed();
    let at = version(&server.create(config_map("a", "1")).await);
    assert_eq!(told(&mut watch).await, format!("ADDED a {at}"));
    assert_eq!(told(&mut silent).await, format!("ADDED a {at}"));
    let bookmark = told(&mut watch).await;
    let version = bookmark.strip_prefix("BOOKMARK ").unwrap_or_else(|| panic!("{bookmark}"));
    assert!(version.parse::<u64>().unwrap() >= at);
    while let Some(more) = watch.next().await {
        let more = crate::in_short(more.unwrap());
        assert!(more.starts_with("BOOKMARK "), "{more}");
    }
    assert!(silent.next().await.is_none());
}

pub(super) async fn initial_events_are_served(server: &Server) {
    server.create(config_map("a", "1")).await;
    let streaming = watcher::Config::default().streaming_lists();
    let mut events = watcher(config_maps(&server.client), streaming).boxed();
    // A real server tells what its cache has. That may be a moment behind, and then the object follows
    // the initial events; or just being filled anew, and then the server asks to come again.
    let (mut done, mut seen, mut refused) = (false, false, 0);
    while !(done && seen) {
        match next(&mut events).await {
            Ok(Event::Init) => (done, seen) = (false, false),
            Ok(Event::InitApply(map)) => {
                assert!(!done);
                seen |= map.metadata.name.as_deref() == Some("a");
            }
            Ok(Event::InitDone) => done = true,
            Ok(Event::Apply(map)) => {
                assert!(done);
                seen |= map.metadata.name.as_deref() == Some("a");
            }
            Ok(Event::Delete(_)) => assert!(done),
            Err(error) => {
                refused += 1;
                assert!(refused < 20, "{error:?}");
            }
        }
    }
}

pub(super) async fn watchers_page_and_watch_metadata(server: &Server) {
    for name in ["a", "b", "c", "d", "e"] {
        server.create(config_map(name, "1")).await;
    }
    let paged = watcher::Config::default().page_size(2);
    let metadata: Api<PartialObjectMeta<ConfigMap>> =
        Api::namespaced(server.client.clone(), "shop");
    let mut events = watcher(metadata, paged).boxed();
    assert!(matches!(next(&mut events).await, Ok(Event::Init)));
    for _ in 0..5 {
        assert!(matches!(next(&mut events).await, Ok(Event::InitApply(_))));
    }
    assert!(matches!(next(&mut events).await, Ok(Event::InitDone)));
    server.remove("configmaps", "shop", "c").await;
    assert!(matches!(next(&mut events).await, Ok(Event::Delete(map))
        if map.metadata.name.as_deref() == Some("c")));
}

pub(super) async fn a_watch_of_one_namespace_is_told_of_no_other(server: &Server) {
    let from = version(&server.create(config_map("z", "1")).await).to_string();
    let api = config_maps(&server.client);
    let mut watch = api.watch(&changes(), &from).await.unwrap().boxed();
    let mut elsewhere = config_map("a", "1");
    elsewhere["metadata"]["namespace"] = json!("bank");
    server.create(elsewhere).await;
    let at = version(&server.create(config_map("b", "1")).await);
    assert_eq!(told(&mut watch).await, format!("ADDED b {at}"));
}
