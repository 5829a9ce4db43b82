//! Whatever comes, the limits hold and the summaries are exact.

use std::net::IpAddr;
use std::sync::Arc;

use detector_core::finding::{
    Attacker, Certainty, Charge, Effect, Extent, Finding, FindingKey, Means, Reach, Scope, State,
    Subject, Target, Victim,
};
use detector_core::link::InterfaceName;
use detector_core::route::Prefix;
use detector_core::workload::PodKey;
use proptest::prelude::*;

use super::*;
use crate::clock::BootWall;
use crate::sink::report::Origin;

fn report(attacker: u8, address: u32, how: How) -> Report {
    let name = InterfaceName::new(&format!("cali{attacker}")).unwrap();
    let prefix = Prefix::host(IpAddr::from(address.to_be_bytes()));
    let finding = Finding {
        key: FindingKey { subject: Subject::Prefix(prefix), target: Target::Interface(name) },
        state: State::Opened,
        charge: Charge {
            certainty: Certainty::Hijack,
            severity: Severity::Critical,
            means: Means::Route,
            effect: Effect::Intercept,
            extent: Extent::Exact,
            table: None,
            rule: None,
            attacker: Attacker {
                pod: PodKey::new("default", &format!("evil-{attacker}")),
                ..Attacker::default()
            },
            victim: Victim::Nobody,
            reason: "a test".into(),
            reach: Reach { scope: Scope::Node, why: "".into() },
            evidence: Vec::new(),
            missing: Vec::new(),
            traffic: None,
            writer: None,
        },
        began: BootTime::ZERO,
        ended: None,
        at: BootTime::ZERO,
    };
    let origin = Arc::new(Origin { node: "a".into(), runbooks: None });
    let mut report = Report::new(&origin, BootWall::now(), BootTime::ZERO, finding);
    report.how = how;
    report
}

fn how() -> impl Strategy<Value = How> {
    prop_oneof![Just(How::Opened), Just(How::Updated), Just(How::Repeated), Just(How::Closed)]
}

proptest! {
    /// Of every message it is known whether it was told or summed up, and each is either.
    #[test]
    fn nothing_is_lost_and_the_limits_hold(
        messages in prop::collection::vec((0_u64..400, 0_u8..40, how()), 1..400),
        per_attacker in 1_u32..5,
        per_sink in 1_u32..12,
    ) {
        let window = Duration::from_secs(1);
        let mut limiter = Limiter::new(Limits { window, per_attacker, per_sink });
        let mut now = BootTime::ZERO;
        let (mut told, mut summed) = (0, 0);
        let mut in_window: HashMap<String, u32> = HashMap::new();
        let mut end = None;
        let mut numbers = Vec::new();
        let mut held = Vec::new();
        for (number, (pause, attacker, how)) in messages.iter().enumerate() {
            now = now.after(Duration::from_millis(*pause));
            if let Some(batch) = limiter.end_window(now) {
                summed += batch.counts.sum();
                prop_assert_eq!(batch.counts.sum(), batch.numbers.len() as u64);
                let mut of_all = batch.of_others;
                for attacker in &batch.attackers {
                    of_all.merge(attacker.counts);
                }
                prop_assert_eq!(of_all, batch.counts);
                numbers.extend(batch.numbers);
            }
            if end.is_none_or(|end| now >= end) {
                in_window.clear();
                end = None;
            }
            end.get_or_insert(now.after(window));
            let report = report(*attacker, u32::try_from(number).unwrap(), *how);
            if limiter.admits(now, &report.attacker(), *how) {
                told += 1;
                let side = if *how == How::Closed { "ends" } else { "" };
                *in_window.entry(format!("{side}{}", report.attacker())).or_default() += 1;
            } else {
                limiter.hold(now, number as u64, &report);
                held.push(number as u64);
            }
            let (ends, others): (Vec<_>, Vec<_>) =
                in_window.iter().partition(|(side, _)| side.starts_with("ends"));
            prop_assert!(others.iter().all(|(_, count)| **count <= per_attacker));
            prop_assert!(others.iter().map(|(_, count)| **count).sum::<u32>() <= per_sink);
            prop_assert!(ends.iter().map(|(_, count)| **count).sum::<u32>() <= per_sink);
        }
        if let Some(batch) = limiter.flush(now) {
            summed += batch.counts.sum();
            numbers.extend(batch.numbers);
        }
        prop_assert_eq!(told + summed, messages.len() as u64);
        prop_assert_eq!(numbers, held);
    }
}

#[test]
fn a_quiet_attacker_is_heard_beside_a_loud_one() {
    let limits = Limits { window: Duration::from_mins(1), per_attacker: 10, per_sink: 100 };
    let mut limiter = Limiter::new(limits);
    for number in 0..5_000 {
        let report = report(1, number, How::Opened);
        if !limiter.admits(BootTime::ZERO, &report.attacker(), How::Opened) {
            limiter.hold(BootTime::ZERO, u64::from(number), &report);
        }
    }
    assert!(limiter.admits(BootTime::ZERO, "pod default/quiet", How::Opened));
    let batch = limiter.end_window(BootTime::from_millis(60_000)).unwrap();
    assert_eq!(batch.counts, Counts { opened: 4_990, ..Counts::default() });
    assert_eq!(batch.attackers.len(), 1);
    assert_eq!(batch.attackers[0].attacker, "pod default/evil-1");
    assert_eq!(limiter.next_deadline(), None);
}

#[test]
fn what_is_held_back_in_silence_is_told_at_the_end_of_a_window_of_its_own() {
    let limits = Limits { window: Duration::from_mins(1), per_attacker: 10, per_sink: 100 };
    let mut limiter = Limiter::new(limits);
    limiter.hold(BootTime::ZERO, 1, &report(1, 1, How::Closed));
    assert_eq!(limiter.next_deadline(), Some(BootTime::from_millis(60_000)));
    let batch = limiter.end_window(BootTime::from_millis(60_000)).unwrap();
    assert_eq!((batch.counts.closed, batch.numbers), (1, vec![1]));
}

#[test]
fn reminders_and_the_noise_of_many_leave_room_for_what_is_new() {
    let limits = Limits { window: Duration::from_mins(1), per_attacker: 10, per_sink: 100 };
    let mut limiter = Limiter::new(limits);
    let mut admitted = |attacker: u8, how| {
        limiter.admits(BootTime::ZERO, &report(attacker, 1, how).attacker(), how)
    };
    let reminders = (0..200).filter(|n| admitted(n / 10, How::Repeated)).count();
    assert_eq!(reminders, 50);
    let noise = (0..200).filter(|n| admitted(n / 10, How::Opened)).count();
    assert_eq!(noise, 25 + 12, "the rest of three quarters, and twelve not heard of before");
    assert!(admitted(250, How::Opened), "and still another");
}
