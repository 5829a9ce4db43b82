//! Measures the agent on a real kernel, each figure beside another of the same run.

#![allow(clippy::cast_precision_loss, reason = "figures for people have three digits")]

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use detector_core::time::BootTime;
use detector_tests::agent::{Agent, now};
use detector_tests::measure::{flood, interfaces, sinks, throughput, writer};
use detector_tests::process::{cpu, memory};
use detector_tests::rawroute::{RouteWriter, nth};
use detector_tests::scenario::node::Node;
use detector_tests::scenario::words::{Words, interface};
use detector_tests::scenario::{Family, Scenario, UPLINK};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use serde_json::json;

/// Hijacks that the latency is taken over.
const HIJACKS: u32 = 3_000;

/// How long one finding may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// `RTMGRP_IPV4_ROUTE` of linux/rtnetlink.h.
const IPV4_ROUTE_GROUP: u32 = 1 << 6;

/// Routes that stand at once in each round of the churn, and rounds of making and unmaking them.
const STANDING: u32 = 100_000;
const ROUNDS: u32 = 5;

/// A victim and an attacker on one node.
const WORLD: &str = r#"
id: bench
title: A victim and an attacker on one node.
addresses:
  cart: [10.244.1.5, "fd00:10:244:1::5"]
  evil: [10.244.1.66, "fd00:10:244:1::66"]
given:
  - pod: {name: shop/cart, addresses: [cart]}
  - pod: {name: default/evil, addresses: [evil]}
"#;

/// Two pods that can talk to each other: whoever has sent has its address.
const PODS: &str = r#"
id: bench
title: Two pods that talk.
addresses:
  cart: [10.244.1.5, "fd00:10:244:1::5"]
  web: [10.244.1.20, "fd00:10:244:1::20"]
given:
  - pod: {name: shop/cart, addresses: [cart]}
  - pod: {name: shop/web, addresses: [web]}
  - send: {from: shop/web, to: cart}
  - send: {from: shop/cart, to: web}
"#;

/// A victim far away, an attacker here, and packets.
const FAR: &str = r#"
id: bench
title: A victim far away and an attacker here.
addresses:
  cart: [10.244.1.5, "fd00:10:244:1::5"]
  evil: [10.244.1.66, "fd00:10:244:1::66"]
given:
  - pod: {name: shop/cart, node: node-b, addresses: [cart]}
  - pod: {name: default/evil, addresses: [evil]}
  - send: {from: default/evil, to: cart}
"#;

const CART: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 5);

fn main() -> Result<()> {
    let (world, pods) = (Scenario::parse(WORLD)?, Scenario::parse(PODS)?);
    let words = Words { scenario: &world, family: Family::Ipv4 };
    let talking = Words { scenario: &pods, family: Family::Ipv4 };
    match std::env::args().nth(1).as_deref() {
        Some("latency") => latency(words),
        Some("churn") => churn(words),
        Some("writer") => writer::run(),
        Some("interfaces") => interfaces::run(talking, &node(talking)?, "shop/web", CART),
        Some("throughput") => {
            let nodes = [node(talking)?, node(talking)?];
            let address = &CART.to_string();
            let pods = throughput::Pods { from: "shop/web", to: "shop/cart", address };
            throughput::run(talking, &nodes, &pods)
        }
        Some("flood") => {
            let far = Scenario::parse(FAR)?;
            let words = Words { scenario: &far, family: Family::Ipv4 };
            flood::run(words, &node(words)?, "default/evil", CART)
        }
        Some("sinks") => sinks::run(),
        _ => bail!("say which: latency, churn, writer, interfaces, throughput, flood or sinks"),
    }
}

fn node(words: Words<'_>) -> Result<Node<'_>> {
    let mut node = Node::new(words)?;
    for step in &words.scenario.given {
        node.step(words, step)?;
    }
    Ok(node)
}

/// From the kernel's change to a reader of the agent's output, beside a plain listener.
fn latency(words: Words<'_>) -> Result<()> {
    let node = node(words)?;
    let agent = node.start_agent(words, "ebpf")?;
    let evil = interface("default/evil")?;
    let mut samples: Vec<[Duration; 3]> = Vec::new();
    // A socket stays in the namespace that it was made in.
    let (index, mut writer, listener) = node.namespace().within(|| -> Result<_> {
        let mut listener = Socket::new(NETLINK_ROUTE)?;
        listener.bind(&SocketAddr::new(0, IPV4_ROUTE_GROUP))?;
        Ok((nix::net::if_::if_nametoindex(evil.as_str())?, RouteWriter::new()?, listener))
    })?;
    let (tell, heard_plainly) = std::sync::mpsc::channel::<BootTime>();
    std::thread::spawn(move || {
        let mut buffer = Vec::with_capacity(8192);
        loop {
            buffer.clear();
            if listener.recv(&mut buffer, 0).is_err() || tell.send(now()).is_err() {
                return;
            }
        }
    });
    // The victim's own route stands, so the attacker's is one of another metric.
    for _ in 0..HIJACKS {
        writer.change(true, (CART, 32), 5_000, index)?;
        writer.flush()?;
        let plain = heard_plainly.recv_timeout(PATIENCE)?;
        let opened = agent.next_finding(PATIENCE)?.context("not found")?;
        let time = |name: &str| {
            let nanos = opened.finding["bootTime"][name].as_u64();
            nanos.map(BootTime::from_nanos).context("a time")
        };
        let began = time("began")?;
        samples.push([plain.since(began), time("told")?.since(began), opened.at.since(began)]);
        writer.change(false, (CART, 32), 5_000, index)?;
        writer.flush()?;
        heard_plainly.recv_timeout(PATIENCE)?;
        agent.next_finding(PATIENCE)?.context("not closed")?;
    }
    agent.stop()?;
    println!("{HIJACKS} hijacks, from the kernel's own stamp of the route change:");
    println!("{:<34} {:>10} {:>10} {:>10} {:>10}", "", "p50", "p90", "p99", "max");
    let names = [
        "plain rtnetlink listener has it",
        "agent has the finding to tell ",
        "reader has the line",
    ];
    for (at, name) in names.iter().enumerate() {
        let mut times: Vec<Duration> = samples.iter().map(|sample| sample[at]).collect();
        times.sort_unstable();
        let quantile = |per_mille: usize| times[(times.len() - 1) * per_mille / 1000];
        let [p50, p90, p99, max] = [500, 900, 990, 1000].map(quantile);
        println!("{name:<34} {p50:>10.1?} {p90:>10.1?} {p99:>10.1?} {max:>10.1?}");
    }
    Ok(())
}

/// What one pass of changes took.
struct Pass {
    host: Duration,
    wide: Duration,
    made: u64,
}

fn churn(words: Words<'_>) -> Result<()> {
    let changes = u64::from(STANDING) * u64::from(ROUNDS) * 2;
    println!(
        "{changes} changes of host routes and {changes} of others, {STANDING} standing at once"
    );
    let quiet = node(words)?;
    let off = pass(&quiet, None)?;
    drop(quiet);
    for (name, ring) in [("with the default ring", 4 << 20), ("with a ring of 64 KiB", 64 << 10)] {
        let node = node(words)?;
        let agent = node.start_agent_with(words, "ebpf", &json!({ "ringBytes": ring }))?;
        println!("\n{name}:");
        let lost = watched(&node, agent, &off)?;
        ensure!(ring > 64 << 10 || lost > 0, "the small ring was large enough: nothing was shown");
    }
    Ok(())
}

/// A pass with an agent that watches; gives how many records it lost.
fn watched(node: &Node, agent: Agent, off: &Pass) -> Result<u64> {
    let changes = u64::from(STANDING) * u64::from(ROUNDS) * 2;
    let pid = agent.pid();
    let (used, idle) = (cpu(pid)?, memory(pid, "VmRSS")?);
    let on = pass(node, Some(&interface("default/evil")?))?;
    let end = Instant::now() + Duration::from_secs(30);
    let mut found = None;
    while found.is_none() && Instant::now() < end {
        found = agent.next_finding(Duration::from_secs(1))?.filter(|heard| {
            heard.finding["attacker"]["pod"] == "evil" && heard.finding["state"] == "opened"
        });
    }
    let hijack = found.context("the hijack among them was not found")?;
    let cpu = cpu(pid)? - used;
    let peak = memory(pid, "VmHWM")?;
    let logged = agent.stop()?;
    let last = logged.last().map(|entry| entry["fields"].clone()).unwrap_or_default();
    let count = |name: &str| last[name].as_u64().unwrap_or_default();
    let [seen, written, filtered, missed, unparsed] =
        ["seen", "written", "filtered", "lost", "unparsed"].map(count);

    let rate = |took: Duration| changes as f64 / took.as_secs_f64() / 1_000.0;
    println!("{:<30} {:>10} {:>10} {:>8}", "", "agent off", "agent on", "ratio");
    let rows = [
        ("host routes, thousand/s", off.host, on.host),
        ("other routes, thousand/s", off.wide, on.wide),
    ];
    for (name, off, on) in rows {
        let (off, on) = (rate(off), rate(on));
        println!("{name:<30} {off:>10.0} {on:>10.0} {:>8.2}", on / off);
    }
    println!("hijack found: {}", hijack.finding["reason"].as_str().unwrap_or_default());
    println!(
        "made {}; seen {seen} = written {written} + filtered {filtered} + lost {missed} + unparsed \
         {unparsed}; dumps {}",
        on.made,
        count("dumps")
    );
    println!("agent: {cpu:.2} s of CPU; RSS {idle} KiB before, {peak} KiB at its peak");
    ensure!(seen == written + filtered + missed + unparsed, "a record is not accounted for");
    ensure!(seen >= on.made, "fewer messages seen than changes made");
    ensure!(peak <= 64 << 10, "the agent took more than 64 MiB");
    Ok(missed)
}

/// A million changes of each sort, with a hijack in the middle where there is an attacker.
fn pass(node: &Node, attacker: Option<&str>) -> Result<Pass> {
    node.namespace().within(|| {
        let uplink = nix::net::if_::if_nametoindex(UPLINK)?;
        let mut writer = RouteWriter::new()?;
        let hosts = Ipv4Addr::new(100, 64, 0, 0);
        let started = Instant::now();
        for round in 0..ROUNDS {
            for n in 0..STANDING {
                writer.change(true, (nth(hosts, n), 32), 0, uplink)?;
                if let Some(attacker) = attacker.filter(|_| round == 2 && n == STANDING / 2) {
                    let index = nix::net::if_::if_nametoindex(attacker)?;
                    writer.change(true, (CART, 32), 5_000, index)?;
                }
            }
            for n in 0..STANDING {
                writer.change(false, (nth(hosts, n), 32), 0, uplink)?;
            }
        }
        writer.flush()?;
        let host = started.elapsed();
        let started = Instant::now();
        for _ in 0..ROUNDS {
            for present in [true, false] {
                for n in 0..STANDING {
                    let to = nth(Ipv4Addr::new(20, 0, 0, 0), n * 256);
                    writer.change(present, (to, 24), 0, uplink)?;
                }
            }
        }
        writer.flush()?;
        Ok(Pass { host, wide: started.elapsed(), made: writer.made })
    })
}
