//! The engine: one call for everything that it is told, one for the time, one for what it says.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

mod packets;
mod resting;
mod restoring;
mod watching;
mod writers;

use self::resting::Resting;
use self::restoring::Restoring;
use self::watching::{Change, Watching, watched_address};
use crate::claim::Ipam;
use crate::explain::{Explanation, explain};
use crate::facts::Facts;
use crate::facts::kernel::{Affected, DumpEnd};
use crate::facts::pods::{LocalPod, Touched};
use crate::finding::{Claim, Field, Finding, Subject};
use crate::judge::{self, judge};
use crate::ledger::{Ledger, Verdicts};
use crate::observation::{
    Answer, KernelChange, KernelState, Observation, Question, Reply, Sense, What,
};
use crate::route::{IfIndex, Prefix};
use crate::settings::Settings;
use crate::time::BootTime;
use crate::writer::Stranger;

/// Questions that are under way at once; more wait for their turn.
const QUESTIONS_AT_ONCE: usize = 64;

/// How soon routes that could not be waited for are looked at again.
const SWEEP: Duration = Duration::from_secs(1);

/// What the engine says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Output {
    /// A finding was opened, updated or closed.
    Finding(Box<Finding>),
    /// The engine wants to know something; the answer is an observation.
    Question(Question),
    /// The kernel's tables have to be dumped anew.
    Resync(&'static str),
    /// Packets for the address are to be counted from now on, from zero.
    Watch(IpAddr),
    /// Packets for the address need no longer be counted.
    Unwatch(IpAddr),
    /// What was counted for the watched address is wanted now; the answer is an observation.
    Count(IpAddr),
    /// Packets that come out of this interface may have these source addresses and no other; what
    /// was said of the interface before is void. An empty list means that nobody knows yet, and
    /// that nothing is to be said of them.
    Sources(IfIndex, Vec<Prefix>),
    /// The prefixes in which pods' addresses lie, all of them: connections to others matter only
    /// where the address is watched.
    Ranges(Vec<Prefix>),
    /// A pod's own route was written by a process that is none of Calico's: nothing is wrong with the
    /// route, but somebody may want to know. Each command is told of once.
    Stranger(Box<Stranger>),
}

/// How much of everything the engine holds; what metrics show.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Holdings {
    /// Routes that stand.
    pub routes: usize,
    /// Interfaces that stand.
    pub links: usize,
    /// Pods of this node.
    pub pods: usize,
    /// Services of the cluster.
    pub services: usize,
    /// Answers that are remembered.
    pub answers: usize,
    /// Questions under way.
    pub questions: usize,
    /// Diversions that wait for evidence.
    pub waiting: usize,
    /// Findings that stand.
    pub standing: usize,
    /// Diversions that could not be waited for at once, since too many were.
    pub overflowed: u64,
}

/// The pure engine. Time is what it is told: every call takes `now`, and [`Engine::next_deadline`]
/// says when the next [`Engine::tick`] is of use. An early or late tick does no harm.
#[derive(Debug)]
pub struct Engine {
    facts: Facts,
    ledger: Ledger,
    deadlines: BTreeSet<(BootTime, Subject)>,
    scheduled: HashMap<Subject, BootTime>,
    asked: BTreeSet<(BootTime, Question)>,
    backlog: BTreeSet<Question>,
    /// Who waits for, or rests on, an answer.
    resting: Resting,
    watching: Watching,
    restoring: Restoring,
    sweep: Option<BootTime>,
    /// Commands of strangers that were told of.
    strangers: BTreeSet<Box<str>>,
    said: VecDeque<Output>,
}

// === impl Engine ===

impl Engine {
    /// An engine that knows nothing yet.
    pub fn new(settings: Settings) -> Self {
        Self {
            facts: Facts::new(settings),
            ledger: Ledger::default(),
            deadlines: BTreeSet::new(),
            scheduled: HashMap::new(),
            asked: BTreeSet::new(),
            backlog: BTreeSet::new(),
            resting: Resting::default(),
            watching: Watching::default(),
            restoring: Restoring::default(),
            sweep: None,
            strangers: BTreeSet::new(),
            said: VecDeque::new(),
        }
    }

    /// The settings that it was made with.
    pub fn settings(&self) -> &Settings {
        &self.facts.settings
    }

    /// Takes an observation. What follows from it can be polled at once.
    pub fn observe(&mut self, now: BootTime, observation: Observation) {
        self.take(now, observation);
        self.release(now);
    }

    #[expect(clippy::too_many_lines, reason = "an arm for each thing that can be told")]
    fn take(&mut self, now: BootTime, observation: Observation) {
        let Observation { at, what } = observation;
        let at = at.min(now);
        self.facts.started.get_or_insert(at);
        match what {
            What::Kernel(change) => self.kernel(now, at, change),
            What::SnapshotBegin => self.facts.kernel.begin_dump(at),
            What::SnapshotPart(part) => self.part(part),
            What::SnapshotAborted => self.facts.kernel.abort_dump(),
            What::SnapshotEnd => self.snapshot_end(now, at),
            What::PodApplied(pod) => {
                let prefixes = &self.facts.settings.interface_prefixes;
                let touched = self.facts.pods.apply(at, at, prefixes, pod);
                self.pods(now, touched);
            }
            What::PodDeleted(key, uid) => {
                let touched = self.facts.pods.delete(at, &key, &uid);
                self.pods(now, touched);
            }
            What::PodsReset(pods) => {
                self.facts.pods_listed = Some(at);
                let prefixes = &self.facts.settings.interface_prefixes;
                let heard =
                    if self.facts.synced.contains(&Sense::Pods) { at } else { BootTime::ZERO };
                let touched = self.facts.pods.reset(at, heard, prefixes, pods);
                if self.facts.synced.insert(Sense::Pods) {
                    self.judge_everything(now, at);
                } else {
                    self.pods(now, touched);
                }
            }
            What::NodesReset(nodes) => {
                let touched = self.facts.nodes.reset(nodes);
                if self.facts.synced.insert(Sense::Nodes) {
                    self.judge_everything(now, at);
                } else {
                    self.addresses(now, touched);
                }
            }
            What::NodeApplied(node) => {
                let touched = self.facts.nodes.apply(node);
                self.addresses(now, touched);
                self.tell_ranges();
            }
            What::NodeDeleted(name) => {
                let touched = self.facts.nodes.delete(&name);
                self.addresses(now, touched);
                self.tell_ranges();
            }
            What::Ipam(ipam) => {
                if std::mem::replace(&mut self.facts.pools.ipam, ipam) != ipam {
                    self.judge_everything(now, at);
                }
            }
            What::Pools(pools) => {
                if self.facts.pools.reset(pools) {
                    self.judge_everything(now, at);
                }
            }
            What::ServicesReset(services) => {
                let former: Vec<_> = self.facts.services.claims().collect();
                let touched = self.facts.services.reset(at, services);
                if self.facts.synced.insert(Sense::Services) {
                    self.judge_everything(now, at);
                } else {
                    self.services(now, former, touched);
                }
            }
            What::ServiceApplied(service) => {
                let former = self.facts.services.claims_of(&service.key);
                let touched = self.facts.services.apply(at, service);
                self.services(now, former, touched);
            }
            What::ServiceDeleted(key) => {
                let former = self.facts.services.claims_of(&key);
                let touched = self.facts.services.delete(&key);
                self.services(now, former, touched);
            }
            What::Felix(felix) => {
                if self.facts.felix != felix {
                    self.facts.felix = felix;
                    self.judge_everything(now, at);
                }
            }
            What::Feature(feature) => {
                if std::mem::replace(&mut self.facts.feature, feature) != self.facts.feature {
                    self.judge_everything(now, at);
                }
            }
            What::AllowList(allow) => {
                if std::mem::replace(&mut self.facts.allow, allow) != self.facts.allow {
                    self.judge_everything(now, at);
                }
            }
            What::Answer(answer) => self.answer(now, at, answer),
            What::Counting(counting) => self.counting(now, at, counting),
            What::Traffic(traffic) => self.traffic(now, traffic),
            What::Uncounted(address) => self.uncounted(now, address),
            What::Pretended(pretended) => self.pretended(now, at, pretended),
            What::Refused(refusal) => self.refused(now, at, refusal),
            What::Translated(translated) => self.translated(now, at, translated),
            What::TranslationRules(rules) => {
                let changed = self.facts.translations.reset(at, rules);
                self.facts.synced.insert(Sense::Translations);
                self.translations(now, changed);
            }
            What::Blind(sense, why) => self.blind(now, at, sense, why),
        }
    }

    /// Lets time pass: decides what has waited long enough.
    pub fn tick(&mut self, now: BootTime) {
        let patience = self.facts.settings.answer;
        while let Some((due, question)) = self.asked.first().copied().filter(|(due, _)| *due <= now)
        {
            self.asked.remove(&(due, question));
            if self.facts.answers.give_up(question, now, patience) {
                self.ask_backlog(now);
                self.answered(now, question);
            }
        }
        while let Some((due, _)) = self.deadlines.first().filter(|(due, _)| *due <= now) {
            let due = *due;
            let Some((_, subject)) = self.deadlines.pop_first() else { break };
            self.scheduled.remove(&subject);
            self.judge(now, due, &subject);
        }
        if self.sweep.is_some_and(|due| due <= now) {
            self.sweep = None;
            self.sweep(now);
        }
        self.close_overdue(Some(now));
        self.restoring.pass(now);
        self.release(now);
    }

    /// When [`Engine::tick`] will next do something.
    pub fn next_deadline(&self) -> Option<BootTime> {
        let subject = self.deadlines.first().map(|(due, _)| *due);
        let question = self.asked.first().map(|(due, _)| *due);
        let closing = self.watching.next_deadline();
        let restoring = self.restoring.next_deadline();
        [subject, question, self.sweep, closing, restoring].into_iter().flatten().min()
    }

    /// The next thing that the engine has to say.
    pub fn poll(&mut self) -> Option<Output> {
        self.said.pop_front()
    }

    /// Every finding that stands, in the order of its key.
    pub fn standing(&self) -> Vec<&Finding> {
        self.ledger.standing()
    }

    /// Whose an address is, by whom, and where its packets go: for people who want to check.
    pub fn explain(&self, now: BootTime, address: IpAddr) -> Explanation {
        let mut explanation = explain(&self.facts, now, address);
        let concerns = |finding: &&Finding| {
            let prefix = finding.key.subject.prefix();
            prefix.is_some_and(|prefix| prefix.contains(address))
        };
        let standing = self.ledger.standing().into_iter().filter(concerns);
        explanation.findings = standing.cloned().collect();
        for opinion in &mut explanation.opinions {
            // What was said stands until there is better: what it rested on may have to be asked anew.
            let said = explanation.findings.iter().find(|finding| finding.key == opinion.key);
            if let Some(Finding { charge, .. }) = said {
                opinion.verdict = charge.certainty.as_str();
                opinion.reason = Some(charge.reason.clone());
            }
        }
        explanation
    }

    /// How much it holds.
    pub fn holdings(&self) -> Holdings {
        Holdings {
            routes: self.facts.kernel.fib.len(),
            links: self.facts.kernel.links.len(),
            pods: self.facts.pods.len(),
            services: self.facts.services.len(),
            answers: self.facts.answers.len(),
            questions: self.facts.answers.in_flight(),
            waiting: self.ledger.waiting(),
            standing: self.ledger.standing_count(),
            overflowed: self.ledger.overflowed,
        }
    }

    fn kernel(&mut self, now: BootTime, at: BootTime, change: KernelChange) {
        self.look_for_strangers(&change);
        let facts = &mut self.facts;
        let affected = facts.kernel.apply(&facts.settings, at, change);
        self.affected(now, at, affected);
    }

    fn part(&mut self, part: KernelState) {
        let facts = &mut self.facts;
        facts.kernel.dump_part(&facts.settings, part);
    }

    fn snapshot_end(&mut self, now: BootTime, at: BootTime) {
        let mut affected = Affected::default();
        let facts = &mut self.facts;
        match facts.kernel.end_dump(&facts.settings, &mut affected) {
            DumpEnd::NotBegun => {}
            DumpEnd::Outrun => {
                self.said.push_back(Output::Resync("more changed during the dump than was kept"));
            }
            end => {
                let first = facts.synced.insert(Sense::Kernel);
                self.affected(now, at, affected);
                if first {
                    self.judge_everything(now, at);
                }
                if end == DumpEnd::Unsure {
                    self.said.push_back(Output::Resync("routes were replaced during the dump"));
                }
            }
        }
    }

    fn affected(&mut self, now: BootTime, at: BootTime, affected: Affected) {
        let Affected { prefixes, links, rules, neighbours, removed } = affected;
        let mut subjects = BTreeSet::new();
        for entry in removed {
            let subject = Subject::Prefix(entry.route.prefix);
            self.add_rules_of(&entry.route, &mut subjects);
            if self.ledger.knows(&subject) {
                let targets = judge::targets(&self.facts, &entry);
                self.ledger.remember(at, &subject, &targets, entry);
            }
            subjects.insert(subject);
        }
        for prefix in prefixes {
            for entry in self.facts.kernel.fib.get(prefix) {
                self.add_rules_of(&entry.route, &mut subjects);
            }
            if let Some(address) = prefix.host_address() {
                self.add_claims(address, &mut subjects);
            }
            subjects.insert(Subject::Prefix(prefix));
        }
        for index in links {
            self.add_link(index, &mut subjects);
            self.tell_sources(index);
        }
        subjects.extend(rules.into_iter().map(Subject::Rule));
        subjects.extend(neighbours.into_iter().map(Subject::Neighbour));
        self.judge_all(now, at, subjects);
    }

    /// Rules whose meaning a route in their table changes.
    fn add_rules_of(&self, route: &crate::route::Route, subjects: &mut BTreeSet<Subject>) {
        if !route.table.is_builtin() {
            let rules = self.facts.kernel.rules_to(route.table);
            subjects.extend(rules.cloned().map(Subject::Rule));
        }
    }

    /// What an interface's coming, going or renaming bears on: the routes by it, and the addresses
    /// of the pod that it belongs to.
    fn add_link(&self, index: IfIndex, subjects: &mut BTreeSet<Subject>) {
        subjects.extend(self.facts.kernel.fib.on_interface(index).into_iter().map(Subject::Prefix));
        let Some(link) = self.facts.kernel.links.get(index) else { return };
        for name in [&link.first_name, &link.link.name] {
            let Some(pod) = self.facts.pods.on_interface(name) else { continue };
            for address in &pod.first_addresses {
                self.add_address(*address, subjects);
            }
        }
    }

    fn add_address(&self, address: IpAddr, subjects: &mut BTreeSet<Subject>) {
        subjects.insert(Subject::Prefix(Prefix::host(address)));
        subjects.extend(self.facts.kernel.fib.covering(address).map(Subject::Prefix));
        subjects.extend(self.facts.kernel.rules_for(address).cloned().map(Subject::Rule));
        subjects.extend(self.facts.kernel.neighbours_for(address).copied().map(Subject::Neighbour));
        subjects.extend(self.facts.translations.of(address).into_iter().map(Subject::Translation));
        subjects.extend(self.facts.translations.to(address).map(Subject::Translation));
        let pretending = self.facts.packets.pretending_to_have(address);
        subjects.extend(pretending.copied().map(Subject::Pretence));
        self.add_claims(address, subjects);
    }

    /// The claims that an address bears on: all of each pod that has to do with it, and those of
    /// Services on it.
    fn add_claims(&self, address: IpAddr, subjects: &mut BTreeSet<Subject>) {
        let of_pods = self.facts.pods.with_address(address).flat_map(LocalPod::claims);
        subjects.extend(of_pods.map(Subject::Claim));
        subjects.extend(self.facts.services.claims_on(address).map(Subject::Claim));
    }

    fn pods(&mut self, now: BootTime, touched: Touched) {
        for claim in touched.claims.iter().filter(|claim| claim.field == Field::FloatingIps) {
            if let Some(address) = claim.prefix.host_address() {
                self.facts.translations.claim(now, address);
            }
        }
        let mut subjects: BTreeSet<Subject> =
            touched.claims.into_iter().map(Subject::Claim).collect();
        for name in &touched.interfaces {
            if let Some(link) = self.facts.kernel.links.by_name(name) {
                let index = link.link.index;
                self.tell_sources(index);
                let prefixes = self.facts.kernel.fib.on_interface(index);
                subjects.extend(prefixes.into_iter().map(Subject::Prefix));
            }
        }
        for address in touched.addresses {
            self.add_address(address, &mut subjects);
        }
        self.judge_all(now, now, subjects);
        self.tell_ranges();
    }

    /// What a change of Services bears on: the claims that were made before it, and addresses.
    fn services(&mut self, now: BootTime, former: Vec<Claim>, touched: Vec<IpAddr>) {
        let mut subjects: BTreeSet<Subject> = former.into_iter().map(Subject::Claim).collect();
        for address in touched {
            self.add_address(address, &mut subjects);
        }
        self.judge_all(now, now, subjects);
    }

    fn addresses(&mut self, now: BootTime, touched: impl IntoIterator<Item = IpAddr>) {
        let mut subjects = BTreeSet::new();
        for address in touched {
            self.add_address(address, &mut subjects);
        }
        self.judge_all(now, now, subjects);
    }

    fn blind(&mut self, now: BootTime, at: BootTime, sense: Sense, why: Option<Box<str>>) {
        // Of the allow-list's part in the cluster nothing else tells that it was read.
        let first = sense == Sense::Allowances && why.is_none() && self.facts.synced.insert(sense);
        if sense == Sense::Connections && why.is_none() {
            // All that are there were read.
            self.facts.synced.insert(sense);
        }
        match why {
            Some(why) => {
                self.facts.blind.insert(sense, why);
            }
            None => {
                if self.facts.blind.remove(&sense).is_some() || first {
                    self.judge_everything(now, at);
                }
            }
        }
    }

    /// Judges all that can be wrong at all: routes by interfaces that are no uplinks, those by
    /// uplinks to addresses of pools, claims, and every subject that the ledger knows.
    fn judge_everything(&mut self, now: BootTime, at: BootTime) {
        let mut subjects: BTreeSet<Subject> = self.ledger.subjects().cloned().collect();
        let facts = &self.facts;
        for known in facts.kernel.links.iter().filter(|l| !facts.settings.is_uplink(&l.link)) {
            let prefixes = facts.kernel.fib.on_interface(known.link.index);
            subjects.extend(prefixes.into_iter().map(Subject::Prefix));
        }
        // Routes by uplinks are in no index: there may be a million of them.
        let hosts = facts.kernel.fib.hosts();
        let pooled = hosts.filter(|(_, address)| facts.pools.of(*address).is_some());
        subjects.extend(pooled.map(|(prefix, _)| Subject::Prefix(prefix)));
        for pod in facts.pods.iter() {
            for address in &pod.first_addresses {
                self.add_address(*address, &mut subjects);
            }
            subjects.extend(pod.claims().map(Subject::Claim));
        }
        subjects.extend(facts.services.claims().map(Subject::Claim));
        subjects.extend(facts.translations.iter().map(Subject::Translation));
        subjects.extend(facts.kernel.neighbours().copied().map(Subject::Neighbour));
        subjects.extend(facts.packets.pretending().copied().map(Subject::Pretence));
        self.judge_all(now, at, subjects);
        self.tell_ranges();
        self.tell_all_sources();
    }

    fn judge_all(&mut self, now: BootTime, at: BootTime, subjects: BTreeSet<Subject>) {
        for subject in subjects {
            self.judge(now, at, &subject);
        }
    }

    fn judge(&mut self, now: BootTime, at: BootTime, subject: &Subject) {
        let live = judge(&self.facts, now, subject, None);
        let gone = match self.ledger.gone(subject) {
            Some(remembered) => judge(&self.facts, now, subject, Some(remembered)),
            None => judge::Judgement::default(),
        };
        if live.verdicts.is_empty() && !self.ledger.knows(subject) {
            self.forget(now, subject);
            return;
        }
        self.resting.set(subject, live.rests.union(&gone.rests).copied().collect());
        for question in live.asks.union(&gone.asks) {
            self.ask(now, *question);
        }
        let blinded = self.blinded(now, subject);
        let verdicts = Verdicts { live: live.verdicts, gone: gone.verdicts, blinded };
        let cap = self.facts.settings.waiting_cap;
        let overflowed = self.ledger.overflowed;
        let mut told = Vec::new();
        let next = self.ledger.settle(now, at, cap, subject, verdicts, &mut told);
        if self.ledger.overflowed != overflowed {
            self.sweep.get_or_insert(now.after(SWEEP));
        }
        for finding in told {
            self.say(now, finding);
        }
        self.watch(subject);
        if !self.ledger.knows(subject) {
            self.resting.set(subject, BTreeSet::new());
            self.forget(now, subject);
        }
        self.schedule(now, subject, next);
    }

    fn schedule(&mut self, now: BootTime, subject: &Subject, next: Option<BootTime>) {
        // A deadline that has passed would be met by the same verdict for ever.
        let next = next.map(|next| next.max(now.after(Duration::from_millis(1))));
        let old = match next {
            Some(next) => self.scheduled.insert(subject.clone(), next),
            None => self.scheduled.remove(subject),
        };
        if old == next {
            return;
        }
        if let Some(old) = old {
            self.deadlines.remove(&(old, subject.clone()));
        }
        if let Some(next) = next {
            self.deadlines.insert((next, subject.clone()));
        }
    }

    fn ask(&mut self, now: BootTime, question: Question) {
        if self.facts.answers.in_flight() >= QUESTIONS_AT_ONCE {
            self.backlog.insert(question);
        } else if self.facts.answers.ask(question, now) {
            self.asked.insert((now.after(self.facts.settings.answer), question));
            self.said.push_back(Output::Question(question));
        }
    }

    fn ask_backlog(&mut self, now: BootTime) {
        while self.facts.answers.in_flight() < QUESTIONS_AT_ONCE {
            let Some(question) = self.backlog.pop_first() else { return };
            if self.resting.on(question).any(|subject| self.ledger.knows(subject)) {
                self.ask(now, question);
            }
        }
    }

    fn answer(&mut self, now: BootTime, at: BootTime, answer: Answer) {
        let question = answer.reply.question();
        // Where there is a block, Calico's IPAM is in use, whatever was thought before.
        let found = matches!(&answer.reply, Reply::Block(_, Ok(Some(_))));
        self.facts.answers.apply(at, answer);
        self.ask_backlog(now);
        if found && self.facts.pools.ipam != Ipam::Calico {
            self.facts.pools.ipam = Ipam::Calico;
            self.judge_everything(now, now);
        } else {
            self.answered(now, question);
        }
    }

    fn answered(&mut self, now: BootTime, question: Question) {
        let subjects = self.resting.on(question).cloned().collect();
        self.judge_all(now, now, subjects);
        if let Question::Block(block) = question {
            self.tell_sources_within(block);
        }
    }

    /// Looks at what could not be waited for before, as far as there is room now.
    fn sweep(&mut self, now: BootTime) {
        let mut unknown: BTreeSet<Subject> = BTreeSet::new();
        let of_pods = self.facts.pods.iter().flat_map(LocalPod::claims);
        let claims = of_pods.chain(self.facts.services.claims()).map(Subject::Claim);
        unknown.extend(claims.filter(|subject| !self.ledger.knows(subject)));
        for known in self.facts.kernel.links.iter() {
            if self.facts.settings.is_uplink(&known.link) {
                continue;
            }
            for prefix in self.facts.kernel.fib.on_interface(known.link.index) {
                let subject = Subject::Prefix(prefix);
                if !self.ledger.knows(&subject) {
                    unknown.insert(subject);
                }
            }
        }
        for subject in unknown {
            if self.ledger.waiting() >= self.facts.settings.waiting_cap {
                self.sweep.get_or_insert(now.after(SWEEP));
                return;
            }
            self.judge(now, now, &subject);
        }
    }
}
