//! What happens when: the lives of pods as kubelet, the CNI plugin, IPAM, Felix and BIRD make them
//! (order and timing of Calico's own code), and the days of those who make them.

use std::net::IpAddr;
use std::ops::Range;

use detector_core::workload::PodKey;
use fastrand::Rng;

use super::Theme;
use super::attack::{self, Kind};

/// Microseconds since the story began.
pub(super) type Micros = u64;

/// A millisecond.
pub(super) const MS: Micros = 1_000;
/// A second.
pub(super) const SECOND: Micros = 1_000 * MS;

/// The pod that attacks, where one does.
pub(super) const EVIL: usize = 0;
/// A pod of the same node that stays.
pub(super) const NEAR: usize = 1;
/// A pod of another node that stays.
pub(super) const FAR: usize = 2;

/// When an attack begins: those that stay have settled by then, whatever was late.
const ATTACK: Range<Micros> = 150 * SECOND..200 * SECOND;

/// A pod, from its plan to its end.
#[derive(Clone, Debug)]
pub(super) struct Life {
    pub(super) key: PodKey,
    /// The number of its node.
    pub(super) node: usize,
    pub(super) account: &'static str,
    /// The address that IPAM gave it, while it has it.
    pub(super) address: Option<IpAddr>,
    /// Whether its address is from the block of the agent's node though it runs elsewhere.
    pub(super) borrows: bool,
    /// How often its sandbox was made.
    pub(super) sandboxes: u32,
}

/// Something that happens to a life, or to the node.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Act {
    Schedule(usize),
    Allocate(usize),
    LinkUp(usize),
    CniRoute(usize),
    FelixRoute(usize),
    Annotate(usize),
    Status(usize),
    Finish(usize),
    Terminate(usize),
    EmptyAnnotation(usize),
    LinkGone(usize),
    Release(usize),
    Gone(usize),
    /// BIRD hears of a borrowed address, or of its end.
    BirdRoute(usize),
    BirdGone(usize),
    BirdAnew(usize),
    /// An approved floating IP.
    FloatingIp(usize),
    FloatingRoute(usize),
    /// A live migration of the first to the second.
    Heir(usize, usize),
    Inherit(usize, usize),
    FelixStops,
    FelixStarts,
    KubeletStarts,
    Resync,
    /// The agent dies and starts again.
    Restart,
    Attack(attack::Step),
}

/// How Felix treats the CNI plugin's route.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Felix {
    /// It finds it right.
    Leaves,
    /// Version 3.32 and later: it takes it away and makes one with metric 1024.
    Moves,
}

/// All that will happen.
pub(super) struct Plan {
    pub(super) lives: Vec<Life>,
    pub(super) acts: Vec<(Micros, Act)>,
    pub(super) felix: Felix,
    /// When the agent first starts.
    pub(super) agent: Micros,
    /// The API server is not to be had.
    pub(super) outages: Vec<Range<Micros>>,
    /// The watch tells nothing, though it stands.
    pub(super) silences: Vec<Range<Micros>>,
    pub(super) attack: Option<attack::Attack>,
    pub(super) end: Micros,
    /// Legitimate lives that were begun.
    pub(super) lifecycles: u64,
}

struct Planner<'r> {
    rng: &'r mut Rng,
    lives: Vec<Life>,
    acts: Vec<(Micros, Act)>,
    lifecycles: u64,
}

/// Makes a plan.
pub(super) fn plan(rng: &mut Rng, theme: Theme) -> Plan {
    let felix = if rng.bool() { Felix::Leaves } else { Felix::Moves };
    let mut planner = Planner { rng, lives: Vec::new(), acts: Vec::new(), lifecycles: 0 };
    let attack = match theme {
        Theme::Peace => None,
        Theme::Attack(kind) => Some(planner.attack(kind)),
    };
    let others = planner.rng.usize(6..20);
    for _ in 0..others {
        let start = planner.rng.u64(0..240 * SECOND);
        planner.random_life(start);
    }
    planner.migrate();
    planner.day();
    let agent = planner.rng.u64(0..120 * SECOND);
    let quiet = |rng: &mut Rng, most: Micros| {
        let from = rng.u64(agent..280 * SECOND);
        from..from + rng.u64(100 * MS..most)
    };
    let outages =
        if planner.rng.u8(0..4) == 0 { vec![quiet(planner.rng, 90 * SECOND)] } else { Vec::new() };
    let silences =
        if planner.rng.u8(0..3) == 0 { vec![quiet(planner.rng, 20 * SECOND)] } else { Vec::new() };
    let Planner { lives, acts, lifecycles, .. } = planner;
    Plan { lives, acts, felix, agent, outages, silences, attack, end: 640 * SECOND, lifecycles }
}

// === impl Planner ===

impl Planner<'_> {
    fn at(&mut self, time: Micros, act: Act) {
        self.acts.push((time, act));
    }

    /// Later, by a random time of the range.
    fn after(&mut self, time: Micros, by: Range<Micros>) -> Micros {
        time + self.rng.u64(by)
    }

    fn life(&mut self, name: &str, node: usize, account: &'static str) -> usize {
        let key = PodKey::new("shop", name).expect("a key");
        let (address, borrows, sandboxes) = (None, false, 0);
        self.lives.push(Life { key, node, account, address, borrows, sandboxes });
        self.lives.len() - 1
    }

    fn attack(&mut self, kind: Kind) -> attack::Attack {
        let evil = self.life("evil", 0, "default");
        let near = self.life("near", 0, "default");
        let far = self.life("far", 1, "default");
        debug_assert_eq!((evil, near, far), (EVIL, NEAR, FAR));
        for life in [evil, near, far] {
            let start = self.rng.u64(0..5 * SECOND);
            if !(life == evil && kind.makes_its_pod()) {
                self.create(life, start);
                self.lifecycles += 1;
            }
        }
        let time = self.rng.u64(ATTACK);
        attack::plan(self.rng, kind, time, &mut self.acts)
    }

    /// A life of a random kind.
    fn random_life(&mut self, start: Micros) {
        let number = self.lives.len();
        let account = if self.rng.u8(0..6) == 0 { "vip" } else { "default" };
        let node = if self.rng.u8(0..4) == 0 { self.rng.usize(1..3) } else { 0 };
        let life = self.life(&format!("pod-{number}"), node, account);
        self.lives[life].borrows = node != 0 && self.rng.bool();
        let up = self.create(life, start);
        self.lifecycles += 1;
        let end = match self.rng.u8(0..4) {
            // It stays.
            0 => return,
            1 => self.after(up, 0..5 * SECOND),
            _ => self.after(up, SECOND..120 * SECOND),
        };
        let mut end = end;
        if node == 0 && self.rng.u8(0..6) == 0 {
            end = self.new_sandbox(life, end);
        }
        let gone = match self.rng.u8(0..4) {
            0 => self.force_delete(life, end),
            1 => self.finish(life, end),
            _ => self.delete(life, end),
        };
        if self.rng.u8(0..3) == 0 {
            self.again(life, gone);
        }
    }

    /// The next pod of the same name, as a `StatefulSet` makes it.
    fn again(&mut self, life: usize, gone: Micros) {
        let Life { key, node, account, .. } = self.lives[life].clone();
        let node = if self.rng.u8(0..5) == 0 { (node + 1) % 3 } else { node };
        let (address, borrows, sandboxes) = (None, false, 0);
        self.lives.push(Life { key, node, account, address, borrows, sandboxes });
        let next = self.lives.len() - 1;
        let start = self.after(gone, 10 * MS..800 * MS);
        let up = self.create(next, start);
        self.lifecycles += 1;
        if self.rng.bool() {
            let end = self.after(up, SECOND..60 * SECOND);
            self.delete(next, end);
        }
    }

    /// Gives when the pod is up.
    fn create(&mut self, life: usize, start: Micros) -> Micros {
        self.at(start, Act::Schedule(life));
        let scheduled = self.after(start, 5 * MS..400 * MS);
        self.set_up(life, scheduled)
    }

    /// What the CNI plugin, Felix and the kubelet do, in this order.
    fn set_up(&mut self, life: usize, start: Micros) -> Micros {
        self.at(start, Act::Allocate(life));
        let mut time = start;
        if self.lives[life].node == 0 {
            time = self.after(time, MS..40 * MS);
            self.at(time, Act::LinkUp(life));
            time = self.after(time, 0..10 * MS);
            self.at(time, Act::CniRoute(life));
            let annotated = self.after(time, MS..40 * MS);
            self.at(annotated, Act::Annotate(life));
            let felix = self.after(annotated, MS..300 * MS);
            self.at(felix, Act::FelixRoute(life));
        } else {
            time = self.after(time, MS..100 * MS);
            self.at(time, Act::Annotate(life));
            let bird = self.after(time, 0..2 * SECOND);
            self.at(bird, Act::BirdRoute(life));
            if self.rng.u8(0..4) == 0 {
                for n in 1..5 {
                    self.at(bird + n * SECOND, Act::BirdAnew(life));
                }
            }
        }
        let status = match self.rng.u8(0..8) {
            // Images to be pulled, hooks that hang.
            0 => self.after(time, 5 * SECOND..60 * SECOND),
            _ => self.after(time, 50 * MS..3 * SECOND),
        };
        self.at(status, Act::Status(life));
        if self.lives[life].account == "vip" && self.lives[life].node == 0 {
            let floating = self.after(status, 0..5 * SECOND);
            self.at(floating, Act::FloatingIp(life));
            let route = self.after(floating, MS..200 * MS);
            self.at(route, Act::FloatingRoute(life));
        }
        status
    }

    /// The CNI plugin's part of an end.
    fn tear_down(&mut self, life: usize, start: Micros) -> Micros {
        self.at(start, Act::EmptyAnnotation(life));
        let link = self.after(start, MS..40 * MS);
        self.at(link, Act::LinkGone(life));
        let release = self.after(link, MS..60 * MS);
        self.at(release, Act::Release(life));
        let withdrawn = self.after(release, 0..4 * SECOND);
        self.at(withdrawn, Act::BirdGone(life));
        release
    }

    fn delete(&mut self, life: usize, time: Micros) -> Micros {
        self.at(time, Act::Terminate(life));
        let stopped = self.after(time, 10 * MS..10 * SECOND);
        let released = self.tear_down(life, stopped);
        let gone = self.after(released, 10 * MS..3 * SECOND);
        self.at(gone, Act::Gone(life));
        gone
    }

    /// The object goes first, the sandbox after it.
    fn force_delete(&mut self, life: usize, time: Micros) -> Micros {
        self.at(time, Act::Gone(life));
        let stopped = self.after(time, 10 * MS..2 * SECOND);
        self.tear_down(life, stopped)
    }

    /// A Job's pod: its object stays, with its address in the status.
    fn finish(&mut self, life: usize, time: Micros) -> Micros {
        if self.rng.bool() {
            self.at(time, Act::Finish(life));
            self.tear_down(life, time + 50 * MS);
        } else {
            let released = self.tear_down(life, time);
            let late = self.after(released, 0..2 * SECOND);
            self.at(late, Act::Finish(life));
        }
        let gone = self.after(time, 5 * SECOND..100 * SECOND);
        self.at(gone, Act::Gone(life));
        gone
    }

    /// The pod stays, its sandbox is made anew.
    fn new_sandbox(&mut self, life: usize, time: Micros) -> Micros {
        let released = self.tear_down(life, time);
        let start = self.after(released, 50 * MS..2 * SECOND);
        let up = self.set_up(life, start);
        self.after(up, SECOND..30 * SECOND)
    }

    /// A virtual machine moves from a pod of this node to one of another.
    fn migrate(&mut self) {
        if self.rng.u8(0..3) != 0 {
            return;
        }
        let source = self.life("vm-source", 0, "default");
        let target = self.life("vm-target", 1, "default");
        self.lifecycles += 1;
        let start = self.rng.u64(0..100 * SECOND);
        let up = self.create(source, start);
        let begin = self.after(up, 5 * SECOND..20 * SECOND);
        self.at(begin, Act::Schedule(target));
        self.at(begin + 10 * MS, Act::Heir(source, target));
        // The target's route comes while the source still has the address.
        let route = self.after(begin, SECOND..5 * SECOND);
        self.at(route, Act::BirdRoute(target));
        let swap = self.after(route, SECOND..25 * SECOND);
        self.at(swap, Act::Inherit(source, target));
        self.at(swap + 100 * MS, Act::Status(target));
        let gone = self.after(swap, SECOND..5 * SECOND);
        self.delete(source, gone);
    }

    /// What else happens on a node.
    fn day(&mut self) {
        for _ in 0..self.rng.u8(0..3) {
            let time = self.rng.u64(0..300 * SECOND);
            match self.rng.u8(0..4) {
                0 => {
                    self.at(time, Act::FelixStops);
                    let back = self.after(time, 10 * MS..2 * SECOND);
                    self.at(back, Act::FelixStarts);
                }
                1 => self.at(time, Act::KubeletStarts),
                2 => self.at(time, Act::Restart),
                _ => self.at(time, Act::Resync),
            }
        }
    }
}
