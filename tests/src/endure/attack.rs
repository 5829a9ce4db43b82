//! Attacks, and the pods that make them.

use std::time::Duration;

use anyhow::{Context as _, Result};
use detector_core::time::BootTime;
use fastrand::Rng;
use serde_json::{Value, json};

use super::pods::Running;
use super::world::{Stage, World, annotate, split};
use crate::agent::now;
use crate::pretend;
use crate::scenario::words::interface;

/// Pods elsewhere and here whose addresses one attacker takes.
const FAR: usize = 3;
const NEAR: usize = 2;

/// How an attack is made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    /// An annotation claims a far pod's address, and Felix makes the route.
    Far,
    /// The same against a pod of this node, whose route Felix replaces.
    Near,
    /// A forged status names a far pod's address, and Felix makes the route.
    Forged,
    /// Nothing but a route, made by whoever can.
    Bare,
}

/// An attack, as it truly was.
#[derive(Clone, Debug)]
pub(super) struct Attack {
    pub(super) kind: Kind,
    /// The pod that makes it, and the one whose address it takes.
    pub(super) attacker: String,
    pub(super) victim: String,
    /// The key of the finding about its route.
    pub(super) key: String,
    /// The keys of findings about its claims.
    pub(super) claims: Vec<String>,
    /// When it was begun, and all of it was undone.
    pub(super) begun: BootTime,
    pub(super) gone: Option<BootTime>,
    /// When its route came and went.
    pub(super) from: Option<BootTime>,
    pub(super) until: Option<BootTime>,
}

/// A pod that attacks, and the pods whose addresses it takes.
pub(super) struct Attacker {
    own: Running,
    far: Vec<Running>,
    near: Vec<Running>,
}

// === impl Kind ===

impl Kind {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Far => "by annotation of a far pod's address",
            Self::Near => "by annotation of a local pod's address",
            Self::Forged => "by forged status",
            Self::Bare => "by route alone",
        }
    }
}

// === impl Attacker ===

impl Attacker {
    /// Makes the pods.
    pub(super) fn new(world: &World, number: usize) -> Result<Self> {
        let mut rng = Rng::with_seed(0);
        let mut make = |name: String, here| Running::start(world, name, here, &mut rng);
        Ok(Self {
            own: make(format!("default/evil-{number}"), true)?,
            far: (0..FAR)
                .map(|n| make(format!("shop/far-{number}-{n}"), false))
                .collect::<Result<_>>()?,
            near: (0..NEAR)
                .map(|n| make(format!("shop/near-{number}-{n}"), true))
                .collect::<Result<_>>()?,
        })
    }

    /// Attacks again and again until it is calm.
    pub(super) fn go(self, world: &World, mut rng: Rng) -> Result<()> {
        while !world.pause(Duration::from_millis(rng.u64(200..4_000)), Stage::Calm) {
            let kinds = [Kind::Far, Kind::Near, Kind::Forged, Kind::Bare];
            let kind = kinds[rng.usize(..kinds.len())];
            let time = match rng.u8(..10) {
                // Shorter than any patience, about as long as an outage, longer than one.
                0..3 => rng.u64(100..1_500),
                3..6 => rng.u64(1_500..12_000),
                6..9 => rng.u64(12_000..35_000),
                _ => rng.u64(35_000..80_000),
            };
            self.attack(world, kind, Duration::from_millis(time), &mut rng)?;
        }
        Ok(())
    }

    fn attack(&self, world: &World, kind: Kind, time: Duration, rng: &mut Rng) -> Result<()> {
        let victims = if kind == Kind::Near { &self.near } else { &self.far };
        let victim = rng.choice(victims).context("there are victims")?;
        let prefix = format!("{}/32", victim.address);
        let device = interface(&self.own.name)?;
        let claims = ["floatingIPs", "status"];
        let number = world.begin(Attack {
            kind,
            attacker: self.own.name.clone(),
            victim: victim.name.clone(),
            key: format!("{prefix} dev {device}"),
            claims: claims
                .map(|field| format!("{prefix} claimed by pod {} in {field}", self.own.name))
                .into(),
            begun: now(),
            gone: None,
            from: None,
            until: None,
        });
        let text = format!("attack {number}, {} {}", kind.as_str(), victim.address);
        world.say(format!("{text}: {} begins against {}", self.own.name, victim.name));
        self.claim(world, kind, Some(victim))?;
        let from = now();
        world.amend(number, |attack| attack.from = Some(from));
        world.say_at(from, format!("{text}: its route comes"));
        let ip = |command: &str| world.wires.namespace().ip(command);
        let verb = if kind == Kind::Near { "replace" } else { "add" };
        ip(&format!("route {verb} {prefix} dev {device} scope link"))?;
        world.pause(time, Stage::Over);
        self.claim(world, kind, None)?;
        if kind == Kind::Near {
            ip(&format!("route replace {prefix} dev {} scope link", interface(&victim.name)?))?;
        } else {
            ip(&format!("route del {prefix} dev {device}"))?;
        }
        let until = now();
        world.say_at(until, format!("{text}: its route is gone"));
        world.amend(number, |attack| {
            attack.until = Some(until);
            attack.gone = Some(until);
        });
        Ok(())
    }

    /// What the attacker says in the API of a victim's address, or no longer says.
    fn claim(&self, world: &World, kind: Kind, victim: Option<&Running>) -> Result<()> {
        let (namespace, pod) = split(&self.own.name)?;
        match kind {
            Kind::Far | Kind::Near => {
                let claimed = victim.map(|victim| format!("[\"{}\"]", victim.address));
                let claimed = claimed.map_or(Value::Null, Value::String);
                let patch = annotate(&json!({ "cni.projectcalico.org/floatingIPs": claimed }));
                world.write(None, |objects| objects.patch("pods", namespace, pod, &patch).map(drop))
            }
            Kind::Forged => {
                let status = pretend::running(victim.unwrap_or(&self.own).address);
                world.write(None, |objects| {
                    objects.patch_status("pods", namespace, pod, &status).map(drop)
                })
            }
            Kind::Bare => Ok(()),
        }
    }
}
