//! How soon a hijack is found while every sink takes what it is told, and while none does.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::real::http::{Request, over_unix};
use crate::real::journald::Journald;
use crate::real::receiver::{Manner, Receiver};
use crate::scenario::node::Node;
use crate::scenario::words::{Words, interface};
use crate::scenario::{Family, Scenario};

/// Hijacks of one round, and rounds of each sort, one after the other.
const HIJACKS: u32 = 200;
const ROUNDS: usize = 10;

/// How long a round may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// An attacker here, and victims that are another node's beyond doubt.
const WORLD: &str = r#"
id: bench
title: An attacker here, and a node with many addresses.
addresses:
  evil: [10.244.1.66, "fd00:10:244:1::66"]
  victim: [10.99.0.1, "fd00:10:99::1"]
nodes:
  node-b: [${VICTIMS}]
given:
  - pod: {name: default/evil, addresses: [evil]}
"#;

/// Measures, and prints both beside each other.
pub fn run() -> Result<()> {
    let victims: Vec<String> = (0..HIJACKS).map(|n| format!("victim+{n}")).collect();
    let scenario = Scenario::parse(&WORLD.replace("${VICTIMS}", &victims.join(", ")))?;
    let words = Words { scenario: &scenario, family: Family::Ipv4 };
    let mut node = Node::new(words)?;
    for step in &scenario.given {
        node.step(words, step)?;
    }
    let folder = tempfile::tempdir()?;
    let socket = folder.path().join("socket");
    let namespace = Some(node.namespace());
    let (hook, alertmanager) = (Receiver::start(namespace, 0)?, Receiver::start(namespace, 0)?);
    let journald = Journald::start()?;
    let agent = node.start_agent_with(
        words,
        "ebpf",
        &json!({
            "socket": socket,
            "state": folder.path().join("state"),
            "alerts": { "window": "1s", "perAttacker": 100_000, "perSink": 100_000 },
            "sinks": {
                "journald": { "enabled": true, "socket": journald.socket() },
                "alertmanagers": [{ "name": "alertmanager", "url": alertmanager.url("") }],
                "webhooks": [{ "name": "hook", "url": hook.url("/") }],
            },
        }),
    )?;
    let ask = |path: &str| over_unix(&socket, &Request::get(path))?.json();
    let dev = interface("default/evil")?;
    let mut latencies = [Vec::new(), Vec::new()];
    for round in 0..2 * ROUNDS {
        let stalled = round % 2 == 1;
        agent.listen(!stalled);
        if stalled {
            for receiver in [&hook, &alertmanager] {
                receiver.usually(Manner::Stall);
            }
            journald.freeze()?;
        } else {
            for receiver in [&hook, &alertmanager] {
                receiver.usually(Manner::status(200));
                receiver.release();
                receiver.take();
            }
            journald.thaw()?;
        }
        let routes = |verb: &str| -> Vec<String> {
            let first = u32::from(Ipv4Addr::new(10, 99, 0, 1));
            let route = |n| format!("route {verb} {}/32 dev {dev}", Ipv4Addr::from(first + n));
            (0..HIJACKS).map(route).collect()
        };
        // One by one: what is measured is one hijack, not a flood of them.
        for route in routes("add") {
            node.namespace().ip(&route)?;
        }
        let found = until(&ask, HIJACKS as usize)?;
        latencies[usize::from(stalled)].extend(found.iter().map(latency));
        if round == 1 {
            // It counts each second.
            let waits = |status: &Value| {
                let sinks = status["sinks"].as_array().into_iter().flatten();
                sinks.filter(|sink| sink["queued"].as_u64() > Some(0)).count() >= 3
            };
            let end = Instant::now() + PATIENCE;
            let mut status = ask("/v1/status")?;
            while !waits(&status) && Instant::now() < end {
                std::thread::sleep(Duration::from_millis(100));
                status = ask("/v1/status")?;
            }
            print_sinks(&status);
        }
        node.namespace().ip_batch(false, &routes("del"))?;
        until(&ask, 0)?;
    }
    agent.listen(true);
    for receiver in [&hook, &alertmanager] {
        receiver.usually(Manner::status(200));
        receiver.release();
    }
    journald.thaw()?;
    agent.stop()?;
    for (latencies, name) in latencies.iter_mut().zip(["every sink takes it", "every sink stalls"])
    {
        latencies.sort_unstable();
        let at = |share: usize| latencies[(latencies.len() - 1) * share / 100];
        println!(
            "{name}: {} hijacks, found after p50 {:.0?}, p90 {:.0?}, p99 {:.0?}",
            latencies.len(),
            at(50),
            at(90),
            at(99)
        );
    }
    let middle = |latencies: &[Duration]| latencies[latencies.len() / 2].as_secs_f64();
    println!("ratio of the medians: {:.3}", middle(&latencies[1]) / middle(&latencies[0]));
    Ok(())
}

/// From the kernel's change to the finding.
fn latency(finding: &Value) -> Duration {
    let nanos = |name: &str| finding["bootTime"][name].as_u64().unwrap_or_default();
    Duration::from_nanos(nanos("told").saturating_sub(nanos("began")))
}

/// The findings that stand, when they are so many.
fn until(ask: &impl Fn(&str) -> Result<Value>, many: usize) -> Result<Vec<Value>> {
    let end = Instant::now() + PATIENCE;
    loop {
        let found = ask("/v1/findings")?;
        let found = found.as_array().context("findings are a list")?;
        if found.len() == many {
            return Ok(found.clone());
        }
        ensure!(Instant::now() < end, "{} findings stand, not {many}", found.len());
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn print_sinks(status: &Value) {
    for sink in status["sinks"].as_array().into_iter().flatten() {
        println!(
            "while all stall: {}: {} wait, {} dropped",
            sink["name"].as_str().unwrap_or_default(),
            sink["queued"],
            sink["dropped"]
        );
    }
}
