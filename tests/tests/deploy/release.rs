//! A release in a real kube-apiserver, from `helm install` to `helm uninstall`.

use std::time::{Duration, Instant};

use detector_tests::cluster::Cluster;
use detector_tests::cluster::programs::Programs;
use detector_tests::deploy::{Helm, NAMESPACE};
use detector_tests::pretend;

use crate::policy::ALLOW;

/// How long a server may take to heed an admission policy.
const HEEDED: Duration = Duration::from_secs(30);

const POD_SECURITY: &str = "pod-security.kubernetes.io/enforce=privileged";

/// The command of the bulletin, and its form by the status, in a namespace.
fn claims(cluster: &Cluster, namespace: &str, address: &str) -> [Result<String, String>; 2] {
    let namespace = format!("--namespace={namespace}");
    let key = "cni.projectcalico.org/floatingIPs";
    let annotation = format!("{key}=[\"{address}\"]");
    let patch =
        serde_json::json!({ "metadata": { "annotations": { key: format!("[\"{address}\"]") } } });
    let patch = format!("--patch={patch}");
    let try_out = |arguments: &[&str]| {
        let arguments: Vec<&str> =
            arguments.iter().copied().chain(["--dry-run=server", &namespace]).collect();
        cluster.kubectl(&arguments).map_err(|error| format!("{error:#}"))
    };
    [
        try_out(&["annotate", "--overwrite", "pod/web", &annotation]),
        try_out(&["patch", "pod/web", "--subresource=status", "--type=merge", &patch]),
    ]
}

#[test]
fn it_is_installed_upgraded_and_uninstalled() {
    let what = "a release in a real kube-apiserver";
    let Some(programs) = Programs::find_or_skip(what) else { return };
    let Some(helm) = Helm::find_or_skip(what) else { return };
    let cluster = Cluster::start(programs).unwrap();
    let kubeconfig = cluster.kubeconfig_path();
    for namespace in [NAMESPACE, "default", "edge"] {
        cluster.objects().make_namespace(namespace).unwrap();
    }
    for namespace in ["default", "edge"] {
        let mut pod = pretend::pod(namespace, "web", "n1");
        pod["spec"]["serviceAccountName"] = "gateway".into();
        cluster.objects().create(&pod).unwrap();
    }

    // The rights and the kind are there already, as kubectl has applied them.
    let said = helm.install(&kubeconfig, &["--take-ownership", "--force-conflicts"]).unwrap();
    assert!(said.contains("helm test"), "{said}");
    assert!(said.contains(POD_SECURITY), "the namespace is not labelled yet: {said}");
    cluster.kubectl(&["label", "namespace", NAMESPACE, POD_SECURITY]).unwrap();
    for claim in claims(&cluster, "default", "10.244.1.5") {
        claim.expect("nothing refuses it yet");
    }

    let said =
        helm.install(&kubeconfig, &["--set=policy.enabled=true", "--set-json", ALLOW]).unwrap();
    assert!(!said.contains(POD_SECURITY), "it is labelled: {said}");
    let end = Instant::now() + HEEDED;
    // Each answer of the server is news; there is nothing else that tells when a policy is heeded.
    while claims(&cluster, "default", "10.244.1.5").iter().any(Result::is_ok) {
        assert!(Instant::now() < end, "the policy is not heeded after {HEEDED:?}");
    }
    for claim in claims(&cluster, "default", "10.244.1.5") {
        let refused = claim.unwrap_err();
        assert!(refused.contains("CVE-2022-28224"), "{refused}");
    }
    for claim in claims(&cluster, "edge", "192.0.2.1") {
        claim.expect("the allow-list gives it to this service account");
    }

    helm.uninstall(&kubeconfig).unwrap();
    let objects = "daemonsets,configmaps,serviceaccounts,secrets";
    let selector = "--selector=app.kubernetes.io/part-of=route-hijack-detector";
    let left = |kinds: &str, more: &[&str]| {
        let mut arguments = vec!["get", kinds, "--output=name", selector];
        arguments.extend(more);
        cluster.kubectl(&arguments).unwrap()
    };
    assert_eq!(left(objects, &["--all-namespaces"]), "");
    let of_the_cluster = "clusterroles,clusterrolebindings,priorityclasses,\
                          validatingadmissionpolicies,validatingadmissionpolicybindings,\
                          customresourcedefinitions";
    assert_eq!(
        left(of_the_cluster, &[]).trim(),
        "customresourcedefinition.apiextensions.k8s.io/floatingipallowances.route-hijack-detector.io",
        "allowances are kept, and nothing else"
    );
}
