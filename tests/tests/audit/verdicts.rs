//! Prepared clusters of a real API server: the verdict is right, and each finding names its object and
//! field.

use detector_tests::cluster::User;
use serde_json::json;

use crate::prepared::{
    self, DB, FLOATING_IPS, WEB, allowance, annotate, calico, calico_config, calico_nodes,
    developer, find,
};
use crate::stage::Stage;

const AFFECTED: &str = "docker.io/calico/node:v3.22.1";
const FIXED: &str = "docker.io/calico/node:v3.26.4";
const FIELD: &str = "metadata.annotations['cni.projectcalico.org/floatingIPs']";

/// The annotation of the bulletin.
fn claim() -> String {
    format!(r#"["{DB}"]"#)
}

#[test]
fn each_prepared_cluster_gets_its_verdict() {
    let Some(stage) = Stage::new("verdicts of the audit with a real API server") else { return };
    affected_and_hit(&stage);
    affected_and_not_hit(&stage);
    fixed_and_off(&stage);
    fixed_and_on_with_approved_use(&stage);
    mixed_versions(&stage);
    installed_by_the_operator(&stage);
    no_calico_at_all(&stage);
    forged_statuses(&stage);
    the_rest_of_the_family(&stage);
}

fn affected_and_hit(stage: &Stage) {
    let mut objects = calico([AFFECTED; 2]);
    objects.push(calico_config(false));
    stage.set(&objects).unwrap();
    // As the bulletin does it, so that the API server records who.
    let annotation = format!("{FLOATING_IPS}={}", claim());
    stage.cluster.kubectl(&["annotate", "--namespace=default", "pod/web", &annotation]).unwrap();
    let audited = stage.audit(User::Auditor, &[]);
    audited.is("compromised", 1);
    assert_eq!(
        audited.of_rule("floating-ips"),
        [format!(
            "critical pod default/web {FIELD}: it claims {DB} of pod shop/db; this version of Felix \
             acts on it although the feature is off"
        )]
    );
    let findings = audited.report["findings"].as_array().unwrap();
    let finding = findings.iter().find(|finding| finding["rule"] == "floating-ips").unwrap();
    assert_eq!(finding["value"], claim());
    assert_eq!(finding["addresses"][0]["owner"], "pod shop/db");
    assert_eq!(finding["addresses"][0]["by"], "IPAM's record");
    assert_eq!(finding["written"]["manager"], "kubectl-annotate");
    assert!(finding["written"]["time"].is_string(), "{finding:#}");
    assert!(finding["created"].is_string());
    assert_eq!(
        finding["next"],
        "kubectl annotate --namespace default pod/web cni.projectcalico.org/floatingIPs-"
    );
    assert!(audited.missing().is_empty(), "{:?}", audited.missing());
    assert_eq!(audited.report["counts"]["pods"], 5);
}

fn affected_and_not_hit(stage: &Stage) {
    let mut objects = calico([AFFECTED; 2]);
    objects.push(calico_config(false));
    stage.set(&objects).unwrap();
    // The bulletin's workaround: nobody may patch pods.
    let audited = stage.audit(User::Auditor, &[]);
    audited.is("guarded", 1);
    let versions = audited.of_rule("affected-version");
    assert_eq!(versions.len(), 1);
    assert!(
        versions[0].starts_with(
            "medium pod kube-system/calico-node-n1 image of container calico-node: Calico v3.22.1 on 2 \
             nodes (n1, n2)"
        ),
        "{versions:?}"
    );
    // Somebody may.
    stage.add(&developer()).unwrap();
    let audited = stage.audit(User::Auditor, &[]);
    audited.is("exposed", 1);
    assert_eq!(
        audited.of_rule("may-patch-pods"),
        [
            "low RoleBinding default/devs subjects: User dev may patch pods in namespace default, by Role \
          default/dev"
        ]
    );
    assert!(audited.of_rule("floating-ips").is_empty());
}

fn fixed_and_off(stage: &Stage) {
    let mut objects = calico([FIXED; 2]);
    objects.extend(developer());
    stage.set(&objects).unwrap();
    let audited = stage.audit(User::Auditor, &[]);
    audited.is("guarded", 0);
    // An attempt is told, and is no compromise.
    annotate(&mut objects, "default/web", FLOATING_IPS, &claim());
    stage.set(&objects).unwrap();
    let audited = stage.audit(User::Auditor, &[]);
    audited.is("guarded", 1);
    assert_eq!(
        audited.of_rule("floating-ips"),
        [format!(
            "medium pod default/web {FIELD}: it claims {DB} of pod shop/db; the feature is off, so Felix \
             does not act on it"
        )]
    );
    // Felix's environment wins over its configuration.
    let agent = find(&mut objects, "Pod", "kube-system/calico-node-n2");
    agent["spec"]["containers"][0]["env"] =
        json!([{ "name": "Felix_FloatingIPs", "value": "enabled" }]);
    stage.set(&objects).unwrap();
    let audited = stage.audit(User::Auditor, &[]);
    audited.is("compromised", 1);
    assert_eq!(
        audited.of_rule("switched-on"),
        [
            "medium pod kube-system/calico-node-n2 env FELIX_FLOATINGIPS of container calico-node: Calico \
          v3.26.4 on node n2 has floating IPs on, and does not ask who may claim an address"
        ]
    );
}

fn fixed_and_on_with_approved_use(stage: &Stage) {
    let mut objects = calico([FIXED; 2]);
    find(&mut objects, "FelixConfiguration", "default")["spec"]["floatingIPs"] = json!("Enabled");
    annotate(&mut objects, "edge/gateway", FLOATING_IPS, r#"["192.0.2.10"]"#);
    objects.push(allowance());
    objects.extend(developer());
    stage.set(&objects).unwrap();
    // What is approved is no finding; that anybody else could do it is one.
    let audited = stage.audit(User::Auditor, &[]);
    audited.is("exposed", 1);
    assert_eq!(
        audited.of_rule("floating-ips"),
        [format!(
            "note pod edge/gateway {FIELD}: it claims addresses that the allow-list gives to this pod"
        )]
    );
    assert_eq!(
        audited.of_rule("switched-on"),
        [
            "medium FelixConfiguration default spec.floatingIPs: Calico v3.26.4 on 2 nodes (n1, n2) has \
          floating IPs on, and does not ask who may claim an address"
        ]
    );
    // An allow-list never covers somebody's live address.
    annotate(&mut objects, "edge/gateway", FLOATING_IPS, &format!(r#"["192.0.2.10", "{WEB}"]"#));
    stage.set(&objects).unwrap();
    stage.audit(User::Auditor, &[]).is("compromised", 1);
}

fn mixed_versions(stage: &Stage) {
    let mut objects = calico([AFFECTED, FIXED]);
    objects.extend(developer());
    stage.set(&objects).unwrap();
    let audited = stage.audit(User::Auditor, &[]);
    audited.is("exposed", 1);
    let nodes: Vec<(&str, &str, &str)> = audited.report["calico"]["nodes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|node| {
            let text = |field: &str| node[field].as_str().unwrap();
            (text("node"), text("version"), text("switch"))
        })
        .collect();
    assert_eq!(nodes, [("n1", "v3.22.1", "missing"), ("n2", "v3.26.4", "off")]);
    let reasons = audited.report["reasons"].to_string();
    assert!(reasons.contains("on 1 of 2 nodes"), "{reasons}");
    // A claim is as dangerous as the Felix of its own node.
    let mut on_fixed = objects.clone();
    annotate(&mut on_fixed, "default/web", FLOATING_IPS, &claim());
    stage.set(&on_fixed).unwrap();
    stage.audit(User::Auditor, &[]).is("exposed", 1);
    annotate(&mut objects, "shop/db", FLOATING_IPS, &format!(r#"["{WEB}"]"#));
    stage.set(&objects).unwrap();
    stage.audit(User::Auditor, &[]).is("compromised", 1);
}

fn installed_by_the_operator(stage: &Stage) {
    let enterprise = "quay.io/tigera/cnx-node:v3.12.0";
    let mut objects = prepared::bare();
    objects.extend(calico_nodes("calico-system", [enterprise; 2]));
    objects.push(json!({
        "apiVersion": "operator.tigera.io/v1", "kind": "Installation",
        "metadata": { "name": "default", "labels": { "test": "audit" } },
        "spec": { "variant": "TigeraSecureEnterprise" },
        "status": { "calicoVersion": "v3.12.0", "variant": "TigeraSecureEnterprise" },
    }));
    objects.extend(developer());
    stage.set(&objects).unwrap();
    let audited = stage.audit(User::Auditor, &[]);
    audited.is("exposed", 1);
    let version = &audited.of_rule("affected-version")[0];
    assert!(
        version.starts_with("high pod calico-system/calico-node-n1 image of container calico-node: Calico Enterprise v3.12.0"),
        "{version}"
    );
    // A digest has no version: the operator tells it.
    let digest = format!("registry.example/mirror/node@sha256:{:064x}", 7);
    for name in ["calico-system/calico-node-n1", "calico-system/calico-node-n2"] {
        find(&mut objects, "Pod", name)["spec"]["containers"][0]["image"] = json!(digest);
    }
    find(&mut objects, "DaemonSet", "calico-system/calico-node")["spec"]["template"]["spec"]["containers"]
        [0]["image"] = json!(digest);
    stage.set(&objects).unwrap();
    let audited = stage.audit(User::Auditor, &[]);
    audited.is("exposed", 1);
    let version = &audited.of_rule("affected-version")[0];
    assert!(
        version.starts_with(
            "high Installation default status.calicoVersion: Calico Enterprise v3.12.0"
        ),
        "{version}"
    );
}

fn no_calico_at_all(stage: &Stage) {
    let mut objects = prepared::bare();
    stage.set(&objects).unwrap();
    let audited = stage.audit(User::Auditor, &[]);
    audited.is("not-affected", 0);
    // What was left behind by whoever tried is told all the same.
    annotate(&mut objects, "default/web", FLOATING_IPS, &claim());
    stage.set(&objects).unwrap();
    let audited = stage.audit(User::Auditor, &[]);
    audited.is("not-affected", 1);
    assert_eq!(
        audited.of_rule("floating-ips"),
        [format!(
            "low pod default/web {FIELD}: it claims {DB} of pod shop/db; no Calico was seen to act on it"
        )]
    );
}

fn forged_statuses(stage: &Stage) {
    // No annotation, the feature off, the newest version: a status suffices.
    let mut objects = calico([FIXED; 2]);
    find(&mut objects, "Pod", "default/web")["status"]["podIPs"] =
        json!([{ "ip": WEB }, { "ip": DB }]);
    // Two families are all that an API server takes, so the first is forged.
    find(&mut objects, "Pod", "default/web")["status"] =
        json!({ "phase": "Running", "podIP": DB, "podIPs": [{ "ip": DB }] });
    stage.set(&objects).unwrap();
    let audited = stage.audit(User::Auditor, &[]);
    audited.is("compromised", 1);
    let against = audited.of_rule("against-ipam");
    assert_eq!(against.len(), 1);
    assert!(
        against[0].starts_with(&format!(
            "critical pod default/web status.podIP: its status shows {DB}, which IPAM gave to pod \
             shop/db, which shows it too: Felix routes it to this pod"
        )),
        "{against:?}"
    );
    let annotated = audited.of_rule("annotated-pod-ips");
    assert_eq!(
        annotated,
        ["low pod default/web metadata.annotations['cni.projectcalico.org/podIPs']: it names \
          10.244.2.9, which the status does not"]
    );
    // An address of nobody, in a pool and outside of all.
    for (address, rule) in [("10.244.1.77", "against-ipam"), ("203.0.113.7", "outside-ranges")] {
        find(&mut objects, "Pod", "default/web")["status"] =
            json!({ "phase": "Running", "podIP": address, "podIPs": [{ "ip": address }] });
        stage.set(&objects).unwrap();
        let audited = stage.audit(User::Auditor, &[]);
        audited.is("compromised", 1);
        assert_eq!(audited.of_rule(rule).len(), 1, "{:#}", audited.report);
    }
    // Without IPAM's record two pods that show one address are both named.
    objects.retain(|object| object["kind"] != "IPAMBlock");
    find(&mut objects, "Pod", "default/web")["status"] =
        json!({ "phase": "Running", "podIP": DB, "podIPs": [{ "ip": DB }] });
    stage.set(&objects).unwrap();
    let audited = stage.audit(User::Auditor, &[]);
    audited.is("compromised", 1);
    let shared = audited.of_rule("shared-address");
    assert_eq!(shared.len(), 1);
    assert!(
        shared[0].contains("default/web on n2") && shared[0].contains("shop/db on n1"),
        "{shared:?}"
    );
    assert_eq!(audited.of_rule("outside-ranges").len(), 1, "it is not of n2's podCIDRs either");
}

fn the_rest_of_the_family(stage: &Stage) {
    let mut objects = calico([FIXED; 2]);
    let db = format!(r#"["{DB}"]"#);
    annotate(&mut objects, "default/web", "cni.projectcalico.org/ipAddrs", &db);
    annotate(&mut objects, "default/web", "cni.projectcalico.org/ipAddrsNoIpam", &db);
    annotate(
        &mut objects,
        "default/web",
        "cni.projectcalico.org/allowedSourcePrefixes",
        r#"["10.244.1.0/24"]"#,
    );
    annotate(&mut objects, "edge/gateway", FLOATING_IPS, "[\"10.0.0.1\", \"\u{1b}[2J\\nhello\"]");
    stage.set(&objects).unwrap();
    let audited = stage.audit(User::Auditor, &[]);
    audited.is("guarded", 1);
    let one = |rule: &str| audited.of_rule(rule).into_iter().next().unwrap_or_default();
    assert!(one("ip-addrs").starts_with("low pod default/web"), "{}", one("ip-addrs"));
    assert!(
        one("ip-addrs-no-ipam").starts_with("medium pod default/web"),
        "{}",
        one("ip-addrs-no-ipam")
    );
    // Calico's default for spoofing turns the claim against the pod itself.
    assert!(one("allowed-source-prefixes").contains("the pod is cut off"));
    assert!(one("malformed-annotation").starts_with("low pod edge/gateway"));
    assert!(audited.report["refused"]["count"].as_u64().unwrap() >= 1);
    // Nothing that a tenant writes reaches a terminal as it is.
    let page = stage.print(User::Auditor, &["--output", "wide"]);
    assert!(!page.contains('\u{1b}') && page.contains("\\u{1b}[2J"), "{page}");
    find(&mut objects, "FelixConfiguration", "default")["spec"] =
        json!({ "workloadSourceSpoofing": "Any" });
    stage.set(&objects).unwrap();
    let audited = stage.audit(User::Auditor, &[]);
    audited.is("compromised", 1);
    let spoofing = &audited.of_rule("allowed-source-prefixes")[0];
    assert!(
        spoofing.contains("may send from 10.244.1.0/24 with addresses of pod shop/db"),
        "{spoofing}"
    );
}
