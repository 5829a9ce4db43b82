//! The rung that needs nothing: a scenario in the engine alone, on pretended time.

mod world;

use std::time::Duration;

use anyhow::{Context as _, Result};
use detector_core::engine::{Engine, Output};
use detector_core::observation::{Answer, Node, Observation, What};
use detector_core::policy::{AllowList, Allowance, Feature};
use detector_core::route::Prefix;
use detector_core::settings::Settings;
use detector_core::time::BootTime;
use detector_core::workload::NodeName;

use self::world::World;
use super::compare::{self, AllSeen};
use super::words::Words;
use super::{ApiState, FeatureState, Step};

/// How long a watch takes to tell of a change.
const WATCH: Duration = Duration::from_millis(2);

/// How long the API server takes to answer a question.
const ANSWER: Duration = Duration::from_millis(5);

/// In which order the sources are heard when the agent starts. The outcome must not depend on it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StartOrder {
    /// The kernel's tables, then the cluster.
    KernelFirst,
    /// The cluster, then the kernel's tables.
    ClusterFirst,
}

/// The engine and the pretended world around it.
struct Run<'a> {
    words: Words<'a>,
    engine: Engine,
    world: World<'a>,
    now: BootTime,
    /// What is under way to the engine, in the order of its arrival.
    under_way: Vec<(BootTime, Observation)>,
    /// What the API's watches hold back.
    held: Option<Vec<Observation>>,
    seen: AllSeen,
}

/// Runs a scenario; gives what was found.
pub fn run(words: Words<'_>, order: StartOrder) -> Result<AllSeen> {
    let mut run = Run {
        words,
        engine: Engine::new(settings(words)),
        world: World::new(words),
        now: BootTime::from_millis(1_000_000),
        under_way: Vec::new(),
        held: None,
        seen: AllSeen::new(),
    };
    for step in &words.scenario.given {
        run.world.apply(step).with_context(|| format!("given: {step:?}"))?;
    }
    run.start(order)?;
    for step in &words.scenario.steps {
        run.step(step).with_context(|| format!("step {step:?}"))?;
    }
    run.pass(Duration::from_millis(200));
    Ok(run.seen)
}

fn settings(words: Words<'_>) -> Settings {
    let mut settings = Settings::for_node(NodeName(words.scenario.node.as_str().into()));
    let timing = words.scenario.settings;
    settings.newborn = timing.newborn.unwrap_or(settings.newborn);
    settings.settle = timing.settle.unwrap_or(settings.settle);
    settings.remote = timing.remote.unwrap_or(settings.remote);
    settings
}

impl Run<'_> {
    fn start(&mut self, order: StartOrder) -> Result<()> {
        let mut kernel = vec![What::SnapshotBegin];
        kernel.extend(self.world.dump().into_iter().map(What::SnapshotPart));
        kernel.push(What::SnapshotEnd);
        let mut cluster = vec![What::AllowList(self.allow_list()?), What::Feature(self.feature())];
        cluster.push(What::NodesReset(self.nodes()?));
        cluster.push(What::PodsReset(self.world.local_pods()));
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
            Step::Api(ApiState::Held) => self.held = Some(Vec::new()),
            Step::Api(ApiState::Released) => {
                let due = self.now.after(WATCH);
                let held = self.held.take().unwrap_or_default();
                self.under_way.extend(held.into_iter().map(|observation| (due, observation)));
            }
            step => {
                for what in self.world.apply(step)? {
                    if matches!(what, What::Kernel(_)) {
                        self.observe(what);
                    } else {
                        let due = self.now.after(WATCH);
                        let observation = Observation { at: due, what };
                        match &mut self.held {
                            Some(held) => held.push(observation),
                            None => self.under_way.push((due, observation)),
                        }
                    }
                }
            }
        }
        self.pass(Duration::from_millis(1));
        Ok(())
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
                let (_, observation) = self.under_way.remove(at.unwrap_or_default());
                self.engine.observe(self.now, observation);
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
                    let claimants = Ok(self.world.claimants(question.address));
                    let what = What::Answer(Answer {
                        address: question.address,
                        asked: self.now,
                        claimants,
                    });
                    let due = self.now.after(ANSWER);
                    self.under_way.push((due, Observation { at: due, what }));
                }
                Output::Resync(_) => {}
            }
        }
    }

    fn allow_list(&self) -> Result<AllowList> {
        let mut entries = Vec::new();
        for entry in &self.words.scenario.allow {
            let cidr = self.words.expand(&entry.cidr)?;
            let (address, length) = cidr.split_once('/').context("an allowed CIDR has a length")?;
            entries.push(Allowance {
                cidr: Prefix::new(address.parse()?, length.parse()?).context("a CIDR")?,
                namespace: entry.namespace.as_str().into(),
                service_account: entry.service_account.as_str().into(),
            });
        }
        Ok(AllowList::new(entries))
    }

    fn feature(&self) -> Feature {
        let by = "FelixConfiguration default".into();
        match self.words.scenario.feature {
            FeatureState::Enabled => Feature::Enabled { by },
            FeatureState::Absent | FeatureState::Disabled => Feature::Disabled { by },
        }
    }

    fn nodes(&self) -> Result<Vec<Node>> {
        let mut nodes = Vec::new();
        for (name, addresses) in &self.words.scenario.nodes {
            let addresses = addresses.iter().map(|name| self.words.address(name));
            nodes.push(Node {
                name: NodeName(name.as_str().into()),
                addresses: addresses.collect::<Result<_>>()?,
            });
        }
        Ok(nodes)
    }
}
