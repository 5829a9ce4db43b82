//! `detector selftest`: a canary hijack in a network namespace of its own, and whether the alert
//! arrives by the whole way that a real one would take.
//!
//! What runs is the agent: its source of route changes, its watches of the API server, its engine, its
//! desk and its sinks. Only the ends are the selftest's: an interface and a route that nobody uses, and
//! an ear beside each sink ([`Rehearsal`]). The kernel's part lives in a thread of its own, whose
//! network namespace it is ([`node`]); what goes out, to the API server and to the sinks, starts from
//! where the process runs. Nothing of a running agent is touched: no socket, no state file.
//!
//! Reading order: [`ground`] (which namespace), [`canary`] (what is made in it), [`cluster`] (who the
//! victim is), [`scene`] (stage by stage), [`report`] (what is told).

pub mod args;
mod canary;
mod cluster;
mod ground;
mod node;
pub mod report;
mod scene;

use std::io::Write;

use anyhow::{Context as _, Result};
use thiserror::Error;
use tokio::time::Instant;

pub use self::args::SelftestArgs;
use self::report::Board;
use self::scene::{Ended, Scene};
use crate::agent::told_to_stop;
use crate::config::Config;
use crate::sink::Rehearsal;

/// What was typed cannot be done, and nothing was.
#[derive(Debug, Error)]
#[error("{0}")]
pub struct Refused(String);

/// Makes a selftest by this configuration; gives whether it has passed. What was typed wrong is
/// [`Refused`].
pub async fn run(mut config: Config, args: &SelftestArgs, out: &mut dyn Write) -> Result<bool> {
    let patience = args.patience().map_err(Refused)?;
    let silent = args.leave_out_sinks(&mut config).map_err(Refused)?;
    take_all(&mut config);
    let end = Instant::now() + patience;
    let stop = told_to_stop()?;
    let prefix = config.interface_prefixes.first().context("no prefix of pods' interfaces")?;
    let interface = canary::name(prefix).context("the prefix of pods' interfaces is too long")?;
    let (heard, ear) = tokio::sync::mpsc::unbounded_channel();
    let rehearsal = Rehearsal { interface, silent, heard };
    let board = Board::new(out, args.output, args.strict, config.node.0.clone());
    let mut scene = Scene::new(&config, args, end, board, rehearsal, ear);
    let ended = tokio::select! {
        played = scene.play() => played,
        why = stop => Ok(Ended::Stopped(why)),
    };
    // However it ended, nothing is left behind.
    let passed = scene.leave(matches!(ended, Ok(Ended::Played))).await;
    match ended? {
        Ended::Played => passed,
        Ended::Refused(why) => Err(Refused(why).into()),
        Ended::Stopped(why) => {
            passed?;
            anyhow::bail!("stopped by {why}: nothing is left behind")
        }
    }
}

/// Waits until standard input ends, and takes an interface away then ([`canary::sweep`]).
pub fn sweep(interface: &str) -> std::io::Result<()> {
    canary::sweep(interface)
}

/// Makes every sink take the canary's finding, and let go of it at once.
fn take_all(config: &mut Config) {
    use detector_core::finding::Severity;

    let alertmanagers = config.outlets.alertmanagers.iter_mut();
    let webhooks = config.outlets.webhooks.iter_mut();
    for alertmanager in alertmanagers {
        alertmanager.remote.least = Severity::Low;
        alertmanager.lingers = std::time::Duration::ZERO;
    }
    for webhook in webhooks {
        webhook.remote.least = Severity::Low;
    }
}
