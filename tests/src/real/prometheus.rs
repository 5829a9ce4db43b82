//! Debian's Prometheus: it scrapes the agent, evaluates rules, and tells an Alertmanager.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use super::http::Request;
use super::place::{Place, Port};
use super::server::Server;
use crate::netns::Namespace;

/// What it needs.
pub const PROGRAMS: &[&str] = &["prometheus", "promtool"];

/// How often it is asked whether what a test waits for is there. It scrapes as often.
const ASK_EVERY: Duration = Duration::from_millis(200);

/// A running Prometheus. It ends, and its folder vanishes, when it is dropped.
#[derive(Debug)]
pub struct Prometheus(Server);

// === impl Prometheus ===

impl Prometheus {
    /// Starts Prometheus on loopback of a namespace, or of the test's own, and waits until it is
    /// ready. It scrapes a target, `address:port`, for the job `detector`; evaluates the rules of a
    /// file, where one is given; and tells an Alertmanager of alerts, where one is given.
    ///
    /// It scrapes, and finds the Alertmanager, only five seconds after its start: so long it gathers
    /// targets, and nothing makes that shorter.
    pub fn start(
        namespace: Option<&Namespace>,
        scrape: &str,
        rules: Option<&Path>,
        alertmanager: Option<SocketAddr>,
    ) -> Result<Self> {
        let place = Place::of(namespace)?;
        let port = Port::reserve(&place, 0)?;
        // It would look for a relative path beside its configuration.
        let absolute = |path: &Path| {
            path.canonicalize().with_context(|| format!("no rules in {}", path.display()))
        };
        let rules: Vec<_> = rules.map(absolute).transpose()?.into_iter().collect();
        let alertmanagers: Vec<Value> = alertmanager
            .iter()
            .map(|addr| json!({ "static_configs": [{ "targets": [addr] }] }))
            .collect();
        let config = json!({
            "global": {
                "scrape_interval": "200ms",
                "scrape_timeout": "200ms",
                "evaluation_interval": "200ms",
            },
            "scrape_configs": [{
                "job_name": "detector",
                "static_configs": [{ "targets": [scrape] }],
            }],
            "rule_files": rules,
            "alerting": { "alertmanagers": alertmanagers },
        });
        // It tells of what goes on firing so often that an Alertmanager that was away hears of it.
        let arguments = ["--storage.tsdb.path=data", "--rules.alert.resend-delay=1s"];
        Server::start(PROGRAMS[0], place, port, &config, &arguments).map(Self)
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.0.addr()
    }

    /// The value of an expression now: an array of series, where it is a vector.
    pub fn query(&self, expression: &str) -> Result<Vec<Value>> {
        let expression: String = form_urlencoded::byte_serialize(expression.as_bytes()).collect();
        self.list(&format!("/api/v1/query?query={expression}"), "result")
    }

    /// The alerts that are pending or firing.
    pub fn alerts(&self) -> Result<Vec<Value>> {
        self.list("/api/v1/alerts", "alerts")
    }

    /// What it scrapes, and how that went last.
    pub fn targets(&self) -> Result<Vec<Value>> {
        self.list("/api/v1/targets", "activeTargets")
    }

    /// Waits until the value of an expression is as wanted; gives the value.
    pub fn wait_for(
        &self,
        expression: &str,
        wanted: impl Fn(&[Value]) -> bool,
        patience: Duration,
    ) -> Result<Vec<Value>> {
        let end = Instant::now() + patience;
        loop {
            let value = self.query(expression)?;
            if wanted(&value) {
                return Ok(value);
            }
            if Instant::now() >= end {
                let [value, targets] = [value, self.targets()?].map(Value::Array);
                bail!("{expression} is still {value} after {patience:?}; it scrapes {targets}");
            }
            std::thread::sleep(ASK_EVERY);
        }
    }

    fn list(&self, target: &str, name: &str) -> Result<Vec<Value>> {
        let mut answer = self.0.ask(&Request::get(target))?.json()?;
        match answer.pointer_mut(&format!("/data/{name}")).map(Value::take) {
            Some(Value::Array(list)) => Ok(list),
            _ => bail!("Prometheus gives no {name} for {target}: {answer}"),
        }
    }
}

/// Runs promtool, which checks and tests rules; gives what it prints.
pub fn promtool(arguments: &[&str]) -> Result<String> {
    let mut command = Command::new("promtool");
    command.args(arguments);
    crate::process::end_with_thread(&mut command);
    let output = command.output().context("cannot start promtool")?;
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    if !output.status.success() {
        bail!("promtool {}: {}", arguments.join(" "), said.trim());
    }
    Ok(said.into_owned())
}
