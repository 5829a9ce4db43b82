//! The base, the overlays and the components: each renders, and asks for what it says and no more.

use detector_tests::cluster::programs::Programs;
use detector_tests::deploy::{Manifest, NAMESPACE};
use serde_json::{Value, json};

use crate::shared::{check_config, composed, folders, pod, words};

/// Kinds that are in no namespace.
const OF_THE_CLUSTER: [&str; 6] = [
    "Namespace",
    "CustomResourceDefinition",
    "PriorityClass",
    "ClusterRole",
    "ClusterRoleBinding",
    "SecurityContextConstraints",
];

fn programs() -> Option<Programs> {
    Programs::find_or_skip("what kustomize makes of deploy")
}

/// Folders of the host that a pod has, in order.
fn host_paths(pod: &Value) -> Vec<&str> {
    let volumes = pod["volumes"].as_array().unwrap();
    let mut paths: Vec<&str> =
        volumes.iter().filter_map(|volume| volume["hostPath"]["path"].as_str()).collect();
    paths.sort_unstable();
    paths
}

fn added(container: &Value) -> Vec<&str> {
    words(&container["securityContext"]["capabilities"]["add"])
}

/// What holds of all that is rendered.
#[track_caller]
fn hold(of: &str, manifest: &Manifest) {
    for object in &manifest.objects {
        let (kind, metadata) = (object["kind"].as_str().unwrap(), &object["metadata"]);
        let is_of_cluster = OF_THE_CLUSTER.contains(&kind);
        let namespace = if is_of_cluster { Value::Null } else { json!(NAMESPACE) };
        assert_eq!(metadata["namespace"], namespace, "{of}: {kind}");
        let labels = &metadata["labels"];
        assert_eq!(labels["app.kubernetes.io/name"], "detector", "{of}: {kind}");
        assert_eq!(labels["app.kubernetes.io/part-of"], NAMESPACE, "{of}: {kind}");
    }
    let pod = pod(manifest);
    for (key, wanted) in [("hostNetwork", true), ("hostPID", false), ("hostIPC", false)] {
        assert_eq!(pod[key], json!(wanted), "{of}: {key}");
    }
    assert_eq!(pod["serviceAccountName"], "detector", "{of}");
    let none = Vec::new();
    let inits = pod["initContainers"].as_array().unwrap_or(&none);
    let agents = pod["containers"].as_array().unwrap();
    assert_eq!(agents.len(), 1, "{of}");
    for container in inits.iter().chain(agents) {
        let security = &container["securityContext"];
        assert_eq!(security["readOnlyRootFilesystem"], true, "{of}");
        assert_eq!(security["allowPrivilegeEscalation"], false, "{of}");
        assert_eq!(security["privileged"], false, "{of}");
        assert_eq!(words(&security["capabilities"]["drop"]), ["ALL"], "{of}");
        assert_eq!(container["image"], agents[0]["image"], "{of}: one image for both");
    }
    for init in inits {
        assert!(added(init).is_empty(), "{of}: the init container needs no capability");
    }
    // By its folder: of a file that is mounted by itself no change is ever seen.
    let mounts = agents[0]["volumeMounts"].as_array().unwrap();
    assert!(mounts.iter().all(|mount| mount["subPath"].is_null()), "{of}");
    let volumes = pod["volumes"].as_array().unwrap();
    let all = || inits.iter().chain(agents).flat_map(|c| c["volumeMounts"].as_array().unwrap());
    for volume in volumes {
        let is_mounted = all().any(|mount| mount["name"] == volume["name"]);
        assert!(is_mounted, "{of}: nobody mounts {}", volume["name"]);
    }
    // A variable names those before it.
    let env = agents[0]["env"].as_array().unwrap();
    let at = |name: &str| env.iter().position(|variable| variable["name"] == name);
    if let Some(listen) = at("DETECTOR_LISTEN") {
        assert!(at("HOST_IP").is_some_and(|host| host < listen), "{of}: {env:?}");
    }
    check_config(of, manifest);
}

#[test]
fn the_base_asks_for_three_capabilities_and_two_folders() {
    let Some(programs) = programs() else { return };
    let base = Manifest::kustomize(&programs, "base").unwrap();
    hold("base", &base);
    let pod = pod(&base);
    let agent = &pod["containers"][0];
    assert_eq!(added(agent), ["BPF", "PERFMON", "NET_ADMIN"]);
    let seccomp = json!({ "type": "Localhost", "localhostProfile": "detector/detector.json" });
    assert_eq!(agent["securityContext"]["seccompProfile"], seccomp);
    assert_eq!(host_paths(pod), ["/var/lib/detector", "/var/lib/kubelet/seccomp/detector"]);
    for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
        assert_eq!(agent[probe]["httpGet"]["host"], "127.0.0.1", "nobody else is answered");
    }
    let account = base.of_kind("ServiceAccount")["detector"];
    assert_eq!(account["automountServiceAccountToken"], false);
}

#[test]
fn every_overlay_renders() {
    let Some(programs) = programs() else { return };
    for overlay in folders("overlays") {
        let manifest = Manifest::kustomize(&programs, &format!("overlays/{overlay}")).unwrap();
        hold(&overlay, &manifest);
    }
}

#[test]
fn every_component_goes_with_the_base_and_with_all_others() {
    let Some(programs) = programs() else { return };
    let components = folders("components");
    for component in &components {
        hold(component, &composed(&programs, "base", &[component]));
    }
    let all: Vec<&str> = components.iter().map(String::as_str).collect();
    hold("all components", &composed(&programs, "base", &all));
}

#[test]
fn components_change_what_they_say() {
    let Some(programs) = programs() else { return };
    let old = composed(&programs, "base", &["old-kernels"]);
    assert_eq!(added(&pod(&old)["containers"][0]), ["BPF", "PERFMON", "NET_ADMIN", "SYS_RESOURCE"]);

    let runtime = composed(&programs, "base", &["runtime-default-seccomp"]);
    let runtime = pod(&runtime);
    assert!(runtime["initContainers"].as_array().is_none_or(Vec::is_empty));
    assert_eq!(host_paths(runtime), ["/var/lib/detector"]);
    let security = &runtime["containers"][0]["securityContext"];
    assert_eq!(security["seccompProfile"], json!({ "type": "RuntimeDefault" }));

    let metrics = composed(&programs, "base", &["metrics"]);
    let agent = &pod(&metrics)["containers"][0];
    for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
        let get = &agent[probe]["httpGet"];
        assert!(get["host"].is_null() && get["port"] == 9465, "{probe}: {get}");
    }
    let env = agent["env"].as_array().unwrap();
    assert_eq!(env.last().unwrap()["value"], "[$(HOST_IP)]:9465");
}

#[test]
fn minimal_writes_nothing() {
    let Some(programs) = programs() else { return };
    let minimal = Manifest::kustomize(&programs, "overlays/minimal").unwrap();
    let base = Manifest::kustomize(&programs, "base").unwrap();
    let rules = |manifest: &Manifest| -> Vec<Value> {
        manifest.of_kind("ClusterRole")["detector"]["rules"].as_array().unwrap().clone()
    };
    let writes = |rule: &Value| {
        words(&rule["verbs"]).iter().any(|verb| !["get", "list", "watch"].contains(verb))
    };
    let reads: Vec<Value> = rules(&base).into_iter().filter(|rule| !writes(rule)).collect();
    assert_eq!(rules(&base).len(), reads.len() + 2, "Events, and statuses of allowances");
    assert_eq!(rules(&minimal), reads, "all that it reads, and nothing that it writes");
}

#[test]
fn constraints_of_openshift_are_what_the_pod_asks_for() {
    let Some(programs) = programs() else { return };
    let manifest = Manifest::kustomize(&programs, "overlays/openshift").unwrap();
    let pod = pod(&manifest);
    let constraints = manifest.of_kind("SecurityContextConstraints")["detector"];
    fits(constraints, pod);
    let role = manifest.of_kind("Role")["detector-scc"];
    assert_eq!(role["rules"].as_array().unwrap().len(), 1);
    assert_eq!(words(&role["rules"][0]["verbs"]), ["use"]);
    assert_eq!(words(&role["rules"][0]["resourceNames"]), ["detector"]);
    let pinned = &manifest.of_kind("DaemonSet")["detector"]["spec"]["template"]["metadata"];
    assert_eq!(pinned["annotations"]["openshift.io/required-scc"], "detector");
}

/// Holds constraints against a pod, in both directions.
#[track_caller]
pub(crate) fn fits(constraints: &Value, pod: &Value) {
    let agent = &pod["containers"][0];
    assert_eq!(words(&constraints["allowedCapabilities"]), added(agent));
    assert_eq!(words(&constraints["requiredDropCapabilities"]), ["ALL"]);
    for (allowed, asked) in [
        ("allowHostNetwork", pod["hostNetwork"] == true),
        ("allowHostPID", pod["hostPID"] == true),
        ("allowHostIPC", pod["hostIPC"] == true),
        ("allowHostPorts", agent["ports"].as_array().is_some_and(|ports| !ports.is_empty())),
        ("allowHostDirVolumePlugin", !host_paths(pod).is_empty()),
        ("allowPrivilegedContainer", false),
        ("allowPrivilegeEscalation", false),
        ("readOnlyRootFilesystem", true),
    ] {
        assert_eq!(constraints[allowed], json!(asked), "{allowed}");
    }
    let options = &pod["securityContext"]["seLinuxOptions"];
    assert_eq!(constraints["seLinuxContext"]["seLinuxOptions"], *options);
    assert_eq!(constraints["runAsUser"]["uid"], agent["securityContext"]["runAsUser"]);
    // The token is a projected volume, which the API server adds.
    let mut asked = vec!["projected"];
    for volume in pod["volumes"].as_array().unwrap() {
        let kinds = volume.as_object().unwrap().keys().map(String::as_str);
        asked.extend(kinds.filter(|key| *key != "name"));
    }
    asked.sort_unstable();
    asked.dedup();
    assert_eq!(words(&constraints["volumes"]), asked);
    let profile = match agent["securityContext"]["seccompProfile"]["localhostProfile"].as_str() {
        Some(profile) => vec!["runtime/default".to_owned(), format!("localhost/{profile}")],
        None => vec!["runtime/default".to_owned()],
    };
    assert_eq!(words(&constraints["seccompProfiles"]), profile);
}
