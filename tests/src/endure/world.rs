//! What all share: the cluster, the node's network, IPAM's record, what happened so far.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use detector_core::time::BootTime;
use fastrand::Rng;
use serde_json::{Value, json};

use super::attack::Attack;
use crate::agent::now;
use crate::cluster::objects::{Objects, code};
use crate::cluster::{Cluster, User};
use crate::pretend::{self, Block, Wires};

/// The agent's node, and another.
pub(super) const HERE: &str = "node-a";
pub(super) const ELSEWHERE: &str = "node-b";

/// Addresses of a block that are handed out, few so that they are soon used again; steady pods take
/// theirs first.
const ROOM: usize = 32;

/// How long a write may be refused while the API server is up.
const PATIENCE: Duration = Duration::from_mins(1);

/// How much of the story is told.
const STORY: Duration = Duration::from_secs(25);

/// When everybody has to stop what.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Stage {
    /// All goes on.
    Going,
    /// No new pods and no new attacks; those that stand do so.
    Calm,
    /// All is undone.
    Over,
}

/// When the API server was down.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outage {
    pub(super) down: BootTime,
    pub(super) up: Option<BootTime>,
}

/// What all share.
pub(super) struct World {
    pub(super) cluster: Cluster,
    pub(super) wires: Wires,
    started: BootTime,
    ipam: [Mutex<Space>; 2],
    outages: Mutex<Vec<Outage>>,
    turned: Condvar,
    stage: Mutex<Stage>,
    staged: Condvar,
    failed: Mutex<Option<anyhow::Error>>,
    busy: AtomicUsize,
    made: AtomicUsize,
    attacks: Mutex<Vec<Attack>>,
    story: Mutex<Vec<(BootTime, String)>>,
}

/// A block, and its free addresses: the one that was given back last comes last.
struct Space {
    block: Block,
    free: Vec<usize>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

// === impl World ===

impl World {
    pub(super) fn new(cluster: Cluster) -> Result<Self> {
        let space = |third: u8, node: &str| {
            Mutex::new(Space {
                block: Block::new(Ipv4Addr::new(10, 244, third, 0), node),
                free: (1..=ROOM).rev().collect(),
            })
        };
        let world = Self {
            cluster,
            wires: Wires::new()?,
            started: now(),
            ipam: [space(1, HERE), space(2, ELSEWHERE)],
            outages: Mutex::default(),
            turned: Condvar::new(),
            stage: Mutex::new(Stage::Going),
            staged: Condvar::new(),
            failed: Mutex::default(),
            busy: AtomicUsize::new(0),
            made: AtomicUsize::new(0),
            attacks: Mutex::default(),
            story: Mutex::default(),
        };
        world.found()?;
        Ok(world)
    }

    fn found(&self) -> Result<()> {
        let objects = self.cluster.objects();
        for namespace in ["shop", "default"] {
            objects.make_namespace(namespace)?;
        }
        for object in pretend::calico("10.244.0.0/16") {
            objects.apply(object)?;
        }
        for (n, node) in [(1, HERE), (2, ELSEWHERE)] {
            let address = Ipv4Addr::new(172, 18, 0, n);
            objects.apply(pretend::node(node, address, &format!("10.244.{n}.0/26")))?;
        }
        for space in &self.ipam {
            objects.apply(lock(space).block.object())?;
        }
        Ok(())
    }

    /// The agent's kubeconfig for an API server at this address.
    pub(super) fn kubeconfig(&self, addr: std::net::SocketAddr) -> String {
        self.cluster.kubeconfig(User::Agent, addr)
    }

    // --- The API.

    /// Writes to the API as all controllers do: again and again, until it is written. `fine` is a
    /// refusal that says that it has been written already.
    pub(super) fn write(
        &self,
        fine: Option<u16>,
        write: impl Fn(&Objects) -> Result<()>,
    ) -> Result<()> {
        let mut end = Instant::now() + PATIENCE;
        loop {
            if self.wait_until_up() {
                end = Instant::now() + PATIENCE;
            }
            match write(self.cluster.objects()) {
                Ok(()) => return Ok(()),
                Err(error) if fine.is_some() && code(&error) == fine => return Ok(()),
                Err(error) if Instant::now() > end => return Err(error),
                Err(_) => self.wait_for_turn(Duration::from_millis(50)),
            }
        }
    }

    pub(super) fn is_up(&self) -> bool {
        lock(&self.outages).last().is_none_or(|outage| outage.up.is_some())
    }

    /// Says whether it was down.
    fn wait_until_up(&self) -> bool {
        let mut waited = false;
        let mut outages = lock(&self.outages);
        while outages.last().is_some_and(|outage| outage.up.is_none()) {
            waited = true;
            outages = self.turned.wait(outages).unwrap_or_else(PoisonError::into_inner);
        }
        waited
    }

    /// Waits until the API server goes down or comes back, or for so long.
    fn wait_for_turn(&self, patience: Duration) {
        let outages = lock(&self.outages);
        drop(self.turned.wait_timeout(outages, patience));
    }

    /// The API server is about to be killed, or is back.
    pub(super) fn turn(&self, up: bool) {
        let mut outages = lock(&self.outages);
        if up {
            if let Some(outage) = outages.last_mut() {
                outage.up = Some(now());
            }
        } else {
            outages.push(Outage { down: now(), up: None });
        }
        self.turned.notify_all();
    }

    pub(super) fn outages(&self) -> Vec<Outage> {
        lock(&self.outages).clone()
    }

    // --- IPAM.

    /// Gives a pod an address: when this returns the record says so.
    pub(super) fn allocate(&self, pod: &str, here: bool, rng: &mut Rng) -> Result<Ipv4Addr> {
        let mut space = lock(&self.ipam[usize::from(!here)]);
        let last = space.free.len().checked_sub(1).context("no address is left")?;
        // Mostly the one that was given back last.
        let at = if rng.u8(..10) < 7 { last } else { rng.usize(..=last) };
        let at = space.free.remove(at);
        space.block.owners[at] = Some(pod.to_owned());
        self.write_block(&space.block)?;
        let offset = u32::try_from(at)?;
        Ok(Ipv4Addr::from(u32::from(space.block.first) + offset))
    }

    /// Takes an address back.
    pub(super) fn release(&self, address: Ipv4Addr, here: bool) -> Result<()> {
        let mut space = lock(&self.ipam[usize::from(!here)]);
        let at = usize::try_from(u32::from(address) - u32::from(space.block.first))?;
        space.block.owners[at] = None;
        self.write_block(&space.block)?;
        space.free.push(at);
        Ok(())
    }

    fn write_block(&self, block: &Block) -> Result<()> {
        let patch = json!({ "spec": block.spec() });
        self.write(None, |objects| objects.patch("ipamblocks", "", &block.name(), &patch).map(drop))
    }

    // --- The course of the run.

    /// Lets somebody act, and remembers whether that went wrong.
    pub(super) fn act(&self, act: impl FnOnce() -> Result<()>) {
        self.busy.fetch_add(1, Ordering::SeqCst);
        if let Err(error) = act() {
            self.say(format!("cannot go on: {error:#}"));
            lock(&self.failed).get_or_insert(error);
            self.set_stage(Stage::Over);
        }
        self.busy.fetch_sub(1, Ordering::SeqCst);
    }

    /// How many act.
    pub(super) fn busy(&self) -> usize {
        self.busy.load(Ordering::SeqCst)
    }

    /// An error where somebody could not go on.
    pub(super) fn check(&self) -> Result<()> {
        match lock(&self.failed).take() {
            Some(error) => Err(error.context("the simulation could not go on")),
            None => Ok(()),
        }
    }

    pub(super) fn stage(&self) -> Stage {
        *lock(&self.stage)
    }

    pub(super) fn set_stage(&self, stage: Stage) {
        let mut now = lock(&self.stage);
        *now = stage.max(*now);
        self.staged.notify_all();
    }

    /// Everybody has to end now.
    pub(super) fn finish(&self) {
        self.set_stage(Stage::Over);
    }

    /// Lets time pass, until it is that stage at most; says whether it is.
    pub(super) fn pause(&self, time: Duration, until: Stage) -> bool {
        let stage = lock(&self.stage);
        let waited = self.staged.wait_timeout_while(stage, time, |stage| *stage < until);
        let (stage, _) = waited.unwrap_or_else(PoisonError::into_inner);
        *stage >= until
    }

    pub(super) fn count_pod(&self) {
        self.made.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn pods_made(&self) -> usize {
        self.made.load(Ordering::Relaxed)
    }

    /// Writes an attack down; gives its number.
    pub(super) fn begin(&self, attack: Attack) -> usize {
        let mut attacks = lock(&self.attacks);
        attacks.push(attack);
        attacks.len() - 1
    }

    pub(super) fn amend(&self, number: usize, amend: impl FnOnce(&mut Attack)) {
        if let Some(attack) = lock(&self.attacks).get_mut(number) {
            amend(attack);
        }
    }

    pub(super) fn attacks(&self) -> Vec<Attack> {
        lock(&self.attacks).clone()
    }

    // --- The story.

    /// Writes down what happens.
    pub(super) fn say(&self, what: String) {
        self.say_at(now(), what);
    }

    pub(super) fn say_at(&self, at: BootTime, what: String) {
        lock(&self.story).push((at, what));
    }

    /// A time as the story has it.
    pub(super) fn clock(&self, at: BootTime) -> String {
        format!("{:8.3} s", at.since(self.started).as_secs_f64())
    }

    /// What happened last before a time.
    pub(super) fn story_until(&self, end: BootTime) -> Vec<String> {
        let mut story = lock(&self.story).clone();
        story.sort_by_key(|(at, _)| *at);
        let told = |at: BootTime| at <= end.after(Duration::from_secs(1)) && end.since(at) <= STORY;
        story
            .into_iter()
            .filter(|(at, _)| told(*at))
            .map(|(at, what)| format!("{}  {what}", self.clock(at)))
            .collect()
    }
}

/// A patch of annotations.
pub(super) fn annotate(annotations: &Value) -> Value {
    json!({ "metadata": { "annotations": annotations } })
}

/// A pod's namespace and name.
pub(super) fn split(pod: &str) -> Result<(&str, &str)> {
    let Some(parts) = pod.split_once('/') else { bail!("{pod} is no pod's name") };
    Ok(parts)
}
