//! What a watch costs the emulated server, and what only it can be made to say.

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::Api;
use kube::api::WatchParams;
use kube::core::PartialObjectMeta;
use kube::runtime::watcher::{self, Event, watcher};

use detector_tests::apiserver::traffic::Verb;

use super::{config_map, config_maps, next, pod, server, told, traffic};

#[tokio::test(flavor = "multi_thread")]
async fn a_watcher_asks_twice_and_its_watch_ends_with_it() {
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
    assert!(matches!(next(&mut events).await, Ok(Event::Apply(_))));
    assert!(matches!(next(&mut events).await, Ok(Event::Delete(pod))
        if pod.metadata.name.as_deref() == Some("a")));
    let tally = server.traffic().now();
    assert_eq!((tally.requests(Verb::List, "pods"), tally.requests(Verb::Watch, "pods")), (1, 1));
    assert_eq!(tally.open_watches("pods"), 1);
    drop(events);
    traffic(&server, |tally| tally.open_watches("pods") == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watcher_asks_again_once_when_history_is_gone() {
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
async fn pages_are_asked_for_one_by_one() {
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
