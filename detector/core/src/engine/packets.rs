//! What the engine is told of packets, connections and translations, and what it says of whom to
//! watch.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::{Change, Engine, Output, watched_address};
use crate::claim::Allocation;
use crate::facts::Identity;
use crate::facts::pods::LocalPod;
use crate::finding::{Diverted, Finding, State, Subject, Translation};
use crate::judge;
use crate::route::{IfIndex, Prefix};
use crate::time::BootTime;
use crate::traffic::{Pretended, Traffic, Translated};

impl Engine {
    /// Whether anybody counts.
    pub(super) fn counting(&mut self, now: BootTime, at: BootTime, counting: bool) {
        if std::mem::replace(&mut self.facts.packets.counting, counting) == counting {
            return;
        }
        if !counting {
            self.close_overdue(None);
        }
        self.judge_everything(now, at);
    }

    /// Takes all that was counted for an address, and tells what waited for it.
    pub(super) fn traffic(&mut self, now: BootTime, traffic: Traffic) {
        let address = traffic.address;
        self.facts.packets.count(traffic);
        self.close(address);
        if self.watching.is_watched(address) {
            let subjects = self.watching.subjects(address);
            self.judge_all(now, now, subjects);
        } else {
            self.facts.packets.forget(address);
        }
    }

    /// Takes the word that there is no room to count for an address.
    pub(super) fn uncounted(&mut self, now: BootTime, address: IpAddr) {
        self.facts.packets.give_up(address);
        self.close(address);
        let subjects = self.watching.subjects(address);
        self.judge_all(now, now, subjects);
    }

    pub(super) fn pretended(&mut self, now: BootTime, at: BootTime, mut pretended: Pretended) {
        let tally = &mut pretended.tally;
        (tally.first, tally.last) = (tally.first.min(at), tally.last.min(at));
        let known = self.has_known_owner(pretended.address);
        let key = self.facts.packets.pretend(pretended, !known);
        self.judge_all(now, at, BTreeSet::from([Subject::Pretence(key)]));
    }

    /// Whether nobody has to be asked whose the address is.
    fn has_known_owner(&self, address: IpAddr) -> bool {
        self.facts.nodes.owner(address).is_some()
            || self.facts.services.owner(address).is_some()
            || self.facts.pods.with_address(address).any(|pod| pod.had_first(address))
    }

    pub(super) fn translated(&mut self, now: BootTime, at: BootTime, translated: Translated) {
        let translation =
            Translation { prefix: Prefix::host(translated.address), to: translated.to };
        let news = self.facts.translations.connected(&translation).is_none();
        self.facts.translations.connect(at, translated);
        // The next count shows what came of another connection of the same.
        if news {
            self.translations(now, BTreeSet::from([translation]));
        }
    }

    /// What a change of translations bears on: themselves, and the claims and routes that they are
    /// evidence for.
    pub(super) fn translations(&mut self, now: BootTime, changed: BTreeSet<Translation>) {
        let mut subjects = BTreeSet::new();
        for translation in changed {
            if let Some(address) = translation.prefix.host_address() {
                self.add_claims(address, &mut subjects);
                let route = Subject::Prefix(translation.prefix);
                if self.ledger.knows(&route) {
                    subjects.insert(route);
                }
            }
            subjects.insert(Subject::Translation(translation));
        }
        self.judge_all(now, now, subjects);
    }

    /// Forgets what only a subject that nobody judges any more rested on.
    pub(super) fn forget(&mut self, now: BootTime, subject: &Subject) {
        match subject {
            Subject::Pretence(key) => {
                let seen = self.facts.packets.pretended(key);
                if seen.is_some_and(|seen| now >= seen.tally.last.after(judge::QUIET)) {
                    self.facts.packets.forgive(key);
                }
            }
            Subject::Translation(translation) => self.facts.translations.expire(now, translation),
            _ => {}
        }
    }

    /// Tells a finding; one that is over waits for the last count of its packets.
    pub(super) fn say(&mut self, now: BootTime, finding: Finding) {
        let address = watched_address(&finding.key.subject);
        if let Some(former) = address.and_then(|at| self.watching.take(at, &finding.key)) {
            self.said.push_back(Output::Finding(Box::new(former)));
        }
        let counted = address
            .filter(|address| self.facts.packets.counting && self.watching.is_watched(*address));
        let (State::Closed, Some(address)) = (finding.state, counted) else {
            if finding.state == State::Closed {
                self.facts.earlier.remove(&finding.key);
            }
            self.said.push_back(Output::Finding(Box::new(finding)));
            return;
        };
        let until = now.after(self.facts.settings.answer);
        let earlier = self.facts.earlier.remove(&finding.key);
        if self.watching.close(address, until, (finding, earlier)) {
            self.said.push_back(Output::Count(address));
        }
    }

    /// Tells the findings that waited for the last count of an address.
    fn close(&mut self, address: IpAddr) {
        for (mut finding, earlier) in self.watching.counted(address) {
            let key = &finding.key;
            let last = judge::diverted(&self.facts, &key.subject, &key.target, &finding.charge);
            let last = match (last, &earlier) {
                (last, None) => last,
                (last, Some(earlier)) => Some(last.unwrap_or_default().after(earlier)),
            };
            // Of a pod that is gone nobody knows any more which connections it answered.
            let packets = |traffic: &Option<Diverted>| traffic.as_ref().map(|all| all.packets);
            if last.is_none() || packets(&last) >= packets(&finding.charge.traffic) {
                finding.charge.traffic = last;
            }
            self.said.push_back(Output::Finding(Box::new(finding)));
        }
    }

    /// Tells those for which nobody counts in time; all where no time is given.
    pub(super) fn close_overdue(&mut self, now: Option<BootTime>) {
        for address in self.watching.overdue(now) {
            for (finding, _) in self.watching.counted(address) {
                self.said.push_back(Output::Finding(Box::new(finding)));
            }
        }
    }

    /// Says whether the packets of a subject's address matter.
    pub(super) fn watch(&mut self, subject: &Subject) {
        let Some(address) = watched_address(subject) else { return };
        let open = self.ledger.is_open(subject);
        match self.watching.set(address, subject, open) {
            Change::Begins => {
                self.facts.packets.forget(address);
                self.said.push_back(Output::Watch(address));
            }
            Change::Ends => self.said.push_back(Output::Unwatch(address)),
            Change::Nothing => {}
        }
    }

    /// Says which source addresses an interface's packets may have, where that is not known.
    pub(super) fn tell_sources(&mut self, index: IfIndex) {
        let Some(link) = self.facts.kernel.links.standing(index) else {
            self.watching.forget_interface(index);
            return;
        };
        let sources = match self.facts.identity(link) {
            Identity::Pod(pod) if pod.can_own() => self.sources_of(pod),
            _ => Vec::new(),
        };
        if self.watching.set_sources(index, &sources) {
            self.said.push_back(Output::Sources(index, sources));
        }
    }

    /// A pod's own addresses, as strong as the evidence for them is, and what the allow-list lets it
    /// send from.
    fn sources_of(&self, pod: &LocalPod) -> Vec<Prefix> {
        let recorded = |address: IpAddr| {
            let block = self.facts.pools.block_of(address)?;
            let known = self.facts.answers.blocks.known(block)?.said.as_ref().ok()?.as_ref();
            match known?.allocation(address)? {
                Allocation::Pod { owner, .. } => Some(owner.key == pod.pod.key),
                _ => Some(false),
            }
        };
        let first = pod.first_addresses.iter().filter(|address| recorded(**address) != Some(false));
        let others = pod.pod.addresses.iter().chain(&pod.pod.annotated_addresses);
        let others = others.filter(|address| recorded(**address) == Some(true));
        let mut sources: Vec<Prefix> = first.chain(others).copied().map(Prefix::host).collect();
        if sources.is_empty() {
            return sources;
        }
        let asked = pod.pod.source_prefixes.iter().copied();
        sources.extend(asked.filter(|asked| self.facts.allow.covers(*asked, &pod.pod)));
        let mut unique = Vec::new();
        for source in sources {
            if !unique.contains(&source) {
                unique.push(source);
            }
        }
        unique
    }

    pub(super) fn tell_all_sources(&mut self) {
        let all: Vec<IfIndex> =
            self.facts.kernel.links.iter().map(|known| known.link.index).collect();
        for index in all {
            self.tell_sources(index);
        }
    }

    /// What IPAM's record of a block says may change whose the pods' addresses in it are.
    pub(super) fn tell_sources_within(&mut self, block: Prefix) {
        let within = |pod: &&LocalPod| {
            let pods = [&pod.first_addresses, &pod.pod.addresses, &pod.pod.annotated_addresses];
            pods.into_iter().flatten().any(|address| block.contains(*address))
        };
        let names = self.facts.pods.iter().filter(within).flat_map(|pod| pod.interfaces.iter());
        let links = names.filter_map(|name| self.facts.kernel.links.by_name(name));
        let all: Vec<IfIndex> = links.map(|known| known.link.index).collect();
        for index in all {
            self.tell_sources(index);
        }
    }

    /// Says in which prefixes pods' addresses lie: pools, else what nodes have for their pods, else
    /// the addresses of this node's pods.
    pub(super) fn tell_ranges(&mut self) {
        let facts = &self.facts;
        let mut ranges: Vec<Prefix> = facts.pools.prefixes().collect();
        if ranges.is_empty() {
            ranges = facts.nodes.pod_prefixes().collect();
        }
        if ranges.is_empty() {
            let own = facts.pods.iter().flat_map(|pod| &pod.first_addresses);
            ranges = own.copied().map(Prefix::host).collect();
        }
        ranges.sort_unstable();
        ranges.dedup();
        if self.watching.set_ranges(&ranges) {
            self.said.push_back(Output::Ranges(ranges));
        }
    }
}
