//! What can happen in a scenario.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::FeatureState;
use super::cluster::{ServiceEntry, Spoofing};
use super::packets::{PretendStep, SendStep, TranslateStep};
use super::time::duration;

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
    /// The arguments of an `ip` command by which Felix tries to write a route, and which the kernel
    /// refuses since there is one.
    Refused(String),
    /// IPAM gives an address to somebody.
    Allocate(AllocateStep),
    /// IPAM takes an address back; the address's name.
    Release(String),
    /// A Service appears or changes.
    Service(ServiceEntry),
    /// A Service's object is gone.
    ServiceGone(String),
    /// Settings of Felix and the CNI plugin change.
    Felix(FelixStep),
    /// Routes are made and unmade at once.
    Flood(FloodStep),
    /// Packets are sent.
    Send(SendStep),
    /// A rule that translates destinations is made.
    Translate(TranslateStep),
    /// It is taken away.
    Untranslate(TranslateStep),
    /// A pod pretends to have an address by messages to its neighbours.
    Pretend(PretendStep),
    /// Time passes.
    #[serde(deserialize_with = "duration")]
    Wait(Duration),
    /// What the API server does.
    Api(ApiState),
    /// A line for those who watch the demonstration; nothing happens.
    Say(String),
}

/// What the API server does.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ApiState {
    /// Its watches tell nothing of what happens.
    Held,
    /// What was held back is told now, in order.
    Released,
    /// It is gone: its connections break, and it takes no others.
    Down,
    /// It is back.
    Up,
    /// Its watches break off and its history is gone, so that everything has to be listed again;
    /// what was held back is never told.
    Cut,
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
    /// Whether IPAM gives it its addresses, where IPAM is Calico's.
    #[serde(default = "yes")]
    pub ipam: bool,
}

impl PodStep {
    /// Whether it has ended: its addresses are free again.
    pub fn finished(&self) -> bool {
        matches!(self.phase.as_str(), "Succeeded" | "Failed")
    }

    /// Whether IPAM has a part in it at all.
    pub fn asks_ipam(&self) -> bool {
        self.ipam && !self.host_network && !self.finished()
    }
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

/// An address that IPAM gives to a pod or a node's tunnel.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct AllocateStep {
    /// The address's name.
    pub address: String,
    /// The pod that gets it.
    pub pod: Option<String>,
    /// The node that it is for; the agent's where nothing is said.
    pub node: Option<String>,
    /// The pod that takes it over in a live migration.
    pub heir: Option<String>,
    /// The node of that pod; the agent's where nothing is said.
    pub heir_node: Option<String>,
    /// The node whose tunnel gets it, instead of a pod.
    pub tunnel: Option<String>,
}

/// Settings that change; what is not said stays.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct FelixStep {
    /// Calico's version.
    pub version: Option<String>,
    /// Whether pods may ask for source addresses that are not their own.
    pub spoofing: Option<Spoofing>,
    /// Whether pods may ask for addresses past IPAM.
    pub bypass: Option<bool>,
    /// Whether floating IPs are on.
    pub feature: Option<FeatureState>,
}

impl FelixStep {
    /// Takes over what the other says.
    pub fn change(&mut self, other: &Self) {
        let Self { version, spoofing, bypass, feature } = other.clone();
        self.version = version.or(self.version.take());
        self.spoofing = spoofing.or(self.spoofing);
        self.bypass = bypass.or(self.bypass);
        self.feature = feature.or(self.feature);
    }
}

/// Host routes that are made and unmade again, all at once.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct FloodStep {
    /// The interface.
    pub dev: String,
    /// How many.
    pub count: u32,
    /// An `ip` command in the middle of it.
    pub amid: Option<String>,
}

/// Steps that are done many times.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Repeat {
    /// How many times.
    count: usize,
    /// The steps, with `#` for the number of the round.
    steps: Vec<Value>,
}

/// A step, or many.
#[derive(Clone, Debug)]
enum Written {
    Once(Step),
    Many(Repeat),
}

impl<'de> Deserialize<'de> for Written {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(from)?;
        let wrong = |why: serde_json::Error| serde::de::Error::custom(format!("{value}: {why}"));
        match value.get("repeat") {
            Some(repeat) => Repeat::deserialize(repeat).map(Self::Many).map_err(wrong),
            None => Step::deserialize(&value).map(Self::Once).map_err(wrong),
        }
    }
}

/// Reads a list of steps.
pub(super) fn list<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Step>, D::Error> {
    let mut steps = Vec::new();
    for written in Vec::<Written>::deserialize(from)? {
        match written {
            Written::Once(step) => steps.push(step),
            Written::Many(repeat) => {
                for at in 0..repeat.count {
                    for step in &repeat.steps {
                        let step = serde_json::from_value(numbered(step, at));
                        steps.push(step.map_err(serde::de::Error::custom)?);
                    }
                }
            }
        }
    }
    Ok(steps)
}

/// The same with the number for each `#` in its texts.
pub(super) fn numbered(value: &Value, number: usize) -> Value {
    match value {
        Value::String(text) => Value::String(text.replace('#', &number.to_string())),
        Value::Array(list) => list.iter().map(|value| numbered(value, number)).collect(),
        Value::Object(fields) => fields
            .iter()
            .map(|(name, value)| (name.clone(), numbered(value, number)))
            .collect::<serde_json::Map<_, _>>()
            .into(),
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use crate::scenario::words::Words;
    use crate::scenario::{Family, Scenario, step::Step};

    #[test]
    fn repeated_steps_and_expectations_are_numbered() {
        let scenario = Scenario::parse(
            r#"
id: twin
title: Many.
addresses:
  first: [10.0.0.254, "fd00::ffff"]
steps:
  - repeat:
      count: 3
      steps:
        - gone: shop/web-#
        - ip: route add ${first+#/host} dev x
expect:
  - repeat: 2
    each: {key: "${first@ipv6} #", attacker: none, victim: nobody}
"#,
        )
        .unwrap();
        let words = Words { scenario: &scenario, family: Family::Ipv4 };
        let [.., Step::Gone(pod), Step::Ip(arguments)] = &*scenario.steps else {
            panic!("{:?}", scenario.steps)
        };
        assert_eq!((scenario.steps.len(), pod.as_str()), (6, "shop/web-2"));
        assert_eq!(words.expand(arguments).unwrap(), "route add 10.0.1.0/32 dev x");
        let keys = scenario.expect.iter().map(|expected| words.expand(&expected.key).unwrap());
        assert_eq!(keys.collect::<Vec<_>>(), ["fd00::ffff 0", "fd00::ffff 1"]);
    }

    #[test]
    fn a_step_that_is_none_is_told_with_the_step() {
        let wrong = "id: twin\ntitle: x\naddresses: {}\nsteps:\n  - gonne: shop/web\n";
        let error = Scenario::parse(wrong).unwrap_err().to_string();
        assert!(error.contains("gonne"), "{error}");
    }
}
