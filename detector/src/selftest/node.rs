//! The agent's part that meets the kernel, in a thread of its own: the thread decides which network
//! namespace its sockets and programs are in, and those of every thread that it starts.

use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use tokio::sync::{mpsc, oneshot};

use super::ground::{Ground, GroundError};
use crate::agent::{self, World};
use crate::config::Config;
use crate::doors::{self, Inquiry};
use crate::health::Health;

/// How long it may take to end: the sinks have what is queued to deliver.
const FAREWELL: Duration = Duration::from_secs(8);

/// How long what still goes on in its runtime is waited for.
const REST: Duration = Duration::from_millis(500);

/// Where routes are seen from, or why they are not.
pub(super) type Source = Result<&'static str, String>;

/// The thread.
pub(super) struct Node {
    world: Option<oneshot::Sender<World>>,
    inquiries: mpsc::Sender<Inquiry>,
    stop: oneshot::Sender<()>,
    /// Tells when all has ended.
    ended: oneshot::Receiver<Result<()>>,
    _thread: JoinHandle<()>,
}

// === impl Node ===

impl Node {
    /// Enters the network namespace: a new one, or where it is private that of the process.
    pub(super) async fn enter(
        config: &Config,
        here: bool,
        health: &Health,
    ) -> Result<(Self, Ground, oneshot::Receiver<Source>), GroundError> {
        let (config, health) = (config.clone(), health.clone());
        let (found, ground) = oneshot::channel();
        let (opened, source) = oneshot::channel();
        let (world, given) = oneshot::channel();
        let (stop, stopped) = oneshot::channel();
        let (end, ended) = oneshot::channel();
        let (inquiries, asked) = doors::inquiries();
        let live = move || {
            let ground =
                if here { Ground::here(&config.interface_prefixes) } else { Ground::new() };
            let entered = ground.is_ok();
            if found.send(ground).is_ok() && entered {
                let lived = live(&config, &health, opened, given, asked, stopped);
                // Where nobody waits, nobody wants to know.
                let _ = end.send(lived);
            }
        };
        let thread = thread::Builder::new().name("node".into()).spawn(live);
        let thread = thread.map_err(|error| {
            GroundError::Failed(format!("no thread for it: {error}; raise the limit of processes"))
        })?;
        let ground = ground.await.unwrap_or_else(|_| {
            Err(GroundError::Failed("its thread has failed: report this".to_owned()))
        })?;
        let node = Self { world: Some(world), inquiries, stop, ended, _thread: thread };
        Ok((node, ground, source))
    }

    /// Lets the agent begin.
    pub(super) fn begin(&mut self, world: World) {
        if let Some(to) = self.world.take() {
            // Where the thread has failed, nothing will be told, and that is said.
            let _ = to.send(world);
        }
    }

    /// The way to ask the agent.
    pub(super) fn inquiries(&self) -> &mpsc::Sender<Inquiry> {
        &self.inquiries
    }

    /// Ends it; an error says how it failed before.
    pub(super) async fn end(self) -> Result<()> {
        let Self { world, stop, ended, inquiries: _, _thread } = self;
        // Nothing begins any more, and what has begun ends.
        drop(world);
        drop(stop);
        match tokio::time::timeout(FAREWELL, ended).await {
            Ok(Ok(lived)) => lived,
            Ok(Err(_)) => Err(anyhow!("the thread of the agent has failed: report this")),
            Err(_) => Err(anyhow!("the agent does not end: report this")),
        }
    }
}

fn live(
    config: &Config,
    health: &Health,
    tell: oneshot::Sender<Source>,
    given: oneshot::Receiver<World>,
    asked: mpsc::Receiver<Inquiry>,
    stopped: oneshot::Receiver<()>,
) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("no runtime for the agent")?;
    let lived = runtime.block_on(async {
        let opened = match agent::open_kernel(config, health) {
            Ok(opened) => opened,
            Err(error) => {
                // The selftest may have ended.
                let _ = tell.send(Err(error.to_string()));
                return Ok(());
            }
        };
        let _ = tell.send(Ok(opened.source.as_str()));
        // The selftest may end before the world is made.
        let Ok(world) = given.await else { return Ok(()) };
        let stop = async {
            let _ = stopped.await;
            "the selftest is over"
        };
        agent::live(config, opened, world, asked, stop).await
    });
    runtime.shutdown_timeout(REST);
    lived
}
