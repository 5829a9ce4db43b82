//! What attackers do, and what must be found.

use std::fmt;
use std::net::IpAddr;

use fastrand::Rng;

use super::plan::{Act, FAR, MS, Micros, NEAR, SECOND};
use super::world::{node_address, service_address};

/// The kinds of attack; the letters and numbers are those of the catalogue.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Kind {
    /// E01, E02, E04, E09: a floating IP annotation and the route that Felix makes of it.
    FloatingIp,
    /// E06: the status is forged, and Felix moves the pod's route.
    Status,
    /// E05: both.
    StatusAndFloatingIp,
    /// E07: the annotation of the CNI plugin is forged while the status is empty.
    EarlyAnnotation,
    /// E08: a pod is made with an address that IPAM did not give to it.
    Bypass,
    /// E10: the route lives for milliseconds.
    Flap,
    /// E11: the route of a pod of the node is replaced.
    Replace,
    /// E12: a route by a node that has not the address.
    Remote,
    /// E13: a route that was there before the address had an owner.
    Stale,
    /// E14: a prefix.
    Prefix,
    /// E19: the address is dropped.
    Blackhole,
    /// E26: the translation alone, on a version that heeds no switch.
    Silent,
    /// E29: an annotation that nothing follows from.
    Intent,
}

/// All kinds.
pub const KINDS: [Kind; 13] = [
    Kind::FloatingIp,
    Kind::Status,
    Kind::StatusAndFloatingIp,
    Kind::EarlyAnnotation,
    Kind::Bypass,
    Kind::Flap,
    Kind::Replace,
    Kind::Remote,
    Kind::Stale,
    Kind::Prefix,
    Kind::Blackhole,
    Kind::Silent,
    Kind::Intent,
];

/// A step of an attack.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Step {
    /// Evil's pod appears, with an empty status.
    Appear,
    /// The route appears that Felix, or whoever, makes.
    Route,
    /// The route is gone again.
    RouteGone,
    /// Annotation `floatingIPs`.
    Annotate,
    /// The annotation is taken back.
    Unannotate,
    /// Annotation `podIPs`.
    AnnotateEarly,
    /// The status names the victim's address.
    Forge,
    /// The address gets an owner at last.
    Owner,
}

/// Whose address is taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Prey {
    Near,
    Far,
    Node,
    Service,
}

/// An attack as planned.
#[derive(Clone, Debug)]
pub(super) struct Attack {
    pub(super) kind: Kind,
    pub(super) prey: Prey,
    pub(super) time: Micros,
    /// The address that is taken, once the attack is under way.
    pub(super) address: Option<IpAddr>,
}

// === impl Kind ===

impl Kind {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::FloatingIp => "floating-ip",
            Self::Status => "status",
            Self::StatusAndFloatingIp => "status-and-floating-ip",
            Self::EarlyAnnotation => "early-annotation",
            Self::Bypass => "bypass",
            Self::Flap => "flap",
            Self::Replace => "replace",
            Self::Remote => "remote",
            Self::Stale => "stale",
            Self::Prefix => "prefix",
            Self::Blackhole => "blackhole",
            Self::Silent => "silent",
            Self::Intent => "intent",
        }
    }

    /// Whether evil's pod is made by the attack itself.
    pub(super) fn makes_its_pod(self) -> bool {
        matches!(self, Self::EarlyAnnotation | Self::Bypass)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Plans an attack of this kind.
pub(super) fn plan(
    rng: &mut Rng,
    kind: Kind,
    time: Micros,
    acts: &mut Vec<(Micros, Act)>,
) -> Attack {
    let mut at = |time: Micros, step: Step| acts.push((time, Act::Attack(step)));
    let soon = time + rng.u64(MS..200 * MS);
    let prey = match kind {
        Kind::FloatingIp => {
            *rng.choice(&[Prey::Near, Prey::Far, Prey::Node, Prey::Service]).unwrap_or(&Prey::Far)
        }
        Kind::Replace | Kind::Prefix | Kind::Silent => Prey::Near,
        // On the victim's own node the CNI plugin refuses: the route is there.
        Kind::Bypass => Prey::Far,
        _ if rng.bool() => Prey::Near,
        _ => Prey::Far,
    };
    match kind {
        Kind::FloatingIp => {
            at(time, Step::Annotate);
            at(soon, Step::Route);
        }
        Kind::Status => {
            at(time, Step::Forge);
            at(soon, Step::Route);
        }
        Kind::StatusAndFloatingIp => {
            at(time, Step::Annotate);
            at(time + rng.u64(0..50 * MS), Step::Forge);
            at(soon, Step::Route);
        }
        Kind::EarlyAnnotation => {
            at(time, Step::Appear);
            at(time + 10 * MS, Step::AnnotateEarly);
            at(soon + 10 * MS, Step::Route);
        }
        Kind::Bypass => {
            at(time, Step::Appear);
            at(soon, Step::Route);
            at(soon + rng.u64(100 * MS..5 * SECOND), Step::Forge);
        }
        Kind::Flap => {
            at(time, Step::Annotate);
            at(soon, Step::Route);
            at(soon + rng.u64(100..20 * MS), Step::RouteGone);
            at(soon + 25 * MS, Step::Unannotate);
        }
        Kind::Replace | Kind::Remote | Kind::Prefix | Kind::Blackhole => at(time, Step::Route),
        Kind::Stale => {
            at(time, Step::Route);
            at(time + rng.u64(SECOND..60 * SECOND), Step::Owner);
        }
        Kind::Silent | Kind::Intent => at(time, Step::Annotate),
    }
    Attack { kind, prey, time, address: None }
}

impl Attack {
    /// The life whose address is taken, where it is a pod's.
    pub(super) fn victim(&self) -> Option<usize> {
        match self.prey {
            Prey::Near => Some(NEAR),
            Prey::Far => Some(FAR),
            Prey::Node | Prey::Service => None,
        }
    }

    /// The address that is taken, where it is no pod's.
    pub(super) fn fixed_address(&self) -> Option<IpAddr> {
        match self.prey {
            Prey::Node => Some(node_address(1)),
            Prey::Service => Some(service_address()),
            Prey::Near | Prey::Far => None,
        }
    }
}
