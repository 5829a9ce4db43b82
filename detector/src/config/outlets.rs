//! What the configuration says of where findings go, and of how an operator looks at the agent.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::ValueEnum;
use detector_core::finding::Severity;

use super::error::ConfigError;
use super::file::{self, File};
use super::value::{self, Typed};
use super::{Place, parse_duration};

/// Where an operator looks at the running agent, and where it keeps what must survive it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Doors {
    /// Where metrics and probes are served; `None` is nowhere.
    pub listen: Option<SocketAddr>,
    /// The unix socket that `detector status` and its like speak to; `None` is none.
    pub socket: Option<PathBuf>,
    /// The file that keeps standing findings over a restart; `None` is none.
    pub state: Option<PathBuf>,
}

/// How often people are told of what.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Alerts {
    /// How often a finding that stands is told again; zero is never.
    pub repeat: Duration,
    /// The time in which messages are counted for the limits.
    pub window: Duration,
    /// Messages about one attacker that a sink is told in a window; the rest is told in a summary.
    pub per_attacker: u32,
    /// Messages that a sink is told in a window; the rest is told in a summary.
    pub per_sink: u32,
    /// What the address of a runbook page begins with. `None` names the command that shows it.
    pub runbooks: Option<Box<str>>,
}

/// The sinks beside standard output.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Outlets {
    /// The socket of journald, where findings go there.
    pub journald: Option<PathBuf>,
    /// Whether Kubernetes Events are written.
    pub events: bool,
    /// Alertmanagers.
    pub alertmanagers: Vec<Alertmanager>,
    /// Webhooks.
    pub webhooks: Vec<Webhook>,
}

/// A server that findings are sent to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Remote {
    /// The name by which metrics and logs call it.
    pub name: Box<str>,
    /// Where it is.
    pub at: Address,
    /// Certificates that it is believed by, in PEM; `None` is those of the system.
    pub ca_file: Option<PathBuf>,
    /// A file with the bearer token that is sent.
    pub token_file: Option<PathBuf>,
    /// What is less severe is not sent.
    pub least: Severity,
}

/// An address, or the file that has it: of some, knowing the address is all it takes to write there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Address {
    /// The URL.
    Url(Box<str>),
    /// The file that holds it.
    File(PathBuf),
}

/// An Alertmanager.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Alertmanager {
    /// The server.
    pub remote: Remote,
    /// How long an alert is kept standing at least: longer than `group_wait`.
    pub lingers: Duration,
}

/// A webhook.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Webhook {
    /// The server.
    pub remote: Remote,
    /// The shape of what is sent.
    pub format: Format,
    /// A file with the secret that bodies are signed with (HMAC-SHA256).
    pub secret_file: Option<PathBuf>,
}

/// The shape of what a webhook gets.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, ValueEnum)]
pub enum Format {
    /// A finding or a summary as JSON, as on standard output.
    #[default]
    Json,
    /// A message for a Slack channel.
    Slack,
    /// An alert as Falco writes it, such as Falcosidekick forwards.
    Falco,
    /// A log record for an OpenTelemetry collector (OTLP/HTTP, JSON).
    Otlp,
}

/// The word for "nowhere" where an address or a path is expected.
pub(super) const NONE: &str = "none";

const LISTEN: &str = "127.0.0.1:9465";
const SOCKET: &str = "/run/detector/detector.sock";
const STATE: &str = "/var/lib/detector/state";
const JOURNAL: &str = "/run/systemd/journal/socket";

pub(super) const REPEAT: (Duration, Duration) = (Duration::ZERO, Duration::from_hours(24 * 7));
pub(super) const WINDOW: (Duration, Duration) = (Duration::from_secs(1), Duration::from_hours(1));
pub(super) const LINGERS: (Duration, Duration) = (Duration::ZERO, Duration::from_hours(1));
pub(super) const LIMIT: (u32, u32) = (1, 100_000);
/// So many remote sinks are more than anybody has.
const MOST_REMOTES: usize = 32;

// === impl Doors ===

impl Doors {
    /// By the flags and the file.
    pub(super) fn resolve(args: &crate::cli::RunArgs, file: &File) -> Result<Self, ConfigError> {
        let at = |key| Place { file, key };
        let listen = match (&args.listen, &file.listen) {
            (Some(listen), _) => value::listen(listen)
                .map_err(|problem| Place::flag("--listen", "DETECTOR_LISTEN", problem))?,
            (None, Some(typed)) => at("listen").parse(typed, value::listen)?,
            (None, None) => value::listen(LISTEN).unwrap_or_default(),
        };
        let path = |flag: &Option<PathBuf>, key, typed: &Option<Typed<String>>, default: &str| {
            let path = match (flag, typed) {
                (Some(path), _) => path.clone(),
                (None, Some(typed)) => at(key).parse(typed, value::path)?,
                (None, None) => default.into(),
            };
            Ok::<_, ConfigError>(Some(path).filter(|path| path != Path::new(NONE)))
        };
        Ok(Self {
            listen,
            socket: path(&args.socket, "socket", &file.socket, SOCKET)?,
            state: path(&args.state, "state", &file.state, STATE)?,
        })
    }

    /// The socket where nobody says another.
    pub fn usual_socket() -> PathBuf {
        SOCKET.into()
    }
}

// === impl Alerts ===

impl Alerts {
    pub(super) fn resolve(file: &File) -> Result<Self, ConfigError> {
        let file::Alerts { repeat, window, per_attacker, per_sink, runbooks } = &file.alerts;
        let at = |key| Place { file, key };
        let limit = |key, typed: &Option<Typed<u64>>, default| match typed {
            Some(typed) => {
                value::number(typed.value, LIMIT).map_err(|problem| at(key).wrong(typed, problem))
            }
            None => Ok(default),
        };
        let runbooks = runbooks
            .as_ref()
            .map(|url| at("alerts.runbooks").parse(url, value::base_url))
            .transpose()?;
        Ok(Self {
            repeat: parse_duration(
                file,
                "alerts.repeat",
                repeat.as_ref(),
                REPEAT,
                Duration::from_hours(4),
            )?,
            window: parse_duration(
                file,
                "alerts.window",
                window.as_ref(),
                WINDOW,
                Duration::from_mins(1),
            )?,
            per_attacker: limit("alerts.perAttacker", per_attacker, 10)?,
            per_sink: limit("alerts.perSink", per_sink, 100)?,
            runbooks,
        })
    }
}

// === impl Outlets ===

impl Outlets {
    pub(super) fn resolve(file: &File) -> Result<Self, ConfigError> {
        let file::Sinks { journald, events, alertmanagers, webhooks } = &file.sinks;
        let at = |key| Place { file, key };
        let socket = match &journald.socket {
            Some(typed) => at("sinks.journald.socket").parse(typed, value::path)?,
            None => JOURNAL.into(),
        };
        let mut names: Vec<Box<str>> = Vec::new();
        let mut taken = |key, typed: &Typed<String>| {
            let name = at(key).parse(typed, value::sink_name)?;
            if names.contains(&name) {
                return Err(at(key).wrong(typed, "names two sinks: give each a name of its own"));
            }
            if names.len() == MOST_REMOTES {
                let problem = format!("is one sink too many: at most {MOST_REMOTES} are taken");
                return Err(at(key).wrong(typed, problem));
            }
            names.push(name.clone());
            Ok(name)
        };
        let mut all = Self {
            journald: journald.enabled.unwrap_or(false).then_some(socket),
            events: events.enabled.unwrap_or(false),
            ..Self::default()
        };
        for entry in alertmanagers {
            let name = taken("sinks.alertmanagers.name", &entry.name)?;
            let file::Alertmanager {
                name: _,
                url,
                url_file,
                ca_file,
                token_file,
                least_severity,
                lingers,
            } = entry;
            let server = Server {
                url: url.as_ref(),
                url_file: url_file.as_ref(),
                ca_file: ca_file.as_ref(),
                token_file: token_file.as_ref(),
                least_severity: least_severity.as_ref(),
            };
            let key = "sinks.alertmanagers.lingers";
            let usual = Duration::from_mins(1);
            all.alertmanagers.push(Alertmanager {
                remote: server.resolve(file, "sinks.alertmanagers", name, &entry.name)?,
                lingers: parse_duration(file, key, lingers.as_ref(), LINGERS, usual)?,
            });
        }
        for entry in webhooks {
            let name = taken("sinks.webhooks.name", &entry.name)?;
            let file::Webhook {
                name: _,
                url,
                url_file,
                ca_file,
                token_file,
                least_severity,
                format,
                secret_file,
            } = entry;
            let server = Server {
                url: url.as_ref(),
                url_file: url_file.as_ref(),
                ca_file: ca_file.as_ref(),
                token_file: token_file.as_ref(),
                least_severity: least_severity.as_ref(),
            };
            let format =
                format.as_ref().map(|f| at("sinks.webhooks.format").parse(f, value::choice));
            let secret =
                secret_file.as_ref().map(|f| at("sinks.webhooks.secretFile").parse(f, value::path));
            all.webhooks.push(Webhook {
                remote: server.resolve(file, "sinks.webhooks", name, &entry.name)?,
                format: format.transpose()?.unwrap_or_default(),
                secret_file: secret.transpose()?,
            });
        }
        Ok(all)
    }
}

/// What is said of a server in either list.
struct Server<'a> {
    url: Option<&'a Typed<String>>,
    url_file: Option<&'a Typed<String>>,
    ca_file: Option<&'a Typed<String>>,
    token_file: Option<&'a Typed<String>>,
    least_severity: Option<&'a Typed<String>>,
}

impl Server<'_> {
    fn resolve(
        &self,
        file: &File,
        key: &'static str,
        name: Box<str>,
        place: &Typed<String>,
    ) -> Result<Remote, ConfigError> {
        let at = Place { file, key };
        let path = |typed: Option<&Typed<String>>| {
            typed.map(|typed| at.parse(typed, value::path)).transpose()
        };
        let address = match (self.url, self.url_file) {
            (Some(url), None) => Address::Url(at.parse(url, value::url)?),
            (None, Some(path)) => Address::File(at.parse(path, value::path)?),
            _ => return Err(at.wrong(place, "needs either url or urlFile: write one of them")),
        };
        let least = self.least_severity.map(|typed| at.parse(typed, value::severity));
        Ok(Remote {
            name,
            at: address,
            ca_file: path(self.ca_file)?,
            token_file: path(self.token_file)?,
            least: least.transpose()?.unwrap_or(Severity::Low),
        })
    }
}
