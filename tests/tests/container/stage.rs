//! A cluster with the manifests applied, and the pods that its DaemonSet makes.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context as _, Result};
use detector_tests::agent::Agent;
use detector_tests::cluster::Cluster;
use detector_tests::cluster::programs::Programs;
use detector_tests::container::rootfs::Rootfs;
use detector_tests::container::{Pod, Runtime};
use detector_tests::deploy::Manifest;
use detector_tests::scenario::node::Node;
use detector_tests::scenario::words::Words;
use serde_json::Value;

/// The base of the manifests.
pub(crate) const BASE: &str = "base";

/// A cluster in which the base stands.
pub(crate) struct Stage {
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) objects: Vec<Value>,
}

/// One cluster at a time: each holds most of a processor.
pub(crate) fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

// === impl Stage ===

impl Stage {
    /// `None`, and a word why, where there can be none.
    pub(crate) fn new(what: &str) -> Option<Self> {
        let programs = Programs::find_or_skip(what)?;
        let cluster = Cluster::start(programs).unwrap();
        let objects = Manifest::kustomize(cluster.programs(), BASE).unwrap().objects;
        let stage = Self { cluster: Arc::new(cluster), objects };
        stage.apply(&stage.objects).unwrap();
        Some(stage)
    }

    /// Applies objects, as an administrator would.
    pub(crate) fn apply(&self, objects: &[Value]) -> Result<()> {
        let namespaces = objects.iter().filter(|object| object["kind"] == "Namespace");
        let rest = objects.iter().filter(|object| object["kind"] != "Namespace");
        for object in namespaces.chain(rest) {
            // JSON is YAML.
            self.cluster.kubectl_fed(&["apply", "--filename=-"], &object.to_string())?;
        }
        Ok(())
    }

    /// The DaemonSet's pod on a node, with the configuration that a scenario asks for.
    pub(crate) fn pod(
        &self,
        node: &Node<'_>,
        words: Words<'_>,
        runtime: Runtime,
        more: &Value,
    ) -> Result<Pod> {
        let name = &words.scenario.node;
        let objects = (&self.objects[..], "DaemonSet");
        let pod = Pod::new(objects, Rootfs::new()?, runtime, name, &self.cluster, node.api_addr())?;
        pod.configure(&Node::configuration(words, more)?)?;
        Ok(pod)
    }
}

/// Starts a pod as the kubelet does, and waits until the agent is ready.
pub(crate) fn start(pod: &Pod, node: &Node<'_>) -> Result<Agent> {
    pod.initialise(node.namespace()).context("the init containers")?;
    let mut agent = pod.start(node.namespace())?;
    agent.wait_until_ready()?;
    Ok(agent)
}
