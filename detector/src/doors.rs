//! The doors for operators: metrics and probes over TCP, and a unix socket for `detector status` and
//! its like, both by HTTP, so that any tool can ask.
//!
//! Over TCP nothing is told that names a pod or an address. The socket is its owner's only, root's.

mod answers;
mod serve;

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use detector_core::engine::Holdings;
use detector_core::explain::Explanation;
use tokio::sync::{mpsc, oneshot};

pub use self::answers::{
    Acknowledge, ClaimView, DegradedView, Explained, KernelView, RouteShown, SinkView, Status,
    TranslationShown, VerdictView,
};
use crate::clock;
use crate::health::Health;
use crate::sink::Counter;
use crate::telemetry::Telemetry;

/// Inquiries that wait for the loop.
const QUEUE: usize = 16;

/// How long the loop may be silent before the agent counts as stuck. It says something each second.
const STUCK: Duration = Duration::from_secs(30);

/// What somebody wants to know of the loop.
#[derive(Debug)]
pub enum Inquiry {
    /// How it is.
    Status(oneshot::Sender<Watching>),
    /// What is known of an address.
    Explain(IpAddr, oneshot::Sender<Box<Explanation>>),
}

/// What the loop watches, and how.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Watching {
    /// Where routes are seen from.
    pub routes: &'static str,
    /// How packets are watched; `None` where they are not.
    pub packets: Option<&'static str>,
    /// What the engine holds.
    pub holdings: Holdings,
    /// Interfaces of pods and uplinks whose packets are watched, and those that refuse it.
    pub interfaces: (usize, usize, usize),
    /// Addresses whose packets are counted.
    pub addresses: usize,
    /// Findings told since the start.
    pub told: u64,
    /// Readings of the kernel's tables.
    pub dumps: u64,
}

/// Signs of life, for probes.
#[derive(Debug, Default)]
pub struct Pulse {
    /// When the loop last said that it goes on, in nanoseconds since boot.
    beat: AtomicU64,
    ready: AtomicBool,
    awaited: Mutex<Vec<&'static str>>,
}

/// What the doors need.
#[derive(Clone)]
pub struct Inside {
    /// The metrics.
    pub telemetry: Arc<Telemetry>,
    /// What is degraded.
    pub health: Health,
    /// Whether the loop goes on.
    pub pulse: Arc<Pulse>,
    /// The way to the loop.
    pub inquiries: mpsc::Sender<Inquiry>,
    /// The way to the desk.
    pub counter: Counter,
    /// The node.
    pub node: Box<str>,
    /// When the agent was started.
    pub started: jiff::Timestamp,
    /// The socket that was made, by device and inode.
    pub socket: Arc<Mutex<Option<(u64, u64)>>>,
}

/// A channel for inquiries.
pub fn inquiries() -> (mpsc::Sender<Inquiry>, mpsc::Receiver<Inquiry>) {
    mpsc::channel(QUEUE)
}

/// Opens the doors. One that cannot be opened is tried again; meanwhile it is a degraded capability.
///
/// # Panics
/// Outside a tokio runtime.
pub fn open(inside: &Inside, listen: Option<SocketAddr>, socket: Option<PathBuf>) {
    if let Some(listen) = listen {
        drop(tokio::spawn(serve::tcp(inside.clone(), listen)));
    }
    if let Some(socket) = socket {
        drop(tokio::spawn(serve::unix(inside.clone(), socket)));
    }
}

/// Takes the socket away that was made at this path; another agent's is left alone.
pub fn close(inside: &Inside, path: &Path) {
    use std::os::unix::fs::MetadataExt as _;

    let made = inside.socket.lock().unwrap_or_else(PoisonError::into_inner).take();
    let there = std::fs::symlink_metadata(path).map(|file| (file.dev(), file.ino())).ok();
    if made.is_some() && made == there {
        // Where it cannot be, the next agent does it.
        let _ = std::fs::remove_file(path);
    }
}

// === impl Pulse ===

impl Pulse {
    /// The loop goes on.
    pub fn beat(&self) {
        self.beat.store(clock::now().as_nanos(), Ordering::Relaxed);
    }

    /// What is still awaited before the agent is ready.
    pub fn await_for(&self, awaited: Vec<&'static str>) {
        self.ready.store(awaited.is_empty(), Ordering::Relaxed);
        *self.awaited.lock().unwrap_or_else(PoisonError::into_inner) = awaited;
    }

    /// Whether every source has told all there is, or is declared degraded.
    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Relaxed)
    }

    /// What is awaited before that.
    pub(crate) fn awaited(&self) -> Vec<&'static str> {
        self.awaited.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// For how long the loop has been silent, where that is too long.
    fn stuck(&self) -> Option<Duration> {
        let beat = detector_core::time::BootTime::from_nanos(self.beat.load(Ordering::Relaxed));
        let silent = clock::now().since(beat);
        (silent > STUCK).then_some(silent)
    }
}
