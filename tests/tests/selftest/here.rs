//! The network namespace that a selftest runs in: refused where it is not private, and as it was
//! however the selftest ends.

use std::net::TcpListener;
use std::process::Child;

use detector_tests::apiserver::ApiServer;
use detector_tests::netns::Namespace;
use detector_tests::real::found_or_skip;
use detector_tests::real::receiver::{Manner, Receiver};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use super::stage::{ADDRESS, LONG, Said, Selftest, all_there_is, node, pod, wait_until};

#[test]
fn a_network_namespace_that_others_use_is_refused() {
    if !found_or_skip("selftests that are refused", &["ip", "tc"]) {
        return;
    }
    let selftest = || Selftest::new(&json!({}));
    // A node's, by the interfaces of its pods.
    let namespace = pod();
    namespace.ip("link add cali0a1b2c3d4e5 type veth peer name pod0").unwrap();
    let before = all_there_is(Some(&namespace));
    let said = selftest().flags(&["--no-api"]).here(&namespace).run();
    said.refused("the interface cali0a1b2c3d4e5 in it is a pod's");
    assert_eq!(all_there_is(Some(&namespace)), before);
    // By other names, where the configuration has them.
    namespace.ip("link del cali0a1b2c3d4e5").unwrap();
    namespace.ip("link add azv1 type veth peer name pod0").unwrap();
    let config = json!({ "interfacePrefixes": ["azv"] });
    let said = Selftest::new(&config).flags(&["--no-api"]).here(&namespace).run();
    said.refused("the interface azv1 in it is a pod's");

    // By an address that the API server says is the node's.
    let namespace = pod();
    namespace.ip(&format!("address add {ADDRESS}/24 dev eth0")).unwrap();
    let listener = namespace.within(|| TcpListener::bind("127.0.0.1:0")).unwrap();
    let server = ApiServer::start(listener).unwrap();
    server.apply(node()).unwrap();
    let before = all_there_is(Some(&namespace));
    let said = selftest().with(&server.kubeconfig()).here(&namespace).run();
    said.refused("it has the address 172.18.0.2 of the node node-a");
    assert_eq!(all_there_is(Some(&namespace)), before);
    // In one of its own it does no harm there.
    let said = Selftest::new(&json!({})).with(&server.kubeconfig()).inside(&namespace).run();
    assert_eq!((said.code, said.stage("finding").0), (Some(0), "ok"), "{said:#?}");
    assert_eq!(all_there_is(Some(&namespace)), before);
}

#[test]
fn the_way_to_the_api_server_is_no_victim() {
    if !found_or_skip("a selftest whose API server is the node's", &["ip", "tc"]) {
        return;
    }
    // The API server has the node's first address, at the other end of the pod's interface.
    let (namespace, far) = (Namespace::new().unwrap(), Namespace::new().unwrap());
    let far_path = far.path();
    namespace.ip(&format!("link add eth0 type veth peer name far netns {far_path}")).unwrap();
    namespace.ip("link set eth0 addrgenmode none").unwrap();
    namespace.ip("link set eth0 up").unwrap();
    namespace.ip("address add 172.18.0.9/24 dev eth0").unwrap();
    far.ip("link set far addrgenmode none").unwrap();
    far.ip("link set far up").unwrap();
    far.ip(&format!("address add {ADDRESS}/24 dev far")).unwrap();
    let listener = far.within(|| TcpListener::bind((ADDRESS, 0))).unwrap();
    let server = ApiServer::start(listener).unwrap();
    let mut node = node();
    let second = json!({ "type": "ExternalIP", "address": "203.0.113.9" });
    node["status"]["addresses"].as_array_mut().unwrap().push(second);
    server.apply(node.clone()).unwrap();
    let before = all_there_is(Some(&namespace));
    let selftest = || Selftest::new(&json!({})).with(&server.kubeconfig()).here(&namespace);
    let said = selftest().run();
    assert_eq!(said.code, Some(0), "{said:#?}");
    let key = said.findings[0]["key"].as_str().unwrap();
    assert!(key.starts_with("203.0.113.9/32 dev calitest"), "{key}");
    // Where it has no other, nobody is cut off either.
    node["status"]["addresses"].as_array_mut().unwrap().pop();
    server.apply(node).unwrap();
    let said = selftest().run();
    assert_eq!(said.code, Some(0), "{said:#?}");
    let key = said.findings[0]["key"].as_str().unwrap();
    assert!(key.starts_with("198.51.100.0/24 dev calitest"), "{key}");
    assert_eq!(all_there_is(Some(&namespace)), before);
}

/// A selftest that waits for a sink, and what there was before it.
struct Waiting<'a> {
    namespace: &'a Namespace,
    hook: &'a Receiver,
    child: Child,
    before: String,
    canary: String,
}

impl<'a> Waiting<'a> {
    fn new(namespace: &'a Namespace, hook: &'a Receiver) -> Self {
        let before = all_there_is(Some(namespace));
        hook.usually(Manner::Stall);
        let config = json!({ "sinks": { "webhooks": [{ "name": "hook", "url": hook.url("/") }] } });
        let selftest = Selftest::new(&config).flags(&["--no-api", "--timeout", "2m"]);
        let selftest = selftest.here(namespace);
        let selftest = selftest.flags(&["--output", "json"]);
        let child = selftest.spawn();
        hook.wait_for(1, LONG).unwrap();
        // The sink has it, and answers nothing: the selftest waits, and its interface stands.
        let all = all_there_is(Some(namespace));
        let at = all.find("calitest").expect("the canary stands");
        let canary = all[at..at + "calitest123456".len()].to_owned();
        // What an untimely end would leave.
        namespace.ip(&format!("route add 203.0.113.0/24 dev {canary}")).unwrap();
        drop(selftest);
        Self { namespace, hook, child, before, canary }
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).unwrap();
    }

    fn ended(self) -> Said {
        let said = Said::new(self.child.wait_with_output().unwrap());
        // By a process that is none of ours, where the selftest was killed.
        let all = wait_until(self.namespace, |all| !all.contains(&self.canary));
        assert_eq!(all, self.before);
        self.hook.release();
        self.hook.take();
        said
    }
}

#[test]
fn nothing_is_left_however_it_ends() {
    if !found_or_skip("selftests that are killed", &["ip", "tc"]) {
        return;
    }
    let namespace = pod();
    let hook = Receiver::start(Some(&namespace), 0).unwrap();
    let waiting = Waiting::new(&namespace, &hook);
    // Another has to wait meanwhile, and does not take the canary for what is left.
    let said = Selftest::new(&json!({})).flags(&["--no-api"]).here(&namespace).run();
    said.failed("namespace", "another selftest runs in it");
    assert!(all_there_is(Some(&namespace)).contains(&waiting.canary));
    waiting.signal(Signal::SIGTERM);
    let said = waiting.ended();
    assert_eq!(said.code, Some(1), "{said:#?}");
    assert!(said.err.contains("stopped by SIGTERM"), "{said:#?}");

    let waiting = Waiting::new(&namespace, &hook);
    waiting.signal(Signal::SIGKILL);
    assert_eq!(waiting.ended().code, None);

    // Where the other process was killed too, the next selftest clears away what is left.
    let before = all_there_is(Some(&namespace));
    namespace.ip("link add calitest0a1b2c type veth peer name selftest-0a1b2c").unwrap();
    namespace.ip("link set calitest0a1b2c up").unwrap();
    namespace.ip(&format!("route add {ADDRESS}/32 dev calitest0a1b2c")).unwrap();
    let said = Selftest::new(&json!({})).flags(&["--no-api"]).here(&namespace).run();
    assert_eq!((said.code, said.stage("finding").0), (Some(0), "ok"), "{said:#?}");
    assert_eq!(all_there_is(Some(&namespace)), before);
}
