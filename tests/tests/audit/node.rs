//! `detector audit --node`, in a namespace with the routes of a node.

use std::io::Write as _;
use std::net::Ipv4Addr;
use std::process::{Command, Stdio};

use detector_tests::netns::Namespace;
use detector_tests::pretend::Wires;
use serde_json::Value;

use crate::prepared::{DB, WEB, calico};
use crate::stage::command;

const FIXED: &str = "docker.io/calico/node:v3.26.4";

fn audit(namespace: &Namespace, dump: &str, node: &str) -> Value {
    let mut command = command(&["--from", dump, "--node", "--node-name", node, "--output", "json"]);
    namespace.hold(&mut command);
    let output = command.output().unwrap();
    let report: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
    crate::shapes::holds(&report);
    report
}

fn diversions(report: &Value) -> Vec<String> {
    let findings = report["findings"].as_array().unwrap().iter();
    findings
        .filter(|finding| finding["rule"] == "live-diversion")
        .map(|finding| finding["message"].as_str().unwrap().to_owned())
        .collect()
}

fn nft(namespace: &Namespace, rules: &str) {
    let mut command = Command::new("nft");
    command.args(["--file", "-"]).stdin(Stdio::piped());
    namespace.hold(&mut command);
    let mut child = command.spawn().expect("nft: `cargo xtask setup` installs it");
    child.stdin.take().unwrap().write_all(rules.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "nft refuses {rules}");
}

#[test]
fn live_routes_are_judged_by_the_dump_of_the_cluster() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: the tables of a namespace need root");
        return;
    }
    let mut objects = calico([FIXED; 2]);
    for (number, object) in objects.iter_mut().enumerate() {
        object["metadata"]["uid"] = format!("uid-{number}").into();
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("all.json");
    let list = serde_json::json!({ "apiVersion": "v1", "kind": "List", "items": objects });
    std::fs::write(&path, list.to_string()).unwrap();
    let dump = path.to_str().unwrap();

    let wires = Wires::new().unwrap();
    let web = wires.attach("default/web", WEB).unwrap();
    wires.attach("edge/gateway", Ipv4Addr::new(10, 244, 2, 10)).unwrap();
    let report = audit(wires.namespace(), dump, "n2");
    assert_eq!(diversions(&report), [] as [&str; 0], "{report:#}");
    assert_eq!(report["live"]["node"], "n2");
    assert!(report["live"]["routes"].as_u64().unwrap() >= 2);

    // A route of the victim's address to another pod, by nobody's annotation.
    wires.namespace().ip(&format!("route add {DB}/32 dev {web} scope link")).unwrap();
    let report = audit(wires.namespace(), dump, "n2");
    let found = diversions(&report);
    assert_eq!(found.len(), 1, "{report:#}");
    assert!(
        found[0].contains("pod default/web") && found[0].contains(&DB.to_string()),
        "{found:?}"
    );
    assert_eq!(report["verdict"], "compromised");
    assert_eq!(report["exitCode"], 1);

    wires.namespace().ip(&format!("route del {DB}/32 dev {web}")).unwrap();

    // The same by a rule and a table of its own.
    wires.namespace().ip(&format!("route add {DB}/32 dev {web} table 100")).unwrap();
    wires.namespace().ip(&format!("rule add to {DB}/32 lookup 100")).unwrap();
    let report = audit(wires.namespace(), dump, "n2");
    assert!(!diversions(&report).is_empty(), "{report:#}");
    assert_eq!(report["verdict"], "compromised");
    wires.namespace().ip(&format!("rule del to {DB}/32 lookup 100")).unwrap();
    wires.namespace().ip(&format!("route del {DB}/32 dev {web} table 100")).unwrap();
    assert_eq!(diversions(&audit(wires.namespace(), dump, "n2")), [] as [&str; 0]);

    // Without any route, by a translation, as Felix writes it where the victim is on the same node.
    let rules = format!(
        "table ip cali {{\nchain fip {{\ntype nat hook prerouting priority dstnat;\n\
         ip daddr {DB} dnat to {WEB}\n}}\n}}\n"
    );
    nft(wires.namespace(), &rules);
    let report = audit(wires.namespace(), dump, "n2");
    let found = diversions(&report);
    assert_eq!(found.len(), 1, "{report:#}");
    assert!(found[0].contains("pod default/web"), "{found:?}");
    assert_eq!(report["live"]["translations"], 1);
    assert_eq!(report["verdict"], "compromised");

    // A node that the cluster does not have is a mistake, told in a line.
    let output = command(&["--from", dump, "--node", "--node-name", "n9"]).output().unwrap();
    crate::failures::one_line(&output, &["no node n9", "--node-name"]);
}
