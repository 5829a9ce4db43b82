//! Files in place of a server: as kubectl writes them, as must-gather does, abbreviated, and torn.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use detector_tests::cluster::User;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::prepared::{self, DB, FLOATING_IPS, annotate, calico, calico_config, developer};
use crate::stage::{Audited, Stage, audit};

const AFFECTED: &str = "docker.io/calico/node:v3.22.1";

/// A cluster that was hit, as objects with the fields that only a server gives.
fn hit() -> Vec<Value> {
    let mut objects = calico([AFFECTED; 2]);
    annotate(&mut objects, "default/web", FLOATING_IPS, &format!(r#"["{DB}"]"#));
    objects.push(calico_config(false));
    objects.extend(developer());
    for (number, object) in objects.iter_mut().enumerate() {
        object["metadata"]["uid"] = json!(format!("uid-{number}"));
    }
    objects
}

fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn write(folder: &TempDir, name: &str, text: &str) -> PathBuf {
    let path = folder.path().join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, text).unwrap();
    path
}

#[track_caller]
fn is_the_hit(audited: &Audited) {
    audited.is("compromised", 1);
    let claims = audited.of_rule("floating-ips");
    assert_eq!(claims.len(), 1, "{:#}", audited.report);
    assert!(claims[0].contains(&format!("it claims {DB} of pod shop/db")), "{claims:?}");
    assert_eq!(audited.of_rule("may-patch-pods").len(), 1);
    assert_eq!(audited.report["counts"]["pods"], 5);
    assert_eq!(audited.said, "");
}

#[test]
fn what_kubectl_writes_is_what_a_server_shows() {
    let Some(stage) = Stage::new("dumps by kubectl of a real API server") else { return };
    stage.set(&hit()).unwrap();
    let served = stage.audit(User::Auditor, &[]);
    let folder = folder();
    // By two lists, since a list of several kinds needs all of them defined.
    let kinds = "pods,nodes,services,configmaps,namespaces,daemonsets,clusterroles,roles,\
                 clusterrolebindings,rolebindings,clusterinformations,felixconfigurations,ippools,\
                 ipamblocks,installations,floatingipallowances,validatingadmissionpolicies,\
                 validatingadmissionpolicybindings";
    for format in ["json", "yaml"] {
        let output = format!("--output={format}");
        let get = ["get", kinds, "--all-namespaces", &output, "--show-managed-fields"];
        let text = stage.cluster.kubectl(&get).unwrap();
        let path = write(&folder, &format!("all.{format}"), &text);
        let read = Audited::from(&path);
        is_the_hit(&read);
        for field in ["verdict", "reasons", "findings", "reach", "calico"] {
            assert_eq!(read.report[field], served.report[field], "{format}: {field}");
        }
        // A folder of both says everything twice, and counts it once.
        if format == "yaml" {
            assert_eq!(Audited::from(folder.path()).report["findings"], served.report["findings"]);
        }
    }
    // A dump that breaks off is no clean one, wherever it does: one line, exit code 2.
    for format in ["json", "yaml"] {
        let text = fs::read_to_string(folder.path().join(format!("all.{format}"))).unwrap();
        for part in 1..20 {
            let mut end = text.len() * part / 20;
            while !text.is_char_boundary(end) {
                end -= 1;
            }
            let torn = write(&folder, &format!("torn/{part}.{format}"), &text[..end]);
            is_torn(&torn);
        }
    }
}

#[track_caller]
fn is_torn(path: &Path) {
    let output = audit(&["--from", path.to_str().unwrap()]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{}: {said}", path.display());
    assert_eq!(said.lines().count(), 1, "{}: {said}", path.display());
    assert!(said.contains("breaks off") && said.contains("dump it again"), "{said}");
    assert!(said.contains(path.to_str().unwrap()), "{said}");
}

#[test]
fn a_must_gather_is_read_as_a_folder() {
    let folder = folder();
    let plural = |object: &Value| {
        let kind = object["kind"].as_str().unwrap().to_lowercase();
        if kind == "clusterinformation" {
            "clusterinformations".to_owned()
        } else {
            format!("{kind}s")
        }
    };
    let mut lists: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for object in hit() {
        let name = object["metadata"]["name"].as_str().unwrap();
        let group =
            object["apiVersion"].as_str().unwrap().split_once('/').map_or("core", |(g, _)| g);
        match object["metadata"]["namespace"].as_str() {
            // One file an object, in YAML with the mark of a document.
            None => {
                let path = format!(
                    "registry@sha/cluster-scoped-resources/{group}/{}/{name}.yaml",
                    plural(&object)
                );
                write(&folder, &path, &format!("---\n{object:#}\n"));
            }
            // One file a kind, whose items do not say what they are.
            Some(namespace) => {
                let path =
                    format!("registry@sha/namespaces/{namespace}/{group}/{}.yaml", plural(&object));
                let mut object = object.clone();
                object.as_object_mut().unwrap().remove("kind");
                object.as_object_mut().unwrap().remove("apiVersion");
                lists.entry(path).or_default().push(object);
            }
        }
    }
    for (path, items) in lists {
        let list = json!({ "apiVersion": "v1", "items": items, "metadata": {} });
        write(&folder, &path, &list.to_string());
    }
    // And each pod once more, with logs beside it.
    for object in hit().iter().filter(|object| object["kind"] == "Pod") {
        let name = object["metadata"]["name"].as_str().unwrap();
        let namespace = object["metadata"]["namespace"].as_str().unwrap();
        write(
            &folder,
            &format!("registry@sha/namespaces/{namespace}/pods/{name}/{name}.yaml"),
            &format!("---\n{object}\n"),
        );
        write(
            &folder,
            &format!("registry@sha/namespaces/{namespace}/pods/{name}/current.log"),
            "no objects\n",
        );
    }
    is_the_hit(&Audited::from(folder.path()));
}

/// As the bulletin prints it: the text of one key, abbreviated until it is no JSON any more.
const CONFIG_MAP: &str = r#" cni_network_config: |-
      "name": "k8s-pod-network",
      "cniVersion": "0.3.0",
      "plugins": [
          "type": "calico",
          "log_level": "info",
          "datastore_type": "kubernetes",
          "nodename": "__KUBERNETES_NODE_NAME__",
          "mtu": __CNI_MTU__,
          "ipam": {
              "type": "calico-ipam"
          "policy": {
              "type": "k8s"
          "kubernetes": {
              "kubeconfig": "__KUBECONFIG_FILEPATH__"
          "feature_control": {
              "floating_ips": true
          "type": "portmap",
          "snat": true,
          "capabilities": {"portMappings": true}
"#;

/// As the bulletin prints it: lines of a manifest, with what held them together left out.
const MANIFEST: &str = r#"- apiVersion: v1
  kind: Pod
    annotations: 3902b5aff88e589211fbf017a28a293e58c27cc8bd8b5a4f52c788bd3f004561
    creationTimestamp: "2022-06-13T20:31:21Z"
    generateName: test-app-1-
      app: test-app-1
      controller-revision-hash: 5f65c4857b
      pod-template-generation: "1"
    name: test-pod-7wzxl
    namespace: test-ns
"#;

#[test]
fn what_the_bulletin_prints_is_read_or_it_is_said_what_cannot_be() {
    let folder = folder();
    let config = Audited::from(&write(&folder, "config.yaml", CONFIG_MAP));
    config.is("undetermined", 1);
    assert_eq!(config.report["calico"]["cniFloatingIps"], true);
    assert_eq!(
        config.of_rule("switched-on"),
        [
            "medium ConfigMap kube-system/calico-config data.cni_network_config feature_control.floating_ips: \
          the CNI plugin lets pods be made with floating IPs"
        ]
    );
    let refused = config.report["refused"].to_string();
    assert!(refused.contains("no complete object: taken for cni_network_config"), "{refused}");
    // The same within a whole ConfigMap, with the switch the other way.
    let mut whole = calico_config(true);
    whole["data"]["cni_network_config"] = json!(CONFIG_MAP.split_once("|-\n").unwrap().1);
    let whole = Audited::from(&write(&folder, "whole.json", &whole.to_string()));
    assert_eq!(whole.report["calico"]["cniFloatingIps"], true);
    assert_eq!(whole.report["refused"]["count"], 0);
    let off = Audited::from(&write(
        &folder,
        "off.yaml",
        &CONFIG_MAP.replace("true\n          \"type\"", "false\n          \"type\""),
    ));
    off.is("undetermined", 2);
    assert_eq!(off.report["calico"]["cniFloatingIps"], false);

    let manifest = Audited::from(&write(&folder, "manifest.yaml", MANIFEST));
    manifest.is("undetermined", 2);
    let refused = manifest.report["refused"].to_string();
    assert!(
        refused.contains(
            "manifest.yaml:1: what stands there about test-ns/test-pod-7wzxl cannot be read as YAML"
        ) && refused.contains("no annotation of the family in it"),
        "{refused}"
    );
    // The line that the bulletin means, where somebody left it in.
    let line = "      cni.projectcalico.org/floatingIPs: '[\"10.0.0.1\"]'\n";
    let (before, after) = MANIFEST.split_once("    creationTimestamp").unwrap();
    let text = format!("{before}{line}    creationTimestamp{after}");
    let manifest = Audited::from(&write(&folder, "manifest.yaml", &text));
    manifest.is("undetermined", 1);
    let scraps = manifest.of_rule("scrap");
    assert_eq!(scraps.len(), 1);
    assert!(
        scraps[0]
            .contains("line 4: pod test-ns/test-pod-7wzxl bears cni.projectcalico.org/floatingIPs"),
        "{scraps:?}"
    );
    // What `kubectl get pods -A -oyaml | grep floatingIPs` leaves.
    let grepped = write(&folder, "grepped", line);
    let grepped = Audited::from(&grepped);
    assert_eq!(grepped.of_rule("scrap").len(), 1, "{:#}", grepped.report);
    assert_eq!(grepped.code, 1);
}

#[test]
fn one_object_that_is_no_yaml_costs_itself_only() {
    let folder = folder();
    let items: Vec<String> = hit().iter().map(|object| format!("- {object}\n")).collect();
    let items = items.concat();
    let text = format!("apiVersion: v1\nitems:\n{MANIFEST}{items}kind: List\nmetadata: {{}}\n");
    let audited = Audited::from(&write(&folder, "all.yaml", &text));
    audited.is("compromised", 1);
    assert_eq!(audited.report["refused"]["count"], 1, "{:#}", audited.report["refused"]);
    // It is a pod that was not read, so pods were not all seen.
    assert!(audited.missing().contains(&"pods"));
}

#[test]
fn any_bytes_are_read_to_their_end() {
    let folder = folder();
    let texts: [&[u8]; 10] = [
        b"{",
        b"[1, 2",
        b"[]",
        b"{}{}",
        b"- \n- \n",
        b"items:\n- a\n- {\nkind: PodList\n",
        b"\xff\xfe\x00",
        b"--- !!binary x\n",
        b"a: &a [*a, *a]\n",
        b"{\"kind\": \"Pod\", \"apiVersion\": \"v1\", \"metadata\": 7}",
    ];
    for (number, bytes) in texts.iter().enumerate() {
        let path = folder.path().join(format!("{number}.yaml"));
        fs::write(&path, bytes).unwrap();
        let output = audit(&["--from", path.to_str().unwrap()]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{number}: {said}");
        assert!(!said.contains("panicked"), "{number}: {said}");
    }
}

#[test]
fn a_large_dump_needs_less_memory_than_it_is_long() {
    let folder = folder();
    let mut text = String::from("apiVersion: v1\nitems:\n");
    for number in 0..20_000_u32 {
        let address =
            std::net::Ipv4Addr::from(u32::from(std::net::Ipv4Addr::new(10, 0, 0, 0)) + number);
        let mut pod = prepared::pod("shop", &format!("pod-{number}"), "n1", address);
        pod["metadata"]["uid"] = json!(format!("uid-{number}"));
        // As long as pods are.
        pod["spec"]["containers"][0]["command"] = json!(["x".repeat(4 << 10)]);
        writeln!(text, "- {pod}").unwrap();
    }
    text.push_str("kind: List\n");
    let path = write(&folder, "pods.yaml", &text);
    let output = Command::new("/usr/bin/env")
        .args(["sh", "-c", "ulimit -v 300000; exec \"$0\" audit --from \"$1\" -o json"])
        .arg(detector_tests::agent::program().unwrap())
        .arg(&path)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    let report: Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {said}"));
    assert!(text.len() > 80 << 20);
    assert_eq!(report["counts"]["pods"], 20_000);
}
