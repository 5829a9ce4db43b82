//! The effective configuration as a file that gives it again.

use std::path::Path;

use clap::ValueEnum;
use detector_core::link::InterfaceName;
use jiff::Timestamp;
use serde::Serialize;
use serde_saphyr::Commented;

use super::outlets::{self, Address, Doors, NONE, Outlets};
use super::value::shown_duration;
use super::{Config, ConfigError};
use crate::policy::Allowed;

/// The file's keys, all of them, in the file's order.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Shown<'a> {
    node_name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    kubeconfig: Option<String>,
    api: Api,
    route_source: String,
    packets: String,
    writers: String,
    output: String,
    interface_prefixes: &'a [Box<str>],
    uplinks: Vec<&'a str>,
    grace: Grace,
    resync_interval: String,
    ring_bytes: u32,
    listen: String,
    socket: String,
    state: String,
    alerts: Alerts<'a>,
    sinks: Sinks<'a>,
    #[serde(rename = "floatingIPs")]
    floating_ips: FloatingIps<'a>,
}

#[derive(Serialize)]
struct Api {
    enabled: bool,
}

#[derive(Serialize)]
struct Grace {
    newborn: String,
    settle: String,
    remote: String,
    withdraw: String,
    sync: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Alerts<'a> {
    repeat: String,
    window: String,
    per_attacker: u32,
    per_sink: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    runbooks: Option<&'a str>,
}

#[derive(Serialize)]
struct Sinks<'a> {
    journald: Journald,
    events: Events,
    alertmanagers: Vec<Remote<'a>>,
    webhooks: Vec<Remote<'a>>,
}

#[derive(Serialize)]
struct Journald {
    enabled: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    socket: Option<String>,
}

#[derive(Serialize)]
struct Events {
    enabled: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Remote<'a> {
    name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    url: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    url_file: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ca_file: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_file: Option<String>,
    least_severity: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    lingers: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    format: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    secret_file: Option<String>,
}

#[derive(Serialize)]
struct FloatingIps<'a> {
    allow: Vec<Allow<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Allow<'a> {
    /// With where it is written, which is no key of the file.
    cidr: Commented<String>,
    namespace: &'a str,
    service_account: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
}

impl Config {
    /// The configuration as YAML, every key with its value.
    pub fn to_yaml(&self) -> Result<String, ConfigError> {
        // Taken apart, so that a field that is not shown does not compile.
        let Self {
            node,
            kubeconfig,
            api,
            route_source,
            packets,
            writers,
            refused: _,
            output,
            interface_prefixes,
            uplinks,
            newborn,
            settle,
            remote,
            withdraw,
            sync,
            resync_interval,
            ring_bytes,
            doors: Doors { listen, socket, state },
            alerts: outlets::Alerts { repeat, window, per_attacker, per_sink, runbooks },
            outlets: Outlets { journald, events, alertmanagers, webhooks },
            allowed,
        } = self;
        let none = || NONE.to_owned();
        let now = Timestamp::now();
        let shown = Shown {
            node_name: &node.0,
            kubeconfig: kubeconfig.as_ref().map(|path| path.to_string_lossy().into_owned()),
            api: Api { enabled: *api },
            route_source: word(route_source),
            packets: word(packets),
            writers: word(writers),
            output: word(output),
            interface_prefixes,
            uplinks: uplinks.iter().map(InterfaceName::as_str).collect(),
            grace: Grace {
                newborn: shown_duration(*newborn),
                settle: shown_duration(*settle),
                remote: shown_duration(*remote),
                withdraw: shown_duration(*withdraw),
                sync: shown_duration(*sync),
            },
            resync_interval: shown_duration(*resync_interval),
            ring_bytes: *ring_bytes,
            listen: listen.map_or_else(none, |listen| listen.to_string()),
            socket: socket.as_deref().map_or_else(none, shown),
            state: state.as_deref().map_or_else(none, shown),
            alerts: Alerts {
                repeat: shown_duration(*repeat),
                window: shown_duration(*window),
                per_attacker: *per_attacker,
                per_sink: *per_sink,
                runbooks: runbooks.as_deref(),
            },
            sinks: Sinks {
                journald: Journald {
                    enabled: journald.is_some(),
                    socket: journald.as_deref().map(shown),
                },
                events: Events { enabled: *events },
                alertmanagers: alertmanagers.iter().map(shown_alertmanager).collect(),
                webhooks: webhooks.iter().map(shown_webhook).collect(),
            },
            floating_ips: FloatingIps {
                allow: allowed.iter().map(|entry| shown_entry(entry, now)).collect(),
            },
        };
        serde_saphyr::to_string(&shown).map_err(|error| ConfigError::Show(error.to_string()))
    }
}

fn shown(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn shown_remote(remote: &outlets::Remote) -> Remote<'_> {
    let outlets::Remote { name, at, ca_file, token_file, least } = remote;
    let (url, url_file) = match at {
        Address::Url(url) => (Some(&**url), None),
        Address::File(path) => (None, Some(shown(path))),
    };
    Remote {
        name,
        url,
        url_file,
        ca_file: ca_file.as_deref().map(shown),
        token_file: token_file.as_deref().map(shown),
        least_severity: least.as_str(),
        lingers: None,
        format: None,
        secret_file: None,
    }
}

fn shown_alertmanager(alertmanager: &outlets::Alertmanager) -> Remote<'_> {
    let outlets::Alertmanager { remote, lingers } = alertmanager;
    Remote { lingers: Some(shown_duration(*lingers)), ..shown_remote(remote) }
}

fn shown_webhook(webhook: &outlets::Webhook) -> Remote<'_> {
    let outlets::Webhook { remote, format, secret_file } = webhook;
    Remote {
        format: Some(word(format)),
        secret_file: secret_file.as_deref().map(shown),
        ..shown_remote(remote)
    }
}

fn shown_entry(allowed: &Allowed, now: Timestamp) -> Allow<'_> {
    let Allowed { allowance, expires } = allowed;
    let mut origin = format!("origin: {}", allowance.origin);
    if !allowed.is_in_force(now) {
        origin.push_str("; not in force: it has expired");
    }
    Allow {
        cidr: Commented(allowance.cidr.to_string(), origin),
        namespace: &allowance.namespace,
        service_account: &allowance.service_account,
        expires: expires.map(|at| at.to_string()),
        reason: allowance.reason.as_deref(),
    }
}

/// The word that the file and the flag have for a choice.
fn word<T: ValueEnum>(choice: &T) -> String {
    choice.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}
