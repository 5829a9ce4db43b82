//! Kills and starts the agent, has the API server killed, and hears all that the agents say.

use std::net::{SocketAddr, TcpListener};
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use detector_core::time::BootTime;
use fastrand::Rng;
use nix::sys::signal::Signal;

use super::Plan;
use super::judge::Open;
use super::world::{HERE, Stage, World};
use crate::agent::{Agent, Heard, MemoryFile, now};
use crate::relay::Relay;

/// How long the end of each part may take.
const PATIENCE: Duration = Duration::from_secs(75);
/// How often is looked whether the agent is ready, and whether all are done.
const LOOK: Duration = Duration::from_millis(100);

/// The life of an agent.
#[derive(Debug)]
pub(super) struct Life {
    /// When it was ready, if it ever was.
    pub(super) ready: Option<BootTime>,
    /// When it was to end.
    pub(super) ended: BootTime,
    /// How it was ended.
    pub(super) how: &'static str,
    /// All that it found.
    pub(super) heard: Vec<Heard>,
}

/// Who decides when what is killed.
pub(super) struct Director<'a> {
    world: &'a World,
    rounds: u32,
    rng: Rng,
    outage: Option<Sender<Duration>>,
    /// The way to the API server.
    relay: Option<Relay>,
    agent: Option<Agent>,
    life: Life,
    lives: Vec<Life>,
}

// === impl Life ===

impl Life {
    fn new() -> Self {
        Self { ready: None, ended: now(), how: "", heard: Vec::new() }
    }
}

// === impl Director ===

impl<'a> Director<'a> {
    pub(super) fn new(world: &'a World, plan: Plan, outage: Sender<Duration>) -> Self {
        Self {
            world,
            rounds: plan.rounds,
            rng: Rng::with_seed(plan.seed),
            outage: Some(outage),
            relay: None,
            agent: None,
            life: Life::new(),
            lives: Vec::new(),
        }
    }

    /// Makes all rounds, then lets all come to rest. Agents end with the thread that calls this.
    pub(super) fn direct(&mut self) -> Result<()> {
        let listener = self.world.wires.namespace().within(|| TcpListener::bind("127.0.0.1:0"))?;
        let relay = Relay::start(listener, self.world.cluster.addr())?;
        let addr = relay.addr();
        self.relay = Some(relay);
        self.start(addr)?;
        self.listen(PATIENCE, |director| director.life.ready.is_some())?;
        for _ in 0..self.rounds {
            let gap = self.gap();
            self.listen(gap, |_| false)?;
            if self.rng.bool() {
                self.await_or_fail("the API server's return", |director| director.world.is_up())?;
                let time = Duration::from_millis(self.rng.u64(200..5_000));
                let outage = self.outage.as_ref().context("not dismissed yet")?;
                outage.send(time).ok().context("nobody kills the API server any more")?;
                // It is down when anything else is done.
                self.await_or_fail("its end", |director| !director.world.is_up())?;
            } else {
                let how = if self.rng.bool() { Signal::SIGTERM } else { Signal::SIGKILL };
                self.end(how)?;
                let time = Duration::from_millis(self.rng.u64(..2_000));
                self.world.pause(time, Stage::Over);
                self.start(addr)?;
            }
        }
        self.rest()
    }

    /// Lets the attacks that stand be found, then all of them be closed.
    fn rest(&mut self) -> Result<()> {
        self.world.set_stage(Stage::Calm);
        self.await_or_fail("the API server's return", |director| director.world.is_up())?;
        self.await_or_fail("an agent that is ready", |director| director.life.ready.is_some())?;
        self.world.say("calm: nothing begins any more".to_owned());
        let world = self.world;
        self.listen(PATIENCE, |director| {
            let attacks = world.attacks();
            let mut standing = attacks.iter().filter(|attack| attack.until.is_none());
            standing.all(|attack| director.life.heard.iter().any(|heard| attack.is_named(heard)))
        })?;
        world.set_stage(Stage::Over);
        // Whoever kills the API server waits for orders.
        self.await_or_fail("the end of all that is done", |director| director.world.busy() <= 1)?;
        self.listen(PATIENCE, |director| Open::of(&director.life.heard).is_empty())?;
        // Whatever comes late.
        self.listen(Duration::from_secs(3), |_| false)?;
        self.end(Signal::SIGTERM)
    }

    /// Nobody is told anything any more.
    pub(super) fn dismiss(&mut self) {
        drop(self.outage.take());
    }

    pub(super) fn into_lives(self) -> Vec<Life> {
        self.lives
    }

    /// How long nothing is killed: now and then next to nothing, mostly some seconds.
    fn gap(&mut self) -> Duration {
        Duration::from_millis(match self.rng.u8(..10) {
            0..3 => self.rng.u64(..1_000),
            3..8 => self.rng.u64(1_000..6_000),
            _ => self.rng.u64(6_000..18_000),
        })
    }

    fn start(&mut self, addr: SocketAddr) -> Result<()> {
        self.world.say(format!("agent {} starts", self.lives.len()));
        let kubeconfig = MemoryFile::new(&self.world.kubeconfig(addr))?;
        let path = kubeconfig.path();
        let arguments = ["--node-name", HERE, "--kubeconfig", &path];
        let mut agent = Agent::start(self.world.wires.namespace(), &arguments)?;
        agent.keep([kubeconfig]);
        self.agent = Some(agent);
        self.life = Life::new();
        Ok(())
    }

    fn end(&mut self, signal: Signal) -> Result<()> {
        let agent = self.agent.take().context("an agent runs")?;
        let ended = now();
        self.world.say(format!("agent {} gets {signal}", self.lives.len()));
        let left = agent.end(signal)?;
        if signal == Signal::SIGTERM && !left.status.success() {
            bail!("the agent ended with {} at SIGTERM: {:#?}", left.status, left.logged);
        }
        for heard in left.found {
            self.hear(heard);
        }
        let mut life = std::mem::replace(&mut self.life, Life::new());
        (life.ended, life.how) = (ended, signal.as_str());
        self.lives.push(life);
        Ok(())
    }

    fn hear(&mut self, heard: Heard) {
        let text = |name: &str| heard.finding[name].as_str().unwrap_or_default().to_owned();
        let victim = &heard.finding["victim"];
        self.world.say_at(
            heard.at,
            format!(
                "agent {}: {} {}: {}, victim {} {}, partial {}",
                self.lives.len(),
                text("state"),
                text("key"),
                text("verdict"),
                victim["kind"].as_str().unwrap_or("none"),
                victim["name"].as_str().unwrap_or_default(),
                heard.finding["partial"]
            ),
        );
        self.life.heard.push(heard);
    }

    /// Hears the agent until `enough`, or for so long; says whether it was enough.
    fn listen(&mut self, time: Duration, enough: impl Fn(&Self) -> bool) -> Result<bool> {
        let end = Instant::now() + time;
        loop {
            self.world.check()?;
            let agent = self.agent.as_mut().context("an agent runs")?;
            if self.life.ready.is_none() && agent.has_logged("ready") {
                self.life.ready = Some(now());
                self.world.say(format!("agent {} is ready", self.lives.len()));
            }
            if enough(self) {
                return Ok(true);
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            let agent = self.agent.as_ref().context("an agent runs")?;
            if let Some(heard) = agent.next_finding(left.min(LOOK))? {
                self.hear(heard);
            }
        }
    }

    fn await_or_fail(&mut self, what: &str, done: impl Fn(&Self) -> bool) -> Result<()> {
        if self.listen(PATIENCE, done)? {
            return Ok(());
        }
        let story = self.world.story_until(now()).join("\n  ");
        bail!("waited too long for {what}:\n  {story}");
    }
}
