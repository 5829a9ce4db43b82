//! The witness in the kernel: loads the eBPF program, attaches it to a netlink socket, reads what
//! it writes.
//!
//! Nothing is pinned and nothing outlives the agent: the program hangs on the socket, the maps on
//! the program, and all of it on file descriptors of this process.

mod error;
mod listener;

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use aya::maps::{HashMap, Map, MapData, PerCpuArray, RingBuf};
use aya::programs::{ProgramError, SocketFilter};
use aya::{Ebpf, EbpfLoader, include_bytes_aligned};
use aya_log::EbpfLogger;
use detector_core::route::IfIndex;
use detector_ebpf::{Counter, Header, MESSAGE, Record, RecordError};
use tracing::{debug, warn};

pub use self::error::WitnessError;
pub(in crate::source) use self::error::{Memory, one_line, refusal};
pub use self::listener::GROUPS;
use self::listener::Listener;
use super::loader;
use super::writer::{Ground, Tracing, WriterOptions, WriterSight, Writers};
use crate::config::Hook;

static PROGRAMS: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/detector-programs"));

/// The netlink port of the kernel.
const KERNEL: u32 = 0;

/// What became of what the kernel sent: `seen` is the sum of the four after it. None ever goes back.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    /// Messages that the kernel sent.
    pub seen: u64,
    /// Of those, records that were written to the ring.
    pub written: u64,
    /// Of those, messages that cannot matter.
    pub filtered: u64,
    /// Of those, messages for which the ring had no room, and those that the kernel had no memory
    /// to show to the program.
    pub lost: u64,
    /// Of those, messages that could not be read.
    pub unparsed: u64,
    /// Of those written, the ones that were cut short.
    pub truncated: u64,
    /// Refused writes of routes that were recorded, beside all messages.
    pub refusals: u64,
    /// Refused writes for which the ring had no room.
    pub refusals_lost: u64,
}

/// The loaded program and its maps.
pub struct Witness {
    ring: RingBuf<MapData>,
    counts: PerCpuArray<MapData, u64>,
    uplinks: HashMap<MapData, u32, u8>,
    logger: Option<EbpfLogger<&'static dyn log::Log>>,
    /// Whether the sender in the records is to be believed.
    knows_senders: bool,
    /// Records that the trial of the senders caused, and read.
    own: u64,
    /// Records that were passed over.
    foreign: u64,
    tracing: Traced,
    // Dropped last: with the socket goes the program.
    listener: Listener,
}

/// What comes of tracing. A thread of its own hangs what traces: the kernel patches its code for it, and
/// waits for all who may be in it, which takes seconds on some, and nobody must wait for that.
struct Traced {
    told: Receiver<(Tracing, WriterSight)>,
    /// What is hung, as long as the witness lives.
    hung: Option<Tracing>,
}

// === impl Witness ===

impl Witness {
    /// Loads the program with a ring of so many bytes, a power of two, and attaches it. From then
    /// on every change is recorded. With it come those who write ([`Writers`]).
    pub fn attach(
        ring_bytes: u32,
        options: &WriterOptions,
    ) -> Result<(Self, Writers), WitnessError> {
        if options.refused.has(Hook::Route) {
            return Err(WitnessError::Drill);
        }
        let memory = Memory::unlock();
        let ground = Ground::survey(options);
        let tell = |loader: &mut EbpfLoader<'static>, must_exist| {
            ground.tell(loader, must_exist);
            loader.map_max_entries("RECORDS", ring_bytes);
        };
        let mut ebpf =
            loader::load_with(PROGRAMS, tell).map_err(|error| refusal(&error, memory))?;
        let logger = EbpfLogger::init(&mut ebpf)
            .inspect_err(|error| debug!(%error, "the program's own log is not read"))
            .ok();
        let listener = Listener::open()?;
        let sees = match attach_program(&mut ebpf, "route", &listener) {
            Ok(()) => Ok(()),
            Err(error) => {
                let error = one_line(&error);
                debug!(error, "the program may not look at who sends a message");
                attach_program(&mut ebpf, "route_blind_to_sender", &listener)
                    .map_err(|error| refusal(&error.into(), memory))?;
                Err(error)
            }
        };
        let writers = Writers::by_record(take(&mut ebpf, "PATHS")?).map_err(|e| map_error(&e))?;
        let (tell, told) = channel();
        let mut witness = Self {
            ring: RingBuf::try_from(take(&mut ebpf, "RECORDS")?).map_err(|e| map_error(&e))?,
            counts: PerCpuArray::try_from(take(&mut ebpf, "COUNTS")?).map_err(|e| map_error(&e))?,
            uplinks: HashMap::try_from(take(&mut ebpf, "UPLINKS")?).map_err(|e| map_error(&e))?,
            logger,
            knows_senders: false,
            own: 0,
            foreign: 0,
            tracing: Traced { told, hung: None },
            listener,
        };
        witness.knows_senders = sees.is_ok() && witness.try_senders()?;
        if !witness.knows_senders {
            warn!(
                "on this kernel the eBPF program cannot tell the kernel's messages from those that \
                 others with the capability NET_ADMIN send in its name"
            );
        }
        // The groups come last: not one message reaches the socket but through the program, and the
        // trial had the socket for itself.
        witness.listener.join()?;
        let (options, blind) = (options.clone(), sees.err());
        let trace = move || {
            let traced = ground.trace(&mut ebpf, &options, blind.as_ref());
            // The witness may be gone, and with this goes what was hung.
            let _ = tell.send(traced);
        };
        thread::Builder::new().name("tracing".into()).spawn(trace).map_err(WitnessError::Thread)?;
        Ok((witness, writers))
    }

    /// Reads the next record of a message of the kernel's, if there is one.
    pub fn next<R>(
        &mut self,
        read: impl FnOnce(Result<Record<'_>, RecordError>) -> R,
    ) -> Option<R> {
        loop {
            let entry = self.ring.next()?;
            match Header::parse(&entry) {
                Ok((Header { sender, kind: MESSAGE, .. }, _))
                    if self.knows_senders && sender != KERNEL =>
                {
                    self.foreign += 1;
                    // However many there are, their log stays short.
                    if self.foreign.is_power_of_two() {
                        let messages = self.foreign;
                        warn!(
                            sender,
                            messages,
                            "somebody else than the kernel sends its notifications: ignored"
                        );
                    }
                }
                _ => return Some(read(Record::parse(&entry))),
            }
        }
    }

    /// Whether the program sees who sends: a message of another socket of ours has that socket's
    /// port, and the kernel's answer has the kernel's.
    fn try_senders(&mut self) -> Result<bool, WitnessError> {
        let other = Listener::open()?;
        let sent = other
            .send_nothing(self.listener.port)
            .and_then(|()| self.listener.send_nothing(KERNEL));
        let mut senders = Vec::new();
        while let Some(entry) = self.ring.next() {
            match Header::parse(&entry) {
                // Writes are refused at any time.
                Ok((header, _)) if header.kind != MESSAGE => {}
                parsed => senders.push(parsed.map(|(header, _)| header.sender)),
            }
        }
        self.own = senders.len() as u64;
        debug!(?sent, ?senders, port = other.port, "who sends was tried out");
        Ok(sent.is_ok() && senders == [Ok(other.port), Ok(KERNEL)])
    }

    /// Tells the program which interfaces carry the node's own traffic.
    pub fn set_uplinks(&mut self, uplinks: &[IfIndex]) -> io::Result<()> {
        let wanted: Vec<u32> = uplinks.iter().map(|index| index.get()).collect();
        let known: Vec<u32> = self.uplinks.keys().filter_map(Result::ok).collect();
        for gone in known.iter().filter(|index| !wanted.contains(index)) {
            self.uplinks.remove(gone).map_err(io::Error::other)?;
        }
        for new in wanted.iter().filter(|index| !known.contains(index)) {
            self.uplinks.insert(new, 1, 0).map_err(io::Error::other)?;
        }
        Ok(())
    }

    /// What the program has counted so far.
    pub fn counts(&self) -> io::Result<Counts> {
        // What was recorded of our own trials, and of what others sent, was no message of the kernel's.
        // A record is there before it is counted.
        let written = self.count(Counter::Written)?.saturating_sub(self.own + self.foreign);
        let filtered = self.count(Counter::Filtered)? + self.foreign;
        let lost = self.lost()?;
        let unparsed = self.count(Counter::Unparsed)?;
        Ok(Counts {
            seen: written + filtered + lost + unparsed,
            written,
            filtered,
            lost,
            unparsed,
            truncated: self.count(Counter::Truncated)?,
            refusals: self.count(Counter::Refusals)?,
            refusals_lost: self.count(Counter::RefusalsLost)?,
        })
    }

    /// What is known of who writes, as soon as it is known whether functions can be traced; once.
    pub fn sight(&mut self) -> Option<WriterSight> {
        let (tracing, sight) = self.tracing.told.try_recv().ok()?;
        self.tracing.hung = Some(tracing);
        Some(sight)
    }

    /// The same, waited for; `None` where it was told already.
    pub fn await_sight(&mut self) -> Option<WriterSight> {
        let (tracing, sight) = self.tracing.told.recv().ok()?;
        self.tracing.hung = Some(tracing);
        Some(sight)
    }

    /// [`Counts::lost`] alone, for those who ask often: each count is a system call.
    pub fn lost(&self) -> io::Result<u64> {
        Ok(self.count(Counter::Lost)? + self.listener.drops()?)
    }

    fn count(&self, counter: Counter) -> io::Result<u64> {
        let per_cpu = self.counts.get(&(counter as u32), 0).map_err(io::Error::other)?;
        Ok(per_cpu.iter().sum())
    }

    /// Whether the kernel's own messages can be told from those that others send in its name.
    pub fn knows_senders(&self) -> bool {
        self.knows_senders
    }

    /// How many records were passed over since the kernel had not sent them: somebody who may is
    /// trying to deceive those who listen to the kernel.
    pub fn foreign(&self) -> u64 {
        self.foreign
    }

    /// Hands what the program itself has to say to the log.
    pub fn flush_log(&mut self) {
        if let Some(logger) = &mut self.logger {
            logger.flush();
        }
    }
}

impl AsFd for Witness {
    /// The ring's descriptor: readable while there are records.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ring.as_fd()
    }
}

impl AsRawFd for Witness {
    /// The ring's descriptor: readable while there are records.
    fn as_raw_fd(&self) -> RawFd {
        self.ring.as_raw_fd()
    }
}

fn attach_program(
    ebpf: &mut Ebpf,
    name: &'static str,
    listener: &Listener,
) -> Result<(), ProgramError> {
    let program = ebpf.program_mut(name).ok_or(ProgramError::NotLoaded)?;
    let program: &mut SocketFilter = program.try_into()?;
    program.load()?;
    program.attach(listener)
}

fn take(ebpf: &mut Ebpf, name: &str) -> Result<Map, WitnessError> {
    ebpf.take_map(name)
        .ok_or_else(|| WitnessError::Program(format!("the object has no map {name}")))
}

fn map_error(error: &aya::maps::MapError) -> WitnessError {
    WitnessError::Program(one_line(error))
}
