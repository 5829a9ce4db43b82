//! Debian's Alertmanager: it takes alerts, groups them, and tells a webhook.

use std::net::SocketAddr;

use anyhow::{Result, bail};
use serde_json::{Value, json};

use super::http::Request;
use super::place::{Place, Port};
use super::server::Server;
use crate::netns::Namespace;

/// What it needs.
pub const PROGRAMS: &[&str] = &["prometheus-alertmanager"];

/// A running Alertmanager. It ends, and its folder vanishes, when it is dropped.
#[derive(Debug)]
pub struct Alertmanager(Server);

// === impl Alertmanager ===

impl Alertmanager {
    /// Starts Alertmanager on loopback of a namespace, or of the test's own, and waits until it is
    /// ready. It listens on this port, or on any where it is zero, and tells the webhook at a URL,
    /// where one is given, of all alerts, grouped by name, without much ado.
    pub fn start(namespace: Option<&Namespace>, port: u16, webhook: Option<&str>) -> Result<Self> {
        let place = Place::of(namespace)?;
        let port = Port::reserve(&place, port)?;
        let webhooks: Vec<Value> =
            webhook.iter().map(|url| json!({ "url": url, "send_resolved": true })).collect();
        let config = json!({
            "route": {
                "receiver": "test",
                "group_by": ["alertname"],
                "group_wait": "100ms",
                "group_interval": "200ms",
                // What is told again within a test is told for another reason than the time.
                "repeat_interval": "1h",
            },
            "receivers": [{ "name": "test", "webhook_configs": webhooks }],
        });
        // It is alone: it looks for no others of its kind.
        let arguments = ["--storage.path=data", "--cluster.listen-address="];
        Server::start(PROGRAMS[0], place, port, &config, &arguments).map(Self)
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.0.addr()
    }

    /// Its URL, without a slash at the end.
    pub fn url(&self) -> String {
        format!("http://{}", self.addr())
    }

    /// Kills it: connections break off, and new ones are refused.
    pub fn stop(&self) {
        self.0.stop();
    }

    /// Starts it at the same address, killing the one that runs. It has forgotten all alerts.
    pub fn restart(&self) -> Result<()> {
        self.0.restart()
    }

    /// The alerts that fire.
    pub fn alerts(&self) -> Result<Vec<Value>> {
        self.list("/api/v2/alerts")
    }

    /// The groups of alerts that fire.
    pub fn groups(&self) -> Result<Vec<Value>> {
        self.list("/api/v2/alerts/groups")
    }

    /// Tells it of alerts, an array as its API wants them.
    pub fn post(&self, alerts: &Value) -> Result<()> {
        self.0.ask(&Request::post("/api/v2/alerts", alerts)).map(drop)
    }

    fn list(&self, path: &str) -> Result<Vec<Value>> {
        match self.0.ask(&Request::get(path))?.json()? {
            Value::Array(list) => Ok(list),
            other => bail!("Alertmanager gives no list for {path}: {other}"),
        }
    }
}
