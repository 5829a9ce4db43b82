//! The policies' other forms: without refusing, with as many entries as there may be, and as Kyverno's.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::PathBuf;

use detector_tests::cluster::programs::Programs;
use serde_json::Value;

use crate::stage::{FLOATING_IPS, Stage, TENANT, configuration, policy, printed};

#[test]
fn without_denying_it_lets_through_and_warns() {
    let Some(stage) = Stage::new("the dry-run mode of policies with a real API server") else {
        return;
    };
    let victim = r#"["10.244.1.5"]"#;
    let probe = &["annotate", "pod/web", &format!("{FLOATING_IPS}={victim}")];
    stage.apply(&printed(&["--action=warn"]).0, probe, "claims addresses that no allowance gives");
    stage.annotate(TENANT, "default/web", FLOATING_IPS, victim).unwrap();
    let pod = stage.cluster.objects().get("pods", "default", "web").unwrap();
    assert_eq!(pod["metadata"]["annotations"][FLOATING_IPS], victim);
    // Nobody is warned where it is only noted.
    let (noted, _) = printed(&["--action=audit"]);
    stage.cluster.kubectl_fed(&["apply", "--filename=-"], &noted).unwrap();
    let bindings = [
        "get",
        "validatingadmissionpolicybindings",
        "--output=jsonpath={.items[*].spec.validationActions}",
    ];
    let actions = stage.cluster.kubectl(&bindings).unwrap();
    assert_eq!(actions, r#"["Audit"] ["Audit"] ["Audit"]"#);
}

/// As many entries as an allow-list may have, with names that are longer than most.
#[test]
fn the_longest_allow_list_fits() {
    let Some(stage) = Stage::new("the longest allow-list with a real API server") else { return };
    let namespace = "n".repeat(63);
    let account = "a".repeat(60);
    let mut text = String::from("floatingIPs:\n  allow:\n");
    for n in 0..4095 {
        let account = &account[..60 - n % 50];
        let (hi, lo) = (n / 256, n % 256);
        let _ = writeln!(
            text,
            "  - {{cidr: '2001:db8:aaaa:bbbb:cccc:dddd:{hi:x}:{lo:x}/128', namespace: {namespace}, \
             serviceAccount: {account}}}"
        );
    }
    text += "  - {cidr: 192.0.2.0/28, namespace: edge, serviceAccount: gateway}\n";
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    let (policy, _) = printed(&["--only=claims", "--config", &file.path().to_string_lossy()]);
    // What kubectl notes of an object that it applies would be too long.
    let apply = ["apply", "--server-side", "--filename=-"];
    stage.cluster.kubectl_fed(&apply, &policy).unwrap();
    let probe = &["annotate", "pod/web", &format!(r#"{FLOATING_IPS}=["10.244.1.5"]"#)];
    stage.until(probe, "claims addresses that no allowance gives");
    stage.annotate(TENANT, "edge/gateway", FLOATING_IPS, r#"["192.0.2.10"]"#).unwrap();
}

/// Kyverno's own definition of its kind, where `cargo xtask setup` could get it.
fn definition() -> Option<PathBuf> {
    let own = std::env::current_exe().unwrap();
    let name = "kyverno/kyverno.io_clusterpolicies.yaml";
    let found = own.ancestors().map(|folder| folder.join(name)).find(|path| path.is_file());
    if found.is_none() {
        let why = "there is no definition of ClusterPolicy: install Go and run `cargo xtask setup`";
        // Not by `eprintln`, which is not heard of a test that passes.
        let _ = writeln!(std::io::stderr(), "skipped: Kyverno's form of the policies: {why}");
    }
    found
}

/// Kyverno's schema takes its form. That its CEL is the same as in the other form, which the server runs,
/// is held where it is written.
#[test]
fn kyvernos_schema_takes_kyvernos_form() {
    let Some(definition) = definition() else { return };
    if Programs::find_or_skip("Kyverno's form with a real API server").is_none() {
        return;
    }
    let stage = Stage::new("Kyverno's form with a real API server").unwrap();
    stage.cluster.define(&[&definition]).unwrap();
    let config = configuration(&["192.0.2.0/28", "2001:db8::/64"]);
    for action in ["--action=deny", "--action=audit", "--action=warn"] {
        let path = config.path().to_string_lossy();
        let (policy, _) = printed(&["--format=kyverno", action, "--config", &path]);
        let apply = ["apply", "--validate=strict", "--filename=-"];
        stage.cluster.kubectl_fed(&apply, &policy).unwrap();
        // Nothing that the schema does not know was dropped on the way.
        for text in policy.split("---\n") {
            let written: Value = serde_saphyr::from_str(text).unwrap();
            let name = format!(
                "clusterpolicies.kyverno.io/{}",
                written["metadata"]["name"].as_str().unwrap()
            );
            let kept = stage.cluster.kubectl(&["get", &name, "--output=json"]).unwrap();
            let kept: Value = serde_json::from_str(&kept).unwrap();
            let cel = "/spec/rules/0/validate/cel";
            for key in ["variables", "expressions"] {
                let key = format!("{cel}/{key}");
                assert_eq!(kept.pointer(&key), written.pointer(&key));
            }
            assert_eq!(
                kept["spec"]["webhookConfiguration"],
                written["spec"]["webhookConfiguration"]
            );
        }
        // A misspelt key would have been refused.
        let wrong = policy.replace("failureAction:", "failureActoin:");
        stage.cluster.kubectl_fed(&apply, &wrong).unwrap_err();
    }
}

#[test]
fn what_cannot_be_done_is_one_line_and_exit_code_2() {
    let missing = "/nonexistent/detector.yaml";
    for (arguments, words) in [
        (&["--config", missing][..], &[missing, "cannot be read"][..]),
        (&["--cluster", "--kubeconfig", missing], &["allowances cannot be read", missing]),
        (&["--cni-user", "a'b"], &["is no account"]),
        (&["--kubeconfig", missing], &["--cluster"]),
        (&["--format", "opa"], &["opa"]),
    ] {
        let output = policy(arguments);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), output.stdout.len()), (Some(2), 0), "{said}");
        for word in words {
            assert!(said.contains(word), "{arguments:?}: {said}");
        }
    }
}
