//! The rung with everything: the real agent with its real eBPF program on the real kernel, in a
//! network namespace that stands for the node. Pods' interfaces are veth pairs whose far ends are
//! in another namespace, `ip` makes the routes as Felix would, and the API server is the emulator
//! or a real one ([`api`](super::api)).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::api::Api;
use super::compare::{self, AllSeen, Seen};
use super::words::{Words, interface, pod_key};
use super::{ApiState, FeatureState, PodStep, Step, UPLINK};
use crate::agent::{Agent, Heard, MemoryFile};
use crate::cluster::Cluster;
use crate::netns::Namespace;

/// How long findings may take that are expected, beyond what the scenario itself allows: other
/// scenarios run at the same time.
const PATIENCE: Duration = Duration::from_secs(10);

/// An interface and a route that are certain to be found, to know that all before them was judged.
const CANARY: &str = "calicanary00000";
const CANARY_ROUTE: &str = "198.51.100.0/24";

/// A node with an agent, pods, and an API server.
pub struct Node {
    namespace: Namespace,
    far: Namespace,
    api: Api,
    pods: BTreeSet<String>,
    peers: u32,
}

/// Runs a scenario; gives what was found.
pub fn run(words: Words<'_>, route_source: &str) -> Result<AllSeen> {
    play(Node::new(words)?, words, route_source)
}

/// The same with a real API server, driven by kubectl.
pub fn run_in_cluster(
    words: Words<'_>,
    route_source: &str,
    cluster: Arc<Cluster>,
) -> Result<AllSeen> {
    play(Node::in_cluster(words, cluster)?, words, route_source)
}

fn play(mut node: Node, words: Words<'_>, route_source: &str) -> Result<AllSeen> {
    for step in &words.scenario.given {
        node.step(words, step).with_context(|| format!("given: {step:?}"))?;
    }
    let agent = node.start_agent(words, route_source)?;
    for step in &words.scenario.steps {
        node.step(words, step).with_context(|| format!("step {step:?}"))?;
    }
    let mut all = AllSeen::new();
    wait_for_expected(words, &agent, &mut all)?;
    node.sing(&agent, &mut all)?;
    agent.stop()?;
    Ok(all)
}

fn configuration(words: Words<'_>, more: &Value) -> Result<String> {
    let scenario = words.scenario;
    let allow = scenario
        .allow
        .iter()
        .map(|entry| {
            Ok(json!({
                "cidr": words.expand(&entry.cidr)?,
                "namespace": entry.namespace,
                "serviceAccount": entry.service_account,
            }))
        })
        .collect::<Result<Vec<_>>>()?;
    let timing = scenario.settings;
    let grace: serde_json::Map<String, Value> =
        [("newborn", timing.newborn), ("settle", timing.settle), ("remote", timing.remote)]
            .into_iter()
            .filter_map(|(key, grace)| {
                Some((key.to_owned(), json!(format!("{}ms", grace?.as_millis()))))
            })
            .collect();
    let mut all = json!({ "grace": grace, "floatingIPs": { "allow": allow } });
    for (key, value) in more.as_object().into_iter().flatten() {
        all[key] = value.clone();
    }
    // JSON is YAML.
    Ok(all.to_string())
}

impl Node {
    /// A node without an agent, and an emulated API server.
    pub fn new(words: Words<'_>) -> Result<Self> {
        Self::with(words, Api::emulated)
    }

    /// A node without an agent, of a cluster that is emptied for it.
    pub fn in_cluster(words: Words<'_>, cluster: Arc<Cluster>) -> Result<Self> {
        Self::with(words, |namespace| Api::real(cluster, namespace))
    }

    fn with(words: Words<'_>, api: impl FnOnce(&Namespace) -> Result<Api>) -> Result<Self> {
        let namespace = Namespace::new()?;
        let far = Namespace::new()?;
        namespace.ip(&format!("link add {UPLINK} type bridge"))?;
        namespace.ip(&format!("link set {UPLINK} up"))?;
        let api = api(&namespace)?;
        for (name, addresses) in &words.scenario.nodes {
            let addresses = addresses
                .iter()
                .map(|name| Ok(json!({"type": "InternalIP", "address": words.address(name)?})))
                .collect::<Result<Vec<_>>>()?;
            api.apply(json!({
                "apiVersion": "v1", "kind": "Node", "metadata": {"name": name},
                "status": {"addresses": addresses},
            }))?;
        }
        let mut spec = json!({});
        match words.scenario.feature {
            FeatureState::Absent => {}
            FeatureState::Enabled => spec["floatingIPs"] = json!("Enabled"),
            FeatureState::Disabled => spec["floatingIPs"] = json!("Disabled"),
        }
        api.apply(json!({
            "apiVersion": "crd.projectcalico.org/v1", "kind": "FelixConfiguration",
            "metadata": {"name": "default"}, "spec": spec,
        }))?;
        Ok(Self { namespace, far, api, pods: BTreeSet::new(), peers: 0 })
    }

    /// The network namespace that stands for the node.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Starts the agent on the node, and waits until it is ready.
    pub fn start_agent(&self, words: Words<'_>, route_source: &str) -> Result<Agent> {
        self.start_agent_with(words, route_source, &json!({}))
    }

    /// The same, with more in its configuration file.
    pub fn start_agent_with(
        &self,
        words: Words<'_>,
        route_source: &str,
        more: &Value,
    ) -> Result<Agent> {
        let kubeconfig = MemoryFile::new(&self.api.kubeconfig())?;
        let config = MemoryFile::new(&configuration(words, more)?)?;
        let mut agent = Agent::start(
            &self.namespace,
            &[
                "--node-name",
                &words.scenario.node,
                "--kubeconfig",
                &kubeconfig.path(),
                "--config",
                &config.path(),
                "--route-source",
                route_source,
                "--output",
                "json",
            ],
        )?;
        agent.wait_until_ready()?;
        Ok(agent)
    }

    /// Makes a step happen.
    pub fn step(&mut self, words: Words<'_>, step: &Step) -> Result<()> {
        match step {
            Step::Pod(pod) => self.pod(words, pod),
            Step::Annotate(step) => {
                let annotations = annotations(words, &step.annotations)?;
                self.patch(&step.pod, &json!({"metadata": {"annotations": annotations}}))
            }
            Step::Status(step) => {
                let status = addresses(words, &step.addresses)?;
                self.patch(&step.pod, &json!({"status": status}))
            }
            Step::Terminate(pod) => {
                let key = pod_key(pod)?;
                self.api.terminate(key.namespace(), key.name())
            }
            Step::Gone(pod) => {
                let key = pod_key(pod)?;
                self.api.remove("pods", key.namespace(), key.name())?;
                self.pods.remove(pod);
                Ok(())
            }
            Step::Link(pod) => self.link(&interface(pod)?),
            Step::Unlink(pod) => self.namespace.ip(&format!("link del {}", interface(pod)?)),
            Step::Ip(arguments) => {
                let arguments = words.expand(arguments)?;
                let family = if words.family == super::Family::Ipv4 { "-4" } else { "-6" };
                self.namespace.ip(&format!("{family} {arguments}"))
            }
            Step::Wait(duration) => {
                std::thread::sleep(*duration);
                Ok(())
            }
            Step::Api(ApiState::Held) => self.api.hold_watches(),
            Step::Api(ApiState::Released) => self.api.release_watches(),
            Step::Say(_) => Ok(()),
        }
    }

    fn pod(&mut self, words: Words<'_>, step: &PodStep) -> Result<()> {
        let key = pod_key(&step.name)?;
        let node = step.node.as_deref().unwrap_or(&words.scenario.node);
        if *node == *words.scenario.node && step.wired && !step.host_network {
            let name = interface(&step.name)?;
            self.link(&name)?;
            for address in &step.addresses {
                let prefix = words.expand(&format!("${{{address}/host}}"))?;
                self.namespace.ip(&format!("route add {prefix} dev {name} scope link proto 3"))?;
            }
        }
        let mut status = addresses(words, &step.addresses)?;
        status["phase"] = json!(step.phase);
        let mut annotations = annotations(words, &step.annotations)?;
        if let Some(first) = step.addresses.first() {
            let cni = |name: &str| format!("cni.projectcalico.org/{name}");
            let prefix = words.expand(&format!("${{{first}/host}}"))?;
            annotations.entry(cni("podIP")).or_insert_with(|| json!(prefix));
            annotations.entry(cni("podIPs")).or_insert_with(|| json!(prefix));
            annotations
                .entry(cni("containerID"))
                .or_insert_with(|| json!(format!("sandbox of {key}")));
        }
        if self.pods.insert(step.name.clone()) {
            self.api.apply(json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {
                    "namespace": key.namespace(), "name": key.name(), "annotations": annotations,
                },
                "spec": {
                    "nodeName": node,
                    "serviceAccountName": step.service_account,
                    "hostNetwork": step.host_network,
                    "containers": [{"name": "main", "image": "example"}],
                },
                "status": status,
            }))?;
            return Ok(());
        }
        self.patch(&step.name, &json!({"metadata": {"annotations": annotations}, "status": status}))
    }

    fn patch(&self, pod: &str, patch: &Value) -> Result<()> {
        let key = pod_key(pod)?;
        ensure!(self.pods.contains(pod), "no pod {pod}");
        self.api.patch("pods", key.namespace(), key.name(), patch)?;
        Ok(())
    }

    /// An interface as the CNI plugin makes it: its far end is in the pod's namespace.
    fn link(&mut self, name: &str) -> Result<()> {
        self.peers += 1;
        let peer = format!("pod{}", self.peers);
        self.namespace
            .ip(&format!("link add {name} type veth peer name {peer} netns {}", self.far.path()))?;
        self.far.ip(&format!("link set {peer} up"))?;
        self.namespace.ip(&format!("link set {name} up"))
    }

    /// Makes a hijack that is certain to be found, and listens until it is: all that came before it
    /// has been judged then.
    fn sing(&self, agent: &Agent, all: &mut AllSeen) -> Result<()> {
        self.namespace.ip(&format!("link add {CANARY} type veth peer name canary"))?;
        self.namespace.ip(&format!("link set {CANARY} up"))?;
        self.namespace.ip(&format!("route add {CANARY_ROUTE} dev {CANARY}"))?;
        let end = Instant::now() + PATIENCE;
        let key = format!("{CANARY_ROUTE} dev {CANARY}");
        while all.remove(&key).is_none() {
            let left = end.saturating_duration_since(Instant::now());
            let heard = agent.next_finding(left)?.context("the agent no longer finds anything")?;
            hear(all, &heard)?;
        }
        Ok(())
    }
}

/// Listens until all that is expected has been heard, or for too long.
fn wait_for_expected(words: Words<'_>, agent: &Agent, all: &mut AllSeen) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    let mut keys = Vec::new();
    for expected in &words.scenario.expect {
        keys.push((words.expand(&expected.key)?, expected.closed));
    }
    let satisfied = |all: &AllSeen| {
        keys.iter().all(|(key, closed)| {
            all.get(key).is_some_and(|seen| !closed || seen.states.last() == Some(&"closed"))
        })
    };
    while !satisfied(all) {
        let left = end.saturating_duration_since(Instant::now());
        match agent.next_finding(left)? {
            Some(heard) => hear(all, &heard)?,
            None => break,
        }
    }
    Ok(())
}

fn addresses(words: Words<'_>, names: &[String]) -> Result<Value> {
    let addresses: Vec<String> =
        names.iter().map(|name| Ok(words.address(name)?.to_string())).collect::<Result<_>>()?;
    let all: Vec<Value> = addresses.iter().map(|address| json!({"ip": address})).collect();
    Ok(match addresses.first() {
        Some(first) => json!({"podIP": first, "podIPs": all}),
        None => json!({}),
    })
}

fn annotations(
    words: Words<'_>,
    annotations: &std::collections::BTreeMap<String, String>,
) -> Result<serde_json::Map<String, Value>> {
    annotations
        .iter()
        .map(|(name, value)| {
            let value = match value.as_str() {
                "" => Value::Null,
                value => json!(words.expand(value)?),
            };
            Ok((format!("cni.projectcalico.org/{name}"), value))
        })
        .collect()
}

/// Takes a line of the agent into the common form.
fn hear(all: &mut AllSeen, heard: &Heard) -> Result<()> {
    let finding = &heard.finding;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    ensure!(finding["schema"] == "detector.finding/v1", "not a finding: {finding}");
    let began = finding["bootTime"]["began"].as_u64().context("a finding began")?;
    let state = match finding["state"].as_str() {
        Some("opened") => "opened",
        Some("updated") => "updated",
        Some("closed") => "closed",
        other => anyhow::bail!("not a state: {other:?}"),
    };
    let seen = Seen {
        key: text(&finding["key"]),
        states: Vec::new(),
        verdict: text(&finding["verdict"]),
        severity: text(&finding["severity"]),
        means: text(&finding["means"]),
        effect: text(&finding["effect"]),
        extent: text(&finding["extent"]),
        attacker: attacker(&finding["attacker"]),
        victim: victim(&finding["victim"]),
        reason: text(&finding["reason"]),
        evidence: finding["evidence"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|evidence| text(&evidence["text"]))
            .collect(),
        partial: finding["partial"] == true,
        latency: Duration::from_nanos(heard.at.as_nanos().saturating_sub(began)),
    };
    compare::add(all, state, seen);
    Ok(())
}

fn attacker(value: &Value) -> String {
    let part = |name: &str| value[name].as_str();
    match (part("pod"), part("gateway"), part("interface")) {
        (Some(pod), ..) => format!("pod {}/{pod}", part("namespace").unwrap_or_default()),
        (None, Some(gateway), _) => format!("gateway {gateway}"),
        (None, None, Some(interface)) => format!("interface {interface}"),
        (None, None, None) => "none".to_owned(),
    }
}

fn victim(value: &Value) -> String {
    let part = |name: &str| value[name].as_str().unwrap_or_default();
    match part("kind") {
        "pod" => format!("pod {}/{}", part("namespace"), part("name")),
        "node" => format!("node {}", part("name")),
        "serviceAccount" => format!("service account {}/{}", part("namespace"), part("name")),
        "prefix" => format!("everyone in {}", part("name")),
        other => other.to_owned(),
    }
}
