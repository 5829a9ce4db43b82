//! What a flood of packets for a watched address, each from another source, costs the agent, and whether
//! it is counted to the last packet.

use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::agent::Agent;
use crate::netns::Namespace;
use crate::process::{cpu, memory};
use crate::scenario::node::Node;
use crate::scenario::words::{Words, interface};

/// How long it lasts.
const FLOOD: Duration = Duration::from_secs(20);

/// How long one finding may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the agent may take of one core.
const MOST: f64 = 0.05;

/// Lets an attacker take the address of a far pod, floods it from outside, and prints what was counted
/// and what that took.
pub fn run(words: Words<'_>, node: &Node<'_>, attacker: &str, victim: Ipv4Addr) -> Result<()> {
    let agent = node.start_agent(words, "ebpf")?;
    let interface = interface(attacker)?;
    let route = format!("{victim}/32 dev {interface}");
    node.namespace().ip(&format!("route add {route}"))?;
    agent.next_finding(PATIENCE)?.context("the hijack was not found")?;
    // The programs that count are being hung.
    std::thread::sleep(Duration::from_secs(1));
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

/// Sends frames as fast as one thread can.
fn send(victim: Ipv4Addr) -> Result<u64> {
    // SAFETY: the call takes no pointer.
    let socket = unsafe { nix::libc::socket(nix::libc::AF_PACKET, nix::libc::SOCK_RAW, 0) };
    ensure!(socket >= 0, "no packet socket: {}", std::io::Error::last_os_error());
    // SAFETY: the descriptor is new, and nobody else has it.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    // SAFETY: all bytes zero are a value of this plain structure.
    let mut to: nix::libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    to.sll_family = u16::try_from(nix::libc::AF_PACKET)?;
    to.sll_ifindex = i32::try_from(nix::net::if_::if_nametoindex("eth0")?)?;
    let length = u32::try_from(size_of_val(&to))?;
    let end = Instant::now() + FLOOD;
    let mut sent: u32 = 0;
    while !sent.is_multiple_of(256) || Instant::now() < end {
        // From 11.0.0.0 on, so that no address comes twice.
        let frame = frame(Ipv4Addr::from(0x0b00_0000 + sent), victim);
        // SAFETY: the frame and the address live through the call, and their sizes are given.
        let done = unsafe {
            nix::libc::sendto(
                socket.as_raw_fd(),
                frame.as_ptr().cast(),
                frame.len(),
                0,
                (&raw const to).cast(),
                length,
            )
        };
        // What finds no room is not sent, and not counted.
        if usize::try_from(done) == Ok(frame.len()) {
            sent += 1;
        }
    }
    Ok(sent.into())
}

/// A datagram to the uplink's link address.
fn frame(from: Ipv4Addr, to: Ipv4Addr) -> Vec<u8> {
    let mut frame = vec![0x02, 0, 0, 0, 0, 0x01, 0x02, 0, 0, 0, 0, 0x09, 0x08, 0x00];
    let mut header = vec![0x45, 0, 0, 64, 0, 0, 0x40, 0, 64, 17, 0, 0];
    header.extend(from.octets());
    header.extend(to.octets());
    let sum: u32 =
        header.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    let checksum = !u16::try_from(sum).unwrap_or_default();
    header[10..12].copy_from_slice(&checksum.to_be_bytes());
    frame.extend(header);
    frame.extend([0x9c, 0x40, 0x14, 0xb4, 0, 44, 0, 0]);
    frame.resize(14 + 64, 0);
    frame
}

/// How many packets an interface was given to hand out, whether it could or not.
fn handed_out(node: &Node<'_>, interface: &str) -> Result<u64> {
    let mut ip = Command::new("ip");
    ip.args(["-json", "-statistics", "link", "show", "dev", interface]);
    let namespace: &Namespace = node.namespace();
    namespace.hold(&mut ip);
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
