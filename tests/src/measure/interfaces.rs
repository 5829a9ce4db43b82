//! How soon an interface is watched after it was made, and whether anything is left of those that are
//! gone.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::net::{Ipv4Addr, UdpSocket};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use aya::maps::loaded_maps;
use aya::programs::{loaded_links, loaded_programs};

use super::filters::{Filters, listen};
use crate::agent::Agent;
use crate::netns::Namespace;
use crate::scenario::node::Node;
use crate::scenario::words::Words;

/// Interfaces that are made one after the other and unmade at once, and how often.
const AT_ONCE: u32 = 250;
const ROUNDS: u32 = 40;

/// The link group of all of them, by which the kernel unmakes them at once. One by one it would wait
/// for all its readers after each.
const GROUP: u32 = 77;

/// How long nothing may have changed.
const REST: Duration = Duration::from_secs(5);

/// `RTMGRP_LINK` of linux/rtnetlink.h.
const LINKS: u32 = 1;

/// Packets that a pod sends in a millisecond all the while.
const BURST: u32 = 10;

/// What there is in the kernel of the agent's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Kept {
    programs: usize,
    maps: usize,
    links: usize,
    descriptors: usize,
}

/// Makes interfaces while a pod sends packets to an address, and prints how soon each was watched, and
/// what is left.
pub fn run(words: Words<'_>, node: &Node<'_>, from: &str, to: Ipv4Addr) -> Result<()> {
    let agent = node.start_agent(words, "ebpf")?;
    let pod = node.pod_namespace(from)?;
    let before = at_rest(&agent)?;
    let stop = AtomicBool::new(false);
    let mut waits: Vec<Duration> = Vec::new();
    let sent = std::thread::scope(|scope| -> Result<u64> {
        let sender = scope.spawn(|| pod.within(|| send(to, &stop)));
        let made = (0..ROUNDS).try_for_each(|_| round(node.namespace(), &mut waits));
        stop.store(true, Ordering::Relaxed);
        let sent = sender.join().map_err(|_| anyhow::anyhow!("the sender panicked"))??;
        made.map(|()| sent)
    })?;
    let after = at_rest(&agent)?;
    agent.stop()?;
    waits.sort_unstable();
    let quantile = |per_mille: usize| waits[(waits.len() - 1) * per_mille / 1000];
    let [p50, p99, most] = [500, 990, 1000].map(quantile);
    println!(
        "{} interfaces made, {AT_ONCE} of them standing at most, while a pod sent {sent} packets",
        waits.len()
    );
    println!(
        "from the moment at which `ip` was told to make one until its pod's packets were looked at:"
    );
    println!("p50 {p50:.1?}, p99 {p99:.1?}, max {most:.1?}");
    println!("before {before:?}");
    println!("after  {after:?}");
    ensure!(after == before, "something was left");
    Ok(())
}

fn send(to: Ipv4Addr, stop: &AtomicBool) -> Result<u64> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    let mut sent = 0;
    while !stop.load(Ordering::Relaxed) {
        for _ in 0..BURST {
            // Nobody may be there to take it.
            let _ = socket.send_to(&[0; 64], (to, 5300));
            sent += 1;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(sent)
}

/// Makes interfaces, waits for each to be watched, and unmakes them.
fn round(namespace: &Namespace, waits: &mut Vec<Duration>) -> Result<()> {
    let made = std::thread::scope(|scope| -> Result<()> {
        let filters = Filters::listen(namespace)?;
        let listener = scope.spawn(move || hear(&filters));
        let told = make(namespace)?;
        let heard = listener.join().map_err(|_| anyhow::anyhow!("the listener panicked"))??;
        for (index, told) in told {
            let watched = heard.get(&index).with_context(|| format!("{index} is not watched"))?;
            waits.push(watched.saturating_duration_since(told));
        }
        Ok(())
    });
    namespace.ip(&format!("link del group {GROUP}"))?;
    made
}

/// Hears which interfaces get a filter, and when, until all have it.
fn hear(filters: &Filters) -> Result<BTreeMap<u32, Instant>> {
    let mut watched = BTreeMap::new();
    while watched.len() < AT_ONCE as usize {
        let index = filters.next()?;
        watched.entry(index).or_insert(Instant::now());
    }
    Ok(watched)
}

/// Has one `ip` make interfaces one after the other; gives for each the time at which it was asked for.
fn make(namespace: &Namespace) -> Result<Vec<(u32, Instant)>> {
    let mut ip = Command::new("ip");
    ip.args(["-batch", "-"]).stdin(Stdio::piped());
    namespace.hold(&mut ip);
    let mut ip = ip.spawn().context("cannot start ip: install iproute2")?;
    let mut stdin = ip.stdin.take().context("the input of ip is piped")?;
    let links = listen(namespace, LINKS)?;
    let made = namespace.within(|| -> Result<Vec<(u32, Instant)>> {
        let mut made = Vec::new();
        for n in 0..AT_ONCE {
            let name = format!("cali{n:011x}");
            let told = Instant::now();
            writeln!(stdin, "link add {name} group {GROUP} type veth peer name p{n}")?;
            let index = loop {
                links.recv_from_full().with_context(|| format!("{name} was never made"))?;
                if let Ok(index) = nix::net::if_::if_nametoindex(name.as_str()) {
                    break index;
                }
            };
            made.push((index, told));
        }
        Ok(made)
    })?;
    drop(stdin);
    ensure!(ip.wait()?.success(), "ip could not make all interfaces");
    Ok(made)
}

/// What is kept once it has not changed for a while: programs are moved, and interfaces forgotten, in
/// the background.
fn at_rest(agent: &Agent) -> Result<Kept> {
    let mut last = kept(agent)?;
    let mut since = Instant::now();
    while since.elapsed() < REST {
        std::thread::sleep(Duration::from_millis(50));
        let now = kept(agent)?;
        if now != last {
            (last, since) = (now, Instant::now());
        }
    }
    Ok(last)
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
