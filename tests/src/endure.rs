//! A real agent at a real API server, both of which are killed and started again at random points
//! while pods come and go and attacks begin and end.
//!
//! In the end the truth, which is known, is held against every line that every agent wrote: nothing
//! false, nothing missed, nothing opened twice. What is random follows from a seed, but for the
//! order of what happens at the same time; so a run is not told again to the letter, and a failure
//! comes with its story.
//!
//! `world` is what all share, `pods` how a pod begins and ends, `churn` the innocent and `attack` the
//! guilty, `outage` kills the API server; `director` kills the agent and listens; `judge` holds what
//! it heard against what was.

mod attack;
mod churn;
mod director;
mod judge;
mod outage;
mod pods;
mod world;

use std::collections::BTreeMap;
use std::sync::mpsc::channel;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use fastrand::Rng;

use self::attack::Attacker;
use self::director::Director;
use self::judge::Verdict;
use self::world::World;
use crate::cluster::Cluster;
use crate::cluster::programs::Programs;

/// Who makes innocent pods: on the agent's node, or elsewhere.
const CHURN: [bool; 4] = [true, true, true, false];
/// Attackers, each with a pod of its own.
const ATTACKERS: usize = 5;

/// Wrongs that are named; of the others only the number is told. And how near to each other they
/// share a story.
const NAMED: usize = 10;
const TOGETHER: Duration = Duration::from_secs(5);

/// How long it goes on, and by which chance.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// What chance follows from.
    pub seed: u64,
    /// How often something is killed.
    pub rounds: u32,
}

/// Wears an agent, and prints what came of it; an error where anything was wrong.
pub fn run(programs: Programs, plan: Plan) -> Result<()> {
    println!("the seed is {}", plan.seed);
    let world = World::new(Cluster::start(programs)?)?;
    let attackers = (0..ATTACKERS)
        .map(|n| Attacker::new(&world, n))
        .collect::<Result<Vec<_>>>()
        .context("cannot set the scene")?;
    let (order, orders) = channel();
    let mut director = Director::new(&world, plan, order);
    std::thread::scope(|scope| {
        let world = &world;
        let mut seed = plan.seed;
        let mut rng = || {
            seed = seed.wrapping_add(1);
            Rng::with_seed(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15))
        };
        scope.spawn(move || world.act(|| outage::serve(world, &orders)));
        for (n, here) in CHURN.into_iter().enumerate() {
            let rng = rng();
            scope.spawn(move || world.act(|| churn::go(world, n, here, rng)));
        }
        for attacker in attackers {
            let rng = rng();
            scope.spawn(move || world.act(|| attacker.go(world, rng)));
        }
        let directed = director.direct();
        world.finish();
        director.dismiss();
        directed
    })?;
    let lives = director.into_lives();
    let verdict = judge::judge(&world, &lives);
    print(&world, &verdict);
    if verdict.wrongs.is_empty() {
        return Ok(());
    }
    let mut told = None;
    for wrong in verdict.wrongs.iter().take(NAMED) {
        println!("\nWRONG {}: {}", world.clock(wrong.at), wrong.what);
        // What goes wrong together has one story.
        if told.is_none_or(|told| wrong.at.since(told) > TOGETHER) {
            told = Some(wrong.at);
            println!("before it:");
            for line in world.story_until(wrong.at) {
                println!("  {line}");
            }
        }
    }
    bail!("{} wrongs; the seed is {}", verdict.wrongs.len(), plan.seed);
}

fn print(world: &World, verdict: &Verdict) {
    let outages = world.outages();
    let down: f64 = outages.iter().filter_map(|o| Some(o.up?.since(o.down).as_secs_f64())).sum();
    println!(
        "{} kills of the API server, which was down for {down:.0} s; {} of the agent ({})",
        outages.len(),
        verdict.kills.values().sum::<usize>(),
        verdict.kills.iter().map(|(how, n)| format!("{n} {how}")).collect::<Vec<_>>().join(", ")
    );
    println!("{} innocent pods came and went", world.pods_made());
    let mut kinds: BTreeMap<&str, usize> = BTreeMap::new();
    for attack in world.attacks() {
        *kinds.entry(attack.kind.as_str()).or_default() += 1;
    }
    let kinds: Vec<String> = kinds.iter().map(|(kind, n)| format!("{n} {kind}")).collect();
    println!("{} attacks: {}", world.attacks().len(), kinds.join(", "));
    println!(
        "{} times an attack had to be found by an agent, {} times its victim had to be named: \
         all but {} were",
        verdict.due_found, verdict.due_named, verdict.missed
    );
    println!(
        "{} findings opened, {} of them again by a later agent, {} again by the same after it had \
         closed them; {} opened without the victim's name",
        verdict.opened, verdict.opened_by_later, verdict.opened_again, verdict.unnamed
    );
    for (what, times) in [("opened", &verdict.to_open), ("named", &verdict.to_name)] {
        if let (Some(median), Some(last)) = (times.get(times.len() / 2), times.last()) {
            println!(
                "{what} after p50 {median:.1?}, max {last:.1?}, of {} that were to be seen from \
                 their beginning with the API server up",
                times.len()
            );
        }
    }
}
