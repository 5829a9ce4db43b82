//! Sources of route changes that do not work, or not as well as they might.

use detector_tests::real::found_or_skip;
use serde_json::json;

use super::stage::{Selftest, pod};

#[test]
fn a_refused_source_is_a_failure_and_a_worse_one_is_degraded() {
    if !found_or_skip("selftests of route sources", &["ip"]) {
        return;
    }
    let selftest = || Selftest::new(&json!({})).flags(&["--no-api"]);
    let said = selftest().flags(&["--route-source", "ebpf", "--refuse", "route"]).run();
    said.failed("routes", "(--refuse route)");
    assert_eq!(said.stages("skipped"), ["api", "canary", "finding", "sinks"]);
    assert!(said.findings.is_empty(), "{said:#?}");

    // By netlink the alert arrives all the same, which is enough unless more is asked for.
    let said = selftest().flags(&["--refuse", "route"]).run();
    assert_eq!(said.code, Some(0), "{said:#?}");
    let (outcome, text) = said.stage("routes");
    assert_eq!(outcome, "degraded");
    assert!(text.starts_with("seen by plain netlink") && text.contains("--refuse"), "{text}");
    assert_eq!((said.stage("finding").0, said.stage("writers").0), ("ok", "degraded"));
    let said = selftest().flags(&["--refuse", "route", "--strict"]).run();
    assert_eq!((said.code, said.stage("finding").0), (Some(1), "ok"), "{said:#?}");

    let said = selftest().flags(&["--refuse", "packets"]).run();
    let (outcome, text) = said.stage("packets");
    assert!(outcome == "degraded" && text.contains("--refuse packets"), "{said:#?}");
    assert_eq!(said.code, Some(0));
}

#[test]
fn a_missing_capability_is_named() {
    if !found_or_skip("selftests without capabilities", &["ip", "setpriv"]) {
        return;
    }
    let namespace = pod();
    let selftest = || Selftest::new(&json!({})).flags(&["--no-api"]);
    let here = || selftest().here(&namespace);

    let said = selftest().capabilities(&["bpf", "perfmon", "net_admin"]).run();
    said.failed("namespace", "takes the capability SYS_ADMIN");
    assert!(said.stage("namespace").1.contains("--here"), "{said:#?}");

    let said = here().capabilities(&["bpf", "perfmon"]).run();
    said.failed("canary", "the capability NET_ADMIN is missing");

    let flags = ["--route-source", "ebpf"];
    let said = here().flags(&flags).capabilities(&["net_admin"]).run();
    said.failed("routes", "with the capabilities BPF, PERFMON and NET_ADMIN");
    let said = here().capabilities(&["net_admin"]).run();
    assert_eq!((said.code, said.stage("routes").0), (Some(0), "degraded"), "{said:#?}");

    let said = here().capabilities(&["bpf", "net_admin"]).run();
    assert_eq!(said.stage("writers").0, "degraded", "without PERFMON: {said:#?}");
}
