//! Clusters as lists of objects: for a server and for a dump alike.

use std::net::Ipv4Addr;

use detector_tests::pretend::{self, Block};
use serde_json::{Value, json};

/// An address of pod `shop/db` on node `n1`: the victim.
pub(crate) const DB: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 5);
/// That of pod `default/web` on node `n2`: the attacker.
pub(crate) const WEB: Ipv4Addr = Ipv4Addr::new(10, 244, 2, 9);
/// That of pod `edge/gateway` on node `n2`, which has a floating IP by right.
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 244, 2, 10);

pub(crate) const FLOATING_IPS: &str = "cni.projectcalico.org/floatingIPs";

/// A cluster of two nodes and three pods, without Calico.
pub(crate) fn bare() -> Vec<Value> {
    let mut gateway = pod("edge", "gateway", "n2", GATEWAY);
    gateway["spec"]["serviceAccountName"] = json!("gateway");
    vec![
        pretend::node("n1", Ipv4Addr::new(172, 18, 0, 1), "10.244.1.0/24"),
        pretend::node("n2", Ipv4Addr::new(172, 18, 0, 2), "10.244.2.0/24"),
        pod("shop", "db", "n1", DB),
        pod("default", "web", "n2", WEB),
        gateway,
    ]
}

/// The same with Calico by manifest, with these images on the two nodes.
pub(crate) fn calico(images: [&str; 2]) -> Vec<Value> {
    let mut objects = bare();
    let mut first = Block::new(Ipv4Addr::new(10, 244, 1, 0), "n1");
    first.owners[5] = Some("shop/db".into());
    let mut second = Block::new(Ipv4Addr::new(10, 244, 2, 0), "n2");
    second.owners[9] = Some("default/web".into());
    second.owners[10] = Some("edge/gateway".into());
    objects.extend([first.object(), second.object()]);
    let [pool, mut felix, mut information] = pretend::calico("10.244.0.0/16");
    felix["spec"] = json!({});
    let version = images[0].rsplit_once(':').map_or("v3.30.2", |(_, tag)| tag);
    information["spec"]["calicoVersion"] = json!(version);
    objects.extend([pool, felix, information]);
    objects.extend(calico_nodes("kube-system", images));
    objects
}

/// The pods of calico-node in a namespace, and their DaemonSet.
pub(crate) fn calico_nodes(namespace: &str, images: [&str; 2]) -> Vec<Value> {
    // As Calico's own manifest and its operator have it.
    let endpoint = json!({ "name": "kubernetes-services-endpoint", "optional": true });
    let container = |image: &str| {
        json!({
            "name": "calico-node", "image": image,
            "envFrom": [{ "configMapRef": endpoint }],
        })
    };
    let agent = |node: &str, image: &str| {
        let mut pod = pretend::pod(namespace, &format!("calico-node-{node}"), node);
        pod["spec"]["hostNetwork"] = json!(true);
        pod["spec"]["containers"] = json!([container(image)]);
        pod["status"] = json!({ "phase": "Running" });
        pod
    };
    let labels = json!({ "k8s-app": "calico-node" });
    vec![
        agent("n1", images[0]),
        agent("n2", images[1]),
        json!({
            "apiVersion": "apps/v1", "kind": "DaemonSet",
            "metadata": { "namespace": namespace, "name": "calico-node" },
            "spec": {
                "selector": { "matchLabels": labels },
                "template": {
                    "metadata": { "labels": labels },
                    "spec": { "containers": [container(images[1])] },
                },
            },
        }),
    ]
}

/// A pod that runs, as CNI plugin and kubelet write it.
pub(crate) fn pod(namespace: &str, name: &str, node: &str, address: Ipv4Addr) -> Value {
    let mut pod = pretend::pod(namespace, name, node);
    pod["metadata"]["annotations"] = pretend::annotations(Some(address));
    pod["status"] = pretend::running(address);
    pod
}

/// Adds an annotation to a pod among the objects.
pub(crate) fn annotate(objects: &mut [Value], pod: &str, key: &str, value: &str) {
    find(objects, "Pod", pod)["metadata"]["annotations"][key] = json!(value);
}

/// The object of this kind, by `namespace/name` or by name.
#[track_caller]
pub(crate) fn find<'a>(objects: &'a mut [Value], kind: &str, name: &str) -> &'a mut Value {
    let is = |object: &&mut Value| {
        let metadata = &object["metadata"];
        let own = metadata["name"].as_str().unwrap_or_default();
        let full = match metadata["namespace"].as_str() {
            Some(namespace) => format!("{namespace}/{own}"),
            None => own.to_owned(),
        };
        object["kind"] == kind && full == name
    };
    objects.iter_mut().find(is).unwrap_or_else(|| panic!("no {kind} {name}"))
}

/// `cni_network_config` as calico.yaml has it.
pub(crate) fn calico_config(floating_ips: bool) -> Value {
    let text = format!(
        r#"{{
  "name": "k8s-pod-network",
  "cniVersion": "0.3.1",
  "plugins": [
    {{
      "type": "calico",
      "mtu": __CNI_MTU__,
      "ipam": {{ "type": "calico-ipam" }},
      "feature_control": {{ "floating_ips": {floating_ips} }}
    }},
    {{ "type": "portmap", "snat": true, "capabilities": {{"portMappings": true}} }}
  ]
}}"#
    );
    json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": { "namespace": "kube-system", "name": "calico-config" },
        "data": { "cni_network_config": text },
    })
}

/// An allowance for `edge/gateway`.
pub(crate) fn allowance() -> Value {
    json!({
        "apiVersion": "route-hijack-detector.io/v1", "kind": "FloatingIPAllowance",
        "metadata": { "name": "edge-vip" },
        "spec": {
            "cidr": "192.0.2.10", "namespace": "edge", "serviceAccount": "gateway",
            "reason": "the shop's public address",
        },
    })
}

/// A role that lets user `dev` patch pods of one namespace.
pub(crate) fn developer() -> Vec<Value> {
    vec![
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role",
            "metadata": { "namespace": "default", "name": "dev", "labels": { "test": "audit" } },
            "rules": [
                { "apiGroups": ["apps"], "resources": ["deployments"], "verbs": ["get", "patch"] },
                { "apiGroups": [""], "resources": ["pods", "services"], "verbs": ["get", "patch"] },
            ],
        }),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
            "metadata": { "namespace": "default", "name": "devs", "labels": { "test": "audit" } },
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "dev" },
            "subjects": [
                { "apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "dev" },
            ],
        }),
    ]
}
