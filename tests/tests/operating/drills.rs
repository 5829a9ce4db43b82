//! Hooks that the kernel refuses, or is said to: each degrades what it is for, and nothing else.

use std::process::{Command, Stdio};

use detector_tests::real::found_or_skip;
use detector_tests::real::http::{Request, over_tcp};
use serde_json::Value;

use super::stage::{EVIL, Stage};

/// Where metrics are, within the namespace.
const LISTEN: &str = "127.0.0.1:9465";

/// A hook, and what is degraded without it.
const HOOKS: [(&str, &[&str]); 6] = [
    ("route", &["refused-ipv4-routes", "refused-ipv6-routes", "routes-by-ebpf", "writers"]),
    ("tasks,fexit-ipv4,kprobe-ipv4", &["refused-ipv4-routes", "writers"]),
    ("fexit-ipv4,kprobe-ipv4", &["refused-ipv4-routes"]),
    ("fexit-ipv6,kprobe-ipv6", &["refused-ipv6-routes"]),
    ("packets", &["packets"]),
    ("connections", &["connection-filter"]),
];

/// What is degraded without the API server, and on a host that lets no functions be traced.
const ANYHOW: [&str; 9] = [
    "allowances",
    "connections",
    "feature",
    "nodes",
    "pods",
    "pools",
    "refused-ipv4-routes",
    "refused-ipv6-routes",
    "services",
];

#[test]
fn a_refused_hook_degrades_one_thing_and_stops_nothing() {
    if !found_or_skip("an agent whose hooks are refused", &["ip"]) {
        return;
    }
    let stage = Stage::new(1);
    for (hooks, degraded) in HOOKS {
        let socket = stage.socket();
        let log = stage.state().with_extension("log");
        let mut command = Command::new(detector_tests::agent::program().unwrap());
        command.args(["run", "--node-name", "node-a", "--no-api", "--state", "none"]);
        command.args(["--listen", LISTEN, "--refuse", hooks, "--socket"]).arg(&socket);
        command.stdout(Stdio::null()).stderr(std::fs::File::create(&log).unwrap());
        stage.node.namespace().hold(&mut command);
        let mut agent = Ended(command.spawn().unwrap());
        // Who writes is found out in a thread of its own, which a busy machine may be late with.
        let lists = |status: &Value, name: &str| {
            let mut all = status["degraded"].as_array().into_iter().flatten();
            all.any(|one| one["capability"] == name)
        };
        let status = stage.ask_until("/v1/status", |status| {
            status["ready"] == true && degraded.iter().all(|name| lists(status, name))
        });
        let names: Vec<&str> = status["degraded"]
            .as_array()
            .unwrap()
            .iter()
            .map(|one| one["capability"].as_str().unwrap())
            .collect();
        for name in degraded {
            assert!(names.contains(name), "without {hooks}: {names:?}");
        }
        for name in &names {
            let known = degraded.contains(name) || ANYHOW.contains(name);
            assert!(known, "without {hooks} {name} is degraded as well");
        }
        let request = Request::get("/metrics");
        let namespace = Some(stage.node.namespace());
        let metrics = over_tcp(namespace, LISTEN.parse().unwrap(), &request).unwrap();
        let metrics = String::from_utf8(metrics.body).unwrap();
        let said = std::fs::read_to_string(&log).unwrap();
        for name in degraded {
            let shown = format!("detector_degraded{{capability=\"{name}\"}} 1");
            assert!(metrics.contains(&shown), "without {hooks}: {metrics}");
            assert!(said.contains(name), "without {hooks} the log says nothing of {name}: {said}");
        }
        assert!(agent.0.try_wait().unwrap().is_none(), "without {hooks} it has ended: {said}");
        // It still sees what changes in the kernel.
        let explain = format!("/v1/explain?address={}", Stage::victim(0));
        stage.attack(0..1, EVIL[0]);
        stage.ask_until(&explain, |explained| ways(explained) == 1);
        stage.relent(0..1, EVIL[0]);
        stage.ask_until(&explain, |explained| ways(explained) == 0);
    }
}

/// How many routes the agent knows to the address that is explained. How many it knows at all is
/// no measure: the kernel adds those of link-local addresses when it is sure that they are unique.
fn ways(explained: &Value) -> usize {
    explained["routes"].as_array().unwrap().len()
}

/// An agent that ends with this.
struct Ended(std::process::Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
