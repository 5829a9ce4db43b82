//! The configuration file, as it was typed.

use std::fs::File as Opened;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_saphyr::Error as YamlError;

use super::error::{ConfigError, Origin};
use super::value::Typed;
use crate::text::{nearest, printable};

/// No configuration is longer than this, in bytes; a path to something else may well be.
const LONGEST: u64 = 1 << 20;

/// The keys of the file. An absent key means its default; an unknown one is an error.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct File {
    /// Where it was read from.
    #[serde(skip)]
    pub path: PathBuf,
    /// `nodeName`: the node that the agent runs on. No default: NODE_NAME is the usual way.
    pub node_name: Option<Typed<String>>,
    /// `kubeconfig`: a kubeconfig file. Default: the service account of the agent's pod.
    pub kubeconfig: Option<Typed<String>>,
    /// `api`: the API server.
    pub api: Api,
    /// `routeSource`: `auto`, `ebpf` or `netlink`. Default: `auto`.
    pub route_source: Option<Typed<String>>,
    /// `packets`: `auto`, `filters` or `off`. Default: `auto`.
    pub packets: Option<Typed<String>>,
    /// `writers`: how it is known who writes a route: `auto`, `fexit`, `kprobe`, `records` or `port`.
    /// Default: `auto`.
    pub writers: Option<Typed<String>>,
    /// `output`: `json` or `text`. Default: `json`.
    pub output: Option<Typed<String>>,
    /// `interfacePrefixes`: what names of pods' interfaces begin with, as in FelixConfiguration
    /// `interfacePrefix`. Default: `[cali]`.
    pub interface_prefixes: Option<Typed<Vec<Typed<String>>>>,
    /// `uplinks`: interfaces that carry the node's own traffic although their kind (a veth, say)
    /// is one that pods have. Default: none.
    pub uplinks: Vec<Typed<String>>,
    /// `grace`: how long to wait for what.
    pub grace: Grace,
    /// `resyncInterval`: how often the kernel's tables are read anew. Default: `10m`.
    pub resync_interval: Option<Typed<String>>,
    /// `ringBytes`: the size of the ring between the kernel and the agent; a power of two from
    /// 65536 to 1073741824. Default: 4194304.
    pub ring_bytes: Option<Typed<u64>>,
    /// `listen`: where metrics and probes are served, as address:port, or `none`. Default:
    /// `127.0.0.1:9465`.
    pub listen: Option<Typed<String>>,
    /// `socket`: the unix socket for `detector status` and its like, or `none`. Default:
    /// `/run/detector/detector.sock`.
    pub socket: Option<Typed<String>>,
    /// `state`: the file that keeps standing findings over a restart, or `none`. Default:
    /// `/var/lib/detector/state`.
    pub state: Option<Typed<String>>,
    /// `alerts`: how often people are told of what.
    pub alerts: Alerts,
    /// `sinks`: where findings go beside standard output.
    pub sinks: Sinks,
    /// `floatingIPs`: the policy.
    #[serde(rename = "floatingIPs")]
    pub floating_ips: FloatingIps,
}

/// `api`.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Api {
    /// `api.enabled`: whether to ask the API server at all. Without it no owner can be named and
    /// fewer hijacks can be told from legitimate routes. Default: `true`.
    pub enabled: Option<bool>,
}

/// `grace`: durations such as `10s` or `500ms`, from `0s` to `1h`.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Grace {
    /// `grace.newborn`: for a pod that the API does not show yet. Default: `10s`.
    pub newborn: Option<Typed<String>>,
    /// `grace.settle`: for news that travels two ways. Default: `2s`.
    pub settle: Option<Typed<String>>,
    /// `grace.remote`: for a route by another node to a pod that still runs here. Default: `30s`.
    pub remote: Option<Typed<String>>,
    /// `grace.withdraw`: for a route by a node to an address that IPAM gave to another. Default:
    /// `10s`.
    pub withdraw: Option<Typed<String>>,
    /// `grace.sync`: for the first listing of pods. Default: `15s`.
    pub sync: Option<Typed<String>>,
}

/// `alerts`.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Alerts {
    /// `alerts.repeat`: how often a finding that stands is told again; `0s` is never. Default: `4h`.
    pub repeat: Option<Typed<String>>,
    /// `alerts.window`: the time in which messages are counted for the limits. Default: `1m`.
    pub window: Option<Typed<String>>,
    /// `alerts.perAttacker`: messages about one attacker that a sink is told in a window. Default:
    /// 10.
    pub per_attacker: Option<Typed<u64>>,
    /// `alerts.perSink`: messages that a sink is told in a window. Default: 100.
    pub per_sink: Option<Typed<u64>>,
    /// `alerts.runbooks`: what the addresses of runbook pages begin with. Default: the command that
    /// shows the page is named.
    pub runbooks: Option<Typed<String>>,
}

/// `sinks`.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Sinks {
    /// `sinks.journald`: the node's journal.
    pub journald: Journald,
    /// `sinks.events`: Kubernetes Events.
    pub events: Events,
    /// `sinks.alertmanagers`: Alertmanagers, by their API v2.
    pub alertmanagers: Vec<Alertmanager>,
    /// `sinks.webhooks`: other servers.
    pub webhooks: Vec<Webhook>,
}

/// `sinks.journald`.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Journald {
    /// `sinks.journald.enabled`. Default: `false`.
    pub enabled: Option<bool>,
    /// `sinks.journald.socket`. Default: `/run/systemd/journal/socket`.
    pub socket: Option<Typed<String>>,
}

/// `sinks.events`.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Events {
    /// `sinks.events.enabled`. Default: `false`.
    pub enabled: Option<bool>,
}

/// An entry of `sinks.alertmanagers`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Alertmanager {
    /// `name`: by which metrics and logs call it.
    pub name: Typed<String>,
    /// `url`: where it is, without `/api/v2/alerts`.
    pub url: Option<Typed<String>>,
    /// `urlFile`: a file that has the URL, where that is a secret.
    pub url_file: Option<Typed<String>>,
    /// `caFile`: certificates that it is believed by. Default: those of the system.
    pub ca_file: Option<Typed<String>>,
    /// `tokenFile`: a file with a bearer token.
    pub token_file: Option<Typed<String>>,
    /// `leastSeverity`: what is less severe is not sent. Default: `low`.
    pub least_severity: Option<Typed<String>>,
    /// `lingers`: how long an alert is kept standing at least: longer than Alertmanager's
    /// `group_wait`, or what was over before is told to nobody. Default: `1m`.
    pub lingers: Option<Typed<String>>,
}

/// An entry of `sinks.webhooks`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Webhook {
    /// `name`: by which metrics and logs call it.
    pub name: Typed<String>,
    /// `url`: where to post.
    pub url: Option<Typed<String>>,
    /// `urlFile`: a file that has the URL, where that is a secret.
    pub url_file: Option<Typed<String>>,
    /// `caFile`: certificates that it is believed by. Default: those of the system.
    pub ca_file: Option<Typed<String>>,
    /// `tokenFile`: a file with a bearer token.
    pub token_file: Option<Typed<String>>,
    /// `leastSeverity`: what is less severe is not sent. Default: `low`.
    pub least_severity: Option<Typed<String>>,
    /// `format`: `json`, `slack`, `falco` or `otlp`. Default: `json`.
    pub format: Option<Typed<String>>,
    /// `secretFile`: a file with the secret that bodies are signed with.
    pub secret_file: Option<Typed<String>>,
}

/// `floatingIPs`.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct FloatingIps {
    /// `floatingIPs.allow`: which floating IPs are allowed, and to whom. Default: none to nobody.
    pub allow: Vec<Allow>,
}

/// An entry of `floatingIPs.allow`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Allow {
    /// `cidr`: the addresses, as `address/length` without host bits.
    pub cidr: Typed<String>,
    /// `namespace`: of the pods that may have them.
    pub namespace: Typed<String>,
    /// `serviceAccount`: of the pods that may have them.
    pub service_account: Typed<String>,
    /// `expires`: until when, as RFC 3339 writes it. Default: for good.
    pub expires: Option<Typed<String>>,
    /// `reason`: why, for whoever reads it next.
    pub reason: Option<Typed<String>>,
}

// === impl File ===

impl File {
    /// Reads a configuration file.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        Self::parse(path, &Self::text(path)?)
    }

    /// The text of a configuration file.
    pub(super) fn text(path: &Path) -> Result<String, ConfigError> {
        let read = || {
            let mut text = String::new();
            Opened::open(path)?.take(LONGEST + 1).read_to_string(&mut text)?;
            if text.len() as u64 > LONGEST {
                return Err(io::Error::other("it is longer than 1 MiB"));
            }
            Ok(text)
        };
        read().map_err(|source| ConfigError::Read { path: path.into(), source })
    }

    /// Parses the text of a configuration file; `path` is for the errors.
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let options = serde_saphyr::options! { with_snippet: false };
        let parsed: Result<Option<Self>, YamlError> =
            serde_saphyr::from_str_with_options(text, options);
        match parsed {
            Ok(file) => Ok(Self { path: path.into(), ..file.unwrap_or_default() }),
            Err(error) => {
                let (line, column) = error.location().map_or((0, 0), |at| (at.line(), at.column()));
                let origin = Origin::File { path: path.into(), line, column };
                Err(ConfigError::Shape { origin, problem: explain(&error, text, line) })
            }
        }
    }
}

/// What the YAML parser has to say, in this program's words and in one line.
fn explain(error: &YamlError, text: &str, line: u64) -> String {
    match error.without_snippet() {
        YamlError::SerdeUnknownField { field, expected, .. } => {
            let typed = printable(field, 64);
            match nearest(field, expected.iter().copied()) {
                Some(meant) => format!("{typed} is no key here: did you mean {meant}?"),
                None => format!("{typed} is no key here: write one of {}", expected.join(", ")),
            }
        }
        YamlError::SerdeMissingField { field, .. } => {
            let needs = if *field == "name" {
                "name and url"
            } else {
                "cidr, namespace and serviceAccount"
            };
            format!("{field} is missing: an entry needs {needs}")
        }
        YamlError::DuplicateMappingKey { key, .. } => {
            let key = key.as_deref().unwrap_or("a key");
            format!("{} is there twice: keep one", printable(key, 64))
        }
        other => {
            let key = key_on(text, line).map(|key| format!("{key} ")).unwrap_or_default();
            format!("{key}{}", wrong_kind(other))
        }
    }
}

/// What a value of the wrong kind must be instead.
fn wrong_kind(error: &YamlError) -> String {
    match error {
        YamlError::Unexpected { expected, .. } if expected.contains("mapping") => {
            "must be keys with values: write `key: value`, one a line".into()
        }
        YamlError::Unexpected { expected, .. } if expected.contains("sequence") => {
            "must be a list: write [a, b]".into()
        }
        YamlError::Unexpected { expected, .. } if expected.contains("string") => {
            "must be one text: write it in quotes".into()
        }
        YamlError::InvalidScalar { ty: "boolean", .. } => "must be true or false".into(),
        YamlError::InvalidScalar { ty: "u64", .. } => "must be a whole number".into(),
        other => {
            let message = other.to_string();
            let message = message.lines().next().unwrap_or_default();
            // The place is said already, in front.
            let message = message.split_once(" at line ").map_or(message, |(what, _)| what);
            format!("is not YAML: {}; correct it", printable(message, 200))
        }
    }
}

/// The key that stands on a line, for errors that only know the line.
fn key_on(text: &str, line: u64) -> Option<String> {
    let index = usize::try_from(line).ok()?.checked_sub(1)?;
    let (key, _) = text.lines().nth(index)?.trim_start_matches(['-', ' ']).split_once(':')?;
    Some(printable(key, 64))
}
