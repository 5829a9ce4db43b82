//! The agent's numbers, for metrics and status.

use super::Agent;
use crate::doors::Watching;
use crate::source::packets::Packets;
use crate::telemetry::{Kind, Outcome, Stage, Standing, Watch, What, take_over};

impl Agent {
    /// Takes the numbers over that others keep. It is done each second, so that a scrape costs nothing
    /// but the writing of them.
    pub(super) fn show_numbers(&self) {
        let telemetry = &self.telemetry;
        let kernel = self.kernel.counters();
        let packets = self.packets.as_ref().map(Packets::counters).unwrap_or_default();
        let lost = [
            ("ring", kernel.lost),
            ("decode", kernel.unparsed),
            ("refusals", kernel.refusals_lost),
            ("pretences", packets.pretence_lost),
            ("packets", packets.uncounted),
        ];
        for (stage, lost) in lost {
            take_over(&telemetry.lost.get_or_create(&Stage::new(stage)), lost);
        }
        let count = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        let holdings = self.mind.holdings();
        let known = [
            ("routes", holdings.routes),
            ("interfaces", holdings.links),
            ("pods", holdings.pods),
            ("services", holdings.services),
            ("answers", holdings.answers),
        ];
        for (what, known) in known {
            telemetry.known.get_or_create(&What::new(what)).set(count(known));
        }
        let pending = [("questions", holdings.questions), ("findings", holdings.waiting)];
        for (what, pending) in pending {
            telemetry.pending.get_or_create(&What::new(what)).set(count(pending));
        }
        take_over(&telemetry.overflowed, holdings.overflowed);
        self.show_standing();
        if let Some(cluster) = &self.cluster {
            let counts = cluster.counts();
            take_over(&telemetry.requests, counts.requests);
            take_over(&telemetry.failures, counts.failures);
            take_over(&telemetry.questions, counts.questions);
            take_over(&telemetry.unanswered, counts.unanswered);
            take_over(&telemetry.rejected, counts.rejections);
            for (watch, silence) in cluster.silences() {
                let silent = telemetry.watch_silence.get_or_create(&Watch::new(&watch));
                silent.set(silence.as_secs_f64());
            }
        }
        let reloads = self.policy.reloads();
        for (result, reloads) in [("ok", reloads.ok()), ("refused", reloads.refused())] {
            take_over(&telemetry.reloads.get_or_create(&Outcome::new(result)), reloads);
        }
        let interfaces =
            [("pod", packets.pods), ("uplink", packets.uplinks), ("refused", packets.refused)];
        for (kind, interfaces) in interfaces {
            telemetry.interfaces.get_or_create(&Kind::new(kind)).set(count(interfaces));
        }
        telemetry.addresses.set(count(packets.watched));
        telemetry.ready.set(i64::from(self.pulse.is_ready()));
        self.health.tick();
    }

    /// All combinations that were ever seen are shown, those of which none stands as 0.
    fn show_standing(&self) {
        let mut standing = std::collections::BTreeMap::new();
        for finding in self.mind.standing() {
            let charge = &finding.charge;
            let key = (charge.certainty.as_str(), charge.severity.as_str());
            *standing.entry(key).or_insert(0_i64) += 1;
        }
        for verdict in ["hijack", "attempt", "unproven"] {
            for severity in ["critical", "high", "medium", "low"] {
                let count = standing.get(&(verdict, severity)).copied().unwrap_or_default();
                let labels = Standing::new(verdict, severity);
                self.telemetry.standing.get_or_create(&labels).set(count);
            }
        }
    }

    /// What is watched, for those who ask.
    pub(super) fn watching(&self) -> Watching {
        let packets = self.packets.as_ref().map(Packets::counters).unwrap_or_default();
        Watching {
            routes: self.kernel.as_str(),
            packets: self.packets.as_ref().map(|packets| packets.hooks().as_str()),
            holdings: self.mind.holdings(),
            interfaces: (packets.pods, packets.uplinks, packets.refused),
            addresses: packets.watched,
            told: self.sinks.told(),
            dumps: self.dumps,
        }
    }
}
