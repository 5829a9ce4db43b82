//! What the operator wants.
//!
//! [`File`] and [`RunArgs`] are what was typed, [`Config`] is what it means: every value parsed,
//! every default filled in. A flag wins over its environment variable (clap sees to that), both win
//! over the file. Nothing wrong is ever passed over: each [`ConfigError`] is one line that names the
//! place, the key, what is wrong with it and what to write instead.

mod error;
mod file;
pub mod outlets;
mod reference;
pub mod reload;
mod show;
pub(crate) mod value;

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::ValueEnum;
use detector_core::link::InterfaceName;
use detector_core::policy::Allowance;
use detector_core::settings::Settings;
use detector_core::workload::NodeName;
use jiff::Timestamp;

pub use self::error::{ConfigError, Origin};
pub use self::file::{Allow, Api, File, FloatingIps, Grace};
pub use self::outlets::{Alerts, Doors, Outlets};
use self::value::Typed;
use crate::cli::RunArgs;
use crate::policy::Allowed;

/// Where routes are seen from.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, ValueEnum)]
pub enum RouteSource {
    /// eBPF where the kernel takes it, else netlink.
    #[default]
    Auto,
    /// eBPF or nothing.
    Ebpf,
    /// Netlink notifications, which a burst of changes can overflow.
    Netlink,
}

/// How packets are watched.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, ValueEnum)]
pub enum PacketSource {
    /// By eBPF programs, hung on interfaces by filters of the qdisc clsact at first, then by TCX where
    /// the kernel has it.
    #[default]
    Auto,
    /// By eBPF programs on filters of the qdisc clsact, whoever stands before them.
    Filters,
    /// Not at all: nothing is counted, and spoofed sources are not seen.
    Off,
}

/// How it is known who writes a route.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, ValueEnum)]
pub enum WriterSource {
    /// Read while it writes, and refused writes by tracing, by trampolines or else by probes.
    #[default]
    Auto,
    /// The same, with trampolines (fexit) or no tracing.
    Fexit,
    /// The same, with probes (kprobe) or no tracing.
    Kprobe,
    /// Read while it writes; nothing is traced, and refused writes are not seen.
    Records,
    /// By the netlink port alone: nothing of the kernel's memory is read.
    Port,
}

impl WriterSource {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Fexit => "fexit",
            Self::Kprobe => "kprobe",
            Self::Records => "records",
            Self::Port => "port",
        }
    }

    /// Whether the functions that write are to be traced.
    pub fn traces(self) -> bool {
        !matches!(self, Self::Records | Self::Port)
    }
}

/// A place in the kernel where the agent hangs a program, or reads.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, ValueEnum)]
pub enum Hook {
    /// The filter that records route changes.
    Route,
    /// The reading of tasks in it.
    Tasks,
    /// The trampoline of the function that writes IPv4 routes.
    FexitIpv4,
    /// The trampoline of the function that writes IPv6 routes.
    FexitIpv6,
    /// The probes of the function that writes IPv4 routes.
    KprobeIpv4,
    /// The probes of the function that writes IPv6 routes.
    KprobeIpv6,
    /// The programs on interfaces.
    Packets,
    /// The filter of connections.
    Connections,
}

/// Hooks that are to be taken for refused by the kernel: for drills, and for tests of what is then
/// degraded.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Refused(Vec<Hook>);

impl Refused {
    /// These.
    pub fn new(hooks: Vec<Hook>) -> Self {
        Self(hooks)
    }

    /// Whether a hook is among them.
    pub fn has(&self, hook: Hook) -> bool {
        self.0.contains(&hook)
    }
}

/// What findings look like on standard output.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, ValueEnum)]
pub enum Output {
    /// One JSON object a line.
    #[default]
    Json,
    /// One sentence a line.
    Text,
}

/// What the configuration reference looks like.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, ValueEnum)]
pub enum ReferenceForm {
    /// For people: docs/configuration.md.
    #[default]
    Markdown,
    /// The JSON Schema of the file: docs/schema/config.v1.json.
    Schema,
}

/// The effective configuration.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Config {
    /// The node that the agent runs on.
    pub node: NodeName,
    /// The kubeconfig file; `None` means the service account of the agent's own pod.
    pub kubeconfig: Option<PathBuf>,
    /// Whether to ask the API server at all.
    pub api: bool,
    /// Where routes are seen from.
    pub route_source: RouteSource,
    /// How packets are watched.
    pub packets: PacketSource,
    /// How it is known who writes a route.
    pub writers: WriterSource,
    /// What is to be taken for refused by the kernel.
    pub refused: Refused,
    /// What findings look like on standard output.
    pub output: Output,
    /// What names of pods' interfaces begin with.
    pub interface_prefixes: Vec<Box<str>>,
    /// Interfaces that are uplinks whatever their kind.
    pub uplinks: Vec<InterfaceName>,
    /// [`Settings::newborn`].
    pub newborn: Duration,
    /// [`Settings::settle`].
    pub settle: Duration,
    /// [`Settings::remote`].
    pub remote: Duration,
    /// [`Settings::withdraw`].
    pub withdraw: Duration,
    /// [`Settings::sync`].
    pub sync: Duration,
    /// How often the kernel's tables are read anew although nothing was lost.
    pub resync_interval: Duration,
    /// The size of the ring between the kernel and the agent, in bytes: a power of two.
    pub ring_bytes: u32,
    /// Where an operator looks at the agent.
    pub doors: Doors,
    /// How often people are told of what.
    pub alerts: Alerts,
    /// Where findings go beside standard output.
    pub outlets: Outlets,
    /// The allow-list, as it was written.
    pub allowed: Vec<Allowed>,
}

/// The least and the most that each kind of duration can be set to.
const GRACE: (Duration, Duration) = (Duration::ZERO, Duration::from_hours(1));
const RESYNC: (Duration, Duration) = (Duration::from_secs(10), Duration::from_hours(24));
/// The least and the most that the ring can have.
const RING: (u32, u32) = (64 << 10, 1 << 30);
/// `IFNAMSIZ - 1` less the 11 digits that Calico puts behind the prefix.
const LONGEST_INTERFACE_PREFIX: usize = 4;
/// More entries than this are a mistake, and every floating IP is held against each of them.
pub(crate) const MOST_ALLOWED: usize = 4096;
/// Where an entry of the file is written, as findings name it.
const ORIGIN: &str = "configuration";

/// The configuration that `args`, the environment and the file named by them amount to.
pub fn load(args: &RunArgs) -> Result<Config, ConfigError> {
    let file = args.config.as_deref().map_or_else(|| Ok(File::default()), File::read)?;
    Config::resolve(args, &file)
}

/// What `detector config check` says of a good file.
pub fn check(path: &Path) -> Result<String, ConfigError> {
    // The node's name is given to each pod of a DaemonSet, so a good file need not have it.
    let args = RunArgs { node_name: Some("any".into()), ..RunArgs::default() };
    let config = Config::resolve(&args, &File::read(path)?)?;
    let entries = match config.allowed.len() {
        1 => "1 allow-list entry".to_owned(),
        entries => format!("{entries} allow-list entries"),
    };
    let now = Timestamp::now();
    let expired = match config.allowed.iter().filter(|entry| !entry.is_in_force(now)).count() {
        0 => String::new(),
        expired => format!(", {expired} of them expired"),
    };
    Ok(format!("{}: ok, {entries}{expired}", error::shown_path(path)))
}

/// What `detector config show` says: the effective configuration, as a file that gives it again.
pub fn show(args: &RunArgs) -> Result<String, ConfigError> {
    load(args)?.to_yaml()
}

/// What `detector config reference` says: every key, for people or as a JSON Schema.
pub fn reference(form: ReferenceForm) -> Result<String, ConfigError> {
    match form {
        ReferenceForm::Markdown => reference::markdown(),
        ReferenceForm::Schema => serde_json::to_string_pretty(&reference::schema()?)
            .map_err(|error| ConfigError::Show(error.to_string())),
    }
}

// === impl Config ===

impl Config {
    /// What the flags (with the environment behind them) and the file mean together.
    pub fn resolve(args: &RunArgs, file: &File) -> Result<Self, ConfigError> {
        // Taken apart, so that a key that nobody looks at does not compile.
        let File {
            path: _,
            node_name,
            kubeconfig,
            api,
            route_source,
            packets,
            writers,
            output,
            interface_prefixes,
            uplinks,
            grace,
            resync_interval,
            ring_bytes,
            listen: _,
            socket: _,
            state: _,
            alerts: _,
            sinks: _,
            floating_ips,
        } = file;
        let at = |key| Place { file, key };
        let defaults = Settings::for_node(NodeName("".into()));

        let from_file = node_name.as_ref().map(|name| at("nodeName").parse(name, value::node_name));
        let from_file = from_file.transpose()?;
        let typed = args.node_name.as_deref().filter(|name| !name.is_empty());
        let typed = typed.map(|name| {
            let origin = Origin::Flag { flag: "--node-name", variable: "NODE_NAME" };
            value::node_name(name).map_err(|problem| ConfigError::value(origin, "", problem))
        });
        let node = typed.transpose()?.or(from_file).ok_or(ConfigError::NoNodeName)?;

        let typed = args.kubeconfig.clone().filter(|path| !path.as_os_str().is_empty());
        let from_file = kubeconfig.as_ref().map(|path| at("kubeconfig").parse(path, value::path));
        let kubeconfig = typed.or(from_file.transpose()?);

        let from_file = route_source.as_ref().map(|v| at("routeSource").parse(v, value::choice));
        let route_source = args.route_source.or(from_file.transpose()?).unwrap_or_default();
        let from_file = packets.as_ref().map(|v| at("packets").parse(v, value::choice));
        let packets = args.packets.or(from_file.transpose()?).unwrap_or_default();
        let from_file = writers.as_ref().map(|v| at("writers").parse(v, value::choice));
        let writers = args.writers.or(from_file.transpose()?).unwrap_or_default();
        let from_file = output.as_ref().map(|v| at("output").parse(v, value::choice));
        let output = args.output.or(from_file.transpose()?).unwrap_or_default();

        let interface_prefixes = match interface_prefixes {
            Some(prefixes) if prefixes.value.is_empty() => {
                let problem = "is empty: every interface would be without a pod; write [cali]";
                return Err(at("interfacePrefixes").wrong(prefixes, problem));
            }
            Some(prefixes) => {
                at("interfacePrefixes").parse_each(&prefixes.value, value::interface_prefix)?
            }
            None => defaults.interface_prefixes,
        };
        let uplinks = at("uplinks").parse_each(uplinks, value::interface_name)?;

        let Grace { newborn, settle, remote, withdraw, sync } = grace;
        let duration = |key, typed: &Option<Typed<String>>, range, default| {
            parse_duration(file, key, typed.as_ref(), range, default)
        };
        let Api { enabled } = api;
        Ok(Self {
            node,
            kubeconfig,
            api: !args.no_api && enabled.unwrap_or(true),
            route_source,
            packets,
            writers,
            refused: Refused::new(args.refuse.clone()),
            output,
            interface_prefixes,
            uplinks,
            newborn: duration("grace.newborn", newborn, GRACE, defaults.newborn)?,
            settle: duration("grace.settle", settle, GRACE, defaults.settle)?,
            remote: duration("grace.remote", remote, GRACE, defaults.remote)?,
            withdraw: duration("grace.withdraw", withdraw, GRACE, defaults.withdraw)?,
            sync: duration("grace.sync", sync, GRACE, defaults.sync)?,
            resync_interval: duration(
                "resyncInterval",
                resync_interval,
                RESYNC,
                Duration::from_mins(10),
            )?,
            ring_bytes: match ring_bytes {
                Some(bytes) => value::ring_bytes(bytes.value)
                    .map_err(|problem| at("ringBytes").wrong(bytes, problem))?,
                None => 4 << 20,
            },
            doors: Doors::resolve(args, file)?,
            alerts: Alerts::resolve(file)?,
            outlets: Outlets::resolve(file)?,
            allowed: allowed(file, floating_ips)?,
        })
    }

    /// The engine's settings.
    pub fn settings(&self) -> Settings {
        Settings {
            interface_prefixes: self.interface_prefixes.clone(),
            uplinks: self.uplinks.clone(),
            newborn: self.newborn,
            settle: self.settle,
            remote: self.remote,
            withdraw: self.withdraw,
            sync: self.sync,
            ..Settings::for_node(self.node.clone())
        }
    }

    /// The keys of the file whose values differ, but for the allow-list: those that a running agent
    /// does not take over.
    pub fn differences(&self, other: &Self) -> Vec<&'static str> {
        // Taken apart, so that a key that is not compared does not compile.
        let Self {
            node,
            kubeconfig,
            api,
            route_source,
            packets,
            writers,
            // Said by a flag only.
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
            doors,
            alerts,
            outlets,
            allowed: _,
        } = self;
        let keys = [
            ("nodeName", *node == other.node),
            ("kubeconfig", *kubeconfig == other.kubeconfig),
            ("api.enabled", *api == other.api),
            ("routeSource", *route_source == other.route_source),
            ("packets", *packets == other.packets),
            ("writers", *writers == other.writers),
            ("output", *output == other.output),
            ("interfacePrefixes", *interface_prefixes == other.interface_prefixes),
            ("uplinks", *uplinks == other.uplinks),
            ("grace.newborn", *newborn == other.newborn),
            ("grace.settle", *settle == other.settle),
            ("grace.remote", *remote == other.remote),
            ("grace.withdraw", *withdraw == other.withdraw),
            ("grace.sync", *sync == other.sync),
            ("resyncInterval", *resync_interval == other.resync_interval),
            ("ringBytes", *ring_bytes == other.ring_bytes),
            ("listen", doors.listen == other.doors.listen),
            ("socket", doors.socket == other.doors.socket),
            ("state", doors.state == other.doors.state),
            ("alerts", *alerts == other.alerts),
            ("sinks", *outlets == other.outlets),
        ];
        keys.into_iter().filter(|(_, same)| !same).map(|(key, _)| key).collect()
    }
}

fn allowed(file: &File, floating_ips: &FloatingIps) -> Result<Vec<Allowed>, ConfigError> {
    let at = |key| Place { file, key };
    let FloatingIps { allow } = floating_ips;
    let mut allowed: Vec<Allowed> = Vec::new();
    for entry in allow {
        let Allow { cidr, namespace, service_account, expires, reason } = entry;
        let reason = reason.as_ref().map(|r| at("floatingIPs.allow.reason").parse(r, value::line));
        let expires =
            expires.as_ref().map(|e| at("floatingIPs.allow.expires").parse(e, value::time));
        let allowance = Allowance {
            cidr: at("floatingIPs.allow.cidr").parse(cidr, value::cidr)?,
            namespace: at("floatingIPs.allow.namespace").parse(namespace, value::namespace)?,
            service_account: at("floatingIPs.allow.serviceAccount")
                .parse(service_account, value::service_account)?,
            origin: ORIGIN.into(),
            reason: reason.transpose()?,
        };
        if allowed.iter().any(|earlier| earlier.allows_the_same_as(&allowance)) {
            let problem = "is allowed twice to this service account: keep one entry";
            return Err(at("floatingIPs.allow.cidr").wrong(cidr, problem));
        }
        if allowed.len() == MOST_ALLOWED {
            let problem = format!("is one entry too many: at most {MOST_ALLOWED} are taken");
            return Err(at("floatingIPs.allow").wrong(cidr, problem));
        }
        allowed.push(Allowed { allowance, expires: expires.transpose()? });
    }
    Ok(allowed)
}

/// A duration of the file, or the default where there is none.
fn parse_duration(
    file: &File,
    key: &'static str,
    typed: Option<&Typed<String>>,
    (least, most): (Duration, Duration),
    default: Duration,
) -> Result<Duration, ConfigError> {
    let parse = |text: &str| value::duration(text, least, most);
    typed.map_or(Ok(default), |typed| Place { file, key }.parse(typed, parse))
}

/// A key of the file, to say so where its value is wrong.
#[derive(Clone, Copy)]
struct Place<'a> {
    file: &'a File,
    key: &'static str,
}

// === impl Place ===

impl Place<'_> {
    fn flag(flag: &'static str, variable: &'static str, problem: String) -> ConfigError {
        ConfigError::value(Origin::Flag { flag, variable }, "", problem)
    }

    fn parse<T>(
        self,
        typed: &Typed<String>,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Result<T, ConfigError> {
        parse(&typed.value).map_err(|problem| self.wrong(typed, problem))
    }

    fn parse_each<T: PartialEq>(
        self,
        typed: &[Typed<String>],
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Result<Vec<T>, ConfigError> {
        let mut values = Vec::with_capacity(typed.len());
        for typed in typed {
            let value = self.parse(typed, &parse)?;
            if values.contains(&value) {
                return Err(self.wrong(typed, "is listed twice: keep one"));
            }
            values.push(value);
        }
        Ok(values)
    }

    fn wrong<T>(self, typed: &Typed<T>, problem: impl Into<String>) -> ConfigError {
        let at = typed.referenced;
        let path = self.file.path.clone();
        let origin = Origin::File { path, line: at.line(), column: at.column() };
        ConfigError::value(origin, self.key, problem.into())
    }
}

#[cfg(test)]
mod tests;
