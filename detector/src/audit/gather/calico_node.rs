//! calico-node: which image runs where, and what its environment says.

use detector_core::workload::NodeName;
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Container, EnvFromSource, Pod};
use kube::ResourceExt as _;

use crate::audit::facts::{CalicoNode, Environment, Image, Rollout};
use crate::source::cluster::felix;
use crate::text::printable;

/// Where calico-node is at home: by manifest (Calico's, canal, most vendors') and by the operator.
pub(super) const HOMES: [&str; 2] = ["kube-system", "calico-system"];

/// The container's name in every manifest that is known, whatever the DaemonSet is called.
const CONTAINER: &str = "calico-node";

/// Felix takes the prefix and the name in any case (felix/config/env_var_loader.go).
const SWITCH: &str = "FELIX_FLOATINGIPS";

/// Calico's own manifests take the API server's address from here, where there is one (calico.yaml, and
/// the operator's render/node.go).
const ENDPOINT: &str = "kubernetes-services-endpoint";

/// A pod of calico-node that is not over; `None` for any other.
pub(super) fn pod(object: &Pod) -> Option<CalicoNode> {
    let spec = object.spec.as_ref()?;
    let container = spec.containers.iter().find(|container| container.name == CONTAINER)?;
    let node = spec.node_name.clone()?;
    let status = object.status.as_ref();
    let phase = status.and_then(|status| status.phase.as_deref());
    if matches!(phase, Some("Succeeded" | "Failed")) {
        return None;
    }
    let statuses = status.and_then(|status| status.container_statuses.as_deref());
    let running = statuses.unwrap_or_default().iter().find(|status| status.name == CONTAINER);
    let running = running.map(|status| status.image.as_str()).filter(|image| !image.is_empty());
    Some(CalicoNode {
        namespace: object.namespace()?.into(),
        name: object.name_any().into(),
        node: NodeName(node.into()),
        owner: object
            .owner_references()
            .iter()
            .find(|owner| owner.kind == "DaemonSet")
            .map(|owner| owner.name.as_str().into()),
        image: image(container, running),
        switch: environment(container),
    })
}

/// A DaemonSet of calico-node; `None` for any other.
pub(super) fn daemon_set(object: &DaemonSet) -> Option<Rollout> {
    let template = object.spec.template.spec.as_ref()?;
    let container = template.containers.iter().find(|container| container.name == CONTAINER)?;
    Some(Rollout {
        namespace: object.namespace()?.into(),
        name: object.name_any().into(),
        image: image(container, None),
        switch: environment(container),
    })
}

fn image(container: &Container, running: Option<&str>) -> Image {
    let asked = container.image.as_deref().unwrap_or_default();
    Image { asked: asked.into(), running: running.map(Into::into) }
}

/// A source of a whole environment that may set the switch, for people. What is in it only those know
/// who may read it.
fn source(source: &EnvFromSource) -> Option<String> {
    let prefix = source.prefix.as_deref().unwrap_or_default();
    let fits = SWITCH.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix));
    let (kind, name) = match (&source.config_map_ref, &source.secret_ref) {
        (Some(map), _) => ("ConfigMap", &map.name),
        (None, Some(secret)) => ("Secret", &secret.name),
        (None, None) => return None,
    };
    let harmless = kind == "ConfigMap" && name == ENDPOINT;
    (fits && !harmless).then(|| printable(&format!("{kind} {name}"), 260))
}

/// What the container's environment says of the feature. Of several entries the last counts, as to the
/// runtime.
fn environment(container: &Container) -> Environment {
    let entries = container.env.iter().flatten();
    let entry = entries.rev().find(|entry| entry.name.eq_ignore_ascii_case(SWITCH));
    let Some(entry) = entry else {
        let sources: Vec<String> = container.env_from.iter().flatten().filter_map(source).collect();
        return if sources.is_empty() {
            Environment::Silent
        } else {
            Environment::Elsewhere(sources.join(", ").into())
        };
    };
    if entry.value_from.is_some() {
        return Environment::Unreadable("valueFrom".into());
    }
    let value = entry.value.as_deref().unwrap_or_default();
    match felix::switch(value, "Enabled") {
        Ok(None) => Environment::Silent,
        Ok(Some(true)) => Environment::On,
        Ok(Some(false)) => Environment::Off,
        Err(reason) => Environment::Unreadable(
            format!("\"{}\" {}", printable(value, 64), reason.as_str()).into(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A standard installation is off or on, whatever tells it where the API server is.
    #[test]
    fn only_a_source_that_may_hold_the_switch_is_told_of() {
        let said = |source: serde_json::Value| {
            let container = json!({ "name": "calico-node", "envFrom": [source] });
            environment(&serde_json::from_value(container).unwrap())
        };
        let endpoint = json!({ "name": "kubernetes-services-endpoint", "optional": true });
        let extra = json!({ "name": "extra" });
        for silent in [
            json!({ "configMapRef": endpoint }),
            json!({ "configMapRef": extra, "prefix": "TYPHA_" }),
            json!({}),
        ] {
            assert_eq!(said(silent.clone()), Environment::Silent, "{silent}");
        }
        for (source, named) in [
            (json!({ "configMapRef": extra }), "ConfigMap extra"),
            (json!({ "configMapRef": extra, "prefix": "felix_" }), "ConfigMap extra"),
            (json!({ "secretRef": endpoint }), "Secret kubernetes-services-endpoint"),
        ] {
            assert_eq!(said(source), Environment::Elsewhere(named.into()));
        }
    }
}
