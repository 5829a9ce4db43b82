//! The stages of a selftest, one after the other.

mod api;
mod told;

use std::io;
use std::time::Duration;

use anyhow::Result;
use detector_core::finding::{self, Certainty, Finding};
use detector_core::observation::Reply;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout, timeout_at};

use self::told::Told;
use super::args::SelftestArgs;
use super::canary::Canary;
use super::cluster::{Overheard, Victim};
use super::ground::{Ground, GroundError};
use super::node::Node;
use super::report::Board;
use crate::agent::{World, is_of_cluster};
use crate::clock;
use crate::config::Config;
use crate::doors::{Inquiry, Pulse};
use crate::health::{Degraded, Health};
use crate::sink::{Heard, Rehearsal};
use crate::source::cluster::Cluster;
use crate::telemetry::Telemetry;

/// How long the agent may take for an answer.
const ANSWER: Duration = Duration::from_secs(4);

/// How long the engine may take for what takes it milliseconds.
const VERDICT: Duration = Duration::from_secs(10);

/// How long the sinks may take.
const SINKS: Duration = Duration::from_secs(15);

/// How long it may take to be known who writes routes: on some kernels seconds.
const WRITERS: Duration = Duration::from_secs(5);

/// How a selftest ended.
pub(super) enum Ended {
    /// All stages were told of.
    Played,
    /// It was asked for what must not be done.
    Refused(String),
    /// Somebody has stopped it.
    Stopped(&'static str),
}

/// What a selftest is made of.
pub(super) struct Scene<'a> {
    config: Config,
    args: &'a SelftestArgs,
    /// When all has to be over.
    end: Instant,
    board: Board<'a>,
    health: Health,
    rehearsal: Option<Rehearsal>,
    told: Told,
    overheard: Overheard,
    node: Option<Node>,
    canary: Option<Canary>,
}

/// What was begun, for the stages that follow.
struct Begun {
    pulse: std::sync::Arc<Pulse>,
    questions: Option<mpsc::Sender<detector_core::observation::Question>>,
    answers: mpsc::Receiver<Reply>,
    began: Instant,
    /// Why there is no API server to ask.
    unconnected: Option<String>,
}

// === impl Scene ===

impl<'a> Scene<'a> {
    pub(super) fn new(
        config: &Config,
        args: &'a SelftestArgs,
        end: Instant,
        board: Board<'a>,
        rehearsal: Rehearsal,
        heard: mpsc::UnboundedReceiver<Heard>,
    ) -> Self {
        let health = Health::new(std::sync::Arc::new(Telemetry::default()));
        Self {
            config: config.clone(),
            args,
            end,
            board,
            health,
            told: Told::new(rehearsal.interface.clone(), heard),
            rehearsal: Some(rehearsal),
            overheard: Overheard::default(),
            node: None,
            canary: None,
        }
    }

    /// Goes through all stages.
    pub(super) async fn play(&mut self) -> Result<Ended> {
        let entered = Node::enter(&self.config, self.args.here, &self.health).await;
        let (node, ground, source) = match entered {
            Ok(entered) => entered,
            Err(GroundError::Refused(why)) => return Ok(Ended::Refused(why)),
            Err(GroundError::Failed(why)) => {
                self.board.failed("namespace", &why)?;
                return self.skip(&["routes", "api", "canary", "finding", "sinks"], "namespace");
            }
        };
        self.node = Some(node);
        self.board.ok("namespace", ground.describe())?;
        let seen = self.routes(source).await?;
        let Some(mut begun) = self.begin(seen).await? else {
            return self.skip(&["api", "canary", "finding", "sinks"], "routes");
        };
        let asked = self.api(&begun).await?;
        if let Some(refused) = self.hosts_network(&ground)? {
            return Ok(Ended::Refused(refused));
        }
        let victim = if asked { self.victim(&mut begun).await? } else { Victim::of_nobody() };
        let Some(victim) = victim else { return self.skip(&["canary"], "api") };
        if !self.canary(ground, &victim)? {
            return self.skip(&["finding", "sinks"], "canary");
        }
        if self.finding(&victim).await? {
            self.sinks().await?;
        } else {
            self.withdraw()?;
            self.skip(&["sinks"], "finding")?;
        }
        self.degradations(&begun).await?;
        Ok(Ended::Played)
    }

    /// Takes the canary away and ends the agent; gives whether the selftest has passed. `whole` is
    /// whether all stages were told of.
    pub(super) async fn leave(mut self, whole: bool) -> Result<bool> {
        drop(self.canary.take());
        if let Some(node) = self.node.take()
            && let Err(error) = node.end().await
        {
            self.board.failed("agent", &format!("{error:#}"))?;
        }
        if whole { Ok(self.board.end()?) } else { Ok(false) }
    }

    fn skip(&mut self, stages: &[&str], without: &str) -> Result<Ended> {
        for stage in stages {
            self.board.skipped(stage, &format!("not tried: {without} has failed"))?;
        }
        Ok(Ended::Played)
    }

    /// The source of route changes.
    async fn routes(&mut self, source: oneshot::Receiver<super::node::Source>) -> io::Result<bool> {
        let told = timeout_at(self.end, source).await;
        let source = match told {
            Ok(Ok(source)) => source,
            Ok(Err(_)) => Err("its thread has failed: report this".to_owned()),
            Err(_) => Err("it was not opened in time: is the machine overloaded?".to_owned()),
        };
        match source {
            Ok(means) => {
                let degraded = self.health.degraded();
                match degraded.iter().find(|one| one.capability == crate::agent::ROUTES) {
                    Some(Degraded { why, .. }) => {
                        let why = format!("seen by plain {means}, which a burst overflows: {why}");
                        self.board.degraded("routes", &why)?;
                    }
                    None => self.board.ok("routes", &format!("seen by {means}"))?,
                }
                Ok(true)
            }
            Err(why) => {
                self.board.failed("routes", &format!("cannot be seen: {why}"))?;
                Ok(false)
            }
        }
    }

    /// Starts what goes out, and with it the agent.
    async fn begin(&mut self, seen: bool) -> Result<Option<Begun>> {
        let Some(rehearsal) = self.rehearsal.take().filter(|_| seen) else { return Ok(None) };
        let began = Instant::now();
        let (mut cluster, mut unconnected) = (None, None);
        if self.config.api {
            match Cluster::connect(&self.config).await {
                Ok(connected) => cluster = Some(connected),
                Err(error) => unconnected = Some(error.to_string()),
            }
        }
        let run = self.args.run();
        let mut world = World::start(&self.config, &run, cluster, Some(rehearsal), &self.health)?;
        let answers = self.overheard.listen(&mut world, &self.config.node);
        let (pulse, questions) = (world.pulse.clone(), world.questions.clone());
        if let Some(node) = &mut self.node {
            node.begin(world);
        }
        Ok(Some(Begun { pulse, questions, answers, began, unconnected }))
    }

    /// Makes the interface and the route.
    fn canary(&mut self, ground: Ground, victim: &Victim) -> io::Result<bool> {
        let prefix = victim.prefix();
        let made = Canary::make(ground, self.told.interface().clone()).and_then(|mut canary| {
            canary.divert(prefix)?;
            Ok(canary)
        });
        match made {
            Ok(canary) => {
                let name = canary.name().as_str();
                let until = if canary.is_here() { ", until it is found" } else { "" };
                self.board.ok("canary", &format!("route {prefix} dev {name}{until}"))?;
                self.canary = Some(canary);
                Ok(true)
            }
            Err(error) => {
                let advice = match error.raw_os_error() {
                    Some(libc::EPERM) => ": the capability NET_ADMIN is missing",
                    Some(libc::EOPNOTSUPP) => ": the kernel has no veth interfaces; load veth",
                    Some(libc::EEXIST) => ": there is such a route; is this a node's namespace?",
                    _ => "",
                };
                let why = format!("the route {prefix} cannot be made: {error}{advice}");
                self.board.failed("canary", &why)?;
                Ok(false)
            }
        }
    }

    /// Waits for the finding, and then for its end.
    async fn finding(&mut self, victim: &Victim) -> io::Result<bool> {
        let prefix = victim.prefix();
        let until = self.end.min(Instant::now() + VERDICT);
        let Some((finding, told)) = self.told.opened(until).await else {
            let known = self.is_known(prefix.address()).await;
            let why = if known {
                "the agent knows the canary's route, and the engine finds nothing wrong with it: \
                 report this, with the output of --log-level debug"
            } else {
                "the route source has told nothing of the canary's route: is the machine \
                 overloaded? --log-level debug says more"
            };
            self.board.failed("finding", why)?;
            return Ok(false);
        };
        // The way is free again before anything else is done.
        self.withdraw()?;
        if !is_right(&finding, victim) {
            let says = &finding.charge.reason;
            let why = format!("the engine says something else of the canary: {says}");
            self.board.failed("finding", &why)?;
            return Ok(true);
        }
        let took = millis(told.since(finding.began));
        let wrote = finding.charge.writer.as_ref();
        let writer = wrote.map(|wrote| format!(", written by {}", wrote.process));
        let text = format!(
            "{} of {}, told {took:.1} ms after the kernel's change{}",
            finding.charge.certainty.as_str(),
            finding.charge.victim,
            writer.unwrap_or_default()
        );
        let withdrawn = clock::now();
        let until = self.end.min(Instant::now() + VERDICT);
        let Some(over) = self.told.closed(until).await else {
            let why =
                format!("{text}; but it is never over, although the route is gone: report this");
            self.board.failed("finding", &why)?;
            return Ok(true);
        };
        let late = millis(over.since(withdrawn));
        let text = format!("{text}, over {late:.1} ms after the route");
        self.board.timed("finding", &text, took)?;
        Ok(true)
    }

    /// Whether the agent knows the canary's route.
    async fn is_known(&self, address: std::net::IpAddr) -> bool {
        let Some(node) = &self.node else { return false };
        let (tell, told) = oneshot::channel();
        if node.inquiries().try_send(Inquiry::Explain(address, tell)).is_err() {
            return false;
        }
        let explained = timeout(ANSWER, told).await;
        explained.is_ok_and(|told| told.is_ok_and(|explained| !explained.routes.is_empty()))
    }

    /// Takes the canary's route away. Its interface stays until all is over.
    fn withdraw(&mut self) -> io::Result<()> {
        self.canary.as_mut().map_or(Ok(()), Canary::withdraw)
    }

    /// Waits until each sink has taken the finding, or will not.
    async fn sinks(&mut self) -> io::Result<()> {
        let names = self.health.telemetry().sinks().into_iter().map(|sink| sink.name);
        let names: Vec<String> = names.filter(|name| name != crate::sink::DESK).collect();
        if names.is_empty() {
            return self.board.skipped("sinks", "none is to be told");
        }
        let until = self.end.min(Instant::now() + SINKS);
        self.told.taken(&names, until).await;
        for name in names {
            let stage = format!("sink:{name}");
            match self.told.of_sink(&name) {
                Ok(Some(took)) => {
                    let took = millis(took);
                    self.board.timed(&stage, &format!("took it in {took:.1} ms"), took)?;
                }
                Ok(None) => self.board.failed(&stage, "did not take it in time")?,
                Err(why) => self.board.failed(&stage, &format!("does not take it: {why}"))?,
            }
        }
        Ok(())
    }

    /// All else that the agent cannot do here, or not in the best way.
    async fn degradations(&mut self, begun: &Begun) -> io::Result<()> {
        let pulse = &begun.pulse;
        let until = self.end.min(Instant::now() + WRITERS);
        if timeout_at(until, pulse.until(|| pulse.knows_writers())).await.is_err() {
            self.board.degraded("writers", "it is not known in time who writes routes")?;
        }
        for Degraded { capability, why, .. } in self.health.degraded() {
            let told_of = capability == crate::agent::ROUTES
                || capability == "kernel"
                || capability.starts_with("sink:")
                || is_of_cluster(&capability);
            if !told_of {
                self.board.degraded(&capability, &why)?;
            }
        }
        Ok(())
    }

    fn blind(&self, concerns: impl Fn(&str) -> bool) -> Vec<Degraded> {
        let degraded = self.health.degraded().into_iter();
        degraded.filter(|one| concerns(&one.capability)).collect()
    }
}

/// Whether a finding is the one that there should be of the canary.
fn is_right(finding: &Finding, victim: &Victim) -> bool {
    let of_victim = match (&finding.charge.victim, victim) {
        (finding::Victim::Node(node), Victim::Node(wanted, _)) => node == wanted,
        (finding::Victim::Everyone(prefix), Victim::Prefix(wanted)) => prefix == wanted,
        _ => false,
    };
    of_victim && finding.charge.certainty == Certainty::Hijack
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1_000.0
}
