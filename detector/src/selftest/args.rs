//! What can be typed behind `detector selftest`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};

use crate::cli::{LogFormat, LogLevel, RunArgs};
use crate::config::{self, Config, Hook, PacketSource, RouteSource, WriterSource, value};

/// What the deadline may be.
const TIMEOUT: (Duration, Duration) = (Duration::from_secs(1), Duration::from_mins(10));

/// The name of the sink that every agent has.
const STDOUT: &str = "stdout";

/// The word for all sinks.
const ALL: &str = "all";

/// How to make a selftest. What is configured is what the agent would use.
#[derive(Args, Clone, Debug, Default)]
pub struct SelftestArgs {
    /// The configuration file.
    #[arg(long, value_name = "FILE", env = "DETECTOR_CONFIG")]
    pub config: Option<PathBuf>,
    /// The node that this is.
    #[arg(long, value_name = "NAME", env = "NODE_NAME")]
    pub node_name: Option<String>,
    /// The kubeconfig file; without it the service account of the pod is used.
    #[arg(long, value_name = "FILE", env = "KUBECONFIG")]
    pub kubeconfig: Option<PathBuf>,
    /// Do not ask the API server: the canary is judged by its route alone.
    #[arg(long)]
    pub no_api: bool,
    /// Where routes are seen from.
    #[arg(long, value_name = "SOURCE")]
    pub route_source: Option<RouteSource>,
    /// How packets on pods' interfaces and uplinks are watched.
    #[arg(long, value_name = "HOW")]
    pub packets: Option<PacketSource>,
    /// How it is known who writes a route.
    #[arg(long, value_name = "HOW")]
    pub writers: Option<WriterSource>,
    /// Act as if the kernel refused this hook: for drills.
    #[arg(long, value_name = "HOOK", value_delimiter = ',', hide_short_help = true)]
    pub refuse: Vec<Hook>,
    /// Use the network namespace that this runs in, which has to be private: for pods, which may make
    /// none. Without it a new one is made, which takes the capability SYS_ADMIN.
    #[arg(long)]
    pub here: bool,
    /// Tell this sink nothing: stdout, journald, events, the name of an Alertmanager or a webhook, or
    /// all.
    #[arg(long, value_name = "SINK", value_delimiter = ',')]
    pub without_sink: Vec<String>,
    /// Fail where anything is degraded, too.
    #[arg(long)]
    pub strict: bool,
    /// How long all of it may take.
    #[arg(long, value_name = "DURATION", default_value = "30s")]
    pub timeout: String,
    /// What it looks like.
    #[arg(short, long, value_name = "FORMAT", default_value = "text")]
    pub output: Shape,
    /// How much the agent's parts log to standard error: error, warn, info, debug or trace.
    #[arg(long, value_name = "LEVEL", default_value = "error")]
    pub log_level: LogLevel,
    /// What the log looks like.
    #[arg(long, value_name = "FORMAT", env = "DETECTOR_LOG_FORMAT", default_value = "text")]
    pub log_format: LogFormat,
    /// Take this interface away when standard input ends: what a selftest has another process do that
    /// outlives it.
    #[arg(long, value_name = "INTERFACE", hide = true)]
    pub sweep: Option<String>,
}

/// What a selftest looks like.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, ValueEnum)]
pub enum Shape {
    /// A line for each stage, as soon as it is over.
    #[default]
    Text,
    /// One JSON object at the end, on a line of its own.
    Json,
}

// === impl SelftestArgs ===

impl SelftestArgs {
    /// The same as somebody would type for a run of the agent, which keeps nothing and serves nobody.
    pub fn run(&self) -> RunArgs {
        let none = || Some(PathBuf::from("none"));
        RunArgs {
            config: self.config.clone(),
            node_name: self.node_name.clone(),
            kubeconfig: self.kubeconfig.clone(),
            no_api: self.no_api,
            route_source: self.route_source,
            packets: self.packets,
            writers: self.writers,
            refuse: self.refuse.clone(),
            output: Some(match self.output {
                Shape::Text => config::Output::Text,
                Shape::Json => config::Output::Json,
            }),
            // A running agent has its own.
            listen: Some("none".into()),
            socket: none(),
            state: none(),
            record: None,
            log_level: self.log_level,
            log_format: self.log_format,
        }
    }

    /// How long all of it may take.
    pub(super) fn patience(&self) -> Result<Duration, String> {
        let (least, most) = TIMEOUT;
        value::duration(&self.timeout, least, most)
            .map_err(|problem| format!("--timeout {problem}"))
    }

    /// Takes the sinks out of the configuration that are not to be told; gives whether standard output
    /// is one of them.
    pub(super) fn leave_out_sinks(&self, config: &mut Config) -> Result<bool, String> {
        let outlets = &config.outlets;
        let mut known = vec![STDOUT.to_owned()];
        known.extend(outlets.journald.is_some().then(|| "journald".to_owned()));
        known.extend(outlets.events.then(|| "events".to_owned()));
        let remotes = outlets.alertmanagers.iter().map(|one| &one.remote);
        let remotes = remotes.chain(outlets.webhooks.iter().map(|one| &one.remote));
        known.extend(remotes.map(|remote| remote.name.to_string()));
        let typed = &self.without_sink;
        let unknown = typed.iter().find(|name| *name != ALL && !known.contains(name));
        if let Some(unknown) = unknown {
            let unknown = crate::text::printable(unknown, 64);
            return Err(format!(
                "--without-sink {unknown}: there is no such sink: write {ALL} or one of {}",
                known.join(", ")
            ));
        }
        let out = |name: &str| typed.iter().any(|typed| typed == ALL || typed == name);
        let outlets = &mut config.outlets;
        outlets.journald.take_if(|_| out("journald"));
        outlets.events &= !out("events");
        outlets.alertmanagers.retain(|one| !out(&one.remote.name));
        outlets.webhooks.retain(|one| !out(&one.remote.name));
        Ok(out(STDOUT))
    }
}
