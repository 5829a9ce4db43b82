//! A story told: the plan happens, the engine hears of it, and what it found is compared with the
//! truth.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::IpAddr;
use std::ops::Range;
use std::time::Duration;

use detector_core::claim::Ipam;
use detector_core::engine::{Engine, Output};
use detector_core::finding::{Certainty, Finding, State, Victim};
use detector_core::observation::{Answer, KernelChange, Observation, Question, Reply, Sense, What};
use detector_core::policy::{Feature, Felix as FelixFacts};
use detector_core::route::{Hops, NextHop, Prefix, Route, RouteKind};
use detector_core::settings::Settings;
use detector_core::time::BootTime;
use detector_core::workload::{Pod, PodKey, Uid};
use fastrand::Rng;

use super::Theme;
use super::attack::{Attack, Kind, Prey, Step};
use super::plan::{Act, EVIL, FAR, Felix, MS, Micros, NEAR, Plan, SECOND, plan};
use super::world::{World, approved_address, node, node_address, pool, route};

/// The senses that are lost with the API server.
const REMOTE: [Sense; 6] =
    [Sense::Pods, Sense::Nodes, Sense::Feature, Sense::Pools, Sense::Services, Sense::Allowances];

/// How a story ended.
#[derive(Debug)]
pub struct Outcome {
    /// Legitimate lives in it.
    pub lifecycles: u64,
    /// Observations that the engine took.
    pub observations: u64,
    /// What was wrong, if anything.
    pub failure: Option<String>,
    /// What happened and what was found, line by line, where that was asked for.
    pub log: Vec<String>,
}

/// Tells the story of a seed. With `log`, line by line.
pub fn run(seed: u64, theme: Theme, log: bool) -> Outcome {
    let mut rng = Rng::with_seed(seed);
    let plan = plan(&mut rng, theme);
    let lifecycles = plan.lifecycles;
    let mut telling = Telling::new(rng, plan, theme, log);
    telling.tell();
    let failure = telling.failure();
    let Telling { observations, log, .. } = telling;
    Outcome { lifecycles, observations, failure, log: log.unwrap_or_default() }
}

/// What the agent learns by listing, each at its own time.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Listing {
    Kernel,
    Pods,
    Nodes,
    Pools,
    Ipam,
    Services,
    Policy,
}

const LISTINGS: [Listing; 7] = [
    Listing::Kernel,
    Listing::Pods,
    Listing::Nodes,
    Listing::Pools,
    Listing::Ipam,
    Listing::Services,
    Listing::Policy,
];

enum Event {
    Act(Act),
    Start,
    List(Listing),
    /// A word of the watch of pods, of this epoch.
    Word(u32, Box<What>),
    /// The server reads what was asked.
    Read(Question, BootTime),
    Answer(Box<Answer>),
    OutageBegins,
    OutageEnds,
    /// The story is over: what is due until then falls due.
    End,
}

struct Telling {
    rng: Rng,
    plan: Plan,
    theme: Theme,
    world: World,
    engine: Option<Engine>,
    now: Micros,
    queue: BinaryHeap<Reverse<(Micros, u64)>>,
    events: Vec<Option<Event>>,
    uids: Vec<Option<Uid>>,
    bird: Vec<Option<Route>>,
    /// The routes that Felix will make again.
    suspended: Vec<Route>,
    /// The attack's route.
    diversion: Option<Route>,
    feature: Feature,
    felix: FelixFacts,
    /// Of the watch of pods; words of an earlier one are lost.
    epoch: u32,
    watching: bool,
    last_word: Micros,
    down: bool,
    /// When the agent started.
    starts: Vec<Micros>,
    found: Vec<Finding>,
    observations: u64,
    log: Option<Vec<String>>,
}

// === impl Telling ===

impl Telling {
    fn new(mut rng: Rng, plan: Plan, theme: Theme, log: bool) -> Self {
        let enabled = match theme {
            Theme::Attack(Kind::Intent) => false,
            _ => rng.bool(),
        };
        let by = "FelixConfiguration default".into();
        let feature = if enabled { Feature::Enabled { by } } else { Feature::Disabled { by } };
        let old = theme == Theme::Attack(Kind::Silent) && !enabled;
        let felix = FelixFacts {
            version: Some(if old { "v3.22.1" } else { "v3.30.0" }.into()),
            heeds_switch: Some(!old),
            spoofing: Some(false),
            bypass: Some(false),
        };
        let lives = plan.lives.len();
        let mut telling = Self {
            rng,
            plan,
            theme,
            world: World::new(),
            engine: None,
            now: 0,
            queue: BinaryHeap::new(),
            events: Vec::new(),
            uids: vec![None; lives],
            bird: vec![None; lives],
            suspended: Vec::new(),
            diversion: None,
            feature,
            felix,
            epoch: 0,
            watching: false,
            last_word: 0,
            down: false,
            starts: Vec::new(),
            found: Vec::new(),
            observations: 0,
            log: log.then(Vec::new),
        };
        for (time, act) in std::mem::take(&mut telling.plan.acts) {
            telling.at(time, Event::Act(act));
        }
        telling.at(telling.plan.agent, Event::Start);
        telling.at(telling.plan.end, Event::End);
        for Range { start, end } in telling.plan.outages.clone() {
            telling.at(start, Event::OutageBegins);
            telling.at(end, Event::OutageEnds);
        }
        telling
    }

    fn at(&mut self, time: Micros, event: Event) {
        self.queue.push(Reverse((time, self.events.len() as u64)));
        self.events.push(Some(event));
    }

    fn clock(&self) -> BootTime {
        boot(self.now)
    }

    fn tell(&mut self) {
        while let Some(&Reverse((time, number))) = self.queue.peek() {
            if time > self.plan.end {
                break;
            }
            // What falls due may ask, and the answer may come before what comes next now.
            if self.falls_due(time) {
                continue;
            }
            self.queue.pop();
            self.now = time;
            let event = usize::try_from(number).ok().and_then(|at| self.events[at].take());
            if let Some(event) = event {
                self.happen(event);
            }
        }
    }

    /// Lets the engine do the next thing that falls due by then; false where nothing does.
    fn falls_due(&mut self, until: Micros) -> bool {
        let Some(deadline) = self.engine.as_ref().and_then(Engine::next_deadline) else {
            return false;
        };
        let due = micros(deadline).max(self.now);
        if due > until {
            return false;
        }
        self.now = due;
        let now = deadline.max(self.clock());
        if let Some(engine) = &mut self.engine {
            engine.tick(now);
        }
        self.listen();
        true
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Act(act) => {
                self.write(|| format!("{act:?}"));
                self.act(act);
            }
            Event::Start => self.start(),
            Event::List(listing) => self.list(listing),
            Event::Word(epoch, what) if epoch == self.epoch && !self.down => self.observe(*what),
            Event::Read(question, asked) => self.read(question, asked),
            Event::Answer(answer) => {
                self.write(|| format!("    told: {:?}", answer.reply.question()));
                self.observe(What::Answer(*answer));
            }
            Event::OutageBegins => {
                self.write(|| "the API server is down".to_owned());
                self.down = true;
                self.watching = false;
                for sense in REMOTE {
                    self.observe(What::Blind(sense, Some("the API server is down".into())));
                }
            }
            Event::Word(..) | Event::End => {}
            Event::OutageEnds => {
                self.write(|| "the API server is back".to_owned());
                self.down = false;
                if self.engine.is_some() {
                    for listing in LISTINGS {
                        if listing != Listing::Kernel {
                            let time = self.now + self.rng.u64(MS..3 * SECOND);
                            self.at(time, Event::List(listing));
                        }
                    }
                }
            }
        }
    }

    /// The agent starts, or starts again: it knows nothing.
    fn start(&mut self) {
        self.write(|| "the agent starts".to_owned());
        self.engine = Some(Engine::new(Settings::for_node(node(0))));
        self.watching = false;
        self.starts.push(self.now);
        self.epoch += 1;
        self.observe(What::AllowList(World::allow_list()));
        for listing in LISTINGS {
            let time = self.now + self.rng.u64(MS..2 * SECOND);
            self.at(time, Event::List(listing));
        }
        if self.down {
            for sense in REMOTE {
                self.observe(What::Blind(sense, Some("the API server is down".into())));
            }
        }
    }

    fn list(&mut self, listing: Listing) {
        self.write(|| format!("the agent lists: {listing:?}"));
        if self.down && listing != Listing::Kernel {
            return;
        }
        let sense = match listing {
            Listing::Kernel => {
                self.dump();
                return;
            }
            Listing::Pods => {
                self.epoch += 1;
                self.watching = true;
                self.last_word = self.now;
                self.observe(What::PodsReset(self.world.local_pods()));
                Sense::Pods
            }
            Listing::Nodes => {
                self.observe(What::NodesReset(World::nodes()));
                Sense::Nodes
            }
            Listing::Pools => {
                self.observe(What::Pools(vec![pool()]));
                return;
            }
            Listing::Ipam => {
                self.observe(What::Ipam(Ipam::Calico));
                Sense::Pools
            }
            Listing::Services => {
                self.observe(What::ServicesReset(World::services()));
                Sense::Services
            }
            Listing::Policy => {
                self.observe(What::Blind(Sense::Allowances, None));
                self.observe(What::Feature(self.feature.clone()));
                self.observe(What::Felix(self.felix.clone()));
                Sense::Feature
            }
        };
        self.observe(What::Blind(sense, None));
    }

    fn dump(&mut self) {
        self.observe(What::SnapshotBegin);
        for part in self.world.dump() {
            self.observe(What::SnapshotPart(part));
        }
        self.observe(What::SnapshotEnd);
    }

    fn read(&mut self, question: Question, asked: BootTime) {
        let reply = if self.down {
            Reply::failed(question, "the API server is down".into())
        } else {
            match question {
                Question::Block(block) => Reply::Block(block, Ok(self.world.read_block(block))),
                Question::Claimants(address) => {
                    Reply::Claimants(address, Ok(self.world.claimants(address)))
                }
            }
        };
        let time = self.now + self.rng.u64(0..20 * MS);
        self.at(time, Event::Answer(Box::new(Answer { asked, reply })));
    }

    fn observe(&mut self, what: What) {
        let at = self.clock();
        let Some(engine) = &mut self.engine else { return };
        engine.observe(at, Observation { at, what });
        self.observations += 1;
        self.listen();
    }

    fn listen(&mut self) {
        while let Some(output) = self.engine.as_mut().and_then(Engine::poll) {
            match output {
                Output::Finding(finding) => {
                    self.write(|| {
                        format!(
                            "    {} {}: {} {} {}",
                            finding.state.as_str(),
                            finding.key,
                            finding.charge.certainty.as_str(),
                            finding.charge.victim,
                            finding.charge.reason
                        )
                    });
                    self.found.push(*finding);
                }
                Output::Question(question) => {
                    self.write(|| format!("    asked: {question:?}"));
                    let time = self.now + self.rng.u64(MS..20 * MS);
                    let asked = self.clock();
                    self.at(time, Event::Read(question, asked));
                }
                Output::Resync(_) => {
                    let time = self.now + self.rng.u64(MS..50 * MS);
                    self.at(time, Event::List(Listing::Kernel));
                }
                _ => {}
            }
        }
    }

    fn write(&mut self, line: impl FnOnce() -> String) {
        let now = self.now;
        if let Some(log) = &mut self.log {
            log.push(format!(
                "{:>11.3} ms  {}",
                Duration::from_micros(now).as_secs_f64() * 1e3,
                line()
            ));
        }
    }

    // --- what happens

    fn kernel(&mut self, changes: Vec<KernelChange>) {
        for change in changes {
            self.observe(What::Kernel(change));
        }
    }

    /// The pod's object changes: the watch will say so, sooner or later.
    fn change(&mut self, life: usize, change: impl FnOnce(&mut Pod)) {
        let key = &self.plan.lives[life].key;
        let Some(pod) = self.world.pods.get_mut(key) else { return };
        // Another of the same name.
        if self.uids[life].as_ref() != Some(&pod.uid) {
            return;
        }
        change(pod);
        let pod = pod.clone();
        self.say(&pod, What::PodApplied(pod.clone()));
    }

    fn say(&mut self, pod: &Pod, what: What) {
        if pod.node != node(0) || !self.watching {
            return;
        }
        let late = match self.rng.u8(0..20) {
            0 => self.rng.u64(100 * MS..2 * SECOND),
            _ => self.rng.u64(MS..60 * MS),
        };
        let mut time = self.last_word.max(self.now + late);
        for silence in &self.plan.silences {
            if silence.contains(&time) {
                time = silence.end;
            }
        }
        self.last_word = time;
        self.at(time, Event::Word(self.epoch, Box::new(what)));
    }

    fn key(&self, life: usize) -> PodKey {
        self.plan.lives[life].key.clone()
    }

    fn address(&self, life: usize) -> Option<IpAddr> {
        self.plan.lives[life].address
    }

    fn act(&mut self, act: Act) {
        match act {
            Act::Schedule(life) => {
                let (key, n) = (self.key(life), self.plan.lives[life].node);
                let pod = self.world.create(&key, n, self.plan.lives[life].account);
                self.uids[life] = Some(pod.uid.clone());
                self.say(&pod, What::PodApplied(pod.clone()));
            }
            Act::Allocate(life) => {
                let (key, n) = (self.key(life), self.plan.lives[life].node);
                let from = if self.plan.lives[life].borrows { 0 } else { n };
                let Some(address) = self.world.free_address(from) else { return };
                self.world.allocate(address, &key, n);
                self.plan.lives[life].address = Some(address);
            }
            Act::LinkUp(life) => {
                if self.address(life).is_some() {
                    let changes = self.world.link_up(&self.key(life));
                    self.kernel(changes);
                }
            }
            Act::CniRoute(life) => {
                let Some(address) = self.address(life) else { return };
                if let Some(route) = self.world.to_pod(address, &self.key(life), 0) {
                    let changes = self.world.add(route);
                    self.kernel(changes);
                }
            }
            Act::FelixRoute(life) => self.felix_route(life),
            Act::Annotate(life) => {
                let Some(address) = self.address(life) else { return };
                self.plan.lives[life].sandboxes += 1;
                let sandbox = format!("{life}-{}", self.plan.lives[life].sandboxes);
                self.change(life, |pod| {
                    pod.annotated_addresses = vec![address];
                    pod.sandbox = Some(sandbox.into());
                });
            }
            Act::Status(life) => {
                let Some(address) = self.address(life) else { return };
                self.change(life, |pod| {
                    if !pod.finished {
                        pod.addresses = vec![address];
                    }
                });
            }
            Act::Finish(life) => self.change(life, |pod| pod.finished = true),
            Act::Terminate(life) => self.change(life, |pod| pod.terminating = true),
            Act::EmptyAnnotation(life) => {
                self.change(life, |pod| pod.annotated_addresses.clear());
            }
            Act::LinkGone(life) => {
                let changes = self.world.link_gone(&self.key(life));
                self.kernel(changes);
            }
            Act::Release(life) => {
                if let Some(address) = self.plan.lives[life].address.take() {
                    self.world.release(address, &self.key(life));
                }
            }
            Act::Gone(life) => {
                let key = self.key(life);
                let own = self
                    .world
                    .pods
                    .get(&key)
                    .is_some_and(|pod| self.uids[life].as_ref() == Some(&pod.uid));
                if own && let Some(pod) = self.world.pods.remove(&key) {
                    self.say(&pod, What::PodDeleted(key, pod.uid.clone()));
                }
            }
            act => self.act_beyond_the_pod(act),
        }
    }

    /// What is not one pod's life on this node: routes of others, floating IPs, migrations, the
    /// node's own days, and attacks.
    fn act_beyond_the_pod(&mut self, act: Act) {
        match act {
            Act::BirdRoute(life) => {
                let (Some(address), n) = (self.address(life), self.plan.lives[life].node) else {
                    return;
                };
                if !super::world::block_of(n).contains(address) {
                    let route = World::via_node(address, n, 512);
                    self.bird[life] = Some(route.clone());
                    let changes = self.world.replace(route);
                    self.kernel(changes);
                }
            }
            Act::BirdGone(life) => {
                if let Some(route) = self.bird[life].take() {
                    let changes = self.world.delete(&route);
                    self.kernel(changes);
                }
            }
            Act::BirdAnew(life) => {
                if let Some(route) = self.bird[life].clone() {
                    let mut changes = self.world.delete(&route);
                    changes.extend(self.world.add(route));
                    self.kernel(changes);
                }
            }
            Act::FloatingIp(life) => {
                if matches!(self.feature, Feature::Enabled { .. }) && self.address(life).is_some() {
                    let address = floating_ip(life);
                    self.change(life, |pod| pod.floating_addresses = vec![address]);
                }
            }
            Act::FloatingRoute(life) => {
                if matches!(self.feature, Feature::Enabled { .. })
                    && self.address(life).is_some()
                    && let Some(route) = self.world.to_pod(floating_ip(life), &self.key(life), 0)
                {
                    let changes = self.world.add(route);
                    self.kernel(changes);
                }
            }
            Act::Heir(source, target) => {
                let Some(address) = self.address(source) else { return };
                let (key, n) = (self.key(target), self.plan.lives[target].node);
                self.world.announce_heir(address, &key, n);
                self.plan.lives[target].address = Some(address);
            }
            Act::Inherit(source, target) => {
                let Some(address) = self.address(source) else { return };
                let (new, old) = (self.key(target), self.key(source));
                self.world.allocate(address, &new, self.plan.lives[target].node);
                // The source stays named until it is gone.
                self.world.announce_heir(address, &old, self.plan.lives[source].node);
            }
            Act::FelixStops => {
                let routes = self.world.pod_routes();
                for route in &routes {
                    let changes = self.world.delete(route);
                    self.kernel(changes);
                }
                self.suspended.extend(routes);
            }
            Act::FelixStarts => self.felix_starts(),
            Act::KubeletStarts => {
                for life in 0..self.plan.lives.len() {
                    if self.plan.lives[life].node == 0 {
                        self.change(life, |_| {});
                    }
                }
            }
            Act::Resync => {
                if self.engine.is_some() {
                    self.dump();
                }
            }
            Act::Restart => {
                if self.engine.is_some() {
                    self.start();
                }
            }
            Act::Attack(step) => self.attack(step),
            Act::Schedule(_)
            | Act::Allocate(_)
            | Act::LinkUp(_)
            | Act::CniRoute(_)
            | Act::FelixRoute(_)
            | Act::Annotate(_)
            | Act::Status(_)
            | Act::Finish(_)
            | Act::Terminate(_)
            | Act::EmptyAnnotation(_)
            | Act::LinkGone(_)
            | Act::Release(_)
            | Act::Gone(_) => {}
        }
    }

    fn felix_starts(&mut self) {
        for route in std::mem::take(&mut self.suspended) {
            let stands = route
                .hops
                .as_slice()
                .iter()
                .all(|hop| hop.interface.is_none_or(|index| self.world.has_link(index)));
            if stands {
                let changes = self.world.add(route);
                self.kernel(changes);
            }
        }
    }

    fn felix_route(&mut self, life: usize) {
        let Some(address) = self.address(life) else { return };
        let key = self.key(life);
        if self.plan.felix == Felix::Moves
            && let (Some(old), Some(new)) =
                (self.world.to_pod(address, &key, 0), self.world.to_pod(address, &key, 1024))
        {
            let mut changes = self.world.delete(&old);
            changes.extend(self.world.replace(new));
            self.kernel(changes);
        }
    }

    // --- the attack

    fn attack(&mut self, step: Step) {
        let Some(attack) = self.plan.attack.clone() else { return };
        if attack.address.is_none() {
            let address = match attack.kind {
                Kind::Stale => Some(super::world::reserve(attack.prey == Prey::Near)),
                _ => attack.fixed_address().or_else(|| self.address(attack.victim()?)),
            };
            if let Some(attack) = &mut self.plan.attack {
                attack.address = address;
            }
        }
        let Some(attack) = self.plan.attack.clone() else { return };
        let Some(address) = attack.address else { return };
        let evil = self.key(EVIL);
        match step {
            Step::Appear => {
                self.act(Act::Schedule(EVIL));
                let changes = self.world.link_up(&evil);
                self.kernel(changes);
            }
            Step::Annotate => self.change(EVIL, |pod| pod.floating_addresses = vec![address]),
            Step::Unannotate => self.change(EVIL, |pod| pod.floating_addresses.clear()),
            Step::AnnotateEarly => self.change(EVIL, |pod| pod.annotated_addresses = vec![address]),
            Step::Forge => self.change(EVIL, |pod| pod.addresses = vec![address]),
            Step::Route => {
                if let Some(route) = self.attack_route(&attack, address) {
                    self.diversion = Some(route.clone());
                    let changes = self.world.replace(route);
                    self.kernel(changes);
                }
            }
            Step::RouteGone => {
                if let Some(route) = self.diversion.clone() {
                    // Nor will Felix make it again.
                    self.suspended.retain(|other| *other != route);
                    let changes = self.world.delete(&route);
                    self.kernel(changes);
                }
            }
            Step::Owner => {
                let key = owner_key();
                let n = usize::from(attack.prey == Prey::Far);
                self.world.allocate(address, &key, n);
                let pod = self.world.create(&key, n, "default");
                self.say(&pod, What::PodApplied(pod.clone()));
            }
        }
    }

    fn attack_route(&self, attack: &Attack, address: IpAddr) -> Option<Route> {
        let evil = self.key(EVIL);
        Some(match attack.kind {
            Kind::Remote => {
                // Not where the victim is.
                World::via_node(address, 2, 0)
            }
            Kind::Blackhole => {
                Route { kind: RouteKind::Blackhole, ..route(Prefix::host(address), Hops::None, 0) }
            }
            Kind::Prefix => {
                let hop = NextHop { interface: self.world.index(&evil), gateway: None };
                route(Prefix::new(address, 30)?, Hops::One(hop), 0)
            }
            _ => self.world.to_pod(address, &evil, 0)?,
        })
    }

    // --- the truth

    /// What must be found: the key, and whose the traffic is.
    fn expected(&self) -> Option<(String, Victim)> {
        let attack = self.plan.attack.as_ref()?;
        let address = attack.address?;
        let host = Prefix::host(address);
        let evil = self.key(EVIL);
        let interface = evil.interface("cali")?;
        let key = match attack.kind {
            Kind::Remote => format!("{host} via {}", node_address(2)),
            Kind::Blackhole => format!("{host} blackhole"),
            Kind::Prefix => format!("{} dev {interface}", Prefix::new(address, 30)?),
            Kind::Silent | Kind::Intent => format!("{host} claimed by pod {evil} in floatingIPs"),
            _ => format!("{host} dev {interface}"),
        };
        let pod = |key: PodKey, n: usize| Victim::Pod { key, node: Some(node(n)) };
        let victim = match (attack.kind, attack.prey) {
            (Kind::Stale, prey) => pod(owner_key(), usize::from(prey == Prey::Far)),
            (_, Prey::Near) => pod(self.key(NEAR), 0),
            (_, Prey::Far) => pod(self.key(FAR), 1),
            (_, Prey::Node) => Victim::Node(node(1)),
            (_, Prey::Service) => World::services().pop().map(|s| Victim::Service(s.key))?,
        };
        Some((key, victim))
    }

    /// Whether the attack was over before the API server could be asked about it: then nobody can say
    /// whose the address was, nor, if the agent has just started, whose the interface.
    fn is_unseen(&self, attack: &Attack) -> bool {
        let moment = attack.time..attack.time + 10 * SECOND;
        // From the annotation to the end of the route it is less than a quarter of a second.
        let over = attack.time + SECOND / 4;
        let starting = |start: &Micros| *start < over && attack.time < *start + 3 * SECOND;
        attack.kind == Kind::Flap
            && (self.starts.iter().any(starting)
                || self.plan.outages.iter().any(|outage| {
                    // With the time until all is listed again.
                    outage.start < moment.end && moment.start < outage.end + 3 * SECOND
                }))
    }

    fn failure(&self) -> Option<String> {
        let told = |finding: &Finding| {
            let (state, charge) = (finding.state.as_str(), &finding.charge);
            let certainty = charge.certainty.as_str();
            format!("{state} {}: {certainty}, victim {}", finding.key, charge.victim)
        };
        let Some((key, victim)) = self.expected() else {
            return match (&self.theme, self.found.first()) {
                (Theme::Peace, None) => None,
                (Theme::Peace, Some(finding)) => Some(format!("false: {}", told(finding))),
                (Theme::Attack(_), _) => Some("the attack did not happen".to_owned()),
            };
        };
        let attack = self.plan.attack.as_ref()?;
        // What else the attacker claims of the same address on the way is no falsehood.
        let own = |finding: &&Finding| {
            finding.key.to_string() == key
                || (finding.charge.attacker.pod.as_ref() == Some(&self.key(EVIL))
                    && finding.key.subject.prefix().map(|p| p.address()) == attack.address)
        };
        if let Some(finding) = self.found.iter().find(|finding| !own(finding)) {
            return Some(format!("false: {}", told(finding)));
        }
        let mut main = self.found.iter().filter(|finding| finding.key.to_string() == key);
        let Some(last) = main.next_back() else {
            return (!self.is_unseen(attack)).then(|| format!("missed: {key}"));
        };
        let certainty = match attack.kind {
            Kind::Intent => Certainty::Attempt,
            _ => Certainty::Hijack,
        };
        // Of what was over before the server was back, nobody can say whose it was.
        let unsaid = last.charge.victim == Victim::Nobody && self.is_unseen(attack);
        if last.charge.certainty != certainty || (last.charge.victim != victim && !unsaid) {
            return Some(format!("wrong: {}; the victim is {victim}", told(last)));
        }
        let attacker = match attack.kind {
            Kind::Blackhole => last.charge.attacker.pod.is_none(),
            Kind::Remote => last.charge.attacker.node == Some(node(2)),
            _ => last.charge.attacker.pod.as_ref() == Some(&self.key(EVIL)),
        };
        if !attacker && !self.is_unseen(attack) {
            return Some(format!("wrong attacker: {:?}", last.charge.attacker));
        }
        let over = matches!(attack.kind, Kind::Flap);
        // An agent that starts in the middle knows nothing of what the one before it has opened.
        let moment = attack.time..attack.time + SECOND / 4;
        let forgotten = over && self.starts.iter().any(|start| moment.contains(start));
        if !forgotten && (last.state == State::Closed) != over {
            return Some(format!("at the end: {}", told(last)));
        }
        None
    }
}

fn owner_key() -> PodKey {
    PodKey::new("shop", "owner").expect("a key")
}

fn floating_ip(life: usize) -> IpAddr {
    approved_address(u8::try_from(life % 16).unwrap_or_default())
}

fn boot(micros: Micros) -> BootTime {
    BootTime::from_nanos((1_000 * SECOND + micros) * 1_000)
}

fn micros(time: BootTime) -> Micros {
    (time.as_nanos().div_ceil(1_000)).saturating_sub(1_000 * SECOND)
}
