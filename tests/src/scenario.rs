//! Scenarios: one attack, or one innocent day, as a data file.
//!
//! A file says what the cluster and the node look like when the agent starts (`given`), what
//! happens then (`steps`) and what must be found (`expect`): exactly that and nothing else. The
//! same file runs in the engine alone ([`engine`]) and with the real agent on a real kernel
//! ([`node`]), there with an emulated API server or a real one ([`api`]). The format is documented
//! in docs/scenarios.md.

pub mod api;
pub mod catalogue;
pub mod cluster;
pub mod compare;
pub mod engine;
pub mod expect;
pub mod flood;
pub mod ip;
pub mod ipam;
pub mod node;
pub mod packets;
pub mod pod;
pub mod recorded;
pub mod step;
pub mod time;
pub mod words;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

use self::cluster::{IpamKind, PoolEntry, ServiceEntry, Spoofing};
use self::expect::Expectation;
use self::step::Step;

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
    /// A recording in `recordings`, which is told to the engine instead of any steps.
    pub recording: Option<String>,
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
    /// The ranges that nodes have for their pods, the IPv4 one and the IPv6 one, by name of the
    /// node: host-local IPAM keeps to them.
    #[serde(default, rename = "podCIDRs")]
    pub pod_cidrs: BTreeMap<String, (String, String)>,
    /// Who gives pods their addresses; Calico where there are pools.
    pub ipam: Option<IpamKind>,
    /// IP pools by name.
    #[serde(default)]
    pub pools: BTreeMap<String, PoolEntry>,
    /// Services by `namespace/name`.
    #[serde(default, deserialize_with = "services")]
    pub services: Vec<ServiceEntry>,
    /// Calico's version, where it is known.
    pub calico_version: Option<String>,
    /// Whether pods may ask for source addresses that are not their own.
    #[serde(default)]
    pub spoofing: Spoofing,
    /// Whether pods may ask for addresses past IPAM, where the CNI plugin's configuration is there
    /// to be read.
    pub bypass: Option<bool>,
    /// How things stand when the agent starts.
    #[serde(default, deserialize_with = "step::list")]
    pub given: Vec<Step>,
    /// What happens then.
    #[serde(default, deserialize_with = "step::list")]
    pub steps: Vec<Step>,
    /// What must be found.
    #[serde(default, deserialize_with = "expect::list")]
    pub expect: Vec<Expectation>,
}

fn services<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Vec<ServiceEntry>, D::Error> {
    let entries = BTreeMap::<String, ServiceEntry>::deserialize(from)?;
    Ok(entries.into_iter().map(|(name, entry)| ServiceEntry { name, ..entry }).collect())
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
    #[serde(default, deserialize_with = "time::optional")]
    pub newborn: Option<Duration>,
    /// See `detector_core::settings::Settings::settle`.
    #[serde(default, deserialize_with = "time::optional")]
    pub settle: Option<Duration>,
    /// See `detector_core::settings::Settings::remote`.
    #[serde(default, deserialize_with = "time::optional")]
    pub remote: Option<Duration>,
    /// See `detector_core::settings::Settings::withdraw`.
    #[serde(default, deserialize_with = "time::optional")]
    pub withdraw: Option<Duration>,
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
        if scenario.ipam == Some(IpamKind::Calico) && scenario.pools.is_empty() {
            bail!("ipam: Calico's gives addresses of `pools` only");
        }
        if scenario.recording.is_some() && scenario.engine_only.is_none() {
            bail!("recording: say `engineOnly`, since its kernel and its cluster are gone");
        }
        Ok(scenario)
    }
}

impl Scenario {
    /// Whether packets are sent in it.
    pub fn has_packets(&self) -> bool {
        let mut steps = self.given.iter().chain(&self.steps);
        steps.any(|step| matches!(step, Step::Send(_) | Step::Pretend(_)))
    }

    /// Whether what is expected depends on packets, be it that there are none.
    pub fn counts_packets(&self) -> bool {
        self.has_packets()
            || self.expect.iter().any(|one| one.traffic.is_some() || one.prevented.is_some())
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
