//! Scenarios: one attack, or one innocent day, as a data file.
//!
//! A file says what the cluster and the node look like when the agent starts (`given`), what
//! happens then (`steps`) and what must be found (`expect`): exactly that and nothing else. The
//! same file runs in the engine alone ([`engine`]) and with the real agent on a real kernel
//! ([`node`]), there with an emulated API server or a real one ([`api`]). The format is documented in docs/scenarios.md.

pub mod api;
pub mod compare;
pub mod engine;
pub mod ip;
pub mod node;
pub mod words;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

/// The node's uplink in every scenario. Its kind is one that every kernel has.
pub const UPLINK: &str = "uplink0";

/// A scenario file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Scenario {
    /// The row of the threat model's catalogue, such as `E01`, or `twin` for an innocent day.
    pub id: String,
    /// What happens, in a sentence.
    pub title: String,
    /// The families that it makes sense for; it runs once for each.
    #[serde(default = "both_families")]
    pub families: Vec<Family>,
    /// Why it cannot run on a real kernel; only the engine runs it then.
    pub engine_only: Option<String>,
    /// The name of the node that the agent runs on.
    #[serde(default = "default_node")]
    pub node: String,
    /// Addresses by name: the IPv4 one and the IPv6 one.
    pub addresses: BTreeMap<String, (String, String)>,
    /// What the agent is set to; its defaults where nothing is said.
    #[serde(default)]
    pub settings: Timing,
    /// Whether floating IPs are on.
    #[serde(default)]
    pub feature: FeatureState,
    /// The allow-list.
    #[serde(default)]
    pub allow: Vec<AllowEntry>,
    /// Nodes of the cluster: names of their addresses by name of the node.
    #[serde(default)]
    pub nodes: BTreeMap<String, Vec<String>>,
    /// How things stand when the agent starts.
    #[serde(default)]
    pub given: Vec<Step>,
    /// What happens then.
    #[serde(default)]
    pub steps: Vec<Step>,
    /// What must be found.
    #[serde(default)]
    pub expect: Vec<Expectation>,
}

fn default_node() -> String {
    "node-a".to_owned()
}

fn both_families() -> Vec<Family> {
    vec![Family::Ipv4, Family::Ipv6]
}

/// An address family.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// IPv4.
    Ipv4,
    /// IPv6.
    Ipv6,
}

impl Family {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ipv4 => "ipv4",
            Self::Ipv6 => "ipv6",
        }
    }
}

/// Settings of the agent that a scenario may shorten, so that nobody waits for no reason.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Timing {
    /// See `detector_core::settings::Settings::newborn`.
    #[serde(default, deserialize_with = "optional_duration")]
    pub newborn: Option<Duration>,
    /// See `detector_core::settings::Settings::settle`.
    #[serde(default, deserialize_with = "optional_duration")]
    pub settle: Option<Duration>,
    /// See `detector_core::settings::Settings::remote`.
    #[serde(default, deserialize_with = "optional_duration")]
    pub remote: Option<Duration>,
}

/// Whether floating IPs are on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FeatureState {
    /// FelixConfiguration says nothing: off by default.
    #[default]
    Absent,
    /// FelixConfiguration says Enabled.
    Enabled,
    /// FelixConfiguration says Disabled.
    Disabled,
}

/// An entry of the allow-list.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct AllowEntry {
    /// The addresses; with `${…}`.
    pub cidr: String,
    /// The namespace.
    pub namespace: String,
    /// The service account.
    pub service_account: String,
}

/// One thing that happens.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Step {
    /// A pod appears in the API, or changes. On the agent's node it also gets its interface and
    /// routes, unless `wired: false`.
    Pod(PodStep),
    /// Annotations of a pod are set, or removed by an empty value.
    Annotate(AnnotateStep),
    /// A pod's addresses in its status are overwritten, as `kubectl patch --subresource=status`
    /// would.
    Status(StatusStep),
    /// A pod is asked to end: it gets a deletion timestamp.
    Terminate(String),
    /// A pod's object is gone.
    Gone(String),
    /// A pod's interface comes up, as the CNI plugin makes it.
    Link(String),
    /// A pod's interface goes away, as the CNI plugin removes it.
    Unlink(String),
    /// The arguments of an `ip` command; `-4` or `-6` is added.
    Ip(String),
    /// Time passes.
    #[serde(deserialize_with = "duration")]
    Wait(Duration),
    /// The API's watches deliver nothing, or deliver again.
    Api(ApiState),
    /// A line for those who watch the demonstration; nothing happens.
    Say(String),
}

/// Whether the API server's watches deliver.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ApiState {
    /// Nothing that happens is told.
    Held,
    /// What was held back is told now, in order.
    Released,
}

/// A pod.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct PodStep {
    /// `namespace/name`.
    pub name: String,
    /// Its node; the agent's where nothing is said.
    pub node: Option<String>,
    /// Names of its addresses.
    #[serde(default)]
    pub addresses: Vec<String>,
    /// Its service account.
    #[serde(default = "default_account")]
    pub service_account: String,
    /// Whether it uses the node's network.
    #[serde(default)]
    pub host_network: bool,
    /// Its phase.
    #[serde(default = "default_phase")]
    pub phase: String,
    /// Its annotations, without `cni.projectcalico.org/`; with `${…}`.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
    /// Whether its interface and routes are made too.
    #[serde(default = "yes")]
    pub wired: bool,
}

fn default_account() -> String {
    "default".to_owned()
}

fn default_phase() -> String {
    "Running".to_owned()
}

fn yes() -> bool {
    true
}

/// Annotations to set.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct AnnotateStep {
    /// `namespace/name`.
    pub pod: String,
    /// The annotations, without `cni.projectcalico.org/`; with `${…}`; empty removes.
    pub annotations: BTreeMap<String, String>,
}

/// A status to set.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct StatusStep {
    /// `namespace/name`.
    pub pod: String,
    /// Names of addresses.
    pub addresses: Vec<String>,
}

/// A finding that must be there.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Expectation {
    /// Its key; with `${…}`.
    pub key: String,
    /// The verdict.
    #[serde(default = "hijack")]
    pub verdict: String,
    /// The severity, where it matters.
    pub severity: Option<String>,
    /// The means, where it matters.
    pub means: Option<String>,
    /// The effect, where it matters.
    pub effect: Option<String>,
    /// The extent, where it matters.
    pub extent: Option<String>,
    /// The attacker: `pod ns/name`, `interface NAME` or `none`.
    pub attacker: String,
    /// The victim: `pod ns/name`, `node NAME`, `service account ns/name`, `everyone in PREFIX`,
    /// `nobody`.
    pub victim: String,
    /// Texts that its evidence must have.
    #[serde(default)]
    pub evidence: Vec<String>,
    /// Whether it is over in the end.
    #[serde(default)]
    pub closed: bool,
    /// How long after the kernel's change it must be opened at the latest.
    #[serde(deserialize_with = "duration", default = "default_within")]
    pub within: Duration,
}

fn hijack() -> String {
    "hijack".to_owned()
}

fn default_within() -> Duration {
    Duration::from_secs(1)
}

/// A scenario and where it was read from.
#[derive(Clone, Debug)]
pub struct Named {
    /// The file's name without its ending.
    pub name: String,
    /// The scenario.
    pub scenario: Scenario,
}

impl Scenario {
    /// Reads a scenario from YAML.
    pub fn parse(text: &str) -> Result<Self> {
        let scenario: Self = serde_saphyr::from_str(text)?;
        if scenario.families.is_empty() {
            bail!("families: name ipv4, ipv6 or both");
        }
        for (name, (ipv4, ipv6)) in &scenario.addresses {
            ipv4.parse::<std::net::Ipv4Addr>().with_context(|| format!("addresses: {name}"))?;
            ipv6.parse::<std::net::Ipv6Addr>().with_context(|| format!("addresses: {name}"))?;
        }
        Ok(scenario)
    }
}

/// Reads scenario files.
pub fn load(paths: &[PathBuf]) -> Result<Vec<Named>> {
    let mut scenarios = Vec::new();
    for path in paths {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read scenario {}", path.display()))?;
        let scenario =
            Scenario::parse(&text).with_context(|| format!("in scenario {}", path.display()))?;
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        scenarios.push(Named { name, scenario });
    }
    Ok(scenarios)
}

/// The paths of all scenario files that come with the project, in order.
pub fn all_paths() -> Result<Vec<PathBuf>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(&folder).with_context(|| format!("{}", folder.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|ending| ending == "yaml") {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

fn parse_duration<E: serde::de::Error>(text: &str) -> Result<Duration, E> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: u64 = digits.parse().map_err(|_| E::custom(format!("{text:?} is no duration")))?;
    match &text[digits.len()..] {
        "ms" => Ok(Duration::from_millis(number)),
        "s" => Ok(Duration::from_secs(number)),
        _ => Err(E::custom(format!("{text:?}: a duration ends in ms or s"))),
    }
}

fn duration<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    parse_duration(&String::deserialize(from)?)
}

fn optional_duration<'de, D: serde::Deserializer<'de>>(
    from: D,
) -> Result<Option<Duration>, D::Error> {
    Option::<String>::deserialize(from)?.map(|text| parse_duration(&text)).transpose()
}
