//! What the policies refuse: the bulletin's command and every other way to the same; and what goes on.

use serde_json::{Value, json};

use crate::stage::{
    CNI, COLLECTOR, CONTROLLER, FLOATING_IPS, KUBELET, Stage, TENANT, configuration, pod, printed,
    refused,
};

const CLAIMS: &str = "calico-addresses";
const RECORDS: &str = "calico-records";
const STATUSES: &str = "pod-addresses";

const SOURCE_PREFIXES: &str = "cni.projectcalico.org/allowedSourcePrefixes";
const POD_IPS: &str = "cni.projectcalico.org/podIPs";
const CONTAINER_ID: &str = "cni.projectcalico.org/containerID";

fn metadata(key: &str, value: impl Into<Value>) -> Value {
    json!({ "metadata": { "annotations": { key: value.into() } } })
}

/// The cluster's part of the allow-list: one entry in force, one that has expired.
fn allowances() -> Value {
    let allowance = |name: &str, cidr: &str, expires: &str| {
        json!({
            "apiVersion": "route-hijack-detector.io/v1", "kind": "FloatingIPAllowance",
            "metadata": { "name": name },
            "spec": {
                "cidr": cidr, "namespace": "edge", "serviceAccount": "gateway",
                "expires": expires, "reason": "the edge's addresses",
            },
        })
    };
    json!({ "apiVersion": "v1", "kind": "List", "items": [
        allowance("edge", "192.0.2.0/28", "2130-01-01T00:00:00Z"),
        allowance("past", "192.0.2.64/28", "2020-01-01T00:00:00Z"),
    ] })
}

#[test]
fn what_claims_addresses_is_refused_but_for_what_is_allowed() {
    let Some(stage) = Stage::new("the claims policy with a real API server") else { return };
    stage.create(&[], &allowances()).unwrap();
    // Borne before there was a policy.
    stage.annotate(&[], "shop/db", FLOATING_IPS, r#"["10.244.1.9"]"#).unwrap();
    let config = configuration(&["2001:db8::/64"]);
    let kubeconfig = stage.cluster.kubeconfig_path();
    let (policy, said) = printed(&[
        "--cluster",
        "--kubeconfig",
        &kubeconfig.to_string_lossy(),
        "--config",
        &config.path().to_string_lossy(),
        "--only=claims",
    ]);
    assert!(said.contains("192.0.2.64/28") && said.contains("has expired"), "{said}");
    let probe = &["annotate", "pod/web", &format!(r#"{FLOATING_IPS}=["10.244.1.5"]"#)];
    stage.apply(&policy, probe, "claims addresses that no allowance gives");

    every_way_is_refused(&stage);
    what_is_allowed_passes_and_nothing_near_it(&stage);
    what_is_borne_already_is_left_alone(&stage);
}

fn every_way_is_refused(stage: &Stage) {
    // The bulletin's command, by whoever types it, an administrator too; and the other annotations.
    let victim = r#"["10.244.1.5"]"#;
    for who in [TENANT, &[]] {
        refused(stage.annotate(who, "default/web", FLOATING_IPS, victim), CLAIMS);
    }
    for key in ["ipAddrs", "ipAddrsNoIpam"] {
        let key = format!("cni.projectcalico.org/{key}");
        refused(stage.annotate(TENANT, "default/web", &key, victim), CLAIMS);
    }
    refused(stage.annotate(TENANT, "default/web", SOURCE_PREFIXES, r#"["0.0.0.0/0"]"#), CLAIMS);
    // Its form by the status.
    let claim = metadata(FLOATING_IPS, victim);
    refused(stage.patch(TENANT, "default/web", "status", &claim), CLAIMS);
    refused(stage.patch(KUBELET, "default/web", "status", &claim), CLAIMS);
    // At creation, by a person and by the controller of a Deployment whose template has it.
    let mut new = pod("default", "new", "default");
    new["metadata"]["annotations"] = json!({ FLOATING_IPS: victim });
    refused(stage.create(TENANT, &new), CLAIMS);
    new["metadata"]["ownerReferences"] = json!([{
        "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "new", "controller": true,
        "uid": "2f7f3f8e-0000-4000-8000-000000000000",
    }]);
    refused(stage.create(CONTROLLER, &new), CLAIMS);
    new["metadata"].as_object_mut().unwrap().remove("annotations");
    stage.create(CONTROLLER, &new).unwrap();
    // By a binding, in both of its forms: the server copies its annotations onto the pod.
    let mut binding = json!({
        "apiVersion": "v1", "kind": "Binding",
        "metadata": { "namespace": "default", "name": "new", "annotations": { FLOATING_IPS: victim } },
        "target": { "apiVersion": "v1", "kind": "Node", "name": "n1" },
    });
    let bind = |binding: &Value, path: &str| {
        let path = format!("--raw=/api/v1/namespaces/default/{path}");
        let words = [&["create", &*path, "--filename=-"], TENANT].concat();
        stage.cluster.kubectl_fed(&words, &binding.to_string())
    };
    for path in ["pods/new/binding", "bindings"] {
        refused(bind(&binding, path), CLAIMS);
    }
    binding["metadata"].as_object_mut().unwrap().remove("annotations");
    bind(&binding, "pods/new/binding").unwrap();
}

fn what_is_allowed_passes_and_nothing_near_it(stage: &Stage) {
    let gateway = "edge/gateway";
    for value in [
        r#"["192.0.2.10"]"#,
        " [ \"192.0.2.10\" ,\n\t\"192.0.2.11\",\"2001:db8::5\" ] ",
        r#"["2001:DB8:0::5"]"#,
    ] {
        stage.annotate(TENANT, gateway, FLOATING_IPS, value).unwrap();
        let remove = metadata(FLOATING_IPS, Value::Null);
        stage.patch(TENANT, gateway, "", &remove).unwrap();
    }
    stage.patch(TENANT, gateway, "status", &metadata(FLOATING_IPS, r#"["192.0.2.1"]"#)).unwrap();
    stage.annotate(TENANT, gateway, SOURCE_PREFIXES, r#"["192.0.2.0/29"]"#).unwrap();
    let mut new = pod("edge", "second", "gateway");
    new["metadata"]["annotations"] = json!({ FLOATING_IPS: r#"["192.0.2.2"]"# });
    stage.create(CONTROLLER, &new).unwrap();
    // Another service account of the namespace; the account's name in another namespace.
    let right = r#"["192.0.2.10"]"#;
    refused(stage.annotate(TENANT, "edge/other", FLOATING_IPS, right), CLAIMS);
    refused(stage.annotate(TENANT, "default/gateway", FLOATING_IPS, right), CLAIMS);
    // Another address; one that has expired; and what could be read in two ways, or not at all.
    let huge = format!("[{}\"192.0.2.3\"]", "\"192.0.2.3\",".repeat(16_000));
    for value in [
        r#"["192.0.2.16"]"#,
        r#"["192.0.2.10","10.244.1.5"]"#,
        r#"["192.0.2.65"]"#,
        r#"["2001:db8:0:1::5"]"#,
        r#"["192.0.2.10/32"]"#,
        r#"["192.0.2.0/28"]"#,
        r#"["::ffff:192.0.2.10"]"#,
        r#"["::ffff:c000:20a"]"#,
        r#"["192.0.2.010"]"#,
        r#"["fe80::1%eth0"]"#,
        r#"["192.0.2.10",]"#,
        r#"["192.0.2.10" "192.0.2.11"]"#,
        r#"["\u003192.0.2.10"]"#,
        r#"[["192.0.2.10"]]"#,
        r#"{"a":["192.0.2.10"]}"#,
        r#"["192.0.2.10"]["10.244.1.5"]"#,
        r#"[" 192.0.2.10"]"#,
        "192.0.2.10",
        "[]",
        "",
        "null",
        &huge,
    ] {
        // In a file, since one of them is longer than a command may be.
        let claim = metadata(FLOATING_IPS, value);
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), claim.to_string()).unwrap();
        let file = format!("--patch-file={}", file.path().display());
        let words = ["patch", "--namespace=edge", "pod", "gateway", "--type=merge", &*file];
        let done = stage.cluster.kubectl(&[&words[..], TENANT].concat());
        let shown: String = value.chars().take(40).collect();
        let error = format!("{:#}", done.expect_err(&shown));
        assert!(error.contains(CLAIMS), "{shown}: {error}");
    }
    for value in [r#"["192.0.2.0/27"]"#, r#"["192.0.2.10"]"#, r#"["0.0.0.0/0"]"#] {
        refused(stage.annotate(TENANT, gateway, SOURCE_PREFIXES, value), CLAIMS);
    }
}

fn what_is_borne_already_is_left_alone(stage: &Stage) {
    let db = "shop/db";
    stage.cluster.kubectl(&["label", "--namespace=shop", "pod/db", "a=b"]).unwrap();
    let finalizers = |list: Value| json!({ "metadata": { "finalizers": list } });
    stage.patch(TENANT, db, "", &finalizers(json!(["example.com/wait"]))).unwrap();
    let status = json!({ "status": { "message": "still here", "podIP": "10.244.1.6",
        "podIPs": [{ "ip": "10.244.1.6" }] } });
    stage.patch(KUBELET, db, "status", &status).unwrap();
    refused(stage.annotate(TENANT, db, FLOATING_IPS, r#"["10.244.1.10"]"#), CLAIMS);
    // It ends: its finalizer is taken away, and its kubelet removes it.
    stage.cluster.objects().terminate("shop", "db").unwrap();
    stage.patch(TENANT, db, "", &finalizers(json!([]))).unwrap();
    stage.cluster.objects().remove("pods", "shop", "db").unwrap();
    // An annotation can be taken away from one that goes on.
    stage.patch(TENANT, "edge/second", "", &metadata(FLOATING_IPS, Value::Null)).unwrap();
}

#[test]
fn records_are_the_cni_plugins_and_addresses_the_kubelets() {
    let Some(stage) = Stage::new("the other policies with a real API server") else { return };
    let (policy, said) = printed(&[
        "--only=records,statuses",
        "--cni-user=system:serviceaccount:network:cni",
        "--node-user=virtual",
    ]);
    assert_eq!(said, "");
    let forge = &["annotate", "pod/web", &format!("{POD_IPS}=10.0.0.0/8")];
    stage.apply(&policy, forge, "is for the CNI plugin to write, not for admin");
    let status =
        r#"{"status":{"podIP":"10.244.1.5","podIPs":[{"ip":"10.244.1.5"}],"message":"m"}}"#;
    let forge = ["patch", "pod/web", "--subresource=status", "--type=merge", "--patch"];
    let other = r#"{"status":{"podIP":"10.244.1.9","podIPs":[{"ip":"10.244.1.9"}]}}"#;
    stage.until(&[&forge[..], &[other]].concat(), "for its kubelet to write, not for admin");

    // Records: the plugin writes, empties and takes away; nobody else does any of it.
    let other_cni: &[&str] = &["--as=system:serviceaccount:network:cni"];
    for who in [CNI, KUBELET, other_cni] {
        for value in [json!("10.244.1.5/32"), json!(""), Value::Null] {
            stage.patch(who, "default/web", "status", &metadata(POD_IPS, value)).unwrap();
        }
        stage.patch(who, "default/web", "status", &metadata(CONTAINER_ID, "abc")).unwrap();
    }
    for (key, value) in [
        (POD_IPS, json!("10.244.1.5/32")),
        ("cni.projectcalico.org/podIP", json!("10.0.0.0/8")),
        ("vpc.amazonaws.com/pod-ips", json!("10.0.0.0/8")),
        (CONTAINER_ID, json!("abcd")),
        (CONTAINER_ID, Value::Null),
    ] {
        for sub in ["", "status"] {
            let patch = metadata(key, value.clone());
            refused(stage.patch(TENANT, "default/web", sub, &patch), RECORDS);
        }
    }
    let mut new = pod("default", "new", "default");
    new["metadata"]["annotations"] = json!({ POD_IPS: "10.0.0.0/8" });
    refused(stage.create(TENANT, &new), RECORDS);
    // An account that is only called like it.
    let like: &[&str] = &["--as=system:serviceaccount:default:calico-cni-plugin"];
    stage
        .cluster
        .kubectl(&[
            "create",
            "rolebinding",
            "like",
            "--clusterrole=writer",
            "--serviceaccount=default:calico-cni-plugin",
        ])
        .unwrap();
    refused(stage.annotate(like, "default/web", POD_IPS, "10.244.1.9/32"), RECORDS);

    // Addresses: the kubelets' and nobody else's; the rest of a status is whoever's it was.
    let forged: Value = serde_json::from_str(other).unwrap();
    refused(stage.patch(TENANT, "default/web", "status", &forged), STATUSES);
    refused(stage.patch(CNI, "default/web", "status", &forged), STATUSES);
    let added = json!({ "status": { "podIPs": [{ "ip": "10.244.1.5" }, { "ip": "fd00::5" }] } });
    refused(stage.patch(TENANT, "default/web", "status", &added), STATUSES);
    let none = json!({ "status": { "podIP": null, "podIPs": null } });
    refused(stage.patch(TENANT, "default/web", "status", &none), STATUSES);
    let same: Value = serde_json::from_str(status).unwrap();
    stage.patch(TENANT, "default/web", "status", &same).unwrap();
    stage
        .patch(COLLECTOR, "default/web", "status", &json!({ "status": { "phase": "Failed" } }))
        .unwrap();
    for who in [KUBELET, &["--as=virtual"][..]] {
        stage.patch(who, "default/web", "status", &forged).unwrap();
        stage.patch(who, "default/web", "status", &added).unwrap();
    }
    // None of it is about claims.
    stage.annotate(TENANT, "default/web", FLOATING_IPS, r#"["10.244.1.5"]"#).unwrap();
}
