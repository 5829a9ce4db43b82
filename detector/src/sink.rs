//! Where findings go.
//!
//! A sink has a bounded queue and a thread of its own. A slow one drops what its queue has no room
//! for, counts it and says so; it never holds the engine up.

mod report;
mod text;

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use detector_core::finding::Finding;
use tracing::warn;

pub use self::report::{Report, SCHEMA};
use crate::config::Output;

/// Findings that wait for a slow reader of standard output. One is some 2 KiB.
const QUEUE: usize = 4_096;

/// How long standard output may take for what is still queued when the agent ends.
const FAREWELL: Duration = Duration::from_secs(2);

/// Writes findings to standard output, in the order in which they came.
pub struct Stdout {
    queue: Option<SyncSender<Report>>,
    done: Receiver<()>,
    writer: Option<JoinHandle<()>>,
    dropped: Arc<AtomicU64>,
}

// === impl Stdout ===

impl Stdout {
    /// Starts the writer.
    pub fn start(output: Output, node: Box<str>) -> io::Result<Self> {
        let (queue, findings) = sync_channel::<Report>(QUEUE);
        let (ended, done) = sync_channel::<()>(1);
        let dropped = Arc::new(AtomicU64::new(0));
        let lost = Arc::clone(&dropped);
        let writer = std::thread::Builder::new().name("stdout".to_owned()).spawn(move || {
            write_all(output, &node, &findings, &lost);
            // Nobody listens any more where the agent did not wait.
            let _ = ended.send(());
        })?;
        Ok(Self { queue: Some(queue), done, writer: Some(writer), dropped })
    }

    /// Takes a finding, or drops it where the reader is too slow.
    pub fn take(&self, finding: &Finding) {
        let Some(queue) = &self.queue else { return };
        match queue.try_send(Report::new(finding)) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => {
                if self.dropped.fetch_add(1, Ordering::Relaxed) == 0 {
                    warn!("standard output is read too slowly: findings are being dropped");
                }
            }
            // The writer has said why it ended.
            Err(TrySendError::Disconnected(_)) => {
                self.dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Findings that were not written.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Writes what is queued and ends the writer; gives up where nobody reads.
    pub fn end(mut self) {
        self.queue = None;
        match self.done.recv_timeout(FAREWELL) {
            Ok(()) | Err(RecvTimeoutError::Disconnected) => {
                if let Some(Err(_)) = self.writer.take().map(JoinHandle::join) {
                    warn!("the writer of standard output has failed");
                }
            }
            Err(RecvTimeoutError::Timeout) => warn!("standard output is not read: giving up"),
        }
    }
}

fn write_all(output: Output, node: &str, findings: &Receiver<Report>, dropped: &AtomicU64) {
    let mut out = io::stdout().lock();
    let mut line = Vec::with_capacity(4096);
    for report in findings {
        line.clear();
        match output {
            Output::Json => report.write_json(node, &mut line),
            Output::Text => text::write(&report, &mut line),
        }
        if let Err(error) = out.write_all(&line).and_then(|()| out.flush()) {
            dropped.fetch_add(1, Ordering::Relaxed);
            warn!(%error, "standard output cannot be written: no more findings go there");
            return;
        }
    }
}
