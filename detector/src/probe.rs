//! What this node offers the agent, what the agent would use of it, and what is degraded and why:
//! `detector probe`.
//!
//! Whether something works is found out by doing it: programs are loaded and hung as the agent would,
//! in the network namespace that this runs in, and taken away again. Nothing is changed.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use nix::sys::utsname::uname;
use serde::Serialize;

use crate::config::RouteSource;
use crate::source::connections::Connections;
use crate::source::interests::Interests;
use crate::source::kernel::{KernelOptions, KernelSource, KernelSourceError};
use crate::source::packets::{Hooks, Packets};
use crate::source::translations::{Told, Translations};
use crate::source::writer::{counts_like_the_kernel, describes_itself};

/// The name and version of the shape in JSON.
pub const SCHEMA: &str = "detector.probe/v1";

/// How long the rules of netfilter may take to be read.
const PATIENCE: Duration = Duration::from_secs(10);

/// Capabilities that matter to the agent, with their numbers (linux/capability.h).
const CAPABILITIES: [(&str, u32); 6] = [
    ("NET_ADMIN", 12),
    ("SYS_PTRACE", 19),
    ("SYS_ADMIN", 21),
    ("SYS_RESOURCE", 24),
    ("PERFMON", 38),
    ("BPF", 39),
];

/// What was found.
#[derive(Serialize, Debug)]
#[serde(rename_all = "camelCase")]
pub struct Probe {
    schema: &'static str,
    version: &'static str,
    /// What the node is.
    node: BTreeMap<&'static str, String>,
    /// What the agent can do here.
    pub capabilities: Vec<Capability>,
}

/// Something that the agent can do, or not.
#[derive(Serialize, Debug)]
#[serde(rename_all = "camelCase")]
pub struct Capability {
    /// By the name that it has in `status`, metrics and logs.
    pub name: &'static str,
    /// What it is for.
    pub what: &'static str,
    /// By what it is done here; `null` where it is not.
    pub by: Option<String>,
    /// Why it is not done, or not in the best way.
    pub degraded: Option<String>,
}

/// Tries everything out. It takes a second or so.
pub async fn run() -> Probe {
    let mut capabilities = Vec::new();
    routes(&mut capabilities);
    packets(&mut capabilities);
    connections(&mut capabilities);
    translations(&mut capabilities).await;
    Probe { schema: SCHEMA, version: env!("CARGO_PKG_VERSION"), node: node(), capabilities }
}

impl Probe {
    /// Whether the agent can do its work here at all: it must see routes.
    pub fn is_enough(&self) -> bool {
        self.capabilities.iter().any(|one| one.name == "kernel" && one.by.is_some())
    }

    /// What the node is, for people: a word and its value.
    pub fn node(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.node.iter().map(|(word, value)| (*word, value.as_str()))
    }
}

fn node() -> BTreeMap<&'static str, String> {
    let mut node = BTreeMap::new();
    if let Ok(name) = uname() {
        node.insert("kernel", name.release().to_string_lossy().into_owned());
        node.insert("machine", name.machine().to_string_lossy().into_owned());
    }
    node.insert("capabilities", effective().unwrap_or_else(|| "unknown".to_owned()));
    let lockdown = fs::read_to_string("/sys/kernel/security/lockdown").ok();
    node.insert("lockdown", lockdown.as_deref().map_or("unknown", chosen).to_owned());
    node.insert("btf", if describes_itself() { "yes" } else { "no" }.to_owned());
    let unified = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    node.insert("cgroups", if unified { "2" } else { "1, or not mounted" }.to_owned());
    let pids = if counts_like_the_kernel() { "the host's" } else { "a container's" };
    node.insert("pids", pids.to_owned());
    node
}

/// The word in brackets, by which the kernel marks what is chosen.
fn chosen(text: &str) -> &str {
    let inside = text.split_once('[').and_then(|(_, rest)| rest.split_once(']'));
    inside.map_or("unknown", |(word, _)| word)
}

/// The capabilities that this process has.
fn effective() -> Option<String> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    let bits = u64::from_str_radix(line.trim(), 16).ok()?;
    let has = CAPABILITIES.iter().filter(|(_, number)| bits >> number & 1 == 1);
    let names: Vec<&str> = has.map(|(name, _)| *name).collect();
    Some(if names.is_empty() { "none of those that matter".to_owned() } else { names.join(" ") })
}

/// Routes, who writes them, and which the kernel refuses.
fn routes(all: &mut Vec<Capability>) {
    let mut add = |name, what, by: Option<String>, degraded| {
        all.push(Capability { name, what, by, degraded });
    };
    let kernel = "changes of routes, rules, links, next hops";
    let mut opened = match KernelSource::open(RouteSource::Auto, &KernelOptions::default()) {
        Ok(opened) => opened,
        Err(error) => return add("kernel", kernel, None, Some(told(&error))),
    };
    add("kernel", kernel, Some(opened.source.as_str().to_owned()), None);
    let filter = opened.degraded.is_none().then(|| "socket filter".to_owned());
    add("routes-by-ebpf", "no change is lost in a burst", filter, opened.degraded);
    let Some(sight) = opened.source.await_sight() else { return };
    let by = match &sight.writers {
        Ok(()) => Some("record".to_owned()),
        Err(_) => counts_like_the_kernel().then(|| "netlink port".to_owned()),
    };
    add("writers", "who writes a route", by, sight.writers.err());
    let names = ["refused-ipv4-routes", "refused-ipv6-routes"];
    for (name, family) in names.into_iter().zip(sight.refusals) {
        let by = family.as_ref().ok().map(|means| means.as_str().to_owned());
        add(name, "routes that the kernel refuses to write", by, family.err());
    }
}

fn told(error: &KernelSourceError) -> String {
    error.to_string()
}

fn packets(all: &mut Vec<Capability>) {
    let loaded = Packets::load(Hooks::Best);
    let by = loaded.as_ref().ok().map(|packets| packets.hooks().as_str().to_owned());
    let degraded = loaded.err().map(|error| error.to_string());
    let what = "packets that are diverted, and sources that are pretended";
    all.push(Capability { name: "packets", what, by, degraded });
}

fn connections(all: &mut Vec<Capability>) {
    let (by, filter, degraded) = match Connections::open(true, &Interests::default()) {
        Ok((_, filter)) => (Some("netlink".to_owned()), Some(filter), None),
        Err(error) => (None, None, Some(error.to_string())),
    };
    let what = "connections whose destination was translated";
    all.push(Capability { name: "connections", what, by, degraded });
    if let Some(degraded) = filter {
        let by = degraded.is_none().then(|| "socket filter".to_owned());
        let what = "which of them matter is decided in the kernel";
        all.push(Capability { name: "connection-filter", what, by, degraded });
    }
}

async fn translations(all: &mut Vec<Capability>) {
    let mut translations = Translations::open();
    let interests = Interests::default();
    let told = tokio::time::timeout(PATIENCE, translations.next(&interests)).await;
    let (by, degraded) = match told {
        Ok(Told::Blind(why)) => (None, Some(why)),
        Ok(Told::Rules(_) | Told::Sees) => (Some("netlink".to_owned()), None),
        Err(_) => (None, Some(format!("nothing was told within {PATIENCE:?}"))),
    };
    let what = "rules of nftables and iptables that translate destinations";
    all.push(Capability { name: "translations", what, by, degraded });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_has_chosen_is_in_brackets() {
        assert_eq!(chosen("none [integrity] confidentiality\n"), "integrity");
        assert_eq!(chosen("none integrity"), "unknown");
    }

    #[test]
    fn without_a_word_of_routes_it_is_not_enough() {
        let capability = |by: Option<&str>| Capability {
            name: "kernel",
            what: "",
            by: by.map(str::to_owned),
            degraded: None,
        };
        let probe = |by| Probe {
            schema: SCHEMA,
            version: "",
            node: BTreeMap::new(),
            capabilities: vec![capability(by)],
        };
        assert!(probe(Some("netlink")).is_enough() && !probe(None).is_enough());
    }
}
