//! Neighbour entries by which the node answers for others. The kernel tells nobody when one comes or
//! goes (seen on Linux 6.18: `neigh_add` in net/core/neighbour.c makes them without a notification),
//! so they are read now and then; there are few.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use detector_core::observation::{KernelChange, Neighbour};
use detector_core::settings::Settings;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until};

use super::dump::{DumpError, DumpOptions, proxies};

/// How often they are read.
const POLL: Duration = Duration::from_secs(5);

/// How long one reading may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// The entries as they were read last.
pub struct Proxies {
    settings: Arc<Settings>,
    known: BTreeSet<Neighbour>,
    reading: Option<oneshot::Receiver<Result<BTreeSet<Neighbour>, DumpError>>>,
    next: Instant,
}

// === impl Proxies ===

impl Proxies {
    /// The first reading is due after a while: a dump of the tables has them too.
    pub fn new(settings: Arc<Settings>) -> Self {
        let next = Instant::now() + POLL;
        Self { settings, known: BTreeSet::new(), reading: None, next }
    }

    /// What has changed by the next reading, or why it failed. Safe to cancel.
    pub async fn next(&mut self) -> Result<Vec<KernelChange>, DumpError> {
        if self.reading.is_none() {
            sleep_until(self.next).await;
            self.next = Instant::now() + POLL;
            let options = DumpOptions {
                settings: Arc::clone(&self.settings),
                timeout: PATIENCE,
                accept_interrupted: true,
            };
            let (tell, told) = oneshot::channel();
            let read = move || {
                // It fails where nobody wants to know any more.
                let _ = tell.send(proxies(options));
            };
            thread::Builder::new().name("proxies".into()).spawn(read)?;
            self.reading = Some(told);
        }
        let Some(reading) = &mut self.reading else { return Ok(Vec::new()) };
        let read = reading.await;
        self.reading = None;
        let read = read.unwrap_or(Err(DumpError::BrokeOff))?;
        let gone = self.known.difference(&read).copied().map(KernelChange::NeighbourGone);
        // Those that stand are told again: a dump of the tables may have come in between.
        let changes = gone.chain(read.iter().copied().map(KernelChange::Neighbour)).collect();
        self.known = read;
        Ok(changes)
    }
}
