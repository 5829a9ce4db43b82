//! What the agent has to do with beside its node's kernel: the API server and the sinks.

use std::sync::Arc;

use anyhow::{Context as _, Result};
use detector_core::finding::Finding;
use detector_core::observation::{Observation, Question};
use detector_core::policy::AllowList;
use tokio::sync::mpsc;

use crate::cli::RunArgs;
use crate::config::Config;
use crate::doors::Pulse;
use crate::health::Health;
use crate::policy::Policy;
use crate::sink::{Rehearsal, Sinks};
use crate::source::cluster::{Cluster, Running};
use crate::telemetry::Telemetry;

/// Observations of the cluster that wait for the loop; the cluster's tasks wait when it is full.
pub(crate) const CLUSTER_QUEUE: usize = 1_024;

/// Questions that wait for the cluster source. The engine has fewer under way at once.
const QUESTION_QUEUE: usize = 256;

/// All that goes out by the network, on the runtime in which it was started: the loop may be in another
/// network namespace.
pub(crate) struct World {
    pub(crate) sinks: Sinks,
    /// Findings that stood when the agent last ended.
    pub(super) stood: Vec<Finding>,
    /// What the cluster and the policy say.
    pub(crate) said: mpsc::Receiver<Observation>,
    /// The other end of it.
    pub(crate) say: mpsc::Sender<Observation>,
    /// The way to ask the cluster, where it is asked at all.
    pub(crate) questions: Option<mpsc::Sender<Question>>,
    pub(super) running: Option<Running>,
    pub(super) policy: Policy,
    pub(super) allow_list: AllowList,
    pub(crate) telemetry: Arc<Telemetry>,
    pub(crate) health: Health,
    pub(crate) pulse: Arc<Pulse>,
}

// === impl World ===

impl World {
    /// Starts the sinks and the tasks that ask the cluster. In a rehearsal the sinks are told of it
    /// alone.
    pub(crate) fn start(
        config: &Config,
        args: &RunArgs,
        cluster: Option<Cluster>,
        rehearsal: Option<Rehearsal>,
        health: &Health,
    ) -> Result<Self> {
        let client = cluster.as_ref().map(Cluster::client);
        let telemetry = health.telemetry();
        let (sinks, stood) = Sinks::start(config, client, health, telemetry, rehearsal)
            .context("no thread for the sinks: raise the limit of processes")?;
        let (say, said) = mpsc::channel(CLUSTER_QUEUE);
        let (questions, mut running) = match cluster {
            Some(cluster) => {
                let (ask, asked) = mpsc::channel(QUESTION_QUEUE);
                (Some(ask), Some(cluster.start(&say, asked)))
            }
            None => (None, None),
        };
        let grants = running.as_mut().and_then(Running::grants);
        let (policy, allow_list) = Policy::start(config, args, grants, &say);
        let pulse = Arc::new(Pulse::default());
        pulse.beat();
        Ok(Self {
            sinks,
            stood,
            said,
            say,
            questions,
            running,
            policy,
            allow_list,
            telemetry: Arc::clone(telemetry),
            health: health.clone(),
            pulse,
        })
    }
}
