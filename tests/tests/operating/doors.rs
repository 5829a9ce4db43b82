//! The socket, the metrics and the probes, and the commands that ask.

use std::os::unix::fs::PermissionsExt as _;

use detector_tests::real::found_or_skip;
use detector_tests::real::http::{Request, over_tcp, over_unix};
use serde_json::{Value, json};

use super::stage::{EVIL, Stage, detector, hear, lacks, text};

#[test]
fn an_operator_sees_how_the_agent_is_and_what_stands() {
    if !found_or_skip("the agent's socket", &["ip"]) {
        return;
    }
    let stage = Stage::new(2);
    let agent = stage.start(&json!({}));
    let socket = stage.socket();
    let mode = std::fs::metadata(&socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "nobody else may ask");
    let socket = text(&socket).to_owned();
    let ask = |arguments: &[&str]| detector(&[arguments, &["--socket", &socket]].concat());

    let (out, err, code) = ask(&["findings"]);
    assert_eq!((out.as_str(), err.as_str(), code), ("no findings stand\n", "", Some(0)));
    let (out, _, code) = ask(&["status"]);
    assert_eq!(code, Some(0));
    assert!(out.contains("ready     yes\n"), "{out}");
    let degraded = lacks(&stage.ask("/v1/status"));
    assert_eq!(degraded, Vec::<String>::new(), "{out}");
    assert!(!out.contains('\u{1b}'), "no colour where there is no terminal");
    let (out, ..) = ask(&["status", "--color", "always"]);
    assert!(out.contains('\u{1b}'), "{out:?}");

    let key = Stage::key(0, EVIL[0]);
    stage.attack(0..1, EVIL[0]);
    hear(&agent, &key, "opened");
    let (out, _, code) = ask(&["findings", "--fail"]);
    assert_eq!(code, Some(1));
    let row = out.lines().nth(1).unwrap();
    for word in ["critical", "hijack", "route", "default/evil", "node node-b", &key] {
        assert!(row.contains(word), "{word} is not in {out}");
    }
    let (out, ..) = ask(&["findings", "-o", "json"]);
    let findings: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(findings[0]["key"], *key);
    let (out, ..) = ask(&["status", "-o", "json"]);
    let status: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((&status["ready"], &status["findingsStanding"]), (&json!(true), &json!(1)));

    // What makes no sense is one line.
    for (path, status) in
        [("/v1/explain?address=x", 400), ("/v1/nothing", 404), ("/v1/acknowledge", 404)]
    {
        let answer = over_unix(&stage.socket(), &Request::get(path)).unwrap();
        assert_eq!(answer.status, status, "{path}");
    }
    let wrong =
        Request::post("/v1/acknowledge", &json!({ "key": key, "by": "a\nb", "seconds": 5 }));
    assert_eq!(over_unix(&stage.socket(), &wrong).unwrap().status, 400);

    agent.stop().unwrap();
    assert!(!stage.socket().exists(), "the socket is left behind");
    let (_, err, code) = ask(&["status"]);
    assert_eq!(code, Some(2));
    assert_eq!(err.lines().count(), 1, "{err}");
    assert!(err.contains("no agent answers"), "{err}");
}

#[test]
fn over_tcp_there_are_probes_and_metrics_and_nothing_that_names_a_pod() {
    if !found_or_skip("the agent's probes", &["ip"]) {
        return;
    }
    let stage = Stage::new(2);
    let listen = "127.0.0.1:9465";
    let get = |path: &str| {
        over_tcp(Some(stage.node.namespace()), listen.parse().unwrap(), &Request::get(path))
            .unwrap()
    };
    let agent = stage.start(&json!({ "listen": listen }));
    stage.ask_until("/v1/status", |status| status["ready"] == true);
    assert_eq!((get("/livez").status, get("/readyz").status), (200, 200));
    assert_eq!(get("/v1/status").status, 404, "not for everybody");
    stage.attack(0..1, EVIL[0]);
    hear(&agent, &Stage::key(0, EVIL[0]), "opened");
    let metrics = get("/metrics").text();
    assert!(metrics.contains("detector_findings_total{state=\"opened\",verdict=\"hijack\",severity=\"critical\",means=\"route\"} 1"), "{metrics}");
    for private in ["evil", "10.99.0.1", "shop"] {
        assert!(!metrics.contains(private), "{private} is in the metrics");
    }
    // A second agent finds the address taken: it says so, and does its work.
    let second = stage.node.launch_agent(
        stage.words,
        "netlink",
        &json!({ "listen": listen, "socket": stage.folder.path().join("second") }),
        &[],
    );
    let mut second = second.unwrap();
    second.wait_until_ready().unwrap();
    let log = second.stop().unwrap();
    let said = |entry: &Value| entry["fields"]["capability"] == "metrics";
    assert!(log.iter().any(said), "{log:#?}");
    agent.stop().unwrap();
}

#[test]
fn the_agent_is_ready_when_what_it_cannot_see_is_declared() {
    if !found_or_skip("readiness without an API server", &["ip"]) {
        return;
    }
    let mut stage = Stage::new(1);
    stage.node.step(stage.words, &serde_saphyr::from_str("api: down").unwrap()).unwrap();
    let agent = stage
        .node
        .launch_agent(stage.words, "auto", &json!({ "socket": stage.socket() }), &[])
        .unwrap();
    while !stage.socket().exists() {
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let status = stage.ask_until("/v1/status", |status| status["ready"] == true);
    let degraded: Vec<&str> = status["degraded"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["capability"].as_str().unwrap())
        .collect();
    assert!(degraded.contains(&"pods") && degraded.contains(&"nodes"), "{degraded:?}");
    drop(agent);
}

#[test]
fn completions_man_pages_and_the_runbook_are_in_the_program() {
    let (out, _, code) = detector(&["completions", "bash"]);
    assert_eq!(code, Some(0));
    assert!(out.contains("test-alert"), "bash knows the commands");
    let (out, _, code) = detector(&["man"]);
    assert_eq!(code, Some(0));
    assert!(out.starts_with(".ie"), "{}", &out[..40]);
    let folder = tempfile::tempdir().unwrap();
    let (_, err, code) = detector(&["man", text(folder.path())]);
    assert_eq!(code, Some(0), "{err}");
    assert!(folder.path().join("detector-explain.1").is_file());
    let (out, _, code) = detector(&["runbook", "dnat"]);
    assert_eq!(code, Some(0));
    assert!(out.contains("## Contain it"));
    let (_, err, code) = detector(&["runbook", "nothing"]);
    assert_eq!((err.lines().count(), code), (1, Some(2)), "{err}");
}
