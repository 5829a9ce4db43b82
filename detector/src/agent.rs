//! The agent's one loop over all that can wake it, and the only place that knows sources and sinks.
//!
//! It lets the engine have every observation in order, asks what the engine asks, tells what the
//! engine tells, and owns up to every blindness: in the findings (`partial`), and in the log.

mod begin;
mod log;
mod numbers;
mod packets;
mod senses;
mod supervisor;
mod world;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use detector_core::engine::Output;
use detector_core::observation::{Answer, KernelChange, Observation, Question, Reply, Sense, What};
use detector_core::time::BootTime;
use futures::FutureExt as _;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tokio::time::MissedTickBehavior;
use tracing::{debug, info, warn};

pub(crate) use self::begin::open_kernel;
use self::log::FindingLog;
use self::packets::{connections_ready, dumped, packets_ready};
use self::senses::Senses;
pub(crate) use self::senses::is_of_cluster;
use self::supervisor::Supervisor;
pub(crate) use self::world::{CLUSTER_QUEUE, World};
use crate::cli::RunArgs;
use crate::clock::{self, BootWall};
use crate::config::{Config, Refused, RouteSource};
use crate::doors::{self, Inquiry, Inside, Pulse};
use crate::health::Health;
use crate::heap;
use crate::mind::Mind;
use crate::policy::Policy;
use crate::recording::Recorder;
use crate::sink::{Origin, Sinks};
use crate::source::cluster::{Cluster, Counters, Running};
use crate::source::connections::{Connections, DumpedConnections};
use crate::source::interests::Interests;
use crate::source::kernel::{
    DumpError, KernelSource, Opened, Proxies, Reason, Resync, ResyncStep, Uplinks,
};
use crate::source::packets::Packets;
use crate::source::translations::{Told, Translations};
use crate::source::writer::WriterSight;
use crate::telemetry::{self, Telemetry};

/// Records that are taken before anything else gets its turn.
const BUDGET: usize = 4_096;

/// Observations of the cluster that are taken one after the other.
const NEWS: usize = 64;

/// How often losses are looked for even if nothing was written.
const HOUSEKEEPING: Duration = Duration::from_secs(1);

/// How often the allocator gives back what is free.
const TRIM: Duration = Duration::from_secs(30);

/// The name of the capability that eBPF for routes is.
pub(crate) const ROUTES: &str = "routes-by-ebpf";

/// The name of the capability to know who writes a route, better than by a port.
const WRITERS: &str = "writers";

/// The names of the capabilities to see that a route was refused, of IPv4 and of IPv6.
const REFUSALS: [&str; 2] = ["refused-ipv4-routes", "refused-ipv6-routes"];

/// How much of what the kernel has told is taken at once.
#[derive(Clone, Copy)]
enum Wanted {
    Budget(usize),
    Until(BootTime),
}

/// Everything that can wake the agent.
enum Wake {
    Stop(&'static str),
    /// The kernel has changed something.
    Kernel(std::io::Result<()>),
    /// The dump of the kernel's tables went on.
    Dump(ResyncStep),
    /// The cluster has told something.
    Cluster(Observation),
    /// Packets of interest were seen.
    Packets(std::io::Result<()>),
    /// Connections were translated.
    Connections(std::io::Result<()>),
    /// The connections that were there already were read.
    Dumped(DumpedConnections),
    /// Rules that translate have changed.
    Translations(Told),
    /// For whom the node answers was read.
    Proxies(Result<Vec<KernelChange>, DumpError>),
    /// Somebody asks.
    Inquiry(Inquiry),
    /// The engine's deadline has come.
    Deadline,
    Housekeeping,
}

/// The agent.
struct Agent {
    mind: Mind,
    kernel: KernelSource,
    resync: Resync,
    uplinks: Uplinks,
    packets: Option<Packets>,
    connections: Option<Connections>,
    dumped: Option<oneshot::Receiver<DumpedConnections>>,
    /// When it is tried again to listen to connection tracking, where it could not be.
    reopen: Instant,
    route_source: RouteSource,
    refused: Refused,
    /// When the heap was last trimmed.
    trimmed: Instant,
    /// Whether the code that only the start needed was let go of.
    settled: bool,
    translations: Translations,
    proxies: Proxies,
    /// Which destinations matter where they are translated.
    interests: Interests,
    questions: Option<mpsc::Sender<Question>>,
    /// What the cluster has told.
    said: mpsc::Receiver<Observation>,
    /// Kept open, so that the channel's end is no case of its own.
    _say: mpsc::Sender<Observation>,
    sinks: Sinks,
    senses: Senses,
    dumps: u64,
    telemetry: Arc<Telemetry>,
    health: Health,
    pulse: Arc<Pulse>,
    supervisor: Supervisor,
    /// The cluster source, where there is one: it ends with this.
    _running: Option<Running>,
    /// Its numbers.
    cluster: Option<Arc<Counters>>,
    policy: Policy,
    boot: BootWall,
    log: FindingLog,
}

/// Runs until SIGTERM or SIGINT. `args` are what `config` was made of: by them the file is read
/// again when it changes.
pub async fn run(config: Config, args: &RunArgs) -> Result<()> {
    let stop = told_to_stop()?;
    let telemetry = Arc::new(Telemetry::default());
    let health = Health::new(Arc::clone(&telemetry));
    let recorder = recorder(&config, args, &health)?;
    let cluster = if config.api { Some(Cluster::connect(&config).await?) } else { None };
    let opened = open_kernel(&config, &health)?;
    let world = World::start(&config, args, cluster, None, &health)?;
    let (inquiries, mut asked) = doors::inquiries();
    let inside = Inside {
        telemetry,
        health,
        pulse: Arc::clone(&world.pulse),
        inquiries,
        counter: world.sinks.counter(),
        node: config.node.0.clone(),
        started: jiff::Timestamp::now(),
        socket: Arc::default(),
    };
    let mut agent = Agent::begin(&config, opened, world, recorder);
    agent.supervisor = Supervisor::from_environment();
    doors::open(&inside, config.doors.listen, config.doors.socket.clone());
    heap::trim();
    let watched = agent.watch(stop, &mut asked).await;
    agent.supervisor.stopping(watched.as_ref().err());
    watched?;
    agent.end();
    if let Some(socket) = &config.doors.socket {
        doors::close(&inside, socket);
    }
    Ok(())
}

/// Lives without doors: watches the network namespace of the calling thread until `stop`, with sources
/// and sinks that were opened before.
pub(crate) async fn live(
    config: &Config,
    opened: Opened,
    world: World,
    mut asked: mpsc::Receiver<Inquiry>,
    stop: impl Future<Output = &'static str>,
) -> Result<()> {
    let mut agent = Agent::begin(config, opened, world, None);
    agent.watch(stop, &mut asked).await?;
    agent.end();
    Ok(())
}

/// Waits for SIGTERM or SIGINT, which from now on end nothing by themselves.
pub(crate) fn told_to_stop() -> Result<impl Future<Output = &'static str>> {
    let mut terminate = signal(SignalKind::terminate()).context("no SIGTERM can be caught")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("no SIGINT can be caught")?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        }
    })
}

/// Says what is known of who writes routes. Where the kernel lets nothing be traced the agent does its
/// whole job, so that is worth a line, and no warning.
fn show_writers(sight: &WriterSight, health: &Health) {
    if let Err(why) = &sight.writers {
        health.mark(WRITERS, why);
        let capability = WRITERS;
        info!(capability, why, "who writes a route is known by its netlink port only, if at all");
    }
    for (capability, family) in REFUSALS.into_iter().zip(&sight.refusals) {
        match family {
            Ok(means) => debug!(capability, means = means.as_str(), "refused writes are seen"),
            Err(why) => {
                health.mark(capability, why);
                info!(capability, why, "routes that the kernel refuses to write are not seen");
            }
        }
    }
}

fn recorder(config: &Config, args: &RunArgs, health: &Health) -> Result<Option<Recorder>> {
    let Some(path) = &args.record else { return Ok(None) };
    let origin = Origin::of(config);
    Ok(Some(Recorder::create(path, &origin, config.settings(), health.clone())?))
}

// === impl Agent ===

impl Agent {
    /// Watches until somebody says why it has to stop.
    async fn watch(
        &mut self,
        told: impl Future<Output = &'static str>,
        asked: &mut mpsc::Receiver<Inquiry>,
    ) -> Result<()> {
        let mut told = std::pin::pin!(told);
        let mut housekeeping = tokio::time::interval(HOUSEKEEPING);
        housekeeping.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut kept = Instant::now();
        loop {
            self.pulse.beat();
            self.supervisor.beat();
            // What comes first may come without end: whoever floods the node must not keep the agent
            // from looking after itself.
            if kept.elapsed() >= 2 * HOUSEKEEPING {
                kept = Instant::now();
                self.housekeeping();
            }
            let now = clock::now();
            if self.mind.next_deadline().is_some_and(|due| due <= now) {
                // Nobody is charged with a route that has ended.
                self.hear_kernel(Wanted::Until(now));
                self.mind.tick(now);
                self.listen();
            }
            let deadline = self.mind.next_deadline().map(|at| at.since(clock::now()));
            let sign = self.supervisor.due().map(|due| due.duration_since(Instant::now()));
            let deadline = deadline.into_iter().chain(sign).min();
            let wake = tokio::select! {
                biased;
                why = &mut told => Wake::Stop(why),
                ready = self.kernel.ready() => Wake::Kernel(ready),
                () = sleep(deadline) => Wake::Deadline,
                Some(observation) = self.said.recv() => Wake::Cluster(observation),
                step = self.resync.next() => Wake::Dump(step),
                ready = packets_ready(&mut self.packets) => Wake::Packets(ready),
                ready = connections_ready(&mut self.connections) => Wake::Connections(ready),
                dumped = dumped(&mut self.dumped) => Wake::Dumped(dumped),
                rules = self.translations.next(&self.interests) => Wake::Translations(rules),
                read = self.proxies.next() => Wake::Proxies(read),
                Some(inquiry) = asked.recv() => Wake::Inquiry(inquiry),
                _ = housekeeping.tick() => Wake::Housekeeping,
            };
            match wake {
                Wake::Stop(why) => {
                    info!(why, "stopping");
                    return Ok(());
                }
                Wake::Kernel(ready) => {
                    ready.context("the kernel's records can no longer be waited for")?;
                    self.hear_kernel(Wanted::Budget(BUDGET));
                    // However fast the kernel goes on, the others get their turn.
                    if let Ok(observation) = self.said.try_recv() {
                        self.take_news(observation);
                    }
                    if let Some(step) = self.resync.next().now_or_never() {
                        self.dump(step);
                    }
                }
                Wake::Dump(step) => self.dump(step),
                Wake::Cluster(observation) => self.take_news(observation),
                Wake::Packets(ready) => {
                    ready.context("the ring of the packet programs can no longer be waited for")?;
                    self.look_at_packets();
                }
                Wake::Connections(ready) => {
                    ready.context("the socket for connections can no longer be waited for")?;
                    self.hear_connections();
                }
                Wake::Dumped(dumped) => self.dumped(dumped),
                Wake::Translations(told) => self.translated(told),
                Wake::Proxies(Ok(changes)) => {
                    for change in changes {
                        self.observe(What::Kernel(change));
                    }
                }
                Wake::Proxies(Err(error)) => {
                    debug!(%error, "for whom the node answers is not known");
                }
                Wake::Inquiry(inquiry) => self.answer(inquiry),
                // What is due is done before the next wait, whatever woke the loop.
                Wake::Deadline => {}
                Wake::Housekeeping => {
                    kept = Instant::now();
                    self.housekeeping();
                }
            }
        }
    }

    /// Takes what the kernel has told, and owns up to what was lost of it.
    fn hear_kernel(&mut self, wanted: Wanted) {
        self.drain(wanted);
        self.own_up();
    }

    /// Takes what the kernel has told: so many records, or all until a time that has passed.
    fn drain(&mut self, wanted: Wanted) {
        // The engine is told of each record as it is read, in order.
        let Self { mind, kernel, uplinks, packets, .. } = self;
        let mut others = false;
        let mut each = |observation: Observation| {
            if let What::Kernel(change) = &observation.what {
                others |= uplinks.observe(mind.settings(), change);
                if let Some(packets) = packets {
                    packets.follow(mind.settings(), change);
                }
            }
            mind.observe(clock::now(), observation);
        };
        match wanted {
            Wanted::Budget(budget) => {
                kernel.drain(budget, &mut each);
            }
            Wanted::Until(end) => kernel.catch_up(end, &mut each),
        }
        if others {
            self.tell_uplinks();
            self.resync.request(Reason::Uplinks);
        }
        self.listen();
    }

    fn dump(&mut self, step: ResyncStep) {
        match step {
            ResyncStep::Begin(reason) => {
                debug!(reason = reason.as_str(), "dumping the kernel's tables");
                let labels = telemetry::Reason::new(reason.as_str());
                self.telemetry.resyncs.get_or_create(&labels).inc();
                self.observe(What::SnapshotBegin);
            }
            ResyncStep::Part(parts) => {
                let now = clock::now();
                let mut others = false;
                for part in parts {
                    others |= self.uplinks.observe_state(self.mind.settings(), &part);
                    if let Some(packets) = &mut self.packets {
                        packets.follow_state(self.mind.settings(), &part);
                    }
                    let what = What::SnapshotPart(part);
                    self.mind.observe(now, Observation { at: now, what });
                }
                if others {
                    self.tell_uplinks();
                }
            }
            ResyncStep::End(totals) => {
                // Whatever the dump may lack was recorded before its end, so it is there now.
                self.hear_kernel(Wanted::Until(totals.ended));
                self.dumps += 1;
                if let Some(packets) = &mut self.packets {
                    packets.sweep();
                    if self.dumps == 1 {
                        // What there is at the start is watched when the agent says that it is ready.
                        packets.settle();
                    }
                }
                self.observe(What::SnapshotEnd);
                if !self.resync.is_wanted() {
                    self.observe(What::Blind(Sense::Kernel, None));
                    self.senses.sees(Sense::Kernel);
                }
                // By the first the manager learns that the agent is ready.
                self.show_supervisor();
            }
            ResyncStep::Aborted(error) => {
                self.observe(What::SnapshotAborted);
                self.blind(Sense::Kernel, &format!("a dump failed: {error}"));
            }
        }
    }

    /// Takes an observation of the cluster and those that wait behind it, after all that the kernel had said when
    /// they came: what the cluster says of an address that changed hands must not be held against a route that
    /// had ended before.
    fn take_news(&mut self, first: Observation) {
        let more = std::iter::from_fn(|| self.said.try_recv().ok()).take(NEWS - 1);
        let news: Vec<_> = std::iter::once(first).chain(more).collect();
        let latest = news.iter().map(|observation| observation.at).max().unwrap_or_default();
        self.hear_kernel(Wanted::Until(latest));
        let read = clock::now();
        for mut observation in news {
            // What was read before it has the time of that reading, and must not seem to be newer.
            if !self.kernel.tells_times() {
                observation.at = read;
            }
            self.take(observation);
        }
    }

    fn take(&mut self, observation: Observation) {
        match &observation.what {
            What::Blind(sense, Some(why)) => self.senses.blind(*sense, why),
            What::Blind(sense, None) => self.senses.sees(*sense),
            What::PodsReset(_) => self.senses.sees(Sense::Pods),
            What::NodesReset(_) => self.senses.sees(Sense::Nodes),
            What::ServicesReset(_) => self.senses.sees(Sense::Services),
            _ => {}
        }
        self.mind.observe(clock::now(), observation);
        self.listen();
    }

    fn observe(&mut self, what: What) {
        self.tell(what);
        self.listen();
    }

    fn tell(&mut self, what: What) {
        let now = clock::now();
        self.mind.observe(now, Observation { at: now, what });
    }

    fn blind(&mut self, sense: Sense, why: &str) {
        self.senses.blind(sense, why);
        self.observe(What::Blind(sense, Some(why.into())));
    }

    /// Owns up to what was lost: until the tables were read anew, verdicts are partial.
    fn own_up(&mut self) {
        if let Some(loss) = self.kernel.take_loss() {
            let why = format!("{} route records lost: {}", loss.records, loss.why);
            self.blind(Sense::Kernel, &why);
            self.resync.request(Reason::Loss);
        }
    }

    fn tell_uplinks(&mut self) {
        let uplinks: Vec<_> = self.uplinks.iter().collect();
        if let Err(error) = self.kernel.set_uplinks(&uplinks) {
            // What the filter does not know to be an uplink, it lets through.
            warn!(%error, "the filter in the kernel does not know the uplinks: more is read");
        }
    }

    /// Passes on what the engine says.
    fn listen(&mut self) {
        while let Some(output) = self.mind.poll() {
            match output {
                Output::Finding(finding) => {
                    self.log.finding(&finding);
                    let told = clock::now();
                    self.telemetry.count_finding(&finding, told.since(finding.began));
                    self.mind.told(told, self.boot);
                    self.sinks.take(*finding, told, self.boot);
                }
                Output::Question(question) => self.ask(question),
                Output::Resync(why) => {
                    debug!(why, "the tables are read once more");
                    self.resync.request(Reason::Outrun);
                }
                Output::Watch(address) => {
                    self.watch_translations(address, true);
                    let room = self.packets.as_mut().is_none_or(|packets| packets.watch(address));
                    if !room {
                        self.tell(What::Uncounted(address));
                    }
                }
                Output::Unwatch(address) => {
                    self.watch_translations(address, false);
                    if let Some(packets) = &mut self.packets {
                        packets.unwatch(address);
                    }
                }
                Output::Count(address) => {
                    let packets = self.packets.as_mut();
                    let traffic = packets.and_then(|packets| packets.traffic(address));
                    self.tell(traffic.map_or(What::Uncounted(address), What::Traffic));
                }
                Output::Sources(interface, sources) => {
                    if let Some(packets) = &mut self.packets {
                        packets.sources(interface, &sources);
                    }
                }
                Output::Ranges(ranges) => self.range_translations(ranges),
                Output::Stranger(stranger) => {
                    self.telemetry.strangers.inc();
                    info!(
                        route = %stranger.prefix,
                        pod = %stranger.pod,
                        writer = %stranger.process,
                        "a pod's own route was written by a process that is none of Calico's"
                    );
                }
            }
        }
    }

    fn ask(&mut self, question: Question) {
        let why = match &self.questions {
            None => "the API server is not asked",
            Some(questions) => match questions.try_send(question) {
                Ok(()) => return,
                Err(_) => "too many questions are under way",
            },
        };
        let now = clock::now();
        let answer = Answer { asked: now, reply: Reply::failed(question, why.into()) };
        self.mind.observe(now, Observation { at: now, what: What::Answer(answer) });
    }

    fn answer(&mut self, inquiry: Inquiry) {
        // Whoever asked may have gone.
        match inquiry {
            Inquiry::Status(answer) => {
                let _ = answer.send(self.watching());
            }
            Inquiry::Explain(address, answer) => {
                let explanation = self.mind.explain(clock::now(), address);
                let _ = answer.send(Box::new(explanation));
            }
        }
    }

    fn housekeeping(&mut self) {
        self.hear_kernel(Wanted::Budget(BUDGET));
        if let Some(sight) = self.kernel.sight() {
            show_writers(&sight, &self.health);
            self.pulse.writers_are_known();
        }
        self.look_at_packets();
        if let Some(packets) = &mut self.packets {
            packets.tend();
        }
        self.listen_again(self.route_source);
        let boot = BootWall::now();
        if boot.has_moved_from(self.boot) {
            self.boot = boot;
        }
        if self.sinks.wants_all() {
            let standing = self.mind.standing().into_iter().cloned().collect();
            self.sinks.reconcile(standing, clock::now(), self.boot);
        }
        self.show_numbers();
        self.show_supervisor();
        self.log.end_window();
        if self.trimmed.elapsed() >= TRIM {
            self.trimmed = Instant::now();
            heap::trim();
            if !self.settled {
                self.settled = true;
                heap::forget_code();
            }
        }
    }

    /// Tells the service manager how the agent is, where that is news.
    fn show_supervisor(&mut self) {
        let watching = self.watching();
        let Self { pulse, health, .. } = self;
        let status = || supervisor::status(&watching, &pulse.awaited(), &health.degraded());
        self.supervisor.show(watching.dumps > 0, status);
    }

    /// Writes what is left to write, detaches everything, says what was done.
    fn end(mut self) {
        self.drain(Wanted::Until(clock::now()));
        let counters = self.kernel.counters();
        let holdings = self.mind.holdings();
        let cluster = self.cluster.as_ref().map(|counters| counters.counts()).unwrap_or_default();
        let packets = self.packets.as_ref().map(Packets::counters).unwrap_or_default();
        let told = self.sinks.told();
        self.sinks.end();
        let dropped = self.telemetry.messages("stdout", "dropped");
        info!(
            seen = counters.seen,
            written = counters.written,
            filtered = counters.filtered,
            lost = counters.lost,
            unparsed = counters.unparsed,
            dumps = self.dumps,
            routes = holdings.routes,
            standing = holdings.standing,
            told,
            dropped,
            requests = cluster.requests,
            questions = cluster.questions,
            rejections = cluster.rejections,
            packet_pods = packets.pods,
            packet_uplinks = packets.uplinks,
            packet_refused = packets.refused,
            packet_rehung = packets.rehung,
            packets_not_apart = packets.not_apart,
            packets_uncounted = packets.uncounted,
            pretences_lost = packets.pretence_lost,
            packets_unread = packets.unread,
            reloads = self.policy.reloads().ok(),
            reloads_refused = self.policy.reloads().refused(),
            "stopped"
        );
    }
}

/// Sleeps for so long; for ever where there is no deadline.
async fn sleep(duration: Option<Duration>) {
    match duration {
        Some(duration) => tokio::time::sleep(duration).await,
        None => std::future::pending().await,
    }
}
