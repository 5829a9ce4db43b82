//! A node on which all is well: the alert arrives everywhere, marked as a test.

use std::net::TcpListener;

use detector_tests::cluster::programs::Programs;
use detector_tests::cluster::{Cluster, User};
use detector_tests::netns::Namespace;
use detector_tests::real::found_or_skip;
use detector_tests::real::journald::{self, Journald};
use detector_tests::real::receiver::Receiver;
use detector_tests::relay::Relay;
use serde_json::{Value, json};

use super::stage::{ADDRESS, LONG, NODE, Said, Selftest, all_there_is, node, pod};

/// Who is told of the node's alerts.
struct Ears {
    hook: Receiver,
    alertmanager: Receiver,
}

// === impl Ears ===

impl Ears {
    fn new(namespace: Option<&Namespace>) -> Self {
        let start = || Receiver::start(namespace, 0).unwrap();
        Self { hook: start(), alertmanager: start() }
    }

    fn config(&self) -> Value {
        json!({ "sinks": {
            "events": { "enabled": true },
            "webhooks": [{ "name": "hook", "url": self.hook.url("/"), "leastSeverity": "critical" }],
            "alertmanagers": [{ "name": "alerts", "url": self.alertmanager.url("") }],
        } })
    }

    /// Each has been told of the canary's finding and of its end, as of a test.
    fn check(&self, said: &Said, cluster: &Cluster) {
        assert_eq!((said.code, &*said.err), (Some(0), ""), "{said:#?}");
        assert_eq!(said.report["passed"], true);
        assert_eq!(said.report["node"], NODE);
        let (outcome, text) = said.stage("finding");
        assert_eq!(outcome, "ok", "{text}");
        assert!(text.starts_with("hijack of node node-a, told "), "{text}");
        assert_eq!(said.stage("api").0, "ok");
        assert!(said.stage("questions").1.starts_with("1 answered"), "{said:#?}");
        for sink in ["sink:stdout", "sink:hook", "sink:alerts", "sink:events"] {
            let (outcome, text) = said.stage(sink);
            assert!(outcome == "ok" && text.starts_with("took it in "), "{sink}: {text}");
        }

        let key = &said.findings[0]["key"];
        assert!(key.as_str().unwrap().starts_with(&format!("{ADDRESS}/32 dev calitest")), "{key}");
        let states: Vec<&Value> = said.findings.iter().map(|finding| &finding["state"]).collect();
        assert_eq!(states, ["opened", "closed"]);
        for finding in &said.findings {
            assert_eq!((&finding["test"], &finding["verdict"]), (&json!(true), &json!("hijack")));
            assert_eq!(finding["victim"]["name"], NODE);
            assert_eq!(&finding["key"], key);
        }
        let posted: Vec<Value> =
            self.hook.take().iter().map(|one| one.request.json().unwrap()).collect();
        assert_eq!(posted, said.findings, "the webhook has what standard output has");
        let is_over = |one: &Value| {
            let ends: jiff::Timestamp = one["endsAt"].as_str().unwrap().parse().unwrap();
            ends <= jiff::Timestamp::now()
        };
        let alerts = self.alertmanager.take();
        let alerts = alerts.iter().map(|one| one.request.json().unwrap()[0].clone());
        let alerts: Vec<Value> = alerts.collect();
        assert!(alerts.iter().all(|alert| alert["labels"]["alertname"] == "RouteHijackTest"));
        assert!(!is_over(&alerts[0]) && is_over(alerts.last().unwrap()), "{alerts:#?}");
        let events = cluster.kubectl(&["describe", "node", NODE]).unwrap();
        let (_, events) = events.split_once("Events:").unwrap();
        assert!(events.contains("RouteHijackTest ") && events.contains("RouteHijackTestOver"));
        assert!(!events.contains("Warning"), "nobody is warned: {events}");
        cluster.kubectl(&["delete", "events", "--all", "-n", "default"]).unwrap();
    }
}

#[test]
fn the_alert_arrives_everywhere_by_either_source() {
    let Some(programs) = Programs::find_or_skip("a selftest with a real API server") else {
        return;
    };
    if !found_or_skip("a selftest with a real API server", &["ip", "tc"]) {
        return;
    }
    let cluster = Cluster::start(programs).unwrap();
    cluster.objects().apply(node()).unwrap();
    // In a network namespace that it makes: the host's is as it was.
    let ears = Ears::new(None);
    let kubeconfig = cluster.kubeconfig(User::Agent, cluster.addr());
    let before = all_there_is(None);
    for source in ["ebpf", "netlink"] {
        let flags = ["--route-source", source];
        let said = Selftest::new(&ears.config()).with(&kubeconfig).flags(&flags).run();
        assert_eq!(said.stage("namespace"), ("ok", "a new one"));
        assert_eq!(said.stage("routes"), ("ok", &*format!("seen by {source}")));
        ears.check(&said, &cluster);
    }
    assert_eq!(all_there_is(None), before);

    // In that of a pod, whose way to the API server is its own.
    let namespace = pod();
    let ears = Ears::new(Some(&namespace));
    let listener = namespace.within(|| TcpListener::bind("127.0.0.1:0")).unwrap();
    let relay = Relay::start(listener, cluster.addr()).unwrap();
    let kubeconfig = cluster.kubeconfig(User::Agent, relay.addr());
    let before = all_there_is(Some(&namespace));
    for source in ["ebpf", "netlink"] {
        let flags = ["--route-source", source];
        let selftest = Selftest::new(&ears.config()).with(&kubeconfig).flags(&flags);
        let said = selftest.here(&namespace).run();
        ears.check(&said, &cluster);
        assert_eq!(all_there_is(Some(&namespace)), before);
    }
    // With what a pod of the chart may do, and no more.
    if found_or_skip("a selftest with three capabilities", &["setpriv"]) {
        let selftest = Selftest::new(&ears.config()).with(&kubeconfig).here(&namespace);
        let said = selftest.capabilities(&["bpf", "perfmon", "net_admin"]).run();
        assert_eq!(said.stage("routes"), ("ok", "seen by ebpf"));
        assert_eq!(said.stages("degraded"), Vec::<&str>::new(), "{said:#?}");
        ears.check(&said, &cluster);
        assert_eq!(all_there_is(Some(&namespace)), before);
    }
}

#[test]
fn journald_has_the_test_and_people_read_a_line_for_each_stage() {
    if !found_or_skip("a selftest with journald", journald::PROGRAMS) {
        return;
    }
    let journald = Journald::start().unwrap();
    let config =
        json!({ "sinks": { "journald": { "enabled": true, "socket": journald.socket() } } });
    let said = Selftest::new(&config).flags(&["--no-api"]).run();
    assert_eq!(said.code, Some(0), "{said:#?}");
    assert_eq!(said.stage("api").0, "skipped");
    assert!(said.stage("finding").1.starts_with("hijack of "), "{said:#?}");
    assert_eq!(said.stage("sink:journald").0, "ok");
    let fields = ["DETECTOR_TEST=1", "DETECTOR_STATE=opened"];
    let entries = journald.wait_for(1, &fields, LONG).unwrap();
    assert_eq!(entries[0]["DETECTOR_KEY"], said.findings[0]["key"]);
    journald.wait_for(1, &["DETECTOR_TEST=1", "DETECTOR_STATE=closed"], LONG).unwrap();

    let flags = ["--no-api", "--without-sink", "stdout"];
    let output = Selftest::new(&config).flags(&flags).text();
    let words: Vec<(&str, &str)> = output
        .lines()
        .map(|line| {
            let mut words = line.split_whitespace();
            (words.next().unwrap(), words.next().unwrap())
        })
        .filter(|(outcome, _)| *outcome != "degraded")
        .collect();
    let expected = [
        ("ok", "namespace"),
        ("ok", "routes"),
        ("skipped", "api"),
        ("ok", "canary"),
        ("ok", "finding"),
        ("ok", "sink:journald"),
    ];
    assert_eq!(words, expected, "{output}");
}
