//! What a manifest asks for. A field that is not named here is an error where it could change how a
//! container runs.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use serde::Deserialize;
use serde_json::Value;

/// A pod's specification, as far as a container runtime has to know of it.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[expect(missing_docs, clippy::struct_excessive_bools, reason = "Kubernetes' own names")]
pub struct PodSpec {
    pub service_account_name: String,
    pub automount_service_account_token: bool,
    pub host_network: bool,
    #[serde(rename = "hostPID", default)]
    pub host_pid: bool,
    #[serde(rename = "hostIPC", default)]
    pub host_ipc: bool,
    #[serde(default)]
    pub init_containers: Vec<ContainerSpec>,
    pub containers: Vec<ContainerSpec>,
    pub volumes: Vec<Volume>,
    // Where it runs, and how it is ended: nothing to the runtime.
    #[serde(default)]
    pub priority_class_name: Value,
    #[serde(default)]
    pub dns_policy: Value,
    #[serde(default)]
    pub enable_service_links: Value,
    #[serde(default)]
    pub node_selector: Value,
    #[serde(default)]
    pub tolerations: Value,
    #[serde(default)]
    pub affinity: Value,
    #[serde(default)]
    pub termination_grace_period_seconds: Value,
    #[serde(default)]
    pub restart_policy: Value,
    /// Of the sandbox; each container says its own.
    #[serde(default)]
    pub security_context: Value,
}

/// A container of it.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[expect(missing_docs, reason = "Kubernetes' own names")]
pub struct ContainerSpec {
    pub name: String,
    pub image: String,
    #[serde(default)]
    pub image_pull_policy: Value,
    pub args: Vec<String>,
    #[serde(default)]
    pub env: Vec<Variable>,
    pub security_context: SecurityContext,
    #[serde(default)]
    pub volume_mounts: Vec<VolumeMount>,
    // The kubelet's and the scheduler's.
    #[serde(default)]
    pub resources: Value,
    #[serde(default)]
    pub startup_probe: Value,
    #[serde(default)]
    pub liveness_probe: Value,
    #[serde(default)]
    pub readiness_probe: Value,
}

/// What a container may.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[expect(missing_docs, reason = "Kubernetes' own names")]
pub struct SecurityContext {
    pub run_as_user: u32,
    pub run_as_group: u32,
    pub privileged: bool,
    pub allow_privilege_escalation: bool,
    pub read_only_root_filesystem: bool,
    pub capabilities: Capabilities,
    pub seccomp_profile: Option<SeccompProfile>,
}

/// Its capabilities.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "Kubernetes' own names")]
pub struct Capabilities {
    pub drop: Vec<String>,
    #[serde(default)]
    pub add: Vec<String>,
}

/// Its system calls.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[expect(missing_docs, reason = "Kubernetes' own names")]
pub struct SeccompProfile {
    #[serde(rename = "type")]
    pub kind: String,
    pub localhost_profile: Option<String>,
}

/// A variable of its environment.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[expect(missing_docs, reason = "Kubernetes' own names")]
pub struct Variable {
    pub name: String,
    pub value: Option<String>,
    pub value_from: Option<ValueFrom>,
}

/// Where a value comes from.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[expect(missing_docs, reason = "Kubernetes' own names")]
pub struct ValueFrom {
    pub field_ref: FieldRef,
}

/// A field of the pod.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[expect(missing_docs, reason = "Kubernetes' own names")]
pub struct FieldRef {
    pub field_path: String,
}

/// Where a volume is.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[expect(missing_docs, reason = "Kubernetes' own names")]
pub struct VolumeMount {
    pub name: String,
    pub mount_path: String,
    #[serde(default)]
    pub read_only: bool,
    pub sub_path: Option<String>,
}

/// A volume.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[expect(missing_docs, reason = "Kubernetes' own names")]
pub struct Volume {
    pub name: String,
    pub config_map: Option<Named>,
    pub host_path: Option<HostPath>,
    pub empty_dir: Option<Value>,
}

/// An object by its name.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "Kubernetes' own names")]
pub struct Named {
    pub name: String,
}

/// A folder of the host.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "Kubernetes' own names")]
pub struct HostPath {
    pub path: String,
    #[serde(rename = "type")]
    pub kind: String,
}

/// The namespace of the one object of a kind that has pods, and what it asks for.
pub(super) fn pod(objects: &[Value], kind: &str) -> Result<(String, PodSpec)> {
    let object = objects
        .iter()
        .find(|object| object["kind"] == kind)
        .with_context(|| format!("there is no {kind}"))?;
    let namespace = object["metadata"]["namespace"].as_str().context("it has a namespace")?;
    let spec = if kind == "Pod" { &object["spec"] } else { &object["spec"]["template"]["spec"] };
    let spec = PodSpec::deserialize(spec)
        .with_context(|| format!("the {kind} asks for what is not known here"))?;
    Ok((namespace.to_owned(), spec))
}

/// The files of a ConfigMap.
pub(super) fn config_map(objects: &[Value], name: &str) -> Result<BTreeMap<String, String>> {
    let map = objects
        .iter()
        .find(|object| object["kind"] == "ConfigMap" && object["metadata"]["name"] == name)
        .with_context(|| format!("there is no ConfigMap {name}"))?;
    Ok(BTreeMap::deserialize(&map["data"])?)
}
