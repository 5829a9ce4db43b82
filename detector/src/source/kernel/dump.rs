//! The kernel's tables, read once from end to end.
//!
//! A dump has a socket and a thread of its own, so that reading a hundred thousand routes delays no
//! notification, and hands over what it reads in batches. While they are not taken the thread waits,
//! and with it the kernel: memory stays flat whatever the size of the tables.

mod reader;
mod section;

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use detector_core::observation::{KernelState, Neighbour};
use detector_core::settings::Settings;
use detector_core::time::BootTime;
use thiserror::Error;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

use self::reader::{Reader, Stop};
use self::section::Section;
use super::wire::DecodeError;
use crate::clock;

/// How much one batch holds at most.
pub const BATCH: usize = 1024;

/// How many batches wait to be taken before the dump waits itself.
const WAITING: usize = 4;

/// How to read.
#[derive(Clone, Debug)]
pub struct DumpOptions {
    /// By which uplinks are known, whose transit routes are left out.
    pub settings: Arc<Settings>,
    /// How long the whole may take, the time included in which batches wait to be taken.
    pub timeout: Duration,
    /// Whether a dump that the kernel calls interrupted is good enough, because earlier ones were
    /// too: whoever can change tables all the time must not be able to keep them from being read.
    pub accept_interrupted: bool,
}

/// What a complete dump came to.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct DumpTotals {
    /// How much was handed over.
    pub states: u64,
    /// How many routes were left out, because of uplinks or as copies that the kernel keeps.
    pub filtered: u64,
    /// How many messages could not be read.
    pub unparsed: u64,
    /// Why the first of these could not.
    pub first_unparsed: Option<DecodeError>,
    /// Whether the kernel called it interrupted, and that was accepted.
    pub interrupted: bool,
    /// When the last of it had been read.
    pub ended: BootTime,
}

/// What a dump gives.
#[derive(Debug)]
pub enum DumpStep {
    /// Some of what there is, at most [`BATCH`]: links first, then next hops, rules and routes.
    Part(Vec<KernelState>),
    /// That was all; nothing follows.
    Ended(Result<DumpTotals, DumpError>),
}

/// Why a dump came to nothing.
#[derive(Debug, Error)]
pub enum DumpError {
    /// A table changed while it was read, so that the kernel may have skipped or repeated something
    /// (`NLM_F_DUMP_INTR`).
    #[error("the kernel's {0} changed while they were read; they will be read again")]
    Interrupted(&'static str),
    /// The kernel gave another answer than a table.
    #[error("the kernel refused to tell its {what}: {error}; is a seccomp filter in the way?")]
    Refused {
        /// What it was asked for.
        what: &'static str,
        /// Its answer.
        error: io::Error,
    },
    /// A socket or a thread could not be made or used.
    #[error("the kernel's tables cannot be read: {0}; see the limits on open files and threads")]
    Io(#[from] io::Error),
    /// An answer that cannot be taken apart into messages.
    #[error("the kernel's answer about its {what} cannot be read: {error}; please report this")]
    Answer {
        /// What was being read.
        what: &'static str,
        /// What is wrong with it.
        error: DecodeError,
    },
    /// It took longer than it may.
    #[error("the kernel's tables could not be read in {0:?}; is the node short of processor time?")]
    TimedOut(Duration),
    /// The thread that read them ended without a word.
    #[error("the reading of the kernel's tables broke off; please report this")]
    BrokeOff,
}

/// A dump that is going on. To drop it is to stop it.
#[derive(Debug)]
pub struct Dump {
    steps: mpsc::Receiver<DumpStep>,
    timeout: Duration,
    deadline: Instant,
}

impl Dump {
    /// Begins to read the tables of the calling thread's network namespace.
    pub fn start(options: DumpOptions) -> Result<Self, DumpError> {
        let timeout = options.timeout;
        let deadline = Instant::now() + timeout;
        let mut reader = Reader::open(options)?;
        let (sender, steps) = mpsc::channel(WAITING);
        let read = move || {
            let step = match read_all(&mut reader, &sender) {
                Ok(()) => DumpStep::Ended(Ok(DumpTotals { ended: clock::now(), ..reader.totals })),
                Err(Stop::Failed(error)) => DumpStep::Ended(Err(error)),
                Err(Stop::Unwanted) => return,
            };
            // It fails where the dump was dropped, and then nobody wants to know.
            let _ = sender.blocking_send(step);
        };
        thread::Builder::new().name("dump".into()).spawn(read)?;
        Ok(Self { steps, timeout, deadline })
    }

    /// The next step. Safe to cancel.
    pub async fn next(&mut self) -> DumpStep {
        match timeout_at(self.deadline, self.steps.recv()).await {
            Ok(Some(step)) => step,
            Ok(None) => DumpStep::Ended(Err(DumpError::BrokeOff)),
            Err(_) => DumpStep::Ended(Err(DumpError::TimedOut(self.timeout))),
        }
    }
}

/// Reads the neighbour entries by which the node answers for others, at once. It takes as long as the
/// kernel does.
pub(super) fn proxies(options: DumpOptions) -> Result<BTreeSet<Neighbour>, DumpError> {
    let mut reader = Reader::open(options)?;
    let mut all = BTreeSet::new();
    for section in &Section::PROXIES {
        let read = reader.read(section, &mut |state| {
            if let KernelState::Neighbour(neighbour) = state {
                all.insert(neighbour);
            }
            Ok(())
        });
        match read {
            Ok(()) => {}
            Err(Stop::Failed(error)) => return Err(error),
            Err(Stop::Unwanted) => return Err(DumpError::BrokeOff),
        }
    }
    Ok(all)
}

/// Reads all tables, and hands them over in batches.
fn read_all(reader: &mut Reader, sender: &mpsc::Sender<DumpStep>) -> Result<(), Stop> {
    let mut batch = Vec::with_capacity(BATCH);
    let hand_over = |batch: &mut Vec<KernelState>| {
        let full = std::mem::replace(batch, Vec::with_capacity(BATCH));
        sender.blocking_send(DumpStep::Part(full)).map_err(|_| Stop::Unwanted)
    };
    for section in &Section::ALL {
        reader.read(section, &mut |state| {
            batch.push(state);
            if batch.len() < BATCH { Ok(()) } else { hand_over(&mut batch) }
        })?;
    }
    if batch.is_empty() { Ok(()) } else { hand_over(&mut batch) }
}
