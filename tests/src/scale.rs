//! What an agent costs in a cluster of many pods that are not its own, and whether it still names
//! the victim of a hijack in time.
//!
//! A real kube-apiserver has as many nodes and pods as it is told; the agent runs on the first node,
//! in a network namespace, and reaches the server through a relay that counts bytes. Nothing else
//! runs: what the relay counts is the agent's own traffic, TLS and all.

pub mod footprint;
mod population;

use std::net::{Ipv4Addr, TcpListener};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::net::if_::if_nametoindex;

use self::population::Population;
use crate::agent::{Agent, MemoryFile, now};
use crate::cluster::crowd::Crowd;
use crate::cluster::programs::Programs;
use crate::cluster::{Cluster, User};
use crate::pretend::Wires;
use crate::process::{cpu, memory};
use crate::rawroute::RouteWriter;
use crate::relay::{Counts, Relay};

/// How much more an agent may receive in the large cluster than in the small one, in per cent.
const MORE_RECEIVED: u64 = 10;
/// What of the changes of far pods may reach an agent, in bytes for each: a watch tells from time to
/// time how far it is, and no more.
const RECEIVED_PER_CHANGE: u64 = 10;
/// What an agent may hold, in KiB.
const RESIDENT: u64 = 30 << 10;
/// How long the finding that names a far victim may take.
const NAMED: Duration = Duration::from_millis(250);
/// How long is waited for it.
const PATIENCE: Duration = Duration::from_secs(30);
/// Pods of the agent's node that have interfaces.
const WIRED: u32 = 4;

/// How large the clusters are, and for how long they are looked at.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Nodes.
    pub nodes: u32,
    /// Pods of the agent's node, in either cluster.
    pub own: u32,
    /// Pods of the small cluster.
    pub few: u32,
    /// Pods of the large cluster.
    pub many: u32,
    /// For how long an agent is left alone.
    pub quiet: Duration,
    /// Far pods that are made anew meanwhile.
    pub churn: u32,
    /// Hijacks of far pods' addresses.
    pub hijacks: u32,
}

/// An agent and its way to the API server.
struct Observed {
    agent: Agent,
    relay: Relay,
}

/// What was read of an agent at one time.
struct Reading {
    what: String,
    took: Duration,
    counts: Counts,
    cpu: f64,
    resident: u64,
    peak: u64,
}

/// Measures, and prints what it measures; an error where a bound is broken.
pub fn run(plan: &Plan) -> Result<()> {
    let cluster = Cluster::start(Programs::find()?)?;
    let crowd = Crowd::connect(&cluster.kubeconfig(User::Admin, cluster.addr()))?;
    let mut population = Population::new(plan)?;
    let wires = Wires::new()?;
    population.found(&cluster, &crowd)?;
    let took = timed(|| population.grow(&crowd, plan.few))?;
    println!("{} nodes and {} pods stand after {took:.1?}", plan.nodes, plan.few);
    for n in 0..WIRED.min(plan.own) {
        wires.attach(&population.name(n), population.address(n))?;
    }

    let mut readings = Vec::new();
    let small = Observed::start(&cluster, &wires)?;
    readings.push(small.quiet(format!("{} pods, ready and quiet", plan.few), plan.quiet)?);
    small.agent.stop()?;

    let took = timed(|| population.grow(&crowd, plan.many))?;
    println!("{} pods stand after {took:.1?}", plan.many);
    let large = Observed::start(&cluster, &wires)?;
    readings.push(large.quiet(format!("{} pods, ready and quiet", plan.many), plan.quiet)?);
    let churned = Instant::now();
    population.churn(&crowd, plan.churn)?;
    let left = plan.quiet.saturating_sub(churned.elapsed());
    readings.push(large.quiet(format!("and {} far pods made anew", plan.churn), left)?);
    let times = large.hijacks(&population, &wires, plan.hijacks)?;
    readings.push(large.read(format!("and {} hijacks", plan.hijacks), Duration::ZERO)?);
    let logged = large.agent.stop()?;
    if let Some(last) = logged.last() {
        println!("the agent at its end: {}", last["fields"]);
    }
    print(&readings, &times);
    hold(plan, &readings, &times)
}

fn timed(work: impl FnOnce() -> Result<()>) -> Result<Duration> {
    let started = Instant::now();
    work()?;
    Ok(started.elapsed())
}

// === impl Observed ===

impl Observed {
    /// Starts an agent on the first node, and waits until it is ready.
    fn start(cluster: &Cluster, wires: &Wires) -> Result<Self> {
        let listener = wires.namespace().within(|| TcpListener::bind("127.0.0.1:0"))?;
        let relay = Relay::start(listener, cluster.addr())?;
        let kubeconfig = MemoryFile::new(&cluster.kubeconfig(User::Agent, relay.addr()))?;
        let mut agent = Agent::start(
            wires.namespace(),
            &["--node-name", &population::node(0), "--kubeconfig", &kubeconfig.path()],
        )?;
        agent.keep([kubeconfig]);
        agent.wait_until_ready()?;
        Ok(Self { agent, relay })
    }

    /// Leaves the agent alone for a while, in which it must find nothing, and reads its figures.
    fn quiet(&self, what: String, time: Duration) -> Result<Reading> {
        if let Some(heard) = self.agent.next_finding(time)? {
            bail!("found where nothing is: {}", heard.finding);
        }
        self.read(what, time)
    }

    fn read(&self, what: String, took: Duration) -> Result<Reading> {
        let pid = self.agent.pid();
        let counts = self.relay.counts();
        let (resident, peak) = (memory(pid, "VmRSS")?, memory(pid, "VmHWM")?);
        Ok(Reading { what, took, counts, cpu: cpu(pid)?, resident, peak })
    }

    /// Diverts the addresses of far pods to a pod of this node, one after the other; gives how long
    /// it took each time from the kernel's change to a line that names the right victim.
    fn hijacks(&self, population: &Population, wires: &Wires, count: u32) -> Result<Vec<Duration>> {
        let evil = crate::scenario::words::interface(&population.name(0))?;
        let (index, mut writer) = wires.namespace().within(|| -> Result<_> {
            Ok((if_nametoindex(evil.as_str())?, RouteWriter::new()?))
        })?;
        let mut times = Vec::new();
        for victim in population.spread(count) {
            let (address, name) = (population.address(victim), population.name(victim));
            let began = now();
            writer.change(true, (address, 32), 0, index)?;
            writer.flush()?;
            times.push(self.wait_for(address, &name)?.since(began));
            writer.change(false, (address, 32), 0, index)?;
            writer.flush()?;
            self.wait_for_end(address)?;
        }
        times.sort_unstable();
        Ok(times)
    }

    fn wait_for(&self, address: Ipv4Addr, victim: &str) -> Result<detector_core::time::BootTime> {
        let (namespace, pod) = victim.split_once('/').context("a pod's name")?;
        let end = Instant::now() + PATIENCE;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let heard = self.agent.next_finding(left)?;
            let heard = heard.with_context(|| format!("{victim}, {address}: not named"))?;
            let about = heard.finding["key"].as_str().unwrap_or_default();
            ensure!(about.starts_with(&format!("{address}/32 ")), "found: {}", heard.finding);
            let named = &heard.finding["victim"];
            if named["kind"] == "pod" && named["name"] == pod && named["namespace"] == namespace {
                return Ok(heard.at);
            }
        }
    }

    fn wait_for_end(&self, address: Ipv4Addr) -> Result<()> {
        loop {
            let heard = self.agent.next_finding(PATIENCE)?;
            let heard = heard.with_context(|| format!("{address}: never closed"))?;
            if heard.finding["state"] == "closed" {
                return Ok(());
            }
        }
    }
}

fn print(readings: &[Reading], times: &[Duration]) {
    println!(
        "\n{:<34} {:>8} {:>12} {:>10} {:>8} {:>10} {:>10}",
        "since the agent's start",
        "quiet s",
        "received B",
        "sent B",
        "CPU s",
        "RSS KiB",
        "peak KiB"
    );
    for reading in readings {
        println!(
            "{:<34} {:>8.0} {:>12} {:>10} {:>8.2} {:>10} {:>10}",
            reading.what,
            reading.took.as_secs_f64(),
            reading.counts.to_clients,
            reading.counts.to_server,
            reading.cpu,
            reading.resident,
            reading.peak
        );
    }
    let quantile = |percent: usize| times[(times.len() - 1) * percent / 100];
    println!(
        "\n{} hijacks of far pods' addresses, from before the route is written to the line that \
         names the victim:\np50 {:.1?}, p99 {:.1?}, max {:.1?}",
        times.len(),
        quantile(50),
        quantile(99),
        quantile(100)
    );
}

/// Holds the figures against the bounds.
fn hold(plan: &Plan, readings: &[Reading], times: &[Duration]) -> Result<()> {
    let [small, large, churned, _] = readings else { bail!("four readings") };
    let received = |reading: &Reading| reading.counts.to_clients;
    let mut broken = Vec::new();
    if received(large) * 100 > received(small) * (100 + MORE_RECEIVED) {
        broken.push(format!("received more than {MORE_RECEIVED} % more in the large cluster"));
    }
    // Each is patched, deleted, created and given a status.
    let changes = u64::from(plan.churn) * 4;
    let reached = received(churned) - received(large);
    println!("of {changes} changes of far pods {reached} bytes reached the agent");
    if reached > changes * RECEIVED_PER_CHANGE {
        broken.push("changes of far pods reach the agent".to_owned());
    }
    let resident = readings.iter().map(|reading| reading.resident).max().unwrap_or_default();
    if resident > RESIDENT {
        broken.push(format!("held {resident} KiB, more than {RESIDENT}"));
    }
    if times.last().is_some_and(|slowest| *slowest > NAMED) {
        broken.push(format!("a victim was named later than {NAMED:?}"));
    }
    ensure!(broken.is_empty(), "bounds are broken: {}", broken.join("; "));
    Ok(())
}
