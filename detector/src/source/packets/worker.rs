//! The thread that hangs programs on interfaces.
//!
//! What it asks of the kernel waits for a lock that whoever makes interfaces holds as well, and by TCX
//! for all readers of packets: the agent's loop must not.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use std::{io, thread};

use detector_core::link::{InterfaceName, Link};
use detector_core::route::IfIndex;
use tracing::{debug, warn};

use super::hooks::{Hung, Place, Rig};

/// How often some interfaces are looked at again, and how many of each sort at once.
const LOOK: Duration = Duration::from_secs(1);
const AT_ONCE: usize = 16;

/// How often programs are moved to where packets pass at a lower cost, one interface at a time, and how
/// old an interface must be: many end before.
const MOVE: Duration = Duration::from_millis(250);
const SETTLED: Duration = Duration::from_secs(2);

/// What the thread is told.
enum Order {
    /// To hang programs on an interface, which may be new.
    Hang(Link, Place, bool),
    /// An interface has another name.
    Rename(IfIndex, InterfaceName),
    /// To take programs from an interface, which may be gone itself.
    Unhang(IfIndex, bool),
    /// Addresses are watched, for the so-manieth time, or no longer.
    Watching(Option<u64>),
    /// To say so when all before this is done.
    Settle(SyncSender<()>),
}

/// What the thread has done.
#[derive(Clone, Copy, Default)]
pub(super) struct Done {
    /// Interfaces of pods that are watched.
    pub(super) pods: usize,
    /// Uplinks that are watched, or would be.
    pub(super) uplinks: usize,
    /// Interfaces that the programs could not be hung on.
    pub(super) refused: usize,
    /// How often programs were hung again.
    pub(super) rehung: u64,
    /// The last time at which addresses began to be watched, since when all that counts hangs.
    pub(super) watching: Option<u64>,
}

/// The thread. It takes the programs away when this is dropped.
pub(super) struct Worker {
    orders: Option<Sender<Order>>,
    done: Arc<Mutex<Done>>,
    thread: Option<JoinHandle<()>>,
}

// === impl Worker ===

impl Worker {
    /// Starts the thread, in the network namespace of the calling one.
    pub(super) fn start(rig: Rig) -> io::Result<Self> {
        let (orders, ordered) = channel();
        let done = Arc::new(Mutex::new(Done::default()));
        let mut work = Work {
            rig,
            hung: BTreeMap::new(),
            refused: BTreeMap::new(),
            fresh: BTreeSet::new(),
            movable: BTreeSet::new(),
            watching: false,
            looked: None,
            next_look: Instant::now() + LOOK,
            done: Arc::clone(&done),
        };
        let thread =
            thread::Builder::new().name("hooks".into()).spawn(move || work.run(&ordered))?;
        Ok(Self { orders: Some(orders), done, thread: Some(thread) })
    }

    pub(super) fn hang(&self, link: &Link, place: Place, is_new: bool) {
        self.tell(Order::Hang(link.clone(), place, is_new));
    }

    pub(super) fn rename(&self, index: IfIndex, name: InterfaceName) {
        self.tell(Order::Rename(index, name));
    }

    pub(super) fn unhang(&self, index: IfIndex) {
        self.tell(Order::Unhang(index, false));
    }

    pub(super) fn gone(&self, index: IfIndex) {
        self.tell(Order::Unhang(index, true));
    }

    pub(super) fn watching(&self, watching: Option<u64>) {
        self.tell(Order::Watching(watching));
    }

    /// Waits until all that was ordered is done.
    pub(super) fn settle(&self) {
        let (tell, told) = sync_channel(1);
        self.tell(Order::Settle(tell));
        // It fails where the thread has ended, which `tell` has said.
        let _ = told.recv();
    }

    pub(super) fn done(&self) -> Done {
        *self.done.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, order: Order) {
        let told = self.orders.as_ref().map(|orders| orders.send(order));
        if !matches!(told, Some(Ok(()))) {
            warn!("degraded: the thread that watches packets has ended; please report this");
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        drop(self.orders.take());
        if let Some(thread) = self.thread.take() {
            // Where it has panicked, its programs are gone as well.
            let _ = thread.join();
        }
    }
}

/// What the thread has.
struct Work {
    rig: Rig,
    hung: BTreeMap<IfIndex, Hung>,
    /// Interfaces that could not be watched.
    refused: BTreeMap<IfIndex, (Link, Place)>,
    /// Interfaces that are looked at before the others.
    fresh: BTreeSet<IfIndex>,
    /// Interfaces whose programs may have to be moved.
    movable: BTreeSet<IfIndex>,
    watching: bool,
    /// The interface that was looked at last.
    looked: Option<IfIndex>,
    next_look: Instant,
    done: Arc<Mutex<Done>>,
}

// === impl Work ===

impl Work {
    fn run(&mut self, orders: &Receiver<Order>) {
        loop {
            let now = Instant::now();
            let chore = self.next_look.saturating_duration_since(now);
            let chore = if self.may_move() { chore.min(MOVE) } else { chore };
            match orders.recv_timeout(chore) {
                Ok(order) => self.obey(order),
                Err(RecvTimeoutError::Timeout) => self.chores(),
                Err(RecvTimeoutError::Disconnected) => return,
            }
            self.count();
        }
    }

    fn count(&self) {
        let at = |place| self.hung.values().filter(|hung| hung.place == place).count();
        self.note(|done| {
            (done.pods, done.uplinks) = (at(Place::Pod), at(Place::Uplink));
            done.refused = self.refused.len();
        });
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::Hang(link, place, is_new) => self.hang(&link, place, is_new),
            Order::Rename(index, name) => {
                if let Some(hung) = self.hung.get_mut(&index) {
                    hung.link.name = name;
                } else if let Some((link, _)) = self.refused.get_mut(&index) {
                    link.name = name;
                }
            }
            Order::Unhang(index, is_gone) => {
                match self.hung.remove(&index) {
                    Some(hung) if is_gone => self.rig.forget(hung),
                    Some(hung) => self.rig.unhang(hung),
                    None => {}
                }
                self.refused.remove(&index);
                self.fresh.remove(&index);
                self.movable.remove(&index);
            }
            Order::Watching(watching) => {
                self.set_watching(watching.is_some());
                self.note(|done| done.watching = watching);
            }
            Order::Settle(tell) => {
                // It fails where nobody waits any more.
                let _ = tell.send(());
            }
        }
    }

    fn note(&self, what: impl FnOnce(&mut Done)) {
        what(&mut self.done.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Hangs programs on an interface, in the place of those that hang there.
    fn hang(&mut self, link: &Link, place: Place, is_new: bool) {
        if let Some(former) = self.hung.remove(&link.index) {
            self.rig.unhang(former);
        }
        match self.rig.hang(link, place, is_new, self.watching) {
            Ok(hung) => {
                debug!(interface = %link.name, place = place.as_str(), "packets are watched");
                self.refused.remove(&link.index);
                if is_new {
                    self.fresh.insert(link.index);
                }
                self.movable.insert(link.index);
                self.hung.insert(link.index, hung);
            }
            // It has gone in the meantime, which is told next.
            Err(error) if error.is_gone() => {
                self.refused.remove(&link.index);
            }
            Err(error) => {
                if self.refused.insert(link.index, (link.clone(), place)).is_none() {
                    warn!(
                        interface = %link.name,
                        %error,
                        "degraded: the packets of an interface are not watched"
                    );
                }
            }
        }
    }

    /// Uplinks first: there are few, and what comes from outside comes by them.
    fn set_watching(&mut self, watching: bool) {
        self.watching = watching;
        let mut all: Vec<(IfIndex, Place)> =
            self.hung.iter().map(|(index, hung)| (*index, hung.place)).collect();
        all.sort_by_key(|(_, place)| *place == Place::Pod);
        for (index, _) in all {
            let Some(hung) = self.hung.get_mut(&index) else { continue };
            match self.rig.set_watching(hung, watching) {
                Err(error) if !error.is_gone() => {
                    let (link, place) = (hung.link.clone(), hung.place);
                    warn!(
                        interface = %link.name,
                        %error,
                        "degraded: the packets of an interface are not counted"
                    );
                    self.refused.insert(index, (link, place));
                }
                _ => {}
            }
        }
    }

    fn chores(&mut self) {
        if Instant::now() >= self.next_look {
            self.next_look = Instant::now() + LOOK;
            self.look();
        }
        if self.may_move() {
            self.move_one();
        }
    }

    /// Looks at some interfaces again, in turn: whether their programs still hang there, before those of
    /// others. Where they do not, they are hung again. And tries again where it could not be done.
    fn look(&mut self) {
        let after = self.looked.map_or(Bound::Unbounded, Bound::Excluded);
        let others = self.hung.range((after, Bound::Unbounded)).map(|(index, _)| *index);
        let others: Vec<IfIndex> = others.take(AT_ONCE).collect();
        self.looked = others.last().copied().filter(|_| others.len() == AT_ONCE);
        let first: Vec<IfIndex> =
            std::iter::from_fn(|| self.fresh.pop_first()).take(AT_ONCE).collect();
        for index in first.into_iter().chain(others).collect::<BTreeSet<_>>() {
            let Some(hung) = self.hung.get(&index) else { continue };
            match self.rig.trouble(hung) {
                Ok(None) => {}
                Ok(Some(why)) => self.hang_anew(index, why),
                // It is gone, which is told elsewhere, or renamed, and is looked at by its new name.
                Err(error) => {
                    debug!(interface = %hung.link.name, %error, "cannot be looked at");
                }
            }
        }
        let refused: Vec<_> = self.refused.values().take(AT_ONCE).cloned().collect();
        for (link, place) in refused {
            self.hang(&link, place, false);
        }
    }

    fn hang_anew(&mut self, index: IfIndex, why: &str) {
        let Some(hung) = self.hung.get(&index) else { return };
        let (link, place) = (hung.link.clone(), hung.place);
        self.hang(&link, place, false);
        let mut times = 0;
        self.note(|done| {
            done.rehung += 1;
            times = done.rehung;
        });
        if times.is_power_of_two() {
            warn!(interface = %link.name, why, times, "a packet program is hung anew");
        }
    }

    /// Not while packets are counted: each of those that pass meanwhile would count twice.
    fn may_move(&self) -> bool {
        !self.watching && !self.movable.is_empty()
    }

    fn move_one(&mut self) {
        let is_settled = |index: &IfIndex| {
            self.hung.get(index).is_none_or(|hung| hung.since.elapsed() >= SETTLED)
        };
        let Some(index) = self.movable.iter().copied().find(is_settled) else { return };
        self.movable.remove(&index);
        let Some(hung) = self.hung.get_mut(&index) else { return };
        if let Err(error) = self.rig.move_to_tcx(hung) {
            debug!(interface = %hung.link.name, %error, "its packets cost more than they need to");
        }
    }
}
