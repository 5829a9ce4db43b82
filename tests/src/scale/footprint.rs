//! What an agent takes of a node that is at peace: the time until it knows all, memory, processor time.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use nix::net::if_::if_nametoindex;

use super::population::Population;
use super::{Observed, Plan};
use crate::cluster::Cluster;
use crate::cluster::User;
use crate::cluster::crowd::Crowd;
use crate::cluster::programs::Programs;
use crate::pretend::Wires;
use crate::process::{cpu, memory};
use crate::rawroute::{RouteWriter, nth};

/// From its start until it has seen all routes and all that the API server tells.
const READY: Duration = Duration::from_millis(500);
/// What it may hold, in KiB.
const RESIDENT: u64 = 20 << 10;
/// Of a processor, in per cent, when nothing happens.
const IDLE: f64 = 0.2;
/// By when what the start leaves to do has been done.
const SETTLED: Duration = Duration::from_secs(40);
/// Agents that are started, one after the other.
const STARTS: usize = 9;
/// Pods of the node.
const PODS: u32 = 100;
/// Routes of the node, those to its pods among them.
const ROUTES: u32 = 10_000;
/// The first of the other nodes' blocks, in the cluster's pool as the pods are.
const BLOCKS: std::net::Ipv4Addr = std::net::Ipv4Addr::new(10, 248, 0, 0);

/// Measures, and prints what it measures; an error where a bound is broken.
pub fn run(quiet: Duration) -> Result<()> {
    let plan = Plan { nodes: 20, own: PODS, few: 1_000, many: 1_000, quiet, churn: 0, hijacks: 0 };
    let cluster = Cluster::start(Programs::find()?)?;
    let crowd = Crowd::connect(&cluster.kubeconfig(User::Admin, cluster.addr()))?;
    let mut population = Population::new(&plan)?;
    let wires = Wires::new()?;
    population.found(&cluster, &crowd)?;
    population.grow(&crowd, plan.few)?;
    for n in 0..PODS {
        wires.attach(&population.name(n), population.address(n))?;
    }
    wires.namespace().within(|| -> Result<()> {
        let uplink = if_nametoindex("eth0")?;
        let mut writer = RouteWriter::new()?;
        for n in 0..ROUTES - PODS {
            writer.change(true, (nth(BLOCKS, n * 64), 26), 0, uplink)?;
        }
        writer.flush()
    })?;
    println!("{PODS} pods and {ROUTES} routes stand on a node of {}", plan.nodes);

    let mut starts = Vec::new();
    for _ in 1..STARTS {
        let started = Instant::now();
        let observed = Observed::start(&cluster, &wires)?;
        starts.push(started.elapsed());
        observed.agent.stop()?;
    }
    let started = Instant::now();
    let observed = Observed::start(&cluster, &wires)?;
    starts.push(started.elapsed());
    starts.sort_unstable();
    let (least, middle, most) = (starts[0], starts[STARTS / 2], starts[STARTS - 1]);
    println!(
        "{STARTS} starts until ready: {least:.0?}, in the middle {middle:.0?}, {most:.0?} at most"
    );

    let pid = observed.agent.pid();
    observed.quiet("settling".to_owned(), SETTLED)?;
    let before = cpu(pid)?;
    observed.quiet("at peace".to_owned(), quiet)?;
    let idle = (cpu(pid)? - before) / quiet.as_secs_f64() * 100.0;
    let figures = ["VmRSS", "RssAnon", "RssFile", "RssShmem", "VmHWM"];
    for name in figures {
        println!("{name:<9} {:>7} KiB", memory(pid, name)?);
    }
    println!("{idle:.2} % of a processor in {quiet:.0?} at peace");
    let resident = memory(pid, "VmRSS")?;
    observed.agent.stop()?;

    let mut broken = Vec::new();
    if middle > READY {
        broken.push(format!("ready after {middle:.0?}, later than {READY:?}"));
    }
    if resident > RESIDENT {
        broken.push(format!("held {resident} KiB, more than {RESIDENT}"));
    }
    if idle >= IDLE {
        broken.push(format!("took {idle:.2} % of a processor, {IDLE} or more"));
    }
    ensure!(broken.is_empty(), "bounds are broken: {}", broken.join("; "));
    Ok(())
}
