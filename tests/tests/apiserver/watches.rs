//! WATCH, and kube-rs's watcher on top of it.

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::Api;
use kube::api::WatchParams;
use kube::core::PartialObjectMeta;
use kube::runtime::watcher::{self, Event, watcher};
use serde_json::json;

use detector_tests::apiserver::traffic::Verb;

use super::{config_map, config_maps, in_short, next, pod, pods, server, told, traffic};

#[tokio::test(flavor = "multi_thread")]
async fn a_watcher_lists_once_and_is_told_the_rest() {
    let (server, client) = server().await;
    server.apply(pod("a", "n1", "10.0.0.1")).unwrap();
    server.apply(pod("b", "n2", "10.0.0.2")).unwrap();
    let everywhere: Api<Pod> = Api::all(client);
    let here = watcher::Config::default().fields("spec.nodeName=n1");
    let mut events = watcher(everywhere, here).boxed();
    assert!(matches!(next(&mut events).await, Ok(Event::Init)));
    assert!(matches!(next(&mut events).await, Ok(Event::InitApply(pod))
        if pod.metadata.name.as_deref() == Some("a")));
    assert!(matches!(next(&mut events).await, Ok(Event::InitDone)));

    server.apply(pod("c", "n2", "10.0.0.3")).unwrap();
    server.apply(pod("d", "n1", "10.0.0.4")).unwrap();
    assert!(matches!(next(&mut events).await, Ok(Event::Apply(pod))
        if pod.metadata.name.as_deref() == Some("d")));
    server.remove("pods", "shop", "a").unwrap();
    assert!(matches!(next(&mut events).await, Ok(Event::Delete(pod))
        if pod.metadata.name.as_deref() == Some("a")));
    let tally = server.traffic().now();
    assert_eq!((tally.requests(Verb::List, "pods"), tally.requests(Verb::Watch, "pods")), (1, 1));
    assert_eq!(tally.open_watches("pods"), 1);
    drop(events);
    traffic(&server, |tally| tally.open_watches("pods") == 0).await;
}

#[tokio::test]
async fn what_starts_to_match_is_added_and_what_stops_is_deleted() {
    let (server, client) = server().await;
    let mut pending = pod("a", "n1", "10.0.0.1");
    pending["status"]["phase"] = json!("Pending");
    server.apply(pending).unwrap();
    let running = WatchParams::default().fields("status.phase=Running");
    let from = server.version();
    let mut watch = pods(&client).watch(&running, &from.to_string()).await.unwrap().boxed();
    let phase = |phase: &str| server.set_status("pods", "shop", "a", &json!({ "phase": phase }));

    phase("Running").unwrap();
    assert_eq!(told(&mut watch).await, format!("ADDED a {}", from + 1));
    server.patch("pods", "shop", "a", &json!({ "metadata": { "labels": { "x": "y" } } })).unwrap();
    assert_eq!(told(&mut watch).await, format!("MODIFIED a {}", from + 2));
    phase("Failed").unwrap();
    assert_eq!(told(&mut watch).await, format!("DELETED a {}", from + 3));
    phase("Running").unwrap();
    assert_eq!(told(&mut watch).await, format!("ADDED a {}", from + 4));
    server.remove("pods", "shop", "a").unwrap();
    assert_eq!(told(&mut watch).await, format!("DELETED a {}", from + 5));
}

#[tokio::test]
async fn a_watch_begins_where_it_is_told_to() {
    let (server, client) = server().await;
    let api = config_maps(&client);
    server.apply(config_map("a", "1")).unwrap();
    let first = server.version();
    server.apply(config_map("a", "2")).unwrap();
    server.apply(config_map("b", "1")).unwrap();
    let params = WatchParams::default();

    let mut after = api.watch(&params, &first.to_string()).await.unwrap().boxed();
    assert_eq!(told(&mut after).await, format!("MODIFIED a {}", first + 1));
    assert_eq!(told(&mut after).await, format!("ADDED b {}", first + 2));
    // Any version: what stands, then what follows.
    let mut standing = api.watch(&params, "0").await.unwrap().boxed();
    assert_eq!(told(&mut standing).await, format!("ADDED a {}", first + 1));
    assert_eq!(told(&mut standing).await, format!("ADDED b {}", first + 2));
    server.remove("configmaps", "shop", "b").unwrap();
    for watch in [&mut after, &mut standing] {
        assert_eq!(told(watch).await, format!("DELETED b {}", first + 3));
    }
    // History that is gone is an event in a stream that began well, and its last.
    server.compact();
    let mut late = api.watch(&params, &first.to_string()).await.unwrap().boxed();
    assert_eq!(told(&mut late).await, "ERROR 410 Expired");
    assert!(late.next().await.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watcher_lists_again_when_history_is_gone() {
    let (server, client) = server().await;
    server.apply(config_map("a", "1")).unwrap();
    let mut events = watcher(config_maps(&client), watcher::Config::default()).boxed();
    for _ in 0..3 {
        next(&mut events).await.unwrap();
    }
    // The stream is not polled, so the watch is not open yet when the history goes.
    server.remove("configmaps", "shop", "a").unwrap();
    server.compact();
    let gone = next(&mut events).await;
    assert!(
        matches!(&gone, Err(watcher::Error::WatchError(status)) if status.code == 410),
        "{gone:?}"
    );
    assert!(matches!(next(&mut events).await, Ok(Event::Init)));
    assert!(matches!(next(&mut events).await, Ok(Event::InitDone)));
    assert_eq!(server.traffic().now().requests(Verb::List, "configmaps"), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn bookmarks_come_in_order_and_at_the_end() {
    let (server, client) = server().await;
    let api = config_maps(&client);
    let from = server.version().to_string();
    let silent = WatchParams { bookmarks: false, ..WatchParams::default().timeout(1) };
    let mut silent = api.watch(&silent, &from).await.unwrap().boxed();
    let mut watch = api.watch(&WatchParams::default().timeout(1), &from).await.unwrap().boxed();
    traffic(&server, |tally| tally.open_watches("configmaps") == 2).await;

    server.apply(config_map("a", "1")).unwrap();
    // Another kind moves the version on, too.
    server.apply(pod("p", "n1", "10.0.0.1")).unwrap();
    let version = server.version();
    server.bookmark();
    assert_eq!(told(&mut watch).await, format!("ADDED a {}", version - 1));
    assert_eq!(told(&mut watch).await, format!("BOOKMARK {version}"));
    // At its end a watch says once more how far it has come.
    assert_eq!(told(&mut watch).await, format!("BOOKMARK {version}"));
    assert!(watch.next().await.is_none());
    assert_eq!(told(&mut silent).await, format!("ADDED a {}", version - 1));
    assert!(silent.next().await.is_none());
}

#[tokio::test]
async fn initial_events_are_served_only_with_the_feature() {
    let (server, client) = server().await;
    server.apply(config_map("a", "1")).unwrap();
    let streaming = watcher::Config::default().streaming_lists();
    let mut events = watcher(config_maps(&client), streaming).boxed();
    let refused = next(&mut events).await;
    assert!(
        matches!(&refused, Err(watcher::Error::WatchStartFailed(kube::Error::Api(status)))
            if status.code == 422),
        "{refused:?}"
    );
    server.serve_watch_list(true);
    assert!(matches!(next(&mut events).await, Ok(Event::Init)));
    assert!(matches!(next(&mut events).await, Ok(Event::InitApply(_))));
    assert!(matches!(next(&mut events).await, Ok(Event::InitDone)));
    assert_eq!(server.traffic().now().requests(Verb::List, "configmaps"), 0);
}

#[tokio::test]
async fn watchers_page_and_watch_metadata() {
    let (server, client) = server().await;
    for name in ["a", "b", "c", "d", "e"] {
        server.apply(config_map(name, "1")).unwrap();
    }
    let paged = watcher::Config::default().page_size(2);
    let metadata: Api<PartialObjectMeta<ConfigMap>> = Api::namespaced(client, "shop");
    let mut events = watcher(metadata, paged).boxed();
    assert!(matches!(next(&mut events).await, Ok(Event::Init)));
    for _ in 0..5 {
        assert!(matches!(next(&mut events).await, Ok(Event::InitApply(_))));
    }
    assert!(matches!(next(&mut events).await, Ok(Event::InitDone)));
    assert_eq!(server.traffic().now().requests(Verb::List, "configmaps"), 3);
    server.remove("configmaps", "shop", "c").unwrap();
    assert!(matches!(next(&mut events).await, Ok(Event::Delete(map))
        if map.metadata.name.as_deref() == Some("c")));
}

#[tokio::test]
async fn a_watch_of_one_namespace_is_told_of_no_other() {
    let (server, client) = server().await;
    let from = server.version();
    let api = config_maps(&client);
    let mut watch = api.watch(&WatchParams::default(), &from.to_string()).await.unwrap().boxed();
    let mut elsewhere = config_map("a", "1");
    elsewhere["metadata"]["namespace"] = json!("bank");
    server.apply(elsewhere).unwrap();
    server.apply(config_map("b", "1")).unwrap();
    assert_eq!(in_short(next(&mut watch).await.unwrap()), format!("ADDED b {}", from + 2));
}
