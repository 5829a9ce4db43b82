//! The API server of a node's rung: the emulated one, or a real one that is driven by kubectl as a
//! reader of the bulletin would drive it.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use serde_json::{Map, Value, json};

use super::step::ApiState;
use crate::apiserver::ApiServer;
use crate::apiserver::fault::{Connections, Cut};
use crate::apiserver::kind::Kind;
use crate::cluster::{Cluster, User};
use crate::netns::Namespace;
use crate::relay::Relay;

/// What is said where the API server does not take what a step does.
const REFUSED: &str = "the API server refuses";

/// The API server that a node's agent sees, on the node's loopback.
pub enum Api {
    /// The emulated one.
    Emulated(ApiServer),
    /// A real one, on the host's loopback.
    Real(RealApi),
}

/// A real API server, and the way to it.
pub struct RealApi {
    cluster: Arc<Cluster>,
    relay: Relay,
}

// === impl Api ===

impl Api {
    /// An emulated API server in a namespace.
    pub fn emulated(namespace: &Namespace) -> Result<Self> {
        Ok(Self::Emulated(ApiServer::start(listener(namespace)?)?))
    }

    /// A real API server, reached from a namespace, without any object of ours.
    pub fn real(cluster: Arc<Cluster>, namespace: &Namespace) -> Result<Self> {
        cluster.objects().clear().context("cannot clear away what the last scenario left")?;
        let relay = Relay::start(listener(namespace)?, cluster.addr())?;
        Ok(Self::Real(RealApi { cluster, relay }))
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        match self {
            Self::Emulated(server) => server.addr(),
            Self::Real(real) => real.relay.addr(),
        }
    }

    /// The agent's kubeconfig.
    pub fn kubeconfig(&self) -> String {
        match self {
            Self::Emulated(server) => server.kubeconfig(),
            Self::Real(real) => real.cluster.kubeconfig(User::Agent, real.relay.addr()),
        }
    }

    /// Creates an object, or replaces it, with its status.
    pub fn apply(&self, object: Value) -> Result<()> {
        match self {
            Self::Emulated(server) => server.apply(object).map(drop).context(REFUSED),
            Self::Real(real) => real.apply(object),
        }
    }

    /// Merges a patch into an object and its status.
    pub fn patch(&self, kind: &str, namespace: &str, name: &str, patch: &Value) -> Result<()> {
        match self {
            Self::Emulated(server) => {
                server.patch(kind, namespace, name, patch).map(drop).context(REFUSED)
            }
            Self::Real(real) => real.patch(Kind::of_plural(kind)?, namespace, name, patch),
        }
    }

    /// Asks a pod to end.
    pub fn terminate(&self, namespace: &str, pod: &str) -> Result<()> {
        match self {
            Self::Emulated(server) => server.terminate(namespace, pod).map(drop).context(REFUSED),
            Self::Real(real) => {
                let delete = ["delete", "pod", pod, "--namespace", namespace, "--wait=false"];
                real.cluster.kubectl(&delete).map(drop)
            }
        }
    }

    /// Deletes an object at once.
    pub fn remove(&self, kind: &str, namespace: &str, name: &str) -> Result<()> {
        match self {
            Self::Emulated(server) => {
                server.remove(kind, namespace, name).map(drop).context(REFUSED)
            }
            Self::Real(real) => {
                let at_once = ["--grace-period=0", "--force", "--wait=false"];
                let kind = Kind::of_plural(kind)?.qualified();
                let delete = ["delete", &kind, name, "--namespace", namespace];
                real.cluster.kubectl(&[&delete[..], &at_once].concat()).map(drop)
            }
        }
    }

    /// Makes the API server serve well, badly or not at all.
    pub fn turn(&self, state: ApiState) -> Result<()> {
        match self {
            Self::Emulated(server) => {
                let faults = server.faults();
                match state {
                    ApiState::Held => faults.hold_watches(),
                    ApiState::Released => faults.release_watches(),
                    ApiState::Down => faults.connections(Connections::Refuse)?,
                    ApiState::Cut => {
                        server.compact();
                        faults.cut_watches(Cut::Abrupt);
                        faults.release_watches();
                    }
                    ApiState::Up => faults.connections(Connections::Serve)?,
                }
                Ok(())
            }
            Self::Real(real) => match state {
                ApiState::Down => real.relay.refuse(),
                ApiState::Up => real.relay.serve(),
                ApiState::Cut => real.cluster.compact(),
                ApiState::Held | ApiState::Released => {
                    bail!("a real API server holds no watches back: run this at the other rungs")
                }
            },
        }
    }
}

fn listener(namespace: &Namespace) -> Result<TcpListener> {
    namespace.within(|| TcpListener::bind("127.0.0.1:0")).context("cannot bind a port of loopback")
}

// === impl RealApi ===

impl RealApi {
    fn apply(&self, mut object: Value) -> Result<()> {
        let kind = Kind::of_object(&object)?;
        let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default();
        let (namespace, name) = (text("namespace").to_owned(), text("name").to_owned());
        if kind.namespaced {
            self.cluster.objects().make_namespace(&namespace)?;
        }
        if kind.plural != "pods" {
            // What is no tenant's to write is there, however it came.
            return self.cluster.objects().apply(object).map(drop);
        }
        // The status is the kubelet's, and is written after the rest.
        let fields = object.as_object_mut().context("an object is a JSON object")?;
        let status = fields.remove("status");
        self.cluster.kubectl_fed(&["apply", "--filename=-"], &object.to_string())?;
        match status {
            Some(status) => self.patch_status(kind, &namespace, &name, &status),
            None => Ok(()),
        }
    }

    fn patch(&self, kind: &Kind, namespace: &str, name: &str, patch: &Value) -> Result<()> {
        let mut rest = patch.clone();
        let fields = rest.as_object_mut().context("a patch is a JSON object")?;
        let status = if kind.status { fields.remove("status") } else { None };
        let metadata = fields.get_mut("metadata").and_then(Value::as_object_mut);
        let annotations = metadata.and_then(|metadata| metadata.remove("annotations"));
        if let Some(Value::Object(annotations)) = annotations {
            self.annotate(kind, namespace, name, &annotations)?;
        }
        if let Some(status) = status {
            self.patch_status(kind, namespace, name, &status)?;
        }
        if [json!({}), json!({ "metadata": {} })].contains(&rest) {
            return Ok(());
        }
        self.run(&["patch", "--type=merge", "--patch", &rest.to_string()], kind, namespace, name)
    }

    /// As the bulletin has it.
    fn annotate(
        &self,
        kind: &Kind,
        namespace: &str,
        name: &str,
        annotations: &Map<String, Value>,
    ) -> Result<()> {
        let changes: Vec<String> = annotations
            .iter()
            .map(|(key, value)| match value.as_str() {
                Some(value) => format!("{key}={value}"),
                None => format!("{key}-"),
            })
            .collect();
        if changes.is_empty() {
            return Ok(());
        }
        let kind = kind.qualified();
        let mut annotate = vec!["annotate", "--overwrite", &kind, name];
        annotate.extend(changes.iter().map(String::as_str));
        self.in_namespace(&annotate, namespace)
    }

    fn patch_status(&self, kind: &Kind, namespace: &str, name: &str, status: &Value) -> Result<()> {
        let patch = json!({ "status": status }).to_string();
        let patch = ["patch", "--subresource=status", "--type=merge", "--patch", &patch];
        self.run(&patch, kind, namespace, name)
    }

    fn run(&self, command: &[&str], kind: &Kind, namespace: &str, name: &str) -> Result<()> {
        self.in_namespace(&[command, &[&kind.qualified(), name]].concat(), namespace)
    }

    fn in_namespace(&self, command: &[&str], namespace: &str) -> Result<()> {
        let place = ["--namespace", namespace];
        let place = if namespace.is_empty() { &[][..] } else { &place[..] };
        self.cluster.kubectl(&[command, place].concat()).map(drop)
    }
}
