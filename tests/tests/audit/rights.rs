//! The audit only reads; it runs with the role that the docs give, and says what it could not see with
//! less. Who may do what is told by role and binding, and can be closed as it says.

use std::time::{Duration, Instant};

use detector_tests::cluster::User;
use serde_json::{Value, json};

use crate::prepared::{FLOATING_IPS, allowance, annotate, calico, developer, find};
use crate::stage::Stage;

const AFFECTED: &str = "docker.io/calico/node:v3.22.1";
const FIXED: &str = "docker.io/calico/node:v3.26.4";
const RBAC: &str = "rbac.authorization.k8s.io/v1";

/// How long anything may take that is certain to come.
const LONG: Duration = Duration::from_mins(1);

fn role(name: &str, rules: &Value) -> Value {
    json!({
        "apiVersion": RBAC, "kind": "ClusterRole",
        "metadata": { "name": name, "labels": { "test": "audit" } }, "rules": rules,
    })
}

fn bind(name: &str, role: &str, subject: &Value) -> Value {
    json!({
        "apiVersion": RBAC, "kind": "ClusterRoleBinding",
        "metadata": { "name": name, "labels": { "test": "audit" } },
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role },
        "subjects": [subject],
    })
}

fn user(name: &str) -> Value {
    json!({ "apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": name })
}

fn group(name: &str) -> Value {
    json!({ "apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": name })
}

#[test]
fn it_only_reads_and_says_what_it_does_not_see() {
    let Some(stage) = Stage::new("rights of the audit with a real API server") else { return };
    let mut objects = calico([AFFECTED; 2]);
    annotate(&mut objects, "default/web", FLOATING_IPS, r#"["10.244.1.5"]"#);
    // A status that IPAM contradicts makes it look twice.
    find(&mut objects, "Pod", "edge/gateway")["status"]["podIP"] = json!("10.244.1.5");
    find(&mut objects, "Pod", "edge/gateway")["status"]["podIPs"] = json!([{ "ip": "10.244.1.5" }]);
    objects.extend(developer());
    stage.set(&objects).unwrap();
    let audited = stage.audit(User::Auditor, &[]);
    audited.is("compromised", 1);
    assert!(audited.missing().is_empty(), "{:?}", audited.missing());
    let requests = stage.cluster.audit_log("auditor").unwrap();
    assert!(requests.len() > 20, "{requests:?}");
    for (verb, what) in &requests {
        assert!(matches!(verb.as_str(), "get" | "list"), "{verb} {what}");
    }
    assert!(requests.iter().any(|(verb, what)| verb == "get" && what.contains("/pods/gateway")));

    // The role gives no more than that either.
    let role =
        stage.cluster.kubectl(&["get", "clusterrole/detector-audit", "--output=json"]).unwrap();
    let role: Value = serde_json::from_str(&role).unwrap();
    for rule in role["rules"].as_array().unwrap() {
        let verbs = rule["verbs"].as_array().unwrap();
        assert!(verbs.iter().all(|verb| verb == "get" || verb == "list"), "{rule}");
        assert!(!rule["resources"].to_string().contains("secrets"), "{rule}");
    }

    half_is_hidden(&stage, &objects);
    nothing_is_allowed(&stage);
}

fn half_is_hidden(stage: &Stage, objects: &[Value]) {
    // Pods of two namespaces, and nodes; no roles, no IPAM, nothing of Calico's.
    let read = role(
        "half",
        &json!([{ "apiGroups": [""], "resources": ["nodes", "namespaces"], "verbs": ["list"] }]),
    );
    let pods = |namespace: &str| {
        [
            json!({
                "apiVersion": RBAC, "kind": "Role",
                "metadata": { "namespace": namespace, "name": "half", "labels": { "test": "audit" } },
                "rules": [{ "apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list"] }],
            }),
            json!({
                "apiVersion": RBAC, "kind": "RoleBinding",
                "metadata": { "namespace": namespace, "name": "half", "labels": { "test": "audit" } },
                "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "half" },
                "subjects": [user("tenant")],
            }),
        ]
    };
    stage.add(&[read, bind("half", "half", &user("tenant"))]).unwrap();
    stage.add(&pods("kube-system")).unwrap();
    let audited = stage.audit(User::Tenant, &[]);
    // The version is seen, the claim is not, and neither is who could make one.
    audited.is("exposed", 1);
    let missing = audited.missing();
    for kind in ["pods", "ipamblocks", "ippools", "felixconfigurations", "clusterroles", "services"]
    {
        assert!(missing.contains(&kind), "{kind}: {missing:?}");
    }
    assert!(!missing.contains(&"nodes"));
    let reasons = audited.report["reasons"].to_string();
    assert!(reasons.contains("roles and bindings could not all be seen"), "{reasons}");
    assert!(reasons.contains("pods could not all be seen"), "{reasons}");
    assert!(audited.of_rule("floating-ips").is_empty());
    // With the namespace of the attacker the claim is seen, if not whose the address is.
    stage.add(&pods("default")).unwrap();
    let audited = stage.audit(User::Tenant, &[]);
    audited.is("compromised", 1);
    let page = stage.print(User::Tenant, &[]);
    assert!(
        page.contains("NOT SEEN") && page.contains("only those of default, kube-system"),
        "{page}"
    );
    // Without Calico's objects a version with the fix leaves the switch in the dark.
    let mut fixed = objects.to_vec();
    for node in ["n1", "n2"] {
        let pod = find(&mut fixed, "Pod", &format!("kube-system/calico-node-{node}"));
        pod["spec"]["containers"][0]["image"] = json!(FIXED);
    }
    fixed.retain(|object| object["kind"] != "Role" && object["kind"] != "RoleBinding");
    let annotations = &mut find(&mut fixed, "Pod", "default/web")["metadata"]["annotations"];
    annotations.as_object_mut().unwrap().remove(FLOATING_IPS);
    stage.set(&fixed).unwrap();
    stage
        .add(&[
            role("half", &json!([{ "apiGroups": [""], "resources": ["pods"], "verbs": ["list"] }])),
            bind("half", "half", &user("tenant")),
        ])
        .unwrap();
    // The status that was forged shows without any record: two pods have the address.
    let audited = stage.audit(User::Tenant, &[]);
    audited.is("compromised", 1);
    find(&mut fixed, "Pod", "edge/gateway")["status"] = json!({
        "phase": "Running", "podIP": "10.244.2.10", "podIPs": [{ "ip": "10.244.2.10" }],
    });
    stage.add(&fixed).unwrap();
    let audited = stage.audit(User::Tenant, &[]);
    audited.is("undetermined", 2);
    let reasons = audited.report["reasons"].to_string();
    assert!(reasons.contains("FelixConfigurations cannot be seen"), "{reasons}");
}

fn nothing_is_allowed(stage: &Stage) {
    stage.set(&[]).unwrap();
    let kubeconfig = stage.kubeconfig(User::Tenant);
    let output = crate::stage::audit(&["--kubeconfig", &kubeconfig.path()]);
    crate::failures::one_line(&output, &["403", "deploy/audit-rbac.yaml"]);
}

#[test]
fn who_may_is_told_by_role_and_binding_and_can_be_closed() {
    let Some(stage) = Stage::new("reach of the attack with a real API server") else { return };
    let mut objects = calico([AFFECTED; 2]);
    objects.extend(developer());
    objects.extend([
        role("all", &json!([{ "apiGroups": ["*"], "resources": ["*"], "verbs": ["*"] }])),
        bind("boss", "all", &user("boss")),
        bind("crowd", "edit", &group("system:authenticated")),
        role(
            "status",
            &json!([{ "apiGroups": [""], "resources": ["*/status"], "verbs": ["update"] }]),
        ),
        bind(
            "robot",
            "status",
            &json!({ "kind": "ServiceAccount", "namespace": "shop", "name": "robot" }),
        ),
        role(
            "reader",
            &json!([{ "apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list"] }]),
        ),
        bind("reader", "reader", &user("reader")),
        bind("odd", "status", &user("o'dd $(reboot)")),
    ]);
    stage.set(&objects).unwrap();
    let audited = stage.audit(User::Auditor, &[]);
    audited.is("exposed", 1);
    let holders = audited.report["reach"]["holders"].as_array().unwrap().clone();
    let by = |binding: &str| {
        let holder = holders.iter().find(|holder| holder["binding"] == binding);
        holder.unwrap_or_else(|| panic!("no {binding} in {holders:#?}")).clone()
    };
    // Everybody, by a role that is aggregated from others: no controller has copied its rules here.
    let crowd = by("ClusterRoleBinding crowd");
    assert_eq!(crowd, holders[0], "the most dangerous comes first");
    assert_eq!(crowd["aggregatedFrom"], json!(["system:aggregate-to-edit"]));
    assert_eq!(crowd["close"], "kubectl delete clusterrolebinding/crowd");
    let rights = crowd["rights"].to_string();
    assert!(rights.contains("patch pods"), "{rights}");
    let robot = by("ClusterRoleBinding robot");
    assert_eq!(robot["subject"], "shop/robot");
    assert_eq!(robot["rights"], json!(["update pods/status"]));
    assert_eq!(by("ClusterRoleBinding odd")["subject"], "o'dd $(reboot)");
    // Whoever may do anything anyway, and the cluster's own, are told apart and count for nothing.
    assert!(by("ClusterRoleBinding boss")["system"].as_str().unwrap().contains("administrator"));
    assert!(by("ClusterRoleBinding cluster-admin")["system"].is_string());
    assert!(by("ClusterRoleBinding system:kube-scheduler")["close"].is_null());
    assert!(!holders.iter().any(|holder| holder["subject"] == "reader"));

    // What it prints to close them closes them.
    let devs = by("RoleBinding default/devs");
    let close = devs["close"].as_str().unwrap().to_owned();
    assert!(close.starts_with("kubectl patch --namespace default role/dev --type json"), "{close}");
    for holder in holders.iter().filter(|holder| holder["system"].is_null()) {
        let command = holder["close"].as_str().unwrap();
        // The wildcard has nothing to strike out, so two bindings go, and each once.
        run(&stage, command);
    }
    let audited = stage.audit(User::Auditor, &[]);
    audited.is("guarded", 1);
    let rules = stage
        .cluster
        .kubectl(&["get", "--namespace=default", "role/dev", "--output=json"])
        .unwrap();
    let rules: Value = serde_json::from_str(&rules).unwrap();
    assert_eq!(
        rules["rules"],
        json!([
            { "apiGroups": ["apps"], "resources": ["deployments"], "verbs": ["get", "patch"] },
            { "apiGroups": [""], "resources": ["services"], "verbs": ["get", "patch"] },
            { "apiGroups": [""], "resources": ["pods"], "verbs": ["get"] },
        ])
    );
}

/// Runs a command of the plan as a shell would: the words of this test hold no other quotes.
fn run(stage: &Stage, command: &str) {
    let command = command.strip_prefix("kubectl ").unwrap();
    let mut words = Vec::new();
    for (number, part) in command.split('\'').enumerate() {
        if number % 2 == 0 {
            words.extend(part.split_whitespace());
        } else {
            words.push(part);
        }
    }
    stage.cluster.kubectl(&words).unwrap_or_else(|error| panic!("{command}: {error:#}"));
}

#[test]
fn the_admission_policy_of_the_plan_is_accepted_and_guards() {
    let Some(stage) = Stage::new("the admission policy with a real API server") else { return };
    let mut objects = calico([FIXED; 2]);
    find(&mut objects, "FelixConfiguration", "default")["spec"]["floatingIPs"] = json!("Enabled");
    annotate(&mut objects, "edge/gateway", FLOATING_IPS, r#"["192.0.2.10"]"#);
    annotate(&mut objects, "shop/db", FLOATING_IPS, r#"["192.0.2.99"]"#);
    objects.push(allowance());
    objects.extend(developer());
    stage.set(&objects).unwrap();
    let plan = stage.print(User::Auditor, &["--fix-plan"]);
    let from = plan.find("<<'EOF'\n").unwrap() + "<<'EOF'\n".len();
    let policy = &plan[from..from + plan[from..].find("\nEOF\n").unwrap()];
    stage.cluster.kubectl_fed(&["apply", "--dry-run=server", "--filename=-"], policy).unwrap();
    stage.cluster.kubectl_fed(&["apply", "--filename=-"], policy).unwrap();

    let annotate = |pod: &str, namespace: &str, extra: &[&str]| {
        let annotation = format!(r#"{FLOATING_IPS}=["10.244.1.5"]"#);
        let namespace = format!("--namespace={namespace}");
        let all = [&["annotate", "--overwrite", &*namespace, pod, &*annotation], extra].concat();
        stage.cluster.kubectl(&all)
    };
    // The server takes its time to load a policy.
    let end = Instant::now() + LONG;
    let refused = loop {
        match annotate("pod/web", "default", &["--dry-run=server"]) {
            Err(refused) => break format!("{refused:#}"),
            Ok(_) => assert!(Instant::now() < end, "the policy never refuses"),
        }
    };
    assert!(refused.contains("claims addresses that no allowance gives"), "{refused}");
    // So is the way by the status, and that of whoever makes a pod.
    let status =
        format!(r#"{{"metadata":{{"annotations":{{"{FLOATING_IPS}":"[\"10.244.1.5\"]"}}}}}}"#);
    let patch = [
        "patch",
        "--namespace=default",
        "pod/web",
        "--subresource=status",
        "--type=merge",
        "--patch",
    ];
    stage.cluster.kubectl(&[&patch[..], &[&status]].concat()).unwrap_err();
    let mut new = crate::prepared::pod("default", "new", "n1", [10, 244, 1, 9].into());
    new["metadata"]["annotations"]["cni.projectcalico.org/ipAddrsNoIpam"] =
        json!(r#"["10.244.1.5"]"#);
    stage.cluster.kubectl_fed(&["create", "--filename=-"], &new.to_string()).unwrap_err();
    // The allowed goes on, with its own address only; and so does a pod that bears one already: it can
    // be written to, and the annotation can go.
    stage.cluster.kubectl(&["label", "--namespace=edge", "pod/gateway", "a=b"]).unwrap();
    annotate("pod/gateway", "edge", &["--dry-run=server"]).unwrap_err();
    stage.cluster.kubectl(&["label", "--namespace=shop", "pod/db", "a=b"]).unwrap();
    let ready = json!({ "message": "still here" });
    stage.cluster.objects().patch_status("pods", "shop", "db", &ready).unwrap();
    annotate("pod/db", "shop", &[]).unwrap_err();
    let remove = ["annotate", "--namespace=shop", "pod/db", &format!("{FLOATING_IPS}-")];
    stage.cluster.kubectl(&remove).unwrap();

    let audited = stage.audit(User::Auditor, &[]);
    audited.is("guarded", 0);
    let reasons = audited.report["reasons"].to_string();
    assert!(
        reasons.contains(
            "the admission policy refuses the annotations, but for what the allow-list has"
        ),
        "{reasons}"
    );
    // Weakened, it counts for nothing.
    let weaker = r#"{"spec":{"validationActions":["Audit"]}}"#;
    let binding = "validatingadmissionpolicybinding/calico-addresses.route-hijack-detector.io";
    stage.cluster.kubectl(&["patch", binding, "--type=merge", "--patch", weaker]).unwrap();
    let audited = stage.audit(User::Auditor, &[]);
    audited.is("exposed", 1);
    let reasons = audited.report["reasons"].to_string();
    assert!(reasons.contains("the admission policy does not count"), "{reasons}");
}
