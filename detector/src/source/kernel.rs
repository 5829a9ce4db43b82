//! The kernel as a source: its tables, and every change of them.
//!
//! Changes come from the eBPF witness, or where the kernel takes no eBPF program from a netlink
//! socket; the bytes are the same, one decoder reads them, and the observations are equal. The
//! tables come from dumps, read by the same decoder. [`Resync`] joins the two.
//!
//! Whoever has `CAP_NET_ADMIN` can send messages of his own to the kernel's multicast groups. The
//! netlink socket is told who sent a message and leaves those out; an eBPF program on it is not
//! told, so a forged change stands until the next dump.

mod decode;
mod dump;
pub mod lookup;
mod netlink;
mod proxies;
mod records;
mod resync;
pub(in crate::source) mod socket;
mod tally;
mod uplink;
pub(in crate::source) mod wire;

use std::collections::BTreeSet;
use std::io;

use detector_core::observation::Observation;
use detector_core::route::IfIndex;
use detector_core::time::BootTime;
use thiserror::Error;

pub use self::decode::{change, state};
pub use self::dump::{BATCH, Dump, DumpError, DumpOptions, DumpStep, DumpTotals};
use self::netlink::Notifications;
pub use self::proxies::Proxies;
use self::records::Records;
pub use self::resync::{Reason, Resync, ResyncOptions, ResyncStep};
pub use self::uplink::{Uplinks, is_uplink};
pub use self::wire::{DecodeError, Message};
use crate::config::RouteSource;
use crate::source::witness::{Witness, WitnessError};
use crate::source::writer::{WriterOptions, WriterSight};

/// How much is read at once when a source has to be caught up with.
const GULP: usize = 1024;

/// Why there is no source.
#[derive(Debug, Error)]
pub enum KernelSourceError {
    /// There is no witness, and nothing else was wanted.
    #[error(transparent)]
    Witness(#[from] WitnessError),
    /// There is no netlink socket.
    #[error(
        "no netlink socket for route changes ({0}); does a seccomp filter or the sandbox forbid \
         AF_NETLINK?"
    )]
    Netlink(#[source] io::Error),
    /// The ring cannot be waited for.
    #[error("the ring of the eBPF program cannot be waited for ({0}); use --route-source netlink")]
    Ring(#[source] io::Error),
}

/// How much room there is for what was not yet read, and what is wanted of writers.
#[derive(Clone, Debug)]
pub struct KernelOptions {
    /// The ring of the eBPF program, in bytes: a power of two, and at least a page.
    pub ring_bytes: u32,
    /// The queue of the netlink socket, in bytes. Without `CAP_NET_ADMIN` it is no larger than
    /// `net.core.rmem_max`.
    pub queue_bytes: usize,
    /// How writers are to be known.
    pub writers: WriterOptions,
}

impl Default for KernelOptions {
    /// 4 MiB of ring, some 20,000 routes; 16 MiB of queue, as many.
    fn default() -> Self {
        let writers = WriterOptions::default();
        Self { ring_bytes: 4 << 20, queue_bytes: 16 << 20, writers }
    }
}

/// A source, and whether it is the one that was hoped for.
pub struct Opened {
    /// The source.
    pub source: KernelSource,
    /// Why it is not the better one, in one line.
    pub degraded: Option<String>,
}

/// What became of what the kernel sent. In a quiet moment `seen` is the sum of the others.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    /// Messages that the kernel sent.
    pub seen: u64,
    /// Of those, what became an observation, or will when the ring is read.
    pub written: u64,
    /// Of those, what need not be told.
    pub filtered: u64,
    /// Of those, what there was no room for.
    pub lost: u64,
    /// Of those, what could not be read.
    pub unparsed: u64,
    /// Refused writes of routes that there was no room for; they are no messages.
    pub refusals_lost: u64,
}

/// Something that the kernel said and that was not heard.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Loss {
    /// How many messages, 0 where nobody knows.
    pub records: u64,
    /// Why, in one line.
    pub why: String,
}

/// What a source holds after it was read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Drained {
    /// Nothing more.
    Empty,
    /// More than was asked for.
    More,
}

/// A source of changes in the kernel's tables.
pub struct KernelSource {
    means: Means,
    /// What is known of who writes, where it is known from the beginning and was not told yet.
    sight: Option<WriterSight>,
}

enum Means {
    Ebpf(Box<Records>),
    Netlink(Box<Notifications>),
}

// === impl KernelSource ===

impl KernelSource {
    /// Opens the source of choice in the network namespace of the calling thread. From then on every
    /// change is told.
    ///
    /// # Panics
    /// Outside a tokio runtime with I/O.
    pub fn open(choice: RouteSource, options: &KernelOptions) -> Result<Opened, KernelSourceError> {
        let netlink = |why: &str| {
            let notifications =
                Notifications::open(options.queue_bytes).map_err(KernelSourceError::Netlink)?;
            let sight = Some(WriterSight::ports_only(why));
            Ok::<_, KernelSourceError>(Self {
                means: Means::Netlink(Box::new(notifications)),
                sight,
            })
        };
        let better = match choice {
            RouteSource::Netlink => {
                let source = netlink("routes are seen by plain netlink")?;
                return Ok(Opened { source, degraded: None });
            }
            RouteSource::Auto | RouteSource::Ebpf => Self::ebpf(options),
        };
        match better {
            Ok(source) => Ok(Opened { source, degraded: None }),
            Err(error) if choice == RouteSource::Ebpf => Err(error),
            Err(error) => {
                let why = error.to_string();
                Ok(Opened { source: netlink(&why)?, degraded: Some(why) })
            }
        }
    }

    /// What it is, in a word for logs and metrics.
    pub fn as_str(&self) -> &'static str {
        match &self.means {
            Means::Ebpf(_) => "ebpf",
            Means::Netlink(_) => "netlink",
        }
    }

    /// Whether the kernel says when it changed something. Else a change has the time of its reading.
    pub fn tells_times(&self) -> bool {
        matches!(self.means, Means::Ebpf(_))
    }

    /// What is known of who writes, as soon as that is known; once.
    pub fn sight(&mut self) -> Option<WriterSight> {
        self.told_sight(false)
    }

    /// The same, waited for: on some kernels it takes seconds.
    pub fn await_sight(&mut self) -> Option<WriterSight> {
        self.told_sight(true)
    }

    fn told_sight(&mut self, wait: bool) -> Option<WriterSight> {
        match &mut self.means {
            Means::Ebpf(records) => records.sight(wait),
            Means::Netlink(_) => self.sight.take(),
        }
    }

    /// Waits until there may be something to read. Safe to cancel.
    pub async fn ready(&mut self) -> io::Result<()> {
        match &self.means {
            Means::Ebpf(records) => records.ready().await,
            Means::Netlink(notifications) => notifications.ready().await,
        }
    }

    /// Reads at most `budget` messages, in the kernel's order, without waiting for more.
    pub fn drain(&mut self, budget: usize, each: &mut dyn FnMut(Observation)) -> Drained {
        match &mut self.means {
            Means::Ebpf(records) => records.drain(budget, each),
            Means::Netlink(notifications) => notifications.drain(budget, each),
        }
    }

    /// Reads all that the kernel sent until `end`, which has passed, and perhaps more. It ends
    /// however fast the kernel goes on sending.
    pub fn catch_up(&mut self, end: BootTime, each: &mut dyn FnMut(Observation)) {
        match &mut self.means {
            Means::Ebpf(records) => records.catch_up(end, each),
            Means::Netlink(notifications) => notifications.catch_up(each),
        }
    }

    /// What was lost since the last call. The tables must then be read anew ([`Resync::request`]).
    pub fn take_loss(&mut self) -> Option<Loss> {
        match &mut self.means {
            Means::Ebpf(records) => records.take_loss(),
            Means::Netlink(notifications) => notifications.take_loss(),
        }
    }

    /// What became of what the kernel sent.
    pub fn counters(&self) -> Counters {
        match &self.means {
            Means::Ebpf(records) => records.counters(),
            Means::Netlink(notifications) => notifications.counters(),
        }
    }

    /// Says which interfaces are uplinks ([`is_uplink`]): transit routes by them are no longer told.
    pub fn set_uplinks(&mut self, uplinks: &[IfIndex]) -> io::Result<()> {
        match &mut self.means {
            Means::Ebpf(records) => records.set_uplinks(uplinks),
            Means::Netlink(notifications) => {
                let uplinks: BTreeSet<IfIndex> = uplinks.iter().copied().collect();
                notifications.set_uplinks(uplinks);
                Ok(())
            }
        }
    }

    fn ebpf(options: &KernelOptions) -> Result<Self, KernelSourceError> {
        let (witness, writers) = Witness::attach(options.ring_bytes, &options.writers)?;
        let records = Records::new(witness, writers).map_err(KernelSourceError::Ring)?;
        Ok(Self { means: Means::Ebpf(Box::new(records)), sight: None })
    }
}
