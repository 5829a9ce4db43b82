//! What two pods can send to each other, with the agent and without it.
//!
//! Machines are now quicker, now slower, by more than what is to be seen. So there are two nodes, one
//! with the agent and one without it, on which short measurements take turns; half-way the agent goes
//! over to the other. What the agent takes beside its programs is not seen that way, as it takes it from
//! both: `bench footprint` is for that.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use aya::programs::{SchedClassifier, TcAttachType, loaded_programs};
use aya::sys::{Stats, enable_stats};
use serde_json::Value;

use super::middle;
use crate::netns::Namespace;
use crate::scenario::node::Node;
use crate::scenario::words::{Words, interface};

/// Pairs of measurements with the agent on either node.
const PAIRS: usize = 400;

/// The programs of a pod's interface.
const PROGRAMS: [&str; 2] = ["from_pod", "outward"];

/// Bytes that are sent in one, which takes a quarter of a second.
const BULK: &str = "512M";
const SMALL: &str = "3200K";

/// How long the server may take until it listens.
const PATIENCE: Duration = Duration::from_secs(20);

/// What is sent.
#[derive(Clone, Copy)]
enum Sort {
    /// TCP, as much as goes.
    Bulk,
    /// UDP datagrams of 64 bytes, as many as go.
    Small,
}

/// Two pods that talk, on a node of theirs.
struct Talk<'a> {
    client: &'a Namespace,
    address: &'a str,
    server: Child,
    /// Each time that the server listens: after each client it stops, and begins anew.
    listens: Receiver<()>,
}

/// Who is to talk.
pub struct Pods<'a> {
    /// Who sends.
    pub from: &'a str,
    /// Who receives.
    pub to: &'a str,
    /// The receiver's address.
    pub address: &'a str,
}

/// Measures, and prints the medians, and that of the ratios of the pairs with the interval in which it
/// is by 95 %.
pub fn run(words: Words<'_>, nodes: &[Node<'_>; 2], pods: &Pods<'_>) -> Result<()> {
    let interfaces = [interface(pods.from)?, interface(pods.to)?];
    let talks = [Talk::begin(&nodes[0], pods)?, Talk::begin(&nodes[1], pods)?];
    let mut figures: [Vec<[f64; 2]>; 2] = Default::default();
    let mut spent = Vec::new();
    for guarded in [0, 1] {
        let agent = nodes[guarded].start_agent(words, "ebpf")?;
        nodes[guarded].namespace().within(|| wait_for_tcx(&interfaces))?;
        for (at, sort) in [Sort::Bulk, Sort::Small].into_iter().enumerate() {
            for pair in 0..PAIRS {
                // Whichever is first has no advantage in the long run.
                let with_first = pair % 2 == 1;
                let mut both = [0.0; 2];
                for with in [with_first, !with_first] {
                    let talk = &talks[if with { guarded } else { 1 - guarded }];
                    both[usize::from(with)] = talk.measure(sort)?;
                }
                figures[at].push(both);
            }
            if guarded == 1 {
                spent.push(Spent::in_programs(|| talks[guarded].measure(sort))?);
            }
        }
        agent.stop()?;
    }
    println!("{:<44} {:>9} {:>9} {:>8}   95 % sure", "", "without", "with", "ratio");
    let names = ["TCP, bulk: Gbit/s", "UDP, 64 bytes: thousand received/s"];
    for (what, pairs) in names.iter().zip(&figures) {
        let without = median(pairs.iter().map(|pair| pair[0]));
        let with = median(pairs.iter().map(|pair| pair[1]));
        let [least, ratio, most] = middle(pairs.iter().map(|pair| pair[1] / pair[0]));
        println!("{what:<44} {without:>9.2} {with:>9.2} {ratio:>8.3}   {least:.3} to {most:.3}");
    }
    println!("\nOf the time of one core the programs took, as the kernel counts it:");
    for (what, spent) in ["TCP", "UDP"].iter().zip(&spent) {
        let Spent { runs, nanoseconds, share } = spent;
        println!("{what}: {:.2} %, {nanoseconds:.0} ns in each of {runs} runs", share * 100.0);
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

fn median(figures: impl Iterator<Item = f64>) -> f64 {
    middle(figures)[1]
}

/// What the kernel spends in programs.
struct Spent {
    runs: u32,
    /// Of one run.
    nanoseconds: f64,
    /// Of the time of one core.
    share: f64,
}

// === impl Spent ===

impl Spent {
    /// While something is done, by the kernel's count, which is not free either.
    fn in_programs<T>(done: impl FnOnce() -> Result<T>) -> Result<Self> {
        let _counting = enable_stats(Stats::RunTime).context("the kernel does not count")?;
        let (before, begun) = (Self::counted()?, Instant::now());
        done()?;
        let (after, took) = (Self::counted()?, begun.elapsed());
        let runs = u32::try_from(after.0 - before.0).context("more runs than there are packets")?;
        ensure!(runs > 0, "no program has run");
        let spent = after.1.saturating_sub(before.1).as_secs_f64();
        Ok(Self {
            runs,
            nanoseconds: spent * 1e9 / f64::from(runs),
            share: spent / took.as_secs_f64(),
        })
    }

    /// How often programs on interfaces have run, and how long in all.
    fn counted() -> Result<(u64, Duration)> {
        let (mut runs, mut time) = (0, Duration::ZERO);
        for program in loaded_programs() {
            let program = program.context("cannot ask which programs there are")?;
            if PROGRAMS.iter().any(|name| program.name_as_str() == Some(name)) {
                runs += program.run_count();
                time += program.run_time();
            }
        }
        Ok((runs, time))
    }
}

// === impl Talk ===

impl<'a> Talk<'a> {
    fn begin(node: &'a Node<'_>, pods: &Pods<'a>) -> Result<Self> {
        let mut listen = Command::new("iperf3");
        listen.args(["--server", "--forceflush"]);
        listen.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        crate::process::end_with_thread(&mut listen);
        node.pod_namespace(pods.to)?.hold(&mut listen);
        let mut server = listen.spawn().context("cannot start iperf3: install it")?;
        let listens = listening(&mut server)?;
        let client = node.pod_namespace(pods.from)?;
        Ok(Self { client, address: pods.address, server, listens })
    }

    fn measure(&self, sort: Sort) -> Result<f64> {
        self.listens.recv_timeout(PATIENCE).context("iperf3 does not listen")?;
        let mut send = Command::new("iperf3");
        send.args(["--client", self.address, "--json", "--bytes"]);
        match sort {
            Sort::Bulk => send.arg(BULK),
            Sort::Small => send.args([SMALL, "--udp", "--length", "64", "--bitrate", "0"]),
        };
        self.client.hold(&mut send);
        let output = send.output().context("cannot start iperf3")?;
        let report: Value = serde_json::from_slice(&output.stdout).context("what iperf3 says")?;
        ensure!(
            output.status.success() && report["error"].is_null(),
            "iperf3: {}",
            report["error"]
        );
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
}

impl Drop for Talk<'_> {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// Hears the server say that it listens, each time.
fn listening(server: &mut Child) -> Result<Receiver<()>> {
    let stdout = server.stdout.take().context("its output is piped")?;
    let (tell, told) = channel();
    std::thread::spawn(move || {
        // It goes on talking, and must not be stopped by nobody listening.
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            if line.contains("listening") {
                let _ = tell.send(());
            }
        }
    });
    Ok(told)
}
