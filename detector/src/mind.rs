//! The engine as the agent has it: every word to it may be written down, so that it can be said again.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use detector_core::engine::{Engine, Output};
use detector_core::explain::Explanation;
use detector_core::finding::Finding;
use detector_core::observation::{Observation, What};
use detector_core::settings::Settings;
use detector_core::time::BootTime;
use detector_core::traffic::{Count, Traffic};
use tracing::warn;

use crate::clock::BootWall;
use crate::health::Health;
use crate::recording::{RECORDING, Recorder};
use crate::telemetry::{Pretence, Side, Source, Telemetry};

/// The words for where packets of watched addresses are counted.
const SIDES: [&str; 2] = ["sent", "reached"];

/// The engine, with whoever listens to what it is told.
pub(crate) struct Mind {
    engine: Engine,
    recorder: Option<Recorder>,
    /// Packets of watched addresses that were counted in the metrics.
    counted: HashMap<(IpAddr, &'static str), u64>,
    telemetry: Arc<Telemetry>,
    health: Health,
}

// === impl Mind ===

impl Mind {
    /// An engine that knows nothing yet.
    pub(crate) fn new(
        settings: Settings,
        recorder: Option<Recorder>,
        telemetry: Arc<Telemetry>,
        health: Health,
    ) -> Self {
        // Shown before anything happens: what is not there cannot be told from what is 0.
        for source in ["kernel", "cluster", "policy", "packets", "connections", "translations"] {
            drop(telemetry.observations.get_or_create(&Source::new(source)));
        }
        for pretence in ["source", "arp", "neighbour", "router"] {
            drop(telemetry.pretended.get_or_create(&Pretence::new(pretence)));
        }
        for side in SIDES {
            drop(telemetry.packets.get_or_create(&Side::new(side)));
        }
        Self { engine: Engine::new(settings), recorder, counted: HashMap::new(), telemetry, health }
    }

    /// Takes over findings that stood before.
    pub(crate) fn restore(&mut self, now: BootTime, findings: Vec<Finding>) {
        self.record(|recorder| recorder.restore(now, &findings));
        self.engine.restore(now, findings);
    }

    /// Takes an observation.
    pub(crate) fn observe(&mut self, now: BootTime, observation: Observation) {
        self.count(&observation.what);
        self.record(|recorder| recorder.observe(now, &observation));
        self.engine.observe(now, observation);
    }

    /// Lets time pass.
    pub(crate) fn tick(&mut self, now: BootTime) {
        self.record(|recorder| recorder.tick(now));
        self.engine.tick(now);
    }

    /// Notes that a finding was told, and with which times.
    pub(crate) fn told(&mut self, told: BootTime, boot: BootWall) {
        self.record(|recorder| recorder.told(told, boot));
    }

    /// When [`Self::tick`] is next of use.
    pub(crate) fn next_deadline(&self) -> Option<BootTime> {
        self.engine.next_deadline()
    }

    /// The next thing that the engine has to say.
    pub(crate) fn poll(&mut self) -> Option<Output> {
        let output = self.engine.poll();
        if let Some(Output::Watch(address) | Output::Unwatch(address)) = output {
            // They are counted from zero when it is watched again.
            for side in SIDES {
                self.counted.remove(&(address, side));
            }
        }
        output
    }

    /// The engine's settings.
    pub(crate) fn settings(&self) -> &Settings {
        self.engine.settings()
    }

    /// Every finding that stands.
    pub(crate) fn standing(&self) -> Vec<&Finding> {
        self.engine.standing()
    }

    /// How much the engine holds.
    pub(crate) fn holdings(&self) -> detector_core::engine::Holdings {
        self.engine.holdings()
    }

    /// An address explained.
    pub(crate) fn explain(&self, now: BootTime, address: IpAddr) -> Explanation {
        self.engine.explain(now, address)
    }

    fn record(&mut self, write: impl FnOnce(&Recorder) -> Result<(), &'static str>) {
        let Some(recorder) = &self.recorder else { return };
        if let Err(why) = write(recorder) {
            // What is missing in the middle cannot be replayed.
            let why = format!("the recording ends here: {why}");
            if self.health.mark(RECORDING, &why) {
                warn!(why, "degraded");
            }
            if let Some(recorder) = self.recorder.take() {
                recorder.abandon();
            }
        }
    }

    fn count(&mut self, what: &What) {
        let source = match what {
            What::Kernel(_)
            | What::SnapshotBegin
            | What::SnapshotPart(_)
            | What::SnapshotEnd
            | What::SnapshotAborted
            | What::Refused(_) => "kernel",
            What::PodApplied(_)
            | What::PodDeleted(..)
            | What::PodsReset(_)
            | What::NodesReset(_)
            | What::NodeApplied(_)
            | What::NodeDeleted(_)
            | What::Ipam(_)
            | What::Pools(_)
            | What::ServicesReset(_)
            | What::ServiceApplied(_)
            | What::ServiceDeleted(_)
            | What::Feature(_)
            | What::Felix(_)
            | What::Answer(_) => "cluster",
            What::AllowList(_) => "policy",
            What::Traffic(traffic) => {
                self.count_packets(traffic);
                "packets"
            }
            What::Counting(_) | What::Uncounted(_) => "packets",
            What::Pretended(pretended) => {
                let labels = Pretence::new(pretended.pretence.as_str());
                let packets = self.telemetry.pretended.get_or_create(&labels);
                packets.inc_by(pretended.tally.packets);
                "packets"
            }
            What::Translated(_) => "connections",
            What::TranslationRules(_) => "translations",
            What::Blind(..) => return,
        };
        self.telemetry.observations.get_or_create(&Source::new(source)).inc();
    }

    fn count_packets(&mut self, traffic: &Traffic) {
        for side in SIDES {
            let of_side = |count: &&Count| {
                count.flow.is_none()
                    && matches!(count.side, detector_core::traffic::Side::Sent) == (side == "sent")
            };
            let packets: u64 =
                traffic.counts.iter().filter(of_side).map(|count| count.tally.packets).sum();
            let before = self.counted.insert((traffic.address, side), packets).unwrap_or_default();
            let more = packets.saturating_sub(before);
            self.telemetry.packets.get_or_create(&Side::new(side)).inc_by(more);
        }
    }
}
