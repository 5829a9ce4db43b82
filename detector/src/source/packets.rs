//! Packets on pods' interfaces and uplinks: loads the programs that count them, hangs them on the
//! interfaces as those come and go, and reads what they have counted.
//!
//! Nothing is pinned. Filters are left behind by a crash; they do no harm, since they change and decide
//! nothing, and the next start takes them away.

mod counts;
mod error;
mod hooks;
mod sources;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::ops::Bound;
use std::time::{Duration, Instant};

use aya::maps::{MapData, PerCpuArray, RingBuf};
use aya::{Ebpf, include_bytes_aligned};
use detector_core::link::Link;
use detector_core::observation::{KernelChange, KernelState};
use detector_core::route::{IfIndex, Prefix};
use detector_core::settings::Settings;
use detector_core::traffic::{Pretended, Traffic};
use detector_ebpf::traffic::Oddity;
use netlink_sys::protocols::NETLINK_ROUTE;
use tokio::io::unix::AsyncFd;
use tracing::{debug, warn};

use self::counts::Counts;
pub use self::error::PacketsError;
pub use self::hooks::Hooks;
use self::hooks::{Hung, Place};
use self::sources::Sources;
use crate::source::questions::Questions;
use crate::source::witness::{Memory, loader};

static PROGRAMS: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/detector-packets"));

/// How much longer the maps are left alone than it took to read them: of one core it is 2 %.
const PAUSE: u32 = 50;

/// Interfaces that are looked at again at once, each second.
const AT_ONCE: usize = 16;

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
    hung: BTreeMap<IfIndex, Hung>,
    refused: BTreeSet<IfIndex>,
    hooks: Hooks,
    questions: Questions,
    /// The interface that was looked at last by [`Packets::verify`], and those that are looked at first.
    verified: Option<IfIndex>,
    unverified: BTreeSet<IfIndex>,
    rehung: u64,
    ebpf: Ebpf,
    counts: Counts,
    sources: Sources,
    odd: PerCpuArray<MapData, u64>,
    bell: AsyncFd<RingBuf<MapData>>,
    unwatched: u64,
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
            loader().load(PROGRAMS).map_err(|error| PacketsError::load(&error, memory))?;
        hooks::load(&mut ebpf).map_err(|error| PacketsError::load(&error.into(), memory))?;
        let ring = RingBuf::try_from(take(&mut ebpf, "BELL")?)
            .map_err(|error| PacketsError::map(&error))?;
        // SAFETY: the ring owns the descriptor that it gives, and never replaces it.
        let bell =
            unsafe { AsyncFd::register(ring) }.map_err(|error| PacketsError::Bell(error.into()))?;
        let odd = take(&mut ebpf, "ODD")?.try_into().map_err(|error| PacketsError::map(&error))?;
        Ok(Self {
            hung: BTreeMap::new(),
            refused: BTreeSet::new(),
            hooks: hooks.of_this_kernel(),
            questions: Questions::open(NETLINK_ROUTE).map_err(PacketsError::Questions)?,
            verified: None,
            unverified: BTreeSet::new(),
            rehung: 0,
            counts: Counts::take(&mut ebpf)?,
            sources: Sources::take(&mut ebpf)?,
            odd,
            bell,
            unwatched: 0,
            rested: Instant::now(),
            ebpf,
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

    /// All that was counted for a watched address; `None` where it is not watched.
    pub fn traffic(&mut self, address: IpAddr) -> Option<Traffic> {
        self.counts.traffic(address)
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
        let at = |place| self.hung.values().filter(|hung| hung.place == place).count();
        PacketCounters {
            pods: at(Place::Pod),
            uplinks: at(Place::Uplink),
            refused: self.refused.len(),
            rehung: self.rehung,
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
        for index in self.hung.keys().copied().filter(gone).collect::<Vec<_>>() {
            self.gone(index);
        }
    }

    /// Looks at some of the interfaces again, in turn: whether their programs still hang there, before
    /// those of others. Where they do not, they are hung again.
    pub fn verify(&mut self) {
        let after = self.verified.map_or(Bound::Unbounded, Bound::Excluded);
        let others = self.hung.range((after, Bound::Unbounded)).map(|(index, _)| *index);
        let others: Vec<IfIndex> = others.take(AT_ONCE).collect();
        self.verified = others.last().copied().filter(|_| others.len() == AT_ONCE);
        let first = std::iter::from_fn(|| self.unverified.pop_first()).take(AT_ONCE);
        for index in first.chain(others).collect::<BTreeSet<_>>() {
            let Some(hung) = self.hung.get(&index) else { continue };
            let (link, place) = (hung.link.clone(), hung.place);
            match hooks::trouble(&mut self.ebpf, &mut self.questions, self.hooks, hung) {
                Ok(None) => {}
                Ok(Some(why)) => {
                    self.rehung += 1;
                    if self.rehung.is_power_of_two() {
                        let (interface, times) = (&link.name, self.rehung);
                        warn!(%interface, why, times, "a packet program is hung anew");
                    }
                    self.unhang(index);
                    self.hang(&link, place, false);
                }
                // It is gone, which is told elsewhere, or renamed, and is looked at by its new name.
                Err(error) => debug!(interface = %link.name, %error, "cannot be looked at"),
            }
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
        let former = self.hung.get(&link.index).map(|hung| hung.place);
        let place = Place::of(settings, link, former);
        if place == former {
            if let Some(hung) = self.hung.get_mut(&link.index) {
                hung.link.name = link.name.clone();
            }
            return;
        }
        self.unhang(link.index);
        if let Some(place) = place {
            self.hang(link, place, is_new);
        }
    }

    fn hang(&mut self, link: &Link, place: Place, is_new: bool) {
        let Self { ebpf, questions, hooks, .. } = self;
        match hooks::hang(ebpf, questions, *hooks, (link, is_new), place) {
            Ok(hung) => {
                debug!(interface = %link.name, place = place.as_str(), "packets are watched");
                self.refused.remove(&link.index);
                if is_new {
                    self.unverified.insert(link.index);
                }
                self.hung.insert(link.index, hung);
            }
            // It has gone in the meantime, which is told next.
            Err(error) if error.is_gone() => {}
            Err(error) => {
                if self.refused.insert(link.index) {
                    warn!(
                        interface = %link.name,
                        %error,
                        "degraded: the packets of an interface are not watched"
                    );
                }
            }
        }
    }

    fn gone(&mut self, index: IfIndex) {
        if let Some(hung) = self.hung.remove(&index) {
            hooks::forget(&mut self.ebpf, hung);
        }
        self.unverified.remove(&index);
        self.refused.remove(&index);
        // Where it fails, nothing was there.
        let _ = self.sources.set(index, &[]);
    }

    fn unhang(&mut self, index: IfIndex) {
        if let Some(hung) = self.hung.remove(&index) {
            hooks::unhang(&mut self.ebpf, hung);
        }
    }
}

fn take(ebpf: &mut Ebpf, name: &'static str) -> Result<aya::maps::Map, PacketsError> {
    ebpf.take_map(name).ok_or(PacketsError::NoMap(name))
}
