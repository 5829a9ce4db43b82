//! What the cluster says: pods of this node, nodes, IP pools, Services, the floating IP feature, its
//! part of the allow-list, and answers to questions.
//!
//! Seven tasks share one client and one channel. Each tells when it cannot see
//! ([`What::Blind`]) and when it sees again, waits longer after each failure (0.8 s to 30 s, with
//! jitter), and ends when nobody listens. Nothing is kept but the addresses of nodes and Services, and
//! the pools: objects are taken apart by `parse` where they arrive. A kind of object that cannot be
//! read blinds its own sense only.
//!
//! What it costs the API server, for each node of the cluster: ten watches that are renewed every
//! few minutes, a GET for each question after a block, and a LIST for each question after pods. Pods
//! are watched by `spec.nodeName`, for which the API server has an index; no agent ever lists all
//! pods. The only thing that is ever written is the status of an allowance.

mod allowances;
pub(crate) mod calico;
pub mod cni;
mod counters;
pub(crate) mod failure;
mod feature;
pub(crate) mod felix;
mod lean;
mod nodes;
pub mod parse;
mod pods;
mod pools;
pub(crate) mod question;
mod rejection;
#[cfg(test)]
mod script;
mod services;
mod sight;
pub(crate) mod version;
mod watch;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use detector_core::observation::{Observation, Question, What};
use detector_core::workload::NodeName;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use kube::Client;
use kube::client::ClientBuilder;
use kube::config::{KubeConfigOptions, Kubeconfig};
use thiserror::Error;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tower::timeout::TimeoutLayer;
use tower::util::MapRequestLayer;

pub(crate) use self::allowances::list as allowances_now;
pub use self::allowances::object;
pub use self::counters::{Counters, Counts};
pub use self::lean::{LeanNode, LeanNodeSpec, LeanNodeStatus};
pub use self::rejection::{Reason, Rejection};
use crate::clock;
use crate::config::Config;
use crate::policy::Grants;
use crate::text::printable;

/// How long the API server may take to begin an answer: not to be connected to, or to be silent, is
/// a failure that must be told soon.
const ANSWER: Duration = Duration::from_secs(15);
const CONNECT: Duration = Duration::from_secs(5);
/// How long a watch of pods lives: at most so long a dead connection goes unnoticed.
const PATIENCE: Duration = Duration::from_mins(2);
/// The same for what changes rarely and matters less.
const SLOW_PATIENCE: Duration = Duration::from_secs(290);
/// How long a connection may be silent in the middle of an answer: longer than any watch lives.
const SILENCE: Duration = Duration::from_secs(320);

/// How long a page of a list may take, for somebody who looks once.
const PAGE: Duration = Duration::from_mins(1);

/// Words about the allow-list that wait to be merged with the configuration's.
const GRANTS_QUEUE: usize = 16;

/// Why there is no client.
#[derive(Error, Debug)]
pub enum ClusterError {
    /// The kubeconfig file is of no use.
    #[error(
        "the kubeconfig {} is of no use: {why}; correct --kubeconfig or KUBECONFIG",
        printable(&.path.to_string_lossy(), 256)
    )]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// Why not, in one line.
        why: String,
    },
    /// The agent runs in no pod, or in one without a service account token.
    #[error(
        "no API server is known: {0}; give --kubeconfig, run in a pod with a service account, or \
         do without it by --no-api"
    )]
    NotInAPod(String),
    /// The client could not be made of its settings.
    #[error("no client for the API server: {0}; check its address and certificates")]
    Client(String),
}

/// A client of the API server, not yet used.
pub struct Cluster {
    client: Client,
    node: NodeName,
    counters: Arc<Counters>,
}

/// The tasks of the cluster source. They end when this is dropped.
pub struct Running {
    tasks: JoinSet<()>,
    counters: Arc<Counters>,
    grants: Option<mpsc::Receiver<Grants>>,
}

// === impl Cluster ===

impl Cluster {
    /// Makes a client by the kubeconfig file, or else by the service account of the pod. Nothing is
    /// asked yet: an API server that is down is a reason to be blind, not to give up.
    pub async fn connect(config: &Config) -> Result<Self, ClusterError> {
        let settings = match &config.kubeconfig {
            Some(path) => from_file(path.clone(), &KubeConfigOptions::default()).await?,
            None => kube::Config::incluster_env()
                .map_err(|error| ClusterError::NotInAPod(in_one_line(&error)))?,
        };
        Self::with_settings(settings, config.node.clone())
    }

    /// Makes a client by the settings of kube.
    fn with_settings(mut settings: kube::Config, node: NodeName) -> Result<Self, ClusterError> {
        settings.connect_timeout = Some(CONNECT);
        settings.read_timeout = Some(SILENCE);
        settings.reset_reader_on_write = true;
        // Failures are to be told, not to be tried again in silence.
        settings.default_retry = false;
        let counters = Arc::new(Counters::default());
        let counted = Arc::clone(&counters);
        let client = ClientBuilder::try_from(settings)
            .map_err(|error| ClusterError::Client(in_one_line(&error)))?
            .with_layer(&TimeoutLayer::new(ANSWER))
            .with_layer(&MapRequestLayer::new(move |request| {
                Counters::increment(&counted.requests);
                request
            }))
            .build();
        Ok(Self { client, node, counters })
    }

    /// The client, for the sink that writes Events.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// Starts the tasks. They tell `tx` what they see and answer `questions` until it is closed or
    /// [`Running`] is dropped.
    pub fn start(
        self,
        tx: &mpsc::Sender<Observation>,
        questions: mpsc::Receiver<Question>,
    ) -> Running {
        let Self { client, node, counters } = self;
        let mut tasks = JoinSet::new();
        let mut spawn = |task: BoxFuture<'static, ()>| {
            let tx = tx.clone();
            // A task that has nothing to tell would not notice that nobody listens any more.
            tasks.spawn(async move {
                tokio::select! {
                    () = task => {}
                    () = tx.closed() => {}
                }
            });
        };
        let (client, shared) = (client.clone(), || client.clone());
        let counted = || Arc::clone(&counters);
        spawn(pods::run(shared(), node.clone(), counted(), tx.clone()).boxed());
        spawn(nodes::run(shared(), counted(), tx.clone()).boxed());
        spawn(pools::run(shared(), counted(), tx.clone()).boxed());
        spawn(services::run(shared(), counted(), tx.clone()).boxed());
        spawn(feature::run(client.clone(), node, counted(), tx.clone()).boxed());
        let (grant, grants) = mpsc::channel(GRANTS_QUEUE);
        spawn(allowances::run(shared(), counted(), grant).boxed());
        spawn(question::run(client, counted(), questions, tx.clone()).boxed());
        Running { tasks, counters, grants: Some(grants) }
    }
}

// === impl Running ===

impl Running {
    /// What was done so far.
    pub fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    /// What the cluster says of the allow-list. It is for one listener: whoever asks again gets
    /// nothing.
    pub fn grants(&mut self) -> Option<mpsc::Receiver<Grants>> {
        self.grants.take()
    }

    /// Waits until a task has ended, which only happens when nobody listens to it any more or it
    /// has panicked; `None` when all have. Cancel-safe.
    pub async fn ended(&mut self) -> Option<Result<(), tokio::task::JoinError>> {
        self.tasks.join_next().await
    }
}

/// A client for somebody who looks once, from anywhere: by this kubeconfig, or by the one that
/// kubectl would take, or by the service account of the pod. It tries again what the server was too
/// busy for.
pub(crate) async fn visitor(
    kubeconfig: Option<PathBuf>,
    context: Option<String>,
) -> Result<(Client, kube::Config), ClusterError> {
    let options = KubeConfigOptions { context, ..KubeConfigOptions::default() };
    let mut settings = match kubeconfig {
        Some(path) => from_file(path, &options).await?,
        None => usual(&options).await?,
    };
    settings.connect_timeout = Some(CONNECT);
    settings.read_timeout = Some(PAGE);
    let client = ClientBuilder::try_from(settings.clone())
        .map_err(|error| ClusterError::Client(in_one_line(&error)))?
        .with_layer(&TimeoutLayer::new(PAGE))
        .build();
    Ok((client, settings))
}

/// What kubectl would take, else the service account of the pod.
async fn usual(options: &KubeConfigOptions) -> Result<kube::Config, ClusterError> {
    let named = std::env::var_os("KUBECONFIG").filter(|path| !path.is_empty());
    let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".kube/config"));
    let Some(path) = named.map(PathBuf::from).or_else(|| home.filter(|path| path.exists())) else {
        return kube::Config::incluster_env()
            .map_err(|error| ClusterError::NotInAPod(in_one_line(&error)));
    };
    let wrong = |error: kube::config::KubeconfigError| {
        let why = in_one_line(&error);
        ClusterError::Kubeconfig { path: path.clone(), why }
    };
    // By kube, since the variable may name several files.
    let kubeconfig = Kubeconfig::read().map_err(wrong)?;
    kube::Config::from_custom_kubeconfig(kubeconfig, options).await.map_err(wrong)
}

async fn from_file(
    path: PathBuf,
    options: &KubeConfigOptions,
) -> Result<kube::Config, ClusterError> {
    let wrong = |error: kube::config::KubeconfigError| {
        let why = in_one_line(&error);
        ClusterError::Kubeconfig { path: path.clone(), why }
    };
    let kubeconfig = Kubeconfig::read_from(&path).map_err(wrong)?;
    kube::Config::from_custom_kubeconfig(kubeconfig, options).await.map_err(wrong)
}

/// An error of another library without its line breaks and its drawings of YAML.
fn in_one_line(error: &dyn std::error::Error) -> String {
    let text = error.to_string();
    printable(text.lines().next().unwrap_or_default(), 300)
}

/// Tells the engine; an error means that nobody listens any more.
async fn tell(
    tx: &mpsc::Sender<Observation>,
    what: What,
) -> Result<(), mpsc::error::SendError<Observation>> {
    tx.send(Observation { at: clock::now(), what }).await
}

#[cfg(test)]
mod tests;
