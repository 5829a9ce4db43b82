//! The node's own tables: what its routes, rules and translations lead to, judged by the agent's engine.
//!
//! The engine waits for evidence by a clock that it is told; here the evidence is all there is, so the
//! clock is turned as far as the longest of its graces and nobody waits.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use detector_core::claim::Ipam;
use detector_core::engine::{Engine, Output};
use detector_core::finding::Subject;
use detector_core::observation::{Answer, KernelState, Observation, Question, Reply, Sense, What};
use detector_core::policy::{AllowList, Feature, Felix};
use detector_core::settings::Settings;
use detector_core::time::BootTime;
use detector_core::workload::NodeName;
use jiff::Timestamp;

use super::exposure::{self, Exposure, Standing, Switch};
use super::facts::{Facts, Kind, Live};
use crate::clock;
use crate::source::interests::Interests;
use crate::source::kernel::{Dump, DumpError, DumpOptions, DumpStep};
use crate::source::translations::Once;

/// How long the kernel's tables may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Tables that change while they are read are read again, so often.
const ATTEMPTS: u32 = 5;

/// How far the engine's clock is turned: beyond all graces, the answers' reviews left out.
const HORIZON: Duration = Duration::from_secs(45);

/// The engine and what it is told.
struct Desk<'a> {
    engine: Engine,
    facts: &'a Facts,
    now: BootTime,
    interests: Interests,
    /// Whether other destinations matter than did.
    changed: bool,
}

/// Reads the tables of the network namespace in which this runs, and has the engine judge them.
pub(super) async fn look(facts: &mut Facts, named: Option<&str>) -> Result<()> {
    let node = node_name(facts, named)?;
    let settings = Settings::for_node(node.clone());
    let states = tables(&settings).await?;
    let count = |wanted: fn(&KernelState) -> bool| states.iter().filter(|s| wanted(s)).count();
    let routes = count(|state| matches!(state, KernelState::Route(_)));
    let rules = count(|state| matches!(state, KernelState::Rule(_)));
    let exposure = exposure::examine(facts);
    let mut desk = Desk {
        engine: Engine::new(settings),
        facts,
        now: clock::now(),
        interests: Interests::default(),
        changed: false,
    };
    desk.tell_cluster(&node, &exposure);
    desk.tell(What::SnapshotBegin);
    for state in states {
        desk.tell(What::SnapshotPart(state));
    }
    desk.tell(What::SnapshotEnd);
    // Which rules matter follows from what the engine has heard so far.
    let (once, unread) = Once::read(&desk.interests).await;
    let mut translations = Vec::new();
    desk.changed = true;
    let end = desk.now.after(HORIZON);
    loop {
        if std::mem::take(&mut desk.changed) {
            let matter = once.that_matter(&desk.interests);
            if matter != translations {
                translations.clone_from(&matter);
                desk.tell(What::TranslationRules(matter));
            }
        }
        match desk.engine.next_deadline().filter(|deadline| *deadline <= end) {
            Some(deadline) => desk.pass(deadline),
            None if desk.changed => {}
            None => break,
        }
    }
    let stands = desk.engine.standing().into_iter();
    // What pods and Services say of themselves, the audit tells by itself.
    let findings =
        stands.filter(|finding| !matches!(finding.key.subject, Subject::Claim(_))).cloned();
    let live = Live {
        node: Some(node),
        routes,
        rules,
        translations: translations.len(),
        findings: findings.collect(),
        blind: unread.map(|why| ("translations", why.into())).into_iter().collect(),
    };
    facts.live = Some(live);
    Ok(())
}

/// The name that was typed, else the host's where the cluster knows it.
fn node_name(facts: &Facts, named: Option<&str>) -> Result<NodeName> {
    let known = |name: &str| facts.nodes.iter().any(|member| *member.node.name.0 == *name);
    if let Some(name) = named {
        if !facts.nodes.is_empty() && !known(name) {
            bail!("the cluster has no node {name}: correct --node-name or NODE_NAME");
        }
        return Ok(NodeName(name.into()));
    }
    let host = nix::unistd::gethostname().context("the host has no name: give --node-name")?;
    let host = host.to_string_lossy();
    if !facts.nodes.is_empty() && !known(&host) {
        bail!("the cluster has no node of this host's name: give --node-name");
    }
    Ok(NodeName((&*host).into()))
}

/// All that the kernel holds.
async fn tables(settings: &Settings) -> Result<Vec<KernelState>> {
    for attempt in 1.. {
        let mut dump = Dump::start(DumpOptions {
            settings: Arc::new(settings.clone()),
            timeout: PATIENCE,
            accept_interrupted: attempt == ATTEMPTS,
        })?;
        let mut states = Vec::new();
        loop {
            match dump.next().await {
                DumpStep::Part(part) => states.extend(part),
                DumpStep::Ended(Ok(_)) => return Ok(states),
                DumpStep::Ended(Err(DumpError::Interrupted(_))) if attempt < ATTEMPTS => break,
                DumpStep::Ended(Err(error)) => return Err(error.into()),
            }
        }
    }
    bail!("the kernel's tables could not be read")
}

// === impl Desk ===

impl Desk<'_> {
    fn tell(&mut self, what: What) {
        self.engine.observe(self.now, Observation { at: self.now, what });
        self.answer();
    }

    fn pass(&mut self, time: BootTime) {
        self.now = time.max(self.now);
        self.engine.tick(self.now);
        self.answer();
    }

    /// Hears the engine out, and answers by what was read.
    fn answer(&mut self) {
        while let Some(output) = self.engine.poll() {
            match output {
                Output::Question(question) => {
                    let reply = self.reply(question);
                    let what = What::Answer(Answer { asked: self.now, reply });
                    self.engine.observe(self.now, Observation { at: self.now, what });
                }
                Output::Ranges(ranges) => {
                    self.interests.set_ranges(ranges);
                    self.changed = true;
                }
                Output::Watch(address) => {
                    self.interests.watch(address);
                    self.changed = true;
                }
                // Nothing is counted here, nobody's writing is heard, and findings are asked for at the
                // end.
                Output::Stranger(_)
                | Output::Unwatch(_)
                | Output::Count(_)
                | Output::Sources(..)
                | Output::Resync(_)
                | Output::Finding(_) => {}
            }
        }
    }

    fn reply(&self, question: Question) -> Reply {
        let unseen = |kind: Kind| format!("{} could not all be seen", kind.as_str()).into();
        match question {
            Question::Block(_) if !self.facts.sees(Kind::IpamBlocks) => {
                Reply::failed(question, unseen(Kind::IpamBlocks))
            }
            Question::Block(cidr) => {
                let block = self.facts.blocks.iter().find(|block| block.cidr == cidr);
                Reply::Block(cidr, Ok(block.cloned()))
            }
            Question::Claimants(_) if !self.facts.sees(Kind::Pods) => {
                Reply::failed(question, unseen(Kind::Pods))
            }
            Question::Claimants(address) => {
                let pods = self.facts.pods.iter().map(|resident| &resident.pod);
                let pods = pods.filter(|pod| pod.addresses.contains(&address)).cloned();
                Reply::Claimants(address, Ok(pods.collect()))
            }
        }
    }

    /// Tells what was read of the cluster, and what could not be.
    fn tell_cluster(&mut self, node: &NodeName, exposure: &Exposure) {
        let facts = self.facts;
        let blind = |sense, kind: Kind| {
            let why = format!("{} could not all be seen", kind.as_str()).into();
            (!facts.sees(kind)).then_some(What::Blind(sense, Some(why)))
        };
        let own = facts.pods.iter().map(|resident| &resident.pod).filter(|pod| pod.node == *node);
        let ipam = match (facts.blocks.is_empty(), facts.sees(Kind::IpamBlocks)) {
            (false, _) => Ipam::Calico,
            (true, true) => Ipam::Other,
            (true, false) => Ipam::Unknown,
        };
        let now = Timestamp::now();
        let allowed = facts.allowed.iter().filter(|entry| entry.is_in_force(now));
        let allowed = AllowList::new(allowed.map(|entry| entry.allowance.clone()).collect());
        let mut told = vec![
            What::NodesReset(facts.nodes.iter().map(|member| member.node.clone()).collect()),
            What::Ipam(ipam),
            What::Pools(facts.pools.clone()),
            What::ServicesReset(facts.services.clone()),
            What::AllowList(allowed),
            What::Feature(feature(node, exposure)),
            What::Felix(felix(node, exposure)),
            What::PodsReset(own.cloned().collect()),
        ];
        told.extend(blind(Sense::Pods, Kind::Pods));
        told.extend(blind(Sense::Nodes, Kind::Nodes));
        told.extend(blind(Sense::Services, Kind::Services));
        told.extend(blind(Sense::Pools, Kind::IpPools));
        told.extend(blind(Sense::Feature, Kind::FelixConfigurations));
        for what in told {
            self.tell(what);
        }
    }
}

/// The feature on this node, as the engine knows it: where Felix has no switch, what was meant.
fn feature(node: &NodeName, exposure: &Exposure) -> Feature {
    let Some(state) = exposure.on(&node.0) else { return Feature::Unknown };
    match &state.switch {
        Switch::On { by } => Feature::Enabled { by: by.shown().into() },
        Switch::Off { by, .. } => Feature::Disabled { by: by.clone() },
        Switch::Unknown { .. } => Feature::Unknown,
        Switch::Missing => match exposure.gate.floating_ips {
            Some(true) => Feature::Enabled { by: exposure.gate.by.clone() },
            Some(false) => Feature::Disabled { by: exposure.gate.by.clone() },
            None => Feature::Unknown,
        },
    }
}

fn felix(node: &NodeName, exposure: &Exposure) -> Felix {
    let state = exposure.on(&node.0);
    Felix {
        version: state.and_then(|state| state.version.clone()),
        heeds_switch: state.and_then(|state| match state.standing {
            Standing::Affected => Some(false),
            Standing::Fixed => Some(true),
            Standing::Uncertain | Standing::Unknown => None,
        }),
        spoofing: None,
        bypass: exposure.gate.bypass,
    }
}
