//! The real components that take in what the agent gives: that tests can rely on them.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::io::{self, ErrorKind};
use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::time::Duration;

use detector_tests::netns::Namespace;
use detector_tests::real::alertmanager::{self, Alertmanager};
use detector_tests::real::found_or_skip;
use detector_tests::real::http::{Answer, Request, over_tcp};
use detector_tests::real::journald::{self, Journald};
use detector_tests::real::prometheus::{self, Prometheus, promtool};
use detector_tests::real::receiver::{Manner, Received, Receiver};
use serde_json::{Value, json};

/// How long anything may take that is certain to come; Prometheus begins after five seconds.
const LONG: Duration = Duration::from_mins(1);

/// What all messages of the tests have.
const OURS: &str = "SYSLOG_IDENTIFIER=detector-test";

/// Sends a message by journald's native protocol, in which its length comes before it.
fn send(socket: &UnixDatagram, journald: &Journald, text: &str) -> io::Result<()> {
    let mut message = b"MESSAGE\n".to_vec();
    message.extend_from_slice(&(text.len() as u64).to_le_bytes());
    message.extend_from_slice(format!("{text}\nPRIORITY=4\n{OURS}\n").as_bytes());
    socket.send_to(&message, journald.socket()).map(drop)
}

#[test]
fn journald_keeps_what_is_sent_and_is_stopped_and_frozen() {
    if !found_or_skip("journald", journald::PROGRAMS) {
        return;
    }
    let journald = Journald::start().unwrap();
    let socket = UnixDatagram::unbound().unwrap();
    send(&socket, &journald, "two\nlines").unwrap();
    let entries = journald.entries(&[OURS]).unwrap();
    assert_eq!(entries.len(), 1, "{entries:#?}");
    assert_eq!(entries[0]["MESSAGE"], "two\nlines");
    assert_eq!(entries[0]["PRIORITY"], "4");
    assert_eq!(journald.entries(&[OURS, "PRIORITY=3"]).unwrap(), Vec::<Value>::new());
    assert!(journald.verbose(&[OURS]).unwrap().contains("PRIORITY=4"));

    // Who looks under /run finds it too.
    let mut command = Command::new("systemd-cat");
    command.args(["--identifier=shown", "echo", "hello"]);
    journald.show_to(&mut command).unwrap();
    assert!(command.status().unwrap().success());
    let shown = journald.wait_for(1, &["SYSLOG_IDENTIFIER=shown"], LONG).unwrap();
    assert_eq!(shown[0]["MESSAGE"], "hello");

    journald.stop();
    let refused = send(&socket, &journald, "lost").unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    assert_eq!(journald.entries(&[OURS]).unwrap().len(), 1);
    journald.restart().unwrap();

    journald.freeze().unwrap();
    socket.set_nonblocking(true).unwrap();
    let mut sent = 0;
    let full = loop {
        match send(&socket, &journald, "waits") {
            Ok(()) => sent += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(full.kind(), ErrorKind::WouldBlock);
    journald.thaw().unwrap();
    assert_eq!(journald.wait_for(1 + sent, &[OURS], LONG).unwrap().len(), 1 + sent);
}

#[test]
fn a_receiver_treats_requests_as_it_is_told() {
    let receiver = Receiver::start(None, 0).unwrap();
    let ask = || over_tcp(None, receiver.addr(), &Request::post("/hook", &json!({ "a": 1 })));
    receiver.next(1, Manner::Answer(Answer::new(503).with("Retry-After", "1")));
    receiver.next(2, Manner::BreakOff);
    let unavailable = ask().unwrap();
    assert_eq!((unavailable.status, unavailable.headers.get("retry-after")), (503, Some("1")));
    ask().unwrap_err();
    ask().unwrap_err();
    assert_eq!(ask().unwrap().status, 200);
    let asked = receiver.take();
    assert_eq!(asked.len(), 4);
    assert_eq!(asked[1].manner, Manner::BreakOff);
    assert_eq!(asked[3].request.json().unwrap(), json!({ "a": 1 }));
    assert_eq!(asked[3].request.target, "/hook");
    assert_eq!(receiver.connections(), 4);

    // A stalled request is answered when it is released, and never where the receiver is stopped.
    receiver.usually(Manner::Stall);
    std::thread::scope(|scope| {
        let released = scope.spawn(ask);
        receiver.wait_for(1, LONG).unwrap();
        receiver.release();
        assert_eq!(released.join().unwrap().unwrap().status, 200);
        receiver.usually(Manner::Stall);
        let cut = scope.spawn(ask);
        receiver.wait_for(2, LONG).unwrap();
        receiver.stop().unwrap();
        cut.join().unwrap().unwrap_err();
    });
    ask().unwrap_err();
    receiver.usually(Manner::status(500));
    receiver.restart().unwrap();
    assert_eq!(ask().unwrap().status, 500);
    assert_eq!(receiver.received().len(), 3);
}

const RULES: &str = "
groups:
- name: test
  rules:
  - alert: Scraped
    expr: up == 1
    labels: { severity: page }
    annotations: { summary: it is }
";

/// Whether a webhook was told of an alert.
fn tells(received: &[Received], name: &str, status: &str) -> bool {
    received.iter().any(|received| {
        let told = received.request.json().unwrap();
        told["groupLabels"]["alertname"] == name && told["status"] == status
    })
}

#[test]
fn what_prometheus_scrapes_becomes_an_alert_and_a_webhook_is_told() {
    let programs = [prometheus::PROGRAMS, alertmanager::PROGRAMS].concat();
    if !found_or_skip("Prometheus and Alertmanager", &programs) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let rules = folder.path().join("rules.yml");
    std::fs::write(&rules, RULES).unwrap();
    promtool(&["check", "rules", rules.to_str().unwrap()]).unwrap();
    promtool(&["check", "rules", folder.path().to_str().unwrap()]).unwrap_err();

    // All of it in a namespace of its own; Alertmanager has metrics, too.
    let namespace = Namespace::new().unwrap();
    let within = Some(&namespace);
    let receiver = Receiver::start(within, 0).unwrap();
    let alertmanager = Alertmanager::start(within, 0, Some(&receiver.url("/alerts"))).unwrap();
    let addr = alertmanager.addr();
    let prometheus =
        Prometheus::start(within, &addr.to_string(), Some(&rules), Some(addr)).unwrap();
    let up = |wanted: &'static str| {
        move |series: &[Value]| series.len() == 1 && series[0]["value"][1] == wanted
    };
    prometheus.wait_for("up{job=\"detector\"}", up("1"), LONG).unwrap();
    prometheus.query("up(").unwrap_err();
    receiver.wait_until(|received| tells(received, "Scraped", "firing"), LONG).unwrap();
    assert_eq!(prometheus.alerts().unwrap()[0]["labels"]["severity"], "page");
    assert_eq!(alertmanager.alerts().unwrap()[0]["annotations"]["summary"], "it is");
    assert_eq!(alertmanager.groups().unwrap()[0]["labels"]["alertname"], "Scraped");

    alertmanager.stop();
    alertmanager.alerts().unwrap_err();
    prometheus.wait_for("up", up("0"), LONG).unwrap();
    receiver.take();
    alertmanager.restart().unwrap();
    assert_eq!(alertmanager.addr(), addr);
    alertmanager.post(&json!([{ "labels": { "alertname": "Posted" } }])).unwrap();
    receiver.wait_until(|received| tells(received, "Posted", "firing"), LONG).unwrap();
    let ended = json!([{ "labels": { "alertname": "Posted" }, "endsAt": "2020-01-01T00:00:01Z" }]);
    alertmanager.post(&ended).unwrap();
    receiver.wait_until(|received| tells(received, "Posted", "resolved"), LONG).unwrap();
    prometheus.wait_for("up", up("1"), LONG).unwrap();
}
