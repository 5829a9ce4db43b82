//! How the agent begins: the source of route changes, and all that looks at the node besides.

use std::sync::Arc;
use std::time::{Duration, Instant};

use detector_core::observation::{Sense, What};
use tracing::{info, warn};

use super::log::FindingLog;
use super::senses::{self, Senses};
use super::supervisor::Supervisor;
use super::world::World;
use super::{Agent, REFUSALS, ROUTES, WRITERS};
use crate::clock::{self, BootWall};
use crate::config::Config;
use crate::health::Health;
use crate::mind::Mind;
use crate::recording::Recorder;
use crate::source::interests::Interests;
use crate::source::kernel::{
    KernelOptions, KernelSource, KernelSourceError, Opened, Proxies, Resync, ResyncOptions, Uplinks,
};
use crate::source::translations::Translations;
use crate::source::writer::WriterOptions;

/// How long one dump of the kernel's tables may take: a million routes take two seconds.
const DUMP_TIMEOUT: Duration = Duration::from_mins(1);

/// Opens the source of route changes in the network namespace of the calling thread; what it lacks is
/// degraded from now on.
pub(crate) fn open_kernel(config: &Config, health: &Health) -> Result<Opened, KernelSourceError> {
    let writers = WriterOptions {
        source: config.writers,
        refused: config.refused.clone(),
        ..WriterOptions::default()
    };
    let options =
        KernelOptions { ring_bytes: config.ring_bytes, writers, ..KernelOptions::default() };
    let opened = KernelSource::open(config.route_source, &options)?;
    info!(node = %config.node, routes = opened.source.as_str(), "watching");
    health.expect(ROUTES);
    if let Some(why) = &opened.degraded {
        health.mark(ROUTES, why);
        let capability = ROUTES;
        warn!(
            capability,
            why, "degraded: route changes come by plain netlink, which a burst can overflow"
        );
    }
    for capability in [WRITERS].into_iter().chain(REFUSALS) {
        health.expect(capability);
    }
    Ok(opened)
}

impl Agent {
    /// An agent that has told its engine what is known before anything was seen.
    pub(super) fn begin(
        config: &Config,
        opened: Opened,
        world: World,
        recorder: Option<Recorder>,
    ) -> Self {
        let World {
            sinks,
            stood,
            said,
            say,
            questions,
            running,
            policy,
            allow_list,
            telemetry,
            health,
            pulse,
        } = world;
        let settings = config.settings();
        let mut agent = Self {
            mind: Mind::new(settings, recorder, Arc::clone(&telemetry), health.clone()),
            kernel: opened.source,
            resync: Resync::new(ResyncOptions {
                settings: Arc::new(config.settings()),
                interval: config.resync_interval,
                timeout: DUMP_TIMEOUT,
            }),
            uplinks: Uplinks::default(),
            packets: None,
            connections: None,
            dumped: None,
            reopen: Instant::now(),
            trimmed: Instant::now(),
            settled: false,
            route_source: config.route_source,
            refused: config.refused.clone(),
            translations: Translations::open(),
            proxies: Proxies::new(Arc::new(config.settings())),
            interests: Interests::default(),
            questions,
            said,
            _say: say,
            sinks,
            senses: Senses::new(config.api, health.clone(), Arc::clone(&pulse)),
            dumps: 0,
            telemetry,
            health,
            pulse,
            supervisor: Supervisor::default(),
            cluster: running.as_ref().map(|running| Arc::clone(running.counters())),
            _running: running,
            policy,
            boot: BootWall::now(),
            log: FindingLog::new(),
        };
        agent.mind.restore(clock::now(), stood);
        agent.begin_to_count(config.packets);
        agent.begin_to_listen(config.route_source);
        agent.observe(What::AllowList(allow_list));
        if !config.api {
            warn!(
                "degraded: no API server is asked (--no-api); routes alone tell little of owners"
            );
            for sense in senses::AWAITED.into_iter().filter(|sense| *sense != Sense::Kernel) {
                let why = "the API server is not asked";
                agent.health.mark(sense.as_str(), why);
                agent.observe(What::Blind(sense, Some(why.into())));
            }
        }
        agent.show_numbers();
        agent
    }
}
