//! What was found, in one form for every rung, and how it compares with what was expected.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::Result;
use detector_core::finding::{Attacker, Finding, State, Victim};

use super::words::Words;

/// A finding as a rung saw it: its last state, and all states that it went through.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Seen {
    /// The key.
    pub key: String,
    /// The states in order.
    pub states: Vec<&'static str>,
    /// The verdict.
    pub verdict: String,
    /// The severity.
    pub severity: String,
    /// The means.
    pub means: String,
    /// The effect.
    pub effect: String,
    /// The extent.
    pub extent: String,
    /// How far it reaches.
    pub reach: String,
    /// The attacker in words.
    pub attacker: String,
    /// The victim in words.
    pub victim: String,
    /// The reason.
    pub reason: String,
    /// The evidence.
    pub evidence: Vec<String>,
    /// Whether something could not be seen.
    pub partial: bool,
    /// What was diverted, where anybody counted.
    pub traffic: Option<Counted>,
    /// Whether it ended before any packet was diverted.
    pub prevented: Option<bool>,
    /// From the kernel's change to the first word about it.
    pub latency: Duration,
}

/// What was diverted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Counted {
    /// Packets.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Different clients.
    pub clients: u64,
}

/// All findings of a run by key.
pub type AllSeen = BTreeMap<String, Seen>;

/// Packets and bytes that were sent to an address, as its senders know.
#[derive(Clone, Debug, Default)]
pub struct Sent(BTreeMap<IpAddr, (u64, u64)>);

impl Sent {
    /// Adds packets and their bytes.
    pub fn add(&mut self, to: IpAddr, (packets, bytes): (u64, u64)) {
        let sum = self.0.entry(to).or_default();
        sum.0 += packets;
        sum.1 += bytes;
    }
}

/// What a run showed.
#[derive(Debug)]
pub struct Shown {
    /// What was found.
    pub seen: AllSeen,
    /// What was sent.
    pub sent: Sent,
}

/// Adds one word about a finding.
pub fn add(all: &mut AllSeen, state: &'static str, mut seen: Seen) {
    if let Some(before) = all.get(&seen.key) {
        seen.latency = before.latency;
        seen.states.clone_from(&before.states);
    }
    seen.states.push(state);
    all.insert(seen.key.clone(), seen);
}

/// A finding of the engine in the common form.
pub fn seen(finding: &Finding) -> (&'static str, Seen) {
    let charge = &finding.charge;
    let state = match finding.state {
        State::Opened => "opened",
        State::Updated => "updated",
        State::Closed => "closed",
    };
    let seen = Seen {
        key: finding.key.to_string(),
        states: Vec::new(),
        verdict: charge.certainty.as_str().to_owned(),
        severity: charge.severity.as_str().to_owned(),
        means: charge.means.as_str().to_owned(),
        effect: charge.effect.as_str().to_owned(),
        extent: charge.extent.as_str().to_owned(),
        reach: charge.reach.scope.as_str().to_owned(),
        attacker: attacker_words(&charge.attacker),
        victim: victim_words(&charge.victim),
        reason: charge.reason.to_string(),
        evidence: charge.evidence.iter().map(|evidence| evidence.text.to_string()).collect(),
        partial: !charge.missing.is_empty(),
        traffic: charge.traffic.as_ref().map(|traffic| Counted {
            packets: traffic.packets,
            bytes: traffic.bytes,
            clients: traffic.clients,
        }),
        prevented: finding.prevented(),
        latency: finding.at.since(finding.began),
    };
    (state, seen)
}

fn attacker_words(attacker: &Attacker) -> String {
    if let Some(pod) = &attacker.pod {
        format!("pod {pod}")
    } else if let Some(service) = &attacker.service {
        format!("service {service}")
    } else if let Some(node) = &attacker.node {
        format!("node {node}")
    } else if let Some(gateway) = attacker.gateway {
        format!("gateway {gateway}")
    } else if let Some(interface) = &attacker.interface {
        format!("interface {interface}")
    } else {
        "none".to_owned()
    }
}

fn victim_words(victim: &Victim) -> String {
    match victim {
        Victim::Pod { key, .. } => format!("pod {key}"),
        Victim::Node(node) => format!("node {node}"),
        Victim::Service(key) => format!("service {key}"),
        Victim::Metadata => "metadata".to_owned(),
        Victim::Allowance { namespace, service_account } => {
            format!("service account {namespace}/{service_account}")
        }
        Victim::Everyone(prefix) => format!("everyone in {prefix}"),
        Victim::Nobody => "nobody".to_owned(),
    }
}

/// What is wrong with what was found; empty where all is as expected.
pub fn differences(words: Words<'_>, shown: &Shown) -> Result<Vec<String>> {
    let all = &shown.seen;
    let mut wrong = Vec::new();
    let mut expected_keys = Vec::new();
    for expected in &words.scenario.expect {
        let key = words.expand(&expected.key)?;
        expected_keys.push(key.clone());
        let Some(seen) = all.get(&key) else {
            wrong.push(format!("missed: {key}"));
            continue;
        };
        let mut check = |what: &str, expected: Option<&str>, seen: &str| {
            if let Some(expected) = expected.filter(|expected| *expected != seen) {
                wrong.push(format!("{key}: {what} is {seen}, not {expected}"));
            }
        };
        check("the verdict", Some(&expected.verdict), &seen.verdict);
        check("the severity", expected.severity.as_deref(), &seen.severity);
        check("the means", expected.means.as_deref(), &seen.means);
        check("the effect", expected.effect.as_deref(), &seen.effect);
        check("the extent", expected.extent.as_deref(), &seen.extent);
        check("the reach", expected.reach.as_deref(), &seen.reach);
        check("the attacker", Some(&words.expand(&expected.attacker)?), &seen.attacker);
        check("the victim", Some(&words.expand(&expected.victim)?), &seen.victim);
        let last = if expected.closed { "closed" } else { "open" };
        let is = if seen.states.last() == Some(&"closed") { "closed" } else { "open" };
        check("the finding in the end", Some(last), is);
        if seen.partial != expected.partial {
            let is = if seen.partial { "is" } else { "is not" };
            wrong.push(format!("{key}: it {is} marked partial"));
        }
        if let Some(expected) = &expected.traffic {
            let sent = match &expected.sent {
                Some(name) => Some(*shown.sent.0.get(&words.address(name)?).unwrap_or(&(0, 0))),
                None => None,
            };
            let counted = |seen: Counted| {
                expected.packets.is_none_or(|packets| packets == seen.packets)
                    && sent.is_none_or(|sent| sent == (seen.packets, seen.bytes))
                    && expected.bytes.is_none_or(|bytes| bytes == seen.bytes)
                    && expected.clients.is_none_or(|clients| clients == seen.clients)
            };
            if !seen.traffic.is_some_and(counted) {
                let is = seen.traffic;
                wrong.push(format!("{key}: traffic is {is:?}, not {expected:?} {sent:?}"));
            }
        }
        if expected.prevented.is_some() && expected.prevented != seen.prevented {
            wrong.push(format!("{key}: prevented is {:?}", seen.prevented));
        }
        let opened = seen.states.iter().filter(|state| **state == "opened").count();
        if opened != 1 {
            wrong.push(format!("{key}: opened {opened} times"));
        }
        for text in &expected.evidence {
            let text = words.expand(text)?;
            if !seen.evidence.iter().any(|evidence| evidence.contains(&text)) {
                wrong.push(format!("{key}: no evidence says {text:?}: {:?}", seen.evidence));
            }
        }
        if seen.latency > expected.within {
            wrong.push(format!(
                "{key}: opened {:?} after the kernel's change, not within {:?}",
                seen.latency, expected.within
            ));
        }
    }
    for seen in all.values().filter(|seen| !expected_keys.contains(&seen.key)) {
        wrong.push(format!("not expected: {seen}"));
    }
    Ok(wrong)
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} [{}] {} {}: {} -> {} after {:?}: {}",
            self.key,
            self.states.join(", "),
            self.verdict,
            self.severity,
            self.attacker,
            self.victim,
            self.latency,
            self.reason
        )
    }
}
