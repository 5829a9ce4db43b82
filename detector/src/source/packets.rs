//! Packets on pods' interfaces and uplinks: loads the programs that count them, hangs them on the
//! interfaces as those come and go, and reads what they have counted.
//!
//! Nothing is pinned. Filters are left behind by a crash; they do no harm, since they change and decide
//! nothing, and the next start takes them away.

mod counts;
mod error;
mod hooks;
mod sources;
mod worker;

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use aya::maps::{MapData, PerCpuArray, RingBuf};
use aya::{Ebpf, include_bytes_aligned};
use detector_core::link::{InterfaceName, Link};
use detector_core::observation::{KernelChange, KernelState};
use detector_core::route::{IfIndex, Prefix};
use detector_core::settings::Settings;
use detector_core::traffic::{Pretended, Traffic};
use detector_ebpf::traffic::Oddity;
use netlink_sys::protocols::NETLINK_ROUTE;
use tokio::io::unix::AsyncFd;
use tracing::warn;

use self::counts::Counts;
pub use self::error::PacketsError;
pub use self::hooks::Hooks;
use self::hooks::{Place, Rig};
use self::sources::Sources;
use self::worker::{Done, Worker};
use crate::source::loader;
use crate::source::questions::Questions;
use crate::source::witness::Memory;

static PROGRAMS: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/detector-packets"));

/// How much longer the maps are left alone than it took to read them: of one core it is 2 %.
const PAUSE: u32 = 50;

/// How long programs that count are left where they hang when no address is watched any more.
const LINGER: Duration = Duration::from_mins(1);

/// What the programs and the agent could not do, and how much there is to see.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PacketCounters {
    /// Interfaces of pods that are watched.
    pub pods: usize,
    /// Uplinks that are watched.
    pub uplinks: usize,
    /// Interfaces that the programs could not be hung on.
    pub refused: usize,
    /// How often programs were hung again since somebody had taken them away or come before them.
    pub rehung: u64,
    /// Addresses that are watched.
    pub watched: usize,
    /// Addresses for which there was no room.
    pub unwatched: u64,
    /// Packets that were counted, but not flow by flow.
    pub not_apart: u64,
    /// Packets for watched addresses that were not counted.
    pub uncounted: u64,
    /// Packets that pretended, for which there was no room.
    pub pretence_lost: u64,
    /// Packets that could not be read.
    pub unread: u64,
}

/// The loaded programs, what they hang on, and their maps.
pub struct Packets {
    worker: Worker,
    hooks: Hooks,
    /// As what each interface is watched, or will be in a moment.
    places: BTreeMap<IfIndex, (Place, InterfaceName)>,
    counts: Counts,
    sources: Sources,
    odd: PerCpuArray<MapData, u64>,
    bell: AsyncFd<RingBuf<MapData>>,
    unwatched: u64,
    /// How often addresses began to be watched where none was, and whether that lasts.
    watching: (u64, bool),
    /// Since when none is.
    idle: Option<Instant>,
    /// When the maps are read again at the earliest.
    rested: Instant,
}

// === impl Packets ===

impl Packets {
    /// Loads the programs. They count in the network namespace of the calling thread.
    ///
    /// # Panics
    /// Outside a tokio runtime with I/O.
    pub fn load(hooks: Hooks) -> Result<Self, PacketsError> {
        let memory = Memory::unlock();
        let mut ebpf =
            loader::load(PROGRAMS).map_err(|error| PacketsError::load(&error, memory))?;
        hooks::load(&mut ebpf).map_err(|error| PacketsError::load(&error.into(), memory))?;
        let ring = RingBuf::try_from(take(&mut ebpf, "BELL")?)
            .map_err(|error| PacketsError::map(&error))?;
        // SAFETY: the ring owns the descriptor that it gives, and never replaces it.
        let bell =
            unsafe { AsyncFd::register(ring) }.map_err(|error| PacketsError::Bell(error.into()))?;
        let odd = take(&mut ebpf, "ODD")?.try_into().map_err(|error| PacketsError::map(&error))?;
        let (counts, sources) = (Counts::take(&mut ebpf)?, Sources::take(&mut ebpf)?);
        let hooks = hooks.of_this_kernel();
        let questions = Questions::open(NETLINK_ROUTE).map_err(PacketsError::Questions)?;
        let worker =
            Worker::start(Rig::new(ebpf, questions, hooks)).map_err(PacketsError::Thread)?;
        Ok(Self {
            worker,
            hooks,
            places: BTreeMap::new(),
            counts,
            sources,
            odd,
            bell,
            unwatched: 0,
            watching: (0, false),
            idle: None,
            rested: Instant::now(),
        })
    }

    /// How the programs are hung on interfaces.
    pub fn hooks(&self) -> Hooks {
        self.hooks
    }

    /// Follows a change of interfaces; what is wrong with one of them is told once.
    pub fn follow(&mut self, settings: &Settings, change: &KernelChange) {
        match change {
            KernelChange::Link(link) => self.link(settings, link, true),
            KernelChange::LinkGone(index) => self.gone(*index),
            _ => {}
        }
    }

    /// Takes an interface that a dump shows.
    pub fn follow_state(&mut self, settings: &Settings, state: &KernelState) {
        if let KernelState::Link(link) = state {
            self.link(settings, link, false);
        }
    }

    /// Counts packets for an address from now on. False where there is no room for it.
    pub fn watch(&mut self, address: IpAddr) -> bool {
        let watched = self.counts.watch(address);
        self.idle = None;
        if !self.watching.1 {
            self.watching = (self.watching.0 + 1, true);
            self.worker.watching(Some(self.watching.0));
        }
        if let Err(error) = &watched {
            self.unwatched += 1;
            if self.unwatched.is_power_of_two() {
                warn!(%address, %error, "degraded: there is no room to count an address's packets");
            }
        }
        watched.is_ok()
    }

    /// Counts them no longer.
    pub fn unwatch(&mut self, address: IpAddr) {
        self.counts.unwatch(address);
        if self.counts.watched() == 0 && self.idle.is_none() {
            self.idle = Some(Instant::now());
        }
    }

    /// To be called now and then: takes away what is no longer needed.
    pub fn tend(&mut self) {
        if self.watching.1 && self.idle.is_some_and(|since| since.elapsed() >= LINGER) {
            self.watching.1 = false;
            self.worker.watching(None);
        }
    }

    /// Waits until all interfaces that were told of are watched.
    pub fn settle(&self) {
        self.worker.settle();
    }

    /// Says which source addresses an interface's packets may have; none where nobody knows.
    pub fn sources(&mut self, interface: IfIndex, sources: &[Prefix]) {
        if let Err(error) = self.sources.set(interface, sources) {
            warn!(
                interface = interface.get(),
                %error,
                "degraded: there is no room for an interface's own addresses; nothing is said of its \
                 packets"
            );
        }
    }

    /// All that was counted for a watched address; `None` where it is not watched, or was for so short a
    /// time that nothing counted yet.
    pub fn traffic(&mut self, address: IpAddr) -> Option<Traffic> {
        let counts = self.worker.done().watching == Some(self.watching.0);
        if counts { self.counts.traffic(address) } else { None }
    }

    /// What was counted for each watched address that had packets since the last look.
    pub fn changed(&mut self) -> Vec<Traffic> {
        self.look(|this| this.counts.changed())
    }

    /// What was pretended since the last look.
    pub fn pretended(&mut self) -> Vec<Pretended> {
        self.look(|this| this.counts.pretended())
    }

    /// Waits until there is something new to read. Safe to cancel.
    pub async fn ready(&mut self) -> io::Result<()> {
        loop {
            let mut ready = self.bell.readable_mut().await?;
            let ring = ready.get_inner_mut();
            let mut heard = false;
            while ring.next().is_some() {
                heard = true;
            }
            ready.clear_ready();
            if heard {
                return Ok(());
            }
        }
    }

    /// Whether the maps may be read again: under a flood reading them takes its time.
    pub fn is_rested(&self) -> bool {
        Instant::now() >= self.rested
    }

    /// What could not be done, and how much there is to see.
    pub fn counters(&self) -> PacketCounters {
        let odd = |oddity: Oddity| {
            self.odd.get(&(oddity as u32), 0).map(|counts| counts.iter().sum()).unwrap_or_default()
        };
        let Done { pods, uplinks, refused, rehung, watching: _ } = self.worker.done();
        PacketCounters {
            pods,
            uplinks,
            refused,
            rehung,
            watched: self.counts.watched(),
            unwatched: self.unwatched,
            not_apart: odd(Oddity::NotApart),
            uncounted: odd(Oddity::Uncounted),
            pretence_lost: odd(Oddity::PretenceLost),
            unread: odd(Oddity::Unread),
        }
    }

    /// Forgets interfaces that are gone without anybody having told.
    pub fn sweep(&mut self) {
        let gone = |index: &IfIndex| nix::net::if_::if_indextoname(index.get()).is_err();
        for index in self.places.keys().copied().filter(gone).collect::<Vec<_>>() {
            self.gone(index);
        }
    }

    fn look<T>(&mut self, read: impl FnOnce(&mut Self) -> T) -> T {
        let start = Instant::now();
        let seen = read(self);
        let took = start.elapsed();
        let pause = if took < Duration::from_millis(1) { Duration::ZERO } else { took * PAUSE };
        self.rested = self.rested.max(Instant::now() + pause);
        seen
    }

    fn link(&mut self, settings: &Settings, link: &Link, is_new: bool) {
        let former = self.places.get(&link.index);
        let place = Place::of(settings, link, former.map(|(place, _)| *place));
        match (place, former) {
            (Some(place), Some((former, name))) if place == *former => {
                if *name == link.name {
                    return;
                }
                self.worker.rename(link.index, link.name.clone());
            }
            (Some(place), _) => self.worker.hang(link, place, is_new),
            (None, Some(_)) => self.worker.unhang(link.index),
            (None, None) => return,
        }
        match place {
            Some(place) => self.places.insert(link.index, (place, link.name.clone())),
            None => self.places.remove(&link.index),
        };
    }

    fn gone(&mut self, index: IfIndex) {
        if self.places.remove(&index).is_some() {
            self.worker.gone(index);
        }
        // Where it fails, nothing was there.
        let _ = self.sources.set(index, &[]);
    }
}

fn take(ebpf: &mut Ebpf, name: &'static str) -> Result<aya::maps::Map, PacketsError> {
    ebpf.take_map(name).ok_or(PacketsError::NoMap(name))
}
