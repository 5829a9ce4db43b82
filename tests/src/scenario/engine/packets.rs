//! Packets on their way through the pretended node, as the programs on its interfaces would count
//! them and connection tracking would know them.

use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::{Context as _, Result};
use detector_core::observation::What;
use detector_core::route::{IfIndex, Prefix};
use detector_core::time::BootTime;
use detector_core::traffic::{
    Count, Flow, IpProtocol, Pretence, Pretended, Side, Tally, Traffic, Translated, TranslationRule,
};

use super::world::World;
use crate::scenario::UPLINK;
use crate::scenario::packets::{
    Carries, Message, PretendStep, SendStep, TranslateStep, Translator,
};
use crate::scenario::words::{Words, interface};

/// What the engine has said of whom to watch, and what was counted since.
#[derive(Default)]
pub(super) struct Counters {
    watched: BTreeMap<IpAddr, BTreeMap<(Side, Option<Flow>), Tally>>,
    sources: BTreeMap<IfIndex, Vec<Prefix>>,
    ranges: Vec<Prefix>,
    rules: Vec<TranslateStep>,
}

impl Counters {
    pub(super) fn watch(&mut self, address: IpAddr) {
        self.watched.insert(address, BTreeMap::new());
    }

    pub(super) fn unwatch(&mut self, address: IpAddr) {
        self.watched.remove(&address);
    }

    pub(super) fn sources(&mut self, interface: IfIndex, sources: Vec<Prefix>) {
        self.sources.insert(interface, sources);
    }

    pub(super) fn ranges(&mut self, ranges: Vec<Prefix>) {
        self.ranges = ranges;
    }

    /// All that was counted for an address.
    pub(super) fn traffic(&self, address: IpAddr) -> Traffic {
        let counts = self.watched.get(&address).into_iter().flatten();
        let count = |(key, tally): (&(Side, Option<Flow>), &Tally)| Count {
            side: key.0,
            flow: key.1,
            tally: *tally,
        };
        Traffic { address, counts: counts.map(count).collect() }
    }

    /// Makes or unmakes a rule; gives what is told of it.
    pub(super) fn translate(
        &mut self,
        words: Words<'_>,
        step: &TranslateStep,
        make: bool,
    ) -> Result<What> {
        if make {
            self.rules.push(step.clone());
        } else {
            self.rules.retain(|rule| rule != step);
        }
        let mut rules = Vec::new();
        for rule in &self.rules {
            let (from, to) = (words.address(&rule.from)?, words.address(&rule.to)?);
            let origin = match (rule.by, rule.felix) {
                (Translator::Nft, _) => "nft",
                (Translator::IptablesNft, _) => "iptables-nft",
                (Translator::IptablesLegacy, _) => "iptables-legacy",
            };
            rules.push(TranslationRule {
                prefix: Prefix::host(from),
                to,
                to_last: to,
                origin: origin.into(),
            });
        }
        Ok(What::TranslationRules(rules))
    }

    /// Sends packets; gives what is seen of them.
    pub(super) fn send(
        &mut self,
        words: Words<'_>,
        world: &World<'_>,
        step: &SendStep,
        now: BootTime,
    ) -> Result<Vec<What>> {
        let to = words.address(&step.to)?;
        let (came_in, own) = if step.is_outside() {
            (world.index(UPLINK)?, None)
        } else {
            (world.index(&interface(&step.from)?)?, world.first_address(&step.from, to)?)
        };
        let source = step.source.as_ref().map(|name| words.address(name)).transpose()?;
        let source = source.or(own).context("packets from outside need `as`")?;
        let (protocol, port) = match (step.carries, to) {
            (Carries::Udp, _) => (IpProtocol::UDP, Some(step.port)),
            (Carries::Tcp, _) => (IpProtocol(6), Some(step.port)),
            (Carries::Icmp, IpAddr::V4(_)) => (IpProtocol(1), None),
            (Carries::Icmp, IpAddr::V6(_)) => (IpProtocol(58), None),
        };
        let flow = Flow { client: source, protocol, port };
        let (packets, bytes) = step.on_the_wire(to.is_ipv4());
        let tally = Tally { packets, bytes, first: now, last: now };
        let mut seen = Vec::new();
        if self.is_foreign(came_in, source) {
            seen.push(What::Pretended(Pretended {
                interface: came_in,
                address: source,
                pretence: Pretence::Source,
                destination: Some(to),
                tally,
            }));
        }
        self.count(to, Side::Sent, flow, tally);
        let rule = self.rules.iter().find(|rule| words.address(&rule.from).is_ok_and(|a| a == to));
        let translated = rule.map(|rule| words.address(&rule.to)).transpose()?;
        if let Some(translated) = translated
            && (self.watched.contains_key(&to) || self.ranges.iter().any(|of| of.contains(to)))
        {
            seen.push(What::Translated(Translated { flow, address: to, to: translated }));
        }
        // Whoever answers for an address that was not translated to his own answers as its owner.
        if let Some(answers) = step.answers.as_ref().filter(|_| translated.is_none()) {
            let interface = world.index(&interface(answers)?)?;
            if self.is_foreign(interface, to) {
                let (pretence, destination) = (Pretence::Source, Some(source));
                let pretended = Pretended { interface, address: to, pretence, destination, tally };
                seen.push(What::Pretended(pretended));
            }
        }
        let destination = translated.unwrap_or(to);
        if let Some(leaves) = world.way_to(destination) {
            self.count(destination, Side::Reached(leaves), flow, tally);
        }
        for address in [to, destination] {
            if self.watched.contains_key(&address) {
                seen.push(What::Traffic(self.traffic(address)));
            }
        }
        Ok(seen)
    }

    /// Sends messages between neighbours; gives what is seen of them.
    pub(super) fn pretend(
        &self,
        words: Words<'_>,
        world: &World<'_>,
        step: &PretendStep,
        now: BootTime,
    ) -> Result<Vec<What>> {
        let came_in = world.index(&interface(&step.pod)?)?;
        let address = match &step.address {
            Some(name) => words.address(name)?,
            None => "fe80::1".parse()?,
        };
        let pretence = match (step.sort, address) {
            (Message::Router, _) => Pretence::Router,
            (Message::Neighbour, IpAddr::V4(_)) => Pretence::Arp,
            (Message::Neighbour, IpAddr::V6(_)) => Pretence::Neighbour,
        };
        if pretence != Pretence::Router && !self.is_foreign(came_in, address) {
            return Ok(Vec::new());
        }
        let tally = Tally { packets: 1, bytes: 28, first: now, last: now };
        let (interface, destination) = (came_in, None);
        Ok(vec![What::Pretended(Pretended { interface, address, pretence, destination, tally })])
    }

    /// Whether an interface's own addresses are known, and this is none of them.
    fn is_foreign(&self, interface: IfIndex, address: IpAddr) -> bool {
        let own = self.sources.get(&interface).filter(|own| !own.is_empty());
        own.is_some_and(|own| !own.iter().any(|own| own.contains(address)))
    }

    fn count(&mut self, address: IpAddr, side: Side, flow: Flow, more: Tally) {
        let Some(counts) = self.watched.get_mut(&address) else { return };
        for key in [(side, None), (side, Some(flow))] {
            let nothing = Tally { packets: 0, bytes: 0, ..more };
            let tally = counts.entry(key).or_insert(nothing);
            tally.packets += more.packets;
            tally.bytes += more.bytes;
            tally.last = more.last;
        }
    }
}
