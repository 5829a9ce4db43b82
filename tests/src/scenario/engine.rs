//! The rung that needs nothing: a scenario in the engine alone, on pretended time.

mod kernel;
mod packets;
mod world;

use std::time::Duration;

use anyhow::{Context as _, Result};
use detector_core::claim::Ipam;
use detector_core::engine::{Engine, Output};
use detector_core::observation::{Answer, Node, Observation, Question, Reply, Sense, What};
use detector_core::policy::{AllowList, Allowance};
use detector_core::settings::Settings;
use detector_core::time::BootTime;
use detector_core::workload::NodeName;

use self::packets::Counters;
use self::world::World;
use super::cluster::IpamKind;
use super::compare::{self, AllSeen, Sent, Shown};
use super::ipam;
use super::recorded;
use super::step::{ApiState, Step};
use super::words::Words;

/// How long a watch takes to tell of a change.
const WATCH: Duration = Duration::from_millis(2);

/// How long a question and its answer are under way. The API server looks at the last moment: what it says may
/// be newer than what the agent knew when it asked.
const ANSWER: Duration = Duration::from_millis(5);

/// In which order the sources are heard when the agent starts. The outcome must not depend on it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StartOrder {
    /// The kernel's tables, then the cluster.
    KernelFirst,
    /// The cluster, then the kernel's tables.
    ClusterFirst,
}

/// What the API server does.
enum Api {
    /// It tells and answers.
    Up,
    /// It answers, but holds back what its watches would tell.
    Held(Vec<Observation>),
    /// It does neither.
    Down,
}

/// What is under way to the engine.
enum News {
    /// It was said, and is heard later.
    Told(Box<Observation>),
    /// It was asked then, and is said when it is heard.
    Asked(BootTime, Question),
}

/// What is said where the API server is down.
const REFUSED: &str = "the API server refuses connections";

/// The engine and the pretended world around it.
struct Run<'a> {
    words: Words<'a>,
    engine: Engine,
    world: World<'a>,
    now: BootTime,
    /// What is under way to the engine, in the order of its arrival.
    under_way: Vec<(BootTime, News)>,
    api: Api,
    counters: Counters,
    seen: AllSeen,
    sent: Sent,
}

/// Runs a scenario; gives what was found.
pub fn run(words: Words<'_>, order: StartOrder) -> Result<Shown> {
    if let Some(recording) = &words.scenario.recording {
        return recorded::run(recording);
    }
    let mut run = Run {
        words,
        engine: Engine::new(settings(words)),
        world: World::new(words)?,
        now: BootTime::from_millis(1_000_000),
        under_way: Vec::new(),
        api: Api::Up,
        counters: Counters::default(),
        seen: AllSeen::new(),
        sent: Sent::default(),
    };
    for step in &words.scenario.given {
        run.world.apply(step).with_context(|| format!("given: {step:?}"))?;
    }
    run.start(order)?;
    for step in &words.scenario.steps {
        run.step(step).with_context(|| format!("step {step:?}"))?;
    }
    run.pass(Duration::from_millis(200));
    Ok(Shown { seen: run.seen, sent: run.sent })
}

fn settings(words: Words<'_>) -> Settings {
    let mut settings = Settings::for_node(NodeName(words.scenario.node.as_str().into()));
    let timing = words.scenario.settings;
    settings.newborn = timing.newborn.unwrap_or(settings.newborn);
    settings.settle = timing.settle.unwrap_or(settings.settle);
    settings.remote = timing.remote.unwrap_or(settings.remote);
    settings.withdraw = timing.withdraw.unwrap_or(settings.withdraw);
    settings
}

impl Run<'_> {
    fn start(&mut self, order: StartOrder) -> Result<()> {
        let mut kernel = vec![What::SnapshotBegin];
        kernel.extend(self.world.dump().into_iter().map(What::SnapshotPart));
        kernel.push(What::SnapshotEnd);
        self.observe(What::Counting(true));
        let mut cluster = vec![What::AllowList(self.allow_list()?)];
        cluster.extend(self.cluster()?);
        let all = match order {
            StartOrder::KernelFirst => kernel.into_iter().chain(cluster).collect::<Vec<_>>(),
            StartOrder::ClusterFirst => cluster.into_iter().chain(kernel).collect(),
        };
        for what in all {
            self.observe(what);
        }
        self.pass(Duration::from_millis(100));
        Ok(())
    }

    fn step(&mut self, step: &Step) -> Result<()> {
        match step {
            Step::Wait(duration) => self.pass(*duration),
            Step::Api(state) => self.turn_api(*state)?,
            Step::Send(step) => {
                let to = self.words.address(&step.to)?;
                self.sent.add(to, step.on_the_wire(to.is_ipv4()));
                let seen = self.counters.send(self.words, &self.world, step, self.now)?;
                for what in seen {
                    self.observe(what);
                }
            }
            Step::Pretend(step) => {
                let seen = self.counters.pretend(self.words, &self.world, step, self.now)?;
                for what in seen {
                    self.observe(what);
                }
            }
            Step::Translate(step) => {
                let rules = self.counters.translate(self.words, step, true)?;
                self.observe(rules);
            }
            Step::Untranslate(step) => {
                let rules = self.counters.translate(self.words, step, false)?;
                self.observe(rules);
            }
            step => {
                for what in self.world.apply(step)? {
                    if matches!(what, What::Kernel(_)) {
                        self.observe(what);
                    } else {
                        let due = self.now.after(WATCH);
                        let observation = Observation { at: due, what };
                        match &mut self.api {
                            Api::Up => {
                                self.under_way.push((due, News::Told(Box::new(observation))));
                            }
                            Api::Held(held) => held.push(observation),
                            Api::Down => {}
                        }
                    }
                }
            }
        }
        self.pass(Duration::from_millis(1));
        Ok(())
    }

    /// All that the cluster's sources tell at first, and when their watches had been cut.
    fn cluster(&self) -> Result<Vec<What>> {
        let ipam = match ipam::kind(self.words.scenario) {
            IpamKind::Calico => Ipam::Calico,
            IpamKind::Other => Ipam::Other,
        };
        Ok(vec![
            What::Feature(self.world.feature()),
            What::Felix(self.world.felix()),
            What::Ipam(ipam),
            What::Pools(self.world.pools()),
            What::NodesReset(self.nodes()?),
            What::ServicesReset(self.world.services()),
            What::PodsReset(self.world.local_pods()),
            What::Blind(Sense::Allowances, None),
        ])
    }

    fn turn_api(&mut self, state: ApiState) -> Result<()> {
        let senses = [Sense::Pods, Sense::Nodes, Sense::Feature, Sense::Pools, Sense::Services];
        let blind = |why: Option<&str>| senses.map(|sense| What::Blind(sense, why.map(Into::into)));
        let tell = match state {
            ApiState::Held => {
                self.api = Api::Held(Vec::new());
                Vec::new()
            }
            ApiState::Released => {
                let due = self.now.after(WATCH);
                if let Api::Held(held) = std::mem::replace(&mut self.api, Api::Up) {
                    self.under_way
                        .extend(held.into_iter().map(|told| (due, News::Told(told.into()))));
                }
                Vec::new()
            }
            ApiState::Down => {
                self.api = Api::Down;
                blind(Some(REFUSED)).to_vec()
            }
            ApiState::Up => {
                self.api = Api::Up;
                self.cluster()?.into_iter().chain(blind(None)).collect()
            }
            ApiState::Cut => {
                self.api = Api::Up;
                self.cluster()?
            }
        };
        let due = self.now.after(WATCH);
        let told = |what| News::Told(Observation { at: due, what }.into());
        let tell = tell.into_iter().map(|what| (due, told(what)));
        self.under_way.extend(tell);
        Ok(())
    }

    fn answer(&self, question: Question) -> Reply {
        if matches!(self.api, Api::Down) {
            return Reply::failed(question, REFUSED.into());
        }
        match question {
            Question::Block(block) => Reply::Block(block, Ok(self.world.block(block))),
            Question::Claimants(address) => {
                Reply::Claimants(address, Ok(self.world.claimants(address)))
            }
        }
    }

    fn observe(&mut self, what: What) {
        self.engine.observe(self.now, Observation { at: self.now, what });
        self.listen();
    }

    /// Lets time pass, with all that falls due in it, in order.
    fn pass(&mut self, duration: Duration) {
        let end = self.now.after(duration);
        loop {
            let arrival = self.under_way.iter().map(|(due, _)| *due).min();
            let deadline = self.engine.next_deadline();
            let Some(next) = [arrival, deadline].into_iter().flatten().min() else { break };
            if next > end {
                break;
            }
            self.now = self.now.max(next);
            if arrival == Some(next) {
                let at = self.under_way.iter().position(|(due, _)| *due == next);
                match self.under_way.remove(at.unwrap_or_default()).1 {
                    News::Told(observation) => self.engine.observe(self.now, *observation),
                    News::Asked(asked, question) => {
                        let reply = self.answer(question);
                        let what = What::Answer(Answer { asked, reply });
                        self.engine.observe(self.now, Observation { at: self.now, what });
                    }
                }
            } else {
                self.engine.tick(self.now);
            }
            self.listen();
        }
        self.now = end;
    }

    fn listen(&mut self) {
        while let Some(output) = self.engine.poll() {
            match output {
                Output::Finding(finding) => {
                    let (state, seen) = compare::seen(&finding);
                    compare::add(&mut self.seen, state, seen);
                }
                Output::Question(question) => {
                    let asked = News::Asked(self.now, question);
                    self.under_way.push((self.now.after(ANSWER), asked));
                }
                Output::Resync(_) | Output::Stranger(_) => {}
                Output::Watch(address) => self.counters.watch(address),
                Output::Unwatch(address) => self.counters.unwatch(address),
                Output::Count(address) => {
                    let what = What::Traffic(self.counters.traffic(address));
                    self.engine.observe(self.now, Observation { at: self.now, what });
                }
                Output::Sources(interface, sources) => self.counters.sources(interface, sources),
                Output::Ranges(ranges) => self.counters.ranges(ranges),
            }
        }
    }

    fn allow_list(&self) -> Result<AllowList> {
        let mut entries = Vec::new();
        for entry in &self.words.scenario.allow {
            entries.push(Allowance {
                cidr: self.words.prefix(&entry.cidr)?,
                namespace: entry.namespace.as_str().into(),
                service_account: entry.service_account.as_str().into(),
                origin: "configuration".into(),
                reason: None,
            });
        }
        Ok(AllowList::new(entries))
    }

    fn nodes(&self) -> Result<Vec<Node>> {
        let mut nodes = Vec::new();
        for (name, addresses) in &self.words.scenario.nodes {
            let addresses = addresses.iter().map(|name| self.words.address(name));
            nodes.push(Node {
                name: NodeName(name.as_str().into()),
                addresses: addresses.collect::<Result<_>>()?,
                pod_prefixes: self.words.pod_prefixes(name)?,
            });
        }
        Ok(nodes)
    }
}
