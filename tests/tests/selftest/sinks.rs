//! Sinks that do not take what they are told.

use std::fs::File;
use std::process::{Command, Stdio};

use detector_tests::real::found_or_skip;
use detector_tests::real::http::Answer;
use detector_tests::real::receiver::{Manner, Receiver};
use serde_json::json;

use super::stage::{NODE, Selftest};

#[test]
fn each_sink_that_is_broken_is_named_and_the_others_are_not() {
    if !found_or_skip("a selftest with broken sinks", &["ip"]) {
        return;
    }
    let (good, gone, refuses) = (
        Receiver::start(None, 0).unwrap(),
        Receiver::start(None, 0).unwrap(),
        Receiver::start(None, 0).unwrap(),
    );
    refuses.usually(Manner::Answer(Answer::new(410)));
    gone.stop().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("no-journal");
    let config = json!({ "sinks": {
        "journald": { "enabled": true, "socket": socket },
        "events": { "enabled": true },
        "webhooks": [
            { "name": "good", "url": good.url("/") },
            { "name": "refuses", "url": refuses.url("/") },
        ],
        "alertmanagers": [{ "name": "gone", "url": gone.url("") }],
    } });
    let selftest = || Selftest::new(&config).flags(&["--no-api", "--timeout", "5s"]);
    let said = selftest().run();
    said.failed("sink:journald", "journald does not take it at ");
    said.failed("sink:events", "no API server is asked");
    said.failed("sink:refuses", "it answers 410");
    said.failed("sink:gone", "it cannot be reached");
    assert_eq!((said.stage("sink:good").0, said.stage("sink:stdout").0), ("ok", "ok"));
    assert_eq!(said.stages("failed").len(), 4, "{said:#?}");
    let posted = good.take();
    assert_eq!(posted[0].request.json().unwrap(), said.findings[0]);

    // Sinks can be left out: then they are not told.
    let left_out = ["--without-sink", "journald,events,gone", "--without-sink", "refuses"];
    refuses.take();
    let said = selftest().flags(&left_out).run();
    assert_eq!((said.code, said.stages("failed").len()), (Some(0), 0), "{said:#?}");
    assert!(refuses.take().is_empty());
    let said = selftest().flags(&["--without-sink", "all"]).run();
    assert_eq!((said.code, said.stage("sinks").0), (Some(0), "skipped"), "{said:#?}");
    assert!(said.findings.is_empty(), "{said:#?}");
}

#[test]
fn standard_output_that_takes_nothing_is_a_failure() {
    if !found_or_skip("a selftest without standard output", &["ip"]) {
        return;
    }
    let full = File::options().write(true).open("/dev/full").unwrap();
    let output = Command::new(detector_tests::agent::program().unwrap())
        .args(["selftest", "--no-api", "--node-name", NODE, "-ojson"])
        .env_remove("KUBECONFIG")
        .stdin(Stdio::null())
        .stdout(full)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let err = String::from_utf8(output.stderr).unwrap();
    assert!(err.contains("No space left on device"), "{err}");
}
