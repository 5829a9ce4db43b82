//! API servers that do not answer, or not to everything.

use detector_tests::cluster::programs::Programs;
use detector_tests::cluster::{Cluster, User};
use detector_tests::deploy::role_without;
use detector_tests::real::found_or_skip;
use serde_json::{Value, json};

use super::stage::{Selftest, node};

/// Gives user `tenant` the agent's rights but for one verb on one kind of object.
fn all_but(cluster: &Cluster, verb: &str, resource: &str) {
    let role = cluster.kubectl(&["get", "clusterrole", "detector", "--output=json"]).unwrap();
    let mut role: Value = serde_json::from_str(&role).unwrap();
    role = role_without(&role, resource, verb);
    role["metadata"] = json!({ "name": "less" });
    cluster.kubectl_fed(&["apply", "--filename=-"], &role.to_string()).unwrap();
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
        "metadata": { "name": "less" },
        "roleRef": {
            "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "less",
        },
        "subjects": [{ "apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "tenant" }],
    });
    cluster.kubectl_fed(&["apply", "--filename=-"], &binding.to_string()).unwrap();
}

#[test]
fn whatever_the_api_server_refuses_is_named() {
    let Some(programs) = Programs::find_or_skip("selftests with a broken API server") else {
        return;
    };
    if !found_or_skip("selftests with a broken API server", &["ip"]) {
        return;
    }
    let cluster = Cluster::start(programs).unwrap();
    let config = json!({ "sinks": { "events": { "enabled": true } } });
    let kubeconfig = |user| cluster.kubeconfig(user, cluster.addr());
    let as_user = |user| Selftest::new(&config).with(&kubeconfig(user)).run();

    // The name of the node may be wrong.
    let said = as_user(User::Agent);
    said.failed("api", "no node node-a");
    cluster.objects().apply(node()).unwrap();
    let said = as_user(User::Agent);
    assert_eq!(said.code, Some(0), "{said:#?}");

    // Routes and sinks are tested all the same, by what needs no API server.
    let said = as_user(User::Nobody);
    said.failed("api", "does not know this token (401)");
    assert_eq!((said.stage("finding").0, said.stage("sink:stdout").0), ("ok", "ok"), "{said:#?}");
    said.failed("sink:events", "no Event can be written");

    // The right to each kind that is watched, and to what is only asked for.
    for (verb, resource, stage, named) in [
        ("watch", "services", "api", "services: permission is missing (403)"),
        ("list", "nodes", "api", "nodes: permission is missing (403)"),
        ("get", "ipamblocks", "questions", "get ipamblocks: permission is missing (403)"),
        ("create", "events", "sink:events", "cannot create"),
    ] {
        if resource == "ipamblocks" {
            // IPAM's record is asked for where there is a pool.
            let pool = json!({
                "apiVersion": "crd.projectcalico.org/v1", "kind": "IPPool",
                "metadata": { "name": "default" }, "spec": { "cidr": "10.244.0.0/16" },
            });
            cluster.objects().apply(pool).unwrap();
        }
        all_but(&cluster, verb, resource);
        let said = as_user(User::Tenant);
        said.failed(stage, named);
        assert_eq!(said.stages("failed"), [stage], "without {verb} {resource}: {said:#?}");
    }
    let said = as_user(User::Agent);
    assert!(said.stage("questions").1.starts_with("2 answered"), "{said:#?}");

    cluster.stop();
    let said = as_user(User::Agent);
    said.failed("api", "the API server cannot be reached");
    assert_eq!(said.stage("finding").0, "ok", "{said:#?}");
    said.failed("sink:events", "no Event can be written");
}

#[test]
fn what_is_typed_wrong_is_one_line_and_exit_code_2() {
    if !found_or_skip("selftests that are typed wrong", &["ip"]) {
        return;
    }
    let selftest = || Selftest::new(&json!({})).flags(&["--no-api"]);
    selftest().flags(&["--timeout", "soon"]).run().refused("--timeout");
    selftest().flags(&["--timeout", "1h"]).run().refused("out of range");
    let said = selftest().flags(&["--without-sink", "pager"]).run();
    said.refused("there is no such sink: write all or one of stdout");
    Selftest::new(&json!({ "sinks": 1 })).run().refused("sinks");
    let said = Selftest::new(&json!({})).with("what is no kubeconfig").run();
    said.failed("api", "is of no use");
}
