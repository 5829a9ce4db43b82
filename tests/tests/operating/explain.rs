//! `detector explain` against `ip route get`, in situations of every sort.

use std::process::Command;

use detector_tests::real::found_or_skip;
use detector_tests::scenario::words::interface;
use serde_json::{Value, json};

use super::stage::{EVIL, Stage, detector, text};

/// What `ip route get` says: the interface and the neighbour, or that the packet is not sent.
fn ip_says(stage: &Stage, address: &str) -> Option<(Option<String>, Option<String>)> {
    let output = stage
        .node
        .namespace()
        .within(|| Command::new("ip").args(["-j", "route", "get", address]).output())
        .unwrap();
    if !output.status.success() {
        return None;
    }
    let said: Value = serde_json::from_slice(&output.stdout).unwrap();
    let text = |name: &str| said[0][name].as_str().map(str::to_owned);
    let gateway = text("gateway").or_else(|| said[0]["via"]["host"].as_str().map(str::to_owned));
    Some((text("dev"), gateway))
}

#[test]
fn where_packets_go_is_what_the_kernel_says() {
    if !found_or_skip("explanations", &["ip"]) {
        return;
    }
    let mut stage = Stage::new(2);
    let evil = interface(EVIL[0]).unwrap();
    let two = interface(EVIL[1]).unwrap();
    for setup in [
        "addr add 172.18.0.1/24 dev uplink0".to_owned(),
        "route add default via 172.18.0.254 dev uplink0".to_owned(),
        // 1: a route to an attacker beside the default. 2: the owner's own, without any attack.
        format!("route add 10.99.0.1/32 dev {evil}"),
        // 3: a wider one that loses, 4: and where it wins.
        format!("route add 10.99.0.0/24 dev {two}"),
        // 5: two of the same prefix, by metric.
        format!("route add 10.98.0.1/32 dev {two} metric 200"),
        format!("route add 10.98.0.1/32 dev {evil} metric 100"),
        // 6 to 8: routes that send nothing.
        "route add blackhole 10.97.0.1/32".to_owned(),
        "route add unreachable 10.97.0.2/32".to_owned(),
        "route add prohibit 10.97.0.3/32".to_owned(),
        // 9: a rule to a table of its own, past a route of the main table.
        format!("route add 10.96.0.1/32 dev {two} table 100"),
        format!("route add 10.96.0.1/32 dev {evil}"),
        "rule add to 10.96.0.1/32 lookup 100 priority 50".to_owned(),
        // 10: a rule for marked packets only, which is not for these.
        format!("route add 10.95.0.1/32 dev {two} table 101"),
        format!("route add 10.95.0.1/32 dev {evil}"),
        "rule add fwmark 0x1 lookup 101 priority 51".to_owned(),
        // 11: a next-hop object. 12: one leg of several.
        format!("nexthop add id 7 dev {two}"),
        "route add 10.94.0.1/32 nhid 7".to_owned(),
        format!("route add 10.93.0.1/32 nexthop dev {evil} nexthop dev {two}"),
        // 13: by a neighbour. 14: a throw route goes on with the next rule.
        "route add 10.92.0.1/32 via 172.18.0.2 dev uplink0 proto bird".to_owned(),
        "route add throw 10.91.0.1/32 table 102".to_owned(),
        format!("route add 10.91.0.1/32 dev {evil}"),
        "rule add to 10.91.0.0/24 lookup 102 priority 52".to_owned(),
        // 15: a rule that drops.
        "rule add to 10.90.0.1/32 prohibit priority 53".to_owned(),
    ] {
        stage.ip(&setup);
    }
    let agent = stage.start(&json!({}));
    let watched = [
        "10.99.0.1",
        "10.244.1.5",
        "10.99.0.2",
        "10.98.0.1",
        "10.97.0.1",
        "10.97.0.2",
        "10.97.0.3",
        "10.96.0.1",
        "10.95.0.1",
        "10.94.0.1",
        "10.93.0.1",
        "10.92.0.1",
        "10.91.0.1",
        "10.90.0.1",
        "172.18.0.1",
    ];
    // The last ones are by uplinks, of which wide routes are not watched.
    for address in watched.into_iter().chain(["192.0.2.1", "172.18.0.77"]) {
        let explained = stage.ask(&format!("/v1/explain?address={address}"));
        let kernel = &explained["kernel"];
        match ip_says(&stage, address) {
            None => {
                assert!(kernel["refused"].is_string(), "{address}: {explained:#}");
                assert_eq!(kernel["interface"], Value::Null, "{address}");
            }
            Some((dev, gateway)) => {
                let text = |name: &str| kernel[name].as_str().map(str::to_owned);
                assert_eq!((text("interface"), text("gateway")), (dev, gateway), "{address}");
            }
        }
        // What follows from the watched routes and rules is the same, where they say anything.
        let expected = if watched.contains(&address) { json!(true) } else { Value::Null };
        assert_eq!(explained["agree"], expected, "{address}: {explained:#}");
    }

    // Whose it is, by whom, and what is thought of it.
    let explained = stage.ask("/v1/explain?address=10.99.0.1");
    let claim = &explained["claims"][0];
    assert_eq!((&claim["whose"], &claim["strength"]), (&json!("node node-b"), &json!("given")));
    let verdicts = explained["verdicts"].as_array().unwrap();
    assert!(verdicts.iter().any(|one| one["verdict"] == "hijack"), "{explained:#}");
    let key = Stage::key(0, EVIL[0]);
    assert!(explained["findings"].as_array().unwrap().iter().any(|found| *found == *key));
    let explained = stage.ask("/v1/explain?address=10.244.1.5");
    assert_eq!(explained["claims"][0]["whose"], "pod shop/cart");
    assert_eq!(explained["routes"][0]["behind"][0], "pod shop/cart");
    assert_eq!(explained["verdicts"][0]["verdict"], "entitled");

    let socket = stage.socket();
    let (out, err, code) = detector(&["explain", "10.99.0.1", "--socket", text(&socket)]);
    assert_eq!(code, Some(0), "{err}");
    for line in
        ["kernel    10.99.0.1 dev", "node node-b", "pod default/evil", "finding   10.99.0.1/32"]
    {
        assert!(out.contains(line), "{line} is not in {out}");
    }
    agent.stop().unwrap();
}
