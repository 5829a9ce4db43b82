//! What a flood of packets for a watched address, each from another source, costs the agent, and whether
//! it is counted to the last packet.

use std::net::Ipv4Addr;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::filters::Filters;
use crate::agent::Agent;
use crate::process::{cpu, memory};
use crate::scenario::node::Node;
use crate::scenario::node::frames::{FrameSender, datagram};
use crate::scenario::words::{Words, interface};

/// How long it lasts.
const FLOOD: Duration = Duration::from_secs(20);

/// How long one finding may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// The uplink's link address.
const UPLINK_LINK: [u8; 6] = [0x02, 0, 0, 0, 0, 0x01];

/// What the agent may take of one core.
const MOST: f64 = 0.05;

/// Lets an attacker take the address of a far pod, floods it from outside, and prints what was counted
/// and what that took.
pub fn run(words: Words<'_>, node: &Node<'_>, attacker: &str, victim: Ipv4Addr) -> Result<()> {
    let agent = node.start_agent(words, "ebpf")?;
    let interface = interface(attacker)?;
    let route = format!("{victim}/32 dev {interface}");
    let name = interface.as_str();
    let index = node.namespace().within(|| nix::net::if_::if_nametoindex(name))?;
    // Else the node's own messages to neighbours go out there too, and are none of the flood.
    let quiet = format!("/proc/sys/net/ipv6/conf/{interface}/disable_ipv6");
    node.namespace().within(|| std::fs::write(quiet, "1"))?;
    let filters = Filters::listen(node.namespace())?;
    node.namespace().ip(&format!("route add {route}"))?;
    agent.next_finding(PATIENCE)?.context("the hijack was not found")?;
    // What counts is hung then; on pods' interfaces last.
    while filters.next()? != index {}
    let (delivered, used) = (handed_out(node, &interface)?, cpu(agent.pid())?);
    let began = Instant::now();
    let sent = node.outside_namespace()?.within(|| send(victim))?;
    let took = began.elapsed().as_secs_f64();
    let share = (cpu(agent.pid())? - used) / took;
    let memory = memory(agent.pid(), "VmHWM")?;
    let delivered = handed_out(node, &interface)? - delivered;
    node.namespace().ip(&format!("route del {route}"))?;
    let counted = closed(&agent)?;
    let logged = agent.stop()?;
    let last = logged.last().map(|entry| entry["fields"].clone()).unwrap_or_default();
    println!("{sent} packets of 64 bytes in {took:.1} s, each from another source");
    println!("handed out by the attacker's interface: {delivered}; counted: {counted}");
    println!(
        "not kept apart by their flows: {}; not counted: {}",
        last["packets_not_apart"], last["packets_uncounted"]
    );
    println!("the agent took {:.1} % of one core, and {memory} KiB at its peak", share * 100.0);
    ensure!(counted == delivered, "they were not counted to the last");
    ensure!(share < MOST, "that is more than {} %", MOST * 100.0);
    Ok(())
}

/// Sends datagrams as fast as one thread can.
fn send(victim: Ipv4Addr) -> Result<u64> {
    let sender = FrameSender::open("eth0")?;
    let end = Instant::now() + FLOOD;
    let mut sent: u32 = 0;
    while !sent.is_multiple_of(256) || Instant::now() < end {
        // From 11.0.0.0 on, so that no address comes twice.
        let frame = datagram(UPLINK_LINK, Ipv4Addr::from(0x0b00_0000 + sent), victim);
        // What finds no room is not sent, and not counted.
        if sender.send(&frame).is_ok() {
            sent += 1;
        }
    }
    Ok(sent.into())
}

/// How many packets an interface was given to hand out, whether it could or not.
fn handed_out(node: &Node<'_>, interface: &str) -> Result<u64> {
    let mut ip = Command::new("ip");
    ip.args(["-json", "-statistics", "link", "show", "dev", interface]);
    node.namespace().hold(&mut ip);
    let shown: Value = serde_json::from_slice(&ip.output()?.stdout)?;
    let sent = &shown[0]["stats64"]["tx"];
    let count = |name: &str| sent[name].as_u64().with_context(|| format!("no {name} in {sent}"));
    Ok(count("packets")? + count("dropped")?)
}

/// The packets that the finding tells of when it is closed.
fn closed(agent: &Agent) -> Result<u64> {
    loop {
        let heard = agent.next_finding(PATIENCE)?.context("the finding was never closed")?;
        if heard.finding["state"] == "closed" {
            return heard.finding["traffic"]["packets"].as_u64().context("nothing was counted");
        }
    }
}
