//! What two pods can send to each other, with the agent and without it.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use aya::programs::{SchedClassifier, TcAttachType};
use serde_json::Value;

use crate::netns::Namespace;
use crate::scenario::node::Node;
use crate::scenario::words::{Words, interface};

/// Measurements of each sort, with and without in turn.
const ROUNDS: usize = 9;

/// Seconds that one takes.
const SECONDS: &str = "3";

/// What is sent.
#[derive(Clone, Copy)]
enum Sort {
    /// TCP, as much as goes.
    Bulk,
    /// UDP datagrams of 64 bytes, as many as go.
    Small,
}

/// Measures in turn, and prints the medians, and that of the ratios of each turn: machines are now
/// quicker, now slower.
pub fn run(words: Words<'_>, node: &Node<'_>, from: &str, to: &str, address: &str) -> Result<()> {
    let (client, server) = (node.pod_namespace(from)?, node.pod_namespace(to)?);
    let pods = [interface(from)?, interface(to)?];
    let mut figures: [[Vec<f64>; 2]; 2] = Default::default();
    for round in 0..ROUNDS {
        // Whichever is first has no advantage in the long run.
        let with_first = round % 2 == 1;
        for with in [with_first, !with_first] {
            let agent = if with { Some(node.start_agent(words, "ebpf")?) } else { None };
            if with {
                node.namespace().within(|| wait_for_tcx(&pods))?;
            }
            for (at, sort) in [Sort::Bulk, Sort::Small].into_iter().enumerate() {
                let figure = measure(client, server, address, sort)?;
                figures[at][usize::from(with)].push(figure);
            }
            if let Some(agent) = agent {
                agent.stop()?;
            }
        }
    }
    println!("{:<44} {:>12} {:>12} {:>8}", "", "without", "with", "ratio");
    for (what, [without, with]) in
        ["TCP, bulk: Gbit/s", "UDP, 64 bytes: thousand received/s"].iter().zip(&mut figures)
    {
        let mut ratios: Vec<f64> = without.iter().zip(&*with).map(|(a, b)| b / a).collect();
        let (without, with, ratio) = (median(without), median(with), median(&mut ratios));
        println!("{what:<44} {without:>12.2} {with:>12.2} {ratio:>8.3}");
    }
    Ok(())
}

/// Waits until the programs hang where they stay, which takes some seconds; at once on a kernel without
/// TCX.
fn wait_for_tcx(interfaces: &[String]) -> Result<()> {
    let end = Instant::now() + Duration::from_secs(20);
    let hangs = |interface: &String| {
        SchedClassifier::query_tcx(interface, TcAttachType::Ingress)
            .map_or(true, |(_, programs)| !programs.is_empty())
    };
    while !interfaces.iter().all(hangs) {
        ensure!(Instant::now() < end, "the programs are not moved to TCX");
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

fn median(figures: &mut [f64]) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

fn measure(client: &Namespace, server: &Namespace, address: &str, sort: Sort) -> Result<f64> {
    let mut listen = Command::new("iperf3");
    listen.args(["--server", "--one-off", "--forceflush"]);
    listen.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    server.hold(&mut listen);
    let mut listen = listen.spawn().context("cannot start iperf3: install it")?;
    wait_until_it_listens(&mut listen)?;
    let mut send = Command::new("iperf3");
    send.args(["--client", address, "--time", SECONDS, "--json"]);
    if matches!(sort, Sort::Small) {
        send.args(["--udp", "--length", "64", "--bitrate", "0"]);
    }
    client.hold(&mut send);
    let output = send.output().context("cannot start iperf3")?;
    let _ = listen.kill();
    listen.wait()?;
    let report: Value = serde_json::from_slice(&output.stdout).context("what iperf3 says")?;
    ensure!(output.status.success() && report["error"].is_null(), "iperf3: {}", report["error"]);
    let end = &report["end"];
    let number = |value: &Value| value.as_f64().with_context(|| format!("no figure in {end}"));
    match sort {
        Sort::Bulk => Ok(number(&end["sum_received"]["bits_per_second"])? / 1e9),
        Sort::Small => {
            let sum = &end["sum"];
            let received = number(&sum["packets"])? - number(&sum["lost_packets"])?;
            Ok(received / number(&sum["seconds"])? / 1e3)
        }
    }
}

/// It says so itself.
fn wait_until_it_listens(server: &mut Child) -> Result<()> {
    use std::io::{BufRead as _, BufReader};

    let stdout = server.stdout.take().context("its output is piped")?;
    let mut lines = BufReader::new(stdout).lines();
    let heard = lines.by_ref().map_while(Result::ok).any(|line| line.contains("listening"));
    ensure!(heard, "iperf3 does not listen");
    // It goes on talking, and must not be stopped by nobody listening.
    std::thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
    Ok(())
}
