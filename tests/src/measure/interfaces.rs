//! How soon an interface is watched after it was made, and whether anything is left of those that are
//! gone.

use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use aya::maps::loaded_maps;
use aya::programs::{SchedClassifier, TcAttachType, loaded_links, loaded_programs};

use crate::agent::Agent;
use crate::scenario::node::Node;
use crate::scenario::words::Words;

/// Interfaces that are made and unmade at once, and how often.
const AT_ONCE: u32 = 250;
const ROUNDS: u32 = 40;

/// How long one may take to be watched before the measurement is given up.
const PATIENCE: Duration = Duration::from_secs(5);

/// What there is in the kernel of the agent's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Kept {
    programs: usize,
    maps: usize,
    links: usize,
    descriptors: usize,
}

/// Makes interfaces while packets flow, and prints how soon each was watched, and what is left.
pub fn run(words: Words<'_>, node: &Node<'_>) -> Result<()> {
    let agent = node.start_agent(words, "ebpf")?;
    let before = kept(&agent)?;
    let stop = AtomicBool::new(false);
    let sent = AtomicU64::new(0);
    let mut waits: Vec<Duration> = Vec::new();
    node.namespace().within(|| -> Result<()> {
        std::thread::scope(|scope| {
            let flood = scope.spawn(|| send(&stop, &sent));
            let made = (0..ROUNDS).try_for_each(|_| round(node, &mut waits));
            stop.store(true, Ordering::Relaxed);
            flood.join().map_err(|_| anyhow::anyhow!("the sender panicked"))??;
            made
        })
    })?;
    let after = settled(&agent, before)?;
    agent.stop()?;
    waits.sort_unstable();
    let quantile = |per_mille: usize| waits[(waits.len() - 1) * per_mille / 1000];
    let [p50, p99, most] = [500, 990, 1000].map(quantile);
    println!(
        "{} interfaces, {AT_ONCE} made by one `ip -batch` at a time and unmade again, while {} \
         packets were sent",
        waits.len(),
        sent.load(Ordering::Relaxed)
    );
    println!("from the moment at which it was seen to exist until it was watched both ways:");
    println!("p50 {p50:.1?}, p99 {p99:.1?}, max {most:.1?}");
    println!("before {before:?}");
    println!("after  {after:?}");
    ensure!(after == before, "something was left");
    Ok(())
}

fn send(stop: &AtomicBool, sent: &AtomicU64) -> Result<()> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    let to = UdpSocket::bind("127.0.0.1:0")?;
    while !stop.load(Ordering::Relaxed) {
        // Nobody reads: what does not fit is dropped.
        socket.send_to(&[0; 64], to.local_addr()?)?;
        sent.fetch_add(1, Ordering::Relaxed);
        std::thread::yield_now();
    }
    Ok(())
}

/// Makes interfaces, waits for each, and unmakes them.
fn round(node: &Node<'_>, waits: &mut Vec<Duration>) -> Result<()> {
    let names: Vec<String> = (0..AT_ONCE).map(|n| format!("cali{n:011x}")).collect();
    let commands = |what: &dyn Fn(&String) -> String| names.iter().map(what).collect::<Vec<_>>();
    let make = commands(&|name| format!("link add {name} type veth peer name p{}", &name[9..]));
    let unmake = commands(&|name| format!("link del {name}"));
    std::thread::scope(|scope| -> Result<()> {
        let maker = scope.spawn(|| node.namespace().ip_batch(false, &make));
        for name in &names {
            let end = Instant::now() + PATIENCE;
            while nix::net::if_::if_nametoindex(name.as_str()).is_err() {
                ensure!(Instant::now() < end, "{name} was never made");
                std::thread::yield_now();
            }
            let seen = Instant::now();
            for hook in [TcAttachType::Ingress, TcAttachType::Egress] {
                while SchedClassifier::query_tcx(name, hook).map_or(0, |(_, all)| all.len()) == 0 {
                    ensure!(seen.elapsed() < PATIENCE, "{name} is not watched");
                    std::thread::yield_now();
                }
            }
            waits.push(seen.elapsed());
        }
        maker.join().map_err(|_| anyhow::anyhow!("the maker panicked"))?
    })?;
    node.namespace().ip_batch(false, &unmake)
}

/// What is kept once the agent has heard of the last interface's end.
fn settled(agent: &Agent, before: Kept) -> Result<Kept> {
    let end = Instant::now() + PATIENCE;
    loop {
        let now = kept(agent)?;
        if now == before || Instant::now() > end {
            return Ok(now);
        }
        std::thread::yield_now();
    }
}

fn kept(agent: &Agent) -> Result<Kept> {
    let descriptors = std::fs::read_dir(format!("/proc/{}/fd", agent.pid()))
        .context("the agent's descriptors")?
        .count();
    Ok(Kept {
        programs: loaded_programs().filter_map(Result::ok).count(),
        maps: loaded_maps().filter_map(Result::ok).count(),
        links: loaded_links().filter_map(Result::ok).count(),
        descriptors,
    })
}
