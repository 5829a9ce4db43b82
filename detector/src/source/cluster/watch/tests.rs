//! The watch against a server that fails in each way that servers fail in.

use std::pin::Pin;

use k8s_openapi::api::core::v1::ConfigMap;
use serde_json::{Value, json};

use super::super::script::{self, Asked, Reply, Then, error_event, event, page};
use super::*;

type Words = Pin<Box<dyn Stream<Item = Word<String>> + Send>>;

fn follow_names(apis: usize, cached: bool, replies: Vec<Reply>) -> (Words, Asked, Arc<Counters>) {
    let (client, asked) = script::server(replies);
    let api = |index| Api::<ConfigMap>::namespaced(client.clone(), &format!("n{index}"));
    let scope = Scope {
        what: "list and watch things".into(),
        fields: Some("metadata.name=a".into()),
        cached,
        optional: apis > 1,
        patience: Duration::from_mins(1),
    };
    let counters = Arc::new(Counters::default());
    let read = |object: ConfigMap| object.metadata.name.filter(|name| name != "unread");
    let words = follow((0..apis).map(api).collect(), scope, Arc::clone(&counters), read);
    (words.boxed(), asked, counters)
}

fn object(name: &str, version: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": name, "resourceVersion": version},
    })
}

fn bookmark(version: &str) -> Value {
    let metadata = json!({"resourceVersion": version});
    event("BOOKMARK", &json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata}))
}

/// The next words, in short.
async fn hear(words: &mut Words, count: usize) -> Vec<String> {
    let word = |word| match word {
        Word::Reset(names) => format!("reset {names:?}").replace('"', ""),
        Word::Applied(name) => format!("applied {name}"),
        Word::Deleted(name) => format!("deleted {name}"),
        Word::NotServed => "not served".into(),
        Word::Blind(reason) => format!("blind: {reason}"),
        Word::Seeing => "seeing".into(),
    };
    words.take(count).map(word).collect().await
}

/// The value of one parameter in each request that was made, `-` where it is not there.
fn parameter(asked: &Asked, name: &str) -> Vec<String> {
    let value = |request: &String| {
        let query = request.split_once('?').map_or("", |(_, query)| query);
        let value = query.split('&').find_map(|pair| pair.strip_prefix(&format!("{name}=")));
        value.unwrap_or("-").to_owned()
    };
    asked.lock().unwrap().iter().map(value).collect()
}

#[tokio::test(start_paused = true)]
async fn all_pages_are_one_reset_and_changes_follow() {
    let (mut words, asked, counters) = follow_names(
        1,
        false,
        vec![
            page("", "more", &[object("a", "1"), object("unread", "2")]),
            page("7", "", &[object("b", "3")]),
            Reply::Watch(
                vec![
                    event("ADDED", &object("c", "8")),
                    event("MODIFIED", &object("a", "9")),
                    event("MODIFIED", &object("unread", "10")),
                    event("DELETED", &object("b", "11")),
                ],
                Then::Hang,
            ),
        ],
    );
    let heard = hear(&mut words, 5).await;
    assert_eq!(heard, ["reset [a, b]", "seeing", "applied c", "applied a", "deleted b"]);
    assert_eq!(parameter(&asked, "resourceVersion"), ["-", "-", "7"]);
    assert_eq!(parameter(&asked, "continue"), ["-", "more", "-"]);
    assert_eq!(parameter(&asked, "limit"), ["50", "50", "-"]);
    assert_eq!(parameter(&asked, "fieldSelector"), ["metadata.name%3Da"; 3]);
    assert_eq!(parameter(&asked, "sendInitialEvents"), ["-"; 3]);
    assert_eq!((counters.counts().listings, counters.counts().failures), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_listing_from_the_cache_says_so_and_its_watch_resumes_from_the_last_bookmark() {
    let (mut words, asked, counters) = follow_names(
        1,
        true,
        vec![
            page("7", "", &[]),
            Reply::Watch(vec![event("ADDED", &object("a", "8")), bookmark("20")], Then::End),
            Reply::Watch(vec![event("ADDED", &object("b", "21"))], Then::End),
        ],
    );
    let heard = hear(&mut words, 4).await;
    // The server's own end of a watch is no failure, and nothing is missed by it.
    assert_eq!(heard, ["reset []", "seeing", "applied a", "applied b"]);
    assert_eq!(parameter(&asked, "resourceVersion"), ["0", "7", "20"]);
    assert_eq!(parameter(&asked, "limit"), ["-"; 3]);
    assert_eq!(counters.counts().failures, 0);
}

#[tokio::test(start_paused = true)]
async fn a_cut_watch_is_told_and_resumed_where_it_was() {
    let (mut words, asked, counters) = follow_names(
        1,
        false,
        vec![
            page("7", "", &[]),
            Reply::Watch(vec![event("ADDED", &object("a", "8"))], Then::Reset),
            Reply::Watch(vec![event("ADDED", &object("b", "9"))], Then::Hang),
        ],
    );
    let heard = hear(&mut words, 6).await;
    let cut = "blind: cannot list and watch things: the API server cannot be reached: \
               connection reset";
    assert_eq!(heard, ["reset []", "seeing", "applied a", cut, "seeing", "applied b"]);
    assert_eq!(parameter(&asked, "resourceVersion"), ["-", "7", "8"]);
    assert_eq!((counters.counts().listings, counters.counts().failures), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_forgotten_place_means_a_new_listing() {
    for (cached, versions) in [(true, ["0", "7", "7", "30"]), (false, ["-", "7", "-", "30"])] {
        let (mut words, asked, _) = follow_names(
            1,
            cached,
            vec![
                page("7", "", &[object("a", "1")]),
                Reply::Watch(vec![error_event(410)], Then::Hang),
                page("30", "", &[object("b", "2")]),
                Reply::Watch(vec![], Then::Hang),
            ],
        );
        let heard = hear(&mut words, 5).await;
        let gone = "blind: cannot list and watch things: the API server says 410: so it is";
        assert_eq!(heard, ["reset [a]", "seeing", gone, "reset [b]", "seeing"]);
        assert_eq!(parameter(&asked, "resourceVersion"), versions);
    }
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_cannot_start_from_its_place_begins_anew() {
    let (mut words, asked, _) = follow_names(
        1,
        true,
        vec![
            page("7", "", &[]),
            script::failure(410),
            script::failure(504),
            page("9", "", &[object("a", "9")]),
            Reply::Watch(vec![], Then::Hang),
        ],
    );
    let heard = hear(&mut words, 5).await;
    assert_eq!(heard[0], "reset []");
    assert!(heard[1].contains("says 410") && heard[2].contains("says 504"), "{heard:?}");
    assert_eq!(heard[3..], ["reset [a]", "seeing"]);
    // The cache had not reached version 7, so the newest is asked for.
    assert_eq!(parameter(&asked, "resourceVersion"), ["0", "7", "7", "-", "9"]);
}

#[tokio::test(start_paused = true)]
async fn a_lasting_failure_is_told_once_and_waited_out() {
    let began = Instant::now();
    let mut replies: Vec<Reply> = (0..8).map(|_| script::failure(403)).collect();
    replies.push(script::failure(500));
    replies.push(page("7", "", &[]));
    replies.push(Reply::Watch(vec![], Then::Hang));
    let (mut words, asked, counters) = follow_names(1, false, replies);
    let heard = hear(&mut words, 4).await;
    assert!(heard[0].contains("permission is missing (403)"), "{heard:?}");
    assert!(heard[1].contains("says 500"), "{heard:?}");
    assert_eq!(heard[2..], ["reset []", "seeing"]);
    assert_eq!((counters.counts().failures, asked.lock().unwrap().len()), (9, 11));
    // 0.8 s doubled up to 30 s; jitter only lengthens it.
    assert!(began.elapsed() >= Duration::from_mins(1), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_read_is_not_asked_for_again() {
    let (mut words, asked, _) = follow_names(
        1,
        true,
        vec![
            page("7", "", &[]),
            Reply::Garbage,
            page("8", "", &[]),
            Reply::Watch(vec![], Then::Hang),
        ],
    );
    let heard = hear(&mut words, 5).await;
    assert!(heard[2].contains("sent what is no object"), "{heard:?}");
    assert_eq!(heard[3..], ["reset []", "seeing"]);
    assert_eq!(parameter(&asked, "resourceVersion"), ["0", "7", "-", "8"]);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_ends_each_watch_at_once_is_not_asked_in_a_loop() {
    let began = Instant::now();
    let mut replies = vec![page("7", "", &[])];
    replies.extend((0..5).map(|_| Reply::Watch(vec![], Then::End)));
    replies.push(Reply::Watch(vec![event("ADDED", &object("a", "8"))], Then::Hang));
    let (mut words, ..) = follow_names(1, false, replies);
    let heard = hear(&mut words, 13).await;
    let ends = "blind: cannot list and watch things: the API server ends it at once";
    assert_eq!(heard[..4], ["reset []", "seeing", ends, "seeing"]);
    assert_eq!(heard[12], "applied a");
    assert!(began.elapsed() >= Duration::from_secs(12), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_falls_silent_is_found_out() {
    let began = Instant::now();
    let (mut words, asked, _) = follow_names(
        1,
        false,
        vec![
            page("7", "", &[]),
            Reply::Watch(vec![bookmark("9")], Then::Hang),
            Reply::Watch(vec![], Then::Hang),
        ],
    );
    let heard = hear(&mut words, 4).await;
    let silent = "blind: cannot list and watch things: the API server has fallen silent";
    assert_eq!(heard, ["reset []", "seeing", silent, "seeing"]);
    assert_eq!(parameter(&asked, "resourceVersion"), ["-", "7", "9"]);
    assert!(began.elapsed() >= Duration::from_secs(65), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn the_first_kind_that_is_served_is_taken() {
    let began = Instant::now();
    let (mut words, asked, counters) = follow_names(
        2,
        false,
        vec![
            script::failure(404),
            script::failure(404),
            script::failure(404),
            page("7", "", &[object("a", "1")]),
            Reply::Watch(vec![], Then::End),
            // Its definition is removed.
            script::failure(404),
            script::failure(404),
            script::failure(404),
        ],
    );
    assert_eq!(hear(&mut words, 1).await, ["not served"]);
    assert_eq!(began.elapsed(), Duration::ZERO);
    assert_eq!(hear(&mut words, 2).await, ["reset [a]", "seeing"]);
    assert!(began.elapsed() >= NOT_SERVED_PAUSE);
    assert!(hear(&mut words, 1).await[0].contains("ends it at once"));
    assert_eq!(hear(&mut words, 1).await, ["not served"]);
    let namespaces = ["n0", "n1", "n0", "n1", "n1", "n1", "n1"];
    let asked = asked.lock().unwrap();
    for (request, namespace) in asked.iter().zip(namespaces) {
        assert!(request.contains(&format!("/{namespace}/")), "{asked:?}");
    }
    assert_eq!(counters.counts().failures, 1);
}
