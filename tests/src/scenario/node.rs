//! The rung with everything: the real agent with its real eBPF program on the real kernel, in a
//! network namespace that stands for the node. Pods' interfaces are veth pairs whose far ends are
//! in another namespace, `ip` makes the routes as Felix would, and the API server is the emulator
//! or a real one ([`api`](super::api)).

mod config;
pub(crate) mod frames;
mod hear;
mod netfilter;
mod objects;
mod tcp;
mod wire;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use self::hear::hear;
use self::netfilter::Rule;
use self::wire::{Packets, Wire};
use super::api::Api;
use super::compare::{AllSeen, Sent, Shown};
use super::ipam::{Changed, Ipam};
use super::packets::{Carries, OUTSIDE, SendStep, TranslateStep};
use super::step::{FelixStep, PodStep, Step};
use super::words::{Words, interface, pod_key};
use super::{UPLINK, flood, pod};
use crate::agent::{Agent, MemoryFile};
use crate::cluster::Cluster;
use crate::netns::Namespace;

/// How long findings may take that are expected, beyond what the scenario itself allows: other
/// scenarios run at the same time.
const PATIENCE: Duration = Duration::from_secs(10);

/// An interface and a route that are certain to be found, to know that all before them was judged.
const CANARY: &str = "calicanary00000";
const CANARY_ROUTE: (Ipv4Addr, u8) = (Ipv4Addr::new(198, 51, 100, 0), 24);

/// A node with an agent, pods, and an API server.
pub struct Node<'a> {
    namespace: Namespace,
    far: Namespace,
    api: Api,
    pods: BTreeSet<String>,
    ipam: Ipam<'a>,
    felix: FelixStep,
    peers: u32,
    /// Pods of their own, where the scenario has packets.
    wire: Option<Wire>,
    /// Addresses of pods, by `namespace/name`.
    addresses: BTreeMap<String, Vec<IpAddr>>,
    sent: Sent,
}

/// Runs a scenario; gives what was found. Where it is `lean`, nothing is traced, and there are no programs on
/// interfaces unless packets count: to load all that takes most of an agent's start.
pub fn run(words: Words<'_>, lean: bool) -> Result<Shown> {
    let mut flags = Vec::new();
    if lean {
        flags.extend(["--writers", "records"]);
        if !words.scenario.counts_packets() {
            flags.extend(["--packets", "off"]);
        }
    }
    run_with(words, "ebpf", &flags)
}

/// Runs a scenario on a node that takes no eBPF program but those that the scenario is about: those on
/// interfaces, and that for connections, where packets count.
pub fn run_by_netlink(words: Words<'_>) -> Result<Shown> {
    let mut flags = vec!["--writers", "port"];
    if !words.scenario.counts_packets() {
        flags.extend(["--packets", "off", "--refuse", "connections"]);
    }
    run_with(words, "netlink", &flags)
}

fn run_with(words: Words<'_>, route_source: &str, flags: &[&str]) -> Result<Shown> {
    play(Node::new(words)?, words, |node| node.ready_agent(words, route_source, &json!({}), flags))
}

/// As [`run`] does, but not lean, with a real API server, driven by kubectl.
pub fn run_in_cluster(words: Words<'_>, cluster: Arc<Cluster>) -> Result<Shown> {
    run_launched(words, cluster, |node| node.start_agent(words, "ebpf"))
}

/// The same with an agent that is started, and ready, as the caller likes it.
pub fn run_launched(
    words: Words<'_>,
    cluster: Arc<Cluster>,
    launch: impl FnOnce(&Node<'_>) -> Result<Agent>,
) -> Result<Shown> {
    play(Node::in_cluster(words, cluster)?, words, launch)
}

fn play<'a>(
    mut node: Node<'a>,
    words: Words<'a>,
    launch: impl FnOnce(&Node<'a>) -> Result<Agent>,
) -> Result<Shown> {
    for step in &words.scenario.given {
        node.step(words, step).with_context(|| format!("given: {step:?}"))?;
    }
    let agent = launch(&node)?;
    let both = |one: &Step, next: &Step| matches!((one, next), (Step::Ip(_), Step::Ip(_)));
    for steps in words.scenario.steps.chunk_by(both) {
        match steps {
            [step] => node.step(words, step),
            many => node.ip_at_once(words, many),
        }
        .with_context(|| format!("steps {steps:?}"))?;
    }
    let mut all = AllSeen::new();
    wait_for_expected(words, &agent, &mut all)?;
    node.sing(&agent, &mut all)?;
    agent.stop()?;
    Ok(Shown { seen: all, sent: node.sent })
}

impl<'a> Node<'a> {
    /// A node without an agent, and an emulated API server.
    pub fn new(words: Words<'a>) -> Result<Self> {
        Self::with(words, Api::emulated)
    }

    /// A node without an agent, of a cluster that is emptied for it.
    pub fn in_cluster(words: Words<'a>, cluster: Arc<Cluster>) -> Result<Self> {
        Self::with(words, |namespace| Api::real(cluster, namespace))
    }

    fn with(words: Words<'a>, api: impl FnOnce(&Namespace) -> Result<Api>) -> Result<Self> {
        let namespace = Namespace::new()?;
        let far = Namespace::new()?;
        namespace.netlink(|netlink| {
            netlink.bridge(UPLINK)?;
            netlink.up(UPLINK)
        })?;
        let api = api(&namespace)?;
        let scenario = words.scenario;
        let mut node = Self {
            namespace,
            far,
            api,
            pods: BTreeSet::new(),
            ipam: Ipam::new(words)?,
            felix: FelixStep {
                version: scenario.calico_version.clone(),
                spoofing: Some(scenario.spoofing),
                bypass: scenario.bypass,
                feature: Some(scenario.feature),
            },
            peers: 0,
            wire: None,
            addresses: BTreeMap::new(),
            sent: Sent::default(),
        };
        if scenario.has_packets() {
            node.wire = Some(Wire::new(&node.namespace)?);
        }
        for (name, addresses) in &scenario.nodes {
            node.apply(objects::node(words, name, addresses)?)?;
        }
        for pool in node.ipam.pools() {
            node.apply(objects::pool(pool))?;
        }
        for entry in &scenario.services {
            node.apply(objects::service(words, entry)?)?;
        }
        node.settings(&FelixStep::default())?;
        Ok(node)
    }

    /// The network namespace that stands for the node.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Where the node's API server listens, in the node's namespace.
    pub fn api_addr(&self) -> std::net::SocketAddr {
        self.api.addr()
    }

    /// The agent's configuration that a scenario asks for, and more.
    pub fn configuration(words: Words<'_>, more: &Value) -> Result<String> {
        config::configuration(words, more)
    }

    /// The network namespace of a pod, in a scenario that has packets.
    pub fn pod_namespace(&self, pod: &str) -> Result<&Namespace> {
        self.wire()?.at(&interface(pod)?)
    }

    /// The network namespace of the host outside, in a scenario that has packets.
    pub fn outside_namespace(&self) -> Result<&Namespace> {
        self.wire()?.at(OUTSIDE)
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
        self.ready_agent(words, route_source, more, &[])
    }

    fn ready_agent(
        &self,
        words: Words<'_>,
        route_source: &str,
        more: &Value,
        flags: &[&str],
    ) -> Result<Agent> {
        let mut agent = self.launch_agent(words, route_source, more, flags)?;
        agent.wait_until_ready()?;
        Ok(agent)
    }

    /// Starts the agent with more in its configuration file and on its command line, and waits for
    /// nothing.
    pub fn launch_agent(
        &self,
        words: Words<'_>,
        route_source: &str,
        more: &Value,
        flags: &[&str],
    ) -> Result<Agent> {
        let kubeconfig = MemoryFile::new(&self.api.kubeconfig())?;
        let config = MemoryFile::new(&config::configuration(words, more)?)?;
        let (kubeconfig_path, config_path) = (kubeconfig.path(), config.path());
        let mut arguments = vec![
            "--node-name",
            &words.scenario.node,
            "--kubeconfig",
            &kubeconfig_path,
            "--config",
            &config_path,
            "--route-source",
            route_source,
            "--output",
            "json",
        ];
        for (key, flag) in [("listen", "--listen"), ("socket", "--socket"), ("state", "--state")] {
            if let Some(value) = more[key].as_str() {
                arguments.extend([flag, value]);
            }
        }
        arguments.extend(flags);
        let mut agent = Agent::start(&self.namespace, &arguments)?;
        agent.keep([kubeconfig, config]);
        Ok(agent)
    }

    /// Makes a step happen.
    pub fn step(&mut self, words: Words<'_>, step: &Step) -> Result<()> {
        match step {
            Step::Pod(pod) => self.pod(words, pod),
            Step::Annotate(step) => {
                let annotations = objects::annotations(words, &step.annotations)?;
                self.patch(&step.pod, &json!({"metadata": {"annotations": annotations}}))
            }
            Step::Status(step) => {
                let status = objects::status(words, &step.addresses)?;
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
                let changed = self.ipam.forget(&key);
                self.blocks(&changed)
            }
            Step::Allocate(step) => {
                let changed = self.ipam.allocate(step)?;
                self.blocks(&changed)
            }
            Step::Release(name) => {
                let changed = self.ipam.release(name)?;
                self.blocks(&changed)
            }
            Step::Service(entry) => self.apply(objects::service(words, entry)?),
            Step::ServiceGone(name) => {
                let (namespace, name) = name.split_once('/').context("a Service")?;
                self.api.remove("services", namespace, name)
            }
            Step::Felix(step) => self.settings(step),
            Step::Link(pod) => self.link(&interface(pod)?),
            Step::Unlink(pod) => self.namespace.ip(&format!("link del {}", interface(pod)?)),
            Step::Ip(arguments) => self.namespace.ip(&ip_words(words, arguments)?),
            Step::Refused(arguments) => {
                let arguments = ip_words(words, arguments)?;
                match self.namespace.ip(&arguments) {
                    Ok(()) => bail!("the kernel takes `ip {arguments}`, and should refuse it"),
                    Err(_) => Ok(()),
                }
            }
            Step::Flood(step) => {
                let amid = step.amid.as_deref().map(|text| words.expand(text)).transpose()?;
                let commands = flood::commands(words.family, step, amid.as_deref());
                self.namespace.ip_batch(words.family == super::Family::Ipv6, &commands)
            }
            Step::Wait(duration) => {
                std::thread::sleep(*duration);
                Ok(())
            }
            Step::Api(state) => self.api.turn(*state),
            Step::Send(step) => self.send(words, step),
            Step::Pretend(step) => {
                let address = match &step.address {
                    Some(name) => words.address(name)?,
                    None => "fe80::1".parse()?,
                };
                self.wire()?.pretend(&interface(&step.pod)?, step.sort, address)
            }
            Step::Translate(step) => translation(words, step)?.make(&self.namespace),
            Step::Untranslate(step) => translation(words, step)?.unmake(&self.namespace),
            Step::Say(_) => Ok(()),
        }
    }

    /// Makes changes that follow one another at once by one process.
    fn ip_at_once(&self, words: Words<'_>, steps: &[Step]) -> Result<()> {
        let mut commands = Vec::new();
        for step in steps {
            let Step::Ip(arguments) = step else { bail!("{step:?} is no `ip`") };
            commands.push(words.expand(arguments)?);
        }
        self.namespace.ip_batch(words.family == super::Family::Ipv6, &commands)
    }

    fn pod(&mut self, words: Words<'_>, step: &PodStep) -> Result<()> {
        // In the order of Calico: IPAM's record, the interface with its routes, then the API.
        let changed = self.ipam.pod(step)?;
        self.blocks(&changed)?;
        let key = pod_key(&step.name)?;
        let node = step.node.as_deref().unwrap_or(&words.scenario.node);
        let addresses = step.addresses.iter().map(|name| words.address(name));
        let addresses = addresses.collect::<Result<Vec<_>>>()?;
        if *node == *words.scenario.node && step.wired && !step.host_network {
            let name = interface(&step.name)?;
            self.link(&name)?;
            self.namespace.netlink(|netlink| {
                let host = |to: &IpAddr| (*to, if to.is_ipv4() { 32 } else { 128 });
                addresses.iter().try_for_each(|to| netlink.route(host(to), &name))
            })?;
        }
        self.addresses.insert(step.name.clone(), addresses.clone());
        let mut annotations = pod::written_by_cni(&key, &addresses);
        annotations.extend(step.annotations.clone());
        let annotations = objects::annotations(words, &annotations)?;
        let mut status = objects::status(words, &step.addresses)?;
        status["phase"] = json!(step.phase);
        if self.pods.insert(step.name.clone()) {
            return self.apply(json!({
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
            }));
        }
        self.patch(&step.name, &json!({"metadata": {"annotations": annotations}, "status": status}))
    }

    fn send(&mut self, words: Words<'_>, step: &SendStep) -> Result<()> {
        let to = words.address(&step.to)?;
        let own_of = |pod: &str| {
            let own = self.addresses.get(pod).into_iter().flatten();
            own.into_iter().find(|own| own.is_ipv4() == to.is_ipv4()).copied()
        };
        let own = own_of(&step.from);
        let source = step.source.as_ref().map(|name| words.address(name)).transpose()?;
        let from = if step.is_outside() { step.from.clone() } else { interface(&step.from)? };
        let packets = Packets {
            from: source.or(own).context("packets from outside need `as`")?,
            to,
            carries: step.carries,
            port: step.port,
            count: step.count,
            connections: step.connections,
            payload: step.payload,
        };
        let sent = match (step.carries, &step.answers) {
            (Carries::Tcp, Some(answers)) => {
                // Translated, they arrive for the pod's own address.
                let answering = [Some(to), own_of(answers)].into_iter().flatten();
                self.wire()?.connect(&from, (&interface(answers)?, answering), &packets)?
            }
            (Carries::Tcp, None) => bail!("who answers?"),
            _ => {
                self.wire()?.send(&from, &packets)?;
                step.on_the_wire(to.is_ipv4())
            }
        };
        self.sent.add(to, sent);
        Ok(())
    }

    fn wire(&self) -> Result<&Wire> {
        self.wire.as_ref().context("no pod is on a wire")
    }

    fn apply(&self, object: Value) -> Result<()> {
        self.api.apply(object)
    }

    /// Writes the blocks that changed.
    fn blocks(&self, changed: &Changed) -> Result<()> {
        for block in changed.iter().filter_map(|cidr| self.ipam.block(*cidr)) {
            self.apply(objects::block(&block))?;
        }
        Ok(())
    }

    /// Writes the settings of Felix and the CNI plugin, with what changes in them.
    fn settings(&mut self, change: &FelixStep) -> Result<()> {
        self.felix.change(change);
        for object in objects::settings(&self.felix) {
            self.apply(object)?;
        }
        Ok(())
    }

    fn patch(&self, pod: &str, patch: &Value) -> Result<()> {
        let key = pod_key(pod)?;
        ensure!(self.pods.contains(pod), "no pod {pod}");
        self.api.patch("pods", key.namespace(), key.name(), patch)
    }

    /// An interface as the CNI plugin makes it: its far end is in the pod's namespace.
    fn link(&mut self, name: &str) -> Result<()> {
        if let Some(wire) = &mut self.wire {
            return wire.link(&self.namespace, name);
        }
        self.peers += 1;
        let peer = format!("pod{}", self.peers);
        self.namespace.netlink(|netlink| netlink.veth(name, (&peer, &self.far), None))?;
        self.far.netlink(|netlink| netlink.up(&peer))?;
        self.namespace.netlink(|netlink| netlink.up(name))
    }

    /// Makes a hijack that is certain to be found, and listens until it is: all that came before it
    /// has been judged then.
    fn sing(&self, agent: &Agent, all: &mut AllSeen) -> Result<()> {
        let (to, length) = CANARY_ROUTE;
        self.namespace.netlink(|netlink| {
            netlink.veth(CANARY, ("canary", &self.namespace), None)?;
            netlink.up(CANARY)?;
            netlink.route((to.into(), length), CANARY)
        })?;
        let end = Instant::now() + PATIENCE;
        let key = format!("{to}/{length} dev {CANARY}");
        while all.remove(&key).is_none() {
            let left = end.saturating_duration_since(Instant::now());
            let heard = agent.next_finding(left)?.context("the agent no longer finds anything")?;
            hear(all, &heard)?;
        }
        Ok(())
    }
}

fn translation(words: Words<'_>, step: &TranslateStep) -> Result<Rule> {
    let (from, to) = (words.address(&step.from)?, words.address(&step.to)?);
    Ok(Rule { from, to, by: step.by, felix: step.felix })
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

/// The words of an `ip` command, with the family that it is for.
fn ip_words(words: Words<'_>, arguments: &str) -> Result<String> {
    let family = if words.family == super::Family::Ipv4 { "-4" } else { "-6" };
    Ok(format!("{family} {}", words.expand(arguments)?))
}
