//! A cluster with a policy in it, and people who write to its pods.

use std::fmt::Write as _;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::Result;
use detector_tests::agent::program;
use detector_tests::cluster::Cluster;
use detector_tests::cluster::programs::Programs;
use detector_tests::pretend;
use serde_json::{Value, json};

pub(crate) const FLOATING_IPS: &str = "cni.projectcalico.org/floatingIPs";

/// Somebody who may write pods and their statuses, as the bulletin has it, and nothing else.
pub(crate) const TENANT: &[&str] = &["--as=tenant"];
/// The controller that makes the pods of a Deployment.
pub(crate) const CONTROLLER: &[&str] =
    &["--as=system:serviceaccount:kube-system:replicaset-controller"];
/// The CNI plugin, as Calico's manifest and its operator install it.
pub(crate) const CNI: &[&str] = &["--as=system:serviceaccount:kube-system:calico-cni-plugin"];
pub(crate) const KUBELET: &[&str] = &["--as=system:node:n1", "--as-group=system:nodes"];
/// The controller that gives up pods of nodes that are gone.
pub(crate) const COLLECTOR: &[&str] =
    &["--as=system:serviceaccount:kube-system:pod-garbage-collector"];

/// How long the server may take to take up a policy.
const LONG: Duration = Duration::from_mins(1);

/// Rights for those who are not the cluster's own.
const RIGHTS: &str = "\
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: writer}
rules:
  - {apiGroups: [''], resources: [pods, pods/status, pods/binding, bindings], verbs: ['*']}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: writer}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: writer}
subjects:
  - {apiGroup: rbac.authorization.k8s.io, kind: User, name: tenant}
  - {apiGroup: rbac.authorization.k8s.io, kind: User, name: 'system:node:n1'}
  - {apiGroup: rbac.authorization.k8s.io, kind: User, name: virtual}
  - {kind: ServiceAccount, namespace: kube-system, name: calico-cni-plugin}
  - {kind: ServiceAccount, namespace: network, name: cni}
  - {kind: ServiceAccount, namespace: kube-system, name: replicaset-controller}
  - {kind: ServiceAccount, namespace: kube-system, name: pod-garbage-collector}
";

/// A cluster, and its people.
pub(crate) struct Stage {
    pub(crate) cluster: Cluster,
}

/// `detector policy`, as it was typed.
pub(crate) fn policy(arguments: &[&str]) -> Output {
    let mut command = Command::new(program().unwrap());
    command.arg("policy").args(arguments).stdin(Stdio::null());
    for variable in ["KUBECONFIG", "HOME", "KUBERNETES_SERVICE_HOST", "DETECTOR_CONFIG"] {
        command.env_remove(variable);
    }
    command.output().unwrap()
}

/// What it prints, and what it says beside it.
#[track_caller]
pub(crate) fn printed(arguments: &[&str]) -> (String, String) {
    let output = policy(arguments);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{said}");
    (String::from_utf8(output.stdout).unwrap(), said)
}

/// A pod of a service account that runs nowhere yet.
pub(crate) fn pod(namespace: &str, name: &str, account: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "namespace": namespace, "name": name },
        "spec": {
            "serviceAccountName": account,
            "containers": [{ "name": "main", "image": "one" }],
        },
    })
}

/// A configuration file with these ranges for `edge/gateway`.
pub(crate) fn configuration(ranges: &[&str]) -> tempfile::NamedTempFile {
    let mut text = String::from("floatingIPs:\n  allow:\n");
    for range in ranges {
        writeln!(text, "  - {{cidr: '{range}', namespace: edge, serviceAccount: gateway}}")
            .unwrap();
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    file
}

// === impl Stage ===

impl Stage {
    /// A cluster with pods and nobody who refuses anything; `None`, and a word why, where none can be
    /// had.
    pub(crate) fn new(what: &str) -> Option<Self> {
        let cluster = Cluster::start(Programs::find_or_skip(what)?).unwrap();
        for namespace in ["shop", "edge", "network"] {
            cluster.objects().make_namespace(namespace).unwrap();
        }
        cluster.kubectl_fed(&["apply", "--filename=-"], RIGHTS).unwrap();
        for (namespace, name, account) in [
            ("default", "web", "default"),
            ("default", "gateway", "gateway"),
            ("edge", "gateway", "gateway"),
            ("edge", "other", "other"),
            ("shop", "db", "default"),
        ] {
            let mut pod = pod(namespace, name, account);
            pod["spec"]["nodeName"] = json!("n1");
            pod["status"] = pretend::running([10, 244, 1, 5].into());
            cluster.objects().create(&pod).unwrap();
        }
        Some(Self { cluster })
    }

    /// Applies a policy, and waits until it refuses, or warns of, this write, which a policy that is
    /// in force does, with these words.
    pub(crate) fn apply(&self, policy: &str, probe: &[&str], words: &str) {
        self.cluster.kubectl_fed(&["apply", "--filename=-"], policy).unwrap();
        self.until(probe, words);
    }

    /// Waits until a write that changes nothing is refused or warned of with these words.
    pub(crate) fn until(&self, probe: &[&str], words: &str) {
        let probe = [probe, &["--dry-run=server", "--warnings-as-errors"]].concat();
        let end = Instant::now() + LONG;
        loop {
            match self.cluster.kubectl(&probe) {
                Err(error) if format!("{error:#}").contains(words) => return,
                other => assert!(Instant::now() < end, "never {words:?}: {other:?}"),
            }
        }
    }

    /// Annotates a pod as somebody.
    pub(crate) fn annotate(
        &self,
        who: &[&str],
        pod: &str,
        key: &str,
        value: &str,
    ) -> Result<String> {
        let (namespace, pod) = pod.split_once('/').unwrap();
        let namespace = format!("--namespace={namespace}");
        let annotation = format!("{key}={value}");
        let words = ["annotate", "--overwrite", &*namespace, "pod", pod, &*annotation];
        self.cluster.kubectl(&[&words[..], who].concat())
    }

    /// Merges a patch into a pod, or into what is behind this subresource of it.
    pub(crate) fn patch(
        &self,
        who: &[&str],
        pod: &str,
        sub: &str,
        patch: &Value,
    ) -> Result<String> {
        let (namespace, pod) = pod.split_once('/').unwrap();
        let namespace = format!("--namespace={namespace}");
        let patch = format!("--patch={patch}");
        let sub = format!("--subresource={sub}");
        let mut words = vec!["patch", &*namespace, "pod", pod, "--type=merge", &*patch];
        if sub != "--subresource=" {
            words.push(&sub);
        }
        self.cluster.kubectl(&[&words[..], who].concat())
    }

    /// Creates an object as somebody.
    pub(crate) fn create(&self, who: &[&str], object: &Value) -> Result<String> {
        let words = [&["create", "--filename=-"], who].concat();
        self.cluster.kubectl_fed(&words, &object.to_string())
    }
}

/// Asserts that something was refused by the policy of this name.
#[track_caller]
pub(crate) fn refused(done: Result<String>, policy: &str) {
    let error = format!("{:#}", done.expect_err("it must be refused"));
    assert!(error.contains(&format!("ValidatingAdmissionPolicy '{policy}")), "{error}");
}
