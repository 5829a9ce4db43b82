//! Everything that can go wrong, and what a client makes of it.

use std::io::{ErrorKind, Read as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use detector_tests::apiserver::fault::{Connections, Cut, Requests, Times};
use detector_tests::apiserver::refusal::Refusal;
use detector_tests::apiserver::traffic::Verb;
use futures::StreamExt as _;
use kube::api::{ListParams, WatchParams};
use kube::runtime::watcher::{self, Event, watcher};
use serde_json::json;

use super::{code, config_map, config_maps, next, pod, pods, raw, server, told, traffic};

/// Long enough for anything that is on its way over loopback to arrive.
const A_WHILE: Duration = Duration::from_millis(200);

#[tokio::test]
async fn planned_answers_come_as_often_as_planned() {
    let (server, client) = server().await;
    let lists = Requests::all().verb(Verb::List).kind("pods");
    server.faults().answer(lists, Times::Next(1), Refusal::internal_error());
    server.faults().answer(lists, Times::Next(1), Refusal::unauthorized());
    server.faults().answer(lists, Times::UntilCleared, Refusal::forbidden());
    let params = ListParams::default();
    for expected in [500, 401, 403, 403] {
        assert_eq!(code(pods(&client).list(&params).await), expected);
    }
    // Others are served meanwhile.
    config_maps(&client).list(&params).await.unwrap();
    assert_eq!(code(pods(&client).get("a").await), 404);
    server.faults().clear();
    pods(&client).list(&params).await.unwrap();

    server.faults().answer(Requests::all(), Times::Next(1), Refusal::too_many_requests(7));
    let (code, status, retry) = raw(&client, "GET", "/api/v1/pods", "").await;
    assert_eq!((code, retry.as_str()), (429, "7"));
    assert_eq!(status["details"]["retryAfterSeconds"], 7);
    let tally = server.traffic().now();
    assert_eq!((tally.refused(403), tally.requests(Verb::List, "pods")), (2, 6));
}

#[tokio::test]
async fn delayed_answers_tell_what_is_true_when_they_come() {
    let (server, client) = server().await;
    let api = config_maps(&client);
    server.faults().delay(Requests::all().verb(Verb::List), Times::Next(1), A_WHILE);
    let asked = Instant::now();
    let params = ListParams::default();
    let (list, ()) = tokio::join!(api.list(&params), async {
        server.apply(config_map("a", "1")).unwrap();
    });
    assert_eq!(list.unwrap().items.len(), 1);
    assert!(asked.elapsed() >= A_WHILE);
}

#[tokio::test]
async fn held_watches_say_everything_afterwards_in_order() {
    let (server, client) = server().await;
    let from = server.version();
    let api = config_maps(&client);
    let mut watch = api.watch(&WatchParams::default(), &from.to_string()).await.unwrap().boxed();
    server.faults().hold_watches();
    server.apply(config_map("a", "1")).unwrap();
    server.apply(config_map("a", "2")).unwrap();
    assert!(tokio::time::timeout(A_WHILE, watch.next()).await.is_err());
    // Only watches are held: a list knows.
    assert_eq!(api.list(&ListParams::default()).await.unwrap().items.len(), 1);
    server.faults().release_watches();
    assert_eq!(told(&mut watch).await, format!("ADDED a {}", from + 1));
    assert_eq!(told(&mut watch).await, format!("MODIFIED a {}", from + 2));
}

#[tokio::test]
async fn delayed_watches_are_late_by_the_delay() {
    let (server, client) = server().await;
    let from = server.version();
    let api = config_maps(&client);
    let mut watch = api.watch(&WatchParams::default(), &from.to_string()).await.unwrap().boxed();
    server.faults().delay_watches(A_WHILE);
    let changed = Instant::now();
    server.apply(config_map("a", "1")).unwrap();
    assert_eq!(told(&mut watch).await, format!("ADDED a {}", from + 1));
    assert!(changed.elapsed() >= A_WHILE);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_watch_is_taken_up_where_it_ended() {
    for cut in [Cut::Orderly, Cut::Abrupt] {
        let (server, client) = server().await;
        let mut events = watcher(config_maps(&client), watcher::Config::default()).boxed();
        for _ in 0..2 {
            next(&mut events).await.unwrap();
        }
        server.apply(config_map("a", "1")).unwrap();
        assert!(matches!(next(&mut events).await, Ok(Event::Apply(_))));
        server.faults().cut_watches(cut);
        traffic(&server, |tally| tally.open_watches("configmaps") == 0).await;
        server.apply(config_map("b", "1")).unwrap();
        let resumed = next(&mut events).await;
        assert!(
            matches!(&resumed, Ok(Event::Apply(map)) if map.metadata.name.as_deref() == Some("b")),
            "{cut:?}: {resumed:?}"
        );
        let tally = server.traffic().now();
        assert_eq!(tally.requests(Verb::List, "configmaps"), 1, "{cut:?}");
        assert_eq!(tally.requests(Verb::Watch, "configmaps"), 2, "{cut:?}");
    }
}

#[tokio::test]
async fn a_line_that_is_no_event_is_an_error_and_no_end() {
    let (server, client) = server().await;
    let from = server.version();
    let api = config_maps(&client);
    let mut watch = api.watch(&WatchParams::default(), &from.to_string()).await.unwrap().boxed();
    server.write_line("configmaps", "{\"type\":\"ADDED\",\"object\":7}").unwrap();
    server.write_line("configmaps", "}nonsense").unwrap();
    server.apply(config_map("a", "1")).unwrap();
    // To kube any JSON object that is no event is a Status, here one that says nothing.
    let told_nothing = next(&mut watch).await;
    assert!(
        matches!(&told_nothing, Err(kube::Error::Api(status)) if status.code == 0),
        "{told_nothing:?}"
    );
    let nonsense = next(&mut watch).await;
    assert!(matches!(&nonsense, Err(kube::Error::SerdeError(_))), "{nonsense:?}");
    assert_eq!(told(&mut watch).await, format!("ADDED a {}", from + 1));
    assert_eq!(server.write_line("secrets", "x").unwrap_err().code, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_and_reset_connections_come_back_on_the_same_port() {
    let (server, client) = server().await;
    let api = pods(&client);
    server.apply(pod("a", "n1", "10.0.0.1")).unwrap();
    for (wanted, kind) in [
        (Connections::Refuse, ErrorKind::ConnectionRefused),
        (Connections::Reset, ErrorKind::ConnectionReset),
    ] {
        let from = server.version().to_string();
        let mut watch = api.watch(&WatchParams::default(), &from).await.unwrap().boxed();
        traffic(&server, |tally| tally.open_watches("pods") == 1).await;
        server.faults().connections(wanted).unwrap();
        traffic(&server, |tally| tally.open_watches("pods") == 0).await;
        // The watch ends, with or without an error, and nothing else can be asked.
        assert!(!matches!(watch.next().await, Some(Ok(_))), "{wanted:?}");
        let tried = TcpStream::connect(server.addr()).and_then(|mut stream| {
            stream.set_read_timeout(Some(super::LONG))?;
            stream.read(&mut [0])
        });
        assert_eq!(tried.unwrap_err().kind(), kind, "{wanted:?}");
        assert!(api.list(&ListParams::default()).await.is_err(), "{wanted:?}");

        server.faults().connections(Connections::Serve).unwrap();
        assert_eq!(api.list(&ListParams::default()).await.unwrap().items.len(), 1, "{wanted:?}");
    }
}

#[tokio::test]
async fn connections_that_were_refused_for_an_instant_are_served_again() {
    let (server, client) = server().await;
    for _ in 0..100 {
        server.faults().connections(Connections::Refuse).unwrap();
        server.faults().connections(Connections::Refuse).unwrap();
        assert_eq!(
            TcpStream::connect(server.addr()).unwrap_err().kind(),
            ErrorKind::ConnectionRefused
        );
        server.faults().connections(Connections::Serve).unwrap();
    }
    let (api, params) = (pods(&client), ListParams::default());
    let answered = tokio::time::timeout(super::LONG, api.list(&params)).await;
    assert!(answered.expect("the server is deaf").is_ok());
}

#[tokio::test]
async fn a_dropped_server_listens_no_more() {
    let (server, client) = server().await;
    let addr = server.addr();
    assert_eq!(raw(&client, "GET", "/readyz", "").await.1, json!("ok"));
    drop(server);
    assert_eq!(TcpStream::connect(addr).unwrap_err().kind(), ErrorKind::ConnectionRefused);
}
