//! A test of the sinks: the same way that a finding takes, with a finding that says that it is none.

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use detector_core::finding::{
    Attacker, Certainty, Charge, Effect, Evidence, Extent, Finding, FindingKey, Means, Reach,
    Scope, Severity, State, Subject, Target, Victim, Witness,
};
use detector_core::route::{Prefix, Table};

use super::{Ask, In, Origin, Report, Sinks};
use crate::clock::{self, BootWall};
use crate::config::Config;
use crate::health::Health;
use crate::source::cluster::Cluster;
use crate::telemetry::Telemetry;

/// How long the sinks may take.
const PATIENCE: Duration = Duration::from_secs(15);

/// Sends a test finding through every sink of the configuration; writes what became of it, a line for
/// each sink. True where all took it.
pub async fn run(mut config: Config, out: &mut dyn Write) -> Result<bool> {
    // A running agent has the state file, and a test is nothing to remember.
    config.doors.state = None;
    let telemetry = Arc::new(Telemetry::default());
    let health = Health::new(Arc::clone(&telemetry));
    let client = if config.outlets.events && config.api {
        Some(Cluster::connect(&config).await?.client())
    } else {
        None
    };
    let (sinks, _) = Sinks::start(&config, client, &health, &telemetry, None)
        .context("no thread for the sinks: raise the limit of processes")?;
    let origin = Origin::of(&config);
    sinks.send(In::Ask(Ask::Test(Box::new(report(&Arc::new(origin))))));
    tokio::task::spawn_blocking(move || sinks.end_within(PATIENCE)).await?;
    let mut all = true;
    let degraded = health.degraded();
    for sink in telemetry.sinks().into_iter().filter(|sink| sink.name != super::DESK) {
        let delivered = sink.delivered > 0;
        all &= delivered;
        let capability = format!("sink:{}", sink.name);
        let why = degraded.iter().find(|degraded| degraded.capability == capability);
        let why = why.map_or("it did not take it in time", |degraded| &*degraded.why);
        if delivered {
            writeln!(out, "{}: delivered", sink.name)?;
        } else {
            writeln!(out, "{}: not delivered: {why}", sink.name)?;
        }
    }
    Ok(all)
}

/// A finding about an address that is set aside for documentation (RFC 5737).
pub(super) fn report(origin: &Arc<Origin>) -> Report {
    let now = clock::now();
    let address = std::net::IpAddr::from([192, 0, 2, 1]);
    let finding = Finding {
        key: FindingKey { subject: Subject::Prefix(Prefix::host(address)), target: Target::Host },
        state: State::Opened,
        charge: Charge {
            certainty: Certainty::Unproven,
            severity: Severity::Critical,
            means: Means::Route,
            effect: Effect::Intercept,
            extent: Extent::Squat,
            table: Some(Table::MAIN),
            rule: None,
            attacker: Attacker::default(),
            victim: Victim::Nobody,
            reason: "somebody tests whether alerts arrive (detector test-alert)".into(),
            reach: Reach { scope: Scope::Node, why: "there is no such route".into() },
            evidence: vec![Evidence {
                at: now,
                witness: Witness::Policy,
                text: "it was asked for on the command line".into(),
            }],
            missing: Vec::new(),
            traffic: None,
            writer: None,
        },
        began: now,
        ended: None,
        at: now,
    };
    let mut report = Report::new(origin, BootWall::now(), now, finding);
    report.test = true;
    report
}
